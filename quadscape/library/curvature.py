"""Hessian and eigenbasis in memory, verified as the stages verify theirs; the top without a matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from quadscape.amounts import format_bytes
from quadscape.curvature.costs import SIGN_PROBES
from quadscape.curvature.eigensolver import decompose, fix_signs, plan_solver
from quadscape.curvature.engine import HessianEngine
from quadscape.curvature.invariances import (
    Generators,
    combined,
    find_generators,
    joined,
    negatives_without,
    overlaps,
)
from quadscape.curvature.matrix_free import CurvatureOperator, ExtremeEigenpairs, extreme_eigenpairs
from quadscape.curvature.solver_plan import LIBRARY_MATRICES
from quadscape.curvature.strips import UNIT_FLOPS, check_finite, cut_strips, multiply_probes
from quadscape.curvature.verification import (
    DEFLATED_SEED,
    FORCED,
    FORCED_SEED,
    PROBE_SEED,
    BasisEvidence,
    Evidence,
    Forced,
    Spots,
    deflated_indices,
    project_out,
    sampled_ranks,
    sign_probes,
    spot_columns,
    verify_eigenbasis,
    verify_hessian,
)
from quadscape.errors import ModelError, StageError
from quadscape.library.loss import DTYPES, dtype_name, in_precision, point_of, steady
from quadscape.memory_limits import memory_available
from quadscape.network.objective import Objective, Vector
from quadscape.numerics import current_threads, device_memory_explained

_TILE = 1024


@dataclass(frozen=True, eq=False)
class Hessian:
    """The exact Hessian of a loss at θ, in memory.

    Attributes:
        matrix: ∇²L(θ), symmetric, shape (P, P), in the objective's dtype.
        verification: Trace, norm and errors of the matrix, and every check with its threshold.
        products: Independent float64 products with the sign vectors of `PROBE_SEED`, shape (P, SIGN_PROBES).
        objective: L.
        theta: θ, shape (P,).
    """

    matrix: np.ndarray
    verification: dict[str, Any]
    products: np.ndarray
    objective: Objective
    theta: np.ndarray

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.matrix, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        found = self.verification
        return f"Hessian(P={len(self.matrix)}, {self.matrix.dtype}, relative error {found['relative_error']:.1e})"


def _check_room(what: str, of: Objective, matrices: int, more: int = 0) -> None:
    """Refuses what does not fit into memory."""
    needed, there = matrices * of.size**2 * of.dtype.itemsize + more, memory_available()
    if needed > there:
        narrower = "" if of.dtype == torch.float32 else "take dtype='float32', "
        raise StageError(
            f"{what} of {of.size:,} parameters in {dtype_name(of.dtype)} takes {format_bytes(needed)} of memory, of "
            f"which {format_bytes(there)} are free here; {narrower}make the network smaller, ask for what needs no "
            "matrix (top_eigenpairs, the measure 'density'), or use the workflow, which keeps matrices on disk "
            "(docs/scale.md)."
        )


def hessian(objective: Objective, theta: Vector | None = None) -> Hessian:
    """The exact Hessian ∇²L(θ), verified against independent products.

    Args:
        objective: L, as from `objective(model, inputs, labels)`.
        theta: θ, shape (P,); None: the network's own parameters.

    Returns:
        The matrix, with what it was verified with. It is an array to NumPy: `numpy.asarray(hessian)`.

    A `StageError` says that it does not fit into memory, a `VerificationError` that it failed a check.

    >>> found = hessian(loss)
    >>> found.matrix.shape, bool((found.matrix == found.matrix.T).all())
    ((23, 23), True)
    >>> found.verification["relative_error"] < 1e-14
    True
    """
    point, size, name = point_of(objective, theta), objective.size, dtype_name(objective.dtype)
    _check_room("The Hessian", objective, 1)
    with steady(), device_memory_explained("columns of the Hessian", "take fewer parameters, or a CPU"):
        engine = HessianEngine(objective, point)
        bounds = cut_strips(size, engine.flops, UNIT_FLOPS[objective.device.type])[1]
        if objective.device.type == "cpu":
            widest = int(np.diff(bounds).max())
            _check_room("The Hessian", objective, 1, engine.memory_bytes(widest) + 24 * size * widest)
        matrix = np.empty((size, size), dtype=name)
        for start, stop in pairwise(bounds):
            strip = engine.columns(start, stop).numpy()
            check_finite(strip, start, "the Hessian")
            matrix[start:, start:stop] = strip
        precisions = {key: in_precision(objective, dtype) for key, dtype in DTYPES.items()}
        products = multiply_probes(
            size, slice(0, SIGN_PROBES), lambda key, vector: precisions[key].hessian_product(point, vector)
        )
        verification = verify_hessian(
            ((start, matrix[start:, start:stop]) for start, stop in pairwise(bounds)),
            objective.layout,
            sign_probes(size, SIGN_PROBES, PROBE_SEED),
            products["products"][1],
            products["float32_products"][1],
            name,
        )
    for start, stop in pairwise(bounds):
        corner = matrix[start:stop, start:stop]
        matrix[start:stop, start:stop] = (corner + corner.T) / 2
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
    return Hessian(matrix, verification, products["products"][1], objective, point)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Eigenpairs, verified or not yet."""

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    @property
    def size(self) -> int:
        """P."""
        return len(self.eigenvalues)

    def vectors(self, start: int, stop: int) -> np.ndarray:
        """Eigenvectors start … stop − 1 as columns, shape (P, stop − start)."""
        return self.eigenvectors[:, start:stop]

    def select(self, indices: np.ndarray) -> np.ndarray:
        """Eigenvectors of any indices as columns, shape (P, k)."""
        return self.eigenvectors[:, indices]


