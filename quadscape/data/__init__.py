"""Images with labels: where they come from, and the store that everything reads."""
