"""Columns of the Hessians of the networks of `tests/zoo.py`, and products, against plain double backward in float64."""

import importlib
import re
from unittest import mock

import pytest
import torch
from problems import relative_error
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo import REFUSED, ZOO

from quadscape.curvature.engine import HessianEngine
from quadscape.curvature.self_check import check_network
from quadscape.errors import ModelError
from quadscape.network.models import cast
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterLayout, assign_vector, current_vector

pytestmark = pytest.mark.usefixtures("kept_exports", "one_thread")

LIMIT = 1e-10
NAMES = [pytest.param(name, id=name, marks=[pytest.mark.long] if animal.long else []) for name, animal in ZOO.items()]
ACCEPTED = [name for name in NAMES if name.values[0] not in REFUSED]


def problem(name):
    """An objective over a few random images, in chunks of two, and a θ away from the initial point."""
    animal = ZOO[name]
    model = animal.build()
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(animal.count, *animal.shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, animal.classes, (animal.count,), generator=generator)
    theta = current_vector(model)
    theta = theta + 0.05 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    return Objective(model, ParameterLayout.of(model), images, labels, animal.loss, 2), theta


def sampled_strips(layout):
    """First and last column of every parameter tensor, as strips across their boundaries, and one at random."""
    generator = torch.Generator().manual_seed(6)
    starts = {0: 1, layout.size - 1: layout.size}
    for block in layout.blocks:
        column = block.start + int(torch.randint(block.stop - block.start, (), generator=generator))
        starts.setdefault(column, column + 1)
    for block in layout.blocks[1:]:
        starts[block.start - 1] = block.start + 1
    return sorted(starts.items())


class Reference:
    """The plain mean loss over all images, differentiated twice by torch.autograd alone.

    Three of torch's operations have a wrong or no second derivative, and are written out: `_weight_norm` (silently
    wrong), fused attention and `hardsigmoid` (none).
    """

    def __init__(self, name, objective, theta):
        # Not a functional call, which ends before a checkpointed part is computed again.
        model = ZOO[name].build()
        assign_vector(model, theta)
        self.leaves = list(model.parameters())

        def weight_norm(direction, size, dim):
            return direction * (size / torch.norm_except_dim(direction, 2, dim))

        def hardsigmoid(x, inplace=False):
            return functional.relu6(x + 3) / 6

        with (
            sdpa_kernel(SDPBackend.MATH),
            mock.patch("torch._weight_norm", weight_norm),
            mock.patch.object(importlib.import_module("torch.nn.utils.weight_norm"), "_weight_norm", weight_norm),
            mock.patch("torch.nn.functional.hardsigmoid", hardsigmoid),
        ):
            outputs = model(objective.images)
        if objective.loss_kind == "cross_entropy":
            loss = functional.cross_entropy(outputs, objective.labels)
        else:
            targets = functional.one_hot(objective.labels, outputs.shape[1])
            loss = 0.5 * (outputs - targets).square().sum(1).mean()
        self.gradient = self._of(loss, create_graph=True)

    def _of(self, scalar, **settings):
        found = torch.autograd.grad(scalar, self.leaves, allow_unused=True, materialize_grads=True, **settings)
        return torch.cat([part.flatten() for part in found])

    def product(self, vector):
        return self._of(self.gradient @ vector, retain_graph=True)

    def column(self, index):
        return self._of(self.gradient[index], retain_graph=True)


@pytest.mark.parametrize("name", ACCEPTED)
def test_product(name):
    objective, theta = problem(name)
    reference = Reference(name, objective, theta)
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    step = 1e-8 * direction  # so short that it seldom meets a kink
    above, below = (Reference(name, objective, theta + sign * step).gradient.detach() for sign in (1, -1))
    product = reference.product(direction)
    # torch's second derivatives are no better than its formulas, some of which are wrong.
    assert relative_error(product, (above - below) / 2e-8) < 1e-5
    assert relative_error(objective.hessian_product(theta, direction), product) < LIMIT


@pytest.mark.parametrize("name", ACCEPTED)
def test_columns(name):
    objective, theta = problem(name)
    reference = Reference(name, objective, theta)
    engine = HessianEngine(objective, theta)
    found, expected = [], []
    for start, stop in sampled_strips(objective.layout):
        found.append(engine.columns(start, stop))
        expected.append(torch.stack([reference.column(i)[start:] for i in range(start, stop)], dim=1))
        assert found[-1].shape == (objective.size - start, stop - start)
    largest = max(float(strip.abs().max()) for strip in expected)
    assert largest > 0
    for strip, exact in zip(found, expected, strict=True):
        # A small layer does not hide behind a large one; but nothing is more exact than the rounding of the largest.
        limit = max(LIMIT * float(exact.abs().max()), 1e-14 * largest)
        assert float((strip - exact).abs().max()) <= limit


def checked(name):
    """What the self-check says of a network, as when a checkpoint of it is made."""
    objective, theta = problem(name)

    def build(dtype):
        model = cast(ZOO[name].build(), dtype or torch.float32)
        assign_vector(model, theta)
        return model.eval()

    return check_network(build, theta, objective.images[:3], objective.labels[:3], objective.loss_kind)


@pytest.mark.parametrize("name", ACCEPTED)
def test_passes_the_self_check(name):
    assert checked(name).errors["column"] < 1e-8


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] in REFUSED])
def test_refuses(name):
    with pytest.raises(ModelError, match=REFUSED[name]) as caught:
        checked(name)
    assert re.fullmatch(r"[^\n]*[^.\n]\.", str(caught.value))  # one sentence on one line


def test_there_are_enough():
    assert len(ZOO) >= 40
    assert len([animal for animal in ZOO.values() if not animal.long]) >= 20
    assert {animal.loss for animal in ZOO.values()} == {"cross_entropy", "squared_error"}
    assert len(REFUSED) <= 4
