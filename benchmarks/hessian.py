"""Time per Hessian column of the reference network, beside other ways to compute columns, in one process.

`python -m benchmarks.hessian --width 2 --images 256 --norm batch` prints a table over layers, then one line of JSON.

Ours is timed as the `hessian` stage uses it: whole strips of its column block, sampled so that every tensor is covered
and weighted so that they stand for all columns. It computes the lower triangle, peers compute whole columns; a peer is
timed on every large tensor and weighted by its size. Every peer is tried in several settings, and the best counts.
`peers` are the ways in use: double backward over the flat gradient, forward over reverse, curvlinops. `baselines` are
our own refinements of the first, which skip what is known to be zero: stronger, but offered by nobody.
Warm-ups are left out. Ours comes first; nothing else runs beside. The error is that of the columns that were timed,
against double backward in float64.
"""

import argparse
import gc
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.peers import (
    PEERS,
    CompiledCurvlinops,
    Curvlinops,
    DoubleBackward,
    Measured,
    compiler_missing,
    measure,
    package_missing,
)
from benchmarks.setting import (
    BLOCK,
    THREADS,
    Strip,
    benchmark,
    gemm_rate,
    machine,
    network,
    option,
    prepare,
    problem,
    random_data,
    reference_columns,
    reference_sample,
    relative_error,
    sampled_strips,
    timed,
)
from quadscape.curvature.engine import HessianEngine
from quadscape.network.objective import Objective

_PASSES = 3
_OURS_SECONDS = 150.0
_PEER_SECONDS = 10.0
_REFERENCE_CHUNK = 64
_WRONG = 1e-3


def time_ours(
    engine: HessianEngine, strips: Sequence[Strip], kept: Sequence[int]
) -> tuple[list[float], list[torch.Tensor], int]:
    """Times all strips, in as many passes as time allows.

    Args:
        engine: Ours.
        strips: What to time.
        kept: Columns to keep.

    Returns:
        The best seconds of each strip, the kept columns from their own row on, and the number of passes.
    """
    columns: list[torch.Tensor] = []
    best = [float("inf")] * len(strips)
    engine.columns(strips[-1].start, strips[-1].stop)  # warms up
    spent = last = 0.0
    passes = 0
    while passes == 0 or (passes < _PASSES and spent + last < _OURS_SECONDS):
        last = 0.0
        for number, strip in enumerate(strips):
            seconds, result = timed(partial(engine.columns, strip.start, strip.stop))
            best[number] = min(best[number], seconds)
            last += seconds
            if passes == 0:
                own = [column for column in kept if strip.start <= column < strip.stop]
                columns += [result[column - strip.start :, column - strip.start].clone() for column in own]
        spent += last
        passes += 1
    return best, columns, passes


def time_peers(objective: Objective, theta: torch.Tensor, compiled: bool) -> tuple[dict[str, Measured], dict[str, str]]:
    """Times every peer.

    Args:
        objective: L, in float32, all examples in one chunk.
        theta: θ.
        compiled: Whether to compile.

    Returns:
        What each took, and why others were left out.

    Raises:
        RuntimeError: A peer's columns are wrong.
    """
    torch.use_deterministic_algorithms(False)  # what it costs is our choice
    found, skipped = {}, {}
    for kind in PEERS:
        reason = package_missing("curvlinops") if kind is Curvlinops else None
        if reason:
            skipped[kind.name] = skipped[CompiledCurvlinops.name] = reason
        else:
            found[kind.name] = measure(kind, objective, theta, _PEER_SECONDS)
        gc.collect()
    if Curvlinops.name in found:
        reason = compiler_missing() if compiled else "left out on request"
        if reason:
            skipped[CompiledCurvlinops.name] = reason
        else:
            block = found[Curvlinops.name].block
            found[CompiledCurvlinops.name] = measure(CompiledCurvlinops, objective, theta, _PEER_SECONDS, block=block)
    plain = DoubleBackward(objective, theta, False)
    for name, measured in found.items():
        truth = plain.columns(measured.tensor, measured.offsets)
        error = float((measured.columns - truth).norm()) / (float(truth.norm()) or 1.0)  # a column may be zero
        if not error < _WRONG:
            raise RuntimeError(f"The columns of {name} are wrong by {error:.1e}.")
    torch.use_deterministic_algorithms(True)
    return found, skipped


