"""The largest eigenvalues of batches' Hessians, and how their eigenvectors lie to those of all examples."""
