"""A-posteriori checks of a Hessian and of an eigenbasis, against products that are independent of both.

The evidence is products H·v of the float64 objective (forward over reverse, no matrix; `Objective.hessian_product`),
never the stored matrix itself. Random signs z, E zzᵀ = I, see every column at once: E|Az|² = ‖A‖²_F, E zᵀAz = tr A and
E(zᵢᵀAzⱼ)² = ‖A‖²_F for independent zᵢ, zⱼ. Applied to the *error* A = H_stored − H they measure ‖ΔH‖; applied to the
eigenpairs, qᵢᵀ(Hz) − λᵢqᵢᵀz = (Hqᵢ − λᵢqᵢ)ᵀz gives an unbiased estimate of every pair's residual from a few products.

Thresholds are built from three things only: the machine epsilon of the stored dtype, the growth of rounding errors with
size, and how badly an independent float32 product of the same network rounds. Every comparison is written so that NaN
fails it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from quadscape.curvature.projections import device_share, overlap_tiles
from quadscape.errors import DeviceMemoryError, VerificationError
from quadscape.network.parameters import ParameterLayout
from quadscape.numerics import device_memory_explained

PROBE_SEED = 20_240_001
DEFLATED_SEED = 20_240_002
DEFLATED = 256
"""At most so many eigenpairs of largest |λ| are taken out before the tail is tested, and at most a tenth of them."""
SPOT_SEED = 20_240_003
"""One column in every parameter tensor is compared with float64."""
FORCED_SEED = 20_240_004
FORCED = 2
"""Random sums of the generators of each kind of invariance."""
SAMPLED_RANKS = 12
"""Exact residuals are computed on about so many log-spaced ranks from each end of the spectrum."""

HESSIAN_ROUNDING = 100.0
"""Allowed relative error of a well-conditioned Hessian in units of eps: 1.2e-5 in float32. Sums of n terms in blocked
kernels lose about √log n to √n units, and backpropagation through some ten layers twice multiplies a few of them."""
HESSIAN_AMPLIFICATION = 10.0
"""The rest is cancellation in the network itself (1 − p of a well-fitted example, null directions before a
normalisation). It is measured: a float32 product is compared with the float64 one, and the engine, which rounds as
often but in another order, may be this many times as wrong. In float64 the same amplification holds with its eps."""
FLOAT32_LIMIT = 1e-3
"""However the error arises, a float32 Hessian worse than this would make every small eigenvalue meaningless."""
STANDARD_ERRORS = 6.0
"""Allowed deviation of a Hutchinson estimate. zᵀAz has sub-exponential tails (its worst case, rank one, is χ² with one
degree of freedom per probe): 6 standard errors of 16 probes are exceeded with probability below 1e-4 even then, and far
less once the top of the spectrum is deflated."""
INVARIANCE_ROUNDING = 1e-6
"""Allowed deviation of Hu, in float64 and relative to ‖H‖_F, where an invariance is exact."""
INVARIANCE_AMPLIFICATION = 1.0
"""Where it is not, for the ε of a normalisation, and holds to δ in gradients of single examples: allowed in units of
δ‖H‖_F. A ResNet9 with GroupNorm was seen to need 0.02."""
UNLUCKY = 1e-6
"""Probability that the largest of all P estimated residuals exceeds its bound by chance."""
_LEAST_OVERLAP_BYTES = 256 << 20


def solver_growth(size: int) -> float:
    """Allowed backward error of a symmetric eigensolver in units of eps·‖H‖.

    Rounding errors of orthogonal transformations accumulate at random (probabilistic error analysis, Higham and Mary
    2019): the factor P of the worst-case bounds becomes √P; 10 covers the constants at small sizes.

    Args:
        size: P.

    Returns:
        10 + √P.
    """
    return 10.0 + math.sqrt(size)


def rounded(value: float) -> float:
    """Six significant digits: what is reported, so that a manifest does not depend on the last bit of a sum."""
    return float(f"{float(value):.6g}")


@dataclass
class Checks:
    """Collects named numbers with their thresholds and fails at the end, naming all that are exceeded.

    Attributes:
        subject: What is checked, for the message.
        values: Value and threshold by name.
    """

    subject: str
    values: dict[str, dict[str, float]] = field(default_factory=dict)

    def require(self, name: str, value: float, threshold: float) -> None:
        """Records that a value must not exceed a threshold; NaN exceeds everything."""
        # What is compared is what is reported, so that a manifest proves its own checks.
        self.values[name] = {"value": rounded(value), "threshold": rounded(threshold)}

    def finish(self) -> dict[str, dict[str, float]]:
        """Ends the checks.

        Returns:
            Value and threshold by name.

        Raises:
            VerificationError: Some value exceeds its threshold.
        """
        failed = [
            f"{name} is {entry['value']:.4g}, allowed is {entry['threshold']:.4g}"
            for name, entry in self.values.items()
            if not entry["value"] <= entry["threshold"]
        ]
        if failed:
            raise VerificationError(f"{self.subject} failed its verification: {'; '.join(failed)}.")
        return self.values


def sign_probes(size: int, count: int, seed: int) -> np.ndarray:
    """Independent uniform signs, float64, shape (size, count); the first columns do not depend on `count`."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return np.stack([generator.integers(0, 2, size) * 2.0 - 1.0 for _ in range(count)], axis=1)


