"""How gradient noise grows with curvature, cross-fitted: directions of one half, both numbers of the other.

Eigenvectors of a sample's Hessian are turned towards that sample's noise, and its eigenvalues are spread by it: an
exponent of C ∝ H^γ read off one sample is that of the sample. With eigenvectors qᵢ of half A both qᵢᵀH_B qᵢ =
Σⱼ (qᵢᵀpⱼ)² λⱼ, by the eigenbasis pⱼ of half B, and qᵢᵀC_B qᵢ are unbiased. Bands are cut by eigenvalues of A, on which
B's errors do not depend.

What is left is that qᵢ is imprecise. It holds a little of all eigenvectors, of those of larger curvature more noise
than the mean curvature would have (Jensen), and the exponent is drawn towards 1. On the other side stands the g at
which qᵢᵀ(H_B)^g qᵢ, of the same directions, grows as the noise does: H_B is the true one and an error; the mean of its
power exceeds the power of the mean for 1 ≤ g ≤ 2 (x^g is operator convex there, and operator concave for g ≤ 1), by
most where the power is small, so that this g errs to the other side. The exponent lies between the two.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quadscape.measures.interfaces import BasisLike, ObjectiveLike
from quadscape.measures.job import Job
from quadscape.measures.members import columns_of
from quadscape.measures.noise_crossed.declaration import BANDS, CROSSED, POWERS
from quadscape.measures.ranks import even_bands
from quadscape.measures.slope_noise import noise_along
from quadscape.measures.subsets import Comparison, comparisons_of
from quadscape.tables import Table


def compute(job: Job) -> dict[str, Table]:
    """Crosses every halving of one checkpoint.

    Args:
        job: Reads checkpoint, data, and data and eigenbases of subsets.

    Returns:
        The table of `measure`.
    """
    halvings = [one for one in comparisons_of(job) if one.kind == "halves"]
    losses = [tuple(job.objective_on(side.data) for side in (one.first, one.second)) for one in halvings]
    theta = job.checkpoint.theta
    return measure(halvings, losses, theta, job.basis_head, device=job.device)


def measure(
    halvings: Sequence[Comparison],
    losses: Sequence[Sequence[ObjectiveLike]],
    theta: np.ndarray,
    attributes: Mapping[str, Any],
    *,
    memory: int | None = None,
    device: Any = "cpu",
) -> dict[str, Table]:
    """Crosses halvings.

    Args:
        halvings: Eigenbases of both halves, of each halving.
        losses: The training losses of both halves.
        theta: θ, float64, shape (P,).
        attributes: Head of the table; weight_decay is used.
        memory: Bytes that tiles may take.
        device: Device of the products.

    Returns:
        Table `noise_crossed`.
    """
    rows: list[dict[str, Any]] = []
    for number, (one, both) in enumerate(zip(halvings, losses, strict=True)):
        sides = (one.first, one.second)
        crossings = crossed_curvatures(*(side.basis for side in sides), memory=memory, device=device)
        for half, side in enumerate(sides):
            own, other = (
                noise_along(side.basis, both[which], theta, memory=memory, device=device) for which in (half, 1 - half)
            )
            values = np.asarray(side.basis.eigenvalues, dtype=np.float64)
            cut = max(float(side.basis.zero_threshold), float(attributes["weight_decay"]))
            found = {"own_curvature": values, "own_noise": own, "noise": other, **crossings[half]}
            for row in band_rows(found, cut):
                rows.append(
                    {"halving": number, "seed": side.seed, "half": half, "examples": both[1 - half].count, **row}
                )
    return {"noise_crossed": Table(CROSSED, columns_of(rows, CROSSED.all_columns()), dict(attributes))}


def crossed_curvatures(
    first: BasisLike, second: BasisLike, *, memory: int | None = None, device: Any = "cpu"
) -> list[dict[str, np.ndarray]]:
    """The curvature that each half sees along the eigenvectors of the other, and its powers.

    Args:
        first: Eigenbasis of half A.
        second: That of half B.
        memory: Bytes that tiles may take.
        device: Device of the products.

    Returns:
        Of A's eigenvectors, and of B's: curvature, and the columns of `POWERS`, float64, shape (P,) each.
    """
    import torch

    from quadscape.curvature.projections import overlap_tiles

    names = ("curvature", *POWERS)
    values = []
    for basis in (first, second):
        own = np.asarray(basis.eigenvalues, dtype=np.float64)
        powers = [own, *(np.maximum(own, 0.0) ** power for power in POWERS.values())]
        values.append(torch.as_tensor(np.stack(powers, axis=1), device=device))
    along = [torch.zeros_like(value) for value in values]
    for tile in overlap_tiles(first, second, memory=memory, device=device):
        squares = tile.values.double().square_()
        along[0][tile.rows] += squares @ values[1][tile.columns]
        along[1][tile.columns] += squares.T @ values[0][tile.rows]
    return [dict(zip(names, one.cpu().numpy().T, strict=True)) for one in along]


def band_rows(found: Mapping[str, np.ndarray], cut: float) -> list[dict[str, Any]]:
    """Means over bands that are even in the logarithm of the own eigenvalue.

    Args:
        found: own_curvature, own_noise, and all that is averaged with them, shape (P,) each.
        cut: Numerical zero, or weight decay where that is larger.

    Returns:
        One row for each band that has eigenvectors; none without two different positive eigenvalues.
    """
    values = found["own_curvature"]
    positive = np.flatnonzero(values > 0)
    # Below the cut nothing is told, but it is drawn, a decade of it.
    positive = positive[values[positive] > 0.1 * cut]
    if len(np.unique(values[positive])) < 2:
        return []
    band = even_bands(values[positive], BANDS)
    rows = []
    for number in np.unique(band)[::-1].tolist():
        own = positive[band == number]
        row: dict[str, Any] = {name: float(numbers[own].mean()) for name, numbers in found.items()}
        rows.append({"count": len(own), "told": row["own_curvature"] > cut, **row})
    return rows
