"""Loss along eigenvectors."""
