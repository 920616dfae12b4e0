"""Floating-point operations and bytes of every stage, counted from the layers of the network: the floor.

`python -m benchmarks.count --widths 1 2 --images 50000` prints the tables of docs/performance.md. Only matrix products
and convolutions count as work, two operations per multiply-add. F_m is one product of layer m with the activations of
one example. Layers must follow one another in the order of the parameters, as in the reference network.

- *Layer cut*, per example and column of layer l: the tangent runs forward through every later layer (F_m), its adjoint
  back through them (F_m), and their weight gradients have two terms (2 F_m); layer l itself adds the one term of its
  own rows (F_l, for columns of weights). In all Σ_{m>l} 4 F_m + F_l.
- *Double backward through the flat gradient*: six products per layer and column. Through the gradient of the column's
  own tensor alone: 4 F_m above l, 4 F_l in l, and 2 F_m below.
- *Forward over reverse*: nine, of which three, the gradient itself, are computed anew for every column.
- *G*: N · C rows of Jacobians, multiplied by their transpose, one triangle. The Jacobians: 3 F per row.
- *Eigenbasis*: the reduction to tridiagonal form 4/3 P³, half of it matrix–vector products that read the trailing
  triangle for every column, half matrix products; MRRR O(P²), not counted; the back-transformation 2 P³.

`--gpu` prints two further tables for w = 2. One is what `quadscape estimate` takes for a GPU that is not here: the same
amounts of work (`quadscape.planning.laws`) over the same named speeds. The other is what the engine itself counts: it
carries positions of a layer's output where these are fewer than the columns that they stand for, so it takes fewer
operations than the layer cut column by column.

Bytes of the layer cut are those that remain if everything element-wise is fused into the products beside it: at every
later layer, the tangents of input, output and their adjoints are written once and read by each product that needs them.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from benchmarks.setting import CLASSES, SHAPE, benchmark, option, problem, random_data
from quadscape.config.sections import ResNet9
from quadscape.curvature.engine import HessianEngine
from quadscape.data.sources import DataDescription
from quadscape.network.models import build_model
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.laws import Laws
from quadscape.planning.problem import Problem
from quadscape.planning.work import NOMINAL, Work
from quadscape.results.sizes import Network

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, with what normalises it.

    Attributes:
        name: Name of the module.
        weights: Number of elements of its weight.
        others: Number of elements of its bias and of the normalisation after it.
        products: F, multiply-adds per example.
        inputs: Activations that come in, per example.
        outputs: Activations that go out, per example.
    """

    name: str
    weights: int
    others: int
    products: int
    inputs: int
    outputs: int


