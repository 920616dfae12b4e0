"""Leakage between eigenbases: planted rotations, and a window that is projected on the other basis."""

import numpy as np
import pytest
from measure_cases import PlainBasis, random_orthogonal

from quadscape.findings.leakage import statements
from quadscape.measures.leakage.compute import measure

HEAD = {"run": "a", "iteration_a": 100, "iteration_b": 200, "zero_threshold": 1e-6}
SIZE = 37


def turned(vectors: np.ndarray, i: int, j: int, angle: float) -> np.ndarray:
    """The same basis, two of whose vectors are turned in their plane."""
    found = vectors.copy()
    found[:, i] = np.cos(angle) * vectors[:, i] + np.sin(angle) * vectors[:, j]
    found[:, j] = np.cos(angle) * vectors[:, j] - np.sin(angle) * vectors[:, i]
    return found


@pytest.mark.parametrize("memory", [None, 1 << 14])
def test_a_planted_rotation(memory: int | None) -> None:
    values, vectors = np.geomspace(10, 0.1, SIZE), random_orthogonal(SIZE, 0)
    first, second = PlainBasis(values, turned(vectors, 3, 30, 0.2)), PlainBasis(values, vectors)
    variances = (np.full(SIZE, 2.0), np.geomspace(1, 1e-4, SIZE))
    table = measure(first, second, variances, HEAD, memory=memory)["leakage"]
    in_first, in_second = (table.where(table["window"] == window) for window in ("first", "second"))
    assert len(in_first) == len(in_second) == SIZE
    leaked = np.zeros(SIZE)
    leaked[3], leaked[30] = np.sin(0.2) ** 2 * variances[1][[30, 3]]
    np.testing.assert_allclose(in_second["leakage"], leaked, atol=1e-13)
    np.testing.assert_allclose(in_second["seen"][[3, 30]] - leaked[[3, 30]], np.cos(0.2) ** 2 * variances[1][[3, 30]])
    # A small turn decides what is seen where little moves, and nothing where much does.
    assert in_second["share"][30] > 0.5
    assert in_second["share"][3] < 1e-3
    np.testing.assert_allclose(in_second["unmatched"], in_second["share"], atol=1e-12)
    np.testing.assert_array_equal(in_second["variance"], variances[1])
    # Of equal variances every direction sees the same.
    np.testing.assert_allclose(in_first["seen"], 2.0)
    np.testing.assert_allclose(in_first["share"][[3, 30]], np.sin(0.2) ** 2)


def test_what_is_seen_is_the_variance_of_projected_coordinates() -> None:
    generator = np.random.default_rng(1)
    values, own, other = np.geomspace(10, 0.1, SIZE), random_orthogonal(SIZE, 1), random_orthogonal(SIZE, 2)
    variance = np.geomspace(3, 1e-3, SIZE)
    x = np.sqrt(variance) * generator.standard_normal((40_000, SIZE))
    table = measure(PlainBasis(values, other), PlainBasis(values, own), (None, variance), HEAD)["leakage"]
    assert set(table["window"]) == {"second"}
    seen = (x @ own.T @ other).var(axis=0)
    assert np.abs(seen / table["seen"] - 1).max() < 5 * np.sqrt(2 / 40_000)


def test_an_exchange_of_ranks_is_no_mixture() -> None:
    values, vectors = np.geomspace(10, 0.1, SIZE), random_orthogonal(SIZE, 0)
    swapped = vectors[:, [1, 0, *range(2, SIZE)]]
    variance = np.geomspace(1, 1e-4, SIZE)
    table = measure(PlainBasis(values, swapped), PlainBasis(values, vectors), (None, variance), HEAD)["leakage"]
    np.testing.assert_allclose(table["share"][:3], [1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(table["unmatched"], 0, atol=1e-12)


def test_the_same_basis_leaks_nothing_and_no_window_shows_nothing() -> None:
    values, vectors = np.array([2.0, 1.0, -1.0]), np.eye(3)
    basis = PlainBasis(values, vectors)
    table = measure(basis, basis, (np.array([1.0, 0.5, 0.0]), None), HEAD)["leakage"]
    np.testing.assert_array_equal(table["leakage"], 0)
    assert np.isnan(table["share"][2])
    nothing = measure(basis, basis, (None, None), HEAD)["leakage"]
    assert not len(nothing)
    assert statements({"leakage": [nothing]}) == []
    one = PlainBasis(np.ones(1), np.ones((1, 1)))
    assert len(measure(one, one, (np.ones(1), np.ones(1)), HEAD)["leakage"]) == 2


def test_findings_say_which_basis_and_which_window() -> None:
    values, vectors = np.geomspace(10, 0.1, SIZE), random_orthogonal(SIZE, 0)
    first, second = PlainBasis(values, random_orthogonal(SIZE, 3)), PlainBasis(values, vectors)
    tables = measure(first, second, (np.ones(SIZE), np.geomspace(1, 1e-4, SIZE)), HEAD)
    found = statements({"leakage": [tables["leakage"]]})
    assert [one.primary for one in found] == [True, False]
    assert "eigenvectors of iteration 200 in the window that ends at iteration 100" in found[0].claim
    assert "eigenvectors of iteration 100 in the window that ends at iteration 200" in found[1].claim
    rows = tables["leakage"].where(tables["leakage"]["window"] == "second")
    assert found[1].value == pytest.approx(np.median(rows["share"]))
    assert found[1].value > 0.8
