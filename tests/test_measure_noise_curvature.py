"""Noise against curvature, on covariances and Hessians that are planted."""

import math
from typing import Any

import numpy as np
import pytest
from measure_cases import GivenGradients, PlainBasis, random_orthogonal

from quadscape.findings import noise_crossed as crossed_findings
from quadscape.findings import noise_curvature as findings
from quadscape.measures.intervals import jackknife, student
from quadscape.measures.noise_crossed.compute import band_rows, crossed_curvatures
from quadscape.measures.noise_crossed.compute import measure as crossed
from quadscape.measures.noise_curvature.compute import measure
from quadscape.measures.slope_noise import noise_along
from quadscape.measures.subsets import Side, comparisons
from quadscape.tables import Table

HEAD: dict[str, Any] = {"run": "a", "iteration": 40, "weight_decay": 1e-3, "zero_threshold": 1e-9}


def gradients_of(covariance: np.ndarray, count: int, mean: float = 0.3, seed: int = 0) -> np.ndarray:
    """Examples whose covariance is exactly that, with a mean gradient."""
    size = len(covariance)
    drawn = np.random.default_rng(seed).standard_normal((count, size))
    drawn -= drawn.mean(axis=0)
    white = drawn @ np.linalg.inv(np.linalg.cholesky(drawn.T @ drawn / count)).T
    return white @ np.linalg.cholesky(covariance).T + mean


def geometry(covariance: np.ndarray, values: np.ndarray, vectors: np.ndarray, probes: int = 32, **options) -> Table:
    found = gradients_of(covariance, 3 * len(values))
    variances = np.einsum("ji,jk,ki->i", vectors, covariance, vectors)
    loss, basis = GivenGradients(found), PlainBasis(values, vectors)
    head = HEAD | {"P": len(values), "N": loss.count}
    return measure(loss, basis, np.zeros(len(values)), variances, probes, head, **options)["noise_curvature"]


