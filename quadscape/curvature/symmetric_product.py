"""Products of a symmetric matrix with a vector that read one triangle: cuBLAS's symv, where it is there and right.

torch has no such product; its own reads the square, twice the bytes, and bytes are what the reduction to tridiagonal
form takes its time for. The function is that of the library which torch has loaded, with 64-bit sizes (cuBLAS 12 and
later), called with torch's own handle and so on its stream. It is used only after it has been compared, on the matrix
itself, with rows of the plain product, and with itself; otherwise the plain one is.
"""

import ctypes
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

from quadscape.curvature.large_products import matrix_vector

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of a symmetric matrix, shape (n, n), and a vector, shape (n,)."""
_NAMES = {torch.float32: "cublasSsymv_v2_64", torch.float64: "cublasDsymv_v2_64"}
_LOWER = 0
"""CUBLAS_FILL_MODE_LOWER: of columns in memory, so what lies right of the diagonal of rows in memory."""
_CHECKED_ROWS = 16


class TriangleProduct:
    """Symv by its address."""

    def __init__(self, function: Callable[..., int], handle: Callable[[], int]) -> None:
        """Takes the function.

        Args:
            function: `cublas?symv_v2_64`, of handle, triangle, n, α, A, lda, x, its stride, β, y, its stride.
            handle: Gives cuBLAS's handle, set to the stream in use.
        """
        self._function = function
        self._handle = handle

    def __call__(self, matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """A·x.

        Args:
            matrix: A, shape (n, n), rows in memory; what lies left of the diagonal is not read.
            vector: x, shape (n,), in the matrix's dtype.

        Returns:
            Shape (n,).

        Raises:
            RuntimeError: The library refuses.
        """
        size = len(matrix)
        assert matrix.stride(1) == 1
        assert vector.dtype == matrix.dtype
        result = torch.empty(size, dtype=matrix.dtype, device=matrix.device)
        real = ctypes.c_float if matrix.dtype == torch.float32 else ctypes.c_double
        one, zero = real(1.0), real(0.0)
        a, x, y = (tensor.data_ptr() for tensor in (matrix, vector, result))
        numbers = ctypes.byref(one), a, matrix.stride(0), x, vector.stride(0), ctypes.byref(zero), y, 1
        status = self._function(self._handle(), _LOWER, size, *numbers)
        if status:
            raise RuntimeError(f"cuBLAS's symv fails with status {status}")
        return result


def fault(product: Product, matrix: torch.Tensor) -> str | None:
    """What is wrong with a product: compared with rows of the plain one in float64, and with itself.

    Args:
        product: To be checked.
        matrix: Symmetric, shape (n, n); trailing squares of it are multiplied, as the reduction does, which begin at
            addresses of any alignment.

    Returns:
        Part of a sentence; None where nothing is.
    """
    # Of a sum of n products rounding leaves about eps·|a||x|, a wrong one |a||x|/√n.
    size, eps = len(matrix), torch.finfo(matrix.dtype).eps
    for start in sorted({0, size // 2, min(size - 1, 1), min(size - 1, size // 3 * 2 + 3)}):
        trailing = matrix[start:, start:]
        rows = torch.linspace(0, len(trailing) - 1, min(len(trailing), _CHECKED_ROWS)).long().to(matrix.device)
        x = torch.arange(1, len(trailing) + 1, dtype=torch.float64, device=matrix.device).sin().to(matrix.dtype)
        try:
            found, again = product(trailing, x), product(trailing, x)
        except RuntimeError as error:
            return str(error)
        some, exact_x = trailing[rows].double(), x.double()
        off = (found[rows].double() - (some * exact_x).sum(dim=1)).abs()
        if not bool((off <= eps * len(trailing) ** 0.5 * some.norm(dim=1) * exact_x.norm()).all()):
            return f"it is off by {float(off.max()):.2g} in a trailing square of {len(trailing)} rows"
        if not torch.equal(found, again):
            return "it gives other bits when it is repeated"
    return None


def _library_function(dtype: torch.dtype) -> Callable[..., int] | None:
    """The function in the cuBLAS that torch has loaded; None where there is none."""
    if torch.version.cuda is None:
        return None
    try:
        # Only what is loaded already: a handle of one library is nothing to another.
        library = ctypes.CDLL(f"libcublas.so.{torch.version.cuda.split('.')[0]}", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        function: Any = getattr(library, _NAMES[dtype])
    except (OSError, AttributeError):
        return None
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    function.restype = ctypes.c_int
    function.argtypes = [pointer, ctypes.c_int, long, pointer, pointer, long, pointer, long, pointer, pointer, long]
    return function


def checked_product(matrix: torch.Tensor) -> Product:
    """The product that reads least, of those that are right for this matrix on its device.

    Args:
        matrix: Symmetric, shape (n, n).

    Returns:
        On a CPU the plain one. On a GPU symv, or with a warning that says why not, the plain one in slabs.
    """
    if not matrix.is_cuda:
        return matrix_vector
    function = _library_function(matrix.dtype)
    if function is None:
        reason: str | None = f"the cuBLAS in use has no {_NAMES[matrix.dtype]}"
    else:
        product = TriangleProduct(function, torch.cuda.current_blas_handle)
        reason = fault(product, matrix)
        if reason is None:
            return product
    warnings.warn(
        f"Products of one triangle with a vector are not used, since {reason}; the reduction reads the whole square, "
        "which takes up to twice as long.",
        stacklevel=2,
    )
    return matrix_vector
