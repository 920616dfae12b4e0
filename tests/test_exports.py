"""Exports are kept for the tests of one network and mixed up with those of no other."""

from collections.abc import Callable

import torch
from exports import KeptExports
from torch import nn


class Network(nn.Module):
    def __init__(self, offset: float, buffer: float, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("shift", torch.tensor([buffer]))
        self.offset, self.change = offset, change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(x * self.weight + self.shift + self.offset)


def test_only_equal_networks_share_an_export() -> None:
    asked = []
    kept = KeptExports(lambda model, images: asked.append(model) or object())
    images = torch.zeros(2, 3)

    def cube(x: torch.Tensor) -> torch.Tensor:
        return x**3

    first = kept(Network(1.0, 2.0, cube), images)
    assert kept(Network(1.0, 2.0, cube), images + 1) is first
    tied = Network(1.0, 2.0, cube)
    tied.other = tied.weight
    free = Network(1.0, 2.0, cube)
    free.other = nn.Parameter(torch.randn(3))
    others = [
        kept(Network(1.5, 2.0, cube), images),
        kept(Network(1.0, 2.5, cube), images),
        kept(Network(1.0, 2.0, torch.sin), images),
        kept(Network(1.0, 2.0, lambda x: x**3), images),
        kept(Network(1.0, 2.0, cube).double(), images.double()),
        kept(Network(1.0, 2.0, cube), images[:1]),
        kept(tied, images),
        kept(free, images),
    ]
    assert len({id(found) for found in [first, *others]}) == len(asked) == 1 + len(others)


def test_what_cannot_be_written_down_is_exported_again() -> None:
    asked = []
    kept = KeptExports(lambda model, images: asked.append(model) or object())
    network = Network(1.0, 2.0, torch.sin)
    network.generator = (x for x in "ab")
    assert kept(network, torch.zeros(2, 3)) is not kept(network, torch.zeros(2, 3))
    assert asked == [network, network]
