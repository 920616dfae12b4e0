"""A run that is made longer takes the steps that both have from what was set aside, and equals an undisturbed one."""

from pathlib import Path
from typing import Any

import pytest
from cases import write_random_data

from quadscape.config.sections import CNN, MLP, Adam, Constant, Cosine, Model, Run, Steps
from quadscape.stage.run import run_stage
from quadscape.training.task import TrainingTask

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 16


class Counting(TrainingTask):
    """Units of a few steps; counts steps that are taken."""

    taken = 0

    def plan(self) -> dict[str, Any]:
        return {**super().plan(), "threads": 1, "steps": STEPS}

    def _step(self, *arguments: Any) -> Any:
        self.taken += 1
        return super()._step(*arguments)


def make_run(**keys: Any) -> Run:
    return Run(
        **{
            "name": "a",
            "iterations": 40,
            "batch_size": 16,
            "learning_rate": Constant(schedule="constant", value=0.02),
            "trajectory": {"stride": 3, "dense": 2},
            "evaluate_every": 7,
            **keys,
        }
    )


PLAIN = MLP(factory="mlp", hidden=(4,))
WITH_BUFFERS = CNN(factory="cnn", normalization="batch")


def train(directory: Path, run: Run, data: Path, seed: int = 0, model: Model = PLAIN) -> tuple[int, bytes]:
    """Steps that were taken, and the manifest."""
    task = Counting(run, seed, model, "cross_entropy", data, "cpu")
    run_stage(task, directory, log=lambda _: None)
    return task.taken, (directory / "manifest.json").read_bytes()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_data(tmp_path_factory.mktemp("data") / "data.zarr")


def _with(kind: type, **keys: Any) -> dict[str, Any]:
    return {"learning_rate": kind(schedule=kind.__name__.lower(), value=0.02, **keys)}


# What was there before, what is asked for then, and how many of its steps are taken from there.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "longer": ({"iterations": 40}, {"iterations": 55}, 32),
    "shorter, with Adam": (
        {"optimizer": Adam(method="adam"), "iterations": 60},
        {"optimizer": Adam(method="adam"), "iterations": 50},
        48,
    ),
    # Around step 60 every iterate is kept, and before that they are the same.
    "a later milestone": ({"iterations": 70}, {"iterations": 70, **_with(Steps, milestones=(60,), factor=0.1)}, 48),
}


@pytest.mark.parametrize("case", CASES)
def test_it_equals_an_undisturbed_run(case: str, data: Path, place: Path) -> None:
    before, after, shared = CASES[case]
    length, model = make_run(**after).iterations, WITH_BUFFERS if case == "longer" else PLAIN
    train(place / "a", make_run(**before), data, model=model)
    taken, manifest = train(place / "a", make_run(**after), data, model=model)
    undisturbed, expected = train(place / "b", make_run(**after), data, model=model)
    # The time of a step is measured, too, but that is none of these.
    assert undisturbed == length
    assert taken == length - shared
    assert manifest == expected


@pytest.mark.parametrize(
    "keys",
    [_with(Cosine, final=0.001), {"weight_decay": 0.1}, {"trajectory": {"stride": 4, "dense": 2}}],
    ids=["another rate", "another decay", "other iterates kept"],
)
def test_of_what_is_not_the_same_nothing_is_taken(keys: dict[str, Any], data: Path, place: Path) -> None:
    train(place / "a", make_run(), data)
    assert train(place / "a", make_run(iterations=41, **keys), data)[0] == 41


def test_of_another_seed_nothing_is_taken(data: Path, place: Path) -> None:
    train(place / "a", make_run(), data)
    assert train(place / "a", make_run(iterations=41), data, seed=1)[0] == 41


def test_of_what_is_damaged_nothing_is_taken(data: Path, place: Path) -> None:
    train(place / "a", make_run(), data)
    chunk = place / "a/store.zarr/theta/c/1/0"
    content = bytearray(chunk.read_bytes())
    content[100] ^= 4
    chunk.write_bytes(content)
    taken, manifest = train(place / "a", make_run(iterations=41), data)
    # The first unit is whole, the second is not.
    assert taken == 41 - 16
    assert manifest == train(place / "b", make_run(iterations=41), data)[1]
