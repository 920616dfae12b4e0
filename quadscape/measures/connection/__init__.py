"""The loss along the straight line between the ends of two runs."""
