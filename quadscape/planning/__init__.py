"""From an experiment file to what must be computed, at which cost."""
