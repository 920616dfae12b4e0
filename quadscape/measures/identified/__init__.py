"""Eigenvectors of one checkpoint on different data."""
