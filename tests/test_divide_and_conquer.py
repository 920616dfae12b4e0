"""Divide and conquer of tridiagonal matrices, against LAPACK and closed forms, on the matrices that are hard for it."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quadscape.curvature.divide_and_conquer import Tree, decompose_tridiagonal
from quadscape.curvature.solver_plan import LEAF, bounds, depth

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = float(np.finfo("float64").eps)


def generator(seed=0):
    return np.random.default_rng(seed)


def wilkinson(size):
    return np.abs(np.arange(size) - (size - 1) / 2), np.ones(size - 1)


def glued(size):
    """Wilkinson matrices of 21 rows, coupled by √eps: eigenvalues in clusters of n/21."""
    return np.abs(np.arange(size) % 21 - 10.0), np.where(np.arange(1, size) % 21 == 0, 1e-8, 1.0)


HARD = {
    "random": lambda n: (generator().standard_normal(n), generator(1).standard_normal(n - 1)),
    "zero": lambda n: (np.zeros(n), np.zeros(n - 1)),
    "identity": lambda n: (np.ones(n), np.zeros(n - 1)),
    "constant": lambda n: (np.full(n, 2.0), np.full(n - 1, -1.0)),
    "wilkinson": wilkinson,
    "glued": glued,
    "graded": lambda n: (np.geomspace(1, 1e-200, n), 0.3 * np.geomspace(1, 1e-200, n)[:-1]),
    "graded upwards": lambda n: (np.geomspace(1e-30, 1, n), 0.3 * np.geomspace(1e-30, 1, n)[1:]),
    "nearly decoupled": lambda n: (np.arange(n) % 7.0, np.full(n - 1, 1e-15)),
    "decoupled": lambda n: (
        generator().standard_normal(n),
        generator(1).standard_normal(n - 1) * (np.arange(n - 1) % 3 > 0),
    ),
    "tiny": lambda n: (1e-310 * generator().standard_normal(n), 1e-310 * generator(1).standard_normal(n - 1)),
    "huge": lambda n: (1e300 * generator().standard_normal(n), 1e300 * generator(1).standard_normal(n - 1)),
    "negative": lambda n: (-np.arange(1.0, n + 1), np.full(n - 1, 0.5)),
}


def check(diagonal, off_diagonal, width=None, leaf=LEAF):
    size = len(diagonal)
    tree = decompose_tridiagonal(diagonal, off_diagonal, tile_bytes=1 << 14, leaf=leaf)
    width = width or size
    q = np.concatenate([tree.vectors(i, min(size, i + width)).numpy() for i in range(0, size, width)], axis=1)
    values = tree.eigenvalues
    scale = float(np.abs(values).max()) or 1.0
    applied = (diagonal / scale)[:, None] * q
    applied[:-1] += (off_diagonal / scale)[:, None] * q[1:]
    applied[1:] += (off_diagonal / scale)[:, None] * q[:-1]
    assert (np.diff(values) >= 0).all()
    # Denormal numbers have fewer digits.
    assert np.abs(applied - q * (values / scale)).max() < (20 * EPS if scale > 1e-300 else 1e-12)
    assert np.abs(q.T @ q - np.eye(size)).max() < 40 * EPS
    return values, q


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("size", [2, 129, 300])
def test_pairs_of_hard_matrices(name, size):
    diagonal, off_diagonal = HARD[name](size)
    values, _ = check(diagonal, off_diagonal)
    if name not in {"tiny", "huge"}:
        reference = scipy.linalg.eigvalsh(np.diag(diagonal) + np.diag(off_diagonal, -1) + np.diag(off_diagonal, 1))
        np.testing.assert_allclose(values, reference, atol=40 * EPS * max(1e-300, np.abs(reference).max()))


@pytest.mark.parametrize("size", [1, 2, 3, 127, 128, 129, 255, 257, 512, 700])
@pytest.mark.parametrize("width", [1, 50, None])
def test_every_size_and_any_range(size, width):
    if size > 300 and width == 1:
        width = 333
    check(generator(size).standard_normal(size), generator(size + 1).standard_normal(size - 1), width)


def test_closed_form():
    size = 400
    values, q = check(np.full(size, 2.0), np.full(size - 1, -1.0))
    k = np.arange(1, size + 1)
    np.testing.assert_allclose(values, 2 - 2 * np.cos(k * np.pi / (size + 1)), atol=20 * EPS)
    exact = np.sqrt(2 / (size + 1)) * np.sin(np.outer(k, k) * np.pi / (size + 1))
    # Close eigenvalues at both ends mix by rounding over their gap, here of 1.8e-4 at least.
    assert np.abs(np.abs((q * exact).sum(axis=0)) - 1).max() < 1e-9


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(2, 40),
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([1, 2, 5, 1000]),
    decades=st.sampled_from([0, 8, 30]),
)
def test_random_matrices_with_ties_in_small_leaves(size, seed, levels, decades):
    """Entries from few values make equal eigenvalues in the halves; leaves of four rows make many merges."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** -(decades * rng.random(2 * size - 1))
    entries = rng.integers(-levels, levels + 1, 2 * size - 1) / levels * scale
    check(entries[:size], entries[size:], 7, leaf=4)


def test_nodes_halve_the_matrix():
    for size in (1, 128, 129, 1000, 104_234):
        assert bounds(size, depth(size)) == [0, size]
        for level in range(depth(size)):
            cuts = bounds(size, level)
            assert max(np.diff(cuts)) - min(np.diff(cuts)) <= 1
            assert set(bounds(size, level + 1)) <= set(cuts)
        assert max(np.diff(bounds(size, 0))) <= 128


def test_ranges_do_not_depend_on_how_they_are_cut_but_for_rounding():
    diagonal, off_diagonal = glued(300)
    tree = decompose_tridiagonal(diagonal, off_diagonal)
    whole = tree.vectors(0, 300)
    assert isinstance(tree, Tree)
    pieces = torch.cat([tree.vectors(i, min(300, i + 70)) for i in range(0, 300, 70)], dim=1)
    assert float((whole - pieces).abs().max()) < 10 * EPS


def test_equal_runs_are_equal_bit_for_bit():
    diagonal, off_diagonal = HARD["random"](500)
    first, second = (decompose_tridiagonal(diagonal, off_diagonal) for _ in range(2))
    assert np.array_equal(first.eigenvalues, second.eigenvalues)
    assert torch.equal(first.vectors(3, 90), second.vectors(3, 90))
