"""All eigenpairs of a dense symmetric matrix, in units of work that a long stage can journal.

Three ways, chosen by size and memory (`plan_solver`), all with eigenvalues in descending order and every eigenvector's
component of largest magnitude positive:

- `evd`, on a CPU where three matrices fit: LAPACK's divide and conquer, at once. The units only write its columns.
- `cusolver`, on a GPU where it fits and is known to be right: the same there.
- `streamed`, for all that is larger: the matrix is reduced to tridiagonal form in its own memory, the tridiagonal
  matrix is divided and conquered level by level, and its eigenvectors are made and transformed back in ranges. Beside
  the one matrix there are only strips of it; later, its half, read again from what was stored, and a range. Every unit
  can be resumed from what the units before it have stored: panels of reflectors V and updates W, levels of the
  recursion, and ranges of eigenvectors.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import torch

from quadscape.curvature.divide_and_conquer import Tree, merge_level, solve_leaves
from quadscape.curvature.solver_plan import (
    FIELDS,
    INNER,
    LIBRARY_LIMIT,
    LIBRARY_MATRICES,
    USABLE,
    Rates,
    bounds,
    depth,
    library_bytes,
    library_plan,
    library_work,
    streamed_bytes,
    streamed_plan,
    streamed_work,
)
from quadscape.curvature.tridiagonal_reduction import (
    Reflectors,
    blas_threads,
    panels,
    reduce_panel,
    update_trailing,
)
from quadscape.errors import RoundingError, VerificationError
from quadscape.memory_limits import memory_total
from quadscape.numerics import give_freed_memory_back
from quadscape.stage.protocol import Arrays, StageStore
from quadscape.store import ArraySpec

Fill = Callable[[torch.Tensor], None]
"""Writes the whole symmetric matrix into a tensor of shape (n, n)."""
Values = dict[str, tuple[tuple[slice | int, ...], np.ndarray]]

"""cuSOLVER's `syevd` fails from n between 23,000 and 27,000 on with many versions of CUDA; below, it is right."""
_ROWS = 1024


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

    def compute(self, unit: int, store: StageStore) -> Arrays:
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
    matrix = torch.empty(size, size, dtype=getattr(torch, dtype), device=device)
    fill(matrix)
    if not all(bool(torch.isfinite(rows.double().sum())) for rows in matrix.split(max(1, (1 << 18) // size))):
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
        with blas_threads(threads):
            # The transpose is the same symmetric matrix, in the column order in which LAPACK can work in place.
            values, vectors = scipy.linalg.eigh(matrix.numpy().T, driver="evd", overwrite_a=True, check_finite=False)
    return values[::-1].astype(np.float64), vectors[:, ::-1]


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

    def compute(self, unit: int, store: StageStore) -> Arrays:
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

    def _check_repeated(self, store: StageStore) -> None:
        """A resumed process must repeat the decomposition bit for bit, or blocks of two bases would be mixed."""
        assert self._pairs is not None
        stored = store.read("eigenvalues")  # NaN until unit 0 is committed
        if not np.isnan(stored).all() and not np.array_equal(stored, self._pairs[0]):
            raise RoundingError(
                f"The decomposition in {store.directory} was begun on a machine that rounds differently; remove that "
                "directory and run the workflow again."
            )


# ---------------------------------------------------------------------------------------------------------------------
# Streamed


class _Streamed:
    """Units of the reduction, of the levels of divide and conquer, and of ranges of eigenvectors."""

    def __init__(self, size: int, dtype: str, plan: Mapping[str, Any], fill: Fill) -> None:
        self._size, self._dtype, self._plan, self._fill = size, dtype, plan, fill
        self._matrix: torch.Tensor | None = None
        self._reduced = 0
        """Columns of `_matrix` that are reduced, and whose updates were applied to the others."""
        self._transformation: tuple[Tree, Reflectors] | None = None
        self._columns = int(plan["columns"])
        self._reductions = -(-size // self._columns)
        self._levels = 1 + depth(size)
        self.parts = [self._reductions, self._levels, -(-size // plan["block"])]
        self.units = sum(self.parts)
        self.method = (
            "tridiagonal reduction in place, divide and conquer, and back-transformation in ranges, streamed since "
            f"{LIBRARY_MATRICES} matrices do not fit into memory or exceed what the library can"
        )
        rows = min(size, _ROWS)
        widest = max(b - a for a, b in pairwise(bounds(size, 0)))
        shards = (self._columns, -(-size // rows) * rows)
        self.scratch = [
            *(
                ArraySpec(name, (size, size), dtype, ("column", "row"), (self._columns, rows), shards, scratch=True)
                for name in ("reflectors", "updates")
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

    def compute(self, unit: int, store: StageStore) -> Arrays:
        give_freed_memory_back()
        if unit < self._reductions:
            with blas_threads(self._plan["threads"]):
                return self._reduce(unit, store)
        if unit < self._reductions + self._levels:
            return self._merge(unit - self._reductions, store)
        return self._transform(unit - self._reductions - self._levels, store)

    def _strip(self, unit: int) -> slice:
        return slice(unit * self._columns, min(self._size, (unit + 1) * self._columns))

    # Reduction

    def _reduce(self, unit: int, store: StageStore) -> Arrays:
        strip, engine = self._strip(unit), self._plan["engine"]
        matrix = self._matrix_before(strip.start, store)
        width = strip.stop - strip.start
        updates = torch.zeros(width, self._size - strip.start, dtype=matrix.dtype)
        entries = np.zeros((3, width))
        for start, stop in panels(strip.start, strip.stop):
            panel = reduce_panel(matrix, start, stop, engine)
            here = slice(start - strip.start, stop - strip.start)
            updates[here, here.start :] = panel.updates.cpu()
            entries[:, here] = panel.diagonal, panel.off_diagonal, panel.tau
        self._reduced = strip.stop
        reflectors = torch.triu(matrix[strip, strip.start :]).cpu()
        return {
            "reflectors": ((strip, slice(0, self._size)), self._widened(reflectors, strip)),
            "updates": ((strip, slice(0, self._size)), self._widened(updates, strip)),
            "tridiagonal": ((slice(0, 3), strip), entries),
        }

    def _widened(self, rows: torch.Tensor, strip: slice) -> np.ndarray:
        """Rows of a strip as they are stored: chunks of NaN are not written."""
        wide = np.full((len(rows), self._size), np.nan, dtype=self._dtype)
        wide[:, strip.start :] = rows.numpy()
        return wide

    def _matrix_before(self, column: int, store: StageStore) -> torch.Tensor:
        """The matrix with the columns before this one reduced: from the last unit, or by repeating stored updates."""
        self._transformation = None
        if self._matrix is None or self._reduced > column:
            self._matrix = None
            self._matrix = _filled(self._size, self._dtype, self._plan["device"], self._fill)
            self._reduced = 0
        for unit in range(self._reduced // self._columns, column // self._columns):
            strip = self._strip(unit)
            where = (strip, slice(strip.start, self._size))
            self._matrix[where] = torch.from_numpy(store.read("reflectors", where)).to(self._matrix.device)
            updates = torch.from_numpy(store.read("updates", where)).to(self._matrix.device)
            for start, stop in panels(strip.start, strip.stop):
                part = updates[start - strip.start : stop - strip.start, start - strip.start :].contiguous()
                update_trailing(self._matrix, start, stop, part, self._plan["engine"])
            self._reduced = strip.stop
        return self._matrix

    # Divide and conquer

    def _tridiagonal(self, store: StageStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        diagonal, off_diagonal, tau = store.read("tridiagonal")
        return diagonal, off_diagonal[:-1], tau

    def _merge(self, level: int, store: StageStore) -> Arrays:
        self._matrix = None
        diagonal, off_diagonal, _ = self._tridiagonal(store)
        found: Values = {}
        if level == 0:
            fields, leaves = solve_leaves(diagonal, off_diagonal)
            found["leaves"] = ((slice(None), slice(None)), leaves)
        else:
            below, device = store.read("levels", level - 1), self._plan["device"]
            fields = merge_level(level, below, diagonal, off_diagonal, device, self._plan["tile_bytes"])
        found["levels"] = ((slice(level, level + 1), slice(None), slice(None)), fields[None])
        return found

    # Back-transformation

    def _prepared(self, store: StageStore) -> tuple[Tree, Reflectors]:
        if self._transformation is None:
            diagonal, off_diagonal, tau = self._tridiagonal(store)
            self._matrix = None
            reflectors = Reflectors(self._size)
            for unit in range(self._reductions):
                strip = self._strip(unit)
                rows = store.read("reflectors", (strip, slice(strip.start, self._size)))
                reflectors.add(torch.from_numpy(rows).to(self._plan["device"]), tau[strip], strip.start)
            levels = [store.read("levels", level) for level in range(self._levels)]
            leaves, device = store.read("leaves"), self._plan["device"]
            tree = Tree(diagonal, off_diagonal, levels, leaves, device, self._plan["tile_bytes"])
            self._transformation = tree, reflectors
            del levels, leaves
            give_freed_memory_back()
        return self._transformation

    def _transform(self, number: int, store: StageStore) -> Arrays:
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
