"""The library for a notebook: a plain torch module and tensors in, Hessian, eigenbasis, tables and figures out.

What the workflow does in stages on disk is done here in memory, with the same engine, the same checks of the network,
and the same verification of every matrix; what does not fit into memory is refused with the sizes.

>>> import torch
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
>>> inputs, labels = torch.randn(20, 4), torch.randint(2, (20,))
>>> loss = objective(model, inputs, labels)
>>> basis = eigenbasis(loss)

The examples of the functions go on from these lines.
"""

from quadscape.library.curvature import DenseEigenbasis, Hessian, eigenbasis, hessian, top_eigenpairs
from quadscape.library.loss import CheckedNetwork, NetworkObjective, objective
from quadscape.library.measuring import draw, measure

__all__ = [
    "CheckedNetwork",
    "DenseEigenbasis",
    "Hessian",
    "NetworkObjective",
    "draw",
    "eigenbasis",
    "hessian",
    "measure",
    "objective",
    "top_eigenpairs",
]
