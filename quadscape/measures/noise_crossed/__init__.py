"""Gradient noise against curvature, with directions from one half of the data and both numbers from the other."""
