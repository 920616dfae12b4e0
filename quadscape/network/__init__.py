"""A network as a function of one vector: parameters, loss, checkpoints."""
