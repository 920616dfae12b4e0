"""Whose curvature is it: that of many examples a little, or of a few a lot?"""
