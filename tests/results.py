"""Finished results of a small experiment, in the places where the workflow puts them, without Snakemake."""

from pathlib import Path

from quadscape.curvature.eigenbasis import EigenbasisTask
from quadscape.curvature.gauss_newton import GaussNewtonTask
from quadscape.curvature.hessian import HessianShardTask, HessianTask
from quadscape.curvature.self_check import SelfCheck
from quadscape.data.sets import prepare
from quadscape.measures import MEASURES
from quadscape.measures.job import Job
from quadscape.measures.run import run_measure
from quadscape.planning.experiment import Experiment
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.labels import measure_label
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from quadscape.results.places import Places
from quadscape.stage.protocol import Task
from quadscape.stage.run import run_stage
from quadscape.training.extraction import extract_checkpoint
from quadscape.training.task import TrainingTask
from tests.experiments import SMALL

ITERATIONS = (0, 40)
PLACES = {
    "training": "trajectory",
    "hessian_shard": "checkpoints/40/hessian_shards/1-of-1",
    "hessian": "checkpoints/40/hessian",
    "gauss_newton": "checkpoints/40/gauss_newton",
    "eigenbasis": "checkpoints/40/eigenbasis",
}
"""Where the stages of a checkpoint lie, below the folder of the run."""


def small_experiment(**changes: object) -> Experiment:
    """An MLP of 235 parameters on digits, two checkpoints."""
    return parse_experiment({**SMALL, **changes})


def silent(_: str) -> None:
    return None


def run(task: Task, root: Path, manifest: str) -> None:
    """Runs a stage in the directory of its manifest, a path relative to a root."""
    run_stage(task, (root / manifest).parent, log=silent)


def make_results(root: Path) -> Path:
    """Data, training, checkpoints, Hessians, eigenbases, spectra, and one Gauss–Newton matrix.

    Returns the directory of the experiment.
    """
    experiment = small_experiment()
    places, section = Places(experiment.name, experiment.curvature), experiment.runs[0]
    data = root / places.data
    prepare(experiment.data, experiment.seed, data)
    trajectory = root / places.trajectory("a")
    run(TrainingTask(section, 0, experiment.model, experiment.loss, data, "cpu"), root, places.trajectory("a"))
    for iteration in ITERATIONS:
        checkpoint = root / places.checkpoint("a", iteration)
        extract(experiment, "a", iteration, trajectory, data, checkpoint)
        curvature(root, experiment, iteration)
        measure_spectrum(root, experiment, iteration)
    return root / places.root


def extract(
    experiment: Experiment, run: str, iteration: int, source: Path | None, data: Path, out: str | Path
) -> SelfCheck:
    """Writes one checkpoint of an experiment."""
    section = experiment.run(run)
    return extract_checkpoint(
        experiment.model_of(section), experiment.loss, section, iteration, source, data, out, experiment.device
    )


def curvature(root: Path, experiment: Experiment, iteration: int) -> None:
    """Everything of one checkpoint; what is finished is only checked."""
    places = Places(experiment.name, experiment.curvature)
    data, checkpoint = root / places.data, root / places.checkpoint("a", iteration)
    hessian_and_basis(root, places, experiment, "a", iteration, data)
    if iteration == ITERATIONS[-1]:
        task = GaussNewtonTask(checkpoint, data, experiment.curvature, "cpu")
        run(task, root, places.gauss_newton("a", iteration))


def hessian_and_basis(
    root: Path, places: Places, experiment: Experiment, name: str, key: int | str, data: Path
) -> None:
    """Hessian and eigenbasis of a checkpoint of a run, on some data."""
    options, checkpoint = experiment.curvature, root / places.checkpoint(name, key)
    shard, hessian = places.hessian_shard(name, key, 1), places.hessian(name, key)
    run(HessianShardTask(checkpoint, data, options, "cpu"), root, shard)
    run(HessianTask((root / hessian).parent, checkpoint, data, options, "cpu"), root, hessian)
    run(EigenbasisTask(root / hessian, checkpoint, data, options, "cpu"), root, places.eigenbasis(name, key))


def measure_spectrum(root: Path, experiment: Experiment, iteration: int) -> Path:
    """The result of a checkpoint's spectrum, from its eigenbasis; returns its manifest."""
    return measure(root, experiment, "spectrum", "a", str(iteration))


def measure(root: Path, experiment: Experiment, name: str, run: str, key: str) -> Path:
    """One result of a measure, as its job makes it; returns its manifest."""
    targets = Targets(Problem.of(experiment))
    declared, options = MEASURES[name], targets.options(name, run)
    inputs = {part: [root / path for path in paths] for part, paths in targets.inputs(declared, run, key).items()}
    iterations = [] if key == "run" else [int(iteration) for iteration in key.split("-")]
    job = Job(run, iterations, options, inputs, device="cpu", log=silent)
    manifest = root / targets.result(name, run, key)
    run_measure(declared, measure_label(name), job, options, manifest)
    return manifest
