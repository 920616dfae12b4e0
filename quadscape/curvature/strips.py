"""Symmetric P×P matrices as column strips of their lower triangle: how they are cut, stored and read.

The matrix is one array whose files are `block` columns wide. A strip is a run of whole files: columns a … b − 1 and
the rows from a on; what is above is NaN, costs nothing, and is mirrored on reading. The square on the diagonal holds
both triangles: readers average them.

How a matrix is cut follows from its size, the device's kind and counted operations at a nominal speed. Nothing is
timed: equal runs must have equal layouts, on a loaded machine too.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from quadscape.curvature.costs import MATRIX_ROWS, SIGN_PROBES, STRIP_BYTES, column_block, widest_strip
from quadscape.curvature.verification import PROBE_SEED, sign_probes
from quadscape.errors import StoreError, VerificationError
from quadscape.network.objective import Objective, Vector
from quadscape.stored import ArraySpec

if TYPE_CHECKING:
    # These need Zarr; what holds strips is handed over.
    from quadscape.stage.finished import FinishedStage
    from quadscape.stage.protocol import Arrays, StageStore

Cost = Callable[[int, int], float]
"""Floating-point operations of columns start … stop − 1."""

UNIT_FLOPS = {"cpu": 60 * 50e9, "cuda": 60 * 5e12}
"""Operations of one unit, by kind of device: about a minute at 50 GFLOP/s and at 5 TFLOP/s."""
_PRODUCTS = (("products", "float64"), ("float32_products", "float32"))


# ---------------------------------------------------------------------------------------------------------------------
# Cutting


def cut_strips(size: int, cost: Cost, budget: float) -> tuple[int, list[int]]:
    """Cuts a matrix into strips, each one unit of work.

    Args:
        size: P.
        cost: Operations of a block of columns.
        budget: Operations of one unit.

    Returns:
        Columns of one file, and the strips' bounds 0 = b₀ < b₁ < … = P. A strip costs at most the budget (unless a
        single column costs more), takes at most 512 MiB in float64 and is at most about a thirty-second of P wide.
    """
    block = column_block(size)
    while block > 1 and any(cost(a, min(size, a + block)) > budget for a in range(0, size, block)):
        block //= 2
    bounds = [0]
    while bounds[-1] < size:
        start = bounds[-1]
        stop = min(size, start + block)
        while stop < size:
            wider = min(size, stop + block)
            width = wider - start
            if width > widest_strip(size) or 8 * (size - start) * width > STRIP_BYTES or cost(start, wider) > budget:
                break
            stop = wider
        bounds.append(stop)
    return block, bounds


def share_of_strips(bounds: Sequence[int], cost: Cost, number: int, count: int) -> list[int]:
    """The strips of one shard: a run of them, of about equal cost for every shard.

    Args:
        bounds: Of all strips.
        cost: Operations of a block of columns.
        number: Which shard, from 1.
        count: Number of shards, at most that of the strips.

    Returns:
        Bounds of the shard's strips.
    """
    costs = [cost(start, stop) for start, stop in pairwise(bounds)]
    before = np.concatenate([[0.0], np.cumsum(costs)])
    cuts = [0]
    for shard in range(1, count):
        nearest = int(np.abs(before - before[-1] * shard / count).argmin())
        # Each shard has at least one strip.
        cuts.append(min(max(nearest, cuts[-1] + 1), len(costs) - (count - shard)))
    cuts.append(len(costs))
    return list(bounds[cuts[number - 1] : cuts[number] + 1])


def flops_per_example(objective: Objective, theta: Vector) -> tuple[int, int]:
    """Operations of matrix products and convolutions for one example, counted.

    Args:
        objective: The loss.
        theta: Where, shape (P,).

    Returns:
        Of its forward pass, and of its backward pass.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in objective.parameters(theta).items()}
    with FlopCounterMode(display=False) as forward:
        loss = objective.chunk_loss(leaves, objective.images[:1], objective.labels[:1])
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return forward.get_total_flops(), backward.get_total_flops()


def probe_block(objective: Objective, theta: Vector, budget: float, most: int = 4) -> int:
    """Sign vectors whose products, in float64 and float32, are one unit of work.

    Args:
        objective: The loss.
        theta: Where, shape (P,).
        budget: Operations of one unit.
        most: Upper limit, a power of two.

    Returns:
        A power of two.
    """
    # A product takes about twice the passes of a gradient, and float64 twice the time of float32.
    product = objective.count * 2 * sum(flops_per_example(objective, theta)) * 3
    while most > 1 and most * product > budget:
        most //= 2
    return most


# ---------------------------------------------------------------------------------------------------------------------
# Storing


