"""Eigenvectors of two checkpoints."""
