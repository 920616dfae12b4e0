"""Products with one matrix of the full size, as the eigenbasis takes them: whether they are right, and how fast.

torch's products with matrices of more than 2³¹ entries, the same in slabs of rows below that, and cuBLAS's product
that reads one triangle. Rates stand beside those of a copy and of a large product of the same process.
"""

import argparse
import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu.runner import Found
from benchmarks.setting import gemm_rate, prepare, timed
from quadscape.curvature.large_products import slabs, square
from quadscape.curvature.solver_plan import PANEL
from quadscape.numerics import resolve_device

_STRIP = 512
_TILE = 1024
_IN_SLABS = "gram, a tile in slabs"
_UPPER = 1
"""cuBLAS counts by columns: its upper triangle is the lower one of rows in memory."""


def copy_rate(device: torch.device, numbers: int | None = None) -> float:
    """Bytes per second that a copy reads and writes: the best of several."""
    numbers = numbers or (1 << 28 if device.type == "cuda" else 1 << 20)
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    return 8.0 * numbers / best(lambda: target.copy_(source), device, 5)


def best(work: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """The least time of several repetitions, after one that warms up."""
    work()
    return min(timed(work, device)[0] for _ in range(repeats))


def gemm(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of a large product."""
    return gemm_rate(device, 8192 if device.type == "cuda" else 256, dtype)


def peak(device: torch.device) -> int | None:
    """Bytes of a GPU that tensors took at most."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None


def fill(matrix: torch.Tensor) -> None:
    """Writes a symmetric matrix of independent normal numbers, a strip at a time, always the same."""
    size = len(matrix)
    for start in range(0, size, _STRIP):
        stop = min(size, start + _STRIP)
        generator = torch.Generator(matrix.device).manual_seed(start)
        strip = torch.randn(stop - start, size - start, device=matrix.device, generator=generator)
        corner = strip[:, : stop - start]
        corner.copy_(corner.triu() + corner.triu(1).T)
        matrix[start:stop, start:] = strip
        matrix[start:, start:stop] = strip.T


def machine_part(arguments: argparse.Namespace) -> Found:
    """Versions, rates of memory and products, and whether float32 is rounded to TF32 anywhere."""
    device = resolve_device(arguments.device)
    prepare()
    versions: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        versions |= {
            "gpu": properties.name,
            "memory_bytes": properties.total_memory,
            "cudnn": torch.backends.cudnn.version(),
            "triton": importlib.util.find_spec("triton") is not None,
        }
    yield versions
    yield {"op": "copy", "gb_per_second": copy_rate(device) / 1e9}
    for dtype in (torch.float32, torch.float64):
        yield {"op": "product", "dtype": str(dtype)[6:], "tflops": gemm(device, dtype) / 1e12}
    # A product of TF32 is off by some 1e-3 of an entry, one of float32 by 1e-6.
    x, w = torch.randn(32, 64, 8, 8, device=device), torch.randn(64, 64, 3, 3, device=device)
    exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    off = torch.nn.functional.conv2d(x, w, padding=1).double() - exact
    yield {"op": "convolution", "error": float(off.norm() / exact.norm())}
    a = torch.randn(512, 512, device=device)
    yield {"op": "product", "error": float(((a @ a).double() - a.double() @ a.double()).norm() / (a @ a).norm())}


def matrices_part(arguments: argparse.Namespace) -> Found:
    """All products at size `--n`."""
    device = resolve_device(arguments.device)
    prepare()
    bandwidth, rate = copy_rate(device), gemm(device)
    matrix = square(arguments.n, torch.float32, device)
    took, _ = timed(lambda: fill(matrix), device)
    yield {"op": "filled", "n": arguments.n, "bytes": matrix.numel() * 4, "seconds": took}
    yield from _with_vectors(matrix, bandwidth)
    yield from _updates(matrix, rate, bandwidth)
    yield from _gram(matrix, rate)
    yield {"op": "memory", "peak_bytes": peak(device)}


def gram_part(arguments: argparse.Namespace) -> Found:
    """The check of orthogonality at size `--n`, from some of its tiles."""
    device = resolve_device(arguments.device)
    prepare()
    matrix = square(arguments.n, torch.float32, device)
    fill(matrix)
    for row in _gram(matrix, gemm(device)):
        yield row
        if row["op"] == _IN_SLABS:
            seconds, share = row["seconds_of_half_extrapolated"], min(1.0, 2 * _TILE / arguments.n)
            yield {"stage": "eigenbasis", "step": "orthogonality", "seconds": seconds, "measured_share": share}


def _rows(size: int) -> list[int]:
    return sorted({0, 1, size // 5, size // 2, size - 2, size - 1})


def vector_error(matrix: torch.Tensor, found: torch.Tensor, x: torch.Tensor) -> float:
    """Largest error of chosen entries of a product with a vector, relative to the lengths of row and vector."""
    exact_x = x.double()
    return max(
        float(
            (matrix[row].double() @ exact_x - found[row].double()).abs() / matrix[row].double().norm() / exact_x.norm()
        )
        for row in _rows(len(matrix))
    )


def _with_vectors(matrix: torch.Tensor, bandwidth: float) -> Found:
    """Products with a vector: at once, in slabs, of a trailing square that is not aligned, and of one triangle."""
    size, device = len(matrix), matrix.device
    moved = 4.0 * size**2
    x = torch.randn(size, device=device)
    found = torch.empty(size, device=device)

    def in_slabs() -> None:
        for rows in slabs(len(matrix), matrix.stride(0)):
            torch.mv(matrix[rows], x, out=found[rows])

    ways: dict[str, Callable[[], Any]] = {
        "mv": lambda: torch.mv(matrix, x, out=found),
        "mv in slabs": in_slabs,
    }
    for name, work in ways.items():
        found.zero_()
        work()
        error = vector_error(matrix, found, x)
        seconds = best(work, device)
        yield {"op": name, "error": error, "seconds": seconds, "share_of_copy": moved / seconds / bandwidth}
    part, short = matrix[3:, 3:], x[3:]
    seconds = best(lambda: part @ short, device)
    yield {
        "op": "mv of a trailing square",
        "error": vector_error(part, part @ short, short),
        "seconds": seconds,
        "share_of_copy": 4.0 * len(part) ** 2 / seconds / bandwidth,
    }
    if device.type != "cuda":
        yield {"op": "symv", "skipped": "not on this device"}
        return
    for uplo in (0, _UPPER):
        yield from _symv_rows(matrix, x, found, uplo, bandwidth)


def _symv_rows(matrix: torch.Tensor, x: torch.Tensor, found: torch.Tensor, uplo: int, bandwidth: float) -> Found:
    name = "symv, triangle right of the diagonal" if uplo != _UPPER else "symv, triangle left of the diagonal"
    found.zero_()
    status = symv(matrix, x, found, uplo)
    torch.cuda.synchronize()
    first = found.clone()
    symv(matrix, x, found, uplo)
    yield {
        "op": name,
        "status": status,
        "error": vector_error(matrix, found, x),
        "same_bits": bool(torch.equal(first, found)),
    }
    seconds = best(lambda: symv(matrix, x, found, uplo), matrix.device)
    # Of the bytes of one triangle; above 1 of those of the square where it does what it should.
    share = 2.0 * len(matrix) ** 2 / seconds / bandwidth
    yield {"op": name, "seconds": seconds, "share_of_copy": share, "times_the_square": 2 * share}


def symv(matrix: torch.Tensor, x: torch.Tensor, result: torch.Tensor, uplo: int) -> int:
    """The product of cuBLAS of one triangle of a symmetric float32 matrix with a vector, with sizes of 64 bits.

    Args:
        matrix: Rows in memory, shape (n, n), on a GPU.
        x: Shape (n,).
        result: Written to, shape (n,).
        uplo: 0 for what cuBLAS, which counts by columns, calls the lower triangle, 1 for the upper one.

    Returns:
        cuBLAS's status; 0: done.
    """
    assert torch.version.cuda is not None
    library = ctypes.CDLL(f"libcublas.so.{torch.version.cuda.split('.')[0]}")
    one, zero, long, address = ctypes.c_float(1), ctypes.c_float(0), ctypes.c_int64, ctypes.c_void_p
    return int(
        library.cublasSsymv_v2_64(
            address(torch.cuda.current_blas_handle()),
            uplo,
            long(len(matrix)),
            ctypes.byref(one),
            address(matrix.data_ptr()),
            long(matrix.stride(0)),
            address(x.data_ptr()),
            long(1),
            ctypes.byref(zero),
            address(result.data_ptr()),
            long(1),
        )
    )


def _entries(size: int) -> list[tuple[int, int]]:
    return [(0, 0), (0, size - 1), (size - 1, 0), (size - 1, size - 1), (size // 2, size // 3), (size // 4, size - 5)]


def _updates(matrix: torch.Tensor, rate: float, bandwidth: float) -> Found:
    """The update of rank 2b after a panel: at once, and in slabs of rows."""
    width, device = min(PANEL, len(matrix) // 4), matrix.device
    trailing = matrix[width:, width:]
    size = len(trailing)
    v, w = (torch.randn(width, size, device=device) for _ in range(2))
    left, right = torch.cat([v, w]), torch.cat([w, v])

    def at_once() -> None:
        trailing.addmm_(left.T, right, alpha=-1)

    def in_slabs() -> None:
        for rows in slabs(len(trailing), trailing.stride(0)):
            trailing[rows].addmm_(left[:, rows].T, right, alpha=-1)

    for name, work in (("addmm", at_once), ("addmm in slabs", in_slabs)):
        before = [float(trailing[i, j]) for i, j in _entries(size)]
        work()
        error = max(
            abs(float(trailing[i, j]) - (b - float(left[:, i].double() @ right[:, j].double())))
            / float(left[:, i].norm() * right[:, j].norm())
            for (i, j), b in zip(_entries(size), before, strict=True)
        )
        seconds = best(work, device, 2)
        yield {
            "op": name,
            "error": error,
            "seconds": seconds,
            "share_of_product": 4.0 * width * size**2 / seconds / rate,
            "share_of_copy": 8.0 * size**2 / seconds / bandwidth,
        }


def _gram(matrix: torch.Tensor, rate: float) -> Found:
    """A tile of QᵀQ: at once, and summed over slabs of rows; and of QQᵀ, whose rows are cut."""
    size, device = len(matrix), matrix.device
    tile = matrix[:, : min(_TILE, size)].clone()
    tall = matrix[: len(tile.T)].T.contiguous()

    def in_slabs() -> torch.Tensor:
        first, *others = slabs(len(matrix), matrix.stride(0))
        total = matrix[first].T @ tile[first]
        for rows in others:
            total.addmm_(matrix[rows].T, tile[rows])
        return total

    def by_rows() -> torch.Tensor:
        total = torch.empty(size, tall.shape[1], device=device)
        for rows in slabs(len(matrix), matrix.stride(0)):
            torch.mm(matrix[rows], tall, out=total[rows])
        return total

    ways: Sequence[tuple[str, Callable[[], torch.Tensor], torch.Tensor]] = (
        ("gram, a tile", lambda: matrix.T @ tile, tile),
        (_IN_SLABS, in_slabs, tile),
        ("rows, a tile in slabs", by_rows, tall),
    )
    for name, work, factor in ways:
        product = work()
        error = 0.0
        for i, j in ((0, 0), (size - 1, factor.shape[1] - 1), (size // 2, 3)):
            a = (matrix[i] if "rows" in name else matrix[:, i]).double()
            b = factor[:, j].double()
            error = max(error, float((product[i, j].double() - a @ b).abs() / a.norm() / b.norm()))
        del product
        seconds = best(work, device, 2)
        operations = 2.0 * size**2 * factor.shape[1]
        # QᵀQ is symmetric, so half of its tiles suffice.
        yield {
            "op": name,
            "error": error,
            "seconds": seconds,
            "share_of_product": operations / seconds / rate,
            "seconds_of_half_extrapolated": seconds * size / factor.shape[1] / 2,
        }