@dataclass(frozen=True, eq=False)
class DenseEigenbasis(_Pairs):
    """All eigenpairs of a Hessian, in memory, verified as the workflow verifies an eigenbasis.

    Attributes:
        eigenvalues: λ₁ ≥ … ≥ λ_P, float64, shape (P,).
        eigenvectors: As columns, orthonormal, the component of largest magnitude positive, shape (P, P).
        verification: Value and threshold of every check, and the estimates behind them.
        invariances: Numbers of generators, and of negative eigenvalues with and without them.
        generator_overlaps: Squared lengths of the eigenvectors' projections onto scale, then shift generators, (P, 2).
        objective: L.
        theta: θ, shape (P,).
    """

    verification: dict[str, Any]
    invariances: dict[str, Any]
    generator_overlaps: np.ndarray
    objective: Objective
    theta: np.ndarray

    def __repr__(self) -> str:
        largest, smallest = self.eigenvalues[[0, -1]]
        return f"DenseEigenbasis(P={self.size}, λ from {largest:.4g} to {smallest:.4g}, ε_λ={self.zero_threshold:.1e})"

    @property
    def zero_threshold(self) -> float:
        """Numerical zero ε_λ: eigenvalues of smaller magnitude cannot be told from 0."""
        return float(self.verification["zero_threshold"])


def eigenbasis(of: Hessian | Objective, theta: Vector | None = None) -> DenseEigenbasis:
    """The whole eigenbasis H = QΛQᵀ of a Hessian, verified against independent products.

    Args:
        of: The Hessian from `hessian`, or the objective whose Hessian is then computed.
        theta: θ of an objective, shape (P,); None: the network's own parameters.

    Returns:
        Eigenvalues in descending order with their eigenvectors.

    Raises:
        ModelError: `theta` is given for a Hessian, which has its own.

    A `StageError` says that it does not fit into memory, a `VerificationError` that it failed a check.

    >>> basis.eigenvectors.shape, bool(basis.eigenvalues[0] > basis.zero_threshold)
    ((23, 23), True)
    >>> basis.invariances["shift"]["generators"]  # all scores may shift alike: by the bias, and by each hidden unit
    4
    """
    if isinstance(of, Hessian):
        if theta is not None:
            raise ModelError("theta is given with a Hessian, which has its own; give one of them.")
        found = of
    else:
        point_of(of, theta)
        _check_solvable(of, LIBRARY_MATRICES + 1)
        found = hessian(of, theta)
    _check_solvable(found.objective, LIBRARY_MATRICES)
    device = found.objective.device
    with steady(), device_memory_explained(f"the eigenproblem of {len(found.matrix)} columns"):
        matrix = torch.from_numpy(found.matrix.copy()).to(device)
        values, vectors = decompose(matrix, current_threads())
        del matrix
        pairs = _Pairs(values, fix_signs(vectors))
        del vectors
        return _verified(found, pairs)


