"""The long stages under SIGKILL at random moments: the same call ends with the arrays of an undisturbed run."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from fork_server import CONTEXT, TORCH, call, start_server
from handed_over import guard

from quadscape.curvature import divide_and_conquer, eigensolver, gauss_newton
from quadscape.curvature.eigenbasis import EigenbasisTask
from quadscape.curvature.gauss_newton import GaussNewtonTask
from quadscape.curvature.hessian import HessianShardTask, HessianTask
from quadscape.data.sets import prepare
from quadscape.numerics import apply_numerics
from quadscape.planning.experiment import Experiment
from quadscape.planning.experiment_file import parse_experiment
from quadscape.stage.events import read_events
from quadscape.stage.finished import open_stage
from quadscape.stage.protocol import StageStore, Task
from quadscape.stage.run import run_stage
from quadscape.training.task import TrainingTask
from results import extract
from tests.experiments import on_digits, steps

# Of each stage; the more, the longer.
KILLS = [6, pytest.param(30, marks=pytest.mark.long)]
EXPERIMENT = on_digits(
    0.9,
    {"factory": "cnn", "channels": [4, 4]},
    [300, 900],
    iterations=900,
    batch_size=50,
    learning_rate=steps(0.05, 500),
    trajectory={"stride": 3, "dense": 9},
    evaluate_every=100,
) | {"curvature": {"dtype": "float32"}}


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
        gauss_newton.ACCUMULATED_BYTES["cpu"] = 1 << 18  # several runs of columns
        return GaussNewtonTask(checkpoint, data, experiment.curvature, "cpu")
    if stage in {"streamed", "repeated"}:
        eigensolver.USABLE = 0.0  # as if nothing fitted
    if stage == "repeated":
        planned = eigensolver.streamed_plan
        eigensolver.streamed_plan = lambda *sizes: {**planned(*sizes), "journal": False}  # as on a GPU
    return EigenbasisTask(home / "hessian/manifest.json", checkpoint, data, experiment.curvature, "cpu")


def _work(stage: str, root: str, directory: str, killed_in: int | None) -> None:
    """Runs a stage; in one of its units it kills itself when that is computed, and not yet written.

    What a unit hands over must stay as it is, which is looked at in every run.
    """
    apply_numerics(1)
    os.environ["PYTHONUNBUFFERED"] = "1"
    task = _task(stage, root)
    guard(task)
    compute = task.compute

    def compute_or_die(unit: int, plan: dict[str, Any], store: StageStore) -> Any:
        values = compute(unit, plan, store)
        if unit == killed_in:
            os.kill(os.getpid(), signal.SIGKILL)
        return values

    task.compute = compute_or_die  # type: ignore[method-assign]
    run_stage(task, directory, log=lambda _: None)


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    start_server("test_kills", "scipy.linalg", *TORCH)


def _start(stage: str, root: Path, directory: Path, killed_in: int | None = None) -> BaseProcess:
    child = CONTEXT.Process(target=_work, args=(stage, str(root), str(directory), killed_in))
    child.start()
    return child


def _extract(root: str) -> None:
    experiment, home = parse_experiment(EXPERIMENT), Path(root)
    name, trajectory = experiment.runs[0].name, home / "training/manifest.json"
    extract(experiment, name, 300, trajectory, home / "data.zarr", home / "checkpoint.zarr")


def _finish(stage: str, root: Path, directory: Path) -> None:
    child = _start(stage, root, directory)
    child.join(300)
    assert child.exitcode == 0


def _done(directory: Path) -> int:
    """Units that are finished there."""
    return max((event["done"] for event in read_events(directory) if event["event"] == "unit"), default=0)


def _kill(child: BaseProcess, directory: Path, gaps: list[float], chance: random.Random, between: bool) -> bool:
    """Kills a stage at a random moment, and tells whether it had not ended before.

    Units are waited for, and not only seconds: a machine that has become slower or faster changes where between two
    units the kill falls, and neither how many units are done nor whether there is a kill at all.

    Args:
        child: Its process.
        directory: Of the stage.
        gaps: What `gaps` tells of the stage.
        chance: Draws the moment.
        between: Between two of the units that are left, or else while it starts or, once half is done, after the last.
    """
    done, units = _done(directory), len(gaps) - 1
    if between and done + 1 < units:
        target = chance.randrange(done + 1, units)
    else:
        target = chance.choice([done, units]) if done > units / 2 else done
    while child.is_alive() and _done(directory) < target:
        time.sleep(0.002)
    child.join(chance.uniform(0.0, gaps[0 if target == done else target]))
    if child.exitcode is not None:
        return False
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    return True


@pytest.fixture(scope="module")
def gaps() -> dict[str, list[float]]:
    """Of each stage, undisturbed: seconds to its first unit's end, from each to the next, and from the last on."""
    return {}


