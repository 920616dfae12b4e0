"""Gradients by layer: in closed form, against mean-field theory, and what is left out."""

import math

import family_cases as cases
import numpy as np
import pytest
import torch

from quadscape.measures.layers import compute as layers
from quadscape.measures.members import MemberRun, family_head

pytestmark = pytest.mark.usefixtures("one_thread")


def table_of(norms: np.ndarray, shapes: list[list[int]], seeds: int = 1) -> dict:
    """Tables of members whose norms, shape (seeds, T, layers), are given."""
    made = cases.family({"seed": [str(seed) for seed in range(seeds)]})
    section, members, depths = cases.training(iterations=norms.shape[1]), [], []
    for seed in range(seeds):
        loss = np.ones(norms.shape[1] + 1)
        run = cases.course(section, loss, loss, norms[seed])
        members.append(MemberRun(seed, made.cell(made.members[seed]), seed, section, run, 1))
        layout = [{"layer": name, "shape": shape} for name, shape in zip(run.layers, shapes, strict=True)]
        depths.append(layers.depth_of(run.layers, layout))
    return layers.measure(members, depths, family_head(made, members))


def layer_norms(weights: list[torch.Tensor], x: torch.Tensor, phi, bias: float = 0.0, seed: int = 0) -> np.ndarray:
    """Norms of the gradients of weights and biases together, layer by layer, by torch alone."""
    generator = torch.Generator().manual_seed(seed)
    biases = [bias * torch.randn(len(w), dtype=torch.float64, generator=generator) for w in weights]
    parameters = [
        (w.clone().requires_grad_(), b.clone().requires_grad_()) for w, b in zip(weights, biases, strict=True)
    ]
    h = x
    for place, (w, b) in enumerate(parameters):
        h = w @ (h if place == 0 else phi(h)) + b
    (h @ torch.randn(len(h), dtype=torch.float64, generator=generator)).backward()
    return np.array([math.sqrt(float(w.grad.square().sum() + b.grad.square().sum())) for w, b in parameters])


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("phi", [torch.tanh, lambda h: h], ids=["tanh", "linear"])
def test_orthogonal_weights_of_gain_s_give_a_slope_of_log_s(gain: float, phi) -> None:
    # At x = 0 every layer is in its linear range, and the gradient is that of the biases: sˡ from the loss.
    generator = torch.Generator().manual_seed(3)
    weights = [
        gain * torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=generator))[0] for _ in range(9)
    ]
    norms = layer_norms(weights, torch.zeros(12, dtype=torch.float64), phi)
    np.testing.assert_allclose(norms[::-1] / norms[-1], gain ** np.arange(9), rtol=1e-12)
    tables = table_of(np.tile(norms, (1, 10, 1)), [[12, 12]] * 9)
    slopes = tables["layer_slopes"]
    assert slopes["layers"].tolist() == [7] * 4
    np.testing.assert_allclose(slopes["slope"], math.log10(gain), atol=1e-12)
    if gain != 1:
        np.testing.assert_allclose(slopes["linearity"], 1)
    initial = tables["layer_norms"].where(tables["layer_norms"]["window"] == "initial")
    np.testing.assert_allclose(initial["log_norm"], np.log10(norms[::-1]))
    assert initial["layer"][0] == "linear9"


