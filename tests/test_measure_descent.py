"""Variants of gradient descent: noise of steps, reach of a target, memory and time of a step; tuning on validation."""

import math
from dataclasses import replace
from pathlib import Path

import family_cases as cases
import numpy as np
import pytest
import torch
from cases import write_random_data

from quadscape.data import sets
from quadscape.measures.descent import compute as descent
from quadscape.measures.descent.cost import PeakBytes, counted_bytes, step_cost
from quadscape.measures.intervals import relative_variance, student
from quadscape.measures.members import family_head
from quadscape.measures.tuning import compute as tuning

pytestmark = pytest.mark.usefixtures("one_thread")

LINEAR = {"factory": "linear"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_data(tmp_path_factory.mktemp("data") / "data.zarr")


# Numbers


def test_relative_variance_is_that_about_a_straight_line() -> None:
    generator = np.random.default_rng(0)
    found = [relative_variance(5 + 0.01 * np.arange(200) + generator.standard_normal(200)) for _ in range(300)]
    expected = 1 / (5 + 0.01 * 99.5) ** 2
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / math.sqrt(300))
    assert relative_variance(3 + 2.0 * np.arange(20)) == pytest.approx(0, abs=1e-25)
    assert math.isnan(relative_variance(np.ones(7)))
    assert math.isnan(relative_variance(np.array([1.0] * 9 + [np.inf])))


