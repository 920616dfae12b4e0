"""A dense symmetric matrix brought to tridiagonal form in its own memory, panel by panel: A = Q₁TQ₁ᵀ.

Q₁ = H₁H₂ … with the reflectors Hⱼ = I − τⱼvⱼvⱼᵀ. A panel finds b of them, each from one column and one product of the
trailing matrix with a vector, which is what takes the time (its entries are read once per column and used twice); then
the trailing matrix becomes A − VWᵀ − WVᵀ (Dongarra, Sorensen and Hammarling 1989, LAPACK's `latrd`). Vectors vⱼ take
the place of what is no longer needed.

A panel's V and W are all that its update needs. Who keeps them can repeat the updates of a matrix that was lost, in
the same order and so bit for bit, at the speed of matrix products.

On a GPU products with the whole trailing matrix are made in slabs, or read one triangle
(`quadscape.curvature.large_products`, `quadscape.curvature.symmetric_product`).

Matrices are rows in memory: vⱼ is row j from column j + 1 on. LAPACK, which counts by columns, sees the lower triangle
of the same symmetric matrix there.
"""

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch

from quadscape.curvature.large_products import matrix_vector, subtract_product
from quadscape.curvature.solver_plan import PANEL, reflector_block
from quadscape.curvature.symmetric_product import Product

Engine = Literal["lapack", "torch"]
"""`lapack`: LAPACK's own panel and update, on a CPU. `torch`: the same on any device."""
_SLAB = 2048
_PREFIX = {torch.float32: "s", torch.float64: "d"}


@dataclass(frozen=True)
class Panel:
    """What a panel found.

    Attributes:
        diagonal: Entries of T, shape (b,), in the matrix's dtype.
        off_diagonal: Entries of T below them, shape (b,); 0 after the last column of the matrix.
        tau: τ, shape (b,).
        updates: W as rows, from the panel's first column on, shape (b, n − start).
    """

    diagonal: np.ndarray
    off_diagonal: np.ndarray
    tau: np.ndarray
    updates: torch.Tensor


@cache
def _function(module: str, name: str, arguments: int) -> Callable[..., None]:
    """A function of SciPy's BLAS or LAPACK, all arguments of which are addresses; it runs without Python's lock."""
    # Only here, so that a GPU needs no SciPy.
    from scipy.linalg import cython_blas, cython_lapack

    capsule = {"blas": cython_blas, "lapack": cython_lapack}[module].__pyx_capi__[name]
    python = ctypes.pythonapi
    python.PyCapsule_GetName.restype, python.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    python.PyCapsule_GetPointer.restype = ctypes.c_void_p
    python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = python.PyCapsule_GetPointer(capsule, python.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


def _call(module: str, name: str, *arguments: int | float | bytes | torch.Tensor, dtype: torch.dtype) -> None:
    """Calls such a function: numbers by address, a tensor as the address of its first element."""
    real = ctypes.c_float if dtype == torch.float32 else ctypes.c_double
    kept = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            kept.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, bytes):
            kept.append(ctypes.cast(ctypes.c_char_p(argument), ctypes.c_void_p))
        else:
            value = real(argument) if isinstance(argument, float) else ctypes.c_int(argument)
            kept.append(ctypes.cast(ctypes.pointer(value), ctypes.c_void_p))
    _function(module, _PREFIX[dtype] + name, len(kept))(*kept)


# ---------------------------------------------------------------------------------------------------------------------
# One panel


def _lapack_panel(matrix: torch.Tensor, start: int, stop: int) -> Panel:
    size, width = len(matrix), stop - start
    rest = size - start
    off_diagonal, tau = torch.zeros(width, dtype=matrix.dtype), torch.zeros(width, dtype=matrix.dtype)
    updates = torch.zeros(width, rest, dtype=matrix.dtype)
    trailing = matrix[start:, start:]
    _call("lapack", "latrd", b"L", rest, width, trailing, size, off_diagonal, tau, updates, rest, dtype=matrix.dtype)
    return Panel(matrix.diagonal()[start:stop].numpy().copy(), off_diagonal.numpy(), tau.numpy(), updates)


