"""Sizes of the units in which an eigenbasis is made, and the memory that it takes, by arithmetic alone.

What the workflow's head (`quadscape.planning.problem`) asks of a solver stands here, and imports neither torch nor
SciPy.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

LEAF = 64
"""Rows of the largest block that is decomposed as a dense matrix."""
_GPU_LEAF = 1024
"""The same on a GPU, where what thousands of small blocks take is the number of calls."""
PANEL = 64
"""Columns of one panel: few enough that products with V and W stay small beside those with the matrix."""
LAPACK_LIMIT = 32_000
"""Beyond, the length of the workspace of LAPACK's divide and conquer, 2n², exceeds a 32-bit integer."""
LIBRARY_LIMIT = {"cpu": LAPACK_LIMIT, "cuda": 20_000}
"""Largest matrix that is left to a library, by kind of device."""
LIBRARY_MATRICES = 3
"""The matrix, and two of its size as workspace."""
USABLE = 0.8
INNER = 16
UNIT_BYTES = 128 << 20
_UNIT_SECONDS = 60.0
_REPEATED_SECONDS = 1200.0
"""A reduction on a GPU that takes no longer is not journalled, but repeated after a kill: at P = 104,234 in float32
V and W are 43.5 GB, some minutes of writing in every run, to save the few that are killed ten."""
_TILE_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}

FIELDS = (
    "values",  # eigenvalues of the node, ascending
    "first",  # first row of its eigenvectors
    "last",  # last row of its eigenvectors
    "poles",  # d: of the k slots that are coupled, ascending, then of those that are deflated
    "weights",  # ẑ of the coupled slots
    "origins",  # for each root the slot of the pole that it is measured from; −1 for deflated slots
    "offsets",  # λ − d_origin
    "norms",  # 1/|(ẑⱼ/(dⱼ − λᵢ))ⱼ|
    "source",  # column of diag(Q₁, Q₂) behind each slot
    "order",  # slot of each eigenvalue
    "rotated",  # plane rotations in the order of their use: first column, −1 for none
    "partner",  # second column
    "cosine",
    "sine",
)
"""What is known of each level, an array of float64 of shape (len(FIELDS), n): the nodes of a level lie side by side,
and what counts rows or slots counts within the node."""


def depth(size: int, leaf: int = LEAF) -> int:
    """Number of merge levels.

    Args:
        size: n.
        leaf: Rows of the largest leaf.

    Returns:
        0 where the matrix is one leaf.
    """
    return max(0, math.ceil(math.log2(size / leaf)))


def bounds(size: int, level: int, leaf: int = LEAF) -> list[int]:
    """Where the nodes of a level begin and end.

    Args:
        size: n.
        level: From 0 (leaves) to `depth(size, leaf)` (the whole matrix).
        leaf: Rows of the largest leaf.

    Returns:
        Increasing, from 0 to n.
    """
    parts = depth(size, leaf) - level
    return [(i * size) >> parts for i in range((1 << parts) + 1)]


