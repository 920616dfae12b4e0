"""Tiled products with stored eigenbases: which share of a matrix product's rate they reach, reading included.

`python -m benchmarks.tiles --n 6000` writes two bases and a trajectory of 500 iterates to a temporary folder, laid out
as the stages lay them out, and times three products from there: QₐᵀQ_b, QᵀQ (one triangle), and the trajectory's
displacements times Q. It prints a table, then one line of JSON. The bases are reflections I − 2uuᵀ, dense and known, so
that every product has a closed form: `error` is the largest deviation of sampled entries from it. `read_gb` counts what
was read; the files were just written, so that they come from the page cache where memory suffices. `share` is of the
rate of one large product of the same dtype, measured in the same run.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.setting import THREADS, benchmark, gemm_rate, machine, option, prepare, timed
from quadscape.curvature.eigensolver import basis_specs
from quadscape.curvature.projections import Tile, displacements, overlap_tiles, project
from quadscape.curvature.stored_basis import StoredBasis
from quadscape.stage.protocol import StageStore
from quadscape.store import ArraySpec, write_store

_FILE_COLUMNS = 1024
_SAMPLES = 8


class CountedBasis(StoredBasis):
    """A stored basis that counts what is read of it.

    Attributes:
        bytes_read: So far.
    """

    def __init__(self, folder: Path, unit: np.ndarray) -> None:
        super().__init__(StageStore(folder))
        self.unit = unit
        self.bytes_read = 0

    def vectors(self, start: int, stop: int) -> np.ndarray:
        """Eigenvectors start … stop − 1."""
        found = super().vectors(start, stop)
        self.bytes_read += found.nbytes
        return found


def written_basis(folder: Path, size: int, seed: int, dtype: str = "float32") -> CountedBasis:
    """Writes I − 2uuᵀ, with u a random unit vector.

    Args:
        folder: Where to.
        size: n.
        seed: Of u.
        dtype: Of the vectors.

    Returns:
        The basis as it is read from there; its `unit` is u.
    """
    unit = np.random.default_rng(seed).standard_normal(size)
    unit /= np.linalg.norm(unit)
    block = min(_FILE_COLUMNS, -(-size // 16) * 16)
    values, vectors = basis_specs(size, dtype, block)
    matrix = np.multiply.outer(-2 * unit.astype(dtype), unit.astype(dtype))
    matrix[np.diag_indices(size)] += 1
    write_store(folder / "store.zarr", [(values, np.zeros(size)), (vectors, matrix)], {})
    return CountedBasis(folder, unit)


def written_trajectory(folder: Path, rows: int, size: int) -> tuple[Callable[[slice], np.ndarray], np.ndarray]:
    """Writes θ_t = θ₀ + t·w, float64, one iterate a chunk, with w a random vector of length 10⁻³ or so.

    Args:
        folder: Where to.
        rows: Number of iterates.
        size: n.

    Returns:
        What reads iterates, and w.
    """
    start, step = np.random.default_rng(0).standard_normal((2, size))
    step *= 1e-3 / np.sqrt(size)
    spec = ArraySpec("theta", (rows, size), "float64", ("iteration", "parameter"), (1, size), (rows, size))
    write_store(folder / "store.zarr", [(spec, start + np.arange(rows)[:, None] * step)], {})
    store = StageStore(folder)
    return lambda iterations: store.read("theta", iterations), step


@dataclass
class Sampled:
    """A few entries of every tile, kept while a product is timed.

    Attributes:
        rows: Their rows.
        columns: Their columns.
        values: Themselves.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, tiles: Iterator[Tile]) -> "Sampled":
        """Goes through all tiles."""
        found = []
        for tile in tiles:
            i, j = (np.linspace(0, length - 1, _SAMPLES).astype(int) for length in tile.values.shape)
            found.append((i + tile.rows.start, j + tile.columns.start, tile.values[i, j].double().cpu().numpy()))
        return cls(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


@benchmark(
    __doc__,
    option("--n", type=int, default=6000, help="size of the bases (default: 6000)"),
    option("--rows", type=int, default=500, help="iterates of the trajectory (default: 500)"),
    option("--memory", type=int, help="MiB that tiles may take (default: the library's)"),
    option("--device", default="cpu", help="cpu (default) or cuda"),
    THREADS,
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark."""
    prepare(arguments.threads)
    n, rows = arguments.n, arguments.rows
    options = {"memory": arguments.memory and arguments.memory << 20, "device": arguments.device}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, second = (written_basis(folder / str(seed), n, seed) for seed in (1, 2))
        theta, step = written_trajectory(folder / "trajectory", rows, n)
        read = displacements(theta, np.arange(rows), theta(slice(0, 1))[0])
        u, v = first.unit, second.unit
        along = step - 2 * (step @ u) * u

        def overlap(i: np.ndarray, j: np.ndarray) -> np.ndarray:
            return (i == j) - 2 * u[i] * u[j] - 2 * v[i] * v[j] + 4 * (u @ v) * u[i] * v[j]

        # Tiles, their closed form, operations, and dtype.
        work: dict[str, tuple[Callable[[], Iterator[Tile]], Callable[..., np.ndarray], float, torch.dtype]] = {
            "overlap": (lambda: overlap_tiles(first, second, **options), overlap, 2.0 * n**3, torch.float32),
            "gram": (
                lambda: overlap_tiles(first, **options),
                lambda i, j: 1.0 * (i == j),
                float(n) ** 3,
                torch.float32,
            ),
            "trajectory": (
                lambda: project(read, rows, first, **options),
                lambda i, j: i * along[j],
                2.0 * rows * n**2,
                torch.float64,
            ),
        }
        rates = {dtype: gemm_rate(arguments.device, dtype=dtype) for dtype in (torch.float32, torch.float64)}
        products: dict[str, dict[str, Any]] = {}
        for name, (tiles, exact, operations, dtype) in work.items():
            first.bytes_read = second.bytes_read = 0
            seconds, sampled = timed(lambda tiles=tiles: Sampled.of(tiles()), arguments.device)  # type: ignore[misc]
            expected = exact(sampled.rows, sampled.columns)
            products[name] = {
                "dtype": str(dtype).removeprefix("torch."),
                "seconds": seconds,
                "gflops": operations / seconds / 1e9,
                "share": operations / seconds / rates[dtype],
                "read_gb": (first.bytes_read + second.bytes_read) / 1e9,
                "error": float(np.abs(sampled.values - expected).max()),
            }
    print(f"{'':12s} {'dtype':>8s} {'seconds':>9s} {'GFLOP/s':>9s} {'share':>7s} {'GB read':>8s} {'error':>8s}")
    for name, row in products.items():
        print(
            f"{name:12s} {row['dtype']:>8s} {row['seconds']:9.3f} {row['gflops']:9.1f} {row['share']:7.2f} "
            f"{row['read_gb']:8.3f} {row['error']:8.1e}"
        )
    return {
        "n": n,
        "rows": rows,
        "memory_mib": arguments.memory,
        "gemm_gflops": {str(dtype).removeprefix("torch."): rate / 1e9 for dtype, rate in rates.items()},
        "products": products,
        **machine(arguments.device),
    }


if __name__ == "__main__":
    main()
