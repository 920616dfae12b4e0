"""Coordinates of a trajectory along an eigenbasis: which share of a matrix product's rate the pass over it reaches.

`python -m benchmarks.trajectory --n 6000` writes bases of float32 and float64 and a trajectory of 1,001 iterates to a
temporary folder, laid out as the stages lay them out, and times `quadscape.measures.fluctuations.coordinates`, the pass
of the measures `evolution` and `stationary`, from the least work to all of it: of iterates and a basis in memory, with
the basis read from its store, and with iterates read from theirs too, as the measures read them or one at a time.
*Product* is one product of the same two matrices in memory by torch. All are timed in turn, round after round, and the
least time of each counts, so that what else runs on the machine reaches all of them alike. `share` is of the rate of
one large product of float64, in which coordinates are computed, whose best is taken over the same rounds. On one thread
of a CPU seconds are those of the process, its reading thread included. `error` is the largest deviation from the closed
form, over the largest coordinate. It prints a table, then one line of JSON.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.lines import taken
from benchmarks.setting import THREADS, benchmark, machine, option, prepare
from benchmarks.tiles import CountedBasis, written_basis, written_trajectory
from quadscape.measures.fluctuations import coordinates
from quadscape.training.trajectory import read_in_pieces

DTYPES = ("float32", "float64")
"""Of the stored basis; coordinates are in float64 whatever it is."""


_PRODUCT = 2048
"""Size of the large product."""


def in_memory(basis: CountedBasis) -> SimpleNamespace:
    """The same basis as one array."""
    vectors = basis.vectors(0, basis.size)
    return SimpleNamespace(
        eigenvalues=basis.eigenvalues, vectors=lambda start, stop: vectors[:, start:stop], whole=vectors
    )


def passes(
    bases: tuple[CountedBasis, SimpleNamespace], theta: Callable[[slice], np.ndarray], rows: int, device: str
) -> dict[str, Callable[[], torch.Tensor]]:
    """What is timed of one basis, by name.

    Args:
        bases: As it is stored, and in memory.
        theta: Reads iterates.
        rows: How many there are.
        device: Where products are computed.

    Returns:
        Functions that give the coordinates, shape (rows, n).
    """
    stored, held = bases
    kept = theta(slice(0, rows))
    reference, n = kept[0].copy(), kept.shape[1]
    left = torch.from_numpy(kept - reference).to(device)
    right = torch.from_numpy(np.ascontiguousarray(held.whole)).to(device, torch.float64)

    def read() -> Iterator[np.ndarray]:
        return read_in_pieces(theta, 0, rows, n)

    def one_by_one() -> Iterator[np.ndarray]:
        return (theta(slice(row, row + 1))[0] for row in range(rows))

    def along(iterates: Callable[[], Any], basis: Any) -> torch.Tensor:
        return torch.from_numpy(coordinates(iterates(), rows, reference, basis, device=device))

    return {
        "product": lambda: left @ right,
        "in memory": partial(along, lambda: iter(kept), held),
        "stored basis": partial(along, lambda: iter(kept), stored),
        "all stored": partial(along, read, stored),
        "one by one": partial(along, one_by_one, stored),
    }


@benchmark(
    __doc__,
    option("--n", type=int, default=6000, help="size of the basis (default: 6000)"),
    option("--rows", type=int, default=1001, help="iterates (default: 1001)"),
    option("--rounds", type=int, default=5, help="rounds that count (default: 5)"),
    option("--device", default="cpu", help="cpu (default) or cuda"),
    THREADS,
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark."""
    prepare(arguments.threads)
    n, rows, device = arguments.n, arguments.rows, arguments.device
    seconds: dict[tuple[str, str], float] = {}
    errors: dict[tuple[str, str], float] = {}
    generator, peak = torch.Generator().manual_seed(0), 0.0
    large = torch.randn(_PRODUCT, _PRODUCT, generator=generator, dtype=torch.float64).to(device)
    with tempfile.TemporaryDirectory() as name:
        theta, step = written_trajectory(Path(name) / "trajectory", rows, n)
        work = {}
        for dtype in DTYPES:
            basis = written_basis(Path(name) / dtype, n, 1, dtype)
            exact = np.arange(rows)[:, None] * (step - 2 * (step @ basis.unit) * basis.unit)
            for kind, run in passes((basis, in_memory(basis)), theta, rows, device).items():
                work[dtype, kind] = (run, exact)
        for number in range(arguments.rounds + 1):
            peak = max(peak, *(2.0 * _PRODUCT**3 / taken(lambda: large @ large, device)[0] for _ in range(3)))
            for key, (run, exact) in work.items():
                took, found = taken(run, device)
                if number:  # the first round warms up
                    seconds[key] = min(seconds.get(key, took), took)
                else:
                    errors[key] = float(np.abs(found.cpu().numpy() - exact).max() / np.abs(exact).max())
    table = []
    print(f"{'basis':8s} {'pass':14s} {'seconds':>9s} {'GFLOP/s':>9s} {'share':>7s} {'error':>8s}")
    for key, took in seconds.items():
        rate = 2.0 * rows * n**2 / took
        table.append(
            {
                "basis": key[0],
                "pass": key[1],
                "seconds": took,
                "gflops": rate / 1e9,
                "share": rate / peak,
                "error": errors[key],
            }
        )
        print(f"{key[0]:8s} {key[1]:14s} {took:9.3f} {rate / 1e9:9.1f} {rate / peak:7.2f} {errors[key]:8.1e}")
    return {
        "benchmark": "trajectory",
        "n": n,
        "rows": rows,
        "rounds": arguments.rounds,
        "gemm_gflops": peak / 1e9,
        "passes": table,
        **machine(device),
    }


if __name__ == "__main__":
    main()