def sampled_ranks(size: int, count: int = SAMPLED_RANKS) -> np.ndarray:
    """Indices on log-spaced ranks from both ends of a spectrum, sorted, without repeats; int64."""
    ranks = np.unique(np.geomspace(1, size, count).round().astype(np.int64)) - 1
    return np.unique(np.concatenate([ranks, size - 1 - ranks]))


def _root_mean_square(columns: np.ndarray) -> float:
    """√ of the mean squared length of the columns: ‖A‖_F estimated from A·(sign probes)."""
    return math.sqrt(float(np.square(columns).sum()) / columns.shape[1])


def _fourth_norm(columns: np.ndarray) -> float:
    """(tr (AᵀA)²)^¼ from A·(sign probes): at least ‖A‖₂, and close to it where few directions dominate."""
    gram = columns.T @ columns
    count = len(gram)
    off_diagonal = float(np.square(gram).sum() - np.square(np.diag(gram)).sum()) / (count * (count - 1))
    return max(off_diagonal, 0.0) ** 0.25


def _eps(dtype: str) -> float:
    return float(np.finfo(dtype).eps)


# ---------------------------------------------------------------------------------------------------------------------
# Hessian


@dataclass(frozen=True)
class _Streamed:
    """What one pass over the strips of a stored symmetric matrix H gives; both triangles of its corners averaged.

    Attributes:
        product: H·probes, shape (P, m), float64.
        trace: tr H.
        square: ‖H‖²_F.
        diagonal_square: Σ hᵢᵢ².
        asymmetry_square: Squared Frobenius norm of the corners less their transposes.
    """

    product: np.ndarray
    trace: float
    square: float
    diagonal_square: float
    asymmetry_square: float


def _stream(strips: Iterable[tuple[int, np.ndarray]], probes: np.ndarray) -> _Streamed:
    z = torch.tensor(probes, dtype=torch.float64)
    product = torch.zeros_like(z)
    trace, square, diagonal_square, asymmetry = 0.0, 0.0, 0.0, 0.0
    for start, block in strips:
        strip = torch.tensor(block, dtype=torch.float64)
        width = strip.shape[1]
        corner, below = strip[:width], strip[width:]
        asymmetry += float((corner - corner.T).square().sum())
        corner = (corner + corner.T) / 2
        trace += float(corner.diagonal().sum())
        diagonal_square += float(corner.diagonal().square().sum())
        square += float(corner.square().sum()) + 2.0 * float(below.square().sum())
        stop = start + width
        product[start:stop] += corner @ z[start:stop] + below.T @ z[stop:]
        product[stop:] += below @ z[start:stop]
    return _Streamed(product.numpy(), trace, square, diagonal_square, asymmetry)


