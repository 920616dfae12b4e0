"""Spectral density by Lanczos quadrature."""
