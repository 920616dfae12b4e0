"""Products with matrices of more than 2³¹ entries, in slabs where a GPU multiplies.

cuBLAS has counted entries in 32 bits for most of its life, and torch has given it larger matrices as if it did not
(pytorch issue 17897, of `mv`). No operand of a product here spans more than 2³¹ − 1 entries there, what lies between
its rows included. On a CPU a product is one call.
"""

from itertools import pairwise

import torch

LIMIT = 2**31 - 1
"""Entries from the first to the last of what is given to cuBLAS."""
_ALIGNED = 64
"""Rows of a matrix on a GPU begin at multiples of so many entries: every row as its first is aligned, at least to 256
bytes."""


def square(size: int, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """An empty square matrix; on a GPU its rows lie so far apart that all are aligned alike.

    Args:
        size: n.
        dtype: Of its entries.
        device: Where.

    Returns:
        Shape (n, n); on a CPU contiguous, on a GPU a view.
    """
    on_cpu = torch.device(device).type == "cpu"
    width = size if on_cpu else -(-size // _ALIGNED) * _ALIGNED
    return torch.empty(size, width, dtype=dtype, device=device)[:, :size]


def slabs(rows: int, stride: int) -> list[slice]:
    """Cuts the rows of a matrix into as few even parts as stay below `LIMIT`.

    Args:
        rows: How many.
        stride: Entries from one to the next.

    Returns:
        Consecutive parts, each of at most (2³¹ − 1)//stride rows.
    """
    parts = max(1, -(-rows // max(1, LIMIT // max(1, stride))))
    return [slice(a, b) for a, b in pairwise(rows * part // parts for part in range(parts + 1))]


def span(matrix: torch.Tensor) -> int:
    """Entries from the first to the last, with what lies between.

    Args:
        matrix: Any strided tensor.

    Returns:
        Their number; 0 where it is empty.
    """
    if not matrix.numel():
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(matrix.shape, matrix.stride(), strict=True))


def _is_cut(matrix: torch.Tensor) -> bool:
    return matrix.is_cuda


def matrix_vector(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """A·x.

    Args:
        matrix: A, shape (m, n), rows in memory.
        vector: x, shape (n,).

    Returns:
        Shape (m,).
    """
    if not _is_cut(matrix):
        return matrix @ vector
    result = matrix.new_empty(len(matrix))
    for rows in slabs(len(matrix), matrix.stride(0)):
        torch.mv(matrix[rows], vector, out=result[rows])
    return result


def subtract_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """A − LᵀR, in place.

    Args:
        target: A, shape (m, n), rows in memory.
        left: L, shape (k, m), of few rows.
        right: R, shape (k, n), of few rows.
    """
    for rows in slabs(len(target), target.stride(0)) if _is_cut(target) else [slice(0, len(target))]:
        target[rows].addmm_(left[:, rows].T, right, alpha=-1)


def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A·B, of which A may be large, and B too where its rows are those of A's transpose.

    Args:
        left: A, shape (m, k): rows or columns in memory.
        right: B, shape (k, n), rows in memory, n small.

    Returns:
        Shape (m, n). Where A's columns are in memory slabs are cut along k, and added in the order of k.
    """
    if not _is_cut(left) or max(span(left), span(right)) <= LIMIT:
        return left @ right
    if left.stride(1) == 1:
        result = left.new_empty(len(left), right.shape[1])
        for rows in slabs(len(left), left.stride(0)):
            torch.mm(left[rows], right, out=result[rows])
        return result
    first, *others = slabs(len(right), max(left.stride(1), right.stride(0)))
    result = left[:, first] @ right[first]
    for part in others:
        result.addmm_(left[:, part], right[part])
    return result


def release_device_memory() -> None:
    """Gives memory of tensors that are gone back to the GPU, where one is in use.

    torch keeps it otherwise, and cuts what is asked for next out of it: a gigabyte of images in the segment of a matrix
    leaves no place for another matrix.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
