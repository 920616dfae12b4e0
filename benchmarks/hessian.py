"""Time per Hessian column of the reference network, beside a plain double-backward loop over all layers.

`python -m benchmarks.hessian --width 2 --images 256 --norm batch` prints a table over layers, then one line of JSON.
Columns are sampled from every parameter tensor; means are weighted by the number of parameters, so that they stand for
all columns.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from quadscape.checkpoint import freeze_batch_norms
from quadscape.config import ResNet9
from quadscape.curvature.engine import HessianEngine
from quadscape.models import build_model, initial_vector
from quadscape.numerics import apply_numerics, current_threads
from quadscape.objective import Objective
from quadscape.parameters import ParameterLayout, assign_vector

SHAPE, CLASSES = (3, 32, 32), 10


def problem(width: int, images: int, norm: str, dtype: torch.dtype) -> tuple[Objective, torch.Tensor]:
    """The loss of a ResNet9 at its initial parameters, over random images in one chunk.

    Args:
        width: Multiplier w.
        images: N.
        norm: `group`, `none` or `batch` (frozen at these images' statistics).
        dtype: Precision of the network.

    Returns:
        The objective and θ, float64.
    """
    config = ResNet9.model_validate({"factory": "resnet9", "width": width, "normalization": norm})
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, *SHAPE, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (images,), generator=generator)
    theta = initial_vector(config, SHAPE, CLASSES, 0)
    model = build_model(config, SHAPE, CLASSES).to(torch.float64)
    assign_vector(model, theta)
    model.eval()
    if norm == "batch":
        freeze_batch_norms(model, pixels, 64)
    model = model.to(dtype)
    return Objective(model, ParameterLayout.of(model), pixels.to(dtype), labels, "cross_entropy", images), theta


class DoubleBackward:
    """The usual way: one gradient graph, then one backward pass through it, over all parameters, per column."""

    def __init__(self, objective: Objective, theta: torch.Tensor) -> None:
        parameters = objective.parameters(theta)
        self._inputs = [parameters[block.name].detach().requires_grad_() for block in objective.layout.blocks]
        named = {block.name: value for block, value in zip(objective.layout.blocks, self._inputs, strict=True)}
        images, labels = next(iter(objective.chunks()))
        loss = objective.chunk_loss(named, images, labels) / objective.count
        gradients = torch.autograd.grad(loss, self._inputs, create_graph=True)
        self._gradient = torch.cat([gradient.reshape(-1) for gradient in gradients])

    def columns(self, start: int, stop: int) -> torch.Tensor:
        """Whole columns, shape (P, stop − start)."""
        found = []
        for column in range(start, stop):
            rows = torch.autograd.grad(
                self._gradient[column], self._inputs, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            found.append(torch.cat([row.reshape(-1) for row in rows]))
        return torch.stack(found, dim=1)


def timed(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Seconds that something took, and what it returned."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--norm", choices=["group", "none", "batch"], default="group")
    parser.add_argument("--columns", type=int, default=8, help="columns of each parameter tensor (default: 8)")
    arguments = parser.parse_args()
    apply_numerics(current_threads())
    objective, theta = problem(arguments.width, arguments.images, arguments.norm, torch.float32)
    exact, _ = problem(arguments.width, arguments.images, arguments.norm, torch.float64)
    engine, peer, reference = (
        HessianEngine(objective, theta),
        DoubleBackward(objective, theta),
        DoubleBackward(exact, theta),
    )
    engine.columns(objective.size - 1, objective.size)  # warms up
    peer.columns(0, 1)
    ours = theirs = error = norm = 0.0
    print(f"{'parameter':28s} {'count':>7s} {'ours':>9s} {'double backward':>16s}   (ms per column)")
    for block in objective.layout.blocks:
        stop = min(block.stop, block.start + arguments.columns)
        count, weight = stop - block.start, (block.stop - block.start) / objective.size
        seconds, mine = timed(lambda start=block.start, stop=stop: engine.columns(start, stop))  # type: ignore[misc]
        peer_seconds, _ = timed(lambda start=block.start, stop=stop: peer.columns(start, stop))  # type: ignore[misc]
        truth = reference.columns(block.start, stop)[block.start :]
        error += float((mine - truth).square().sum())
        norm += float(truth.square().sum())
        mine_ms, peer_ms = seconds / count * 1e3, peer_seconds / count * 1e3
        ours += weight * mine_ms
        theirs += weight * peer_ms
        print(f"{block.name:28s} {block.stop - block.start:7d} {mine_ms:9.2f} {peer_ms:16.2f}")
    summary = {
        "width": arguments.width,
        "images": arguments.images,
        "norm": arguments.norm,
        "ms_per_column": round(ours, 3),
        "peers": {"double_backward": round(theirs, 3)},
        "best_peer": "double_backward",
        "ratio": round(theirs / ours, 3),
        "rel_error": (error / norm) ** 0.5,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
