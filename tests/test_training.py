"""Training: against an independent NumPy SGD, batches, resuming, what is stored, and divergence."""

import math

import numpy as np
import pytest
import torch
from cases import write_random_data
from hypothesis import given, settings
from hypothesis import strategies as st

from quadscape.config.sections import CNN, Constant, Cosine, Custom, Linear, ResNet9, Run, Steps
from quadscape.data.sets import DataSet
from quadscape.errors import ConfigError, ModelError, StageError
from quadscape.network.losses import example_losses
from quadscape.network.models import build_model, initial_vector
from quadscape.network.parameters import ParameterLayout, assign_vector
from quadscape.stage.run import run_stage
from quadscape.training.batches import Batches
from quadscape.training.steps import learning_rate
from quadscape.training.task import TrainingTask
from quadscape.training.trajectory import Trajectory

pytestmark = pytest.mark.usefixtures("one_thread")

LINEAR = Linear(factory="linear")
LAYOUT_ARRAYS = ("theta", "loss", "learning_rate", "gradient_norm", "batch", "evaluation")


class ShortUnits(TrainingTask):
    """The task itself, with units of 32 steps, so that a short run has several."""

    steps = 32

    def plan(self):
        return {**super().plan(), "threads": 1, "steps": self.steps}


def make_run(**keys):
    keys = {
        "name": "a",
        "iterations": 110,
        "batch_size": 16,
        "learning_rate": Steps(value=0.02, milestones=(40, 90), factor=0.1),
        "dtype": "float64",
        "trajectory": {"stride": 1, "dense": 0},
        "evaluate_every": 50,
        **keys,
    }
    return Run(**keys)


