"""Where single batches see the minimum along eigenvectors, and how curved they see it."""
