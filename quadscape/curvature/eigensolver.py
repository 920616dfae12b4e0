"""All eigenpairs of a dense symmetric matrix, in units of work that a long stage can journal.

Three ways, chosen by size and memory (`plan_solver`), all with eigenvalues in descending order and every eigenvector's
component of largest magnitude positive:

- `evd`, on a CPU where three matrices fit: LAPACK's divide and conquer, at once. The units only write its columns.
- `cusolver`, on a GPU where it fits and is known to be right: the same there.
- `streamed`, for all that is larger: the matrix is reduced to tridiagonal form in its own memory, the tridiagonal
  matrix is divided and conquered level by level, and its eigenvectors are made and transformed back in ranges. Beside
  the one matrix there are only strips of it; later, its half, read again from what was stored, and a range. Every unit
  can be resumed from what the units before it have stored: panels of reflectors V and updates W, levels of the
  recursion, and ranges of eigenvectors. On a GPU a reduction of minutes is repeated instead.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch

from quadscape.curvature.divide_and_conquer import Tree, merge_level, solve_leaves
from quadscape.curvature.large_products import matrix_vector, release_device_memory, square
from quadscape.curvature.solver_plan import (
    FIELDS,
    INNER,
    LIBRARY_LIMIT,
    LIBRARY_MATRICES,
    USABLE,
    Rates,
    bounds,
    depth,
    is_journalled,
    leaf_of,
    library_bytes,
    library_plan,
    library_work,
    streamed_bytes,
    streamed_plan,
    streamed_work,
)
from quadscape.curvature.symmetric_product import Product, checked_product
from quadscape.curvature.tridiagonal_reduction import (
    Reflectors,
    blas_threads,
    panels,
    reduce_panel,
    update_trailing,
)
from quadscape.errors import RoundingError, VerificationError
from quadscape.numerics import give_freed_memory_back
from quadscape.stored import ArraySpec

Fill = Callable[[torch.Tensor], None]
"""Writes the whole symmetric matrix into a tensor of shape (n, n)."""
Values = dict[str, tuple[tuple[slice | int, ...], np.ndarray]]
"""What a unit writes, by array: a selection, and what it holds."""

_ROWS = 1024
_CHECKED_ENTRIES = {"cpu": 1 << 18, "cuda": 1 << 28}
"""Summed at once to see whether all are finite: what stays in a cache, and what keeps a GPU busy."""


class Committed(Protocol):
    """What units before this one have stored; see `quadscape.stage.protocol.StageStore`, which needs Zarr."""

    @property
    def directory(self) -> Any:
        """Where, for messages."""

    def read(self, name: str, selection: Any = ..., /) -> np.ndarray:
        """A part of an array."""


# ---------------------------------------------------------------------------------------------------------------------
# Choosing


def device_memory(device: torch.device) -> int:
    """Memory of a device, used or not, so that equal runs choose the same way on a loaded machine.

    Args:
        device: A GPU, or the CPU of this machine (or SLURM allocation).

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    # Only here, so that a GPU needs no psutil.
    from quadscape.memory_limits import memory_total

    return memory_total()


def plan_solver(size: int, dtype: str, device: torch.device) -> dict[str, Any]:
    """Chooses the way and the sizes of its units.

    Args:
        size: n.
        dtype: `float32` or `float64`.
        device: Where it will be computed.

    Returns:
        `solver`, `block` (eigenvectors of one unit), and for `streamed` the columns of one unit of the reduction, whose
        arithmetic it is, and the memory of a tile.
    """
    fits = library_bytes(size, dtype) <= USABLE * device_memory(device)
    if size <= LIBRARY_LIMIT[device.type] and fits:
        return library_plan(size, dtype, device.type)
    return streamed_plan(size, dtype, device.type)


