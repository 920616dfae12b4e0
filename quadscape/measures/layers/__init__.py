"""Vanishing and exploding gradients by layer."""
