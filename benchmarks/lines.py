"""Losses of all examples at the points of a line: one point after another, or several at once, by size of the chunks.

`python -m benchmarks.lines` times both for the demo's network on some 700 random images, as the demo trains on, and for
the reference network, in float32 and float64. *Loop* is what line searches do: for each point the network over the
examples, chunk after chunk. *Batched* is the same for several points at once (`vmap` over the parameters, by which
convolutions become grouped ones). Settings are timed in turn, round after round, and the least time of each counts, so
that what else runs on the machine reaches all of them; `share` is of the rate of
a large matrix product of the same precision and number of threads, whose best is taken over the same rounds. On one
thread of a CPU the seconds of a loss are those of the process itself. Operations are counted as everywhere
(`quadscape.curvature.strips.flops_per_example`). `error` is the largest difference of a loss from the loop's.
It prints a table, then one line of JSON.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.func import vmap

from benchmarks.setting import (
    DEVICE,
    THREADS,
    benchmark,
    gemm_rate,
    machine,
    option,
    prepare,
    problem,
    random_data,
    timed,
)
from quadscape.config.sections import CNN
from quadscape.curvature.strips import flops_per_example
from quadscape.network.losses import example_losses
from quadscape.network.models import build_model, initial_vector
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterLayout
from quadscape.numerics import resolve_device

DEMO = {"factory": "cnn", "channels": (8, 20), "channels_per_group": 4}
"""The `model` section of experiments/demo.yaml."""

DEMO_IMAGES, DEMO_SHAPE, CLASSES = 718, (1, 8, 8), 10
_REACH = 0.1


def taken(work: Callable[[], torch.Tensor], device: torch.device | str) -> tuple[float, torch.Tensor]:
    """Seconds that something took, on one thread of a CPU those of this process alone, and what it returned."""
    began = time.process_time()
    seconds, found = timed(work, device)
    own = time.process_time() - began
    return (own if torch.get_num_threads() == 1 and torch.device(device).type == "cpu" else seconds), found


@dataclass(frozen=True)
class Setting:
    """One way to evaluate.

    Attributes:
        points: Points at once; 1: the loop.
        chunk: Examples at once.
    """

    points: int
    chunk: int


def demo_problem(images: int, dtype: torch.dtype, device: torch.device | str) -> tuple[Objective, torch.Tensor]:
    """The loss of the demo's network at its initial parameters, over random images of the size of the digits."""
    config = CNN.model_validate(DEMO)
    pixels, labels = random_data(images, DEMO_SHAPE)
    theta = initial_vector(config, DEMO_SHAPE, CLASSES, 0)
    model = build_model(config, DEMO_SHAPE, CLASSES).to(device, dtype).eval()
    layout = ParameterLayout.of(model)
    return Objective(model, layout, pixels.to(device, dtype), labels.to(device), "cross_entropy", images), theta


def loop(objective: Objective, points: torch.Tensor) -> torch.Tensor:
    """Losses at all points, shape (points, N), one after another."""
    return torch.stack([objective.example_losses(theta) for theta in points])


def batched(objective: Objective, points: torch.Tensor, together: int) -> torch.Tensor:
    """The same for several points at once."""

    def losses(parameters: dict[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return example_losses(objective.network(parameters, images), labels, objective.loss_kind)

    over_points = vmap(losses, in_dims=(0, None, None))
    found = []
    with torch.no_grad():
        for part in points.split(together):
            rows = [objective.parameters(theta) for theta in part]
            parameters = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            found.append(torch.cat([over_points(parameters, *chunk).double() for chunk in objective.chunks()], dim=1))
    return torch.cat(found).cpu()


def evaluate(objective: Objective, points: torch.Tensor, setting: Setting) -> torch.Tensor:
    """Losses at all points in one way."""
    objective.chunk = setting.chunk
    return loop(objective, points) if setting.points == 1 else batched(objective, points, setting.points)


def settings(count: int, points: int) -> Iterator[Setting]:
    """What is tried: all examples at once, and chunks that are powers of four; few and many points at once."""
    chunks = [count, *(size for size in (256, 64, 16) if size < count)]
    for together in (1, 4, 16):
        if together <= points:
            yield from (Setting(together, chunk) for chunk in chunks)


def measured(
    objective: Objective, theta: torch.Tensor, points: int, rounds: int
) -> tuple[dict[Setting, float], dict[Setting, float], float]:
    """Times all settings in turn.

    Args:
        objective: L.
        theta: θ.
        points: Points of the line.
        rounds: How often each is timed.

    Returns:
        Least seconds per loss and largest error of each setting, and the best rate of a matrix product.
    """
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(len(theta), generator=generator, dtype=torch.float64)
    direction *= _REACH * float(theta.norm()) / float(direction.norm())
    line = theta.double() + torch.linspace(-1, 1, points, dtype=torch.float64)[:, None] * direction
    reference = evaluate(objective, line, Setting(1, objective.count))
    seconds: dict[Setting, float] = {}
    errors: dict[Setting, float] = {}
    peak = 0.0
    for number in range(rounds + 1):
        peak = max(peak, gemm_rate(objective.device, 1024, objective.dtype))
        for setting in settings(objective.count, points):
            took, found = taken(partial(evaluate, objective, line, setting), objective.device)
            if number:  # the first round warms up
                seconds[setting] = min(seconds.get(setting, took), took)
            errors[setting] = float((found - reference).abs().max())
    return {setting: took / points for setting, took in seconds.items()}, errors, peak


@benchmark(
    __doc__,
    option("--images", type=int, default=256, help="images of the reference network (default: 256)"),
    option("--demo-images", type=int, default=DEMO_IMAGES, help="images of the demo's network (default: 718)"),
    option("--points", type=int, default=16, help="points of a line (default: 16)"),
    option("--rounds", type=int, default=5, help="rounds that count (default: 5)"),
    DEVICE,
    THREADS,
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark."""
    prepare(arguments.threads)
    device = resolve_device(arguments.device)
    rows = []
    print(
        f"{'network':12s} {'dtype':8s} {'points at once':>14s} {'chunk':>6s} {'ms per loss':>12s} {'share':>7s} error"
    )
    for dtype in (torch.float32, torch.float64):
        data = random_data(arguments.images)
        for name, (objective, theta) in {
            "demo": demo_problem(arguments.demo_images, dtype, device),
            "resnet9 w=1": problem(1, "group", dtype, data, device),
        }.items():
            flops = flops_per_example(objective, theta)[0] * objective.count
            seconds, errors, peak = measured(objective, theta, arguments.points, arguments.rounds)
            for setting, took in seconds.items():
                row = {
                    "network": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "points_at_once": setting.points,
                    "chunk": setting.chunk,
                    "ms_per_loss": took * 1e3,
                    "share": flops / took / peak,
                    "gemm_gflops": peak / 1e9,
                    "error": errors[setting],
                }
                rows.append(row)
                print(
                    f"{name:12s} {row['dtype']:8s} {setting.points:14d} {setting.chunk:6d} {took * 1e3:12.3f} "
                    f"{row['share']:7.1%} {errors[setting]:.0e}"
                )
    return {
        "benchmark": "lines",
        "images": arguments.images,
        "demo_images": arguments.demo_images,
        "points": arguments.points,
        "rounds": arguments.rounds,
        "rows": rows,
        **machine(device),
    }


if __name__ == "__main__":
    main()