def mean_field(phi, derivative, weight: float, bias: float) -> tuple[float, float]:
    """q and χ at the fixed point, by Gauss–Hermite quadrature (Schoenholz et al., 2017, equations 3 and 5)."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(200)  # an even number: none at the kink
    shares = shares / shares.sum()
    q = 1.0
    for _ in range(2000):
        q = weight * float(shares @ phi(math.sqrt(q) * nodes) ** 2) + bias
    return q, weight * float(shares @ derivative(math.sqrt(q) * nodes) ** 2)


CASES = {
    "tanh, ordered": (torch.tanh, np.tanh, lambda z: 1 - np.tanh(z) ** 2, 0.8, 0.05),
    "tanh, chaotic": (torch.tanh, np.tanh, lambda z: 1 - np.tanh(z) ** 2, 2.5, 0.05),
    "relu": (torch.relu, lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float), 1.4, 0.1),
}


@pytest.mark.parametrize("case", CASES)
def test_slopes_are_those_of_mean_field_theory(case: str) -> None:
    phi, plain, derivative, weight, bias = CASES[case]
    q, chi = mean_field(plain, derivative, weight, bias)
    width, depth, seeds = 256, 24, 12
    norms = np.empty((seeds, 10, depth))
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        weights = [
            math.sqrt(weight / width) * torch.randn(width, width, dtype=torch.float64, generator=generator)
            for _ in range(depth)
        ]
        # An input of the length that the activations have at the fixed point.
        x = torch.randn(width, dtype=torch.float64, generator=generator)
        x *= math.sqrt((q - bias) / weight * width) / x.norm()
        norms[seed] = layer_norms(weights, x, phi, math.sqrt(bias), seed)
    slopes = table_of(norms, [[width, width]] * depth, seeds)["layer_slopes"]
    assert slopes["members"].tolist() == [seeds] * 4
    half = (slopes["slope_high"][0] - slopes["slope_low"][0]) / 2
    assert half < 0.15 * abs(math.log10(chi) / 2)
    # The mean of a logarithm lies below the logarithm of the mean by about 5/(2 · width) per layer in natural units.
    assert abs(slopes["slope"][0] - math.log10(chi) / 2) < 1.5 * half + 5 / (4 * width) / math.log(10)
    assert slopes["linearity"][0] > 0.9


def test_which_layers_are_alike() -> None:
    layout = [
        {"layer": "conv1", "shape": [8, 1, 3, 3]},
        {"layer": "conv1", "shape": [8]},
        {"layer": "norm1", "shape": [8]},
        *({"layer": f"conv{k}", "shape": [8, 8, 3, 3]} for k in (2, 3, 4)),
        {"layer": "conv5", "shape": [16, 8, 3, 3]},
        {"layer": "linear", "shape": [10, 16]},
    ]
    names = ["conv1", "norm1", "conv2", "conv3", "conv4", "conv5", "linear"]
    depth = layers.depth_of(names, layout)
    assert depth.names == ("linear", "conv5", "conv4", "conv3", "conv2", "conv1")
    assert depth.places == (6, 5, 4, 3, 2, 0)
    assert depth.alike == (False, False, True, True, True, False)
    assert layers.depth_of(["a"], [{"layer": "a", "shape": [3, 4]}]).alike == (False,)


def test_windows_lie_within_the_run() -> None:
    assert layers.steps_of("initial", 100) == range(1)
    assert layers.steps_of("start", 100) == range(10)
    assert layers.steps_of("middle", 100) == range(45, 55)
    assert layers.steps_of("end", 100) == range(90, 100)
    for window in layers.WINDOWS:
        assert len(layers.steps_of(window, 1)) == 1


def test_gradients_that_are_zero_are_counted_and_leave_no_slope() -> None:
    norms = np.ones((1, 20, 6))
    norms[0, :, 2] = 0
    norms[0, 0, 3] = 0
    tables = table_of(norms, [[4, 4]] * 6)
    table = tables["layer_norms"]
    own = table.where(table["layer"] == "linear3")
    assert own["vanished"].tolist() == [1] * 4
    assert np.isnan(own["log_norm"]).all()
    start = table.where((table["layer"] == "linear4") & (table["window"] == "start"))
    assert start["vanished"].tolist() == [0.5]
    assert start["log_norm"].tolist() == [0]
    assert tables["layer_slopes"]["without"].tolist() == [1] * 4
    assert np.isnan(tables["layer_slopes"]["slope"]).all()


def test_a_diverged_member_is_counted_where_it_is_missing() -> None:
    tables = cases.layer_tables(activations=("tanh",), seeds=3, diverged=(1,))
    slopes = tables["layer_slopes"]
    assert dict(zip(slopes["window"], slopes["without"], strict=True)) == {
        "initial": 0,
        "start": 0,
        "middle": 1,
        "end": 1,
    }
    assert slopes["slope"][0] == pytest.approx(cases.SLOPES["tanh"], abs=0.02)


def test_intervals_over_blocks_cover() -> None:
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        mean, low, high = layers._log_mean(10 ** generator.normal(2, 1, 100))
        covered.append(low <= 2 <= high)
        assert low < mean < high
    assert np.mean(covered) == pytest.approx(0.95, abs=0.04)
