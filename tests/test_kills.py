"""The long stages under SIGKILL at random moments: the same call ends with the arrays of an undisturbed run."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from quadscape.config import Experiment, parse_experiment
from quadscape.curvature import divide_and_conquer, eigensolver, gauss_newton
from quadscape.curvature.eigenbasis import EigenbasisTask
from quadscape.curvature.gauss_newton import GaussNewtonTask
from quadscape.curvature.hessian import HessianShardTask, HessianTask
from quadscape.data import prepare
from quadscape.extraction import extract_checkpoint
from quadscape.numerics import apply_numerics
from quadscape.stage import Task, open_stage, read_events, run_stage
from quadscape.training import TrainingTask

# Of each stage; the more, the longer.
KILLS = [8, pytest.param(24, marks=pytest.mark.long)]
EXPERIMENT = {
    "data": {"source": "digits", "held_out": 0.8},
    "model": {"factory": "cnn", "channels": [4, 8]},
    "training": {
        "iterations": 1500,
        "batch_size": 50,
        "learning_rate": {"schedule": "steps", "value": 0.05, "milestones": [700]},
        "trajectory": {"stride": 3, "dense": 9},
        "evaluate_every": 100,
    },
    "runs": [{"name": "a", "checkpoints": [300, 1500]}],
    "curvature": {"dtype": "float32"},
}


def _task(stage: str, root: str) -> Task:
    experiment: Experiment = parse_experiment(EXPERIMENT)
    run, home = experiment.runs[0], Path(root)
    data, checkpoint = home / "data.zarr", home / "checkpoint.zarr"
    if stage == "training":
        return TrainingTask(run, 0, experiment.model, experiment.loss, data, "cpu")
    if stage == "hessian_shard":
        return HessianShardTask(checkpoint, data, experiment.curvature, "cpu")
    if stage == "hessian":
        return HessianTask(home / "hessian", checkpoint, data, experiment.curvature, "cpu")
    if stage == "gauss_newton":
        gauss_newton._ACCUMULATED_BYTES["cpu"] = 1 << 19  # several runs of columns
        return GaussNewtonTask(checkpoint, data, experiment.curvature, "cpu")
    if stage == "streamed":
        eigensolver.USABLE = 0.0  # as if nothing fitted
    return EigenbasisTask(home / "hessian/manifest.json", checkpoint, data, experiment.curvature, "cpu")


def _work(stage: str, root: str, directory: str) -> None:
    apply_numerics(1)
    os.environ["PYTHONUNBUFFERED"] = "1"
    run_stage(_task(stage, root), directory, log=lambda _: None)


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.test_kills", "test_kills", "torch", "scipy.linalg"])


def _start(stage: str, root: Path, directory: Path) -> BaseProcess:
    child = CONTEXT.Process(target=_work, args=(stage, str(root), str(directory)))
    child.start()
    return child


def _finish(stage: str, root: Path, directory: Path) -> float:
    began = time.monotonic()
    child = _start(stage, root, directory)
    child.join(300)
    assert child.exitcode == 0
    return time.monotonic() - began


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and each stage once, undisturbed."""
    root = tmp_path_factory.mktemp("kills")
    experiment = parse_experiment(EXPERIMENT)
    prepare(experiment.data, experiment.seed, root / "data.zarr")
    _finish("training", root, root / "training")
    extract_checkpoint(
        experiment,
        experiment.runs[0].name,
        300,
        root / "training/manifest.json",
        root / "data.zarr",
        root / "checkpoint.zarr",
    )
    _finish("hessian_shard", root, root / "hessian_shards/1-of-1")
    (root / "hessian_shard").symlink_to(root / "hessian_shards/1-of-1")
    _finish("hessian", root, root / "hessian")
    _finish("gauss_newton", root, root / "gauss_newton")
    _finish("eigenbasis", root, root / "eigenbasis")
    _finish("streamed", root, root / "streamed")
    return root