def verify_hessian(
    strips: Iterable[tuple[int, np.ndarray]],
    layout: ParameterLayout,
    probes: np.ndarray,
    products: np.ndarray,
    float32_products: np.ndarray,
    dtype: str,
    subject: str = "The Hessian",
) -> dict[str, Any]:
    """Compares a stored Hessian, or Gauss–Newton matrix, with independent products.

    A check that fails is a `VerificationError`.

    Args:
        strips: Column strips of the lower block triangle, in order: first column c, and the block of rows c … P − 1
            and columns c … c + K − 1, shape (P − c, K); its first K rows hold both triangles, computed independently.
        layout: Parameters, so that each is compared on its own scale: a wrong part of small curvature would hide
            behind the norm of the rest.
        probes: Sign vectors z, shape (P, m).
        products: H·z in float64, shape (P, m).
        float32_products: The same in float32, independent of the strips; they measure how much this network rounds.
        dtype: Of the strips.
        subject: What the matrix is, for the message.

    Returns:
        trace, frobenius, asymmetry, error_frobenius (‖ΔH‖_F), error_norm (upper estimate of ‖ΔH‖₂), relative_error,
        amplification, trace_estimate with trace_standard_error, and every check with its threshold.
    """
    size, count = probes.shape
    checks = Checks(subject)
    streamed = _stream(strips, probes)
    error = streamed.product - products
    noise = float32_products - products
    eps = _eps(dtype)

    def allowed(rows: slice) -> float:
        amplified = HESSIAN_AMPLIFICATION * _root_mean_square(noise[rows]) / _eps("float32")
        return eps * (HESSIAN_ROUNDING * _root_mean_square(products[rows]) + amplified)

    everything = slice(0, size)
    norm, error_frobenius = _root_mean_square(products), _root_mean_square(error)
    limit = allowed(everything)
    checks.require("Frobenius norm of the error against float64 products", error_frobenius, limit)
    for block_of in layout.blocks:
        rows = slice(block_of.start, block_of.stop)
        checks.require(f"that error in the rows of {block_of.name}", _root_mean_square(error[rows]), allowed(rows))
    relative = error_frobenius / norm if norm > 0 else 0.0
    if dtype == "float32":
        checks.require(
            "relative error in float32 (if it alone fails, set curvature.dtype to float64)", relative, FLOAT32_LIMIT
        )
    # Each triangle may be off by the allowed error, so their difference by twice that.
    asymmetry = math.sqrt(streamed.asymmetry_square)
    checks.require("asymmetry of independently computed entries (Frobenius norm)", asymmetry, 2 * limit)
    estimate = float(np.einsum("pm,pm->", probes, products)) / count
    # Var zᵀHz = 2 Σ_{i≠j} hᵢⱼ² for signs; rounding moves a trace by at most √P ‖ΔH‖_F.
    standard_error = math.sqrt(max(0.0, 2.0 * (streamed.square - streamed.diagonal_square) / count))
    checks.require(
        "difference of the trace from its Hutchinson estimate",
        abs(streamed.trace - estimate),
        STANDARD_ERRORS * standard_error + math.sqrt(size) * limit,
    )
    amplification = _root_mean_square(noise) / (_eps("float32") * norm) if norm > 0 else 0.0
    numbers = {
        "trace": streamed.trace,
        "frobenius": math.sqrt(streamed.square),
        "asymmetry": asymmetry,
        "error_frobenius": error_frobenius,
        "error_norm": min(error_frobenius, _fourth_norm(error)),
        "relative_error": relative,
        "amplification": amplification,
        "trace_estimate": estimate,
        "trace_standard_error": standard_error,
    }
    checked = checks.finish()
    return {**{name: rounded(value) for name, value in numbers.items()}, "probes": count, "checks": checked}


# ---------------------------------------------------------------------------------------------------------------------
# Eigenbasis


class Basis(Protocol):
    """What is to be verified: a stored eigenbasis, or one in memory."""

    @property
    def size(self) -> int:
        """P."""

    @property
    def eigenvalues(self) -> np.ndarray:
        """Shape (P,), float64."""

    def vectors(self, start: int, stop: int, /) -> np.ndarray:
        """Eigenvectors start … stop − 1, shape (P, stop − start); of no columns too, for the dtype."""

    def select(self, indices: np.ndarray) -> np.ndarray:
        """Eigenvectors of these indices, shape (P, k)."""