def test_student_intervals_cover_and_say_what_they_cannot() -> None:
    generator = np.random.default_rng(0)
    found = [student(generator.standard_normal(3)) for _ in range(3000)]
    assert np.mean([low <= 0 <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.016)
    assert student(np.array([2.0]))[0] == 2
    assert math.isnan(student(np.array([2.0]))[1])
    assert student(np.array([1.0, math.inf]))[0] == math.inf
    assert all(math.isnan(value) for value in student(np.empty(0)))


def test_ends_targets_and_gaps_of_made_up_runs() -> None:
    made, members = cases.descending(seeds=2, diverged=(1,))
    tables = descent.measure(members, cases.lengths_of(members), 0.5, family_head(made, members))
    table, course = tables["descent_members"], tables["descent_course"]
    assert table["diverged_at"].tolist() == [-1, 150] + [-1] * 6
    assert table.attributes["target_loss"] == 0.5
    for row, member in enumerate(members):
        iterations, losses = member.evaluated(0, 0)
        step = table["steps_to_target"][row]
        assert step == iterations[losses <= 0.5][0]
        assert table["examples_to_target"][row] == step * member.batch_size
        own = course.where(course["run"] == row)
        np.testing.assert_array_equal(own["examples_seen"], own["iteration"] * member.batch_size)
        np.testing.assert_array_equal(own["training_loss"], losses)
    assert course["iteration"][course["run"] == 1].max() == 140
    for name in ("training_loss", "validation_loss", "gap", "gradient_variance", "step_variance"):
        np.testing.assert_array_equal(np.isnan(table[name]), table["diverged_at"] >= 0)
    np.testing.assert_allclose(table["gap"], table["validation_loss"] - table["training_loss"])
    assert set(table["batch_size"]) == {50, 1000}
    never = descent.measure(members, cases.lengths_of(members), 1e-9, family_head(made, members))["descent_members"]
    assert set(never["steps_to_target"]) == set(never["examples_to_target"]) == {-1}


def test_the_target_is_by_default_what_half_of_the_members_reach() -> None:
    made, members = cases.descending(diverged=(0,))
    table = descent.measure(members, cases.lengths_of(members), 0.0, family_head(made, members))["descent_members"]
    assert table.attributes["target_loss"] == pytest.approx(np.nanmedian(table["training_loss"]))
    made, members = cases.descending(seeds=1, diverged=range(4))
    table = descent.measure(members, cases.lengths_of(members), 0.0, family_head(made, members))["descent_members"]
    assert table.attributes["target_loss"] is None


def test_tuning_by_hand() -> None:
    made, members = cases.descending(methods=("sgd",), batches=("B=50",), rates=(0.01, 0.1), seeds=3, diverged=(4,))
    tables = tuning.measure(members, family_head(made, members))
    table = tables["tuning"]
    ends = np.array([members[place].final(1, 0) for place in range(3)])
    assert table["validation_loss"][0] == pytest.approx(ends.mean())
    half = 4.3027 * ends.std(ddof=1) / math.sqrt(3)
    assert table["validation_loss_high"][0] - ends.mean() == pytest.approx(half, rel=1e-4)
    assert table["validation_loss"][1] == math.inf
    assert table["diverged"].tolist() == [0, 1]
    assert np.isinf(tables["tuning_runs"]["training_loss"]).tolist() == [False] * 4 + [True, False]
    one = tuning.measure(members[:1], family_head(made, members))["tuning"]
    assert np.isnan(one["validation_loss_low"]).all()


# Trained runs


def test_a_trained_family(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = [{"batch_size": 10}, {"batch_size": "full"}, {"batch_size": 10, "optimizer": {"method": "adam"}}]
    sections = [section | {"iterations": 80, "rate": 0.01, "dtype": "float64"} for section in sections]
    sections[1]["trajectory"] = {"stride": 7, "dense": 0}
    manifests = cases.trained(tmp_path, data, {"factory": "linear"}, sections, "squared_error")
    made = cases.family({"variant": ["batch", "full", "adam"]}, ())
    read, asked = sets.DataSet.split, []
    monkeypatch.setattr(sets.DataSet, "split", lambda self, name: asked.append(name) or read(self, name))
    tables = descent.compute(cases.family_job(made, data, manifests, target=0.0, repetitions=2))
    assert set(asked) == {"train"}
    table = tables["descent_members"]
    # Without momentum and decay a step is η times the gradient, of which the network has one layer.
    assert table["step_variance"][0] == pytest.approx(table["gradient_variance"][0], rel=1e-9)
    assert np.isnan(table["step_variance"][1])
    assert table["step_variance"][2] > 0
    assert table["gradient_variance"][1] < 0.05 * table["gradient_variance"][0]
    assert table["batch_size"].tolist() == [10, 50, 10]
    cost = tables["descent_cost"]
    assert (cost["seconds_per_step"] > 0).all()
    assert cost["at_once"].tolist() == [10, 50, 10]
    again = descent.compute(cases.family_job(made, data, manifests, target=0.0, repetitions=1))
    for name in ("descent_members", "descent_course"):
        assert again[name].digest() == tables[name].digest()
    np.testing.assert_array_equal(again["descent_cost"]["measured_bytes"], cost["measured_bytes"])


# Memory


def test_the_peak_of_a_known_sequence() -> None:
    held, outside = torch.zeros(100, dtype=torch.float64), torch.zeros(1000)
    with PeakBytes([held]) as mode:
        first = outside * 2  # 4,000
        view = first.view(10, 100)
        second = view + 1  # 8,000
        del first, view
        third = second[:10] * 1.0  # 4,000 + what is alive
        del second
        third.add_(1)
    assert mode.peak == 800 + 4000 + 4000 + 0 * len(third)
    with PeakBytes([held]) as mode:
        del held
        torch.zeros(300)
    assert mode.peak == 1200


@pytest.mark.parametrize("method", ["sgd", "rmsprop", "adam"])
@pytest.mark.parametrize(
    ("model", "batch"),
    [
        ({"factory": "mlp", "hidden": [300, 300]}, 2),
        ({"factory": "cnn", "channels": [8, 8], "normalization": "none"}, 40),
        ({"factory": "cnn", "channels": [8, 8]}, "full"),
    ],
)
def test_counted_memory_is_near_what_is_measured(method: str, model: dict, batch: int | str, data: Path) -> None:
    section = cases.training(batch_size=batch, optimizer={"method": method})
    cost = step_cost(section, model, "cross_entropy", data, torch.device("cpu"), 1)
    assert 0.75 < cost["counted_bytes"] / cost["measured_bytes"] < 1.01


def test_memory_grows_with_the_batch_and_with_the_state() -> None:
    assert counted_bytes(1000, 8, 0, 10**6) == 16_000 + 8 * 10**6
    assert counted_bytes(1000, 4, 2, 10) == 32_000 + 4_000 + 8_000 + 8_000


def test_an_axis_is_one_of_rates_only_where_nothing_else_changes() -> None:
    made, members = cases.descending(rates=(0.01, 0.1), seeds=2)
    assert family_head(made, members)["rate_axes"] == ["rate"]
    # What no column of the tables tells: clipping.
    clipped = [
        replace(member, training=cases.training(rate=member.learning_rate, clip_norm=1.0))
        if member.learning_rate == 0.1
        else member
        for member in members
    ]
    assert family_head(made, clipped)["rate_axes"] == []
    assert family_head(made, [replace(m, beside=str(m.learning_rate)) for m in members])["rate_axes"] == []
