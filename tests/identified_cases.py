"""Eigenbases of one checkpoint on different data, planted so that it is known which eigenvectors the data determine."""

from typing import Any

import numpy as np
from measure_cases import PlainBasis, random_orthogonal

from quadscape.measures.identified import compute as identified
from quadscape.measures.subsets import Side, comparisons
from quadscape.tables import Table


def side(eigenvalues: np.ndarray, vectors: np.ndarray, zero: float = 0.0, **subset: Any) -> Side:
    return Side(PlainBasis(eigenvalues, vectors, zero), subset, 100 if "half" in subset else 200)


def sharing(count: int, size: int, seed: int, angle: float = 0.0) -> np.ndarray:
    """A basis whose first `count` vectors are the first coordinates, turned by an angle; the rest is random."""
    vectors = np.zeros((size, size))
    vectors[:count, :count] = np.eye(count)
    vectors[count:, count:] = random_orthogonal(size - count, seed)
    if 0 < count < size and angle:
        # Each shared vector leans out into one of the others, as far as there are as many.
        for i in range(min(count, size - count)):
            own, other = vectors[:, i].copy(), vectors[:, count + i].copy()
            vectors[:, i] = np.cos(angle) * own + np.sin(angle) * other
            vectors[:, count + i] = np.cos(angle) * other - np.sin(angle) * own
    return vectors


def halvings(
    eigenvalues: np.ndarray, shared: int, count: int = 1, zero: float = 0.0, seed: int = 0
) -> tuple[Side, list[Side]]:
    """A checkpoint's own basis and those of halvings, which share the first eigenvectors."""
    size = len(eigenvalues)
    own = side(eigenvalues, sharing(shared, size, seed + 999), zero)
    sides = [
        side(eigenvalues, sharing(shared, size, seed + 10 * h + half), zero, half=half, seed=h)
        for h in range(count)
        for half in (0, 1)
    ]
    return own, sides


def tables(own: Side, sides: list[Side], bands: int = 30, **head: Any) -> dict[str, Table]:
    size = len(own.basis.eigenvalues)
    head = {"run": "r0", "iteration": 0, "P": size, "N": 200, "weight_decay": 0.0, **head}
    head["zero_threshold"] = own.basis.zero_threshold
    return identified.measure(comparisons(own, sides), min(bands, size), head)


def together(dimension: Table, end: str = "top") -> dict[str, float]:
    row = dimension.where((dimension["end"] == end) & (dimension["halving"] == -1))
    assert len(row) == 1
    return {name: values[0] for name, values in row.columns.items()}


def plausible(size: int, iteration: int, halved: int = 3, run: str = "r0", zeros: float = 1e-5) -> dict[str, Table]:
    """Tables as of a trained network: the top is determined, the rest the less the smaller the eigenvalue."""
    values = np.concatenate([20.0 * np.arange(1, size - size // 4 + 1) ** -1.6, -np.geomspace(1e-5, 0.3, size // 4)])
    zero, generator = zeros * values[0], np.random.default_rng(size)
    base = np.eye(size)

    def noisy(noise: float) -> np.ndarray:
        matrix = (base * values) @ base.T
        error = generator.standard_normal((size, size)) * np.sqrt(np.abs(values[:, None] * values[None, :]))
        found, vectors = np.linalg.eigh(matrix + noise * (error + error.T))
        return vectors[:, np.argsort(found)[::-1]]

    own = side(values, noisy(1e-6), zero)
    sides = [side(values, noisy(0.03), zero, half=half, seed=h) for h in range(halved) for half in (0, 1)]
    sides += [side(values, noisy(2e-4), zero, shuffled=True), side(values, noisy(0.1), zero, per_class=3)]
    return tables(own, sides, run=run, iteration=iteration)
