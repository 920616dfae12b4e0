"""The streamed eigenbasis on one GPU at full size, a part per command of less than ten minutes.

    python -m benchmarks.gpu_eigenbasis --stage reduction    # panels along the whole matrix; their sum extrapolated
    python -m benchmarks.gpu_eigenbasis --stage reduction --whole --seconds 540    # all panels, checked
    python -m benchmarks.gpu_eigenbasis --stage vectors      # divide and conquer; ranges, their sum extrapolated
    python -m benchmarks.gpu_eigenbasis --stage library      # the largest size at which torch.linalg.eigh is right

Each prints a table, then one line of JSON. The matrix is made on the device, of random numbers; rates do not depend on
them, and where all panels are reduced, products with the matrix and with what became of it are compared. Needs torch,
numpy, pydantic and pyyaml only (a CPU also SciPy and threadpoolctl).
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.setting import DEVICE, benchmark, gemm_rate, machine, option, timed
from quadscape.curvature.divide_and_conquer import Tree, merge_level, solve_leaves
from quadscape.curvature.large_products import matrix_vector, square
from quadscape.curvature.solver_plan import depth, leaf_of, streamed_plan
from quadscape.curvature.symmetric_product import checked_product
from quadscape.curvature.tridiagonal_reduction import Reflectors, panels, reduce_panel
from quadscape.numerics import apply_numerics, current_threads, resolve_device

_SAMPLES = 9
_STRIP = 512
_TILE_BYTES = 256 << 20
_WRONG = 1e-3


def fill(matrix: torch.Tensor) -> None:
    """Writes a symmetric matrix of independent normal numbers, a strip at a time, always the same."""
    size = len(matrix)
    for start in range(0, size, _STRIP):
        stop = min(size, start + _STRIP)
        generator = torch.Generator(matrix.device).manual_seed(start)
        matrix[start:stop, start:].normal_(generator=generator)
        matrix[start:stop, start:stop] = (
            matrix[start:stop, start:stop].triu() + matrix[start:stop, start:stop].triu(1).T
        )
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T


def stream_rate(device: torch.device, size: int) -> float:
    """Bytes per second that a product of a float32 matrix with a vector reads: the best of several."""
    matrix, vector = torch.ones(size, size, device=device), torch.ones(size, device=device)
    return 4.0 * size**2 / min(timed(lambda: matrix @ vector, device)[0] for _ in range(6))


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None


def reduction(size: int, device: torch.device, whole: bool, limit: float) -> dict[str, Any]:
    """Panels along the matrix, or all of them.

    Args:
        size: n.
        device: Where.
        whole: Whether to reduce everything and check it.
        limit: Seconds after which no further panel is begun.

    Returns:
        Seconds, rates and memory.
    """
    engine = "torch" if device.type == "cuda" else "lapack"
    matrix = square(size, torch.float32, device)
    filling, _ = timed(lambda: fill(matrix), device)
    vector = torch.ones(size, device=device)
    before = matrix_vector(matrix, vector)
    product = checked_product(matrix)
    # What the product reads of the trailing square.
    share = 4.0 if engine == "torch" and product is matrix_vector else 2.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    everything = panels(0, size)
    chosen = (
        everything
        if whole
        else [everything[i] for i in np.unique(np.linspace(0, len(everything) - 1, _SAMPLES, dtype=int))]
    )
    reduce_panel(matrix, *everything[0], engine, product)  # warms up
    if whole:
        fill(matrix)
    seconds, found = [], []
    began = time.perf_counter()
    for start, stop in chosen:
        if time.perf_counter() - began > limit:
            break
        took, panel = timed(lambda start=start, stop=stop: reduce_panel(matrix, start, stop, engine, product), device)  # type: ignore[misc]
        seconds.append(took)
        found.append((panel.diagonal, panel.off_diagonal, panel.tau))
    chosen = chosen[: len(seconds)]
    # Over panels whose size and so whose time is a smooth function of where they begin.
    starts = [start for start, _ in chosen]
    total = (
        sum(seconds)
        if whole and len(chosen) == len(everything)
        else float(np.sum(np.interp([start for start, _ in everything], starts, seconds)))
    )
    # The trailing square or its triangle once per column, and read and written once per panel.
    bytes_read = sum(share * (size - start) ** 2 * (stop - start) for start, stop in everything)
    bytes_updated = sum(8.0 * (size - stop) ** 2 for _, stop in everything)
    print(f"{'first column':>13s} {'seconds':>9s} {'GB/s':>8s}")
    for number in np.unique(np.linspace(0, len(chosen) - 1, _SAMPLES, dtype=int)):
        start, stop = chosen[number]
        moved = share * (size - start) ** 2 * (stop - start) + 8.0 * (size - stop) ** 2
        print(f"{start:13,d} {seconds[number]:9.4f} {moved / seconds[number] / 1e9:8.0f}")
    result = {
        "seconds_filling": filling,
        "panels_measured": len(chosen),
        "panels": len(everything),
        "seconds_measured": sum(seconds),
        "seconds": total,
        "extrapolated": len(chosen) < len(everything),
        "gb_per_second": (bytes_read + bytes_updated) / total / 1e9,
        "triangle": engine == "lapack" or product is not matrix_vector,
        "memory_bytes": _peak(device),
    }
    if len(chosen) == len(everything):
        result["error"] = _similarity_error(matrix, found, before, vector)
    return result


def _similarity_error(matrix: torch.Tensor, found: list[Any], before: torch.Tensor, vector: torch.Tensor) -> float:
    """‖Q₁TQ₁ᵀx − Ax‖ / ‖Ax‖, by reflecting one vector there and back; float32."""
    diagonal, off_diagonal, tau = (
        torch.from_numpy(np.concatenate([panel[i] for panel in found])).to(matrix.device) for i in range(3)
    )
    x = vector.clone()

    def reflect(columns: Sequence[int]) -> None:
        for column in columns:
            v = matrix[column, column + 1 :]
            x[column + 1 :] -= tau[column] * (v @ x[column + 1 :]) * v

    order = range(len(matrix) - 1)
    reflect(order)
    product = diagonal * x
    product[:-1] += off_diagonal[:-1] * x[1:]
    product[1:] += off_diagonal[:-1] * x[:-1]
    x = product
    reflect(order[::-1])
    return float((x - before).norm() / before.norm())


def vectors(size: int, device: torch.device, limit: float) -> dict[str, Any]:
    """Divide and conquer of a tridiagonal matrix, and ranges of its vectors, transformed back by random reflectors.

    Args:
        size: n.
        device: Where.
        limit: Seconds after which no further range is begun.

    Returns:
        Seconds by part, errors of the vectors measured, and memory.
    """
    chance = np.random.default_rng(0)
    diagonal, off_diagonal = chance.standard_normal(size), chance.standard_normal(size - 1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    leaf = leaf_of(streamed_plan(size, "float32", device.type))
    leaves_seconds, (level, leaves) = timed(lambda: solve_leaves(diagonal, off_diagonal, device, leaf))
    levels, merging = [level], []
    print(f"leaves {leaves_seconds:9.2f} s")
    for number in range(1, depth(size, leaf) + 1):
        took, level = timed(
            lambda number=number: merge_level(number, levels[-1], diagonal, off_diagonal, device, _TILE_BYTES, leaf),  # type: ignore[misc]
            device,
        )
        merging.append(took)
        levels.append(level)
        print(f"level {number:2d} {took:8.2f} s")
    tree = Tree(diagonal, off_diagonal, levels, leaves, device, _TILE_BYTES, leaf)
    reflectors = Reflectors(size)
    generator = torch.Generator(device).manual_seed(0)
    for start in range(0, size, _STRIP):
        rows = torch.randn(min(size, start + _STRIP) - start, size - start, device=device, generator=generator)
        rows *= (2.0 / max(1, size - start)) ** 0.5  # so that τ is about 1
        reflectors.add(rows, np.ones(len(rows)), start)
    block = max(16, min(1024, size // 25))
    seconds: list[tuple[float, float]] = []
    residual = orthogonality = 0.0
    began = time.perf_counter()
    starts = np.unique(np.linspace(0, size - block, 6, dtype=int)) if size > block else np.array([0])
    for start in starts:
        if seconds and time.perf_counter() - began > limit:
            break
        stop = min(size, int(start) + block)
        divide, found = timed(lambda start=int(start), stop=stop: tree.vectors(start, stop), device)  # type: ignore[misc]
        values = torch.tensor(tree.eigenvalues[start:stop], device=device)
        d, e = (torch.tensor(part, device=device)[:, None] for part in (diagonal, off_diagonal))
        image = d * found
        image[:-1] += e * found[1:]
        image[1:] += e * found[:-1]
        residual = max(residual, float((image - found * values).norm(dim=0).max() / np.abs(tree.eigenvalues).max()))
        gram = found.T @ found
        orthogonality = max(orthogonality, float((gram - torch.eye(len(gram), device=device)).abs().max()))
        columns = found.float()
        del found, image
        back, _ = timed(lambda columns=columns: reflectors.apply(columns), device)  # type: ignore[misc]
        seconds.append((divide, back))
        print(f"vectors {start:8,d} … {stop:8,d}: divide and conquer {divide:7.3f} s, reflectors {back:7.3f} s")
    ranges = -(-size // block)
    divide, back = (float(np.mean([pair[i] for pair in seconds])) * ranges for i in range(2))
    return {
        "seconds_leaves": leaves_seconds,
        "seconds_levels": merging,
        "ranges_measured": len(seconds),
        "ranges": ranges,
        "block": block,
        "seconds_divide_extrapolated": divide,
        "seconds_reflectors_extrapolated": back,
        "float64_tflops": 2.0 * size**3 / divide / 1e12,
        "float32_tflops": 2.0 * size**3 / back / 1e12,
        "residual": residual,
        "orthogonality": orthogonality,
        "memory_bytes": _peak(device),
    }


def library(sizes: Sequence[int], device: torch.device, limit: float) -> dict[str, Any]:
    """`torch.linalg.eigh` at growing sizes, until it fails or is wrong.

    Args:
        sizes: n, increasing.
        device: Where.
        limit: Seconds after which no further size is begun.

    Returns:
        What was found at each size, and the largest that was right.
    """
    rows: list[dict[str, Any]] = []
    largest = None
    began = time.perf_counter()
    print(f"{'n':>8s} {'seconds':>9s} {'residual':>9s} {'orthog.':>9s} {'GB':>7s}")
    for size in sizes:
        if time.perf_counter() - began > limit:
            break
        row: dict[str, Any] = {"n": size}
        rows.append(row)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            matrix = torch.empty(size, size, device=device)
            fill(matrix)
            row["seconds"], (values, q) = timed(lambda matrix=matrix: torch.linalg.eigh(matrix), device)  # type: ignore[misc]
        except (RuntimeError, torch.OutOfMemoryError) as error:
            row["failed"] = str(error).splitlines()[0]
            print(f"{size:8,d} {row['failed']}")
            break
        sample = torch.linspace(0, size - 1, min(size, 256), device=device).long()
        some = q[:, sample]
        row["residual"] = float((matrix @ some - some * values[sample]).norm(dim=0).max() / values.abs().max())
        gram = q.T @ some
        gram[sample, torch.arange(len(sample), device=device)] -= 1
        row["orthogonality"] = float(gram.abs().max())
        row["memory_bytes"] = _peak(device)
        memory = (row["memory_bytes"] or 0) / 1e9
        print(f"{size:8,d} {row['seconds']:9.2f} {row['residual']:9.1e} {row['orthogonality']:9.1e} {memory:7.1f}")
        if not (row["residual"] < _WRONG and row["orthogonality"] < _WRONG):
            break
        largest = size
        del matrix, values, q, some, gram
    return {"sizes": rows, "largest_right": largest}


@benchmark(
    __doc__,
    option("--stage", choices=["reduction", "vectors", "library"], required=True),
    option("--n", type=int, default=104_234, help="size of the matrix (default: 104234)"),
    option("--sizes", type=int, nargs="+", help="of --stage library (default: 16384, then 4096 more each)"),
    option("--whole", action="store_true", help="all panels of --stage reduction, and a check"),
    option("--seconds", type=float, default=400.0, help="time limit of the measurements (default: 400)"),
    DEVICE,
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs one part."""
    device = resolve_device(arguments.device)
    apply_numerics(current_threads())
    large = device.type == "cuda"
    rates = {
        "gemm_float32_tflops": gemm_rate(device, 8192 if large else 1024) / 1e12,
        "gemm_float64_tflops": gemm_rate(device, 8192 if large else 1024, torch.float64) / 1e12,
        "stream_gb_per_second": stream_rate(device, 32_768 if large else 4096) / 1e9,
    }
    sizes = arguments.sizes or list(range(16_384, arguments.n + 4096, 4096))
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "reduction": lambda: reduction(arguments.n, device, arguments.whole, arguments.seconds),
        "vectors": lambda: vectors(arguments.n, device, arguments.seconds),
        "library": lambda: library(sizes, device, arguments.seconds),
    }
    measured = work[arguments.stage]()
    return {"stage": arguments.stage, "n": arguments.n, **measured, **rates, **machine(device)}


if __name__ == "__main__":
    main()