@benchmark(
    __doc__,
    *network(width=1, images=256),
    BLOCK,
    option("--reference", type=int, default=200, help="columns compared with float64 (default: 200)"),
    THREADS,
    option("--no-compile", action="store_true", help="leave the compiled peer out"),
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark."""
    prepare(arguments.threads)
    data = random_data(arguments.images, (3, arguments.pixels, arguments.pixels))
    objective, theta = problem(arguments.width, arguments.norm, torch.float32, data)
    layout = objective.layout
    strips = sampled_strips(layout, arguments.block)
    kept = reference_sample(layout, strips, arguments.reference)
    peak = gemm_rate()

    engine = HessianEngine(objective, theta)
    seconds, columns, passes = time_ours(engine, strips, kept)
    flops = [engine.flops(strip.start, strip.stop) for strip in strips]
    del engine
    per_column = [s / (strip.stop - strip.start) for s, strip in zip(seconds, strips, strict=True)]
    ours = sum(strip.weight * s for s, strip in zip(per_column, strips, strict=True)) / objective.size
    work = sum(s.weight * f / (s.stop - s.start) for f, s in zip(flops, strips, strict=True)) / objective.size

    peers, skipped = time_peers(objective, theta, not arguments.no_compile)
    baselines = {kind.name for kind in PEERS if kind.baseline} & peers.keys()
    # The best of the ways in use, and the best that we could make of them ourselves.
    best, strongest = (min(names, key=lambda name: peers[name].mean) for names in (peers.keys() - baselines, baselines))
    exact, _ = problem(arguments.width, arguments.norm, torch.float64, data, chunk=_REFERENCE_CHUNK)
    error = relative_error(columns, reference_columns(exact, theta, kept))

    print("ms per column:")
    print(f"{'columns':52s} {'number':>7s} {'ours':>8s} {best:>21s} {strongest:>26s} {'GEMM share':>11s}")
    for group in dict.fromkeys(strip.group for strip in strips):
        chosen = [number for number, strip in enumerate(strips) if strip.group == group]
        weight = sum(strips[n].weight for n in chosen)
        mine = sum(strips[n].weight * per_column[n] for n in chosen) / weight
        rate = sum(flops[n] for n in chosen) / sum(seconds[n] for n in chosen)
        name = group.partition(" … ")[0]
        print(
            f"{group:52s} {weight:7.0f} {mine * 1e3:8.2f} {peers[best].seconds[name] * 1e3:21.1f} "
            f"{peers[strongest].seconds[name] * 1e3:26.1f} {rate / peak:11.0%}"
        )
    return {
        "width": arguments.width,
        "images": arguments.images,
        "norm": arguments.norm,
        "ms_per_column": ours * 1e3,
        "peers": {name: measured.mean * 1e3 for name, measured in peers.items() if name not in baselines},
        "best_peer": best,
        "ratio": peers[best].mean / ours,
        "baselines": {name: peers[name].mean * 1e3 for name in sorted(baselines)},
        "best_baseline": strongest,
        "ratio_to_baseline": peers[strongest].mean / ours,
        "ratios": {name: measured.mean / ours for name, measured in peers.items()},
        "rel_error": error,
        "gemm_share": work / ours / peak,
        "parameters": objective.size,
        "reference_columns": len(kept),
        "passes": passes,
        "gemm_gflops": peak / 1e9,
        "gflop_per_column": work / 1e9,
        "peer_settings": {
            name: {"block": measured.block, "channels_last": measured.channels_last} for name, measured in peers.items()
        },
        "skipped": skipped,
        **machine(),
    }


if __name__ == "__main__":
    main()
