"""Do runs that start at one checkpoint spread as the noisy quadratic model says?"""