def _torch_panel(matrix: torch.Tensor, start: int, stop: int, product_with: Product = matrix_vector) -> Panel:
    size, width = len(matrix), stop - start
    diagonal, off_diagonal, taus = (torch.zeros(width, dtype=matrix.dtype, device=matrix.device) for _ in range(3))
    updates = torch.zeros(width, size - start, dtype=matrix.dtype, device=matrix.device)
    for i, column in enumerate(range(start, stop)):
        v, w = matrix[start:column], updates[:i]
        row = matrix[column, column:]
        if i:
            row -= v[:, column] @ w[:, column - start :] + w[:, column - start] @ v[:, column:]
        diagonal[i] = row[0]
        if column == size - 1:
            break
        x = row[1:]
        # Squares in float64: in float32 those of small entries would underflow.
        alpha, length = x[0].double(), x[1:].double().norm()
        beta = -torch.copysign(torch.hypot(alpha, length), alpha)
        # Nothing to reflect: H = I, and the entry stays.
        plain = length == 0
        beta = torch.where(plain, alpha, beta)
        tau = torch.where(plain, 0.0, (beta - alpha) / beta).to(matrix.dtype)
        x *= torch.where(plain, 0.0, 1.0 / (alpha - beta)).to(matrix.dtype)
        x[0] = 1.0
        off_diagonal[i], taus[i] = beta.to(matrix.dtype), tau
        product = product_with(matrix[column + 1 :, column + 1 :], x)
        if i:
            v, w = v[:, column + 1 :], w[:, column + 1 - start :]
            product -= (w @ x) @ v + (v @ x) @ w
        product *= tau
        product -= (tau / 2 * (product @ x)) * x
        updates[i, column + 1 - start :] = product
    return Panel(diagonal.cpu().numpy(), off_diagonal.cpu().numpy(), taus.cpu().numpy(), updates)


def update_trailing(matrix: torch.Tensor, start: int, stop: int, updates: torch.Tensor, engine: Engine) -> None:
    """A − VWᵀ − WVᵀ for what lies beyond a panel.

    Args:
        matrix: Shape (n, n), with the panel's V in its rows; changed in place.
        start: First column of the panel.
        stop: One after its last.
        updates: The panel's W, on the matrix's device.
        engine: As the panel's.
    """
    rest, width, size = len(matrix) - stop, stop - start, len(matrix)
    if rest == 0:
        return
    trailing, v, w = matrix[stop:, stop:], matrix[start:stop, stop:], updates[:, stop - start :]
    if engine == "lapack":
        # Rows of V and W are columns to BLAS, `size` and `size − start` numbers apart.
        arguments = (b"L", b"N", rest, width, -1.0, v, size, w, size - start, 1.0, trailing, size)
        _call("blas", "syr2k", *arguments, dtype=matrix.dtype)
    else:
        subtract_product(trailing, torch.cat([v, w]), torch.cat([w, v]))


def reduce_panel(
    matrix: torch.Tensor, start: int, stop: int, engine: Engine, product: Product = matrix_vector
) -> Panel:
    """Reduces some columns and updates what lies beyond them.

    Args:
        matrix: Shape (n, n), row-major, symmetric from row and column `start` on; changed in place.
        start: First column.
        stop: One after the last.
        engine: Which arithmetic.
        product: Of the trailing matrix with a vector, where torch's is the arithmetic.

    Returns:
        What was found; the vectors v are in the matrix's rows.
    """
    on_cpu = engine == "lapack"
    panel = _lapack_panel(matrix, start, stop) if on_cpu else _torch_panel(matrix, start, stop, product)
    update_trailing(matrix, start, stop, panel.updates, engine)
    return panel


