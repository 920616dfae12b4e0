"""Hessian and eigenbasis of the reference network (w = 1, P = 26,490) on one GPU, by the stages of the workflow.

    python -m benchmarks.gpu_stages                                # all of it, under nine minutes on an H100
    python -m benchmarks.gpu_stages --images 10000 --folder runs   # fewer images; in a folder that is kept

Data, a short training, checkpoint, Hessian and eigenbasis are what the workflow's jobs would make: stored, committed
unit by unit, and verified, without Snakemake. A stage that was ended goes on where it was when the command is given
again with the same `--folder`. Every stage is a process of its own, and prints a line of JSON: what its units took, by
kind, from its own events, and all that its checks found.

Needs torch, numpy and what docs/performance.md lists.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.hessian import OPTIONS, random_images, read_images
from benchmarks.gpu.matrices import peak
from benchmarks.gpu.runner import Found, Part, command
from benchmarks.setting import CLASSES, option, timed
from quadscape.numerics import resolve_device

_RUN = "a"
_HELD_OUT = 0.1
"""Of the images, as validation and as test images each."""


def _model(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"factory": "resnet9", "width": arguments.width, "normalization": arguments.norm}


def _experiment(arguments: argparse.Namespace) -> Any:
    from quadscape.planning.experiment_file import parse_experiment

    return parse_experiment(
        {
            "name": "first",
            # Nothing is read from it: the images are written to the store of the data right away.
            "data": {"source": "digits"},
            "model": _model(arguments),
            "training": {
                "iterations": arguments.iterations,
                "batch_size": min(256, arguments.images // 2),
                "learning_rate": {"schedule": "constant", "value": 0.05},
                "evaluate_every": arguments.iterations,
                "trajectory": {"stride": arguments.iterations, "dense": 1},
            },
            "runs": [{"name": _RUN, "checkpoints": [arguments.iterations]}],
            "curvature": {"dtype": "float32"},
            "device": arguments.device,
        }
    )


def _places(folder: Path) -> dict[str, Path]:
    names = ("data", "trajectory", "checkpoint", "hessian_shards/1-of-1", "hessian", "eigenbasis")
    return {name.partition("/")[0]: folder / name for name in names}


def data_part(arguments: argparse.Namespace) -> Found:
    """Writes the images."""
    from quadscape.data.sets import write_data

    real = arguments.data.is_file()
    found = read_images(arguments.data, arguments.images) if real else random_images(arguments.images, arguments.pixels)
    images, labels = found
    held = max(1, int(_HELD_OUT * len(images)))
    split = np.repeat(np.arange(3, dtype=np.uint8), [len(images) - 2 * held, held, held])
    path = _places(arguments.folder)["data"]
    names = [f"class{number}" for number in range(CLASSES)]
    seconds, _ = timed(lambda: write_data(path, images, labels, split, names, "images" if real else "random"))
    yield {"images": len(images), "training": len(images) - 2 * held, "real": real, "seconds": seconds}


def training_part(arguments: argparse.Namespace) -> Found:
    """Trains for a moment, and makes the checkpoint."""
    from quadscape.training.extraction import extract_checkpoint
    from quadscape.training.task import TrainingTask

    experiment, places = _experiment(arguments), _places(arguments.folder)
    run = experiment.runs[0]
    task = TrainingTask(run, 0, experiment.model, experiment.loss, places["data"], arguments.device)
    yield _stage(task, places["trajectory"], arguments)
    seconds, check = timed(
        lambda: extract_checkpoint(
            experiment.model,
            experiment.loss,
            run,
            arguments.iterations,
            places["trajectory"],
            places["data"],
            places["checkpoint"],
            arguments.device,
        )
    )
    yield {"stage": "checkpoint", "seconds": seconds, "kind": check.kind}


def hessian_part(arguments: argparse.Namespace) -> Found:
    """The columns, then their gathering and verification."""
    from quadscape.curvature.hessian import HessianShardTask, HessianTask

    places, config = _places(arguments.folder), _experiment(arguments).curvature
    of = (places["checkpoint"], places["data"], config, arguments.device)
    yield _stage(HessianShardTask(*of), places["hessian_shards"], arguments)
    yield _stage(HessianTask(places["hessian"], *of), places["hessian"], arguments)


def eigenbasis_part(arguments: argparse.Namespace) -> Found:
    """The basis, and its verification."""
    from quadscape.curvature.eigenbasis import EigenbasisTask

    places, config = _places(arguments.folder), _experiment(arguments).curvature
    task = EigenbasisTask(places["hessian"], places["checkpoint"], places["data"], config, arguments.device)
    yield _stage(task, places["eigenbasis"], arguments)


def _stage(task: Any, directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs a stage, and tells what its events and its manifest say."""
    from quadscape.stage.events import read_events, seconds_taken
    from quadscape.stage.run import run_stage

    seconds, manifest = timed(lambda: run_stage(task, directory, log=lambda _: None))
    plan = manifest["plan"]
    units = {
        entry["unit"]: entry["seconds"]
        for entry in read_events(directory)
        if entry["event"] == "unit" and "unit" in entry
    }
    results = manifest["results"]
    return {
        "stage": task.name,
        "seconds": seconds,
        "seconds_by_events": seconds_taken(directory),
        "seconds_of_units": _by_kind(task, plan, units),
        "device": plan["device"],
        "memory_bytes": peak(resolve_device(arguments.device)),
        "stored_bytes": sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()),
        "size": results.get("size"),
        "verification": results.get("verification"),
    }


def _by_kind(task: Any, plan: dict[str, Any], units: dict[int, float]) -> dict[str, float]:
    """Seconds of the units by what they do: for an eigenbasis first the solver's, then overlaps, then products."""
    if task.name != "eigenbasis":
        return {"units": sum(units.values())}
    solver = task._solver_of(plan)
    names = ["reduction", "divide and conquer", "vectors"] if len(solver.parts) > 1 else ["library"]
    counts = [*solver.parts, task._overlap_units(plan), task._product_units(plan)]
    return _cut([*names, "overlaps", "products"], counts, units)


def _cut(names: Sequence[str], counts: Sequence[int], units: dict[int, float]) -> dict[str, float]:
    ends = np.cumsum(counts)
    return {
        name: sum(units.get(number, 0.0) for number in range(end - count, end))
        for name, count, end in zip(names, counts, ends, strict=True)
    }


_main = command(
    __doc__,
    "benchmarks.gpu_stages",
    [
        Part("data", 90, data_part),
        Part("training", 90, training_part),
        Part("hessian", 300, hessian_part),
        Part("eigenbasis", 300, eigenbasis_part),
    ],
    option("--folder", type=Path, required=True, help="where stages lie"),
    option("--iterations", type=int, default=200, help="of training (default: 200)"),
    *OPTIONS,
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the command, in a folder that is removed where none is given."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--width" not in words:
        words += ["--width", "1"]
    if "--folder" in words or "--help" in words or "-h" in words:
        return _main(words)
    with tempfile.TemporaryDirectory() as folder:
        return _main([*words, "--folder", folder])


if __name__ == "__main__":
    main()
