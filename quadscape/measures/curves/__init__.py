"""How the training went."""
