"""Variants of gradient descent compared."""
