"""How the time of a Hessian column grows: with P (networks), N (images), and K (columns per strip).

`python -m benchmarks.scaling` prints three tables, then one line of JSON. In each table one of the three varies. Strips
are sampled as in `benchmarks.hessian`.
"""

import argparse
from functools import cache, partial
from typing import Any

import torch

from benchmarks.setting import (
    NORM,
    THREADS,
    benchmark,
    machine,
    option,
    prepare,
    problem,
    random_data,
    sampled_strips,
    timed,
)
from quadscape.curvature.engine import HessianEngine
from quadscape.network.objective import Objective


def measure(objective: Objective, theta: torch.Tensor, block: int) -> dict[str, float]:
    """Milliseconds per column and rate over all columns, by one pass over sampled strips.

    Args:
        objective: L.
        theta: θ.
        block: Columns per strip.

    Returns:
        `parameters`, `images`, `block`, `ms_per_column`, `gflops`.
    """
    engine, strips = HessianEngine(objective, theta), sampled_strips(objective.layout, block)
    engine.columns(strips[-1].start, strips[-1].stop)  # warms up
    seconds = work = 0.0
    for strip in strips:
        share = strip.weight / (strip.stop - strip.start) / objective.size
        seconds += share * timed(partial(engine.columns, strip.start, strip.stop))[0]
        work += share * engine.flops(strip.start, strip.stop)
    return {
        "parameters": objective.size,
        "images": objective.count,
        "block": block,
        "ms_per_column": seconds * 1e3,
        "gflops": work / seconds / 1e9,
    }


@benchmark(
    __doc__,
    option("--widths", type=int, nargs="+", default=[1, 2]),
    option("--images", type=int, nargs="+", default=[64, 256], help="N; the first is used elsewhere"),
    option("--blocks", type=int, nargs="+", default=[16, 64, 256], help="K (default: 16 64 256)"),
    NORM,
    option("--pixels", type=int, default=32, help="height and width of an image (default: 32)"),
    THREADS,
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark."""
    prepare(arguments.threads)

    @cache  # the three series meet in one setting
    def one(width: int, images: int, block: int) -> dict[str, float]:
        data = random_data(images, (3, arguments.pixels, arguments.pixels))
        return measure(*problem(width, arguments.norm, torch.float32, data), block)

    width, images, block = arguments.widths[0], arguments.images[0], min(256, max(arguments.blocks))
    series = {
        "parameters": [one(w, images, block) for w in arguments.widths],
        "images": [one(width, n, block) for n in arguments.images],
        "block": [one(width, images, k) for k in arguments.blocks],
    }
    for key, rows in series.items():
        print(f"{key:>12s} {'ms per column':>14s} {'GFLOP/s':>9s}")
        for row in rows:
            print(f"{row[key]:12.0f} {row['ms_per_column']:14.3f} {row['gflops']:9.1f}")
    return {"norm": arguments.norm, "width": width, "images": images, "block": block, "series": series, **machine()}


if __name__ == "__main__":
    main()
