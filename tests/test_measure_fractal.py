"""Roughness of lines against functions of known exponent: Weierstrass's, analytic ones, kinks, real small networks."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from measure_cases import PlainBasis, chosen, random_orthogonal
from problems import dense_hessian, problem

from quadscape.config.sections import MLP
from quadscape.findings.fractal import statements
from quadscape.findings.statement import AGREES, DISAGREES, NOT_TESTABLE
from quadscape.measures.fractal.analysis import lags, middle, residual, roughness, rounding
from quadscape.measures.fractal.compute import Windows, measure
from quadscape.measures.fractal.declaration import (
    DEGREE,
    LINES,
    NOT_FINITE,
    NOTHING,
    PRECISIONS,
    ROUGH,
    SAMPLES,
    SMOOTH,
    STENCIL,
    WHITE,
)
from quadscape.network.filters import Filters
from quadscape.tables import Table

SIZE, COUNT = 12, 8
HEAD = {"run": "a", "iteration": 10, "P": 2000, "N": COUNT, "weight_decay": 0.0, "zero_threshold": 0.0}

VECTORS = random_orthogonal(SIZE, 1)
THETA = np.random.default_rng(2).standard_normal(SIZE)

Function = Callable[[float], float]


class PlantedObjective:
    """L(θ) = 1 + ½|x|² + Σᵢ fᵢ(xᵢ) with x = Qᵀ(θ − θ₀), rounded to one precision, also θ, as a network rounds.

    Examples differ by terms that cancel in the mean.
    """

    size, count = SIZE, COUNT

    def __init__(self, vectors: np.ndarray, centre: np.ndarray, functions: list[Function], precision: str) -> None:
        self._vectors, self._centre, self._functions = vectors, centre, functions
        self._precision = np.dtype(precision).type
        noise = np.random.default_rng(5).standard_normal((COUNT, SIZE))
        self._noise = noise - noise.mean(axis=0)

    def example_losses(self, theta: np.ndarray) -> np.ndarray:
        along = self._vectors.T @ (theta.astype(self._precision).astype(np.float64) - self._centre)
        value = 1 + 0.5 * along @ along + sum(f(a) for f, a in zip(self._functions, along, strict=True))
        return (value + 0.01 * self._noise @ along).astype(self._precision).astype(np.float64)


def weierstrass(exponent: float, height: float = 1.0) -> Function:
    """Σ b^(−kH) cos(bᵏx + φₖ) with H = exponent/2 and b = 1.7, as far as float64 resolves its phases."""
    base, terms = 1.7, 56
    phases = np.random.default_rng(3).uniform(0, 2 * math.pi, terms)
    frequencies = base ** np.arange(terms)
    heights = height * frequencies ** (-exponent / 2)
    return lambda x: float(heights @ np.cos(frequencies * x + phases))


def losses(function: Function, along: Function | None = None) -> dict[str, PlantedObjective]:
    return {
        name: PlantedObjective(VECTORS, THETA, [along or function, *[function] * (SIZE - 1)], name)
        for name in PRECISIONS
    }


def planted(function: Function, along: Function | None = None, **options: Any) -> dict[str, Table]:
    """The tables of a planted loss; `along` stands for the function of the first coordinate."""
    basis, filters = PlainBasis(np.linspace(2, 1, SIZE), VECTORS), Filters(np.arange(SIZE) % 3, 3)
    return measure(losses(function, along), basis, THETA, filters, chosen("fractal", **options), HEAD)


def planted_windows() -> Windows:
    directions = dict(zip(LINES, VECTORS.T, strict=False))
    return Windows(losses(math.sin), THETA, directions, chosen("fractal", points=129, windows=3))


@cache
def of_network(activation: str) -> dict[str, Table]:
    """Of a small real network, trained by a few steps of gradient descent."""
    config, shape = MLP(factory="mlp", hidden=(9, 7), activation=activation), (1, 4, 4)
    both = {name: problem(config, shape, getattr(torch, name), count=32, chunk=64) for name in PRECISIONS}
    objectives = {name: objective for name, (objective, _) in both.items()}
    exact, theta = both["float64"]
    for _ in range(200):
        theta = theta - 0.3 * exact.gradient(theta)
    values, vectors = np.linalg.eigh(dense_hessian(exact, theta).numpy())
    basis = PlainBasis(values[::-1], vectors[:, ::-1])
    return measure(objectives, basis, theta.numpy(), Filters.of(exact.layout), chosen("fractal", points=257), HEAD)


def tables_of_one(tables: dict[str, Table]) -> dict[str, list[Table]]:
    return {name: [table] for name, table in tables.items()}


@cache
def planted_table(kind: str) -> Table:
    """Windows of a planted function, made once for all tests."""
    below = weierstrass(1.0, 1e-17)
    generator = np.random.default_rng(4)
    heights, places = generator.standard_normal(300), generator.uniform(-1, 1, 300) ** 3
    functions: dict[str, Function] = {
        "weierstrass 0.5": weierstrass(0.5),
        "weierstrass 1.0": weierstrass(1.0),
        "analytic": lambda x: math.tanh(2 * x + 0.3) + math.exp(x) / (2 + math.cos(x)),
        "below the floor": lambda x: math.cos(x) + below(x),
        "above the floor": lambda x: math.cos(x) + 1e8 * below(x),
        "kink": lambda x: abs(x - 1e-4),
        "kink at the centre": abs,
        "many kinks": lambda x: float(heights @ np.maximum(0, x - places)),
    }
    return planted(functions[kind], points=513)["fractal"]


def of(table: Table, precision: str = "float64", line: str = "") -> Table:
    keep = table["precision"] == precision
    return table.where(keep & (table["line"] == line) if line else keep)


@pytest.mark.parametrize(("exponent", "windows"), [(0.5, 3), (1.0, 6)])
def test_a_weierstrass_function_returns_its_exponent(exponent: float, windows: int) -> None:
    found = of(planted_table(f"weierstrass {exponent}"))
    rough = found.where(found["state"] == ROUGH)
    # All coordinates are rough, so that the floor is too, at scales of ε^⅔|θ|: what is far above these is seen.
    assert (found["state"][found["window"] < windows] == ROUGH).all()
    assert not np.isin(found["state"], (SMOOTH, WHITE)).any()
    assert ((rough["exponent_low"] <= exponent) & (exponent <= rough["exponent_high"])).mean() >= 0.95
    assert rough["exponent"].mean() == pytest.approx(exponent, abs=0.04)


def test_rough_along_one_line_alone_it_is_rough_in_every_window() -> None:
    rough = weierstrass(1.0)
    table = planted(lambda x: math.sin(x), points=513, along=rough)["fractal"]
    top = of(table, line="top")
    assert (top["state"] == ROUGH).sum() >= 6
    assert ((top["exponent_low"] <= 1) & (top["exponent_high"] >= 1))[top["state"] == ROUGH].all()
    assert not (of(table, line="bulk")["state"] == ROUGH).any()
    assert (of(table, line="random")["state"] == ROUGH).any()  # it has a part along the rough line


def test_an_analytic_function_has_nothing_rough_and_soon_nothing_at_all() -> None:
    table = planted_table("analytic")
    assert not np.isin(table["state"], (ROUGH, WHITE)).any()
    for precision, first in (("float64", 2), ("float32", 1)):
        found = of(table, precision)
        assert (found["state"][found["window"] >= first] == NOTHING).all()
    widest = of(table)
    widest = widest.where(widest["window"] == 0)
    assert (widest["state"] == SMOOTH).all()
    assert np.allclose(widest["exponent"], 2, atol=0.05)


def test_roughness_below_the_floor_is_not_claimed() -> None:
    table = planted_table("below the floor")
    assert not np.isin(table["state"], (ROUGH, WHITE)).any()
    # The same roughness, a hundred million times as high, is.
    assert (of(planted_table("above the floor"))["state"] == ROUGH).any()
    assert not (of(planted_table("above the floor"), "float32")["state"] == ROUGH).any()


@pytest.mark.parametrize("kind", ["kink", "kink at the centre", "many kinks"])
def test_a_function_with_kinks_is_no_fractal(kind: str) -> None:
    table = planted_table(kind)
    assert not np.isin(table["state"], (ROUGH, WHITE)).any()
    smooth = of(table).where(of(table)["state"] == SMOOTH)
    assert smooth["window"].max() >= 3  # where an analytic function has nothing left
    assert np.median(smooth["exponent"]) == pytest.approx(2, abs=0.07)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_real_network_is_rough_in_neither_precision(activation: str) -> None:
    tables = of_network(activation)
    assert not np.isin(tables["fractal"]["state"], (ROUGH, WHITE)).any()
    exact = of(tables["fractal"])
    below = exact.where(exact["state"] == NOTHING)
    ratio = below["residual"] / below["floor"]
    assert 0.5 < np.median(ratio) < 1.5
    if activation == "gelu":
        assert (exact["state"][exact["window"] >= 3] == NOTHING).all()
        found = statements(tables_of_one(tables))
        assert found[0].verdict == DISAGREES
        assert found[0].value == pytest.approx(2, abs=0.05)


def test_the_roughness_of_float32_is_its_rounding_floor() -> None:
    tables = of_network("gelu")
    table, points = tables["fractal"], tables["fractal_lines"]
    single, double = (of(points, name) for name in ("float32", "float64"))
    for line in LINES:
        for window in (0, 1, 2):
            which = (single["line"] == line) & (single["window"] == window)
            error = single["rise"][which] - double["rise"][which]
            error = residual(error)[middle(len(error))]
            floor = of(table, "float32", line)["floor"][window]
            assert 0.4 < error.std() / floor < 2.5
    # Where a window is narrower than the resolution of θ, rounding is a random walk: slope 1, below the floor.
    structure = of(tables["fractal_structure"], "float32")
    narrow = structure.where((structure["window"] == 7) & structure["fitted"] & (structure["structure"] > 0))
    assert (narrow["structure"] < narrow["floor"]).all()
    assert (of(table, "float32")["floor"] > 1e7 * of(table)["floor"]).all()


def test_values_do_not_depend_on_how_the_windows_are_cut() -> None:
    windows = planted_windows()
    whole = windows.values(slice(None))
    for name, shape in windows.layout().items():
        parts = [windows.values(slice(item, item + 1))[name] for item in range(len(windows.items))]
        assert whole[name].shape == (len(windows.items), *shape)
        assert np.array_equal(np.concatenate(parts), whole[name])


def test_windows_are_nested_and_hold_the_centre() -> None:
    windows = planted_windows()
    for window in range(3):
        t = windows.places(window)
        assert t[64] == 0
        assert np.allclose(np.diff(t), t[1] - t[0])
        assert t[-1] == pytest.approx(0.1 * 10.0**-window * np.linalg.norm(THETA))
    assert len(windows.sampled) == SAMPLES == len(set(windows.sampled.tolist()))


class TestArrays:
    """The functions of arrays."""

    def test_a_polynomial_leaves_nothing(self) -> None:
        x = np.linspace(-3, 5, 257)
        rise = np.polynomial.Polynomial(np.arange(DEGREE + 1))(x)
        assert np.abs(residual(rise)).max() < 1e-13 * np.abs(rise).max()

    def test_white_noise_has_the_floor_that_fourth_differences_find(self) -> None:
        noise = np.random.default_rng(1).standard_normal((2000, STENCIL + 1))
        smooth = np.arange(-2, 3) ** 3 + 7.0
        floor = rounding(noise + smooth, 0.0)
        assert floor.low < 1 < floor.high
        assert rounding(noise, 1.0).value == pytest.approx(math.sqrt(2), rel=0.05)

    def test_the_interval_of_the_floor_covers(self) -> None:
        generator = np.random.default_rng(2)
        found = [rounding(generator.standard_normal((SAMPLES, STENCIL + 1)), 0.0) for _ in range(2000)]
        assert np.mean([floor.low < 1 < floor.high for floor in found]) == pytest.approx(0.95, abs=0.015)

    def test_the_structure_function_of_a_random_walk(self) -> None:
        walks = np.cumsum(np.random.default_rng(3).standard_normal((200, 1025)), axis=1)
        found = [roughness(residual(walk), 0.0) for walk in walks]
        steps, fitted = lags(1025)
        mean = np.mean([one.structure[fitted] for one in found], axis=0)
        assert np.allclose(mean, steps[fitted], rtol=0.1)
        exponents = np.array([one.exponent for one in found])
        assert exponents.mean() == pytest.approx(1, abs=0.05)
        covered = [one.low <= 1 <= one.high for one in found]
        assert np.mean(covered) > 0.85
        assert all(one.state == ROUGH for one in found)

    def test_white_noise_above_a_floor_that_is_too_low_is_not_called_rough(self) -> None:
        found = roughness(np.random.default_rng(4).standard_normal(1025), 0.01)
        assert found.state == WHITE
        assert found.low < 0 < found.high
        assert roughness(np.random.default_rng(4).standard_normal(1025), 1.0).state == NOTHING

    def test_what_is_not_finite_says_nothing(self) -> None:
        rise = np.zeros(129)
        rise[3] = math.inf
        left = residual(rise)
        assert np.isnan(left).all()
        found = roughness(left, 1.0)
        assert found.state == NOT_FINITE
        assert math.isnan(found.exponent)
        assert np.isnan(found.structure).all()

    def test_a_constant_has_nothing_above_no_floor(self) -> None:
        found = roughness(np.zeros(129), 0.0)
        assert (found.state, found.excess) == (NOTHING, 0.0)

    @pytest.mark.parametrize(("points", "longest"), [(129, 2), (641, 10), (1025, 16)])
    def test_lags_are_fitted_up_to_a_64th(self, points: int, longest: int) -> None:
        steps, fitted = lags(points)
        assert steps[0] == 1
        assert (np.diff(steps) > 0).all()
        assert longest / 1.5 < steps[fitted][-1] <= longest
        assert steps[-1] <= points // 4


def test_nothing_above_the_floor_has_no_exponent_and_is_said_so() -> None:
    table = planted_table("analytic")
    narrow = table.where(table["window"] >= 2)
    found = statements({"fractal": [narrow]})
    assert found[0].verdict == NOT_TESTABLE
    assert "nothing lies above the rounding floor in any of 18 windows" in found[0].reason


def test_a_fractal_loss_agrees_with_what_is_published() -> None:
    found = statements({"fractal": [planted_table("weierstrass 1.0")]})
    assert found[0].verdict == AGREES
    assert found[0].value == pytest.approx(1, abs=0.15)


def test_a_network_whose_loss_overflows_is_said_to() -> None:
    table = planted(lambda x: math.inf if x > 0.05 else x, points=129, windows=3)["fractal"]
    assert (table["state"][table["window"] == 0] == NOT_FINITE).all()
    assert not (table["state"][table["window"] == 2] == NOT_FINITE).any()