def train(path, run, data, model=LINEAR, seed=0, loss="squared_error", task=ShortUnits):
    manifest = run_stage(task(run, seed, model, loss, data, "cpu"), path, log=lambda text: None)
    return manifest, Trajectory.open(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_random_data(tmp_path_factory.mktemp("data") / "data.zarr")


# Against an independent SGD


def numpy_sgd(images, labels, classes, theta, batches, rates, momentum, nesterov, decay):
    """SGD on ½|Wx + b − onehot(y)|², written from the formulas in docs and schema; yields θ after every step."""
    pixels = images.reshape(len(images), -1)
    weight, bias = theta[: classes * pixels.shape[1]].reshape(classes, -1).copy(), theta[-classes:].copy()
    velocity_w, velocity_b = np.zeros_like(weight), np.zeros_like(bias)
    for indices, rate in zip(batches, rates, strict=True):
        x = pixels[indices]
        target = np.eye(classes)[labels[indices]]
        residual = x @ weight.T + bias - target
        loss = 0.5 * (residual**2).sum(1).mean()
        gradient_w, gradient_b = residual.T @ x / len(x), residual.mean(0)
        norm = math.sqrt((gradient_w**2).sum() + (gradient_b**2).sum())
        gradient_w, gradient_b = gradient_w + decay * weight, gradient_b + decay * bias
        velocity_w = momentum * velocity_w + gradient_w
        velocity_b = momentum * velocity_b + gradient_b
        step_w = gradient_w + momentum * velocity_w if nesterov else velocity_w
        step_b = gradient_b + momentum * velocity_b if nesterov else velocity_b
        weight, bias = weight - rate * step_w, bias - rate * step_b
        yield loss, norm, np.concatenate([weight.ravel(), bias])


@pytest.mark.parametrize(
    "keys",
    [
        {"momentum": 0.0, "weight_decay": 0.0, "remainder": "drop"},
        {"momentum": 0.9, "weight_decay": 0.0, "remainder": "keep"},
        {"momentum": 0.9, "weight_decay": 1e-2, "remainder": "wrap"},
        {"momentum": 0.9, "weight_decay": 1e-2, "remainder": "keep", "nesterov": True},
        {"momentum": 0.7, "weight_decay": 1e-3, "remainder": "wrap", "nesterov": True},
    ],
)
@pytest.mark.parametrize("warmup", [0, 15])
def test_trainer_equals_an_independent_sgd(keys, warmup, data, tmp_path):
    schedule = Steps(value=0.02, milestones=(40, 90), factor=0.1, warmup=warmup)
    run = make_run(**keys, learning_rate=schedule)
    _, trajectory = train(tmp_path / "run", run, data)
    loaded = DataSet.load(data, dtype=torch.float64)
    images, labels = (tensor.numpy() for tensor in loaded.split("train"))
    rates = [
        0.02 * (1 if t < 40 else 0.1 if t < 90 else 0.01) * (min(1, (t + 1) / warmup) if warmup else 1)
        for t in range(110)
    ]
    recorded = trajectory.stage.read("batch")[:110]
    batches = [row[row >= 0] for row in recorded]
    assert {len(batch) for batch in batches} == ({16, 2} if run.remainder == "keep" else {16})
    start = trajectory.theta(0)
    np.testing.assert_array_equal(start, initial_vector(LINEAR, (1, 8, 8), 3, 0).numpy())
    found = list(numpy_sgd(images, labels, 3, start, batches, rates, run.momentum, run.nesterov, run.weight_decay))
    curves = trajectory.curves()
    np.testing.assert_allclose(curves.learning_rate, rates, rtol=1e-14)
    np.testing.assert_allclose(curves.loss, [loss for loss, _, _ in found], rtol=1e-12)
    np.testing.assert_allclose(curves.gradient_norm[:, 0], [norm for _, norm, _ in found], rtol=1e-12)
    stored = trajectory.stage.read("theta")  # at once, which is much faster than one by one
    np.testing.assert_array_equal(stored[77], trajectory.theta(77))
    for t, (_, _, theta) in enumerate(found, start=1):
        mine = stored[t]
        assert np.linalg.norm(mine - theta) <= 1e-12 * np.linalg.norm(theta)
    assert np.linalg.norm(trajectory.theta(110) - start) > 0.1 * np.linalg.norm(start)


def test_late_small_steps_survive_in_float32_runs(data, tmp_path):
    # Steps of 1e-10 are mostly below float32's rounding of θ: with float32 master weights it would stand still.
    keys = {"learning_rate": Constant(schedule="constant", value=1e-10), "momentum": 0.0}
    _, single = train(tmp_path / "single", make_run(**keys, dtype="float32"), data)
    _, double = train(tmp_path / "double", make_run(**keys, dtype="float64"), data)
    moved, expected = (t.theta(110) - t.theta(0) for t in (single, double))
    assert np.linalg.norm(moved - expected) < 1e-5 * np.linalg.norm(expected)
    stagnant = single.theta(0).astype(np.float32)
    for step in np.diff(single.stage.read("theta"), axis=0):
        stagnant = stagnant + step.astype(np.float32)
    assert np.linalg.norm((stagnant - single.theta(0)) - moved) > 0.5 * np.linalg.norm(moved)


# Schedule


def test_schedules():
    steps = Steps(value=0.5, milestones=(3, 6), factor=0.1)
    rates = [learning_rate(steps, t, 8) for t in range(8)]
    np.testing.assert_allclose(rates, [0.5] * 3 + [0.05] * 3 + [0.005] * 2)
    cosine = Cosine(schedule="cosine", value=1.0, final=0.2, warmup=2)
    rates = [learning_rate(cosine, t, 7) for t in range(7)]
    np.testing.assert_allclose(
        rates, [0.5, 1.0, 1.0, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.4 * (1.5 - 0.70710678), 0.2]
    )
    constant = Constant(schedule="constant", value=0.3, warmup=3)
    np.testing.assert_allclose([learning_rate(constant, t, 5) for t in range(5)], [0.1, 0.2, 0.3, 0.3, 0.3])
    assert learning_rate(cosine.model_copy(update={"warmup": 0}), 0, 1) == 1.0


# Batches


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from(["wrap", "keep", "drop"]), st.integers(0, 2**70), st.data()
)
def test_every_epoch_is_a_permutation(count, size, remainder, seed, choose):
    size = min(size, count)
    batches = Batches(count, size, remainder, seed)
    if remainder == "wrap":
        stream = np.concatenate([batches.batch(t) for t in range(3 * count)])
        epochs = stream[: 3 * size * count].reshape(3 * size, count)
    else:
        per_epoch = count // size if remainder == "drop" else -(-count // size)
        epochs = [np.concatenate([batches.batch(e * per_epoch + k) for k in range(per_epoch)]) for e in range(3)]
    for epoch in epochs:
        assert epoch.dtype == np.int64
        expected = count - count % size if remainder == "drop" else count
        assert len(set(epoch.tolist())) == len(epoch) == expected
        assert set(epoch.tolist()) <= set(range(count))
    # Random access: any iteration, from a fresh object, in any order.
    t = choose.draw(st.integers(0, 5 * count))
    fresh = Batches(count, size, remainder, seed)
    np.testing.assert_array_equal(batches.batch(t), fresh.batch(t))
    np.testing.assert_array_equal(batches.batch(0), fresh.batch(0))
    assert batches.smallest == min(len(batches.batch(t)) for t in range(2 * count))


