"""What a window looks like in the eigenbasis of another checkpoint: Σⱼ O²ᵢⱼ Var xⱼ, and how much of it is not xᵢ's.

With O = QₐᵀQ_b and coordinates along Q_b that do not know of each other, the variance along the i-th column of Qₐ is
Σⱼ O²ᵢⱼ Var xⱼ. Directions that fluctuate far less than others then show these, however little the basis has turned.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quadscape.measures.evolution.declaration import EVOLUTION
from quadscape.measures.interfaces import BasisLike
from quadscape.measures.job import Job
from quadscape.measures.leakage.declaration import LEAKAGE, WINDOWS
from quadscape.measures.members import columns_of
from quadscape.measures.ranks import direction_rows
from quadscape.tables import Table


def compute(job: Job) -> dict[str, Table]:
    """Leakage between two checkpoints, either's window in the other's eigenbasis.

    Args:
        job: Reads both eigenbases, and `evolution` of both checkpoints.

    Returns:
        The table of `measure`.
    """
    first, second = job.bases
    ways = [job.table("evolution", EVOLUTION, which) for which in range(2)]
    variances = tuple(way["variance"] if len(way) else None for way in ways)
    head = {"run": job.run, "iteration_a": job.iterations[0], "iteration_b": job.iterations[1], "P": first.size}
    head["zero_threshold"] = max(first.zero_threshold, second.zero_threshold)
    return measure(first, second, (variances[0], variances[1]), head, device=job.device)


def measure(
    first: BasisLike,
    second: BasisLike,
    variances: tuple[np.ndarray | None, np.ndarray | None],
    attributes: Mapping[str, Any],
    *,
    memory: int | None = None,
    device: Any = "cpu",
) -> dict[str, Table]:
    """What is seen of either window along the other's eigenvectors, in tiles.

    Args:
        first: Qₐ.
        second: Q_b, of as many parameters.
        variances: Var x along either basis in its own window, shape (P,); None: it has no window.
        attributes: Head of the table.
        memory: Bytes that tiles may take; see `quadscape.curvature.projections.overlap_tiles`.
        device: Device of the products.

    Returns:
        The table `leakage`: all directions of the second basis in the window of the first checkpoint, then those of the
        first in the window of the second; without those of a checkpoint that has none.
    """
    import torch  # here, so that figures read the schemas without loading it

    from quadscape.curvature.projections import overlap_tiles

    size = len(first.eigenvalues)
    own = [np.zeros(size) if values is None else np.asarray(values, dtype=np.float64) for values in variances]
    held = [torch.from_numpy(values).to(device) for values in own]
    seen, largest, matched = np.zeros((2, size)), np.zeros((2, size)), np.zeros((2, size))
    same = np.zeros(size)
    if any(values is not None for values in variances):
        for tile in overlap_tiles(first, second, memory=memory, device=device):
            parts = (tile.rows, tile.columns)
            # Sums of squares in float64: thousands of tiny terms beside a few large ones.
            square = tile.values.double().square_()
            # In the window of the first checkpoint rows are summed over, in that of the second columns.
            for window, of in enumerate((square.T, square)):
                here, there = parts[1 - window], parts[window]
                seen[window, here] += (of @ held[window][there]).cpu().numpy()
                found, place = (part.cpu().numpy() for part in of.max(dim=1))
                more = found > largest[window, here]
                largest[window, here] = np.where(more, found, largest[window, here])
                moved = found * own[window][there][place]
                matched[window, here] = np.where(more, moved, matched[window, here])
            inside = np.arange(max(p.start for p in parts), min(p.stop for p in parts))
            if len(inside):
                same[inside] = square[inside - tile.rows.start, inside - tile.columns.start].cpu().numpy()
    columns = []
    for window, (values, basis) in enumerate(zip(variances, (second, first), strict=True)):
        if values is not None:
            columns.append(_rows(basis.eigenvalues, WINDOWS[window], own[window], seen[window], same, matched[window]))
    names = LEAKAGE.all_columns()
    joined = columns_of([], names)
    if columns:
        joined = {name: np.concatenate([part[name] for part in columns]) for name in names}
    return {"leakage": Table(LEAKAGE, joined, dict(attributes))}


def _rows(
    eigenvalues: np.ndarray, window: str, own: np.ndarray, seen: np.ndarray, same: np.ndarray, matched: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows of one window: `same` is O²ᵢᵢ, `matched` the largest O²ᵢⱼ times its Var xⱼ, shape (P,) each."""
    leakage = np.maximum(seen - same * own, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share, unmatched = leakage / seen, np.maximum(seen - matched, 0.0) / seen
    return {
        **direction_rows(eigenvalues),
        "window": np.full(len(seen), window),
        "variance": own,
        "seen": seen,
        "leakage": leakage,
        "share": share,
        "unmatched": unmatched,
    }
