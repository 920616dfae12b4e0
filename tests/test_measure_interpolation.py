from pathlib import Path

import numpy as np
import pytest
import torch
from view_cases import COUNTS, HEAD, line_tables, run_job

from quadscape.errors import ModelError
from quadscape.measures.interpolation import compute as interpolation
from quadscape.measures.interpolation.compute import describe, floor_of, measure, refinement
from quadscape.measures.run_losses import Evaluation, RunLosses
from quadscape.network.planted import multi_well

RATE = {"learning_rate": {"schedule": "constant", "value": 0.05}, "trajectory": {"stride": 10, "dense": 0}}
SHORT = {"iterations": 30, "batch_size": 32, "evaluate_every": 10, "weight_decay": 0.0, **RATE}
OPTIONS = {"points": 11}
EPSILON = float(np.finfo(np.float64).eps)


def given(function, points: int = 41, first=(-1.0,), last=(1.0,), noise: float = 0.0):
    generator = np.random.default_rng(0)

    def evaluate(theta: np.ndarray) -> dict[str, Evaluation]:
        loss = function(theta) * (1 + noise * generator.standard_normal())
        return dict.fromkeys(COUNTS, Evaluation(loss, 0.5, abs(loss) + 1))

    return measure(evaluate, np.array(first), np.array(last), COUNTS, points, HEAD, log=lambda _: None)


def summary_of(tables, split: str = "train") -> dict[str, float]:
    table = tables["interpolation_summary"]
    row = table.where(table["split"] == split)
    return {name: row[name][0] for name in row.columns}


def test_a_double_well_has_the_barrier_of_its_height() -> None:
    # (t² − 1)²: the top is 1 above both wells, at t = 0, half of the way.
    found = summary_of(given(lambda t: float((t[0] ** 2 - 1) ** 2)))
    assert found["barrier"] == pytest.approx(1, rel=1e-12)
    assert found["bump"] == pytest.approx(1, rel=1e-12)
    assert (found["barrier_at"], found["top"], found["foot"], found["monotone"]) == (0.5, 0.5, 0.0, False)


def test_the_planted_double_well_of_the_package(tmp_path: Path) -> None:
    network = multi_well((1, 8, 8), 10, dimensions=1)
    ends, top = network.wells()[:, 0], network._barrier
    found = summary_of(given(lambda t: network.training_loss(t), first=(ends[1],), last=(ends[0],)))
    height = network.training_loss(np.array([top])) - network.training_loss(network.wells()[1])
    # The top lies between points of the refined grid, where the loss is even to second order.
    assert found["bump"] == pytest.approx(height, rel=1e-3)
    assert found["bump"] <= height
    place = (top - ends[1]) / (ends[0] - ends[1])
    assert found["top"] == pytest.approx(place, abs=1 / 40 / 9)


def test_refining_finds_a_top_between_the_points() -> None:
    def bump(t):
        return 1 - t[0] + np.exp(-(((t[0] - 0.33) / 0.02) ** 2))

    coarse = np.array([bump([a]) for a in np.linspace(0, 1, 41)])
    before = describe(np.linspace(0, 1, 41), coarse, 1e-12)["bump"]
    found = summary_of(given(bump, first=(0.0,), last=(1.0,)))
    fine = np.array([bump([a]) for a in np.linspace(0, 1, 100_001)])
    true = (fine - np.minimum.accumulate(fine)).max()
    assert abs(found["bump"] - true) < 0.1 * abs(before - true)


def test_a_convex_loss_has_neither_bump_nor_barrier() -> None:
    found = summary_of(given(lambda t: float((t[0] - 1) ** 2)))
    assert (found["bump"], found["barrier"], found["monotone"]) == (0.0, 0.0, True)
    assert np.isnan([found["foot"], found["top"], found["barrier_at"]]).all()
    # A minimum before the end is a bump, and still no barrier.
    found = summary_of(given(lambda t: float(t[0] ** 2), last=(0.5,)))
    assert found["bump"] == pytest.approx(0.25)
    assert (found["barrier"], found["foot"], found["top"]) == (0.0, pytest.approx(2 / 3, abs=1e-2), 1.0)


def test_what_is_below_the_rounding_floor_is_no_bump() -> None:
    found = summary_of(given(lambda t: 2.0, noise=EPSILON))
    assert (found["monotone"], found["bump"], found["barrier"]) == (True, 0.0, 0.0)
    assert found["floor"] == pytest.approx(64 * EPSILON * 3)
    # Ten times the floor is one.
    height = 10 * found["floor"]
    found = summary_of(given(lambda t: 2.0 + height * float(t[0] == 0)))
    assert not found["monotone"]
    assert found["bump"] == pytest.approx(height, rel=0.05)
    assert len(refinement(np.linspace(0, 1, 5), np.full(5, 2.0), np.full(5, 3.0), EPSILON)) == 0


