"""At which curvature does SGD spread as the posterior does?"""
