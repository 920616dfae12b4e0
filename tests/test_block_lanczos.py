"""The largest eigenvalue by block Lanczos: planted spectra, small gaps, wrong signs, starts, budgets."""

import numpy as np
import pytest
from measure_cases import random_orthogonal
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from quadscape.curvature.block_lanczos import GAP, TOLERANCE, leading_eigenpair

SIZE = 300


def planted(eigenvalues: np.ndarray, seed: int = 1) -> tuple[LinearOperator, np.ndarray]:
    """An operator with these eigenvalues, and its eigenvectors as columns."""
    vectors = random_orthogonal(len(eigenvalues), seed)
    return aslinearoperator((vectors * eigenvalues) @ vectors.T), vectors


def power_law(size: int = SIZE, negative: float = 0.2) -> np.ndarray:
    values = 10.0 / np.arange(1, size + 1) ** 1.2
    values[-size // 4 :] = -negative * np.linspace(1, 0, size - size * 3 // 4)
    return values


def test_value_residual_and_second_are_those_planted() -> None:
    values = power_law()
    operator, vectors = planted(values)
    found = leading_eigenpair(operator, budget=120)
    assert found.state == "converged"
    assert found.eigenvalue == pytest.approx(values[0], rel=1e-8)
    assert abs(found.eigenvalue - values[0]) <= found.residual <= TOLERANCE * values[0]
    assert found.second == pytest.approx(values[1], rel=GAP)
    assert values.min() - 1e-12 <= found.smallest <= 0.1
    assert found.near is not None
    assert abs(vectors[:, 0] @ found.near[:, 0]) == pytest.approx(1, abs=1e-8)


def test_a_warm_start_takes_fewer_products_and_misses_no_eigenvalue_that_has_overtaken() -> None:
    values = power_law()
    operator, vectors = planted(values)
    cold = leading_eigenpair(operator, budget=120)
    warm = leading_eigenpair(operator, near=cold.near, seed=1, budget=120)
    assert warm.products < cold.products
    assert warm.eigenvalue == pytest.approx(cold.eigenvalue, rel=1e-9)
    values[40] = 12.0  # a vector that the start does not hold
    other = aslinearoperator((vectors * values) @ vectors.T)
    overtaken = leading_eigenpair(other, near=cold.near, seed=1, budget=120)
    assert overtaken.state == "converged"
    assert overtaken.eigenvalue == pytest.approx(12.0, rel=1e-8)
    assert overtaken.second == pytest.approx(10.0, rel=GAP)


@pytest.mark.parametrize("gap", [0.0, 0.2 * GAP])
def test_a_small_gap_is_said(gap: float) -> None:
    values = power_law()
    values[1] = values[0] * (1 - gap)
    found = leading_eigenpair(planted(values)[0], budget=120)
    assert found.state == "small gap"
    assert found.eigenvalue == pytest.approx(values[0], rel=1e-8)
    values[1] = values[0] * (1 - 5 * GAP)
    assert leading_eigenpair(planted(values)[0], budget=120).state == "converged"


def test_a_larger_negative_eigenvalue_is_said() -> None:
    values = power_law()
    values[-1] = -1.05 * values[0]
    found = leading_eigenpair(planted(values)[0], budget=120)
    assert found.state == "negative"
    assert found.smallest < -found.eigenvalue
    values[-1] = -0.9 * values[0]
    assert leading_eigenpair(planted(values)[0], budget=120).state == "converged"
    assert leading_eigenpair(planted(-np.abs(power_law()))[0], budget=300).state == "negative"


def test_what_does_not_converge_within_the_budget_is_said() -> None:
    operator, _ = planted(np.linspace(1, 2, SIZE))
    found = leading_eigenpair(operator, budget=10)
    assert found.state == "not converged"
    assert found.products == 10
    assert found.residual > TOLERANCE * found.eigenvalue


def test_what_is_not_finite_is_said() -> None:
    found = leading_eigenpair(aslinearoperator(np.full((5, 5), np.nan)), budget=10)
    assert found.state == "not finite"
    assert np.isnan(found.eigenvalue)
    assert found.near is None


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_small_operators_are_solved_exactly(size: int) -> None:
    values = np.arange(size, 0, -1.0)
    found = leading_eigenpair(planted(values)[0], budget=120)
    assert found.state == "converged"
    assert found.products <= size
    assert found.eigenvalue == pytest.approx(values[0], rel=1e-12)
    assert np.isnan(found.second) if size == 1 else found.second == pytest.approx(values[1], rel=1e-9)


def test_an_invariant_space_is_enough() -> None:
    # Two distinct eigenvalues: after four vectors the space can grow no further.
    values = np.r_[3.0, np.ones(SIZE - 1)]
    found = leading_eigenpair(planted(values)[0], budget=120)
    assert found.state == "converged"
    assert found.products <= 6
    assert leading_eigenpair(planted(np.zeros(SIZE))[0], budget=120).state == "small gap"


def test_the_same_again() -> None:
    operator, _ = planted(power_law())
    first, second = (leading_eigenpair(operator, seed=[3, 4], budget=120) for _ in range(2))
    assert first.eigenvalue == second.eigenvalue
    assert np.array_equal(first.near, second.near)
