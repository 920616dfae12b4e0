"""Do eigendirections act independently beyond the quadratic?"""
