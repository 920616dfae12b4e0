"""Scores of ruggedness against closed forms: quadratics, random fields, planted noise, rescaled layers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from measure_cases import chosen
from problems import SMALL, dense_hessian, problem
from scipy.sparse.linalg import aslinearoperator

import quadscape
from quadscape.config.sections import MLP, Linear
from quadscape.curvature.matrix_free import CurvatureOperator, extreme_eigenpairs, spectral_density
from quadscape.measures.ruggedness.compute import (
    crossing,
    flat_width,
    line_scores,
    mean_cosine,
    measure,
    median_interval,
    noise_scores,
    norm_variation,
)
from quadscape.measures.ruggedness.declaration import GROUPS, SCORES, STEPS
from quadscape.measures.ruggedness.probes import NOISE_HEAD, OF_BATCH, Probes
from quadscape.measures.ruggedness.spectral import EXACT, estimated_scores, exact_scores
from quadscape.network.objective import Objective
from quadscape.tables import Table

OPTIONS = chosen("ruggedness", points=21, batch_size=7)


def _head(objective: Objective, decay: float = 0.0) -> dict[str, object]:
    return {"run": "a", "iteration": 1, "P": objective.size, "N": objective.count, "weight_decay": decay}


def _measured(objective: Objective, theta: torch.Tensor, decay: float = 0.0, **options: object) -> dict[str, Table]:
    values, vectors = np.linalg.eigh(dense_hessian(objective, theta).numpy())
    return measure(
        objective,
        theta.numpy(),
        exact_scores(values[::-1]),
        vectors[:, -1],
        SimpleNamespace(**vars(OPTIONS) | options),
        _head(objective, decay),
    )


def _scores(table: Table, column: str = "value") -> dict[str, float]:
    return dict(zip(table["score"].tolist(), table[column].tolist(), strict=True))


@pytest.fixture(scope="module")
def quadratic() -> tuple[Objective, torch.Tensor, np.ndarray]:
    """Least squares: a loss that is exactly quadratic."""
    objective, theta = problem(
        *(Linear(factory="linear"), (1, 3, 3)), count=60, classes=3, loss="squared_error", chunk=64
    )
    return objective, theta, dense_hessian(objective, theta).numpy()


class TestOnAQuadratic:
    """What a quadratic loss has by formula."""

    def test_growth_is_that_of_the_quadratic_and_the_limit_is_two_over_the_largest(self, quadratic: tuple) -> None:
        objective, theta, hessian = quadratic
        decay, largest = 0.02, np.linalg.eigvalsh(hessian)[-1]
        tables = _measured(objective, theta, decay)
        growth = tables["ruggedness_growth"]
        expected = np.abs(1 - growth["rate"] * (largest + decay))
        constant = growth["test"] == "constant"
        assert np.allclose(growth["growth"][constant], expected[constant], rtol=1e-5)
        assert np.allclose(growth["growth"][~constant], expected[~constant], rtol=1e-5, atol=1e-5)
        assert ((growth["growth"] > 1 + 1e-4) == (growth["scaled"] > 1 + 1e-4)).all()
        found = _scores(tables["ruggedness"])
        assert found["limit"] == pytest.approx(2 / (largest + decay), rel=1e-5)
        assert found["limit_ratio"] == pytest.approx(1, rel=1e-5)
        assert found["ramp_limit"] == pytest.approx(2 / (largest + decay), rel=1e-5)

    def test_mean_curvature_along_random_directions_is_the_trace_over_p(self, quadratic: tuple) -> None:
        objective, theta, hessian = quadratic
        table = _measured(objective, theta, directions=200, points=5)["ruggedness"]
        found, low, high = (_scores(table, name) for name in ("value", "value_low", "value_high"))
        assert found["mean_curvature"] == pytest.approx(np.trace(hessian) / objective.size, rel=1e-12)
        half_square = (OPTIONS.noise * float(theta.norm())) ** 2 / 2
        assert low["mean_rise_raw"] < half_square * found["mean_curvature"] < high["mean_rise_raw"]
        element = (OPTIONS.noise**2 / 2) * float(np.diag(hessian) @ np.square(theta.numpy()))
        assert low["mean_rise_element"] < element < high["mean_rise_element"]

    def test_the_worst_rise_is_that_of_the_trust_region(self, quadratic: tuple) -> None:
        objective, theta, hessian = quadratic
        found = _scores(_measured(objective, theta)["ruggedness"])
        gradient, radius = objective.gradient(theta).numpy(), OPTIONS.radius
        filters = objective.layout.unflatten(theta)[objective.layout.blocks[0].name].norm(dim=1).numpy()
        scales = {
            "raw": np.ones(objective.size),
            "element": np.abs(theta.numpy()),
            "filter": np.r_[np.repeat(filters, 9), np.zeros(3)],
        }
        for kind, scale in scales.items():
            slope, curvature = scale * gradient, scale[:, None] * hessian * scale
            values, vectors = np.linalg.eigh(curvature)
            along = vectors.T @ slope
            # |u(ν)| = ρ with u = (ν − H)⁻¹ g, ν above the largest eigenvalue.
            low, high = values[-1] * (1 + 1e-12), values[-1] + np.linalg.norm(slope) / radius
            for _ in range(200):
                middle = (low + high) / 2
                low, high = (middle, high) if np.linalg.norm(along / (middle - values)) > radius else (low, middle)
            u = along / (high - values)
            expected = along @ u + u @ (values * u) / 2
            assert expected * 0.99 < found[f"worst_rise_{kind}"] <= expected * (1 + 1e-9), kind

    def test_a_line_through_a_quadratic_is_one_well(self, quadratic: tuple) -> None:
        objective, theta, _ = quadratic
        tables = _measured(objective, theta, reach=50.0)
        found = _scores(tables["ruggedness"])
        assert found["excess_variation"] == pytest.approx(1, rel=1e-12)
        assert found["minima"] == pytest.approx(1 / 100)
        lines = tables["ruggedness_lines"]
        assert len(lines) == OPTIONS.directions * OPTIONS.points
        assert (lines["rise"][lines["t"] == 0] == 0).all()

    def test_noise_scales_are_those_of_the_covariance(self, quadratic: tuple) -> None:
        objective, theta, hessian = quadratic
        single = objective.example_gradients(theta, slice(None)).numpy()
        gradient = single.mean(axis=0)
        off, decay = single - gradient, 0.05
        covariance = off.T @ off / len(single)
        decayed = gradient + decay * theta.numpy()
        # Every example is a batch: no batch is left out, and the numbers are exact.
        theta_, size = theta.numpy(), objective.count
        values, vectors = np.linalg.eigh(hessian)
        options = SimpleNamespace(**vars(OPTIONS) | {"batch_size": 1})
        probes = Probes(objective, theta_, vectors[:, -1], values[-1], decay, options, 2e-16)
        probes.batches = size
        row = probes._noise(0)
        found = noise_scores(row, size, 1, size)
        assert found["noise_scale"].value == pytest.approx(np.trace(covariance) / (gradient @ gradient), rel=1e-10)
        assert found["noise_scale_decayed"].value == pytest.approx(
            np.trace(covariance) / (decayed @ decayed), rel=1e-10
        )
        product = np.trace(hessian @ covariance)
        assert found["curvature_noise_scale"].value == pytest.approx(
            product / (gradient @ hessian @ gradient), rel=1e-10
        )
        bent = hessian + decay * np.eye(len(hessian))
        assert found["curvature_noise_scale_decayed"].value == pytest.approx(
            product / (decayed @ bent @ decayed), rel=1e-10
        )
        lengths = np.linalg.norm(single, axis=1)
        assert found["norm_variation"].value == pytest.approx(lengths.var(ddof=1) / lengths.mean() ** 2, rel=1e-10)
        unit = single / lengths[:, None]
        cosine = ((unit @ unit.T).sum() - size) / (size * (size - 1))
        assert found["cosine"].value == pytest.approx(cosine, rel=1e-9, abs=1e-12)
        assert found["noise_scale"].ranked == (gradient @ gradient > np.trace(covariance) / size)

    def test_batches_without_replacement_give_the_covariance_on_average(self, quadratic: tuple) -> None:
        objective, theta, _ = quadratic
        single = objective.example_gradients(theta, slice(None)).numpy()
        off = single - single.mean(axis=0)
        trace, size, count = float(np.square(off).sum()) / len(off), 7, len(off)
        generator, found = np.random.default_rng(0), []
        for _ in range(1500):
            chosen_rows = generator.permutation(count)[:size]
            found.append(np.square(off[chosen_rows].mean(axis=0)).sum())
        numbers = np.zeros(NOISE_HEAD + 1500 * OF_BATCH)
        numbers[:NOISE_HEAD] = 1.0
        numbers[NOISE_HEAD::OF_BATCH] = found
        value = noise_scores(np.r_[numbers, np.zeros(1500 * 1500)], 1500, size, count)["noise_scale"]
        assert value.low < trace < value.high
        assert value.high - value.low < 0.15 * trace


def test_a_gaussian_random_field_has_its_minima() -> None:
    """√(m₄/m₂)/2π minima per length (Rice), with m₂ and m₄ the moments of the spectrum."""
    generator = np.random.default_rng(3)
    t = np.linspace(-4.0, 4.0, 1601)
    frequency, waves = 6.0, 300
    lines = []
    for _ in range(150):
        w, phase = frequency * generator.standard_normal(waves), generator.uniform(0, 2 * np.pi, waves)
        lines.append(np.cos(np.outer(t, w) + phase).sum(axis=1) / math.sqrt(waves / 2))
    rises = np.array(lines)
    rises -= rises[:, [800]]
    found = line_scores(t, rises, 1e-12)
    expected = math.sqrt(3) * frequency / (2 * np.pi)  # m₂ = σ², m₄ = 3σ⁴
    assert found["minima"].low < expected < found["minima"].high
    assert found["minima"].high - found["minima"].low < 0.1 * expected
    assert found["gradient_variance"].low < frequency**2 < found["gradient_variance"].high * 1.02
    assert found["total_variation"].value == pytest.approx(frequency * math.sqrt(2 / np.pi), rel=0.03)
    assert found["excess_variation"].value > 5


@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_rescaling_layers_changes_raw_sharpness_and_nothing_that_is_normalised(factor: float) -> None:
    objective, theta = problem(
        MLP(factory="mlp", hidden=(6, 5), activation="relu"), (1, 3, 3), count=40, classes=3, chunk=64
    )
    named = {name: value.clone() for name, value in objective.layout.unflatten(theta).items()}
    first, second = sorted(name.removesuffix(".weight") for name in named if name.endswith(".weight"))[:2]
    named[f"{first}.weight"] *= factor
    named[f"{first}.bias"] *= factor
    named[f"{second}.weight"] /= factor
    scaled = objective.layout.flatten(named)
    assert torch.allclose(objective.outputs(scaled), objective.outputs(theta), rtol=0, atol=1e-12)
    before, after = (_measured(objective, point) for point in (theta, scaled))
    one, other = (_scores(tables["ruggedness"]) for tables in (before, after))
    same = [name for name in SCORES if name.endswith(("_filter", "_element"))]
    same += [name for name, score in SCORES.items() if score.group == "random directions"] + ["flat_width"]
    for name in same:
        assert other[name] == pytest.approx(one[name], rel=1e-8), name
    for name in ("largest", "trace", "worst_rise_raw", "mean_rise_raw"):
        assert abs(other[name] / one[name] - 1) > 0.1, name
    rises = (tables["ruggedness_lines"]["rise"] for tables in (before, after))
    assert np.allclose(*rises, rtol=1e-9, atol=1e-12)


class TestSpectrum:
    """Scores of a spectrum."""

    def test_by_hand(self) -> None:
        values = np.array([100.0, 10.0, 1.0, 0.01, 0.0, -0.05, -2.0])
        found = {name: value.value for name, value in exact_scores(values).items()}
        assert found["trace"] == pytest.approx(values.sum())
        assert (found["largest"], found["smallest"]) == (100, -2)
        assert found["spread"] == pytest.approx(values.std())
        assert found["trace_over_norm"] == pytest.approx(values.sum() / np.linalg.norm(values))
        assert found["negative_fraction_1e-2"] == pytest.approx(1 / 7)
        assert found["negative_fraction_1e-3"] == pytest.approx(1 / 7)
        assert found["negative_mass"] == pytest.approx(2.05 / np.abs(values).sum())
        assert found["negative_mass_1e-2"] == pytest.approx(2 / np.abs(values).sum())
        assert found["quantile_ratio"] == pytest.approx(100 / 10)
        # 10 % of 111.01 lie below 100 and above it: one eigenvalue holds both quantiles.
        assert found["mass_ratio"] == pytest.approx(100 / 100 if 11.01 / 111.01 < 0.1 else 100 / 10)

    @pytest.mark.parametrize("values", [np.zeros(3), np.array([-1.0]), np.array([2.0])])
    def test_degenerate(self, values: np.ndarray) -> None:
        found = exact_scores(values)
        assert set(found) == {name for name, score in SCORES.items() if score.group == "spectrum"}
        assert all(value.over == EXACT for value in found.values())
        assert found["trace"].value == values.sum()

    def test_estimates_hold_the_exact_values(self) -> None:
        objective, theta = problem(*SMALL["mlp"], count=30, chunk=64)
        hessian = dense_hessian(objective, theta).numpy()
        exact = exact_scores(np.linalg.eigvalsh(hessian)[::-1])
        ends = extreme_eigenpairs(CurvatureOperator(objective, theta), 1, 1)
        operator = aslinearoperator(hessian)
        misses = total = 0
        for seed in range(4):
            found = estimated_scores(spectral_density(operator, 16, 40, seed), ends)
            assert set(found) == set(exact)
            for name, value in found.items():
                total += 1
                slack = 1e-8 * abs(exact[name].value)
                misses += not value.low - slack <= exact[name].value <= value.high + slack
                if name.startswith("negative_fraction"):
                    assert value.low <= exact[name].value <= value.high
        # Quantile ratios of a quadrature are those of its nodes, and shifted; all else is held by 95 %.
        assert misses <= 0.25 * total


class TestPieces:
    """Single scores."""

    def test_flat_width(self) -> None:
        t = np.linspace(-1, 1, 201)
        assert flat_width(t, 10 * t**2) == pytest.approx(0.2, rel=1e-3)
        assert flat_width(t, t**3 * 0) == 2
        assert flat_width(t, np.where(np.abs(t) > 0.5, np.inf, 0)) == pytest.approx(1, abs=0.011)
        assert flat_width(t, -t) == pytest.approx(0.2)

    def test_median_interval_holds_the_median(self) -> None:
        generator, held = np.random.default_rng(0), 0
        for _ in range(800):
            value = median_interval(generator.exponential(size=9), math.inf)
            held += value.low <= math.log(2) <= value.high
        assert 0.95 - 0.015 < held / 800 < 0.999
        few = median_interval(np.array([1.0, 2.0, 3.0]), 5.0)
        assert (few.value, few.low, few.high) == (2, 0, math.inf)
        assert median_interval(np.full(8, 2.0), 2.0).high == math.inf

    def test_cosines_and_norms(self) -> None:
        assert mean_cosine(np.ones((5, 5))).value == 1
        assert mean_cosine(np.ones((5, 5))).high == pytest.approx(1)
        assert mean_cosine(np.eye(4)).value == 0
        assert norm_variation(np.full(6, 3.0)).value == 0
        assert math.isnan(norm_variation(np.array([1.0, 2.0])).low)
        generator, held = np.random.default_rng(1), 0
        for _ in range(300):
            unit = generator.standard_normal((12, 40)) + 0.5
            unit /= np.linalg.norm(unit, axis=1, keepdims=True)
            value = mean_cosine(unit @ unit.T)
            held += value.low < 0.2 < value.high
        assert held > 0.85 * 300

    def test_crossing(self) -> None:
        rates = np.geomspace(0.1, 10, 21)
        tried = np.column_stack([rates, np.abs(1 - rates)])
        value, low, high = crossing(tried)
        assert low <= 2 <= high
        assert value == pytest.approx(2, rel=0.02)
        assert np.isnan(crossing(tried[:5])[0])
        assert crossing(tried[:5])[2] == math.inf
        assert crossing(tried[-3:])[1:] == (0.0, tried[-3, 0])
        assert np.isnan(crossing(np.full((3, 2), np.nan))).all()
        tried[-1, 1] = 0.5  # shrinks again where both have left for a flatter place
        assert crossing(tried)[0] == pytest.approx(value)

    def test_too_few_examples_have_no_noise(self) -> None:
        objective, theta = problem(*SMALL["linear"], count=1)
        found = _measured(objective, theta)["ruggedness"]
        noise = found.where(found["group"] == "gradient noise")
        assert np.isnan(noise["value"]).all()
        assert not noise["ranked"].any()


def test_without_upward_curvature_there_is_no_limit() -> None:
    objective, theta = problem(*SMALL["linear"], count=12, chunk=64)
    spectrum = exact_scores(-np.arange(objective.size, dtype=np.float64))
    tables = measure(
        objective, theta.numpy(), spectrum, np.eye(objective.size)[0], OPTIONS, _head(objective), epsilon=2e-16
    )
    found = _scores(tables["ruggedness"])
    assert all(math.isnan(found[name]) for name in ("limit", "limit_ratio", "ramp_limit"))
    assert len(tables["ruggedness_growth"]) == 0


def test_every_score_is_there_once_with_a_unit() -> None:
    objective, theta = problem(*SMALL["mlp"], count=30, chunk=64)
    table = _measured(objective, theta)["ruggedness"]
    assert table["score"].tolist() == list(SCORES)
    assert list(dict.fromkeys(table["group"].tolist())) == list(GROUPS)
    assert STEPS > 1
    inside = table["value_low"] <= table["value"]
    assert (inside | np.isnan(table["value"]) | np.isnan(table["value_low"])).all()


def test_the_library_measures_it() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    inputs, labels = torch.randn(40, 4), torch.arange(40) % 3
    basis = quadscape.eigenbasis(quadscape.objective(model, inputs, labels))
    tables = quadscape.measure("ruggedness", basis, points=11, directions=3)
    assert sorted(tables) == ["ruggedness", "ruggedness_growth", "ruggedness_lines"]
    assert tables["ruggedness"].attributes["batches"] == 4
