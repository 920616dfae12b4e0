"""Which starts end in the best basin of a planted loss."""
