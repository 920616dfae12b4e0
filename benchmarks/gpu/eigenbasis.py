"""The streamed eigenbasis: reduction to tridiagonal form, divide and conquer, back-transformation, and the library.

Matrices are made on the device, of random numbers; rates do not depend on them. Where all panels are reduced, products
with the matrix and with what became of it are compared. The tridiagonal matrix is that of a Gaussian ensemble
(Dumitriu and Edelman 2002): of one of independent entries nearly all eigenvalues would deflate, and hardly anything
would be left to do.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.matrices import fill, peak
from benchmarks.gpu.runner import Found
from benchmarks.setting import prepare, timed
from quadscape.curvature.divide_and_conquer import Tree, merge_level, solve_leaves
from quadscape.curvature.large_products import matrix_vector, square
from quadscape.curvature.solver_plan import PANEL, depth, leaf_of, streamed_plan
from quadscape.curvature.symmetric_product import checked_product
from quadscape.curvature.tridiagonal_reduction import Engine, Reflectors, panels, reduce_panel
from quadscape.numerics import resolve_device

_SAMPLES = 9
_STRIP = 512
_TILE_BYTES = 256 << 20
_WRONG = 1e-3
_COUPLED = 5
"""Field of a level that tells which roots are coupled; see `quadscape.curvature.solver_plan.FIELDS`."""


def reduction_part(arguments: argparse.Namespace, size: int, seconds: float, *, whole: bool) -> Found:
    """Panels along the matrix, or all of them.

    Args:
        arguments: Of the command.
        size: n.
        seconds: After which no further panel is begun.
        whole: Whether to reduce everything and check it.

    Yields:
        Panels that stand for all, then the sum.
    """
    device = resolve_device(arguments.device)
    prepare()
    engine: Engine = "torch" if device.type == "cuda" else "lapack"
    matrix = square(size, torch.float32, device)
    fill(matrix)
    vector = torch.ones(size, device=device)
    before = matrix_vector(matrix, vector)
    product = checked_product(matrix)
    triangle = engine == "lapack" or product is not matrix_vector
    corner = matrix[max(0, size - 1024) :, max(0, size - 1024) :].clone()
    reduce_panel(corner, 0, min(PANEL, len(corner)), engine, product)  # warms up
    everything = panels(0, size)
    shown = set(np.unique(np.linspace(0, len(everything) - 1, _SAMPLES, dtype=int)).tolist())
    took: dict[int, float] = {}
    found = []
    began = time.perf_counter()
    for number in range(len(everything)) if whole else sorted(shown):
        if took and time.perf_counter() - began > seconds:
            break
        start, stop = everything[number]
        took[number], panel = timed(lambda a=start, b=stop: reduce_panel(matrix, a, b, engine, product), device)  # type: ignore[misc]
        found.append((panel.diagonal, panel.off_diagonal, panel.tau))
        if number in shown:
            rate = _moved(size, start, stop, triangle) / took[number]
            yield {"panel_at": start, "seconds": took[number], "gb_per_second": rate / 1e9}
    # The rate of a panel is a smooth function of where it begins.
    moved = np.array([_moved(size, start, stop, triangle) for start, stop in everything])
    known = sorted(took)
    rates = np.interp(range(len(everything)), known, [moved[k] / took[k] for k in known])
    total = float(np.sum(moved / rates))
    done = len(took) == len(everything)
    result = {
        "stage": "eigenbasis",
        "step": "reduction" if size == arguments.n else f"reduction of {size}",
        "n": size,
        "triangle": triangle,
        "panels": len(everything),
        "panels_measured": len(took),
        "seconds": total,
        "measured_share": sum(took.values()) / total,
        "gb_per_second": float(moved.sum()) / total / 1e9,
        "memory_bytes": peak(device),
    }
    if done and whole:
        result["error"] = similarity_error(matrix, found, before, vector)
    yield result


def _moved(size: int, start: int, stop: int, triangle: bool) -> float:
    """Bytes of a panel: the trailing square (its triangle, by LAPACK) once per column, and read and written once."""
    each = 2.0 if triangle else 4.0
    return each * (size - start) ** 2 * (stop - start) + 8.0 * (size - stop) ** 2


def similarity_error(matrix: torch.Tensor, found: list[Any], before: torch.Tensor, vector: torch.Tensor) -> float:
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


def tridiagonal(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal √2·N(0, 1), and χ with n − 1, n − 2 … 1 degrees of freedom beside it: what a Gaussian matrix becomes."""
    chance = np.random.default_rng(0)
    return chance.standard_normal(size) * 2**0.5, np.sqrt(chance.chisquare(np.arange(size - 1, 0, -1)))


