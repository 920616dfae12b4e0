"""All eigenvalues."""