class Solver(Protocol):
    """One way to all eigenpairs, cut into units.

    Attributes:
        units: Number of units.
        parts: Units of each part: of the whole, or of reduction, divide and conquer, and back-transformation.
        scratch: Arrays needed only on the way.
        method: Part of a sentence for the log.
    """

    units: int
    parts: list[int]
    scratch: list[ArraySpec]
    method: str

    def memory_bytes(self) -> int:
        """Memory at the peak, of the device where the matrix is."""

    def seconds(self, rates: Rates) -> list[float]:
        """Expected time of each unit."""

    def compute(self, unit: int, store: Committed) -> Values:
        """What one unit writes: eigenvectors, eigenvalues, or scratch."""


def make_solver(size: int, dtype: str, plan: Mapping[str, Any], fill: Fill) -> Solver:
    """The solver that was planned.

    Args:
        size: n.
        dtype: `float32` or `float64`.
        plan: What `plan_solver` returned, with `device` and `threads`.
        fill: Writes the matrix into a tensor, when it is needed.

    Returns:
        The solver.
    """
    return (_Streamed if plan["solver"] == "streamed" else _Library)(size, dtype, plan, fill)


def basis_specs(size: int, dtype: str, block: int) -> list[ArraySpec]:
    """Layout of eigenvalues and eigenvectors.

    Args:
        size: n.
        dtype: Of the eigenvectors.
        block: Eigenvectors of one file.

    Returns:
        `eigenvalues`, float64, and `eigenvectors`.
    """
    return [
        ArraySpec(
            "eigenvalues",
            (size,),
            "float64",
            ("index",),
            (size,),
            attributes={"description": "Eigenvalues of the Hessian, descending", "unit": "1"},
        ),
        ArraySpec(
            "eigenvectors",
            (size, size),
            dtype,
            ("parameter", "index"),
            (size, INNER),
            shards=(size, block),
            attributes={"description": "Eigenvectors as columns", "unit": "1"},
        ),
    ]


def fix_signs(vectors: np.ndarray) -> np.ndarray:
    """Makes the component of largest magnitude positive, the first one of equals.

    Args:
        vectors: Columns, shape (n, k).

    Returns:
        A C-contiguous copy.
    """
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return np.ascontiguousarray(vectors * np.where(largest < 0, -1, 1).astype(vectors.dtype))


