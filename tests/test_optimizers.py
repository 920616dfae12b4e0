"""Optimizers, clipping, sampling, full batches: against formulas in NumPy, torch on a module, a quadratic bowl."""

import math

import numpy as np
import pytest
import torch
from cases import write_random_data
from test_training import Interrupted, make_run, train

from quadscape.config.sections import CNN, METHODS, Adam, AdamW, Exponential, RMSProp, Training
from quadscape.config.values import resolved
from quadscape.data.sets import DataSet
from quadscape.errors import ConfigError, StageError, StoreError
from quadscape.network.losses import example_losses
from quadscape.network.models import build_model
from quadscape.network.parameters import ParameterLayout, assign_vector, current_vector
from quadscape.planning.experiment_file import parse_experiment
from quadscape.training.batches import Batches
from quadscape.training.replay import replay
from quadscape.training.steps import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, RATE, DECAY = 70, 0.02, 1e-2
OPTIMIZERS = {
    "sgd": {"momentum": 0.8},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "rmsprop": {"optimizer": RMSProp(method="rmsprop")},
    "rmsprop-short": {"optimizer": RMSProp(method="rmsprop", smoothing=0.6, epsilon=1e-3)},
    "adam": {"optimizer": Adam(method="adam")},
    "adam-short": {"optimizer": Adam(method="adam", beta1=0.5, beta2=0.7, epsilon=1e-4)},
    "adamw": {"optimizer": AdamW(method="adamw")},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_random_data(tmp_path_factory.mktemp("data") / "data.zarr")


def constant(**keys):
    return make_run(iterations=STEPS, learning_rate={"schedule": "constant", "value": RATE}, weight_decay=DECAY, **keys)


# ---------------------------------------------------------------------------------------------------------------------
# Against formulas in NumPy, on ½|Wx + b − onehot(y)|²


def batch_gradient(theta, images, labels, classes):
    pixels = images.reshape(len(images), -1)
    weight, bias = theta[: classes * pixels.shape[1]].reshape(classes, -1), theta[-classes:]
    residual = pixels @ weight.T + bias - np.eye(classes)[labels]
    return np.concatenate([(residual.T @ pixels / len(pixels)).ravel(), residual.mean(0)])


def clipped(gradient, run):
    if run.clip_norm is not None:
        # torch's own: a millionth is added to the norm.
        return gradient * min(1.0, run.clip_norm / (math.sqrt((gradient**2).sum()) + 1e-6))
    return gradient if run.clip_value is None else np.clip(gradient, -run.clip_value, run.clip_value)


class Rule:
    """One step of each optimizer, from the formulas of its section's documentation."""

    def __init__(self, run, size):
        self.run, self.t = run, 0
        self.mean = np.zeros(size)
        self.square = np.zeros(size)

    def step(self, theta, gradient, rate):
        run, options = self.run, self.run.optimizer
        self.t += 1
        if options.method == "adamw":
            theta = theta - rate * run.weight_decay * theta
        else:
            gradient = gradient + run.weight_decay * theta
        if options.method == "sgd":
            self.mean = run.momentum * self.mean + gradient
            return theta - rate * (gradient + run.momentum * self.mean if run.nesterov else self.mean)
        if options.method == "rmsprop":
            self.square = options.smoothing * self.square + (1 - options.smoothing) * gradient**2
            return theta - rate * gradient / (np.sqrt(self.square) + options.epsilon)
        self.mean = options.beta1 * self.mean + (1 - options.beta1) * gradient
        self.square = options.beta2 * self.square + (1 - options.beta2) * gradient**2
        first, second = self.mean / (1 - options.beta1**self.t), self.square / (1 - options.beta2**self.t)
        return theta - rate * first / (np.sqrt(second) + options.epsilon)


def assert_path_of(run, data, path):
    """Trains, and compares every iterate with the formulas, batch by batch as recorded."""
    _, trajectory = train(path / "run", run, data)
    loaded = DataSet.load(data, dtype=torch.float64)
    images, labels = (tensor.numpy() for tensor in loaded.split("train"))
    stored, recorded = trajectory.stage.read("theta"), trajectory.stage.read("batch")
    theta, rule = stored[0], Rule(run, stored.shape[1])
    for t in range(run.iterations):
        indices = recorded[t][recorded[t] >= 0]
        if run.batch_size == "full":
            assert len(indices) == 0
            indices = np.arange(len(labels))
        gradient = batch_gradient(theta, images[indices], labels[indices], 3)
        norm = trajectory.curves().gradient_norm[t, 0] if t < 5 else None
        assert norm is None or norm == pytest.approx(np.linalg.norm(gradient), rel=1e-10)
        theta = rule.step(theta, clipped(gradient, run), learning_rate(run.learning_rate, t, run.iterations))
        assert np.linalg.norm(stored[t + 1] - theta) <= 1e-11 * np.linalg.norm(theta), t
    assert np.linalg.norm(stored[-1] - stored[0]) > 0.02 * np.linalg.norm(stored[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_is_the_formula(name, data, tmp_path):
    assert_path_of(constant(**OPTIMIZERS[name]), data, tmp_path)


@pytest.mark.parametrize("clip", [{"clip_norm": 0.3}, {"clip_value": 0.02}])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_gradients_are_clipped(name, clip, data, tmp_path):
    assert_path_of(constant(**OPTIMIZERS[name], **clip), data, tmp_path)


@pytest.mark.parametrize("batch", [{"batch_size": "full"}, {"batch_size": 1}, {"sampling": "independent"}])
@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_batches_of_every_kind(name, batch, data, tmp_path):
    assert_path_of(constant(**OPTIMIZERS[name], **batch), data, tmp_path)


def test_a_full_batch_in_ragged_chunks_is_the_full_batch(data, tmp_path, monkeypatch):
    run = constant(momentum=0.9, batch_size="full")
    monkeypatch.setattr("quadscape.training.task.FULL_CHUNK", {"cpu": 7, "cuda": 7})
    assert_path_of(run, data, tmp_path)


def test_the_path_on_a_quadratic_bowl_is_the_closed_form(data, tmp_path):
    """Full batches of least squares: each eigendirection is (x, v) times a power of a 2 × 2 matrix."""
    run = constant(momentum=0.9, batch_size="full")
    _, trajectory = train(tmp_path / "run", run, data)
    loaded = DataSet.load(data, dtype=torch.float64)
    images, labels = (tensor.numpy() for tensor in loaded.split("train"))
    inputs = np.concatenate([images.reshape(len(images), -1), np.ones((len(images), 1))], axis=1)
    values, vectors = np.linalg.eigh(inputs.T @ inputs / len(inputs))
    targets = np.eye(3)[labels].T @ inputs / len(inputs) @ vectors
    stored = trajectory.stage.read("theta")
    whole = np.concatenate([stored[:, :-3].reshape(len(stored), 3, -1), stored[:, -3:, None]], axis=2) @ vectors
    for index, value in enumerate(values):
        curvature = value + DECAY
        start = whole[0, :, index] - targets[:, index] / curvature
        step = np.array([[1 - RATE * curvature, -RATE * 0.9], [curvature, 0.9]])
        power = np.linalg.matrix_power(step, STEPS)
        expected = targets[:, index] / curvature + power[0, 0] * start
        np.testing.assert_allclose(whole[-1, :, index], expected, atol=1e-11)


# ---------------------------------------------------------------------------------------------------------------------
# Against torch on a module, and resuming


@pytest.mark.parametrize("name", ["nesterov", "rmsprop", "adam-short", "adamw"])
def test_it_is_torch_stepping_a_module(name, data, tmp_path):
    """Parameter by parameter, where ours is one flat vector."""
    config, run = CNN(factory="cnn", channels=(4,)), constant(**OPTIMIZERS[name], clip_norm=0.5)
    _, trajectory = train(tmp_path / "run", run, data, config, loss="cross_entropy")
    loaded = DataSet.load(data, dtype=torch.float64)
    images, labels = loaded.split("train")
    model = build_model(config, loaded.shape, 3).double().train()
    assign_vector(model, torch.from_numpy(trajectory.theta(0)))
    options = {"lr": RATE, "weight_decay": DECAY, "foreach": False}
    given = run.optimizer
    makers = {
        "sgd": lambda p: torch.optim.SGD(p, momentum=run.momentum, nesterov=run.nesterov, **options),
        "rmsprop": lambda p: torch.optim.RMSprop(p, alpha=given.smoothing, eps=given.epsilon, **options),
        "adam": lambda p: torch.optim.Adam(p, betas=(given.beta1, given.beta2), eps=given.epsilon, **options),
        "adamw": lambda p: torch.optim.AdamW(p, betas=(given.beta1, given.beta2), eps=given.epsilon, **options),
    }
    optimizer = makers[given.method](model.parameters())
    for indices in torch.from_numpy(trajectory.stage.read("batch")[:STEPS]):
        optimizer.zero_grad()
        example_losses(model(images[indices]), labels[indices], "cross_entropy").mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert ParameterLayout.of(model).size == trajectory.stage.read("theta").shape[1]
    np.testing.assert_allclose(current_vector(model).numpy(), trajectory.theta(STEPS), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("batch", [{"sampling": "independent"}, {"batch_size": "full"}])
def test_resumed_runs_are_bitwise_the_undisturbed_ones(name, batch, data, tmp_path):
    run = constant(**OPTIMIZERS[name], **batch, clip_norm=1.0)
    manifest, whole = train(tmp_path / "whole", run, data)
    for _ in range(5):
        try:
            again, pieces = train(tmp_path / "pieces", run, data, task=Interrupted)
        except KeyboardInterrupt:
            continue
        break
    assert again == manifest
    assert whole.stage.digest == pieces.stage.digest
    kept = {path.name for path in (tmp_path / "whole/store.zarr/resume").iterdir() if path.is_dir()}
    assert kept == {"theta", "mean_square", *(["mean"] if name != "rmsprop" else [])}


@pytest.mark.parametrize(
    ("name", "batch"), [("nesterov", {}), ("adam", {"sampling": "independent"}), ("rmsprop", {"batch_size": "full"})]
)
def test_a_replay_is_bitwise_what_was_kept(name, batch, data, tmp_path):
    config = CNN(factory="cnn", channels=(4,), normalization="none" if batch else "batch")
    run = constant(**OPTIMIZERS[name], **batch)
    _, trajectory = train(tmp_path / "run", run, data, config, loss="cross_entropy")
    kept = trajectory.stage.read("theta")
    for first, stop in ((0, 3), (30, 35), (64, 64), (STEPS - 2, STEPS), (STEPS, STEPS)):
        torch.manual_seed(first)  # what else the process did must not matter
        found = list(replay(tmp_path / "run", data, first, stop))
        np.testing.assert_array_equal(found, kept[first : stop + 1])
    with pytest.raises(ConfigError, match=r"Iterations 0 to 71 .* from 0 to 70"):
        next(replay(tmp_path / "run", data, 0, STEPS + 1))
    other = write_random_data(tmp_path / "other.zarr", seed=1)
    with pytest.raises(StoreError, match="trained with another data set"):
        next(replay(tmp_path / "run", other, 0, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def batch_means(sampling, count, size, batches):
    values = np.random.default_rng(3).normal(size=count)
    drawn = Batches(count, size, "drop", 5, sampling)
    means = np.array([values[drawn.batch(t)].mean() for t in range(batches)])
    return means - values.mean(), values.var(ddof=1)


def test_independent_batches_have_the_covariance_of_draws_without_replacement() -> None:
    count, size, batches = 60, 12, 20_000
    means, variance = batch_means("independent", count, size, batches)
    expected = (1 - size / count) * variance / size
    error = expected * math.sqrt(2 / batches)
    assert abs(means.var() - expected) < 4 * error
    assert abs(means.mean()) < 4 * math.sqrt(expected / batches)
    for lag in (1, 2, 5):
        assert abs((means[lag:] * means[:-lag]).mean()) < 4 * expected / math.sqrt(batches)


def test_reshuffled_batches_of_an_epoch_add_up_to_nothing() -> None:
    count, size, epochs = 60, 12, 4_000
    blocks = count // size
    means, variance = batch_means("reshuffled", count, size, blocks * epochs)
    epoch = means.reshape(epochs, blocks)
    np.testing.assert_allclose(epoch.sum(1), 0, atol=1e-12)
    expected = variance / size * (np.eye(blocks) - 1 / blocks)
    found = epoch.T @ epoch / epochs
    assert np.abs(found - expected).max() < 4 * variance / size / math.sqrt(epochs)


def test_independent_batches_are_found_at_random_and_hold_no_example_twice() -> None:
    drawn, again = (Batches(50, 50, "wrap", 1, "independent") for _ in range(2))
    assert sorted(drawn.batch(7)) == list(range(50))
    np.testing.assert_array_equal(drawn.batch(123_456), again.batch(123_456))
    assert drawn.batch(3).dtype == np.int64
    assert not np.array_equal(Batches(50, 9, "wrap", 2, "independent").batch(7), drawn.batch(7)[:9])


# ---------------------------------------------------------------------------------------------------------------------
# Schedules and the experiment file


def test_the_exponential_ramp() -> None:
    schedule = Exponential(schedule="exponential", value=1e-4, final=1.0)
    rates = [learning_rate(schedule, t, 81) for t in range(81)]
    np.testing.assert_allclose(rates, 1e-4 * 10 ** (np.arange(81) / 20), rtol=1e-12)
    assert learning_rate(schedule, 0, 1) == pytest.approx(1e-4)


def experiment(**training):
    return {
        "name": "x",
        "data": {"source": "digits"},
        "model": {"factory": "linear"},
        "training": {"iterations": 10, "batch_size": 4, "learning_rate": {"schedule": "constant"}, **training},
        "runs": [{"name": "a"}],
    }


def test_keys_added_later_enter_no_fingerprint_while_they_have_their_default() -> None:
    assert not set(resolved(Training())) & set(Training.later)
    found = resolved(Training(optimizer=Adam(method="adam"), sampling="independent"))
    assert found["optimizer"] == {"method": "adam", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    assert found["sampling"] == "independent"
    assert resolved(Training(sampling="reshuffled", optimizer={"method": "sgd"})) == resolved(Training())


def test_an_optimizer_is_given_by_name_or_with_options() -> None:
    for method, section in METHODS.items():
        short, long = (parse_experiment(experiment(optimizer=given)).runs[0] for given in (method, {"method": method}))
        assert type(short.optimizer) is section
        assert short == long
    raw = experiment(momentum=0.5, nesterov=True)
    raw["runs"] = [{"name": "a"}, {"name": "b", "optimizer": "adam"}]
    first, second = parse_experiment(raw).runs
    assert (first.momentum, first.rule()["momentum"]) == (0.5, 0.5)
    assert (second.nesterov, second.rule()["momentum"]) == (False, None)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"optimizer": "adma"}, r"optimizer\.method is \"adma\"; valid are adam, adamw, rmsprop, sgd"),
        ({"optimizer": {}}, r"optimizer\.method is missing; valid are"),
        ({"optimizer": {"method": "adam", "betta1": 0.9}}, r"optimizer\.betta1 is not a known key.*'beta1'"),
        ({"optimizer": {"method": "adam", "beta1": 1.0}}, r"optimizer\.beta1 is 1\.0"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum is an option of optimizer sgd, but the optimizer is adam"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, "clip_norm and clip_value are both given"),
        ({"clip_norm": 0}, r"clip_norm is 0"),
        ({"sampling": "shuffled"}, r"sampling is \"shuffled\".*'reshuffled'"),
        ({"batch_size": "all"}, r"batch_size is \"all\".*'full'"),
        ({"batch_size": 0}, r"batch_size is 0.*at least 1"),
        ({"batch_size": True}, r"batch_size is true"),
        ({"learning_rate": {"schedule": "exponential"}}, r"learning_rate\.final is missing"),
    ],
)
def test_mistakes_get_one_sentence(keys, sentence) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_experiment(experiment(**keys))


def test_full_batches_and_batch_statistics_exclude_each_other(data, tmp_path) -> None:
    config = CNN(factory="cnn", channels=(3,), normalization="batch")
    with pytest.raises(StageError, match=r"batch_size is full.*BatchNorm"):
        train(tmp_path / "run", constant(batch_size="full"), data, config, loss="cross_entropy")