def vectors_part(arguments: argparse.Namespace, seconds: float) -> Found:
    """Divide and conquer at size `--n`, and ranges of its vectors, transformed back by random reflectors.

    Args:
        arguments: Of the command.
        seconds: After which no further range is begun.

    Yields:
        Levels, ranges, and the sums.
    """
    device, size = resolve_device(arguments.device), arguments.n
    prepare()
    began = time.perf_counter()
    diagonal, off_diagonal = tridiagonal(size)
    leaf = leaf_of(streamed_plan(size, "float32", device.type))
    took, (level, leaves) = timed(lambda: solve_leaves(diagonal, off_diagonal, device, leaf), device)
    yield {"op": "leaves", "seconds": took}
    levels, dividing = [level], took
    for number in range(1, depth(size, leaf) + 1):
        took, level = timed(
            lambda number=number: merge_level(number, levels[-1], diagonal, off_diagonal, device, _TILE_BYTES, leaf),  # type: ignore[misc]
            device,
        )
        dividing += took
        levels.append(level)
        yield {"op": "level", "level": number, "seconds": took, "coupled": int((level[_COUPLED] >= 0).sum())}
    yield {"stage": "eigenbasis", "step": "divide and conquer", "seconds": dividing, "measured_share": 1.0}
    tree = Tree(diagonal, off_diagonal, levels, leaves, device, _TILE_BYTES, leaf)
    yield from _ranges(tree, (diagonal, off_diagonal), device, began + seconds)


def _ranges(tree: Tree, entries: tuple[np.ndarray, np.ndarray], device: torch.device, until: float) -> Found:
    """Ranges of vectors in the middle and along the spectrum, each checked and transformed back."""
    size = tree.size
    reflectors = _random_reflectors(size, device)
    block = max(16, min(1280, size // 25))
    ranges = -(-size // block)
    starts = np.unique(np.linspace(0, size - block, 5, dtype=int))
    took: list[tuple[float, float]] = []
    for start in sorted(starts.tolist(), key=lambda one: abs(one - size // 2)):
        if took and time.perf_counter() > until:
            break
        divide, found = timed(lambda a=start: tree.vectors(a, min(size, a + block)), device)  # type: ignore[misc]
        residual, orthogonality = _errors(tree, entries, found, start)
        columns = found.float()
        del found
        back, _ = timed(lambda columns=columns: reflectors.apply(columns), device)  # type: ignore[misc]
        took.append((divide, back))
        yield {
            "op": "range",
            "first": start,
            "vectors": block,
            "seconds_vectors": divide,
            "seconds_back": back,
            "residual": residual,
            "orthogonality": orthogonality,
            "tflops_float64": 2.0 * size**2 * block / divide / 1e12,
            "tflops_float32": 2.0 * size**2 * block / back / 1e12,
        }
    for place, step in enumerate(("vectors", "back-transformation")):
        each = float(np.mean([pair[place] for pair in took]))
        yield {
            "stage": "eigenbasis",
            "step": step,
            "ranges": ranges,
            "ranges_measured": len(took),
            "seconds": each * ranges,
            "measured_share": min(1.0, len(took) / ranges),
            "memory_bytes": peak(device),
        }


def _random_reflectors(size: int, device: torch.device) -> Reflectors:
    reflectors = Reflectors(size)
    generator = torch.Generator(device).manual_seed(0)
    for start in range(0, size, _STRIP):
        rows = torch.randn(min(size, start + _STRIP) - start, size - start, device=device, generator=generator)
        rows *= (2.0 / max(1, size - start)) ** 0.5  # so that τ is about 1
        reflectors.add(rows, np.ones(len(rows)), start)
    return reflectors


def _errors(tree: Tree, entries: tuple[np.ndarray, np.ndarray], found: torch.Tensor, start: int) -> tuple[float, float]:
    """Largest |Tq − λq| over |λ|, and of entries of |QᵀQ − I|, in a range."""
    values = torch.tensor(tree.eigenvalues[start : start + found.shape[1]], device=found.device)
    d, e = (torch.tensor(part, device=found.device)[:, None] for part in entries)
    image = d * found
    image[:-1] += e * found[1:]
    image[1:] += e * found[:-1]
    residual = float((image - found * values).norm(dim=0).max() / np.abs(tree.eigenvalues).max())
    gram = found.T @ found
    gram.diagonal().sub_(1)
    return residual, float(gram.abs().max())


def library_part(arguments: argparse.Namespace, seconds: float, sizes: Sequence[int]) -> Found:
    """`torch.linalg.eigh` at growing sizes, until it fails or is wrong.

    Args:
        arguments: Of the command.
        seconds: After which no further size is begun.
        sizes: n, increasing.

    Yields:
        What was found at each size, and the largest that was right.
    """
    device = resolve_device(arguments.device)
    prepare()
    largest, began = None, time.perf_counter()
    for size in sizes:
        if largest and time.perf_counter() - began > seconds:
            break
        row: dict[str, Any] = {"n": size}
        matrix = torch.empty(size, size, device=device)
        fill(matrix)
        try:
            row["seconds"], (values, q) = timed(lambda matrix=matrix: torch.linalg.eigh(matrix), device)  # type: ignore[misc]
        except RuntimeError as error:
            # What the library cannot do is what is asked for here, and no failure of the part.
            yield row | {"refused": str(error).splitlines()[0]}
            break
        sample = torch.linspace(0, size - 1, min(size, 256), device=device).long()
        some = q[:, sample]
        row["residual"] = float((matrix @ some - some * values[sample]).norm(dim=0).max() / values.abs().max())
        gram = q.T @ some
        gram[sample, torch.arange(len(sample), device=device)] -= 1
        row["orthogonality"] = float(gram.abs().max())
        yield row | {"memory_bytes": peak(device)}
        if not (row["residual"] < _WRONG and row["orthogonality"] < _WRONG):
            break
        largest = size
        del matrix, values, q, some, gram
    yield {"largest_right": largest}
