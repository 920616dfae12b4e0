"""The Hessian engine on networks that it has never seen, against automatic differentiation in float64."""

import re
from functools import cache
from unittest import mock

import pytest
import torch
from architectures import ARCHITECTURES, REFUSED
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import lower_triangle, mean_loss
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from quadscape.curvature.engine import HessianEngine
from quadscape.curvature.operations import affine
from quadscape.errors import ModelError
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterLayout, current_vector

pytestmark = pytest.mark.usefixtures("kept_exports", "one_thread")

LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5}
LOSSES = ("cross_entropy", "squared_error")


def objective_of(model, shape, classes, dtype, loss, count=7, chunk=4):
    """An objective over random images, and a float64 θ away from the initial point, where much cancels by symmetry."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (count,), generator=generator)
    theta = current_vector(model).double()
    theta += 0.05 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    layout = ParameterLayout.of(model)
    return Objective(model.to(dtype), layout, images.to(dtype), labels, loss, chunk), theta


def dense_hessian(objective, theta):
    """The whole Hessian by plain double backward.

    Two of torch's operations have a wrong or no second derivative, and are written out: `_weight_norm` (silently wrong)
    and fused attention (none). And not by torch.func.hessian: its derivative of a vmapped gradient with respect to the
    scales of layer and instance normalisation silently counts mean and deviation as constants.
    """

    def written_out(direction, size, dim):
        return direction * (size / torch.norm_except_dim(direction, 2, dim))

    with sdpa_kernel(SDPBackend.MATH), mock.patch("torch._weight_norm", written_out):
        return torch.autograd.functional.hessian(lambda vector: mean_loss(objective, vector), theta)


@cache
def reference(name, loss):
    return dense_hessian(*objective_of(*ARCHITECTURES[name](), torch.float64, loss))


def block_triangle(matrix, block):
    """What `lower_triangle` finds of a matrix."""
    strip = torch.arange(len(matrix)) // block
    return matrix * (strip[:, None] >= strip)


def assert_close(found, expected, limit, whole_norm=0.0):
    """In the Frobenius norm, relatively; or far below the rounding of a whole matrix that it is part of."""
    error = float(torch.linalg.norm(found - expected))
    assert error <= max(limit * float(torch.linalg.norm(expected)), 1e-14 * whole_norm)


# ---------------------------------------------------------------------------------------------------------------------
# Every architecture


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_reference_is_the_derivative_of_the_gradient(name):
    objective, theta = objective_of(*ARCHITECTURES[name](), torch.float64, "cross_entropy")
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    step = 1e-6 * direction
    difference = (objective.gradient(theta + step) - objective.gradient(theta - step)) / 2e-6
    assert_close(reference(name, "cross_entropy") @ direction, difference, 1e-7)


# Where directions start and where they go does not depend on the loss: one network of each kind has both of them.
BOTH_LOSSES = {"vgg-smooth", "preactivation-resnet", "multihead-attention", "recurrent", "tied-layers", "einsum"}


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        pytest.param(name, loss, marks=[pytest.mark.long] if loss != LOSSES[0] and name not in BOTH_LOSSES else [])
        for name in ARCHITECTURES
        for loss in LOSSES
    ],
)
def test_double_precision(name, loss):
    objective, theta = objective_of(*ARCHITECTURES[name](), torch.float64, loss)
    size, exact = objective.size, reference(name, loss)
    norm = float(torch.linalg.norm(exact))
    engine = HessianEngine(objective, theta)
    block = {"cross_entropy": 64, "squared_error": size}[loss]
    found = lower_triangle(engine, size, block)
    expected = block_triangle(exact, block)
    assert_close(found, expected, 1e-10)
    for part in objective.layout.blocks:  # a small layer does not hide behind a large one
        columns = slice(part.start, part.stop)
        assert_close(found[:, columns], expected[:, columns], 1e-10, norm)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_single_precision(name, monkeypatch):
    objective, theta = objective_of(*ARCHITECTURES[name](), torch.float32, "cross_entropy")
    exact = reference(name, "cross_entropy")
    engine = HessianEngine(objective, theta)
    convolves = any("conv" in str(node.target) for node in engine.graph.nodes)
    for many in (1, 10**9) if convolves else (1,):  # one product for all columns, a convolution for each
        monkeypatch.setattr(affine, "_MANY_COLUMNS", many)
        monkeypatch.setattr(affine, "_PIECE", 17)
        assert_close(lower_triangle(engine, objective.size, 64).tril(), exact.tril(), 1e-5)


@pytest.mark.parametrize(
    "name", ["conv1d", "preactivation-resnet", "depthwise-separable", "grouped-bottleneck", "densenet"]
)
def test_narrow_blocks(name):
    objective, theta = objective_of(*ARCHITECTURES[name](), torch.float64, "cross_entropy")
    exact = reference(name, "cross_entropy")
    norm = float(torch.linalg.norm(exact))
    engine = HessianEngine(objective, theta)
    assert_close(lower_triangle(engine, objective.size, 7), block_triangle(exact, 7), 1e-10)
    for part in objective.layout.blocks:
        column = part.stop - 1
        assert_close(engine.columns(column, column + 1), exact[column:, column : column + 1], 1e-10, norm)


@pytest.mark.parametrize(("count", "chunk"), [(9, 4), (3, 1), (6, 6), (1, 1)])
@pytest.mark.parametrize("name", ["conv1d", "preactivation-resnet", "multihead-attention", "einsum", "recurrent"])
def test_ragged_batches(name, count, chunk):
    objective, theta = objective_of(*ARCHITECTURES[name](), torch.float64, "cross_entropy", count, chunk)
    found = lower_triangle(HessianEngine(objective, theta), objective.size, 64)
    assert_close(found, block_triangle(dense_hessian(objective, theta), 64), 1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# Any convolution


@st.composite
def convolutions(draw, layer):
    """A convolution and the shape of an input that it leaves something of."""
    groups = draw(st.integers(1, 3))
    inputs, outputs = (groups * draw(st.integers(1, 2)) for _ in range(2))
    kernel, stride, dilation = (tuple(draw(st.integers(1, 3)) for _ in range(2)) for _ in range(3))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(2))
    bias = draw(st.booleans())
    size = tuple(draw(st.integers(1, 6)) for _ in range(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 9)))
        convolution = layer(
            inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias
        )
    for length, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        left = (length - 1) * s - 2 * p + reach if layer is nn.ConvTranspose2d else length + 2 * p - reach + 1
        assume(1 <= left <= 12)
    return convolution, (inputs, *size)


def check_convolution(layer, data):
    convolution, shape = data.draw(convolutions(layer))
    activation = data.draw(st.sampled_from([nn.Tanh(), nn.GELU(), nn.Softplus(), nn.SiLU(), nn.Sigmoid()]))
    dtype, loss = data.draw(st.sampled_from(list(LIMIT))), data.draw(st.sampled_from(LOSSES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        features = convolution(torch.zeros(1, *shape)).numel()
        model = nn.Sequential(convolution, activation, nn.Flatten(), nn.Linear(features, 2))
    exact = dense_hessian(*objective_of(model, shape, 2, torch.float64, loss, count=5, chunk=3))
    objective, theta = objective_of(model, shape, 2, dtype, loss, count=5, chunk=3)
    found = lower_triangle(HessianEngine(objective, theta), objective.size, 64)
    assert_close(found.tril(), exact.tril(), LIMIT[dtype])


@pytest.mark.parametrize("examples", [6, pytest.param(24, marks=pytest.mark.long)])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_random_convolutions(layer, examples):
    @settings(derandomize=True, database=None, deadline=None, max_examples=examples)
    @given(data=st.data())
    def check(data):
        check_convolution(layer, data)

    check()


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    build, names = REFUSED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build()
    objective, theta = objective_of(model, (1, 4, 4), 3, torch.float64, "cross_entropy")
    with pytest.raises(ModelError, match=names) as caught:
        HessianEngine(objective, theta)
    assert re.fullmatch(r"[^\n]*[^.\n]\.", str(caught.value))  # one sentence on one line ...
    assert not re.search(r"[.!?]\s+[A-Z]", str(caught.value))  # ... and not two