def exact(covariance: np.ndarray, values: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
    """By dense matrices."""
    hessian = (vectors * values) @ vectors.T
    diagonal = np.diag(vectors.T @ covariance @ vectors)
    norms = np.linalg.norm(covariance) * np.linalg.norm(hessian)
    return {
        "trace": np.trace(covariance),
        "noise_norm": np.linalg.norm(covariance),
        "curvature_norm": np.linalg.norm(hessian),
        "off_diagonal": 1 - np.sum(diagonal**2) / np.linalg.norm(covariance) ** 2,
        "commutator": np.linalg.norm(covariance @ hessian - hessian @ covariance) / norms,
        "relative_commutator": np.linalg.norm(covariance @ hessian - hessian @ covariance)
        / (math.sqrt(2) * np.linalg.norm(covariance @ hessian)),
        "alignment": np.trace(covariance @ hessian) / norms,
    }


def planted(size: int, turned: bool, exponent: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """C = H^γ in the eigenbasis of H, or in another one; a part of the eigenvalues of H is negative."""
    values = np.concatenate([np.geomspace(5, 1e-2, size - size // 4), -np.geomspace(1e-3, 0.5, size // 4)])
    vectors = random_orthogonal(size, 1)
    other = random_orthogonal(size, 2) if turned else vectors
    return (other * np.abs(values) ** exponent) @ other.T, values, vectors


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [2, 9, 40])
def test_small_networks_are_exact(size: int, turned: bool) -> None:
    covariance, values, vectors = planted(size, turned)
    table = geometry(covariance, values, vectors)
    assert table.attributes["probes"] == 0
    for name, expected in exact(covariance, values, vectors).items():
        assert table[name][0] == pytest.approx(expected, rel=1e-6, abs=1e-6), name
    for name in ("noise_norm", "off_diagonal", "commutator", "commutator_rotated"):
        assert table[f"{name}_low"][0] == table[name][0] == table[f"{name}_high"][0]
    if not turned:
        assert table["commutator"][0] < 1e-6
        assert abs(table["off_diagonal"][0]) < 1e-9


@pytest.mark.parametrize("turned", [False, True])
def test_larger_ones_are_estimated_within_their_intervals(turned: bool) -> None:
    covariance, values, vectors = planted(120, turned, exponent=0.5)
    expected = exact(covariance, values, vectors)
    inside = []
    for seed in range(20):
        table = geometry(covariance, values, vectors, probes=8, seed=seed)
        assert table.attributes["probes"] == 8
        names = ("noise_norm", "off_diagonal", "alignment", *(["commutator"] if turned else []))
        # Where an estimate would have less than the diagonal, all of it is known.
        inside += [
            table[f"{name}_low"][0] - 1e-6 <= expected[name] <= table[f"{name}_high"][0] + 1e-6 for name in names
        ]
        assert table["noise_norm"][0] == pytest.approx(expected["noise_norm"], rel=0.2)
        assert table["commutator"][0] == pytest.approx(expected["commutator"], rel=0.2, abs=1e-6)
    assert np.mean(inside) > 0.8


def test_what_a_rotation_at_random_gives_is_the_mean_over_rotations() -> None:
    covariance, values, vectors = planted(7, False)
    table = geometry(covariance, values, vectors)
    commutators, shares, products = [], [], []
    hessian = (vectors * values) @ vectors.T
    for seed in range(4000):
        turn = random_orthogonal(7, seed)
        found = exact(turn @ covariance @ turn.T, values, vectors)
        commutators.append(found["commutator"] ** 2)
        shares.append(found["off_diagonal"])
        products.append(np.linalg.norm(turn @ covariance @ turn.T @ hessian) ** 2)
    rotated = (table["commutator_rotated"][0] ** 2, table["off_diagonal_rotated"][0])
    for values_of, expected in zip((commutators, shares), rotated, strict=True):
        assert abs(np.mean(values_of) - expected) < 4 * np.std(values_of) / math.sqrt(len(values_of))
    norms = found["noise_norm"] * found["curvature_norm"]
    relative = math.sqrt(np.mean(commutators) * norms**2 / (2 * np.mean(products)))
    assert table["relative_commutator_rotated"][0] == pytest.approx(relative, rel=0.03)


def test_the_cut_of_the_examples_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    covariance, values, vectors = planted(30, True)
    whole = geometry(covariance, values, vectors, probes=5)
    monkeypatch.setattr("quadscape.measures.noise_curvature.compute.GRADIENT_BYTES", 8 * 30 * 7)  # a ragged last part
    parts = geometry(covariance, values, vectors, probes=5)
    for name in whole.columns:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-9)


@pytest.mark.parametrize(("noise", "curvature"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_nothing_has_no_shares(noise: float, curvature: float) -> None:
    vectors = random_orthogonal(4, 0)
    gradients = noise * np.random.default_rng(0).standard_normal((6, 4))
    variances = ((gradients @ vectors) - (gradients @ vectors).mean(axis=0)) ** 2
    values = curvature * np.array([3.0, 2.0, 1.0, -1.0])
    loss, basis = GivenGradients(gradients), PlainBasis(values, vectors)
    head = HEAD | {"P": 4, "N": 6}
    table = measure(loss, basis, np.zeros(4), variances.mean(axis=0), 8, head)["noise_curvature"]
    assert math.isnan(table["commutator"][0])
    assert not findings.statements({"noise_curvature": [table]})


def test_findings_say_both_shares() -> None:
    covariance, values, vectors = planted(40, True)
    found = findings.statements({"noise_curvature": [geometry(covariance, values, vectors)]})
    assert len(found) == 2
    assert [one.primary for one in found] == [True, False]
    assert "commutator" in found[0].claim
    assert found[0].interval == "exact"


def test_the_jackknife_of_a_mean_is_its_interval() -> None:
    values = np.random.default_rng(0).standard_normal(9)
    without = np.array([np.delete(values, k).mean() for k in range(9)])
    np.testing.assert_allclose(jackknife(float(values.mean()), without), student(values)[1:])
    assert jackknife(2.0, np.empty(0)) == (2.0, 2.0)
    assert all(map(math.isnan, jackknife(2.0, np.ones(1))))


# ---------------------------------------------------------------------------------------------------------------------
# Across halves


def sampled(size: int, count: int, exponent: float, seed: int, turned: bool) -> list[tuple[PlainBasis, GivenGradients]]:
    """Both halves of examples with heavy tails, of E H = diag(λ), E gₙgₙᵀ = diag(λ^γ), in a basis of their own.

    The Hessian of an example is D^½ Eₙ D^½ with E Eₙ = I: neighbours mix, by the root of the number of examples.
    """
    generator = np.random.default_rng(seed)
    values = np.geomspace(20, 1, size)
    basis = random_orthogonal(size, 3) if turned else np.eye(size)
    found = []
    for _ in range(2):
        mixing = generator.standard_normal((size, size)) / math.sqrt(2 * count)
        root = np.sqrt(values)
        hessian = basis @ (np.diag(values) + root[:, None] * (mixing + mixing.T) * root) @ basis.T
        own, vectors = np.linalg.eigh(hessian)
        gradients = generator.standard_t(5, (count, size)) * math.sqrt(3 / 5) * values ** (exponent / 2)
        turned_basis = PlainBasis(own[::-1].copy(), vectors[:, ::-1].copy(), 1e-9)
        found.append((turned_basis, GivenGradients(gradients @ basis.T)))
    return found


def crossed_table(halves: list[tuple[PlainBasis, GivenGradients]], **options) -> Table:
    bases, losses = zip(*halves, strict=True)
    sides = [Side(basis, {"half": half, "seed": 0}, losses[half].count) for half, basis in enumerate(bases)]
    halvings = comparisons(Side(bases[0], {}, 2 * losses[0].count), sides)
    head = HEAD | {"P": len(bases[0].eigenvalues), "N": 2 * losses[0].count}
    return crossed(halvings, [losses], np.zeros(len(bases[0].eigenvalues)), head, **options)["noise_crossed"]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("exponent", [1.0, 1.5])
def test_crossing_finds_the_exponent_that_one_sample_hides(exponent: float, turned: bool) -> None:
    tables = [crossed_table(sampled(100, 2000, exponent, seed, turned)) for seed in range(3)]
    for table in tables:
        (found,) = crossed_findings.statements({"noise_crossed": [table]})
        assert found.low <= exponent <= found.high
        assert found.value == pytest.approx(exponent, abs=0.15)
        assert found.primary
        naive = crossed_findings.exponents(table, "own_")
        assert max(one.high for one in naive) < exponent


def test_curvatures_across_halves_are_those_of_dense_matrices() -> None:
    size = 23
    (first, one), (second, _) = sampled(size, 50, 1.5, 0, True)
    a, b = (basis.vectors(0, size) for basis in (first, second))
    dense = [(v * basis.eigenvalues) @ v.T for v, basis in ((a, first), (b, second))]
    found = crossed_curvatures(first, second, memory=20_000)
    np.testing.assert_allclose(found[0]["curvature"], np.diag(a.T @ dense[1] @ a), rtol=1e-9)
    np.testing.assert_allclose(found[1]["curvature"], np.diag(b.T @ dense[0] @ b), rtol=1e-9)
    positive = np.maximum(second.eigenvalues, 0.0)
    np.testing.assert_allclose(found[0]["power_20"], np.diag(a.T @ (b * positive**2) @ b.T @ a), rtol=1e-9)
    gradients = one.example_gradients(np.zeros(size), slice(0, 50))
    np.testing.assert_allclose(noise_along(first, one, np.zeros(size)), (gradients @ a).var(axis=0, ddof=1), rtol=1e-9)
    assert np.isnan(noise_along(first, GivenGradients(gradients[:1]), np.zeros(size))).all()


def test_bands_are_even_in_the_logarithm_and_say_what_is_told() -> None:
    values = np.array([100.0, 90.0, 10.0, 1.0, 0.5, 1e-3, -1.0])
    found = {"own_curvature": values, "own_noise": 2 * values, "curvature": 3 * values, "noise": 4 * values}
    rows = band_rows(found, cut=0.7)
    assert sum(row["count"] for row in rows) == 5  # without what lies a decade below the cut, and the negative one
    assert rows[0]["count"] == 2
    assert rows[0]["own_curvature"] == pytest.approx(95)
    assert rows[0]["noise"] == pytest.approx(4 * 95)
    assert [row["told"] for row in rows] == [True, True, True, False]
    assert not band_rows({name: -np.ones(4) for name in found}, cut=0.1)
    assert not band_rows({name: np.ones(4) for name in found}, cut=0.1)


def test_few_bands_have_no_exponent() -> None:
    halves = sampled(3, 50, 1.5, 0, False)
    assert not crossed_findings.statements({"noise_crossed": [crossed_table(halves)]})
