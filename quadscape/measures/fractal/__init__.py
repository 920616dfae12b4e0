"""Is the loss fractal at small scales? Nested line searches against the measured rounding floor."""
