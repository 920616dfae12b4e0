"""The covariance C of single examples' gradients against the Hessian H = QΛQᵀ of the same loss.

‖C‖² and ‖CH − HC‖² are sums over any orthonormal vectors v of |Cv|² and |(CH − HC)v|². The first eigenvectors by |λ|,
which hold most of either, are summed one by one; what is left is estimated with random vectors orthogonal to them.
Where there are few directions everything is summed. All gradients pass by once: CV = (1/N) Σₙ gₙ(gₙᵀV) − g(gᵀV).

For a rotation R that is uniform over the orthogonal group, with symmetric C and H of size P,

    E‖[RCRᵀ, H]‖² = 2(tr C² tr H²/P − α tr H² − β(tr H² + (tr H)²)),
    β = (tr C² − (tr C)²/P)/((P + 2)(P − 1)),  α = ((tr C)² − 2Pβ)/P²,

from E[C′ᵢⱼC′ₖₗ] = α δᵢⱼδₖₗ + β(δᵢₖδⱼₗ + δᵢₗδⱼₖ), whose α and β follow from the traces of C ⊗ C. Of the same kind,
E Σᵢ C′ᵢᵢ² = P(α + 2β).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.measures.gradients.declaration import DIRECTIONS
from quadscape.measures.interfaces import BasisLike, ObjectiveLike, merged
from quadscape.measures.intervals import jackknife
from quadscape.measures.job import Job
from quadscape.measures.noise_curvature.declaration import GEOMETRY, GRADIENT_BYTES
from quadscape.tables import Table

if TYPE_CHECKING:
    import torch

_COLUMNS = 1024
"""Eigenvectors that are multiplied at once."""


def compute(job: Job) -> dict[str, Table]:
    """C against H at one checkpoint.

    Args:
        job: Reads checkpoint, data, eigenbasis, and variances along all eigenvectors.

    Returns:
        The table of `measure`.
    """
    variances = job.table("gradients", DIRECTIONS)["variance"]
    theta, probes = job.checkpoint.theta, job.options.probes
    return measure(job.objective("train"), job.basis, theta, variances, probes, job.basis_head, device=job.device)


@dataclass(frozen=True)
class _Squares:
    """|Mv|² of a matrix: of the first eigenvectors, and of random vectors orthogonal to them.

    Attributes:
        first: Their sum.
        random: One for each random vector, shape (m,); empty where there is nothing left.
    """

    first: float
    random: np.ndarray

    def total(self, left_out: int | None = None) -> float:
        """‖M‖², all random vectors or all but one."""
        kept = self.random if left_out is None else np.delete(self.random, left_out)
        return self.first + (float(kept.mean()) if len(kept) else 0.0)


def measure(
    objective: ObjectiveLike,
    basis: BasisLike,
    theta: np.ndarray,
    variances: np.ndarray,
    probes: int,
    attributes: Mapping[str, Any],
    *,
    seed: int = 0,
    device: Any = "cpu",
) -> dict[str, Table]:
    """C against H.

    Args:
        objective: The training loss.
        basis: Eigenbasis of its Hessian at θ.
        theta: θ, float64, shape (P,).
        variances: qᵢᵀCqᵢ of all eigenvectors, shape (P,).
        probes: Random vectors, and eigenvectors that are taken one by one.
        attributes: Head of the table; see `quadscape.measures.job.Job.basis_head`.
        seed: Of the random vectors.
        device: Device of the products.

    Returns:
        Table `noise_curvature`, of one row. Attribute probes: random vectors that were used, 0 where all is exact.
    """
    values = np.asarray(basis.eigenvalues, dtype=np.float64)
    vectors, first = _vectors(basis, values, probes, seed, device)
    curved = _times_hessian(basis, values, vectors, device)
    noisy, noisy_curved = _times_noise(objective, theta, (vectors, curved), device)
    commutator = noisy_curved - _times_hessian(basis, values, noisy, device)
    squares = [_squares(product, first) for product in (noisy, commutator, noisy_curved)]
    quantities = _quantities(np.asarray(variances, dtype=np.float64), values)
    row: dict[str, float] = {}
    whole = quantities(*(square.total() for square in squares))
    random = len(squares[0].random)
    without = [quantities(*(square.total(out) for square in squares)) for out in range(random)]
    for name, value in whole.items():
        row[name] = value
        if f"{name}_low" in GEOMETRY.all_columns():
            row[f"{name}_low"], row[f"{name}_high"] = jackknife(value, np.array([one[name] for one in without]))
    columns = {name: np.array([row[name]]) for name in GEOMETRY.all_columns()}
    return {"noise_curvature": Table(GEOMETRY, columns, merged(attributes, probes=random))}


def _quantities(variances: np.ndarray, values: np.ndarray) -> Callable[[float, float, float], dict[str, float]]:
    """What follows from ‖C‖², ‖CH − HC‖² and ‖CH‖², given the diagonal of QᵀCQ and the eigenvalues."""
    size, trace, diagonal = len(values), float(variances.sum()), float(np.square(variances).sum())
    square, curvature = float(np.square(values).sum()), float(values.sum())

    def of(noise: float, apart: float, product: float) -> dict[str, float]:
        # Rounding, or an estimate, may leave less than the diagonal has.
        noise = max(noise, diagonal)
        norms = math.sqrt(noise * square)
        beta = (noise - trace**2 / size) / ((size + 2) * (size - 1)) if size > 1 else 0.0
        alpha = (trace**2 - 2 * size * beta) / size**2
        rotated = 2 * (noise * square / size - alpha * square - beta * (square + curvature**2))
        return {
            "trace": trace,
            "noise_norm": math.sqrt(noise),
            "curvature_norm": math.sqrt(square),
            "off_diagonal": 1 - diagonal / noise if noise else math.nan,
            "off_diagonal_rotated": 1 - size * (alpha + 2 * beta) / noise if noise and size > 1 else math.nan,
            "commutator": math.sqrt(max(apart, 0.0)) / norms if norms else math.nan,
            "commutator_rotated": math.sqrt(max(rotated, 0.0)) / norms if norms else math.nan,
            "relative_commutator": math.sqrt(max(apart, 0.0) / (2 * product)) if product > 0 else math.nan,
            "relative_commutator_rotated": math.sqrt(max(rotated, 0.0) * size / 2) / norms if norms else math.nan,
            "alignment": float(variances @ values) / norms if norms else math.nan,
        }

    return of


def _squares(product: "torch.Tensor", first: int) -> _Squares:
    squares = product.square().sum(dim=0).cpu().numpy()
    return _Squares(float(squares[:first].sum()), squares[first:])


def _vectors(basis: BasisLike, values: np.ndarray, probes: int, seed: int, device: Any) -> tuple["torch.Tensor", int]:
    """The first eigenvectors by |λ|, then random vectors orthogonal to them, float64; and how many come first."""
    import torch

    size = len(values)
    # Where as many vectors again would span everything, everything is summed.
    count = size if size <= 2 * probes else probes
    chosen = np.sort(np.argsort(-np.abs(values), kind="stable")[:count])
    found = [np.asarray(basis.vectors(int(index), int(index) + 1), dtype=np.float64) for index in chosen]
    first = torch.as_tensor(np.concatenate(found, axis=1), device=device)
    if count == size:
        return first, size
    drawn = np.random.default_rng(seed).choice([-1.0, 1.0], (size, probes))
    random = torch.as_tensor(drawn, device=device)
    for _ in range(2):  # once leaves the rounding of the eigenvectors
        random = random - first @ (first.T @ random)
    return torch.cat([first, random], dim=1), count


def _times_hessian(basis: BasisLike, values: np.ndarray, vectors: "torch.Tensor", device: Any) -> "torch.Tensor":
    """QΛQᵀV, with some columns of Q at a time."""
    import torch

    found = torch.zeros_like(vectors)
    for start in range(0, len(values), _COLUMNS):
        stop = min(start + _COLUMNS, len(values))
        part = torch.as_tensor(np.asarray(basis.vectors(start, stop)), device=device).to(vectors.dtype)
        found += part @ (torch.as_tensor(values[start:stop], device=device)[:, None] * (part.T @ vectors))
    return found


def _times_noise(
    objective: ObjectiveLike, theta: np.ndarray, several: tuple["torch.Tensor", ...], device: Any
) -> list["torch.Tensor"]:
    """CV of several V, in one pass over the examples."""
    import torch

    count, size = objective.count, len(theta)
    step = max(1, min(count, GRADIENT_BYTES // (8 * size)))
    sums, mean = [torch.zeros_like(vectors) for vectors in several], None
    for start in range(0, count, step):
        part = objective.example_gradients(theta, slice(start, min(start + step, count)))
        gradients = torch.as_tensor(part).to(device, torch.float64)
        mean = gradients.sum(dim=0) if mean is None else mean + gradients.sum(dim=0)
        for vectors, total in zip(several, sums, strict=True):
            total += gradients.T @ (gradients @ vectors)
    assert mean is not None
    mean /= count
    return [total / count - torch.outer(mean, mean @ vectors) for vectors, total in zip(several, sums, strict=True)]
