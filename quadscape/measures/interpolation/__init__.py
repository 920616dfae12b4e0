"""The loss along the straight line from the start of a run to its end."""
