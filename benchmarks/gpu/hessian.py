"""Columns of the exact Hessian from every layer, over a few chunks of examples, cheapest layers first.

What columns take is a part for the strip, and as much for every chunk of examples: one and two chunks are timed, all
of them are the straight line through both. The sum over all columns is therefore *extrapolated*, and called so; so is
the share of it that was measured. Layers that the time does not suffice for, the dearest ones, are counted at the
lowest rate measured, and named as assumed.

Images are those of a file of JPEGs (arrays `jpeg`, all files end to end, `offset`, `label`, `split` with 0 for
training), for which Pillow is needed, or, where there is no such file, random.
"""

import argparse
import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.matrices import gemm, peak
from benchmarks.gpu.runner import Found
from benchmarks.setting import (
    BLOCK,
    CLASSES,
    NORM,
    Option,
    Strip,
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

_CHECKED_IMAGES = 64
_PROFILED_COLUMNS = 32
_PROFILE_ROWS = 12

OPTIONS: list[Option] = [
    option("--width", type=int, default=2, help="of the reference network (default: 2)"),
    option("--images", type=int, default=50_000, help="N (default: 50000)"),
    option("--pixels", type=int, default=32, help="height and width of a random image (default: 32)"),
    NORM,
    BLOCK,
    option("--data", type=Path, default=Path("data/cifar10-jpeg.npz"), help="npz file of JPEGs"),
    option("--profile", action="store_true", help="also profile some columns over one data chunk"),
]


def read_images(path: Path, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The first training images of a file of JPEGs, uint8, shape (N, channels, height, width), and their labels."""
    from PIL import Image

    with np.load(path) as file:
        jpeg, offset, label = file["jpeg"], file["offset"], file["label"]
        chosen = np.flatnonzero(file["split"] == 0)[:images]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes()))) for i in chosen])
    return pixels.transpose(0, 3, 1, 2), label[chosen].astype(np.int64)


def random_images(images: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels in the same form, always the same."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, 256, (images, 3, pixels, pixels), dtype=np.uint8)
    return drawn, generator.integers(0, CLASSES, images)


def data(arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as the network takes them, normalised by channel, and their labels."""
    if not arguments.data.is_file():
        return random_data(arguments.images, (3, arguments.pixels, arguments.pixels))
    pixels, labels = read_images(arguments.data, arguments.images)
    values = torch.from_numpy(pixels).float() / 255
    mean, deviation = values.mean(dim=(0, 2, 3), keepdim=True), values.std(dim=(0, 2, 3), keepdim=True)
    return (values - mean) / deviation, torch.from_numpy(labels)


def loss_of(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> tuple[Objective, torch.Tensor]:
    """The loss and θ, with as many examples in a chunk as a stage takes."""
    objective, theta = problem(arguments.width, arguments.norm, dtype, data(arguments), device)
    objective.chunk = data_chunk(objective.graph_bytes_per_example(), objective.count, device)
    return objective, theta


def error_of(objective: Objective, theta: torch.Tensor, columns: int) -> float:
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


@dataclass
class Group:
    """Columns that cost about the same.

    Attributes:
        name: Tensors that they belong to.
        strips: Those that are timed.
        flops: Of all its columns, over all examples.
        columns: Number of all its columns.
        seconds: Of all its columns, over all examples; None: not measured.
        measured: Seconds that were measured, without those that warm up.
    """

    name: str
    strips: list[Strip]
    flops: float
    columns: float
    seconds: float | None = None
    measured: float = 0.0


def groups_of(engine: HessianEngine, block: int) -> list[Group]:
    """All groups, those whose timed strips cost least first."""
    strips = sampled_strips(engine.objective.layout, block)
    groups = []
    for name in dict.fromkeys(strip.group for strip in strips):
        members = [strip for strip in strips if strip.group == name]
        flops = sum(
            engine.flops(strip.start, strip.stop) / (strip.stop - strip.start) * strip.weight for strip in members
        )
        groups.append(Group(name, members, flops, sum(strip.weight for strip in members)))
    return sorted(groups, key=lambda group: sum(engine.flops(s.start, s.stop) for s in group.strips))


def time_group(group: Group, engine: HessianEngine, device: torch.device) -> None:
    """Times its strips over one and two chunks of examples, or over all where these are no more than two."""
    chunk, count = engine.plan["chunk"], engine.objective.count
    one, two = engine.of_part(slice(0, chunk)), engine.of_part(slice(0, 2 * chunk))
    total = 0.0
    for strip in group.strips:
        one.columns(strip.start, strip.stop)  # warms up
        first, second = (timed(partial(e.columns, strip.start, strip.stop), device)[0] for e in (one, two))
        group.measured += first + second
        # A clock that jitters must not make a chunk cost nothing.
        each = max(second - first, first / 10) if count > chunk else 0.0
        total += (first + each * (count / chunk - 1)) * strip.weight / (strip.stop - strip.start)
    group.seconds = total


def hessian_part(arguments: argparse.Namespace, seconds: float) -> Found:
    """Times groups until time is up.

    Args:
        arguments: Of the command.
        seconds: After which no further group is begun.

    Yields:
        The error, each group, and their sum.
    """
    began = time.perf_counter()
    device = resolve_device(arguments.device)
    prepare()
    objective, theta = loss_of(arguments, device, torch.float32)
    rate = gemm(device)
    yield {"op": "columns", "error": error_of(objective, theta, 2 * len(objective.layout.blocks))}
    engine = HessianEngine(objective, theta)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    groups = groups_of(engine, arguments.block)
    for group in groups:
        if time.perf_counter() - began > seconds and any(one.seconds is not None for one in groups):
            break
        time_group(group, engine, device)
        assert group.seconds is not None
        yield {
            "group": group.name,
            "columns": round(group.columns),
            "ms_per_column_extrapolated": group.seconds / group.columns * 1e3,
            "tflops": group.flops / group.seconds / 1e12,
            "share_of_product": group.flops / group.seconds / rate,
        }
    yield sum_of(groups, engine, rate) | {"memory_bytes": peak(device), "data": _source(arguments)}
    if arguments.profile:
        _profile(engine.of_part(slice(0, engine.plan["chunk"])), groups)


def _source(arguments: argparse.Namespace) -> str:
    return arguments.data.stem if arguments.data.is_file() else "random"


def sum_of(groups: Sequence[Group], engine: HessianEngine, rate: float) -> dict[str, Any]:
    """All columns over all examples.

    Args:
        groups: Of which some were timed.
        engine: Of all examples.
        rate: Operations per second of a large product.

    Returns:
        Seconds, and how much of them was measured.
    """
    timed_groups = [group for group in groups if group.seconds is not None]
    slowest = min(group.flops / group.seconds for group in timed_groups if group.seconds)
    total = sum(group.seconds if group.seconds is not None else group.flops / slowest for group in groups)
    measured, flops = sum(group.measured for group in timed_groups), sum(group.flops for group in groups)
    chunks = math.ceil(engine.objective.count / engine.plan["chunk"])
    return {
        "stage": "Hessian",
        "step": "columns",
        "parameters": engine.objective.size,
        "images": engine.objective.count,
        "chunks": chunks,
        "chunks_measured": min(2, chunks),
        "groups_assumed": [group.name for group in groups if group.seconds is None],
        "seconds": total,
        "seconds_measured": measured,
        "measured_share": min(1.0, measured / total),
        "flops": flops,
        "tflops": flops / total / 1e12,
        "share_of_product": flops / total / rate,
        "plan": engine.plan,
    }


def products_part(arguments: argparse.Namespace) -> Found:
    """Products of the Hessian with vectors, as both stages verify themselves with: one of each precision."""
    device = resolve_device(arguments.device)
    prepare()
    # Of sampled ranks, deflated and sign vectors, and single coordinates of every tensor: as many as the stages take.
    for dtype, counts in ((torch.float32, {"Hessian": 16}), (torch.float64, {"Hessian": 16, "eigenbasis": 82})):
        objective, theta = loss_of(arguments, device, dtype)
        vector = np.ones(objective.size)
        objective.hessian_product(theta, vector)
        took, _ = timed(partial(objective.hessian_product, theta, vector), device)
        for stage, count in counts.items():
            yield {
                "stage": stage,
                "step": f"products in {str(dtype)[6:]}",
                "seconds_each": took,
                "seconds": count * took,
                "measured_share": 1 / count,
            }
        del objective


def _profile(engine: HessianEngine, groups: Sequence[Group]) -> None:
    """Prints what the device spends its time on, for the columns of most operations and for the most columns."""
    from torch.profiler import ProfilerActivity

    cuda = engine.objective.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    for group in (max(groups, key=lambda one: one.flops), max(groups, key=lambda one: one.columns)):
        strip = group.strips[0]
        stop = min(strip.stop, strip.start + _PROFILED_COLUMNS)
        with torch.profiler.profile(activities=activities) as profiler:
            engine.columns(strip.start, stop)
        print(f"\nColumns {strip.start} to {stop} ({group.name}):")
        key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=key, row_limit=_PROFILE_ROWS, max_name_column_width=70))
