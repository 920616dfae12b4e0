"""What the benchmarks share: the networks, the machine, clocks, samples of strips, and an independent reference."""

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch

from quadscape.config.sections import ResNet9
from quadscape.network.models import build_model, initial_vector
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterBlock, ParameterLayout, assign_vector
from quadscape.numerics import apply_numerics, current_threads, keep_large_freed_memory

SHAPE, CLASSES = (3, 32, 32), 10
_FREEZING_IMAGES = 512
_SMALL_GROUP = 10

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def random_data(images: int, shape: tuple[int, int, int] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian images, float64, and labels, always the same."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, *shape, generator=generator, dtype=torch.float64)
    return pixels, torch.randint(0, CLASSES, (images,), generator=generator)


def problem(
    width: int,
    norm: str,
    dtype: torch.dtype,
    data: tuple[torch.Tensor, torch.Tensor],
    device: torch.device | str = "cpu",
    chunk: int | None = None,
) -> tuple[Objective, torch.Tensor]:
    """The loss of a ResNet9 at its initial parameters.

    Args:
        width: Multiplier w.
        norm: `group`, `none` or `batch` (frozen at the statistics of the first 512 images).
        dtype: Precision of the network.
        data: Images and labels.
        device: Where it lives.
        chunk: Examples per chunk; None: all in one.

    Returns:
        The objective and θ, float64.
    """
    pixels, labels = data
    shape = tuple(pixels.shape[1:])
    config = ResNet9.model_validate({"factory": "resnet9", "width": width, "normalization": norm})
    theta = initial_vector(config, shape, CLASSES, 0)
    model = build_model(config, shape, CLASSES).to(torch.float64)
    assign_vector(model, theta)
    model.eval()
    if norm == "batch":
        from quadscape.network.checkpoint import freeze_batch_norms  # needs zarr, which a bare GPU machine may lack

        freeze_batch_norms(model, pixels[:_FREEZING_IMAGES].to(torch.float64), 64)
    model = model.to(device, dtype)
    images = pixels.to(device, dtype)
    layout = ParameterLayout.of(model)
    return Objective(model, layout, images, labels.to(device), "cross_entropy", chunk or len(pixels)), theta


# ---------------------------------------------------------------------------------------------------------------------
# Commands


Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **keys: Any) -> Option:
    """An argument of a command, said as to `add_argument` of argparse."""
    return names, keys


BLOCK = option("--block", type=int, default=256, help="columns per strip (default: 256, as in the stage)")
DEVICE = option("--device", choices=["auto", "cpu", "cuda"], default="auto")
NORM = option("--norm", choices=["group", "none", "batch"], default="group")
THREADS = option("--threads", type=int, help="threads (default: torch's)")


def network(width: int, images: int) -> list[Option]:
    """The arguments that choose one network and its data, with these defaults."""
    return [
        option("--width", type=int, default=width),
        option("--images", type=int, default=images),
        NORM,
        option("--pixels", type=int, default=32, help="height and width of a random image (default: 32)"),
    ]


