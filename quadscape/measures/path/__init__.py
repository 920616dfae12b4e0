"""The path of a run in the plane of its first two principal components."""
