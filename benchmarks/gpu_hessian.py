"""The exact Hessian of the reference network at full N on one GPU: columns over all layers, and their sum extrapolated.

`python -m benchmarks.gpu_hessian --width 2 --images 50000` takes under ten minutes on one H100. It prints what each
layer takes and the rate it reaches, then one line of JSON. Whole strips of columns are timed with all examples; they
are sampled so that every layer is covered and weighted so that they stand for all columns. The total is therefore
*extrapolated*, and called so. A group of columns that the time does not suffice for is counted at the lowest rate
measured, and called so too.

Runs without Snakemake and zarr (but `--norm batch` needs zarr); what it needs is torch, numpy, pydantic, pyyaml, and
Pillow for real images. These are CIFAR-10 from an npz file of JPEGs (arrays `jpeg`, all files end to end, `offset`,
`label`, `split` with 0 for training) or, where there is no such file, random; the JSON says which.
"""

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.setting import (
    BLOCK,
    DEVICE,
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
from quadscape.network.objective import Objective, data_chunk
from quadscape.numerics import resolve_device

_GPU_GEMM, _CPU_GEMM = 8192, 1024
_CHECKED_IMAGES = 64
_PROFILED_COLUMNS = 32
_PROFILE_ROWS = 12


def read_images(path: Path, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first training images of a file of JPEGs, normalised by channel, float32, and their labels."""
    from PIL import Image

    with np.load(path) as file:
        jpeg, offset, label = file["jpeg"], file["offset"], file["label"]
        chosen = np.flatnonzero(file["split"] == 0)[:images]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes()))) for i in chosen])
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, deviation = values.mean(dim=(0, 2, 3), keepdim=True), values.std(dim=(0, 2, 3), keepdim=True)
    return (values - mean) / deviation, torch.from_numpy(label[chosen].astype(np.int64))


def by_importance(strips: Sequence[Strip]) -> list[int]:
    """An order in which every group has been visited once before any is visited again."""
    seen: dict[str, int] = {}
    rounds = []
    for number, strip in enumerate(strips):
        rounds.append((seen.setdefault(strip.group, 0), number))
        seen[strip.group] += 1
    return [number for _, number in sorted(rounds)]


def check(objective: Objective, theta: torch.Tensor, columns: int) -> float:
    """Relative error against double backward in float64, over columns of all layers and a few examples."""
    few = objective.part(slice(0, _CHECKED_IMAGES))
    strips = [Strip(b.start, min(b.stop, b.start + 8), b.name, 1.0) for b in objective.layout.blocks]
    kept = reference_sample(objective.layout, strips, columns)
    engine, found = HessianEngine(few, theta), []
    for strip in strips:
        result = engine.columns(strip.start, strip.stop)
        found += [result[c - strip.start :, c - strip.start] for c in kept if strip.start <= c < strip.stop]
    dtype = objective.dtype
    model = objective.model.double()
    exact = Objective(model, few.layout, few.images.double(), few.labels, few.loss_kind, few.count)
    error = relative_error(found, reference_columns(exact, theta, kept))
    model.to(dtype)
    return error


def profile(engine: HessianEngine, strips: Sequence[Strip]) -> None:
    """Prints what the device spends its time on, for the columns that stand for most and for the first ones."""
    from torch.profiler import ProfilerActivity

    cuda = engine.objective.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    for strip in (strips[0], max(strips, key=lambda strip: strip.weight)):
        stop = min(strip.stop, strip.start + _PROFILED_COLUMNS)
        with torch.profiler.profile(activities=activities) as profiler:
            engine.columns(strip.start, stop)
        print(f"\nColumns {strip.start} to {stop} ({strip.group}):")
        key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=key, row_limit=_PROFILE_ROWS, max_name_column_width=70))


@benchmark(
    __doc__,
    *network(width=2, images=50_000),
    DEVICE,
    option("--data", type=Path, default=Path("data/cifar10-jpeg.npz"), help="npz file of JPEGs"),
    option("--seconds", type=float, default=420.0, help="time for the strips (default: 420)"),
    BLOCK,
    option("--profile", action="store_true", help="also profile some columns over one data chunk"),
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark."""
    device = resolve_device(arguments.device)
    prepare()
    real = arguments.data.is_file()
    shape = (3, arguments.pixels, arguments.pixels)
    data = read_images(arguments.data, arguments.images) if real else random_data(arguments.images, shape)
    objective, theta = problem(arguments.width, arguments.norm, torch.float32, data, device)
    objective.chunk = data_chunk(objective.graph_bytes_per_example(), objective.count, device)
    peak = gemm_rate(device, _GPU_GEMM if device.type == "cuda" else _CPU_GEMM)
    error = check(objective, theta, 2 * len(objective.layout.blocks))

    engine = HessianEngine(objective, theta)
    strips = sampled_strips(objective.layout, arguments.block)
    engine.columns(strips[-1].start, strips[-1].stop)  # warms up
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        resident = torch.cuda.memory_allocated()
    seconds: dict[int, float] = {}
    began = time.perf_counter()
    for number in by_importance(strips):
        if seconds and time.perf_counter() - began + max(seconds.values()) > arguments.seconds:
            break
        strip = strips[number]
        seconds[number] = timed(lambda strip=strip: engine.columns(strip.start, strip.stop), device)[0]  # type: ignore[misc]

    flops = [engine.flops(strip.start, strip.stop) for strip in strips]
    slowest = min(flops[n] / seconds[n] for n in seconds)
    total = work = 0.0
    assumed = []
    print(f"{'columns':52s} {'number':>7s} {'ms per column':>14s} {'TFLOP/s':>9s} {'GEMM share':>11s}")
    for group in dict.fromkeys(strip.group for strip in strips):
        members = [n for n, strip in enumerate(strips) if strip.group == group]
        columns = sum(strips[n].weight for n in members)
        chosen = [n for n in members if n in seconds]
        per_column = [flops[n] / (strips[n].stop - strips[n].start) for n in chosen or members]
        each = sum(per_column) / len(per_column)
        if chosen:
            took = sum(seconds[n] / (strips[n].stop - strips[n].start) for n in chosen) / len(chosen)
        else:
            took = each / slowest
            assumed.append(group)
        total += columns * took
        work += columns * each
        note = "" if chosen else "  assumed"
        print(
            f"{group:52s} {columns:7.0f} {took * 1e3:14.3f} {each / took / 1e12:9.2f} {each / took / peak:11.0%}{note}"
        )
    measured = sum(strips[n].stop - strips[n].start for n in seconds)
    print(f"All {objective.size} columns: {total:.0f} s, extrapolated from {measured} columns.")
    summary = {
        "width": arguments.width,
        "images": objective.count,
        "norm": arguments.norm,
        "data": "cifar10" if real else "random",
        "dtype": "float32",
        "parameters": objective.size,
        "columns_measured": measured,
        "seconds_measured": sum(seconds.values()),
        "groups_assumed": assumed,
        "seconds_extrapolated": total,
        "ms_per_column": total / objective.size * 1e3,
        "flops_extrapolated": work,
        "tflops": work / total / 1e12,
        "gemm_tflops": peak / 1e12,
        "gemm_share": work / total / peak,
        "rel_error": error,
        "engine_plan": engine.plan,
        **machine(device),
    }
    if device.type == "cuda":
        summary["memory_bytes"] = torch.cuda.max_memory_allocated() - resident
        summary["memory_bytes_estimated"] = engine.memory_bytes(arguments.block)
    if arguments.profile:
        profile(HessianEngine(objective.part(slice(0, objective.chunk)), theta), strips)
    return summary


if __name__ == "__main__":
    main()
