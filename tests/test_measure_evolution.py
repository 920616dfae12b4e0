"""The way of a run along eigenvectors: noisy bowls, simulated and trained by the trainer itself."""

import math
from dataclasses import replace
from types import SimpleNamespace
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
from quadscape.findings.evolution import statements
from quadscape.measures.evolution.compute import NOISE, Work, measure
from quadscape.measures.evolution.drops import Side, adjoining, drop, side, table_of
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
from quadscape.measures.job import Job
from quadscape.theory.batches import Sampling
from quadscape.theory.momentum import Momentum
from quadscape.theory.stationary import stationary_variance, structure_function, window_variance
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


def fallen(
    rules: tuple[Momentum, Momentum], sampling: Sampling, curvature: np.ndarray, steps: int, seed: int
) -> tuple[Side, Side, np.ndarray]:
    """Both sides of a decrease after so many steps at each of two rates, and c; losses are those of the bowl."""
    from quadscape.training.batches import Batches

    generator = np.random.default_rng(seed)
    values = generator.standard_normal((sampling.examples, len(curvature)))
    values -= values.mean(axis=0)
    kind = "reshuffled" if sampling.reshuffled else "independent"
    batches = Batches(sampling.examples, sampling.batch, sampling.remainder, seed, kind)
    x, v, found = np.zeros(len(curvature)), np.zeros(len(curvature)), []
    for step in range(2 * steps):
        found.append(x)
        rule = rules[step >= steps]
        v = rule.momentum * v + curvature * x + values[batches.batch(step)].mean(axis=0)
        x = x - rule.rate * v
    way, c = np.array([*found, x]), values.var(axis=0)
    sides = []
    for rule, first in zip(rules, (0, steps), strict=True):
        model, own = Model(rule, sampling, 0.0, steps // 2 + 1), way[first : first + steps + 1]
        losses = 2.0 + own[-model.steps : -1] ** 2 @ curvature / 2
        window = Window(first, first + steps, begins=True)
        sides.append(side(own, window, model, np.tile(c, (16, 1)), losses, steady=True))
    return sides[0], sides[1], c


@pytest.mark.parametrize("sampling", [Sampling(200, 10), Sampling(90, 16, reshuffled=False)], ids=str)
def test_a_decrease_in_a_simulated_bowl(sampling: Sampling) -> None:
    """The drop is what theory expects within its standard error, and that of the loss, which here is nothing else."""
    rules, curvature = (Momentum(0.2, 0.9), Momentum(0.05, 0.9)), np.repeat(np.geomspace(12.0, 0.8, 20), 3)
    rows = []
    for seed in range(12):
        before, after, c = fallen(rules, sampling, curvature, 1600, seed)
        rows.append(drop(before, after, curvature, 0.0))
        row = rows[-1]
        assert row["told"]
        assert (row["count"], row["decrease"]) == (60, 1600)
        assert row["blocks"] >= 10
        energies = [(curvature * window_variance(rule, sampling, curvature, c, 801)).sum() / 2 for rule in rules]
        assert row["expected"] == pytest.approx(energies[0] - energies[1], rel=1e-9)
    found = {name: np.array([row[name] for row in rows]) for name in ("drop", "drop_low", "drop_high", "expected")}
    loss = {name: np.array([row[name] for row in rows]) for name in ("loss", "loss_low", "loss_high")}
    error = found["drop"] - found["expected"]
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(len(error))
    assert error.std() < 0.15 * found["expected"].mean()
    assert ((found["drop_low"] <= found["expected"]) & (found["expected"] <= found["drop_high"])).sum() >= 9
    # A mean of squares, about 0 instead of a line: the same drop but for what the line takes.
    np.testing.assert_allclose(loss["loss"], found["drop"], rtol=0.1)
    assert ((loss["loss_low"] <= found["expected"]) & (found["expected"] <= loss["loss_high"])).sum() >= 8
    # It could fail: nothing like it with the noise of another batch size.
    other = replace(sampling, batch=2 * sampling.batch)
    wrong = [one._replace(model=replace(one.model, sampling=other)) for one in (before, after)]
    less = drop(wrong[0], wrong[1], curvature, 0.0)
    assert less["expected"] < less["drop_low"]


def test_drops_of_which_nothing_is_told() -> None:
    rules, curvature = (Momentum(0.2, 0.9), Momentum(0.05, 0.9)), np.array([4.0, 1.0, 0.01, 0.0, -1.0])
    sampling = Sampling(200, 10)
    before, after, _ = fallen(rules, sampling, np.abs(curvature), 1600, 0)
    row = drop(before, after, curvature, 0.0)
    assert (row["told"], row["count"], row["lowest"]) == (True, 2, 1.0)
    assert not drop(before._replace(steady=False), after, curvature, 0.0)["told"]
    assert not drop(before, after._replace(noise=after.noise[:15]), curvature, 0.0)["told"]
    assert math.isnan(drop(before, after._replace(noise=after.noise[:1]), curvature, 0.0)["expected_low"])
    flat = drop(before, after, np.full(5, 1e-3), 0.0)
    assert (flat["told"], flat["count"], flat["blocks"]) == (False, 0, 0)
    assert math.isnan(flat["drop"])
    assert math.isfinite(flat["loss"])
    assert drop(before, after, curvature, 2.0)["count"] == 1
    table = table_of([(before, after)], curvature, {"run": "a", "iteration": 1600, "zero_threshold": 0.0})
    assert table["rate_before"].tolist() == [0.2]
    assert not len(table_of([], curvature, {"zero_threshold": 0.0}))


def test_findings_on_decreases() -> None:
    rules, sampling = (Momentum(0.2, 0.9), Momentum(0.05, 0.9)), Sampling(200, 10)
    curvature = np.repeat(np.geomspace(12.0, 0.8, 20), 3)
    before, after, c = fallen(rules, sampling, curvature, 1600, 3)
    head = {"run": "a", "iteration": 1600, "zero_threshold": 0.0, "first": 0, "last": 1600, "begins": True}
    rows = np.zeros((1601, 60))
    ways = measure(rows, curvature, np.tile(c, (16, 1)), before.model, head | {"steady": True})

    def said(*pairs: tuple[Side, Side], iteration: int = 1600) -> list[Any]:
        tables = {name: [table] for name, table in ways.items()}
        tables["evolution_drops"] = [table_of([pair], curvature, head | {"iteration": iteration}) for pair in pairs]
        return [one for one in statements(tables) if "learning rate falls" in one.claim]

    (found,) = said((before, after))
    row = drop(before, after, curvature, 0.0)
    assert (found.value, found.low, found.high) == (row["drop"], row["drop_low"], row["drop_high"])
    assert "iteration 1,600 the learning rate falls from 0.200 to 0.0500" in found.claim
    assert "as expected" in found.claim
    # One sentence of a decrease that two checkpoints adjoin, whatever the other one says.
    assert len(said((before, after), (before, after))) == 1
    # Other noise than was measured, either way.
    for factor, side_ in ((4.0, "less;"), (0.25, "more;")):
        other = [one._replace(noise=factor * one.noise) for one in (before, after)]
        assert side_ in said((other[0], other[1]))[0].claim
    unsteady = said((before._replace(steady=False), after))[0]
    assert math.isnan(unsteady.value)
    assert "not steady" in unsteady.claim
    (none,) = said()
    assert math.isnan(none.value)
    assert "no decrease of the learning rate adjoins" in none.claim


def test_windows_beside_decreases() -> None:
    rates = np.repeat([0.1, 0.01, 0.02, 0.001], [100, 60, 50, 8])

    def beside(iteration: int, most: int = 2000) -> list[tuple[Window, Window]]:
        window = window_at(rates, iteration, most)
        assert window is not None
        return adjoining(rates, window, most)

    assert beside(50) == []
    assert beside(100) == [(Window(0, 100, begins=True), Window(100, 160, begins=True))]
    assert beside(150) == [(Window(0, 100, begins=True), Window(100, 150, begins=True))]
    # Too far from the decrease to reach back to it.
    assert beside(150, 40) == []
    assert beside(120, 40) == [(Window(60, 100, begins=False), Window(100, 120, begins=True))]
    # The rate rises before, and too few steps come after.
    assert beside(210) == []


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


@pytest.mark.parametrize("stride", [1, pytest.param(10, marks=pytest.mark.long)])
def test_a_decrease_that_the_trainer_makes(tmp_path: Any, stride: int) -> None:
    """Of a checkpoint at the decrease, and one after it: in items, with the same numbers in either's row."""
    data = write_random_data(tmp_path / "data.zarr", counts=(150, 20, 20))
    keys = {
        "dtype": "float64",
        "weight_decay": 0.01,
        "batch_size": 20,
        "momentum": 0.9,
        "trajectory": {"stride": stride, "dense": 0},
        "evaluate_every": 2000,
    }
    rate = {"schedule": "steps", "value": 0.04, "milestones": (1000,), "factor": 0.5}
    run = make_run(iterations=2000, learning_rate=rate, **keys)
    _, trajectory = train(tmp_path / "run", run, data, BOWL, loss="squared_error", task=TrainingTask)
    basis, tables = PlainBasis(CURVATURES, np.eye(len(CURVATURES))), {}
    basis.zero_threshold = 0.0
    for iteration in (500, 1000, 2000):
        options = {"iterates": 1000, "dtype": "float64"}
        inputs = {"data": [data], "trajectory": [tmp_path / "run" / "manifest.json"]}
        job = Job("a", [iteration], options, inputs, device="cpu", log=lambda _: None)
        head = {"run": "a", "iteration": iteration, "weight_decay": 0.01}
        job.__dict__ |= {"bases": (basis,), "head": head}
        job.__dict__["checkpoint"] = SimpleNamespace(theta=trajectory.theta(iteration))
        work = Work(job)
        assert work.items == (16 if iteration == 500 else 32)
        parts = [work.measure(slice(first, min(first + 9, work.items))) for first in range(0, work.items, 9)]
        tables[iteration] = work.tables({NOISE: np.concatenate([part[NOISE] for part in parts])})
    assert not len(tables[500]["evolution_drops"])
    first, second = (tables[iteration]["evolution_drops"] for iteration in (1000, 2000))
    assert first["decrease"].tolist() == second["decrease"].tolist() == [1000]
    for name, values in first.columns.items():
        np.testing.assert_allclose(values, second[name], rtol=1e-9, err_msg=name)
    row = {name: values[0] for name, values in second.columns.items()}
    assert row["told"]
    assert (row["window_before"], row["window_after"], row["count"]) == (501, 501, 5)
    half = (row["drop_high"] - row["drop_low"]) / 2
    assert abs(row["drop"] - row["expected"]) < 2 * half
    assert row["expected"] > 0
    # The bowl's loss is the energy, a constant, and noise of the batches whose mean over an epoch is none.
    losses = trajectory.curves().loss
    if stride == 1:
        squares = np.array([np.square(theta).sum() for theta in trajectory.iterates(0, 1999)])
        losses = losses + 0.01 / 2 * squares
        assert row["loss"] == pytest.approx(losses[500:1000].mean() - losses[1500:2000].mean(), rel=1e-12)
    assert row["loss_low"] < row["drop"] < row["loss_high"]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"optimizer": "adam"}, "adam"),
        ({"clip_norm": 1.0}, "clipped"),
        ({"batch_size": "full"}, "no noise"),
    ],
)
def test_where_the_model_does_not_hold(keys: dict[str, Any], reason: str) -> None:
    from quadscape.config.sections import Training

    training = Training.model_validate({"iterations": 10, **keys})
    stage = SimpleNamespace(manifest={"parameters": {}})
    assert reason in why_not(SimpleNamespace(training=training, stage=stage), 100)
    stage.manifest["parameters"]["step"] = {"rule": "top"}
    plain = SimpleNamespace(training=Training.model_validate({"iterations": 10, "batch_size": 10}), stage=stage)
    assert "not along" in why_not(plain, 100)