def reflector_block(size: int) -> int:
    """Number of reflectors that are applied as one product.

    Args:
        size: n.

    Returns:
        A part of n, between 64, below which products are slow, and 256, beyond which they gain nothing.
    """
    return min(256, max(64, size // 1024 * 16))


@dataclass(frozen=True)
class Rates:
    """What a device does per second.

    Attributes:
        bandwidth: Bytes that products with a matrix much larger than caches read.
        float32: Floating-point operations of products of float32 matrices.
        float64: The same of float64 matrices.
    """

    bandwidth: float
    float32: float
    float64: float


NOMINAL_RATES = {"cpu": Rates(20e9, 200e9, 70e9), "cuda": Rates(2.5e12, 40e12, 40e12)}
"""Assumed where nothing was measured: two cores of a server, and an H100."""


def advisable_bytes(size: int, dtype: str) -> int:
    """Memory of a machine on which `plan_solver` chooses the fastest way that a CPU has for this size.

    Args:
        size: n.
        dtype: `float32` or `float64`.

    Returns:
        Bytes.
    """
    if size <= LAPACK_LIMIT:
        return int(library_bytes(size, dtype) / USABLE)
    return streamed_bytes(size, dtype, streamed_plan(size, dtype, "cpu"))


def streamed_plan(size: int, dtype: str, device: str) -> dict[str, Any]:
    """Sizes of the streamed way.

    Args:
        size: n.
        dtype: `float32` or `float64`.
        device: `cpu` or `cuda`.

    Returns:
        As `plan_solver`.
    """
    itemsize = np.dtype(dtype).itemsize
    matrix = size**2 * itemsize
    # A strip of V and one of W, a seventh of the matrix with what storing them needs, and a minute of work at most.
    columns = min(size // 40, 2 * UNIT_BYTES // (size * itemsize))
    columns = min(columns, int(_UNIT_SECONDS * NOMINAL_RATES[device].bandwidth / matrix))
    # A range with all copies is a fifth of the matrix, of which only a half is needed then, as reflectors.
    block = min(size // (5 * RANGE_COPIES), 4 * UNIT_BYTES // (size * itemsize))
    block = min(block, int(_UNIT_SECONDS / range_seconds(size, dtype, NOMINAL_RATES[device])))
    plan: dict[str, Any] = {
        "solver": "streamed",
        "block": max(INNER, block // INNER * INNER),
        "columns": max(PANEL, columns // PANEL * PANEL),
        "engine": "torch" if device == "cuda" else "lapack",
        "tile_bytes": min(_TILE_BYTES[device], max(1 << 20, matrix // 32)),
        "leaf": LEAF,
        "journal": True,
    }
    if device == "cuda":
        reduction = matrix * size / 3 / NOMINAL_RATES[device].bandwidth
        plan["journal"] = reduction > _REPEATED_SECONDS
        plan["leaf"] = _GPU_LEAF if size > LIBRARY_LIMIT[device] else LEAF
        # Reflectors are applied in blocks of one unit's columns: whole ones, if a unit has as many.
        whole = math.lcm(PANEL, reflector_block(size))
        if columns >= whole:
            plan["columns"] = columns // whole * whole
    return plan


def streamed_bytes(size: int, dtype: str, plan: Mapping[str, Any]) -> int:
    """Memory at the peak of the streamed way, of the device where the matrix is.

    Args:
        size: n.
        dtype: `float32` or `float64`.
        plan: What `streamed_plan` returned.

    Returns:
        Bytes.
    """
    itemsize = np.dtype(dtype).itemsize
    # V and W, as they are computed and as they are stored; those of the unit before, which are being stored, encoded.
    strips = 8 * int(plan["columns"]) * size * itemsize
    # The triangle of reflectors, or without a journal the matrix that holds it, and a range on its way; the tree as it
    # is stored, and as it is used.
    held = size * size // 2 if is_journalled(plan) else size * size
    copies = RANGE_COPIES + STORING_COPIES
    ranges = (held + (copies * plan["block"] + reflector_block(size)) * size) * itemsize
    tree = _tree_bytes(size, leaf_of(plan))
    return max(size**2 * itemsize + strips, 2 * tree + ranges + 6 * int(plan["tile_bytes"]))


def scratch_bytes(size: int, dtype: str, plan: Mapping[str, Any]) -> int:
    """What the streamed way stores until it is finished.

    Args:
        size: n.
        dtype: `float32` or `float64`.
        plan: What `streamed_plan` returned.

    Returns:
        Bytes: triangles of reflectors and updates, if they are journalled; levels of divide and conquer, and leaves.
    """
    triangles = size**2 * np.dtype(dtype).itemsize if is_journalled(plan) else 0
    return triangles + 3 * 8 * size + _tree_bytes(size, leaf_of(plan))


def spectrum_bytes(size: int, dtype: str, device: str) -> int:
    """Memory at the peak of all eigenvalues without vectors by the streamed way, of the device where the matrix is.

    Args:
        size: n.
        dtype: `float32` or `float64`.
        device: `cpu` or `cuda`.

    Returns:
        Bytes: the matrix and a panel's V and W in two orders; then a level in use and the one below it, with tiles.
    """
    plan, itemsize = streamed_plan(size, dtype, device), np.dtype(dtype).itemsize
    levels = 2 * _tree_bytes(size, leaf_of(plan)) + 6 * int(plan["tile_bytes"])
    return max((size**2 + (6 * PANEL + 64) * size) * itemsize, levels)


def is_journalled(plan: Mapping[str, Any]) -> bool:
    """Whether the reduction is resumed from what it stored. Plans made before there was a choice do not say."""
    return bool(plan.get("journal", True))


def leaf_of(plan: Mapping[str, Any]) -> int:
    """Rows of the largest leaf. Plans made before there was a choice do not say."""
    return int(plan.get("leaf", LEAF))


def _tree_bytes(size: int, leaf: int) -> int:
    widest = max(b - a for a, b in pairwise(bounds(size, 0, leaf)))
    return 8 * size * (len(FIELDS) * (1 + depth(size, leaf)) + widest)


class UnitWork(NamedTuple):
    """What one unit of a solver does.

    Attributes:
        read: Bytes that go through the processor.
        float32: Operations of products of float32 matrices.
        float64: The same of float64 matrices.
        written: Bytes that are stored.
    """

    read: float
    float32: float
    float64: float
    written: float = 0.0

    def seconds(self, rates: Rates, disk_rate: float = 1e9) -> float:
        """Time at given rates.

        Args:
            rates: Of the device.
            disk_rate: Bytes per second that are stored.

        Returns:
            Seconds.
        """
        products = self.float32 / rates.float32 + self.float64 / rates.float64
        return self.read / rates.bandwidth + products + self.written / disk_rate


def _products(dtype: str, operations: float) -> tuple[float, float]:
    return (operations, 0.0) if dtype == "float32" else (0.0, operations)


def library_plan(size: int, dtype: str, device: str) -> dict[str, Any]:
    """Sizes of the way by a library.

    Args:
        size: n.
        dtype: `float32` or `float64`.
        device: `cpu` or `cuda`.

    Returns:
        As `plan_solver`.
    """
    fitting = min(4096, size // 8, UNIT_BYTES // (size * np.dtype(dtype).itemsize))
    return {"solver": "cusolver" if device == "cuda" else "evd", "block": max(INNER, fitting // INNER * INNER)}


def library_bytes(size: int, dtype: str) -> int:
    """Memory of a decomposition by a library.

    Args:
        size: n.
        dtype: `float32` or `float64`.

    Returns:
        Bytes.
    """
    return LIBRARY_MATRICES * size**2 * np.dtype(dtype).itemsize


def library_work(size: int, dtype: str, block: int) -> list[UnitWork]:
    """Work of the units of a decomposition by a library, all of it before the first is stored.

    Args:
        size: n.
        dtype: `float32` or `float64`.
        block: Eigenvectors of one unit.

    Returns:
        Of each unit.
    """
    n, itemsize = float(size), np.dtype(dtype).itemsize
    # The reduction reads the trailing triangle once per column; divide and conquer and the back-transformation are
    # matrix products, about 4n³ operations in all.
    written = n * block * itemsize
    whole = UnitWork(n**3 / 6 * itemsize, *_products(dtype, 4 * n**3), written)
    return [whole, *[UnitWork(0.0, 0.0, 0.0, written)] * (-(-size // block) - 1)]


def streamed_work(size: int, dtype: str, plan: Mapping[str, Any]) -> list[UnitWork]:
    """Work of the units of the streamed way: of the reduction, of each level, and of ranges of eigenvectors.

    Args:
        size: n.
        dtype: `float32` or `float64`.
        plan: What `streamed_plan` returned.

    Returns:
        Of each unit.
    """
    n, itemsize = size, np.dtype(dtype).itemsize
    found = []
    for start in range(0, n, int(plan["columns"])):
        stop = min(n, start + int(plan["columns"]))
        # A triangle is read by LAPACK, the whole square by torch, once per column.
        area = ((n - start) ** 3 - (n - stop) ** 3) / (6 if plan["engine"] == "lapack" else 3)
        found.append(UnitWork(area * itemsize, *_products(dtype, 4 * area)))
    # Secular equations: about 600 bytes go through the processor for each pair of pole and root, four at once.
    levels = depth(n, leaf_of(plan))
    found += [UnitWork(n * (n >> (levels - level)) * 150, 0.0, 0.0) for level in range(levels + 1)]
    for start in range(0, n, int(plan["block"])):
        width = min(n, start + int(plan["block"])) - start
        single, double = _products(dtype, 2.0 * n**2 * width)
        found.append(UnitWork(0.0, single, double + 2.0 * n**2 * width))
    return found


def range_seconds(size: int, dtype: str, rates: Rates) -> float:
    """Time of one eigenvector: n² multiplications and additions by the factors of divide and conquer, n² by reflectors.

    Args:
        size: n.
        dtype: `float32` or `float64`.
        rates: What the device does per second.

    Returns:
        Seconds.
    """
    return 2.0 * size**2 * (1 / rates.float64 + 1 / (rates.float32 if dtype == "float32" else rates.float64))


RANGE_COPIES = 5
"""Of a range on its way: float64 values, and for a half two copies more; then as stored, with signs, and encoded."""
STORING_COPIES = 2
"""Of the range before it, which is being stored meanwhile."""
