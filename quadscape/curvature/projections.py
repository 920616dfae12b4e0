"""Products of many vectors with a stored eigenbasis Q, in tiles: overlaps of bases, trajectories and gradients times Q.

Memory is a stated amount, whatever P, beside a few chunks on their way from a store. As many rows as it holds are kept,
and Q passes by in tiles of columns: rows are read once, Q once per batch of rows, so that larger memory means fewer
reads. Tiles begin and end where chunks of a store do, so that no pass decodes a chunk twice. The next tile is read
while one is multiplied.

Factors and products have the wider dtype of rows and Q: float32 if both are. A sum of P products of components of
vectors a and q is then off by about eps·|a||q|, which for overlaps is far below the 1/√P of chance. What is summed over
many products should be in float64.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from quadscape.curvature.large_products import multiply

ALIGNMENT = 16
"""Eigenvectors that a store decodes together."""

HOST_MEMORY = 9 << 30
"""Bytes taken on a CPU, where none are given; a constant, so that equal runs cut equally and round equally."""

_DEVICE_SHARE = 0.75
_WIDEST = 1024
"""Wider tiles of Q multiply no faster."""
_PRODUCT_BYTES = 64
"""Per entry of a product: itself and what its reader makes of it, up to eight arrays of float64."""
_PIECE_BYTES = 2 << 20
"""Read at once: copied between caches, and large enough that the overhead of reading does not count."""


class Columns(Protocol):
    """An eigenbasis; see `quadscape.curvature.stored_basis.Eigenbasis`."""

    @property
    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues, shape (P,)."""

    def vectors(self, start: int, stop: int, /) -> np.ndarray:
        """Eigenvectors start … stop − 1 as columns, shape (P, stop − start); of no columns too, for the dtype."""


@dataclass(frozen=True)
class Tile:
    """A part of a product.

    Attributes:
        rows: Which rows.
        columns: Which eigenvectors.
        values: The product, on the device, shape (rows, columns).
    """

    rows: slice
    columns: slice
    values: torch.Tensor


def overlap_tiles(
    first: Columns, second: Columns | None = None, *, memory: int | None = None, device: Any = "cpu"
) -> Iterator[Tile]:
    """QₐᵀQ_b of two eigenbases, or QᵀQ of one.

    Of P vectors, rows of r at a time: the first basis is read once, the second ⌈P/r⌉ times; one basis alone about half
    as often, (⌈P/r⌉ + 1)/2 times.

    Args:
        first: Qₐ, the rows.
        second: Q_b, the columns, of as many parameters. None: Q_b = Qₐ, and only tiles that reach the diagonal or lie
            below it are made, on a GPU only their rows from the diagonal on; the rest is their transpose.
        memory: Bytes of the device's memory to take, of which 16 rows and columns are the least; by default most of a
            GPU's, `HOST_MEMORY` of a CPU's.
        device: Where they are multiplied.

    Yields:
        Tiles, all columns of one batch of rows after another.
    """
    columns = first if second is None else second
    dtype = torch.promote_types(_dtype(first), _dtype(columns))
    size = len(first.eigenvalues)

    def rows(part: slice) -> torch.Tensor:
        found = torch.empty(len(first.vectors(0, 0)), part.stop - part.start, dtype=dtype, device=device)
        _fill(found, _pieces(first, part))
        return found.T

    yield from _tiles(rows, size, columns, dtype.itemsize, memory, device, symmetric=second is None)


def project(
    rows: Callable[[slice], Any], count: int, basis: Columns, *, memory: int | None = None, device: Any = "cpu"
) -> Iterator[Tile]:
    """Many vectors times Q: their components along all eigenvectors.

    With n vectors at a time Q is read ⌈count/n⌉ times, and every vector once.

    Args:
        rows: Gives vectors start … stop − 1, shape (stop − start, P), an array or a tensor; asked once for each, in
            order, before the tiles of these rows.
        count: How many vectors there are.
        basis: Q.
        memory: Bytes of the device's memory to take, as for `overlap_tiles`.
        device: Where they are multiplied.

    Yields:
        Tiles, all columns of one batch of rows after another.
    """
    yield from _tiles(rows, count, basis, torch.float64.itemsize, memory, device, symmetric=False)


