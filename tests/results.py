"""Finished results of a small experiment, in the places where the workflow puts them, without Snakemake."""

from pathlib import Path

from quadscape.probes.interfaces import checkpoint_attributes

from quadscape.checkpoint import Checkpoint
from quadscape.config import Experiment, parse_experiment
from quadscape.curvature.eigenbasis import Eigenbasis, EigenbasisTask
from quadscape.curvature.gauss_newton import GaussNewtonTask
from quadscape.curvature.hessian import HessianShardTask, HessianTask
from quadscape.data import data_info, prepare
from quadscape.extraction import extract_checkpoint
from quadscape.probes import spectrum
from quadscape.stage import Task, run_stage
from quadscape.training import TrainingTask
from quadscape.workflow import Places

ITERATIONS = (0, 40)


def small_experiment(**changes: object) -> Experiment:
    """An MLP of 235 parameters on digits, two checkpoints."""
    return parse_experiment(
        {
            "name": "small",
            "data": {"source": "digits", "held_out": 0.8},
            "model": {"factory": "mlp", "hidden": [3]},
            "training": {
                "iterations": 40,
                "batch_size": 32,
                "learning_rate": {"schedule": "constant", "value": 0.1},
                "trajectory": {"stride": 5, "dense": 2},
                "evaluate_every": 10,
            },
            "runs": [{"name": "a", "checkpoints": list(ITERATIONS)}],
            "curvature": {"dtype": "float64"},
            **changes,
        }
    )


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
    places, section = Places(experiment), experiment.runs[0]
    data = root / places.data
    prepare(experiment.data, experiment.seed, data)
    trajectory = root / places.trajectory("a")
    run(TrainingTask(section, 0, experiment.model, experiment.loss, data, "cpu"), root, places.trajectory("a"))
    for iteration in ITERATIONS:
        checkpoint = root / places.checkpoint("a", iteration)
        extract_checkpoint(experiment, "a", iteration, trajectory, data, checkpoint)
        curvature(root, experiment, iteration)
        measure_spectrum(root, experiment, iteration)
    return root / places.root


def curvature(root: Path, experiment: Experiment, iteration: int) -> None:
    """Everything of one checkpoint; what is finished is only checked."""
    places, options = Places(experiment), experiment.curvature
    data, checkpoint = root / places.data, root / places.checkpoint("a", iteration)
    shard, hessian = places.hessian_shard("a", iteration, 1), places.hessian("a", iteration)
    run(HessianShardTask(checkpoint, data, options, "cpu"), root, shard)
    run(HessianTask((root / hessian).parent, checkpoint, data, options, "cpu"), root, hessian)
    basis = places.eigenbasis("a", iteration)
    run(EigenbasisTask(root / hessian, checkpoint, data, options, "cpu"), root, basis)
    if iteration == ITERATIONS[-1]:
        run(GaussNewtonTask(checkpoint, data, options, "cpu"), root, places.gauss_newton("a", iteration))


def measure_spectrum(root: Path, experiment: Experiment, iteration: int) -> None:
    """The table of a checkpoint's spectrum, from its eigenbasis."""
    places = Places(experiment)
    basis = Eigenbasis(root / places.eigenbasis("a", iteration))
    count = data_info(root / places.data).counts["train"]
    head = checkpoint_attributes(Checkpoint.load(root / places.checkpoint("a", iteration)), basis, count)
    head = {**head, "invariances": basis.invariances}
    table = spectrum.measure(basis.eigenvalues, basis.zero_threshold, basis.generator_overlaps, head)
    table.write(root / places.table("spectrum", "a", iteration))
