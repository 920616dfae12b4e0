"""How rugged is the loss around one checkpoint, in numbers."""
