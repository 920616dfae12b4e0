"""The exact Hessian, and its whole eigenbasis, of a neural network's loss: what the landscape really looks like."""

__version__ = "0.1.0"