def panels(start: int, stop: int) -> list[tuple[int, int]]:
    """A run of columns cut into panels.

    Args:
        start: First column.
        stop: One after the last.

    Returns:
        First column and one after the last, of each.
    """
    return [(a, min(stop, a + PANEL)) for a in range(start, stop, PANEL)]


def tridiagonal_form(matrix: torch.Tensor, engine: Engine, product: Product) -> tuple[np.ndarray, np.ndarray]:
    """T alone, for eigenvalues without vectors.

    Args:
        matrix: Shape (n, n), row-major, symmetric; it is overwritten.
        engine: Which arithmetic.
        product: As for `reduce_panel`.

    Returns:
        Diagonal, shape (n,), and what is below it, shape (n − 1,), both in float64.
    """
    found = []
    for start, stop in panels(0, len(matrix)):
        panel = reduce_panel(matrix, start, stop, engine, product)
        found.append((panel.diagonal, panel.off_diagonal))
    diagonal, off_diagonal = (np.concatenate(parts).astype(np.float64) for parts in zip(*found, strict=True))
    return diagonal, off_diagonal[:-1]


# ---------------------------------------------------------------------------------------------------------------------
# Back


class Reflectors:
    """Q₁, as products of blocks I − VᵀSV of reflectors (compact WY: Schreiber and Van Loan 1989).

    Holds the triangle of all v once: half a matrix, or the reduced matrix itself.
    """

    def __init__(self, size: int) -> None:
        """Begins with none.

        Args:
            size: n.
        """
        self._size = size
        self._blocks: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def add(self, rows: torch.Tensor, tau: np.ndarray, start: int, *, in_place: bool = False) -> None:
        """Adds the reflectors of the next columns.

        Args:
            rows: Of the reduced matrix, from the diagonal of the first one on: v of column j in row j − start, right of
                column j. Shape (b, n − start), on the device that will apply them; not kept.
            tau: τ, shape (b,).
            start: First column: one after the last that was added.
            in_place: Whether the rows are kept after all, and what is no part of v in them is overwritten: no memory
                is taken where they are the whole matrix.
        """
        width = reflector_block(self._size)
        for first in range(0, len(rows), width):
            stop = min(len(rows), first + width)
            v = rows[first:stop, first + 1 :]
            # A copy, so that what lies left of the block is not kept.
            v = v.triu_() if in_place else torch.triu(v)
            # A reflector with τ = 0 is none.
            used = torch.tensor(tau[first:stop] != 0, dtype=torch.float64, device=rows.device)
            products = torch.zeros(stop - first, stop - first, dtype=torch.float64, device=rows.device)
            squares = torch.zeros(stop - first, dtype=torch.float64, device=rows.device)
            for part in v.split(_SLAB, dim=1):
                slab = part.double() * used[:, None]
                products += slab @ slab.T
                squares += slab.square().sum(dim=1)  # in pairs, so more exactly than as products
            # S⁻¹ is the upper triangle of VVᵀ with half its diagonal. That is 1/τ too, but only to the rounding of τ;
            # with S⁻¹ + S⁻ᵀ = VVᵀ the block is orthogonal for the v that are stored.
            inverse = torch.triu(products, 1) + torch.diag(squares / 2 + (1.0 - used))
            small = torch.linalg.solve_triangular(inverse, torch.diag(used), upper=True)
            self._blocks.append((start + first + 1, v, small.to(v.dtype)))

    def apply(self, columns: torch.Tensor) -> None:
        """Q₁ times columns, in place.

        Args:
            columns: Shape (n, k), in the reflectors' dtype and on their device.
        """
        for start, v, small in reversed(self._blocks):
            part = columns[start:]
            part.addmm_(v.T, small @ (v @ part), alpha=-1)


def blas_threads(threads: int) -> AbstractContextManager[Any]:
    """Context in which LAPACK and BLAS use so many threads; results depend on their number.

    Args:
        threads: How many.

    Returns:
        The context manager.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(threads, user_api="blas")