def layers_of(model: nn.Module, images: torch.Tensor) -> list[Layer]:
    """The layers of a network in order.

    Args:
        model: The network.
        images: One image, shape (1, channels, height, width).

    Returns:
        Its convolutions and linear layers; other parameters count with the layer before them.
    """
    shapes: dict[str, tuple[int, int]] = {}
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    hooks = [
        module.register_forward_hook(
            lambda m, x, y, name=name: shapes.__setitem__(name, (x[0].numel(), y.numel()))  # type: ignore[misc]
        )
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    found: list[Layer] = []
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        if owner in modules and kind == "weight":
            inputs, outputs = shapes[owner]
            per_output = prod(parameter.shape[1:])
            found.append(Layer(owner, parameter.numel(), 0, per_output * outputs, inputs, outputs))
        else:
            last = found[-1]
            found[-1] = Layer(
                last.name, last.weights, last.others + parameter.numel(), last.products, last.inputs, last.outputs
            )
    return found


def layer_cut(layers: Sequence[Layer]) -> list[tuple[float, float]]:
    """Multiply-adds per example for all columns of each layer together, and bytes moved."""
    counted = []
    for number, layer in enumerate(layers):
        later = layers[number + 1 :]
        above = 4 * sum(m.products for m in later)
        # Of each later layer: the tangent of its input is written once and read by two products, that of its output
        # written and read once; the adjoint of its output written and read by two, that of its input written and read.
        moved = 5 * _FLOAT * sum(m.inputs + m.outputs for m in later)
        columns = layer.weights + layer.others
        counted.append((columns * above + layer.weights * layer.products, columns * moved))
    return counted


def stages(layers: Sequence[Layer], images: int, classes: int) -> dict[str, tuple[float, float | None]]:
    """Operations of each stage, and bytes where they are counted.

    Args:
        layers: Of the network.
        images: N.
        classes: C.

    Returns:
        By stage: floating-point operations, and bytes to and from the device's memory.
    """
    size = sum(layer.weights + layer.others for layer in layers)
    total = sum(layer.products for layer in layers)
    products, moved = (sum(values) for values in zip(*layer_cut(layers), strict=True))
    by_tensor = 0.0
    for number, layer in enumerate(layers):
        above = 4 * sum(m.products for m in layers[number + 1 :])
        below = 2 * sum(m.products for m in layers[:number])
        by_tensor += (layer.weights + layer.others) * (above + 4 * layer.products + below)
    rows = images * classes
    return {
        "Hessian, layer cut": (2.0 * images * products, images * moved),
        "Hessian, double backward, flat gradient": (2.0 * images * size * 6 * total, None),
        "Hessian, double backward, tensor's gradient": (2.0 * images * by_tensor, None),
        "Hessian, forward over reverse": (2.0 * images * size * 9 * total, None),
        "G, Jacobians": (2.0 * rows * 3 * total, 2.0 * _FLOAT * rows * size),
        "G, SYRK": (float(rows) * size * (size + 1), None),
        "Basis, tridiagonal form": (4 / 3 * size**3, _FLOAT * size**3 / 6),
        "Basis, back-transformation": (2.0 * size**3, None),
    }


GPU_STAGES = {"hessian_shard": "Hessian, columns", "hessian": "Hessian, check", "eigenbasis": "eigenbasis"}
_GPU_WIDTH, _GPU_CHUNK, _GPU_TILE = 2, 1024, 8_000_000_000
_SHOWN = 0.5
"""Seconds below which a kind of work has no row of its own."""


def gpu_work(width: int, images: int) -> dict[str, Work]:
    """What `quadscape estimate` counts for the stages that a GPU computes.

    Args:
        width: w of the reference network.
        images: N.

    Returns:
        By stage.
    """
    experiment = parse_experiment({"model": {"factory": "resnet9", "width": width}, "device": "cuda"})
    data = DataDescription(SHAPE, tuple("abcdefghij"), images, 0, 0, "")
    config = ResNet9.model_validate({"factory": "resnet9", "width": width, "normalization": "group"})
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build_model(config, SHAPE, CLASSES).parameters())
    sized = Problem(experiment, data, {run.name: Network(size, None) for run in experiment.runs})
    laws = Laws(sized, "cuda")
    return {stage: laws.of(stage).work for stage in GPU_STAGES}


def gpu_table(width: int = _GPU_WIDTH, images: int = 50_000) -> str:
    """What `quadscape estimate` takes, by kind of work, in Markdown."""
    return "\n".join(_gpu_lines(width, images))


def _gpu_lines(width: int, images: int) -> Iterator[str]:
    yield "| stage | work | amount | assumed per second | time |"
    yield "|---|---|---|---|---|"
    speeds, whole = NOMINAL["cuda"], 0.0
    for stage, work in gpu_work(width, images).items():
        for kind, amount in work.amounts.items():
            seconds = amount / speeds[kind]
            if seconds >= _SHOWN:
                yield f"| {GPU_STAGES[stage]} | {kind} | {amount:.1e} | {speeds[kind]:.1e} | {_duration(seconds)} |"
        seconds = work.seconds(speeds)
        whole += seconds
        yield f"| **{GPU_STAGES[stage]}** | in all | | | **{_duration(seconds)}** |"
    yield f"| **both** | in all | | | **{_duration(whole)}** |"