def _filled(size: int, dtype: str, device: str, fill: Fill) -> torch.Tensor:
    """The matrix, if it is finite."""
    matrix = square(size, getattr(torch, dtype), device)
    fill(matrix)
    # One question to the device at the end, not one for each sum.
    rows = max(1, _CHECKED_ENTRIES[matrix.device.type] // size)
    sums = torch.stack([part.sum(dtype=torch.float64) for part in matrix.split(rows)])
    if not bool(torch.isfinite(sums).all()):
        raise VerificationError("The Hessian has entries that are not finite, so it has no eigenbasis.")
    return matrix


# ---------------------------------------------------------------------------------------------------------------------
# By a library


def decompose(matrix: torch.Tensor, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """All eigenpairs at once: by LAPACK's divide and conquer on the CPU, by cuSOLVER on a GPU.

    Args:
        matrix: Shape (n, n); its memory may be overwritten.
        threads: Threads of LAPACK; results depend on their number.

    Returns:
        Eigenvalues in descending order, float64, shape (n,), and eigenvectors as columns in the matrix's dtype.
    """
    if matrix.is_cuda:
        values, vectors = (part.cpu().numpy() for part in torch.linalg.eigh(matrix))
    else:
        # Only here, so that a GPU needs no SciPy.
        import scipy.linalg

        with blas_threads(threads):
            # The transpose is the same symmetric matrix, in the column order in which LAPACK can work in place.
            values, vectors = scipy.linalg.eigh(matrix.numpy().T, driver="evd", overwrite_a=True, check_finite=False)
    return values[::-1].astype(np.float64), vectors[:, ::-1]


def _rounds_differently(store: Committed) -> RoundingError:
    return RoundingError(
        f"The decomposition in {store.directory} was begun on a machine that rounds differently; remove that directory "
        "and run the workflow again."
    )


class _Library:
    """One decomposition per process; the units write its columns."""

    def __init__(self, size: int, dtype: str, plan: Mapping[str, Any], fill: Fill) -> None:
        self._size, self._dtype, self._plan, self._fill = size, dtype, plan, fill
        self._pairs: tuple[np.ndarray, np.ndarray] | None = None
        self.units = -(-size // plan["block"])
        self.parts = [self.units]
        self.scratch: list[ArraySpec] = []
        where = "cuSOLVER" if plan["solver"] == "cusolver" else "LAPACK's divide and conquer"
        self.method = f"{where}, since {LIBRARY_MATRICES} matrices fit into memory"

    def memory_bytes(self) -> int:
        return library_bytes(self._size, self._dtype)

    def seconds(self, rates: Rates) -> list[float]:
        return [unit.seconds(rates) for unit in library_work(self._size, self._dtype, self._plan["block"])]

    def compute(self, unit: int, store: Committed) -> Values:
        if self._pairs is None:
            matrix = _filled(self._size, self._dtype, self._plan["device"], self._fill)
            self._pairs = decompose(matrix, self._plan["threads"])
            self._check_repeated(store)
        values, vectors = self._pairs
        columns = slice(unit * self._plan["block"], min(self._size, (unit + 1) * self._plan["block"]))
        found: Values = {"eigenvectors": ((slice(0, self._size), columns), fix_signs(vectors[:, columns]))}
        if unit == 0:
            found["eigenvalues"] = ((slice(0, self._size),), values)
        return found

    def _check_repeated(self, store: Committed) -> None:
        """A resumed process must repeat the decomposition bit for bit, or blocks of two bases would be mixed."""
        assert self._pairs is not None
        stored = store.read("eigenvalues")  # NaN until unit 0 is committed
        if not np.isnan(stored).all() and not np.array_equal(stored, self._pairs[0]):
            raise _rounds_differently(store)


# ---------------------------------------------------------------------------------------------------------------------
# Streamed


class _Streamed:
    """Units of the reduction, of the levels of divide and conquer, and of ranges of eigenvectors.

    With a journal, the reduction's units store V and W, the matrix is dropped after the last of them, and ranges read V
    again. Without one they store T only: the reduced matrix stays where it is, its V are used there, and a process that
    resumes repeats the reduction from the Hessian. T tells whether to the same bits.
    """

    def __init__(self, size: int, dtype: str, plan: Mapping[str, Any], fill: Fill) -> None:
        self._size, self._dtype, self._plan, self._fill = size, dtype, plan, fill
        self._matrix: torch.Tensor | None = None
        self._reduced = 0
        """Columns of `_matrix` that are reduced, and whose updates were applied to the others."""
        self._product: Product = matrix_vector
        self._transformation: tuple[Tree, Reflectors] | None = None
        self._journal, self._leaf = is_journalled(plan), leaf_of(plan)
        self._columns = int(plan["columns"])
        self._reductions = -(-size // self._columns)
        self._levels = 1 + depth(size, self._leaf)
        self.parts = [self._reductions, self._levels, -(-size // plan["block"])]
        self.units = sum(self.parts)
        self.method = (
            "tridiagonal reduction in place, divide and conquer, and back-transformation in ranges, streamed since "
            f"{LIBRARY_MATRICES} matrices do not fit into memory or exceed what the library can"
        )
        rows = min(size, _ROWS)
        widest = max(b - a for a, b in pairwise(bounds(size, 0, self._leaf)))
        shards = (self._columns, -(-size // rows) * rows)
        self.scratch = [
            *(
                ArraySpec(name, (size, size), dtype, ("column", "row"), (self._columns, rows), shards, scratch=True)
                for name in (("reflectors", "updates") if self._journal else ())
            ),
            ArraySpec("tridiagonal", (3, size), "float64", ("part", "column"), (3, self._columns), scratch=True),
            ArraySpec(
                "levels",
                (self._levels, len(FIELDS), size),
                "float64",
                ("level", "field", "row"),
                (1, len(FIELDS), size),
                scratch=True,
            ),
            ArraySpec("leaves", (size, widest), "float64", ("row", "column"), (size, widest), scratch=True),
        ]

    def memory_bytes(self) -> int:
        return streamed_bytes(self._size, self._dtype, self._plan)

    def seconds(self, rates: Rates) -> list[float]:
        return [unit.seconds(rates) for unit in streamed_work(self._size, self._dtype, self._plan)]

    def compute(self, unit: int, store: Committed) -> Values:
        give_freed_memory_back()
        if unit < self._reductions:
            return self._reduce(unit, store)
        if unit < self._reductions + self._levels:
            return self._merge(unit - self._reductions, store)
        return self._transform(unit - self._reductions - self._levels, store)

    def _strip(self, unit: int) -> slice:
        return slice(unit * self._columns, min(self._size, (unit + 1) * self._columns))

    # Reduction

    def _blas(self) -> AbstractContextManager[Any]:
        return blas_threads(self._plan["threads"]) if self._plan["engine"] == "lapack" else nullcontext()

    def _drop_matrix(self) -> None:
        if self._matrix is not None:
            self._matrix = None
            release_device_memory()

    def _reduce(self, unit: int, store: Committed) -> Values:
        strip = self._strip(unit)
        with self._blas():
            matrix = self._matrix_before(strip.start, store)
            entries, updates = self._reduce_strip(matrix, strip)
        found: Values = {}
        if updates is not None:
            reflectors = torch.triu(matrix[strip, strip.start :]).cpu()
            found["reflectors"] = ((strip, slice(0, self._size)), self._widened(reflectors, strip))
            found["updates"] = ((strip, slice(0, self._size)), self._widened(updates, strip))
        found["tridiagonal"] = ((slice(0, 3), strip), entries)
        return found

    def _reduce_strip(self, matrix: torch.Tensor, strip: slice) -> tuple[np.ndarray, torch.Tensor | None]:
        """Entries of T with τ, and W if it is journalled, of one unit's columns."""
        width = strip.stop - strip.start
        updates = torch.zeros(width, self._size - strip.start, dtype=matrix.dtype) if self._journal else None
        entries = np.zeros((3, width))
        for start, stop in panels(strip.start, strip.stop):
            panel = reduce_panel(matrix, start, stop, self._plan["engine"], self._product)
            here = slice(start - strip.start, stop - strip.start)
            if updates is not None:
                updates[here, here.start :] = panel.updates.cpu()
            entries[:, here] = panel.diagonal, panel.off_diagonal, panel.tau
        self._reduced = strip.stop
        return entries, updates

    def _widened(self, rows: torch.Tensor, strip: slice) -> np.ndarray:
        """Rows of a strip as they are stored: chunks of NaN are not written."""
        wide = np.full((len(rows), self._size), np.nan, dtype=self._dtype)
        wide[:, strip.start :] = rows.numpy()
        return wide

    def _matrix_before(self, column: int, store: Committed) -> torch.Tensor:
        """The matrix with the columns before this one reduced: from the last unit, or by repeating units before."""
        self._transformation = None
        if self._matrix is None or self._reduced > column:
            self._drop_matrix()
            self._matrix = _filled(self._size, self._dtype, self._plan["device"], self._fill)
            self._product = checked_product(self._matrix)
            self._reduced = 0
        for unit in range(-(-self._reduced // self._columns), -(-column // self._columns)):
            if self._journal:
                self._repeat_updates(self._matrix, self._strip(unit), store)
            else:
                self._repeat_reduction(self._matrix, self._strip(unit), store)
        return self._matrix

    def _repeat_updates(self, matrix: torch.Tensor, strip: slice, store: Committed) -> None:
        """One unit's columns from what it stored, without products with vectors."""
        where = (strip, slice(strip.start, self._size))
        matrix[where] = torch.from_numpy(store.read("reflectors", where)).to(matrix.device)
        updates = torch.from_numpy(store.read("updates", where)).to(matrix.device)
        for start, stop in panels(strip.start, strip.stop):
            part = updates[start - strip.start : stop - strip.start, start - strip.start :].contiguous()
            update_trailing(matrix, start, stop, part, self._plan["engine"])
        self._reduced = strip.stop

    def _repeat_reduction(self, matrix: torch.Tensor, strip: slice, store: Committed) -> None:
        """One unit's columns as in the process that stored their entries of T."""
        entries, _ = self._reduce_strip(matrix, strip)
        stored = store.read("tridiagonal", (slice(0, 3), strip))
        if not np.isnan(stored).all() and not np.array_equal(stored, entries):
            raise _rounds_differently(store)

    # Divide and conquer

    def _tridiagonal(self, store: Committed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        diagonal, off_diagonal, tau = store.read("tridiagonal")
        return diagonal, off_diagonal[:-1], tau

    def _merge(self, level: int, store: Committed) -> Values:
        if self._journal:
            self._drop_matrix()
        diagonal, off_diagonal, _ = self._tridiagonal(store)
        found: Values = {}
        device, tile_bytes = self._plan["device"], self._plan["tile_bytes"]
        if level == 0:
            fields, leaves = solve_leaves(diagonal, off_diagonal, device, self._leaf)
            found["leaves"] = ((slice(None), slice(None)), leaves)
        else:
            below = store.read("levels", level - 1)
            fields = merge_level(level, below, diagonal, off_diagonal, device, tile_bytes, self._leaf)
        found["levels"] = ((slice(level, level + 1), slice(None), slice(None)), fields[None])
        return found

    # Back-transformation

    def _prepared(self, store: Committed) -> tuple[Tree, Reflectors]:
        if self._transformation is None:
            diagonal, off_diagonal, tau = self._tridiagonal(store)
            reflectors = self._reflectors(tau, store)
            levels = [store.read("levels", level) for level in range(self._levels)]
            leaves, device = store.read("leaves"), self._plan["device"]
            tree = Tree(diagonal, off_diagonal, levels, leaves, device, self._plan["tile_bytes"], self._leaf)
            self._transformation = tree, reflectors
            del levels, leaves
            give_freed_memory_back()
        return self._transformation

    def _reflectors(self, tau: np.ndarray, store: Committed) -> Reflectors:
        """All reflectors: read, or in the reduced matrix itself, which is repeated where it is not there any more."""
        found = Reflectors(self._size)
        if self._journal:
            self._drop_matrix()
            for unit in range(self._reductions):
                strip = self._strip(unit)
                rows = store.read("reflectors", (strip, slice(strip.start, self._size)))
                found.add(torch.from_numpy(rows).to(self._plan["device"]), tau[strip], strip.start)
        else:
            with self._blas():
                found.add(self._matrix_before(self._size, store), tau, 0, in_place=True)
            self._matrix = None  # what it held is the reflectors' now
        return found

    def _transform(self, number: int, store: Committed) -> Values:
        tree, reflectors = self._prepared(store)
        start = number * self._plan["block"]
        stop = min(self._size, start + self._plan["block"])
        # Ascending there, descending here.
        columns = tree.vectors(self._size - stop, self._size - start).to(getattr(torch, self._dtype)).flip(1)
        reflectors.apply(columns)
        found: Values = {"eigenvectors": ((slice(0, self._size), slice(start, stop)), fix_signs(columns.cpu().numpy()))}
        if number == 0:
            found["eigenvalues"] = ((slice(0, self._size),), np.ascontiguousarray(tree.eigenvalues[::-1]))
        return found