def displacements(
    theta: Callable[[slice], np.ndarray], iterations: np.ndarray, reference: np.ndarray
) -> Callable[[slice], np.ndarray]:
    """θ_t − θ_ref of a trajectory, as rows for `project`; subtracted in float64, where θ is kept.

    Args:
        theta: Gives θ of a slice of iterations, float64, shape (iterations, P); `stage.read("theta", …)` of a
            `quadscape.training.trajectory.Trajectory`.
        iterations: Numbers of steps, ascending, one per row.
        reference: θ_ref, float64, shape (P,).

    Returns:
        What gives rows start … stop − 1. It raises a `ValueError` where θ is NaN, as it is read where it was not kept.
    """
    several = max(1, _PIECE_BYTES // max(1, reference.nbytes))

    def rows(part: slice) -> np.ndarray:
        chosen = np.asarray(iterations)[part]
        found = np.empty((len(chosen), len(reference)))
        # Evenly spaced iterates are read together, a few at a time.
        steps = np.diff(chosen)
        runs = np.split(np.arange(len(chosen)), np.flatnonzero(np.diff(steps)) + 2)
        for run in (whole[k : k + several] for whole in runs for k in range(0, len(whole), several)):
            first, last = int(chosen[run[0]]), int(chosen[run[-1]])
            step = int(steps[run[0]]) if len(run) > 1 else 1
            found[run] = theta(slice(first, last + 1, step)) - reference
            if (missing := np.isnan(found[run]).any(axis=1)).any():
                raise ValueError(
                    f"θ of iteration {chosen[run][missing][0]} is not a number: it was not kept, or training diverged"
                )
        return found

    return rows


def _tiles(
    rows: Callable[[slice], Any],
    count: int,
    basis: Columns,
    itemsize: int,
    memory: int | None,
    device: Any,
    *,
    symmetric: bool,
) -> Iterator[Tile]:
    length = len(basis.eigenvalues)
    tall, wide = _shape(count, length, itemsize, device_share(device) if memory is None else memory)
    with ThreadPoolExecutor(1) as reader:
        for start in range(0, count, tall):
            part = slice(start, min(count, start + tall))
            held = torch.as_tensor(rows(part)).to(device)
            held = held.to(torch.promote_types(held.dtype, _dtype(basis)))
            end = start if symmetric else length
            columns = [slice(c, min(end, c + wide)) for c in range(0, end, wide)]
            coming = reader.submit(_all_pieces, basis, columns[0]) if columns else None
            for number, these in enumerate(columns, 1):
                assert coming is not None
                tile = torch.empty(held.shape[1], these.stop - these.start, dtype=held.dtype, device=device)
                _fill(tile, coming.result())
                coming = reader.submit(_all_pieces, basis, columns[number]) if number < len(columns) else None
                yield Tile(part, these, multiply(held, tile))
                del tile  # before the next one is made
            if symmetric:  # what is left of the columns are the rows, transposed
                for offset in range(0, len(held), wide):
                    these = slice(start + offset, min(part.stop, start + offset + wide))
                    above = offset if _skips_above(device) else 0
                    found = multiply(held[above:], held[offset : offset + wide].T)
                    yield Tile(slice(start + above, part.stop), these, found)
            del held


def _skips_above(device: Any) -> bool:
    # Half of the products where one batch is all. Not on a CPU: the last bits of a product may depend on its shape, and
    # of what finished results say nothing may change.
    return torch.device(device).type == "cuda"


def _shape(count: int, length: int, itemsize: int, memory: int) -> tuple[int, int]:
    """Rows and columns of a tile, so that rows, a tile of Q, the next one, and what is made of a product fit."""
    row = max(1, length) * itemsize
    wide = _even(length, min(_WIDEST, memory // 16 // row))
    tall = _even(count, (memory - 2 * wide * row) // (row + _PRODUCT_BYTES * wide))
    return tall, wide


def _even(length: int, most: int) -> int:
    """The smallest multiple of `ALIGNMENT` that needs no more parts than the largest one allowed."""
    most = max(1, most // ALIGNMENT)
    parts = max(1, -(-length // (most * ALIGNMENT)))
    return max(1, -(-length // (parts * ALIGNMENT))) * ALIGNMENT


def device_share(device: Any) -> int:
    """Memory taken where none is given.

    Args:
        device: A GPU or the CPU.

    Returns:
        Bytes: most of a GPU's, `HOST_MEMORY` of a CPU's.
    """
    if torch.device(device).type == "cuda":
        return int(_DEVICE_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return HOST_MEMORY


def _dtype(basis: Columns) -> torch.dtype:
    return torch.from_numpy(np.empty(0, np.asarray(basis.vectors(0, 0)).dtype)).dtype


def _pieces(basis: Columns, columns: slice) -> Iterator[np.ndarray]:
    """Consecutive columns, a few chunks at a time."""
    column = basis.vectors(0, 0)
    width = _PIECE_BYTES // max(1, len(column) * column.itemsize) // ALIGNMENT * ALIGNMENT
    for start in range(columns.start, columns.stop, max(ALIGNMENT, width)):
        yield np.ascontiguousarray(basis.vectors(start, min(columns.stop, start + max(ALIGNMENT, width))))


def _all_pieces(basis: Columns, columns: slice) -> list[np.ndarray]:
    return list(_pieces(basis, columns))


def _fill(tile: torch.Tensor, pieces: Iterable[np.ndarray]) -> None:
    """Puts pieces side by side into a tile; they are spread over its rows by torch, where the tile is."""
    start = 0
    for piece in pieces:
        tile[:, start : start + piece.shape[1]] = torch.from_numpy(piece).to(tile.device)
        start += piece.shape[1]