def test_epochs_and_seeds_differ():
    batches = Batches(100, 10, "drop", 0)
    assert not np.array_equal(batches.permutation(0), batches.permutation(1))
    assert not np.array_equal(batches.permutation(0), Batches(100, 10, "drop", 1).permutation(0))
    with pytest.raises(ConfigError, match=r"batch_size is 101.*valid are 1 to 100"):
        Batches(100, 101, "drop", 0)


def test_runs_of_one_seed_share_start_and_batches(data, tmp_path):
    first = train(tmp_path / "a", make_run(), data)[1]
    second = train(
        tmp_path / "b", make_run(name="b", learning_rate=Constant(schedule="constant", value=0.01), momentum=0.5), data
    )[1]
    other = train(tmp_path / "c", make_run(name="c"), data, seed=1)[1]
    np.testing.assert_array_equal(first.stage.read("batch"), second.stage.read("batch"))
    np.testing.assert_array_equal(first.theta(0), second.theta(0))
    assert not np.array_equal(first.stage.read("batch"), other.stage.read("batch"))
    assert not np.array_equal(first.theta(0), other.theta(0))


# Resuming


class Interrupted(ShortUnits):
    """Fails once at the start of every unit, as a kill between units would."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.allowed = 1

    def compute(self, unit, plan, store):
        if self.allowed == 0:
            raise KeyboardInterrupt
        self.allowed -= 1
        return super().compute(unit, plan, store)


@pytest.mark.parametrize(
    "model",
    [
        CNN(factory="cnn"),
        CNN(factory="cnn", normalization="batch"),
        Custom(factory="test_training:network_with_dropout"),
        Custom(factory="test_training:network_with_complex_buffer"),
    ],
)
def test_a_resumed_run_is_bitwise_the_undisturbed_one(model, data, tmp_path):
    run = make_run(dtype="float32", remainder="keep", iterations=100)
    manifest, whole = train(tmp_path / "whole", run, data, model, loss="cross_entropy")
    assert manifest["units"] == 4
    attempts = 0
    while True:
        attempts += 1
        torch.manual_seed(attempts)  # what else the process did must not matter
        try:
            again, pieces = train(tmp_path / "pieces", run, data, model, loss="cross_entropy", task=Interrupted)
            break
        except KeyboardInterrupt:
            continue
    assert attempts == 4
    for name in (*LAYOUT_ARRAYS, "resume/theta", "resume/momentum"):
        np.testing.assert_array_equal(whole.stage.read(name), pieces.stage.read(name))
    assert again == manifest
    assert whole.stage.digest == pieces.stage.digest
    assert (tmp_path / "whole" / "manifest.json").read_bytes() == (tmp_path / "pieces" / "manifest.json").read_bytes()


class Turned(torch.nn.Module):
    """Turns pairs of features by fixed angles."""

    def __init__(self):
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(3), torch.arange(3.0)))

    def forward(self, x):
        assert self.turn.is_complex()
        return torch.view_as_real(torch.view_as_complex(x.unflatten(1, (3, 2)).contiguous()) * self.turn).flatten(1)


def network_with_complex_buffer(shape, classes):
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), 6), Turned())
    return torch.nn.Sequential(flat, torch.nn.Linear(6, classes))


def network_with_dropout(shape, classes):
    pixels = math.prod(shape)
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(pixels, 5),
        torch.nn.Tanh(),
        torch.nn.Linear(5, classes),
    )


def test_the_length_of_units_does_not_matter(data, tmp_path):
    class Shorter(ShortUnits):
        steps = 8

    model = Custom(factory="test_training:network_with_dropout")
    whole = train(tmp_path / "a", make_run(), data, model)[1]
    pieces = train(tmp_path / "b", make_run(), data, model, task=Shorter)[1]
    for name in LAYOUT_ARRAYS:
        np.testing.assert_array_equal(whole.stage.read(name), pieces.stage.read(name))


def test_a_finished_run_is_not_computed_again(data, tmp_path):
    class Never(ShortUnits):
        def start(self, plan):
            raise AssertionError

        compute = start

    manifest, _ = train(tmp_path / "run", make_run(), data)
    (tmp_path / "run" / "manifest.json").unlink()
    assert train(tmp_path / "run", make_run(checkpoints=(3,)), data, task=Never)[0] == manifest


# What is stored


def test_nothing_is_stored_where_nothing_is_saved(data, tmp_path):
    run = make_run(trajectory={"stride": 7, "dense": 2}, remainder="keep", evaluate_every=30)
    _, trajectory = train(tmp_path / "run", run, data)
    dense = {*range(38, 43), *range(88, 93)}
    expected = sorted(dense | set(range(0, 111, 7)) | {110})
    np.testing.assert_array_equal(trajectory.saved, expected)
    theta = trajectory.stage.read("theta")
    kept = ~np.isnan(theta).all(1)
    np.testing.assert_array_equal(np.flatnonzero(kept), expected)
    assert np.isfinite(theta[kept]).all()
    evaluated = trajectory.curves().evaluated
    np.testing.assert_array_equal(evaluated, [0, 30, 60, 90, 110])
    batch = trajectory.stage.read("batch")
    assert (batch[110] == -1).all()
    assert (batch[3, 2:] == -1).all()
    assert (batch[3, :2] >= 0).all()
    for name in ("loss", "learning_rate", "gradient_norm"):
        values = trajectory.stage.read(name)
        assert len(values) == 111
        assert np.isfinite(values[:110]).all()
        assert np.isnan(values[110]).all()
    with pytest.raises(ConfigError, match=r"Iteration 15 .* 14 and 21\."):
        trajectory.theta(15)
    with pytest.raises(ConfigError, match=r"Iteration 999 .* 110\."):
        trajectory.theta(999)


@pytest.mark.parametrize("iterations", [1, 31, 32, 33, 64])
def test_runs_of_any_length(iterations, data, tmp_path):
    run = make_run(iterations=iterations)
    manifest, trajectory = train(tmp_path / "run", run, data)
    assert manifest["units"] == -(-iterations // 32)
    assert np.isfinite(trajectory.stage.read("theta")).all()
    states = trajectory.stage.read("resume/theta")
    np.testing.assert_array_equal(states[-1], trajectory.theta(iterations))
    np.testing.assert_array_equal(states[0], trajectory.theta(0))


def test_evaluations_and_layer_norms_are_those_of_the_saved_parameters(data, tmp_path):
    config = ResNet9(width=1)
    run = make_run(iterations=40, evaluate_every=20)
    manifest, trajectory = train(tmp_path / "run", run, data, config, loss="cross_entropy")
    loaded = DataSet.load(data, dtype=torch.float64)
    model = build_model(config, loaded.shape, 3).double()
    curves = trajectory.curves()
    layout = ParameterLayout.of(model)
    assert curves.counts == loaded.counts
    for iteration in curves.evaluated:
        assign_vector(model, torch.from_numpy(trajectory.theta(int(iteration))))
        for column, split in enumerate(("train", "validation", "test")):
            images, labels = loaded.split(split)
            outputs = model(images)
            loss = example_losses(outputs, labels, "cross_entropy").mean().item()
            accuracy = (outputs.argmax(1) == labels).double().mean().item()
            np.testing.assert_allclose(curves.evaluation[iteration, column], [loss, accuracy], rtol=1e-12)
    assert manifest["results"]["final"]["test"]["accuracy"] == accuracy
    iteration = 33
    assign_vector(model, torch.from_numpy(trajectory.theta(iteration)))
    indices = torch.from_numpy(trajectory.stage.read("batch", iteration))
    images, labels = loaded.split("train")
    loss = example_losses(model(images[indices]), labels[indices], "cross_entropy").mean()
    np.testing.assert_allclose(curves.loss[iteration], loss.item(), rtol=1e-12)
    loss.backward()
    for column, layer in enumerate(curves.layers):
        owned = [b.name for b in layout.blocks if b.layer == layer]
        squares = sum(model.get_parameter(name).grad.square().sum().item() for name in owned)
        np.testing.assert_allclose(curves.gradient_norm[iteration, column], math.sqrt(squares), rtol=1e-9)
    assert curves.layers[0] == "conv1"
    assert curves.layers[-1] == "linear"


def test_running_statistics_follow_pytorch(data, tmp_path):
    config = CNN(factory="cnn", channels=(4,), normalization="batch")
    run = make_run(iterations=40, momentum=0.0, weight_decay=0.0)
    _, trajectory = train(tmp_path / "run", run, data, config, loss="cross_entropy")
    loaded = DataSet.load(data, dtype=torch.float64)
    images, labels = loaded.split("train")
    model = build_model(config, loaded.shape, 3).double()
    assign_vector(model, torch.from_numpy(trajectory.theta(0)))
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    for indices in torch.from_numpy(trajectory.stage.read("batch")[:40]):
        optimiser.zero_grad()
        example_losses(model(images[indices]), labels[indices], "cross_entropy").mean().backward()
        optimiser.step()
    stored = trajectory.stage.read("resume/buffers")[-1]
    expected = torch.cat([b.reshape(-1).double() for b in model.buffers()])
    np.testing.assert_allclose(stored, expected.numpy(), rtol=1e-9)
    assert stored[-1] == 40


def test_fingerprint_leaves_out_what_does_not_determine_the_trajectory(data):
    first = TrainingTask(make_run(), 0, LINEAR, "squared_error", data, "cpu").parameters()
    second = TrainingTask(make_run(name="b", checkpoints=(4, 8), seed=0), 0, LINEAR, "squared_error", data).parameters()
    assert first == second
    assert TrainingTask(make_run().training(), 0, LINEAR, "squared_error", data, "cpu").parameters() == first
    third = TrainingTask(make_run(weight_decay=0.5), 0, LINEAR, "squared_error", data, "cpu").parameters()
    assert first != third


def test_plan_and_estimate(data):
    task = TrainingTask(make_run(iterations=1000), 0, LINEAR, "squared_error", data, "cpu")
    plan = task.plan()
    assert plan["steps"] == 256
    estimate = task.estimate(plan)
    assert estimate.seconds > 0
    assert estimate.disk_bytes > 1000 * 8 * 195
    assert (plan["threads"], plan["device"]) == (1, "cpu")
    assert TrainingTask(make_run(iterations=5), 0, LINEAR, "squared_error", data, "cpu").plan()["steps"] == 4


def test_units_are_shorter_where_steps_are_slow(data, monkeypatch):
    run = make_run(iterations=1000, batch_size=50, dtype="float32")
    wide = CNN(factory="cnn", channels=(256, 512))
    task = TrainingTask(run, 0, wide, "cross_entropy", data, "cpu")
    assert task._operations() == 2 * 9 * (1 * 256 * 64 + 256 * 512 * 16) + 2 * 512 * 4 * 3
    monkeypatch.setattr("quadscape.training.costs._MAX_SHARD_BYTES", 2**40)
    expected = 30 / (3 * 50 * task._operations() / 1e10)
    assert expected / 2 < task.plan()["steps"] <= expected


# Failures


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_divergence_stops_the_run(dtype, data, tmp_path):
    rate = Constant(schedule="constant", value=1e5)
    run = make_run(name="wild", iterations=4000, dtype=dtype, learning_rate=rate)
    with pytest.raises(StageError) as caught:
        train(tmp_path / "run", run, data)
    message = str(caught.value)
    assert message.endswith(".")
    for word in ("'wild'", "diverged", "at iteration", "lower learning_rate.value", "learning_rate.warmup"):
        assert word in message
    iteration = int(message.split("at iteration ")[1].split()[0])
    assert 2 < iteration < 200
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_batch_norm_on_single_values_is_refused(data, tmp_path):
    config = ResNet9(width=1, normalization="batch")
    run = make_run(batch_size=7, remainder="keep")  # 50 = 7·7 + 1, and the last layers have one pixel
    with pytest.raises(StageError, match=r"batch of 1 .*remainder"):
        train(tmp_path / "run", run, data, config)


def test_a_network_that_couples_examples_is_refused_before_training(data, tmp_path):
    with pytest.raises(ModelError, match="depends on the other examples"):
        train(tmp_path / "run", make_run(), data, Custom(factory="test_training:coupled_network"))


def test_a_network_for_another_size_is_refused_before_training(data, tmp_path):
    with pytest.raises(ModelError, match="failed on images of shape"):
        train(tmp_path / "run", make_run(), data, Custom(factory="test_training:network_of_another_size"))


def network_of_another_size(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, classes))


class Coupled(torch.nn.Module):
    def __init__(self, pixels, classes):
        super().__init__()
        self.linear = torch.nn.Linear(pixels, classes)

    def forward(self, x):
        x = x.flatten(1)
        return self.linear(x - x.mean(0))


def coupled_network(shape, classes):
    return Coupled(math.prod(shape), classes)
