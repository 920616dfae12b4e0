"""Sharpness through training: exact on quadratics and small networks, batch sharpness in closed form, plateaus."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import training
from measure_cases import chosen
from problems import SMALL, dense_hessian, problem
from view_cases import HEAD, run_job

from quadscape.config.sections import Linear, Training
from quadscape.findings.sharpness import statements
from quadscape.measures import MEASURES
from quadscape.measures.job import Job
from quadscape.measures.run import run_measure
from quadscape.measures.run_losses import RunLosses
from quadscape.measures.sharpness import compute as sharpness
from quadscape.measures.sharpness.batches import batch_curvatures, batch_sharpness, drawn_batches
from quadscape.measures.sharpness.compute import NUMBERS, Work, compute, scale_invariant, tabulate
from quadscape.measures.sharpness.declaration import BLOCKS, CHAIN, STATES
from quadscape.measures.sharpness.iterates import chosen_iterates, plateaus_of
from quadscape.network.objective import Objective
from quadscape.tables import Table

OPTIONS = vars(chosen("sharpness", iterates=6, batches=3))
LINEAR = {"factory": "linear"}
CNN = {"factory": "cnn", "channels": [2, 2], "channels_per_group": 2}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def least_squares(count: int = 7) -> tuple[Objective, np.ndarray]:
    """Least squares with a linear model of 3 × (4 + 1) parameters."""
    objective, theta = problem(
        Linear(factory="linear"), (1, 2, 2), count=count, classes=3, loss="squared_error", chunk=2
    )
    return objective, theta.numpy()


def by_numpy(objective: Objective, theta: np.ndarray, decay: float, batch: np.ndarray) -> tuple[float, float]:
    """g̃ᵀ(H_b + δ)g̃ and |g̃|² of ½|Wx + b − y|², from the data alone."""
    x = objective.images.reshape(objective.count, -1).numpy()[batch]
    y = np.eye(3)[objective.labels.numpy()[batch]]
    weight, bias = theta[:12].reshape(3, 4), theta[12:]
    inputs = np.c_[x, np.ones(len(x))]
    gradient = np.c_[weight, bias]
    residual = inputs @ gradient.T - y
    slope = residual.T @ inputs / len(x) + decay * gradient
    curved = slope @ (inputs.T @ inputs) / len(x) + decay * slope
    return float((slope * curved).sum()), float(np.square(slope).sum())


class TestBatchSharpness:
    """Against NumPy, and in repeated draws."""

    @pytest.mark.parametrize("decay", [0.0, 0.3])
    def test_batches_are_those_of_least_squares(self, decay: float) -> None:
        objective, theta = least_squares()
        batches = [np.array([0, 3, 5]), np.array([6]), np.arange(7), np.array([2, 1])]
        found = batch_curvatures(objective, theta, decay, batches)
        expected = np.array([by_numpy(objective, theta, decay, batch) for batch in batches])
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        both = batch_sharpness(found)
        assert both.ratio[0] == pytest.approx(expected[:, 0].sum() / expected[:, 1].sum(), rel=1e-10)
        assert both.mean[0] == pytest.approx((expected[:, 0] / expected[:, 1]).mean(), rel=1e-10)
        assert both.ratio[1] < both.ratio[0] < both.ratio[2]

    def test_a_full_batch_is_exact(self) -> None:
        objective, theta = least_squares()
        decay, section = 0.3, training(batch_size="full")
        drawn = drawn_batches(section, 7, 5, 0)
        assert [batch.tolist() for batch in drawn] == [list(range(7))]
        gradient = objective.gradient(theta).numpy() + decay * theta
        hessian = dense_hessian(objective, torch.from_numpy(theta)).numpy() + decay * np.eye(len(theta))
        expected = gradient @ hessian @ gradient / (gradient @ gradient)
        found = batch_sharpness(batch_curvatures(objective, theta, decay, drawn))
        np.testing.assert_allclose([*found.ratio, *found.mean], expected, rtol=1e-10)

    @pytest.mark.parametrize(
        ("remainder", "sampling", "batches"),
        [("keep", "reshuffled", 32), ("wrap", "reshuffled", 32), ("wrap", "reshuffled", 16)],
    )
    def test_intervals_hold_the_expectation_over_all_batches(self, remainder: str, sampling: str, batches: int) -> None:
        objective, theta = least_squares(11)
        decay, size, repeats = 0.1, 4, 1500
        every: dict[int, np.ndarray] = {
            count: np.array([by_numpy(objective, theta, decay, np.array(b)) for b in combinations(range(11), count)])
            for count in (3, 4)
        }
        ragged = 1 / 3 if remainder == "keep" else 0.0
        above, below = (1 - ragged) * every[4].mean(axis=0) + ragged * every[3].mean(axis=0)
        ratios = [float((of[:, 0] / of[:, 1]).mean()) for of in (every[4], every[3])]
        exact = above / below, (1 - ragged) * ratios[0] + ragged * ratios[1]
        lookup = {count: dict(zip(combinations(range(11), count), of, strict=True)) for count, of in every.items()}
        section = training(batch_size=size, remainder=remainder, sampling=sampling)
        held = np.zeros((repeats, 2))
        for iteration in range(repeats):
            drawn = drawn_batches(section, 11, batches, iteration)
            rows = np.array([lookup[len(batch)][tuple(sorted(batch.tolist()))] for batch in drawn])
            for place, (values, truth) in enumerate(zip(batch_sharpness(rows), exact, strict=True)):
                held[iteration, place] = values[1] <= truth <= values[2]
        error = np.sqrt(0.95 * 0.05 / repeats)
        assert (np.abs(held.mean(axis=0) - 0.95) < 4 * error).all(), held.mean(axis=0)

    def test_a_vanishing_gradient_has_none(self) -> None:
        both = batch_sharpness(np.zeros((4, 2)))
        assert np.isnan([*both.ratio, *both.mean]).all()


class TestRuns:
    """Runs that are trained."""

    @pytest.fixture(scope="class")
    def plain(self, tmp_path_factory: pytest.TempPathFactory) -> Job:
        """Least squares on digits, without momentum and in constant steps."""
        folder = tmp_path_factory.mktemp("plain")
        return run_job(folder, LINEAR, OPTIONS, "squared_error", iterations=60, weight_decay=0.01, rate=0.02)

    @pytest.fixture(scope="class")
    def convolved(self, tmp_path_factory: pytest.TempPathFactory) -> Job:
        """A small network with GroupNorm, heavy-ball and a drop of the rate."""
        schedule = {"schedule": "steps", "value": 0.05, "milestones": (20,), "factor": 0.1}
        keys = {"momentum": 0.9, "weight_decay": 1e-3, "learning_rate": schedule}
        return run_job(tmp_path_factory.mktemp("convolved"), CNN, OPTIONS, "cross_entropy", iterations=40, **keys)

    def test_on_a_quadratic_the_largest_eigenvalue_is_constant_and_exact(self, plain: Job) -> None:
        table = compute(plain)["sharpness"]
        losses, theta = RunLosses(plain, ("train",)), plain.trajectory().theta(0)
        inputs = losses.objective("train", theta).images.reshape(-1, 64).numpy()
        inputs = np.c_[inputs, np.ones(len(inputs))]
        exact = np.linalg.eigvalsh(inputs.T @ inputs / len(inputs))[-1]
        # Every class has the same block: ten equal eigenvalues.
        assert set(table["state"].tolist()) == {"small gap"}
        np.testing.assert_allclose(table["largest"], exact, rtol=1e-8)
        np.testing.assert_allclose(table["second"], exact, rtol=1e-6)

    def test_it_is_that_of_the_dense_hessian(self, convolved: Job) -> None:
        tables, losses = compute(convolved), RunLosses(convolved, ("train",))
        table, trajectory = tables["sharpness"], convolved.trajectory()
        assert {0, 20, 40} <= set(table["iteration"].tolist())
        for row, iteration in ((0, 0), (3, int(table["iteration"][3])), (len(table) - 1, 40)):
            theta = trajectory.theta(iteration)
            objective = losses.objective("train", theta)
            values = np.linalg.eigvalsh(dense_hessian(objective, torch.from_numpy(theta)).numpy())
            found, residual = float(table["largest"][row]), float(table["residual"][row])
            assert abs(found - values[-1]) <= max(1e-8 * values[-1], residual)
            assert found == pytest.approx(values[-1], rel=1e-7)
            assert values[0] - 1e-9 <= table["smallest"][row]
            assert (table["state"][row] == "negative") == (-values[0] > values[-1])
            assert float(table["loss"][row]) == pytest.approx(objective.loss(theta), rel=1e-12)
            conv = np.concatenate([theta[b.start : b.stop] for b in objective.layout.blocks if "conv" in b.name])
            assert float(table["scaled"][row]) == pytest.approx(found * conv @ conv, rel=1e-10)

    def test_limits_are_those_of_the_rate_of_the_last_step(self, convolved: Job) -> None:
        table = compute(convolved)["sharpness"]
        rates = np.where(table["iteration"] <= 20, 0.05, 0.005)
        np.testing.assert_allclose(table["learning_rate"], rates, rtol=1e-12)
        np.testing.assert_allclose(table["limit"], 2 * 1.9 / rates, rtol=1e-12)
        np.testing.assert_allclose(table["noisy_limit"], 2 * 0.1 / rates, rtol=1e-12)
        np.testing.assert_allclose(table["plain_limit"], 2 / rates, rtol=1e-12)

    def test_no_number_depends_on_how_the_work_is_cut(self, convolved: Job) -> None:
        work = Work(convolved)
        assert work.items == 2
        whole = work.measure(slice(0, work.items))["values"]
        parts = [Work(convolved).measure(slice(item, item + 1))["values"] for item in reversed(range(work.items))]
        np.testing.assert_array_equal(np.concatenate(parts[::-1]), whole)

    def test_a_job_of_items_writes_the_same_tables(
        self, convolved: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from quadscape.measures.declaration import fingerprint_digits
        from quadscape.measures.result import manifest_name, table_path
        from quadscape.tables import read_table

        monkeypatch.setattr("quadscape.measures.items.UNIT_SECONDS", 0.0)
        measure, options = MEASURES["sharpness"], vars(convolved.options)
        inputs = convolved.inputs | {"data": [f"{convolved.path('data')}/zarr.json"]}
        job = Job("r", (), options, inputs, device="cpu", log=lambda _: None)
        manifest = tmp_path / manifest_name(fingerprint_digits(options, "1"))
        run_measure(measure, "1", job, options, manifest)
        for name, table in compute(convolved).items():
            found = read_table(table_path(manifest, name), measure.schemas[name])
            for column, values in table.columns.items():
                np.testing.assert_array_equal(found[column], values)

    def test_a_diverged_run_is_measured_up_to_there(self, tmp_path: Path) -> None:
        job = run_job(tmp_path, LINEAR, OPTIONS, "squared_error", iterations=200, rate=100.0)
        diverged = job.trajectory().diverged
        assert diverged is not None
        table = compute(job)["sharpness"]
        assert table["iteration"].max() < diverged
        assert len(table) == 6

    @pytest.mark.parametrize(
        ("keys", "why"),
        [
            ({"optimizer": {"method": "adam"}}, "adam scales every parameter's step by itself"),
            ({"clip_norm": 1.0}, "gradients are clipped"),
        ],
    )
    def test_where_no_limit_applies_the_table_says_why(self, tmp_path: Path, keys: dict[str, Any], why: str) -> None:
        table = compute(run_job(tmp_path, LINEAR, OPTIONS, "squared_error", iterations=8, **keys))["sharpness"]
        assert table.attributes["no_limit"] == why
        assert np.isnan(table["limit"]).all()
        assert np.isfinite(table["plain_limit"]).all()


def test_scale_invariant_weights_are_those_before_a_normalisation() -> None:
    objective, theta = problem(*SMALL["cnn-group"])
    found = scale_invariant(objective, theta.numpy())
    names = {block.name for block in objective.layout.blocks if found[block.start : block.stop].any()}
    assert names == {block.name for block in objective.layout.blocks if "conv" in block.name}
    bigger = torch.where(torch.from_numpy(found), 1.7 * theta, theta)
    assert objective.loss(bigger) == pytest.approx(objective.loss(theta), rel=1e-4)
    assert not scale_invariant(*_plain("cnn-none")).any()


def _plain(name: str) -> tuple[Objective, np.ndarray]:
    objective, theta = problem(*SMALL[name])
    return objective, theta.numpy()


class TestIterates:
    """Which iterates are taken."""

    def test_half_is_even_and_half_follows_start_and_drops(self) -> None:
        kept = np.arange(0, 48801, 4)
        found = chosen_iterates(kept, [20000, 40000], 128)
        assert 100 <= len(found) <= 128
        assert set(found.tolist()) <= set(kept.tolist())
        assert {0, 4, 20000, 20004, 40000, 40004, 48800} <= set(found.tolist())
        assert np.diff(found).max() <= 48800 / 63 + 4
        assert (np.diff(found) > 0).all()

    def test_few_iterates_are_all_taken(self) -> None:
        assert chosen_iterates(np.array([0, 5, 9]), [5], 4).tolist() == [0, 5, 9]
        assert len(chosen_iterates(np.arange(20), range(1, 19), 4)) == 4

    @pytest.mark.parametrize("most", [4, 5, 17, 64])
    def test_never_more_than_asked_for(self, most: int) -> None:
        found = chosen_iterates(np.arange(0, 301, 3), [99, 201], most)
        assert len(found) <= most
        assert found[0] == 0
        assert found[-1] == 300

    def test_plateaus(self) -> None:
        assert plateaus_of(np.array([0.1, 0.2, 0.3, 0.3, 0.3, 0.03, 0.03])) == [(2, 5), (5, 7)]
        assert plateaus_of(np.linspace(1, 0, 9)) == []
        assert plateaus_of(np.empty(0)) == []


def tables(
    largest: np.ndarray, *, steps: int = 1000, rate: float = 0.1, sharp: np.ndarray | None = None, **head: Any
) -> dict[str, Table]:
    """The tables of a run of constant rate with these eigenvalues at even distances."""
    count = len(largest)
    iterations = np.linspace(0, steps, count).astype(int)
    numbers = {name: np.zeros(count) for name in NUMBERS} | {"largest": largest, "norm": np.ones(count)}
    sharp = np.full(count, 2 / rate) if sharp is None else sharp
    numbers |= {"batch_sharpness": sharp, "batch_sharpness_low": sharp, "batch_sharpness_high": sharp}
    given = {"momentum": 0.0, "nesterov": False, "no_limit": "", "weight_decay": 0.0, "batch_size": 32, **head}
    return tabulate(iterations, numbers, np.full(steps, rate), HEAD | {"run": "a"} | given)


def noise(count: int, seed: int = 0, size: float = 0.05) -> np.ndarray:
    return size * np.random.default_rng(seed).standard_normal(count)


class TestPlateaus:
    """Whether sharpening has stopped, and means with intervals."""

    def test_what_fluctuates_about_a_level_has_settled(self) -> None:
        row = tables(10 * (1 + noise(120)))["sharpness_plateaus"]
        assert row["settled"].tolist() == [True]
        assert row["blocks"][0] >= BLOCKS
        assert row["largest_low"][0] < 10 < row["largest_high"][0]
        assert row["change_low"][0] < 0 < row["change_high"][0]
        np.testing.assert_allclose(row["limit_ratio"][0], row["largest"][0] / 20)

    def test_what_rises_has_not(self) -> None:
        rising = tables(10 * np.linspace(0.5, 1.5, 120) * (1 + noise(120)))["sharpness_plateaus"]
        assert rising["settled"].tolist() == [False]
        assert rising["change_low"][0] > 0.2
        # Along a line, (1.5 − 1) over the mean of the later half.
        assert rising["change"][0] == pytest.approx(0.4, abs=0.05)

    def test_a_trend_that_would_not_be_seen_is_no_settling(self) -> None:
        assert tables(10 * (1 + noise(120, size=2.0)))["sharpness_plateaus"]["settled"].tolist() == [False]

    def test_few_or_correlated_iterates_have_no_interval(self) -> None:
        few = tables(10 * (1 + noise(18)))["sharpness_plateaus"]
        assert few["blocks"].tolist() == [0]
        assert np.isnan(few["largest_low"][0])
        slow = 10 * (1 + 0.1 * np.sin(np.linspace(0, 20, 120)))
        assert tables(slow)["sharpness_plateaus"]["blocks"].tolist() == [0]

    def test_trends_are_found_in_as_many_cases_as_they_should(self) -> None:
        # White noise about a level: the interval of its change leaves 0 out in 5 % of the cases.
        cases = 600
        found = [
            tables(10 * (1 + noise(120, seed)))["sharpness_plateaus"]["change_low"][0] > 0 for seed in range(cases)
        ]
        assert abs(np.mean(found) - 0.025) < 4 * np.sqrt(0.025 * 0.975 / cases)

    def test_failures_do_not_count(self) -> None:
        values = 10 * (1 + noise(120))
        iterations, rates = np.linspace(0, 1000, 120).astype(int), np.full(1000, 0.1)
        numbers = {name: np.zeros(120) for name in NUMBERS} | {"norm": np.zeros(120)}
        lost = np.arange(120) % 3 == 0
        numbers["state"] = np.where(lost, float(STATES.index("small gap")), 0.0)
        numbers["largest"] = np.where(lost, 1e9, values)
        given = {"momentum": 0.9, "nesterov": True, "no_limit": "", "weight_decay": 0.1}
        found = tabulate(iterations, numbers, rates, HEAD | given)
        assert found["sharpness_plateaus"]["iterates"].tolist() == [np.count_nonzero(~lost[60:])]
        assert found["sharpness_plateaus"]["largest"][0] == pytest.approx(10, rel=0.05)
        np.testing.assert_allclose(found["sharpness"]["limit"], 2 * 1.9 / (2.8 * 0.1))
        assert np.isnan(found["sharpness"]["noisy_limit"]).all()
        assert np.isnan(found["sharpness"]["scaled"]).all()


class TestFindings:
    """What is said."""

    @staticmethod
    def of(*runs: dict[str, Table]) -> dict[str, Any]:
        together = {name: [run[name] for run in runs] for name in ("sharpness", "sharpness_plateaus")}
        return {one.known: one for one in statements(together) if one.known}

    def test_batches_at_the_edge(self) -> None:
        # Without momentum, batch sharpness at 2/η.
        settled = 10 * (1 + noise(120))
        at_edge = self.of(tables(settled, sharp=20 * (1 + noise(120, 1))))["batch-sharpness-edge"]
        assert at_edge.verdict == "agrees"
        assert at_edge.value == pytest.approx(1, rel=0.02)
        assert self.of(tables(settled, sharp=5 * (1 + noise(120, 1))))["batch-sharpness-edge"].verdict == "disagrees"
        momentum = self.of(tables(settled, sharp=5 * (1 + noise(120, 1)), momentum=0.9))["batch-sharpness-edge"]
        assert momentum.verdict == "cannot be told"

    def test_no_verdict_while_sharpening(self) -> None:
        rising = self.of(tables(np.linspace(5, 15, 120) * (1 + noise(120))))["batch-sharpness-edge"]
        assert rising.verdict == "cannot be told"
        assert "sharpening has stopped" in rising.reason
        few = self.of(tables(10 * (1 + noise(18))))["batch-sharpness-edge"]
        assert few.verdict == "cannot be told"
        assert "too few" in few.reason

    def test_whether_the_edge_needs_decay_is_told_from_two_runs(self) -> None:
        with_decay = tables(20 * (1 + noise(120)), run="with", weight_decay=1e-3)
        without = tables(5 * (1 + noise(120, 1)), run="without", weight_decay=0.0)
        found = self.of(with_decay, without)["original-edge-needs-decay"]
        assert found.value == pytest.approx(0.25, rel=0.05)
        assert found.run == "without, with"
        assert found.verdict == "agrees"
        assert self.of(with_decay)["original-edge-needs-decay"].verdict == "not testable"
        other = tables(5 * (1 + noise(120, 1)), run="without", weight_decay=0.0, rate=0.2)
        assert self.of(with_decay, other)["original-edge-needs-decay"].verdict == "not testable"

    def test_what_failed_is_counted(self) -> None:
        one = tables(np.full(20, 3.0))["sharpness"]
        states = np.where(np.arange(20) < 3, "negative", "converged")
        lost = Table(one.schema, {**one.columns, "state": states}, one.attributes)
        texts = [s.claim for s in statements({"sharpness": [lost], "sharpness_plateaus": []})]
        assert any("3 of 20 iterates could not be relied on (negative: 3)" in text for text in texts)


def test_sections_are_read() -> None:
    # The batches of a run are those of its section.
    section = Training(batch_size=4, remainder="keep")
    sizes = {len(batch) for batch in drawn_batches(section, 11, 64, 0)}
    assert sizes == {3, 4}
    assert {len(batch) for batch in drawn_batches(Training(batch_size=4), 11, 64, 0)} == {4}
    assert sharpness.CHAIN == CHAIN
