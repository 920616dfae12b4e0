"""Long stages that store one unit while they compute the next, beside stages that do one after the other.

`python -m benchmarks.overlap` times whole stages both ways, from an empty directory to the manifest. *Serial* waits for
every commit before it goes on. `balanced` computes matrix products for about as long as its 64 MB per unit take to
store; `storing` computes nothing; `small` has many units of a few hundred bytes, which gain nothing and must lose
nothing; `eigenbasis` is the streamed one of a random matrix, as in `benchmarks.eigenbasis`. The two ways run in turn,
one first and then the other, so that what else runs on the machine reaches both; the median of each counts, and their
manifests must be equal. It prints a table, then one line of JSON.
"""

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Generator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.eigenbasis import MatrixTask
from benchmarks.setting import THREADS, benchmark, machine, option, prepare, timed
from quadscape.numerics import apply_numerics, current_threads
from quadscape.stage import run as stage_run
from quadscape.stage.committing import Committing
from quadscape.stage.protocol import Arrays, Needs, StageStore
from quadscape.store import ArraySpec

_PRODUCT = 1024
FILE_ROWS = 1024
"""Of a file; an array of the larger stages has 16 in a column."""


class Serial(Committing):
    """Nothing is computed while a unit is stored."""

    def hand_over(self, work: Callable[[], None], arrays: Collection[str] = ()) -> None:
        """Has it done, and waits."""
        super().hand_over(work, arrays)
        self.finish()


class Synthetic:
    """Units of one array each, and of some products of matrices.

    Attributes:
        name: Name of the stage.
        version: Of its mathematics.
    """

    name, version = "synthetic", 1

    def __init__(self, units: int, columns: int, products: int) -> None:
        self._units, self._columns, self._products = units, columns, products
        self._factor = np.random.default_rng(0).standard_normal((_PRODUCT, _PRODUCT)).astype(np.float32)

    def parameters(self) -> dict[str, Any]:
        """What determines the result."""
        return {"units": self._units, "columns": self._columns}

    def plan(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """Columns by unit, in files as a stored matrix has them."""
        rows = FILE_ROWS if self._columns > 1 else 1
        return [
            ArraySpec("values", (rows * 16, self._units * self._columns), "float32", ("a", "b"), (rows, self._columns))
        ]

    def units(self, plan: dict[str, Any]) -> int:
        """As given."""
        return self._units

    def estimate(self, plan: dict[str, Any]) -> Needs:
        """Not asked for."""
        return Needs(1, 1)

    def start(self, plan: dict[str, Any]) -> None:
        """Sets threads."""
        apply_numerics(current_threads())

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """Products, and numbers that do not depend on them."""
        for _ in range(self._products):
            _ = self._factor @ self._factor
        (spec,) = self.arrays(plan)
        values = np.full((spec.shape[0], self._columns), unit + 1, dtype=np.float32)
        return {"values": ((slice(0, len(values)), slice(unit * self._columns, (unit + 1) * self._columns)), values)}

    def smaller(self, plan: dict[str, Any]) -> None:
        """Nothing is."""

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """None."""
        return {}


@contextlib.contextmanager
def storing(kind: type[Committing]) -> Generator[None, None, None]:
    """Has stages commit in one of the two ways."""
    before = stage_run.Committing
    stage_run.Committing = kind  # type: ignore[misc]
    try:
        yield
    finally:
        stage_run.Committing = before  # type: ignore[misc]


def whole(make: Callable[[], Any], folder: Path, kind: type[Committing]) -> tuple[float, bytes]:
    """Runs a stage from nothing.

    Args:
        make: Its task.
        folder: Its directory, which is removed.
        kind: The way.

    Returns:
        Seconds, and the manifest.
    """
    task = make()
    try:
        with storing(kind):
            seconds, _ = timed(lambda: stage_run.run_stage(task, folder, log=lambda _: None))
        return seconds, (folder / "manifest.json").read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def products_of_a_commit(folder: Path) -> int:
    """How many products take as long as a unit of 64 MB takes to store."""
    seconds = median(whole(lambda: Synthetic(4, 1024, 0), folder, Serial)[0] for _ in range(3)) / 4
    factor = np.ones((_PRODUCT, _PRODUCT), np.float32)
    one = median(timed(lambda: factor @ factor)[0] for _ in range(5))
    return max(1, round(seconds / one))


@benchmark(
    __doc__,
    THREADS,
    option("--repeats", type=int, default=5),
    option("--n", type=int, default=6000, help="size of the random matrix; 0: without it"),
    option("--folder", type=Path, help="where the stages are made (default: a temporary folder)"),
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times all stages both ways."""
    prepare(arguments.threads)
    threads = current_threads()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        folder, path = Path(root) / "stage", Path(root) / "matrix"
        products = products_of_a_commit(folder)
        stages: dict[str, Callable[[], Any]] = {
            "balanced": lambda: Synthetic(8, 1024, products),
            "storing": lambda: Synthetic(8, 1024, 0),
            "small": lambda: Synthetic(40, 1, 0),
        }
        if arguments.n:
            rows = np.random.default_rng(1).standard_normal((arguments.n, arguments.n), dtype=np.float32)
            (rows + rows.T).tofile(path)
            stages["eigenbasis"] = lambda: MatrixTask(path, arguments.n, "float32", threads)
        found: dict[str, Any] = {}
        print(f"{'stage':<12}{'serial s':>10}{'overlapping s':>15}{'ratio':>8}")
        for name, make in stages.items():
            times: dict[str, list[float]] = {"serial": [], "overlapping": []}
            manifests = set()
            for repeat in range(arguments.repeats):
                ways = [("serial", Serial), ("overlapping", Committing)]
                for way, kind in ways if repeat % 2 == 0 else ways[::-1]:
                    seconds, manifest = whole(make, folder, kind)
                    times[way].append(round(seconds, 3))
                    manifests.add(manifest)
            assert len(manifests) == 1, f"{name}: the two ways differ"
            serial, overlapping = (median(times[way]) for way in ("serial", "overlapping"))
            ratios = [a / b for a, b in zip(times["serial"], times["overlapping"], strict=True)]
            found[name] = {**times, "ratio": round(median(ratios), 3)}
            print(f"{name:<12}{serial:>10.2f}{overlapping:>15.2f}{median(ratios):>8.2f}")
    return {"benchmark": "overlap", **machine(), "n": arguments.n, "products": products, "stages": found}


if __name__ == "__main__":
    main()