def test_a_loss_that_is_not_finite_has_rows_and_no_summary() -> None:
    tables = given(lambda t: np.inf if abs(t[0]) < 0.1 else 1.0)
    assert len(tables["interpolation"]) == 2 * 41
    assert len(tables["interpolation_summary"]) == 0


def test_rows_are_ordered_and_hold_wilsons_interval() -> None:
    table = line_tables("a", bump=0.4)["interpolation"]
    for split in COUNTS:
        rows = table.where(table["split"] == split)
        assert (np.diff(rows["alpha"]) > 0).all()
        assert (rows["alpha"][0], rows["alpha"][-1]) == (0.0, 1.0)
        assert len(rows) > 41
        assert (rows["accuracy_low"] < rows["accuracy"]).all()


# On trained networks.


def test_a_linear_network_with_squared_error_falls_monotonically(tmp_path: Path) -> None:
    job = run_job(tmp_path, {"factory": "linear"}, OPTIONS, "squared_error", **SHORT, momentum=0.0)
    tables = interpolation.compute(job)
    found = summary_of(tables)
    assert found["barrier"] == 0.0
    assert found["monotone"]
    # The ends are those of the run.
    course = job.course.evaluation
    line = tables["interpolation"]
    for place, split in enumerate(COUNTS):
        rows = line.where(line["split"] == split)
        for at, end in ((0, 0), (-1, 30)):
            assert rows["loss"][at] == pytest.approx(course[end, place, 0], rel=1e-5)
            assert rows["accuracy"][at] == pytest.approx(course[end, place, 1], abs=0.01)
    # A quadratic is known from three points.
    rows = line.where(line["split"] == "train")
    np.testing.assert_allclose(rows["loss"], np.polyval(np.polyfit(rows["alpha"], rows["loss"], 2), rows["alpha"]))


def test_the_floor_bounds_what_rounding_does(tmp_path: Path) -> None:
    job = run_job(tmp_path, {"factory": "mlp", "hidden": [9, 7]}, OPTIONS, "cross_entropy", **SHORT)
    losses, theta = RunLosses(job), job.trajectory().theta(30)
    found = losses.at(theta)["train"]
    bound, generator = floor_of(np.array([found.scale]), EPSILON), np.random.default_rng(0)
    off = [losses.at(theta * (1 + EPSILON * generator.choice([-1, 1], len(theta))))["train"].loss for _ in range(20)]
    assert np.abs(np.array(off) - found.loss).max() < bound
    # Not so wide that nothing would be seen.
    assert bound < 1e-11


def test_batch_norm_has_the_statistics_of_the_whole_training_split(tmp_path: Path) -> None:
    model = {"factory": "cnn", "channels": [4], "normalization": "batch"}
    job = run_job(tmp_path, model, {"points": 5}, "cross_entropy", **SHORT)
    losses = RunLosses(job)
    assert losses.batch_norm
    end = job.trajectory().theta(30)
    for theta in (job.trajectory().theta(0), end):
        at = losses.at(theta)["train"].loss
        # As one batch in training mode.
        objective = losses._objectives["train"]
        parameters = objective.parameters(theta)
        objective.model.train()
        scores = torch.func.functional_call(objective.model, parameters, (objective.images,))
        objective.model.eval()
        assert at == pytest.approx(float(torch.nn.functional.cross_entropy(scores, objective.labels)), rel=1e-10)
    tables = interpolation.compute(job)
    assert tables["interpolation"].attributes["batch_norm"]
    assert np.isfinite(tables["interpolation"]["loss"]).all()


def test_a_run_that_diverged_has_no_line(tmp_path: Path) -> None:
    wild = {**SHORT, "learning_rate": {"schedule": "constant", "value": 1e30}}
    job = run_job(tmp_path, {"factory": "linear"}, OPTIONS, "squared_error", **wild)
    assert job.trajectory().diverged is not None
    said: list[str] = []
    job.log = said.append
    tables = interpolation.compute(job)
    assert [len(table) for table in tables.values()] == [0, 0]
    assert "diverged" in said[0]


def test_another_network_than_the_one_that_was_trained_is_refused(tmp_path: Path, monkeypatch) -> None:
    job = run_job(tmp_path, {"factory": "linear"}, OPTIONS, "squared_error", **SHORT)
    manifest = job.trajectory().stage.manifest
    other = {**manifest["parameters"], "parameters": 7}
    trajectory = job.trajectory()
    trajectory.stage.manifest["parameters"] = other
    monkeypatch.setattr(job, "trajectory", lambda: trajectory)
    with pytest.raises(ModelError, match="now builds another network"):
        RunLosses(job)
