"""Does the noise of one step remember that of earlier ones?"""