def benchmark(
    documentation: str | None, *options: Option
) -> Callable[[Callable[[argparse.Namespace], dict[str, Any]]], Callable[..., dict[str, Any]]]:
    """Makes a benchmark a command, whose last line is what the benchmark returns, in JSON.

    Args:
        documentation: What the command does.
        options: Its arguments.

    Returns:
        A decorator. The function it makes takes the words of the command, or None for those of the process.
    """

    def decorate(run: Callable[[argparse.Namespace], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
            parser = argparse.ArgumentParser(
                description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
            )
            for names, keys in options:
                parser.add_argument(*names, **keys)
            summary = run(parser.parse_args(argv))
            print(json.dumps(summary))
            return summary

        return main

    return decorate


# ---------------------------------------------------------------------------------------------------------------------
# Machine and clocks


def prepare(threads: int | None = None) -> None:
    """Threads and determinism as in a stage."""
    apply_numerics(threads or current_threads())
    keep_large_freed_memory()


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The machine, and the date, for a result's JSON line."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        name = models[0] if models else name
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name()
    return {
        "machine": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def synchronise(device: torch.device | str) -> None:
    """Waits until a GPU has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], T], device: torch.device | str = "cpu") -> tuple[float, T]:
    """Seconds that something took, without Python's garbage collector, and what it returned."""
    gc.disable()
    try:
        synchronise(device)
        began = time.perf_counter()
        result = work()
        synchronise(device)
        return time.perf_counter() - began, result
    finally:
        gc.enable()


def gemm_rate(device: torch.device | str = "cpu", size: int = 2048, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a large matrix product: the best of several."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    return 2.0 * size**3 / min(timed(lambda: left @ right, device)[0] for _ in range(6))


# ---------------------------------------------------------------------------------------------------------------------
# Samples of columns


@dataclass(frozen=True)
class Strip:
    """A column strip that is measured, and what it stands for.

    Attributes:
        start: First column.
        stop: One after the last.
        group: Tensors that it overlaps; strips of one group cost about the same.
        weight: Number of columns of the whole matrix that it stands for.
    """

    start: int
    stop: int
    group: str
    weight: float


def sampled_strips(layout: ParameterLayout, block: int) -> list[Strip]:
    """Strips that together stand for all columns.

    Strips are those of the stage: they start at multiples of the block. Consecutive strips inside one tensor form a
    group, of which the first, the middle and the last are taken, and of a small group, whose strips are the dear ones
    of the first layers, the middle one only; a strip across tensors is a group of its own.

    Args:
        layout: Of the network.
        block: Columns per strip.

    Returns:
        The strips in order; their weights add up to the number of columns.
    """

    def overlapped(start: int) -> list[str]:
        return [b.name for b in layout.blocks if b.start < min(start + block, layout.size) and b.stop > start]

    sampled = []
    for names, members in groupby(range(0, layout.size, block), key=overlapped):
        starts = list(members)
        columns = min(starts[-1] + block, layout.size) - starts[0]
        middle = starts[len(starts) // 2]
        chosen = [starts[0], middle, starts[-1]] if len(starts) > _SMALL_GROUP else [middle]
        group = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        sampled += [Strip(s, min(s + block, layout.size), group, columns / len(chosen)) for s in chosen]
    return sampled


def reference_sample(layout: ParameterLayout, strips: Sequence[Strip], columns: int) -> list[int]:
    """Columns to compare with a reference: in every tensor, evenly over those that lie in the strips.

    Args:
        layout: Of the network.
        strips: The strips.
        columns: How many at least, where there are so many.

    Returns:
        Columns in increasing order.
    """
    within = [[c for s in strips for c in range(max(s.start, b.start), min(s.stop, b.stop))] for b in layout.blocks]
    each = 1
    while each < max(map(len, within)) and sum(min(each, len(w)) for w in within) < columns:
        each += 1
    chosen = []
    for candidates in within:
        count = min(each, len(candidates))
        chosen += [candidates[i * len(candidates) // count] for i in range(count)]
    return chosen


def owner(layout: ParameterLayout, column: int) -> ParameterBlock:
    """The tensor that a column belongs to."""
    return next(block for block in layout.blocks if block.start <= column < block.stop)


def reference_columns(objective: Objective, theta: torch.Tensor, columns: Sequence[int]) -> list[torch.Tensor]:
    """Columns by double backward, from their own row on: independent of the engine.

    Args:
        objective: L, in float64; its chunks bound the memory.
        theta: θ.
        columns: Which columns.

    Returns:
        For each column c the rows c … P − 1, float64, on the CPU.
    """
    layout = objective.layout
    found = [torch.zeros(layout.size - column, dtype=torch.float64, device=objective.device) for column in columns]
    for images, labels in objective.chunks():
        leaves = {n: p.detach().clone().requires_grad_() for n, p in objective.parameters(theta).items()}
        loss = objective.chunk_loss(leaves, images, labels) / objective.count
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), create_graph=True), strict=True))
        for total, column in zip(found, columns, strict=True):
            block = owner(layout, column)
            later = [b for b in layout.blocks if b.stop > column]
            rows = torch.autograd.grad(
                gradients[block.name].reshape(-1)[column - block.start],
                [leaves[b.name] for b in later],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            total += torch.cat([row.reshape(-1) for row in rows])[column - later[0].start :]
    return [total.cpu() for total in found]


def relative_error(found: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Relative Frobenius error of all columns together."""
    error = sum(float((f - r).square().sum()) for f, r in zip(found, reference, strict=True))
    return (error / sum(float(r.square().sum()) for r in reference)) ** 0.5