def _decoded(directory: Path) -> dict[str, np.ndarray]:
    stage = open_stage(directory)
    group = zarr.open_group(directory / "store.zarr", mode="r")
    names = [name for name, member in group.members(max_depth=None) if isinstance(member, zarr.Array)]
    return {name: stage.read(name) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("most", KILLS)
@pytest.mark.parametrize("stage", ["training", "hessian_shard", "gauss_newton", "eigenbasis", "streamed"])
def test_killed_at_random_moments(home: Path, tmp_path: Path, stage: str, most: int) -> None:
    units = open_stage(home / stage).manifest["units"]
    assert units >= 4, "too few units for kills between them"
    expected = _decoded(home / stage)
    usual = _finish(stage, home, tmp_path / "timing")
    chance = random.Random(f"{stage} {most}")
    kills, rounds, resumed = 0, 0, 0
    while kills < most:
        directory = tmp_path / f"round-{rounds}"
        rounds += 1
        while True:
            child = _start(stage, home, directory)
            child.join(chance.uniform(0.0, usual * 1.1))
            if child.exitcode is None and kills < most:
                os.kill(child.pid or 0, signal.SIGKILL)
                child.join()
                kills += 1
                continue
            child.join(300)
            assert child.exitcode == 0
            break
        starts = [event["done"] for event in read_events(directory) if event["event"] == "start"]
        resumed += sum(done > 0 for done in starts)
        found = _decoded(directory)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=f"{stage}: {name}")
        assert (directory / "manifest.json").read_bytes() == (home / stage / "manifest.json").read_bytes()
        assert not [path for path in directory.iterdir() if "staging" in path.name or "partial" in path.name]
    assert resumed > 0, "no kill fell between two units"


@pytest.mark.slow
def test_streamed_basis_is_killed_in_every_part(home: Path, tmp_path: Path) -> None:
    """Inside the reduction, divide and conquer, the back-transformation, and among the products."""
    stage = open_stage(home / "streamed", "eigenbasis")
    assert stage.manifest["plan"]["solver"] == "streamed"
    expected, units = _decoded(home / "streamed"), stage.manifest["units"]
    size = stage.manifest["results"]["size"]
    reduction, levels = -(-size // stage.manifest["plan"]["columns"]), 1 + divide_and_conquer.depth(size)
    assert reduction >= 2
    assert levels >= 2
    targets = {"reduction": 1, "levels": reduction + 1, "ranges": reduction + levels + 2, "products": units - 2}
    assert sorted(targets.values()) == list(targets.values())
    directory = tmp_path / "streamed"
    events = directory / "events.jsonl"
    for part, done in targets.items():
        child = _start("streamed", home, directory)
        while child.is_alive() and not (events.exists() and f'"done":{done},' in events.read_text().replace(" ", "")):
            time.sleep(0.001)
        assert child.exitcode is None, part
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
    _finish("streamed", home, directory)
    starts = [event["done"] for event in read_events(directory) if event["event"] == "start"]
    assert starts[0] == 0
    assert all(done <= start <= done + 3 for done, start in zip(targets.values(), starts[1:], strict=True))
    found = _decoded(directory)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert (directory / "manifest.json").read_bytes() == (home / "streamed/manifest.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["training", "hessian_shard", "gauss_newton", "eigenbasis", "streamed"])
def test_damaged_chunks_are_found_and_computed_again(home: Path, tmp_path: Path, stage: str) -> None:
    expected = _decoded(home / stage)
    directory = tmp_path / stage
    _finish(stage, home, directory)
    files = sorted(p for p in (directory / "store.zarr").rglob("*") if p.is_file() and p.name != "zarr.json")
    chance = random.Random(stage)
    harms: list[Callable[[Path], Any]] = [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    ]
    for harm, path in zip(harms, chance.sample(files, len(harms)), strict=True):
        harm(path)
    (directory / "manifest.json").unlink()
    _finish(stage, home, directory)
    for name, values in _decoded(directory).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=f"{stage}: {name}")
    assert (directory / "manifest.json").read_bytes() == (home / stage / "manifest.json").read_bytes()
