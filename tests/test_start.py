"""Runs that go on from the state of another."""

import numpy as np
import pytest
import torch
from cases import write_random_data
from test_training import Interrupted, make_run, train

from quadscape.config.sections import CNN, Adam, Custom, Start
from quadscape.errors import ConfigError, StoreError
from quadscape.planning.experiment_file import parse_experiment
from quadscape.stage.run import run_stage
from quadscape.store import store_directory
from quadscape.training.replay import replay, write_start
from quadscape.training.start import StartPoint
from quadscape.training.trajectory import Trajectory
from tests.experiments import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 70
CONSTANT = {"schedule": "constant", "value": 0.02}
CASES = {
    "momentum and BatchNorm": ({"momentum": 0.9}, CNN(factory="cnn", normalization="batch")),
    "Adam and dropout": (
        {"optimizer": Adam(method="adam"), "sampling": "independent"},
        Custom(factory="test_training:network_with_dropout"),
    ),
    "ragged batches": ({"nesterov": True, "remainder": "keep"}, CNN(factory="cnn", channels=(4,))),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_random_data(tmp_path_factory.mktemp("data") / "data.zarr")


def begun(run, start, at, data, path, model, task=None, seed=0):
    """Trains a run from a start point."""

    def make(*given):
        return (task or Interrupted)(*given, StartPoint.load(at, start))

    for _ in range(6):
        try:
            run_stage(make(run, seed, model, "cross_entropy", data, "cpu"), path, log=lambda text: None)
        except KeyboardInterrupt:
            continue
        break
    return Trajectory.open(path)


@pytest.mark.parametrize("name", CASES)
def test_a_continuation_with_all_kept_is_bitwise_the_uninterrupted_run(name, data, tmp_path):
    keys, model = CASES[name]
    run = make_run(iterations=STEPS, learning_rate=CONSTANT, **keys)
    _, whole = train(tmp_path / "whole", run, data, model, loss="cross_entropy")
    expected = whole.stage.read("theta")
    for iteration in (0, 33, 64):
        at = tmp_path / f"{iteration}.zarr"
        torch.manual_seed(iteration)
        write_start(tmp_path / "whole", data, iteration, at)
        rest = make_run(iterations=STEPS - iteration, learning_rate=CONSTANT, **keys)
        start = Start(run="whole", iteration=iteration)
        found = begun(rest, start, at, data, tmp_path / f"from-{iteration}", model)
        np.testing.assert_array_equal(found.stage.read("theta"), expected[iteration:])
        np.testing.assert_array_equal(found.stage.read("batch"), whole.stage.read("batch")[iteration:])
        for array in ("resume/theta", *(["resume/buffers"] if "BatchNorm" in name else [])):
            np.testing.assert_array_equal(found.stage.read(array)[-1], whole.stage.read(array)[-1])
    # A continuation of a continuation, and what it did not keep.
    write_start(tmp_path / "from-33", data, 10, tmp_path / "43.zarr")
    rest = make_run(iterations=STEPS - 43, learning_rate=CONSTANT, **keys)
    begun(rest, Start(run="b", iteration=10), tmp_path / "43.zarr", data, tmp_path / "from-43", model)
    np.testing.assert_array_equal(list(replay(tmp_path / "from-43", data, 3, 5)), expected[46:49])


def test_what_is_fresh_starts_as_at_the_start_of_a_run(data, tmp_path):
    model = CNN(factory="cnn", channels=(4,))
    run = make_run(iterations=STEPS, learning_rate=CONSTANT, momentum=0.9)
    _, whole = train(tmp_path / "whole", run, data, model, loss="cross_entropy")
    write_start(tmp_path / "whole", data, 33, tmp_path / "33.zarr")
    kept = whole.stage.read("theta")
    one = make_run(iterations=5, learning_rate=CONSTANT, momentum=0.9, weight_decay=0.0)
    start = Start(run="whole", iteration=33, optimizer="fresh", batches="fresh")
    found = begun(one, start, tmp_path / "33.zarr", data, tmp_path / "fresh", model, seed=7)
    _, other = train(tmp_path / "other", one, data, model, seed=7, loss="cross_entropy")
    np.testing.assert_array_equal(found.theta(0), kept[33])
    np.testing.assert_array_equal(found.stage.read("batch"), other.stage.read("batch"))
    # Without a past, the first step is −ηg: twice as far at twice the rate.
    double = make_run(iterations=5, learning_rate={**CONSTANT, "value": 0.04}, momentum=0.9, weight_decay=0.0)
    twice = begun(double, start, tmp_path / "33.zarr", data, tmp_path / "twice", model, seed=7)
    np.testing.assert_allclose(twice.theta(1) - kept[33], 2 * (found.theta(1) - kept[33]), rtol=1e-9, atol=1e-15)
    # With it, it is not.
    start = Start(run="whole", iteration=33, batches="fresh")
    past = begun(one, start, tmp_path / "33.zarr", data, tmp_path / "past", model, seed=7)
    assert not np.allclose(past.theta(1), found.theta(1))


def test_another_length_of_the_run_leaves_its_start_points_byte_by_byte(data, tmp_path):
    for steps in (40, 64):
        run = make_run(iterations=steps, learning_rate=CONSTANT)
        train(tmp_path / str(steps), run, data, CNN(factory="cnn"), loss="cross_entropy")
        write_start(tmp_path / str(steps), data, 35, tmp_path / f"start-{steps}.zarr")
    first, second = (
        {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for place in (store_directory(tmp_path / f"start-{steps}.zarr") for steps in (40, 64))
    )
    assert first == second


def test_a_start_point_of_another_optimizer_is_refused(data, tmp_path):
    run = make_run(iterations=40, learning_rate=CONSTANT)
    train(tmp_path / "whole", run, data, CNN(factory="cnn"), loss="cross_entropy")
    write_start(tmp_path / "whole", data, 35, tmp_path / "start.zarr")
    other = make_run(iterations=40, learning_rate=CONSTANT, optimizer=Adam(method="adam"))
    with pytest.raises(StoreError, match="another network or optimizer"):
        begun(other, Start(run="a", iteration=35), tmp_path / "start.zarr", data, tmp_path / "b", CNN(factory="cnn"))


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        ([{"name": "b", "start": {"run": "c", "iteration": 1}}], "names the run 'c'; the runs are a, b"),
        (
            [{"name": "b", "start": {"run": "a", "iteration": 41}}],
            "iteration 41 of run 'a', which ends at iteration 40",
        ),
        (
            [
                {"name": "b", "start": {"run": "c", "iteration": 1}},
                {"name": "c", "start": {"run": "b", "iteration": 1}},
            ],
            "these runs start from each other, b from c from b",
        ),
        ([{"name": "b", "start": {"run": "b", "iteration": 1}}], "these runs start from each other, b from b"),
        (
            [{"name": "b", "optimizer": "adam", "start": {"run": "a", "iteration": 1}}],
            "keeps the state of optimizer sgd, but the run's is adam; valid is optimizer: fresh",
        ),
        (
            [{"name": "b", "model": {"factory": "linear"}, "start": {"run": "a", "iteration": 1}}],
            "names the run 'a', which has another model",
        ),
        (
            [{"name": "b", "batch_size": 8, "start": {"run": "a", "iteration": 1}}],
            "batches of run 'a', whose batch_size is 32, but the run's is 8; valid is batches: fresh",
        ),
        ([{"name": "b", "start": {"run": "a", "iteration": -1}}], r"runs\[1\]\.start\.iteration is -1"),
        ([{"name": "b", "start": {"run": "a", "step": 1}}], r"start\.step is not a known key"),
        ([{"name": "b", "path": "x.pt", "checkpoints": [1], "start": {"run": "a", "iteration": 1}}], "path and start"),
    ],
)
def test_impossible_starts_are_refused(runs, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_experiment({**TINY, "runs": [*TINY["runs"], *runs]})