@dataclass(frozen=True)
class Forced:
    """Directions whose products with H are known in advance: those of the network's invariances.

    Attributes:
        vectors: u, of unit length, shape (P, k).
        products: Hu, independent, in float64, shape (P, k).
        expected: What the invariance forces Hu to be: −Ag, or 0; shape (P, k).
        deviation: How far the network is from invariant: `Generators.deviation`.
    """

    vectors: np.ndarray
    products: np.ndarray
    expected: np.ndarray
    deviation: float


@dataclass(frozen=True)
class Spots:
    """Single columns of the stored Hessian, and the same in float64.

    Attributes:
        stored: Shape (P, k).
        products: H·eⱼ, shape (P, k).
    """

    stored: np.ndarray
    products: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """Vectors and their independent float64 products with H.

    Attributes:
        vectors: Shape (P, k).
        products: H·vectors, shape (P, k).
    """

    vectors: np.ndarray
    products: np.ndarray


@dataclass(frozen=True)
class BasisEvidence:
    """Products with the Hessian, in float64, that an eigenbasis is held against.

    Attributes:
        probes: Sign vectors: residuals of all pairs.
        sampled: Eigenvectors of `sampled_ranks`: exact residuals.
        deflated: Sign vectors without their components along `deflated_indices`.
        spots: Columns of the matrix that was decomposed, in every tensor.
        forced: Invariances by kind.
    """

    probes: Evidence
    sampled: Evidence
    deflated: Evidence
    spots: Spots
    forced: Mapping[str, Forced]