def _check_solvable(of: Objective, matrices: int) -> None:
    _check_room("The eigenbasis", of, matrices if of.device.type == "cpu" else 2)
    if plan_solver(of.size, dtype_name(of.dtype), of.device)["solver"] == "streamed":
        raise StageError(
            f"The eigenproblem of {of.size:,} columns in {dtype_name(of.dtype)} is too large to be solved at once on "
            f"this {of.device.type}; use the workflow, which solves it in parts (docs/scale.md)."
        )


def _verified(found: Hessian, pairs: _Pairs) -> DenseEigenbasis:
    """Eigenpairs of a Hessian held against products of the float64 objective, as the stage `eigenbasis` does."""
    size, double = pairs.size, in_precision(found.objective, torch.float64)
    generators = find_generators(double, found.theta)

    def evidence_of(vectors: np.ndarray) -> Evidence:
        products = [double.hessian_product(found.theta, vector).numpy() for vector in vectors.T.astype(np.float64)]
        return Evidence(vectors.astype(np.float64), np.stack(products, axis=1))

    signs = sign_probes(size, SIGN_PROBES, DEFLATED_SEED)
    spots = spot_columns(found.objective.layout)
    units = np.zeros((size, len(spots)))
    units[spots, np.arange(len(spots))] = 1.0
    evidence = BasisEvidence(
        Evidence(sign_probes(size, SIGN_PROBES, PROBE_SEED), found.products),
        evidence_of(pairs.select(sampled_ranks(size))),
        evidence_of(project_out(pairs.select(deflated_indices(pairs.eigenvalues)), signs)),
        Spots(found.matrix[:, spots].astype(np.float64), evidence_of(units).products),
        _forced(generators, double.gradient(found.theta).numpy(), evidence_of),
    )
    verification = verify_eigenbasis(
        pairs,
        found.verification,
        evidence,
        found.matrix.dtype.name,
        found.objective.device,
        _TILE,
    )
    cut, vectors = verification["zero_threshold"], pairs.eigenvectors
    along = [np.asarray((part.vectors.T @ vectors).T, dtype=np.float64) for part in generators]
    every = joined(generators)
    invariances: dict[str, Any] = {
        **{part.kind: {"generators": part.count, "deviation": part.deviation} for part in generators},
        "negative": int((pairs.eigenvalues < -cut).sum()),
        "negative_without_generators": negatives_without(
            pairs.eigenvalues, np.concatenate(along, axis=1), (every.T @ every).toarray(), cut
        ),
    }
    squares = [overlaps(components, part.gram) for components, part in zip(along, generators, strict=True)]
    return DenseEigenbasis(
        pairs.eigenvalues,
        vectors,
        verification,
        invariances,
        np.stack(squares, axis=1),
        found.objective,
        found.theta,
    )


def _forced(
    generators: Sequence[Generators], gradient: np.ndarray, evidence_of: Callable[[np.ndarray], Evidence]
) -> dict[str, Forced]:
    """What the network's invariances force products with the Hessian to be."""
    forced: dict[str, Forced] = {}
    for part in generators:
        if part.count:
            sums, exponents = combined(part, sign_probes(part.count, FORCED, FORCED_SEED))
            products = evidence_of(sums).products
            forced[part.kind] = Forced(sums, products, -exponents * gradient[:, None], part.deviation)
    return forced


def top_eigenpairs(objective: Objective, k: int, theta: Vector | None = None) -> ExtremeEigenpairs:
    """The k largest eigenvalues of the Hessian with their eigenvectors, from products alone, without the matrix.

    Args:
        objective: L.
        k: How many.
        theta: θ, shape (P,); None: the network's own parameters.

    Returns:
        Eigenvalues in descending order, eigenvectors as columns, and the residual of each.

    A `ModelError` says that k is none of 1 to P, a `VerificationError` that they did not converge.

    >>> bool(np.allclose(top_eigenpairs(loss, 2).eigenvalues, basis.eigenvalues[:2]))
    True
    """
    point = point_of(objective, theta)
    tolerance = 1e-5 if objective.dtype == torch.float32 else 1e-8
    with steady(), device_memory_explained("a product with the Hessian"):
        return extreme_eigenpairs(CurvatureOperator(objective, point), k, 0, tolerance=tolerance)