def matrix_spec(size: int, block: int, dtype: str, description: str) -> ArraySpec:
    """Layout of the array of strips.

    Args:
        size: P.
        block: Columns of one file.
        dtype: Of the stored values.
        description: What the matrix is.

    Returns:
        The layout.
    """
    rows = min(size, MATRIX_ROWS)
    attributes = {"description": f"{description}; lower block triangle in column strips, NaN above", "unit": "1"}
    shards = (-(-size // rows) * rows, block)
    return ArraySpec("matrix", (size, size), dtype, ("row", "column"), (rows, block), shards, attributes=attributes)


def product_specs(size: int, count: int, block: int, subject: str) -> list[ArraySpec]:
    """Layout of the products with sign vectors that a matrix is verified against.

    Args:
        size: P.
        count: Number of sign vectors.
        block: Of one unit.
        subject: What is multiplied.

    Returns:
        `products` in float64 and `float32_products`, both stored in float64.
    """
    return [
        ArraySpec(
            name,
            (size, count),
            "float64",
            ("parameter", "probe"),
            (size, block),
            attributes={"description": f"{subject} times sign vectors, matrix-free in {dtype}", "unit": "1"},
        )
        for name, dtype in _PRODUCTS
    ]


def multiply_probes(size: int, block: slice, product: Callable[[str, np.ndarray], torch.Tensor]) -> "Arrays":
    """The products with some of the sign vectors that a matrix is verified against.

    Args:
        size: P.
        block: Which sign vectors.
        product: Matrix-free product, by dtype, with a vector of shape (P,).

    Returns:
        What a stage writes to the arrays of `product_specs`.
    """
    probes = sign_probes(size, SIGN_PROBES, PROBE_SEED)[:, block]
    found: dict[str, tuple[tuple[slice | int, ...], np.ndarray]] = {}
    for name, dtype in _PRODUCTS:
        columns = [product(dtype, probe).numpy() for probe in probes.T]
        found[name] = ((slice(0, size), block), np.stack(columns, axis=1))
    return found


def check_finite(strip: np.ndarray, start: int, subject: str) -> None:
    """Checks the columns of a strip before they are stored.

    Args:
        strip: Rows from the diagonal on, shape (P − start, K).
        start: Its first column.
        subject: What the matrix is, for the message.

    Raises:
        VerificationError: A column has entries that are not finite.
    """
    finite = np.isfinite(strip).all(axis=0)
    if not finite.all():
        raise VerificationError(
            f"Column {start + int(np.argmin(finite))} of {subject} is not finite; did training diverge before this "
            "checkpoint?"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Reading


class StripMatrix:
    """A stored symmetric matrix, mirrored on reading; one strip at a time is in memory.

    Attributes:
        size: P.
        dtype: Of the stored values.
    """

    def __init__(self, parts: "Sequence[tuple[StageStore, Sequence[int]]]") -> None:
        """Joins what holds the strips.

        Args:
            parts: Stores, each with the bounds of the strips that it holds.

        Raises:
            StoreError: The strips do not follow each other from the first column to the last.
        """
        self._strips: list[tuple[int, int, StageStore]] = []
        array = parts[0][0].array("matrix")
        self.size = int(array.shape[0])
        self.dtype: np.dtype = array.dtype
        expected = 0
        for store, bounds in parts:
            if bounds[0] != expected:
                raise StoreError(
                    f"{store.directory} begins at column {bounds[0]}, where {expected} was expected: the shards were "
                    "cut in different ways; remove their directories and run the workflow again."
                )
            self._strips += [(a, b, store) for a, b in pairwise(bounds)]
            expected = bounds[-1]
        if expected != self.size:
            raise StoreError(
                f"{parts[-1][0].directory} ends at column {expected} of {self.size}: the shards were cut in different "
                "ways; remove their directories and run the workflow again."
            )

    def stored_strips(self) -> Iterator[tuple[int, np.ndarray]]:
        """Strips as they were computed.

        Yields:
            First column c, and rows c … P − 1 of columns c … c + K − 1, both triangles of the square on top.
        """
        for start, stop, store in self._strips:
            yield start, store.read("matrix", (slice(start, self.size), slice(start, stop)))

    def strips(self) -> Iterator[tuple[int, np.ndarray]]:
        """Column strips of the lower block triangle.

        Yields:
            First column c, and rows c … P − 1 of columns c … c + K − 1 with a symmetric square on the diagonal.
        """
        for start, strip in self.stored_strips():
            yield start, _symmetric(strip)

    def columns(self, start: int, stop: int, *, lower: bool = False) -> np.ndarray:
        """Columns.

        Args:
            start: First column.
            stop: One after the last.
            lower: Whether to leave out the rows above `start`.

        Returns:
            Shape (P, stop − start), or without the upper rows (P − start, stop − start), in the stored dtype.
        """
        top = start if lower else 0
        result = np.empty((self.size - top, stop - start), dtype=self.dtype)
        for first, last, store in self._strips:
            if first >= stop:
                break
            if last <= start:  # a strip to the left: its rows start … stop − 1 are, by symmetry, rows of these columns
                if not lower:
                    result[first:last] = store.read("matrix", (slice(start, stop), slice(first, last))).T
                continue
            strip = _symmetric(store.read("matrix", (slice(first, self.size), slice(first, last))))
            a, b, row = max(start, first), min(stop, last), max(top, first)
            result[row - top :, a - start : b - start] = strip[row - first :, a - first : b - first]
            if last < stop:  # and its rows last … stop − 1 are the upper part of the later columns
                result[row - top : last - top, last - start :] = strip[last - first : stop - first, row - first :].T
        return result

    def dense(self, dtype: str | None = None) -> np.ndarray:
        """The whole symmetric matrix.

        Args:
            dtype: NumPy dtype name; None: the stored one.

        Returns:
            Shape (P, P), C-contiguous; beside it only one strip is ever in memory.
        """
        result = np.empty((self.size, self.size), dtype=dtype or self.dtype)
        self.fill(torch.from_numpy(result))
        return result

    def fill(self, matrix: torch.Tensor) -> None:
        """Writes the whole symmetric matrix.

        Args:
            matrix: Shape (P, P), on any device.
        """
        for start, strip in self.strips():
            values = torch.from_numpy(strip).to(matrix.device, matrix.dtype)
            width = strip.shape[1]
            matrix[start:, start : start + width] = values
            matrix[start : start + width, start + width :] = values[width:].T


def _symmetric(strip: np.ndarray) -> np.ndarray:
    width = strip.shape[1]
    strip[:width] = (strip[:width] + strip[:width].T) / 2
    return strip


def strip_bounds(stage: "FinishedStage") -> list[int]:
    """Bounds of the strips that a finished stage holds."""
    return stage.manifest["plan"]["strips"]