def deflated_indices(eigenvalues: np.ndarray) -> np.ndarray:
    """Indices of the eigenvalues of largest magnitude that the Hutchinson estimates leave out; sorted, int64."""
    count = min(DEFLATED, len(eigenvalues) // 10)
    return np.sort(np.argsort(-np.abs(eigenvalues), kind="stable")[:count])


def project_out(directions: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Vectors less their components along orthonormal directions.

    Args:
        directions: Shape (P, k).
        vectors: Shape (P, m).

    Returns:
        Shape (P, m), float64.
    """
    q = torch.tensor(directions, dtype=torch.float64)
    v = torch.tensor(vectors, dtype=torch.float64)
    return (v - q @ (q.T @ v)).numpy()


def verify_eigenbasis(
    basis: Basis,
    hessian: dict[str, Any],
    evidence: BasisEvidence,
    dtype: str,
    device: torch.device | str = "cpu",
    tile: int = 1024,
    memory: int | None = None,
) -> dict[str, Any]:
    """Checks an eigenbasis: residuals, orthogonality, order, scale, and trace and norm of the spectrum's tail.

    A check that fails is a `VerificationError`.

    Args:
        basis: The eigenbasis.
        hessian: What `verify_hessian` returned for the matrix that was decomposed: its error and norms.
        evidence: Products with the Hessian that were computed for this.
        dtype: In which the eigenvectors are stored.
        device: Where QᵀQ is multiplied.
        tile: Eigenvectors whose residuals are estimated together.
        memory: Bytes for QᵀQ, as for `overlap_tiles`.

    Returns:
        zero_threshold (ε_λ: largest sampled residual plus ‖ΔH‖, as estimated or as seen in a column, whichever is
        larger), the estimates with their standard errors, and every check with its threshold.
    """
    size, values = basis.size, basis.eigenvalues
    sampled, spots, forced = evidence.sampled, evidence.spots, evidence.forced
    checks = Checks("The eigenbasis")
    checks.require("number of eigenvalues that are not finite", float((~np.isfinite(values)).sum()), 0.0)
    checks.finish()
    largest = float(np.abs(values).max())
    eps, growth = _eps(dtype), solver_growth(size)
    checks.require("largest increase between consecutive eigenvalues", float(np.diff(values).max(initial=0.0)), 0.0)

    # Backward error of the solver (growth·eps·λ_max), plus what computing H itself contributed: ‖ΔH q‖ ≤ ‖ΔH‖₂, whose
    # estimate from sign probes may be low by a few standard errors of 18 %: hence twice.
    bound = growth * eps * largest + 2.0 * hessian["error_norm"]
    ranks = sampled_ranks(size)
    residuals = np.linalg.norm(sampled.products - sampled.vectors * values[ranks], axis=0)
    worst = float(residuals.max())
    checks.require("largest residual |Hq − λq| of the sampled eigenpairs", worst, bound)

    # What a column of H is off by is at most ‖ΔH‖₂.
    column_error = float(np.linalg.norm(spots.stored - spots.products, axis=0).max())
    checks.require(
        "largest error of a column of the Hessian against float64",
        column_error,
        2.0 * hessian["error_norm"] + eps * largest,
    )

    kinds = {kind: Evidence(invariance.vectors, invariance.products) for kind, invariance in forced.items()}
    every, along = _all_residuals(basis, evidence.probes, kinds, tile)
    orthogonality = _orthogonality(basis, device, memory)
    _check_invariances(checks, forced, along, hessian["frobenius"], bound)
    # The mean of m squared projections of a residual is at most χ²_m/m times its square; the largest of P exceeds this
    # bound (Laurent and Massart 2000, lemma 1) with probability UNLUCKY.
    count = evidence.probes.vectors.shape[1]
    tail = math.log(size / UNLUCKY)
    inflation = math.sqrt(1.0 + 2.0 * math.sqrt(tail / count) + 2.0 * tail / count)
    checks.require("largest estimated residual of all eigenpairs", float(every.max()), inflation * bound)
    checks.require("largest entry of |QᵀQ − I|", orthogonality, growth * eps)
    backward = growth * eps * hessian["frobenius"]
    _check_sums(checks, values, hessian, backward)
    numbers = {
        "zero_threshold": worst + max(hessian["error_norm"], column_error),
        "largest_residual": worst,
        "column_error": column_error,
        "orthogonality": orthogonality,
        **_check_tail(checks, basis, evidence.deflated, hessian["error_frobenius"] + backward),
    }
    checked = checks.finish()
    return {
        **{name: rounded(value) for name, value in numbers.items()},
        "deflated": len(deflated_indices(values)),
        "residuals": {str(rank): rounded(value) for rank, value in zip(ranks, residuals, strict=True)},
        "checks": checked,
    }


def _check_invariances(
    checks: Checks, forced: Mapping[str, Forced], along: Mapping[str, float], frobenius: float, bound: float
) -> None:
    """Whether QΛQᵀ, and the products themselves, do along the generators what the invariances force."""
    for kind, invariance in forced.items():
        checks.require(f"largest error |QΛQᵀu − Hu| along {kind} generators u", along[kind], bound)
        # Where the invariance holds to δ, so does what follows from it, on the scale of H.
        off = np.linalg.norm(invariance.products - invariance.expected, axis=0).max()
        scale = frobenius + float(np.linalg.norm(invariance.expected, axis=0).max())
        allowed = (INVARIANCE_ROUNDING + INVARIANCE_AMPLIFICATION * invariance.deviation) * scale
        checks.require(f"largest deviation of Hu from what {kind} generators u force", float(off), allowed)


def _check_sums(checks: Checks, values: np.ndarray, hessian: Mapping[str, Any], backward: float) -> None:
    """Trace and norm of the spectrum, for a backward error ‖E‖_F ≤ `backward`.

    |Σλ − tr H| = |tr E| ≤ √P ‖E‖_F and |‖Λ‖_F − ‖H‖_F| ≤ ‖E‖_F; the reported norms of H carry six digits.
    """
    frobenius = math.sqrt(float(np.square(values).sum()))
    checks.require(
        "difference of the eigenvalues' sum from the trace",
        abs(float(values.sum()) - hessian["trace"]),
        math.sqrt(len(values)) * backward + 1e-5 * abs(hessian["trace"]),
    )
    checks.require(
        "difference of the eigenvalues' norm from that of the Hessian",
        abs(frobenius - hessian["frobenius"]),
        backward + 1e-5 * hessian["frobenius"],
    )


def _check_tail(checks: Checks, basis: Basis, deflated: Evidence, perturbation: float) -> dict[str, float]:
    """The spectrum's tail on its own scale, for a matrix that is off by ‖E‖_F ≤ `perturbation`.

    The top k are projected out before and after, so tr and ‖·‖²_F of what is left compare with sums over the tail.
    Var zᵀAz ≤ 2‖A‖²_F and Var |Az|² ≤ 2‖A²‖²_F.

    Returns:
        Trace and squared Frobenius norm of the tail, with their estimates and standard errors.
    """
    top = deflated_indices(basis.eigenvalues)
    rest = np.delete(basis.eigenvalues, top)
    left = project_out(basis.select(top), deflated.products)
    count = left.shape[1]
    trace_estimate = float(np.einsum("pm,pm->", deflated.vectors, left)) / count
    square_estimate = float(np.square(left).sum()) / count
    trace_error = math.sqrt(2.0 * float(np.square(rest).sum()) / count)
    square_error = math.sqrt(2.0 * float((rest**4).sum()) / count)
    rest_norm = math.sqrt(float(np.square(rest).sum()))
    checks.require(
        "difference of the deflated trace from its Hutchinson estimate",
        abs(float(rest.sum()) - trace_estimate),
        STANDARD_ERRORS * trace_error + math.sqrt(basis.size) * perturbation,
    )
    checks.require(
        "difference of the deflated squared Frobenius norm from its Hutchinson estimate",
        abs(rest_norm**2 - square_estimate),
        STANDARD_ERRORS * square_error + (2.0 * rest_norm + perturbation) * perturbation,
    )
    return {
        "deflated_trace": float(rest.sum()),
        "deflated_trace_estimate": trace_estimate,
        "deflated_trace_standard_error": trace_error,
        "deflated_square": rest_norm**2,
        "deflated_square_estimate": square_estimate,
        "deflated_square_standard_error": square_error,
    }


def _all_residuals(
    basis: Basis, probes: Evidence, forced: Mapping[str, Evidence], width: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Estimated residual of every eigenpair, and the largest |QΛQᵀu − Hu|, in tiles."""
    values = torch.tensor(basis.eigenvalues, dtype=torch.float64)
    z, h = (torch.tensor(part, dtype=torch.float64) for part in (probes.vectors, probes.products))
    pairs = {
        kind: [torch.tensor(part, dtype=torch.float64) for part in (evidence.vectors, evidence.products)]
        for kind, evidence in forced.items()
    }
    squares = {kind: torch.zeros(u.shape[1], dtype=torch.float64) for kind, (u, _) in pairs.items()}
    estimated = torch.empty_like(values)
    for start in range(0, basis.size, width):
        stop = min(basis.size, start + width)
        tile = torch.as_tensor(basis.vectors(start, stop).astype(np.float64))
        projected = tile.T @ h - values[start:stop, None] * (tile.T @ z)
        estimated[start:stop] = projected.square().mean(dim=1).sqrt()
        for kind, (u, hu) in pairs.items():
            squares[kind] += (tile.T @ hu - values[start:stop, None] * (tile.T @ u)).square().sum(dim=0)
        del tile  # before the next one is made
    return estimated.numpy(), {kind: float(part.sqrt().max()) for kind, part in squares.items()}


def _orthogonality(basis: Basis, device: torch.device | str, memory: int | None) -> float:
    """The largest entry of |QᵀQ − I|; NaN if one is. Where a GPU does not hold the tiles, they become smaller."""
    while True:
        try:
            with device_memory_explained("the products of all eigenvectors with each other"):
                return _largest_deviation(basis, device, memory)
        except DeviceMemoryError:
            # Elsewhere the error is the last word.
            memory = (device_share(device) if memory is None else memory) // 2
            if memory < _LEAST_OVERLAP_BYTES:
                raise


def _largest_deviation(basis: Basis, device: torch.device | str, memory: int | None) -> float:
    worst = torch.zeros((), device=device)
    for tile in overlap_tiles(basis, memory=memory, device=device):
        # Columns further left than the rows do not reach the diagonal: the view is empty.
        tile.values.diagonal(tile.rows.start - tile.columns.start).sub_(1.0)
        low, high = tile.values.aminmax()
        worst = torch.maximum(worst, torch.maximum(-low, high))
    return float(worst)


def spot_columns(layout: ParameterLayout) -> np.ndarray:
    """A random column of every parameter tensor, always the same; int64."""
    generator = np.random.Generator(np.random.PCG64(SPOT_SEED))
    return np.array([generator.integers(block.start, block.stop) for block in layout.blocks], dtype=np.int64)
