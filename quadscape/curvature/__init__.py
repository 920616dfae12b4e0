"""The exact Hessian of the loss, its whole eigenbasis, and the checks that both must pass."""