def engine_table(width: int = _GPU_WIDTH, images: int = 50_000) -> str:
    """What the engine itself counts for all columns, beside the two ways to count it by layers, in Markdown."""
    from benchmarks.gpu.counted import moved

    objective, theta = problem(width, "group", torch.float32, random_data(2))
    engine = HessianEngine(objective, theta)
    operations = engine.flops(0, objective.size) / objective.count * images
    found = moved(width, images, _GPU_CHUNK, _GPU_TILE)
    layers = layers_of(objective.model, objective.images[:1])
    by_column, fused = stages(layers, images, CLASSES)["Hessian, layer cut"]
    law = gpu_work(width, images)["hessian_shard"].amounts["columns float32"]
    assert fused is not None
    rows = [
        ("the engine", operations, found.bytes, f"{found.calls:.1e}"),
        ("`quadscape estimate`, at most", law, None, "–"),
        ("layer cut, column by column, all fused", by_column, fused, "–"),
    ]
    lines = ["| counted by | operations | at 45 TFLOP/s | bytes | at 3 TB/s | calls |", "|---|---|---|---|---|---|"]
    for name, flops, count, calls in rows:
        memory = "– | –" if count is None else f"{count:.1e} | {_duration(count / 3e12)}"
        lines.append(f"| {name} | {flops:.1e} | {_duration(flops / 45e12)} | {memory} | {calls} |")
    return "\n".join(lines)


@benchmark(
    __doc__,
    option("--gpu", action="store_true", help="also the tables for a GPU"),
    option("--widths", type=int, nargs="+", default=[1, 2]),
    option("--images", type=int, default=50_000),
    option("--tflops", type=float, nargs="+", default=[67, 45], help="rates, in 10¹² operations per second"),
    option("--bandwidth", type=float, default=3.0, help="of memory, in 10¹² bytes per second"),
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints the tables."""
    summary: dict[str, Any] = {"images": arguments.images}
    if arguments.gpu:
        print(f"\n{gpu_table()}\n\n{engine_table()}")
    for width in arguments.widths:
        config = ResNet9.model_validate({"factory": "resnet9", "width": width, "normalization": "group"})
        layers = layers_of(build_model(config, SHAPE, CLASSES), random_data(1)[0].float())
        size = sum(layer.weights + layer.others for layer in layers)
        print(f"\nw = {width}, P = {size:,}, N = {arguments.images:,}\n")
        print("| layer | columns | F (10⁶) | layer cut, per example and column (10⁶) | operations per byte |")
        print("|---|---|---|---|---|")
        for layer, (products, moved) in zip(layers, layer_cut(layers), strict=True):
            columns = layer.weights + layer.others
            intensity = f"{2 * products / moved:.0f}" if moved else "–"
            each = products / columns / 1e6
            print(f"| {layer.name} | {columns:,} | {layer.products / 1e6:.3f} | {each:.2f} | {intensity} |")
        rates = " | ".join(f"at {rate:g} TFLOP/s" for rate in arguments.tflops)
        print(f"\n| stage | operations | {rates} | bytes | at {arguments.bandwidth:g} TB/s |")
        print("|---" * (len(arguments.tflops) + 4) + "|")
        found = stages(layers, arguments.images, CLASSES)
        for name, (flops, moved) in found.items():
            times = " | ".join(_duration(flops / rate / 1e12) for rate in arguments.tflops)
            memory = "– | –" if moved is None else f"{moved:.1e} | {_duration(moved / arguments.bandwidth / 1e12)}"
            print(f"| {name} | {flops:.1e} | {times} | {memory} |")
        summary[f"width {width}"] = {name: {"flops": flops, "bytes": moved} for name, (flops, moved) in found.items()}
    return summary


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
