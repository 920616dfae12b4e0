"""What lies under results/: where, how large, in which state, and what of it may go."""
