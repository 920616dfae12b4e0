"""Single-example gradients in the eigenbasis."""
