"""The way of a run along eigenvectors: noisy bowls, simulated and trained by the trainer itself."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import write_random_data
from measure_cases import PlainBasis, random_orthogonal
from test_training import make_run, train
from torch import nn

from quadscape.config.sections import Custom
from quadscape.data.sets import DataSet
from quadscape.measures.evolution.compute import measure
from quadscape.measures.fluctuations import (
    Model,
    Window,
    coordinates,
    model_of,
    noise_iterates,
    settling_times,
    statistics,
    turning,
    why_not,
    window_at,
    window_iterates,
)
from quadscape.theory.batches import Sampling
from quadscape.theory.momentum import Momentum
from quadscape.theory.stationary import stationary_variance, structure_function
from quadscape.training.task import TrainingTask

CURVATURES = np.array([30.0, 8.0, 2.0, 0.6, 0.2, 0.07])
"""Of a bowl."""

_SIGNAL = 40.0


BOWL = Custom(factory="test_measure_evolution:bowl")


class Bowl(nn.Module):
    """Squared error that is ½Σλᵢθᵢ² + Σᵢ sᵢzₙᵢθᵢ and a constant: noise of slopes that no θ changes.

    As in `quadscape.network.planted`: outputs are equal, and their common value is the root of what the loss shall be.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.position = nn.Parameter(torch.full((len(CURVATURES),), 0.5))
        self.register_buffer("curvatures", torch.tensor(CURVATURES), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        t = self.position
        noise = 0.3 * images.flatten(1)[:, : len(CURVATURES)] @ (t * self.curvatures.to(t.dtype).sqrt())
        energy = (self.curvatures.to(t.dtype) * t.square()).sum() / 2 + noise + _SIGNAL
        scores = 1 / self.classes + (2 / self.classes * energy).sqrt()
        return scores[:, None].expand(-1, self.classes)


def bowl(input_shape: tuple[int, int, int], classes: int) -> Bowl:
    return Bowl(classes)


def simulated(
    rule: Momentum, sampling: Sampling, curvature: np.ndarray, steps: int, start: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of all iterates, shape (steps + 1, n), with noises that know nothing of each other; and c."""
    from quadscape.training.batches import Batches

    generator = np.random.default_rng(seed)
    values = generator.standard_normal((sampling.examples, len(curvature)))
    values -= values.mean(axis=0)
    kind = "reshuffled" if sampling.reshuffled else "independent"
    batches = Batches(sampling.examples, sampling.batch, sampling.remainder, seed, kind)
    x, v = np.full(len(curvature), start), np.zeros(len(curvature))
    found = [x]
    for step in range(steps):
        g = curvature * x + values[batches.batch(step)].mean(axis=0)
        v = rule.momentum * v + g
        x = x - rule.rate * (g + rule.momentum * v if rule.nesterov else v)
        found.append(x)
    return np.array(found), values.var(axis=0)


def true_settling(rule: Momentum, table: Any, start: float) -> np.ndarray:
    """From x = start and v = 0: the course is a sum of powers of the roots."""
    roots, matrix = rule.roots(table["curvature"]), rule.transition(table["curvature"])
    slow = start * (matrix[:, 0, 0] - roots[:, 1]) / (roots[:, 0] - roots[:, 1])
    amplitude = np.where(roots[:, 0].imag != 0, 2, 1) * np.abs(slow)
    return table["relaxation"] * np.log(amplitude / np.sqrt(table["variance"]))


def measured(x: np.ndarray, curvature: np.ndarray, c: np.ndarray, rule: Momentum, sampling: Sampling) -> dict[str, Any]:
    model = Model(rule, sampling, 0.0, (len(x) - 1) // 2 + 1)
    head = {"run": "a", "iteration": len(x) - 1, "zero_threshold": 0.0, "begins": True, "steady": True}
    order = np.argsort(-curvature, kind="stable")
    return measure(x[:, order], curvature[order], np.tile(c[order], (16, 1)), model, head)


@pytest.mark.parametrize("sampling", [Sampling(200, 10), Sampling(90, 16, reshuffled=False)], ids=str)
@pytest.mark.parametrize("rule", [Momentum(0.1, 0.9), Momentum(0.1, 0.95, nesterov=True), Momentum(0.2)], ids=str)
def test_simulated_bowls(rule: Momentum, sampling: Sampling) -> None:
    """Settling within 20 %, over- and underdamped; variances, frequencies, damping on average over like directions."""
    kinds = np.geomspace(0.004 if rule.momentum else 0.03, 0.45, 9) * rule.limit / rule.rate
    curvature, steps = np.repeat(kinds, 60), 1200
    x, c = simulated(rule, sampling, curvature, steps, start=4.0, seed=4)
    tables = measured(x, curvature, c, rule, sampling)
    table = tables["evolution"]
    assert table["told"].all()
    assert set(table["state"]) == {"settled"}
    true = true_settling(rule, table, 4.0)
    assert np.mean(np.abs(table["settling"] / true - 1) < 0.2) > 0.97
    for kind in kinds:
        own = np.isclose(table["curvature"], kind)
        ratio = (table["variance"] / table["expected"])[own]
        assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(len(ratio))
        turns, expected = table["turns"][own], table["frequency"][own]
        if np.isfinite(turns).any():
            assert np.median(turns) == pytest.approx(expected[0], rel=0.15)
            assert np.median(table["damping"][own]) == pytest.approx(
                math.exp(-1 / table["relaxation"][own][0]), rel=0.1
            )
    if rule.momentum == 0.9:
        assert np.isfinite(table["turns"]).any()
    bands = tables["evolution_bands"]
    assert bands["told"].all()
    covered = (bands["ratio_low"] <= 1) & (bands["ratio_high"] >= 1)
    assert covered.sum() >= np.isfinite(bands["ratio_low"]).sum() - 2
    assert np.isfinite(bands["ratio_low"]).any()


def test_states() -> None:
    rule, sampling = Momentum(0.1, 0.9), Sampling(100, 10)
    curvature = np.array([50.0, 3.0, 1.0, 1e-4, -0.1])
    x, c = simulated(rule, sampling, np.array([1.0, 3.0, 1.0, 1e-4, 1e-4]), 400, start=0.0, seed=1)
    x[:, 1] += 20 * 0.9 ** np.arange(401)
    table = measured(x, curvature, c, rule, sampling)["evolution"]
    assert table["state"].tolist() == ["unstable", "settled", "never out", "not settled", "no minimum"]
    assert table["told"].tolist() == [False, True, True, False, False]
    assert np.isnan(table["settling"][[0, 2, 3, 4]]).all()
    model = Model(rule, sampling, 0.0, 200)
    head = {"run": "a", "iteration": 400, "zero_threshold": 0.0, "begins": False, "steady": False}
    late = measure(x, curvature, np.tile(c, (16, 1)), model, head)
    assert set(late["evolution"]["state"]) == {"unstable", "not seen", "no minimum"}
    assert not late["evolution"]["told"].any()
    # Too few iterates of the noise for a claim.
    few = measure(x, curvature, c[None], model, head | {"steady": True, "begins": True})
    assert not few["evolution"]["told"].any()
    assert np.isnan(few["evolution"]["noise_low"]).all()
    # A null direction has no band.
    null = measure(
        x[:, 1:2], np.zeros(1), c[None, 1:2], Model(rule, sampling, 1.0, 200), head | {"zero_threshold": 1e-9}
    )
    assert not len(null["evolution_bands"])


def test_windows() -> None:
    rates = np.repeat([0.1, 0.01, 0.001], [100, 60, 8])
    assert window_at(rates, 0, 2000) is None
    assert window_at(rates, 100, 2000) == Window(0, 100, begins=True)
    assert window_at(rates, 150, 2000) == Window(100, 150, begins=True)
    assert window_at(rates, 150, 45) == Window(105, 150, begins=False)
    assert window_at(rates, 168, 2000) is None  # 8 steps
    assert window_at(rates, 101, 2000) is None
    assert window_at(np.geomspace(0.1, 0.01, 100), 50, 2000) is None
    assert window_at(rates[:0], 0, 2000) is None
    assert Window(0, 100, begins=True).steps == 51


def test_statistics_are_those_of_a_fitted_line() -> None:
    x = np.random.default_rng(0).standard_normal((101, 7)).cumsum(axis=0)
    found = statistics(x)
    time = np.arange(101)
    for column in range(7):
        rest = x[:, column] - np.polyval(np.polyfit(time, x[:, column], 1), time)
        assert found.variance[column] == pytest.approx(rest @ rest / 99, rel=1e-10)
        assert found.lags[1, column] == pytest.approx(rest[:-1] @ rest[1:] / 101, rel=1e-10)
    np.testing.assert_allclose(found.blocks.mean(axis=1), found.variance, rtol=0.05)
    assert np.isnan(statistics(x[:10]).blocks).all()


def test_an_exact_course_settles_when_it_does() -> None:
    """Without noise, from any point and speed; |A| is that of the slower root."""
    rule, curvature = Momentum(0.1, 0.8), np.array([0.02, 0.05, 2.0, 20.0])
    matrix = rule.transition(curvature)
    state, course = np.tile([1.0, -3.0], (4, 1)), []
    for _ in range(1500):
        course.append(state[:, 0])
        state = np.einsum("nij,nj->ni", matrix, state)
    x = np.array(course)
    amplitude, settling = settling_times(rule, curvature, x, np.full(4, 1e-6))
    for direction, time in enumerate(settling):
        before = np.abs(x[: int(time) - 5, direction])[-40:].max()
        after = np.abs(x[int(time) + 5 :, direction]).max()
        assert after < 1e-6 < before * 1.5
        assert amplitude[direction] > 1e-6
    assert (settling_times(rule, curvature, x, np.full(4, 10.0))[1] == 0).all()


@pytest.mark.parametrize("sampling", [Sampling(719, 64), Sampling(90, 16, reshuffled=False)], ids=str)
@pytest.mark.parametrize("nesterov", [False, True])
def test_frequencies_of_exact_autocovariances(sampling: Sampling, nesterov: bool) -> None:
    rule = Momentum(0.1, 0.98, nesterov)
    curvature, c = np.array([0.1, 0.3, 1.0]), np.ones(3)
    plain = stationary_variance(rule, sampling, curvature, c)
    lags = 7 * (plain - structure_function(rule, sampling, curvature, c, 3).T)
    turns, damping = turning(Model(rule, sampling, 0.0, 10**6), curvature, c, lags)
    np.testing.assert_allclose(turns, rule.frequency(curvature), rtol=1e-6)
    np.testing.assert_allclose(damping, np.exp(-1 / rule.relaxation(curvature)), rtol=1e-6)


def test_frequencies_without_enough_turns_are_not_told() -> None:
    model = Model(Momentum(0.1, 0.9), Sampling(100, 10), 0.0, 5000)
    lags = np.array([[1.0], [0.5], [0.1]])
    for curvature in (-1.0, 0.001, 0.05, 1e3):
        assert np.isnan(turning(model, np.array([curvature]), np.ones(1), lags)).all()


@pytest.mark.parametrize("sampling", ["reshuffled", "independent"])
def test_a_bowl_that_the_trainer_descends(tmp_path: Any, sampling: str) -> None:
    """Kept with a stride and made again step by step; in a rotated basis; with weight decay."""
    data = write_random_data(tmp_path / "data.zarr", counts=(150, 20, 20))
    keys = {
        "sampling": sampling,
        "dtype": "float64",
        "weight_decay": 0.01,
        "batch_size": 20,
        "trajectory": {"stride": 20, "dense": 0},
        "evaluate_every": 1200,
    }
    run = make_run(iterations=1200, learning_rate={"schedule": "constant", "value": 0.02}, momentum=0.9, **keys)
    _, trajectory = train(tmp_path / "run", run, data, BOWL, loss="squared_error", task=TrainingTask)
    images = DataSet.load(data, dtype=torch.float64).split("train")[0].flatten(1)[:, : len(CURVATURES)].numpy()
    c = (0.3 * np.sqrt(CURVATURES)) ** 2 * images.var(axis=0)
    window = window_at(trajectory.curves().learning_rate, 1200, 2000)
    assert window == Window(0, 1200, begins=True)
    assert not why_not(trajectory, 150)
    model = model_of(trajectory, 150, 0.02, window.steps)
    assert model.sampling == Sampling(150, 20, sampling == "reshuffled")
    basis = PlainBasis(CURVATURES, np.eye(len(CURVATURES)))
    reference = trajectory.theta(1200)
    every = list(window_iterates(trajectory, data, window))
    x = coordinates(every, 1201, reference, basis)
    rotation = random_orthogonal(len(CURVATURES), 0)
    turned = coordinates(every, 1201, reference, PlainBasis(CURVATURES, rotation))
    np.testing.assert_allclose(turned, x @ rotation, atol=1e-12)
    np.testing.assert_array_equal(every[1200], reference)
    assert len(noise_iterates(trajectory, window)) == 16
    head = {"run": "a", "iteration": 1200, "zero_threshold": 0.0, "begins": True, "steady": True}
    tables = measure(x, CURVATURES, np.tile(c, (16, 1)), model, head)
    table, bands = tables["evolution"], tables["evolution_bands"]
    shown = table["told"]
    assert shown.tolist() == (table["relaxation"] * 10 <= 601).tolist()
    assert shown.sum() >= 4
    assert set(table["state"][shown]) == {"settled"}
    # One run: the variance of few relaxation times is uncertain by the root of their number.
    error = np.sqrt(2 * table["relaxation"] / 601)
    assert (np.abs(table["variance"] / table["expected"] - 1) < 4 * error)[shown].all()
    # Its mean noise moves the minimum a little.
    assert (np.abs(table["settling"] / true_settling(model.rule, table, 0.5) - 1) < 0.2)[shown].all()
    clear = np.isfinite(table["turns"])
    assert clear.sum() >= 2
    np.testing.assert_allclose(table["turns"][clear], table["frequency"][clear], rtol=0.2)
    assert (bands["ratio_low"] < 1.05)[np.isfinite(bands["ratio_low"])].all()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"optimizer": "adam"}, "adam"),
        ({"clip_norm": 1.0}, "clipped"),
        ({"batch_size": "full"}, "no noise"),
    ],
)
def test_where_the_model_does_not_hold(keys: dict[str, Any], reason: str) -> None:
    from types import SimpleNamespace

    from quadscape.config.sections import Training

    training = Training.model_validate({"iterations": 10, **keys})
    stage = SimpleNamespace(manifest={"parameters": {}})
    assert reason in why_not(SimpleNamespace(training=training, stage=stage), 100)
    stage.manifest["parameters"]["step"] = {"rule": "top"}
    plain = SimpleNamespace(training=Training.model_validate({"iterations": 10, "batch_size": 10}), stage=stage)
    assert "not along" in why_not(plain, 100)