@pytest.fixture(scope="module")
def home(server: None, tmp_path_factory: pytest.TempPathFactory, gaps: dict[str, list[float]]) -> Path:
    """Data, and each stage once, undisturbed."""
    root = tmp_path_factory.mktemp("kills")

    def finish(stage: str, directory: str = "") -> None:
        times = [time.time()]
        _finish(stage, root, root / (directory or stage))
        events = read_events(root / (directory or stage))
        times += [event["time"] for event in events if event["event"] == "unit"] + [time.time()]
        gaps[stage] = [max(0.0, after - before) for before, after in pairwise(times)]

    experiment = parse_experiment(EXPERIMENT)
    prepare(experiment.data, experiment.seed, root / "data.zarr")
    finish("training")
    call(_extract, str(root))
    finish("hessian_shard", "hessian_shards/1-of-1")
    (root / "hessian_shard").symlink_to(root / "hessian_shards/1-of-1")
    finish("hessian")
    finish("gauss_newton")
    finish("eigenbasis")
    finish("streamed")
    return root


def _decoded(directory: Path) -> dict[str, np.ndarray]:
    stage = open_stage(directory)
    group = zarr.open_group(directory / "store.zarr", mode="r")
    names = [name for name, member in group.members(max_depth=None) if isinstance(member, zarr.Array)]
    return {name: stage.read(name) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("most", KILLS)
@pytest.mark.parametrize("stage", ["training", "hessian_shard", "gauss_newton", "eigenbasis", "streamed"])
def test_killed_at_random_moments(home: Path, gaps: dict[str, list[float]], place: Path, stage: str, most: int) -> None:
    assert len(gaps[stage]) > 4, "too few units for kills between them"
    expected = _decoded(home / stage)
    chance = random.Random(f"{stage} {most}")
    kills, rounds, resumed = 0, 0, 0
    while kills < most:
        directory = place / f"round-{rounds}"
        rounds += 1
        while True:
            child = _start(stage, home, directory)
            if kills < most and _kill(child, directory, gaps[stage], chance, between=kills % 2 == 1):
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
@pytest.mark.parametrize("way", ["streamed", "repeated"])
def test_streamed_basis_is_killed_in_every_part(home: Path, place: Path, way: str) -> None:
    """Inside the reduction, divide and conquer, the back-transformation, and among the products."""
    if way == "repeated":
        _finish(way, home, home / way)
    stage = open_stage(home / way, "eigenbasis")
    assert stage.manifest["plan"]["solver"] == "streamed"
    expected, units = _decoded(home / way), stage.manifest["units"]
    size = stage.manifest["results"]["size"]
    reduction, levels = -(-size // stage.manifest["plan"]["columns"]), 1 + divide_and_conquer.depth(size)
    assert reduction >= 2
    assert levels >= 2
    targets = {"reduction": 1, "levels": reduction + 1, "ranges": reduction + levels + 2, "products": units - 2}
    assert sorted(targets.values()) == list(targets.values())
    directory = place / way
    for part, done in targets.items():
        child = _start(way, home, directory, killed_in=done)
        child.join(300)
        assert child.exitcode == -signal.SIGKILL, part
    _finish(way, home, directory)
    starts = [event["done"] for event in read_events(directory) if event["event"] == "start"]
    # The unit before was computed, too, and may have been lost while it was stored.
    assert len(starts) == 1 + len(targets)
    assert all(done - 1 <= start <= done for start, done in zip(starts[1:], targets.values(), strict=True))
    found = _decoded(directory)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert (directory / "manifest.json").read_bytes() == (home / way / "manifest.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["training", "hessian_shard", "gauss_newton", "eigenbasis", "streamed"])
def test_damaged_chunks_are_found_and_computed_again(home: Path, place: Path, stage: str) -> None:
    expected = _decoded(home / stage)
    directory = shutil.copytree(home / stage, place / stage)
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
