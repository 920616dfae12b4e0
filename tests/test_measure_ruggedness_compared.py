"""Do scores of ruggedness rank with how networks train? Rank statistics, planted networks, rates by their limits."""

from typing import Any

import numpy as np
import pytest
from family_cases import compared_tables, family, networks, scores_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments import TINY
from quadscape.errors import ConfigError
from quadscape.findings import ruggedness_compared as findings
from quadscape.measures.discoveries import discoveries
from quadscape.measures.family import Family
from quadscape.measures.members import family_head
from quadscape.measures.result import table_path
from quadscape.measures.ruggedness_compared import compute as compared
from quadscape.measures.ruggedness_compared import statistics
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.families import OfLimit
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from quadscape.planning.tuned import run_to_train
from quadscape.tables import Table

# Rank statistics.


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(3, 30), levels=st.integers(2, 40))
def test_rank_correlation_is_scipys_with_ties_and_infinities(seed: int, count: int, levels: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, levels, (2, count)).astype(float)
    y[y == levels - 1] = np.inf
    with np.errstate(invalid="ignore"):
        expected = (
            stats.pearsonr(stats.rankdata(x), stats.rankdata(y)).statistic if np.ptp(x) and len(set(y)) > 1 else np.nan
        )
    assert statistics.spearman(x, y) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    np.testing.assert_array_equal(
        statistics.spearman(np.array([x, y]), np.array([y, x])), [statistics.spearman(x, y)] * 2
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(5, 30))
def test_partial_correlation_is_that_of_residuals(seed: int, count: int) -> None:
    x, y, z, w = np.random.default_rng(seed).standard_normal((4, count))
    w = (w > 0).astype(float)
    ranks = [stats.rankdata(values) for values in (x, y, z)]
    r = np.corrcoef(ranks)
    unexplained = (1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)
    if unexplained > 1e-6:
        expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt(unexplained)
        assert statistics.partial_spearman(x, y, z[None]) == pytest.approx(expected, abs=1e-9)
    design = np.column_stack([np.ones(count), ranks[2], w])
    left = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in ranks[:2]]
    if (
        min(map(np.linalg.norm, left)) > 1e-3
        and count - 2 - np.linalg.matrix_rank(design[:, 1:] - design[:, 1:].mean(axis=0)) >= 2
    ):
        expected = np.corrcoef(left)[0, 1]
        assert statistics.partial_spearman(x, y, np.array([z, w])) == pytest.approx(expected, abs=1e-9)
    # A covariate that is constant says nothing.
    alone = statistics.partial_spearman(x, y, np.array([z, np.ones(count)]))
    assert alone == pytest.approx(statistics.partial_spearman(x, y, z[None]), abs=1e-9, nan_ok=True)


def test_nothing_is_left_of_a_score_that_is_its_covariate() -> None:
    x = np.arange(8.0)
    assert np.isnan(statistics.partial_spearman(x**2, np.sin(x), x[None]))
    assert np.isnan(statistics.partial_spearman(x[:4], x[:4] % 3, np.array([x[:4] % 2, x[:4]])))  # no freedom


@pytest.mark.parametrize("count", [4, 7])
def test_few_networks_have_exact_p_values(count: int) -> None:
    x, y = np.random.default_rng(3).standard_normal((2, count))
    reference = stats.permutation_test(
        (x,), lambda values: stats.spearmanr(values, y).statistic, permutation_type="pairings", n_resamples=np.inf
    )
    assert statistics.p_value(x, y) == pytest.approx(reference.pvalue, abs=1e-12)
    assert statistics.p_value(x, x) == pytest.approx(2 / np.prod(np.arange(1, count + 1)))


def test_p_values_are_uniform_without_association() -> None:
    generator = np.random.default_rng(5)
    found = np.array([statistics.p_value(*generator.standard_normal((2, 12))) for _ in range(150)])
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert stats.binomtest(int(np.sum(found <= 0.1)), 150, 0.1).pvalue > 0.01


def test_the_bootstrap_covers_what_many_networks_have() -> None:
    generator, rho, hits, count = np.random.default_rng(7), 0.6, 0, 20
    true = 6 / np.pi * np.arcsin(rho / 2)
    drawn = statistics.resamples(count)
    for _ in range(200):
        x = generator.standard_normal(count)
        y = rho * x + np.sqrt(1 - rho**2) * generator.standard_normal(count)
        value = float(statistics.spearman(x, y))
        _, low, high = statistics.percentiles(value, statistics.spearman(x[drawn], y[drawn]), count)
        hits += low <= true <= high
    assert stats.binomtest(hits, 200, 0.95).pvalue > 0.01


def test_what_twenty_networks_can_tell() -> None:
    assert statistics.half_width(20) == pytest.approx(0.454, abs=1e-3)
    assert statistics.half_width(3) == 1
    generator = np.random.default_rng(11)
    found = statistics.spearman(*generator.standard_normal((2, 4000, 20)))
    assert np.mean(np.abs(found) > statistics.half_width(20)) == pytest.approx(0.05, abs=0.012)


def test_too_few_networks_have_no_interval() -> None:
    x = np.arange(4.0)
    row = compared.rank_row(x, x, np.ones((2, 4)))
    assert row["correlation"] == 1
    assert np.isnan([row["correlation_low"], row["correlation_high"]]).all()
    empty = compared.rank_row(np.full(3, np.nan), np.arange(3.0), np.ones((2, 3)))
    assert (empty["networks"], np.isnan(empty["correlation"]), np.isnan(empty["p_value"])) == (0, True, True)


# Planted networks.


def rank_of(tables: dict[str, Table], score: str, outcome: str, iteration: int = 0) -> dict[str, Any]:
    table = tables["compared_ranks"]
    chosen = (table["score"] == score) & (table["outcome"] == outcome) & (table["iteration"] == iteration)
    (row,) = np.flatnonzero(chosen)
    return {name: values[row] for name, values in table.columns.items()}


def compare(values: np.ndarray, depths: Any = (2, 2, 4, 4, 8, 8), **given: Any) -> dict[str, Table]:
    """The networks of `networks`, whose primary score has these values."""
    made, members, layouts = networks(depths, **given)
    measured = [
        (cell, scores_of(f"starts/{cell}", 0, trace_over_norm=float(value)))
        for cell, value in zip(made.cells, values, strict=True)
    ]
    return compared.measure(members, layouts, [0.0] * len(members), measured, 0.0, family_head(made, members))


def test_a_score_that_tells_is_found() -> None:
    tables = compare(np.arange(6.0))
    row = rank_of(tables, "trace_over_norm", "final_loss")
    assert (row["correlation"], row["networks"], row["primary"], row["rejected"]) == (1.0, 6, True, False)
    assert row["p_value"] == pytest.approx(2 / 720)
    assert rank_of(tables, "trace_over_norm", "steps_to_target")["correlation"] == pytest.approx(1, abs=0.1)
    # Scores that are equal for all have no rank.
    assert np.isnan(rank_of(tables, "largest", "final_loss")["correlation"])
    found = tables["compared_networks"]
    np.testing.assert_array_equal(found["depth"], [2, 2, 4, 4, 8, 8])
    np.testing.assert_array_equal(found["normalised"], [False, True] * 3)


def test_what_depth_explains_is_gone_given_depth() -> None:
    depths = np.repeat(np.arange(2, 9), 3)
    generator = np.random.default_rng(13)
    # Difficulty rises with depth in `networks`, and within equal depths; the score is depth and noise.
    tables = compare(depths + 0.3 * generator.standard_normal(21), depths.tolist())
    row = rank_of(tables, "trace_over_norm", "final_loss")
    assert row["correlation"] > 0.9
    assert row["correlation_low"] > 0.7
    assert row["partial_low"] < 0 < row["partial_high"]
    assert abs(row["partial"]) < 0.5


def test_what_diverges_or_never_comes_there_ranks_last() -> None:
    tables = compare(np.arange(6.0), seeds=3, diverged=(0, 1, 2, 3))
    found = tables["compared_networks"]
    assert np.isinf(found["final_loss"][0])
    assert np.isfinite(found["final_loss"][1])
    np.testing.assert_array_equal(np.isinf(found["seed_spread"]), [True, True, False, False, False, False])
    assert np.isinf(found["steps_to_target"][-1])  # the hardest never reaches the median
    # One network fewer agrees: the first is now the worst.
    row = rank_of(tables, "trace_over_norm", "final_loss")
    expected = stats.spearmanr(np.arange(6), [6, 1, 2, 3, 4, 5]).statistic
    assert row["correlation"] == pytest.approx(expected)


def test_scores_below_their_error_are_left_out() -> None:
    tables = compared_tables()
    assert rank_of(tables, "cosine", "final_loss")["networks"] == 5
    assert rank_of(tables, "trace_over_norm", "final_loss")["networks"] == 6
    scores = tables["compared_scores"]
    assert np.isnan(scores["value"][(scores["score"] == "cosine") & (scores["cell"] == "net 1")]).all()


def test_seeds_of_one_network_are_averaged() -> None:
    made, members, layouts = networks((2, 4, 8), 2)
    measured = [
        (cell, scores_of(f"s{seed}/{cell}", 0, largest=float(place + 10 * seed)))
        for place, cell in enumerate(made.cells)
        for seed in (0, 1)
    ]
    tables = compared.measure(members, layouts, [0.0] * 6, measured, 0.0, family_head(made, members))
    scores = tables["compared_scores"]
    own = scores.where(scores["score"] == "largest")
    np.testing.assert_array_equal(own["value"], [5, 6, 7])
    np.testing.assert_array_equal(own["checkpoints"], [2, 2, 2])


def test_spread_over_seeds() -> None:
    losses = np.array([0.1, 0.2, 0.4])
    assert compared.spread(losses) == pytest.approx(np.log(2))
    assert compared.spread(np.array([0.1, np.inf])) == np.inf
    assert np.isnan(compared.spread(losses[:1]))
    assert np.isnan(compared.spread(np.array([0.0, 0.1])))


def test_discoveries_are_those_of_benjamini_and_hochberg() -> None:
    p = np.array([0.001, 0.3, 0.02, np.nan, 0.0001, 0.04, 0.9])
    tested = np.array([True, True, True, True, False, True, True])
    # Of five: 0.001 ≤ 0.02, 0.02 ≤ 0.04, 0.04 ≤ 0.06, 0.3 > 0.08.
    np.testing.assert_array_equal(discoveries(p, tested), [True, False, True, False, False, True, False])
    assert not discoveries(np.array([np.nan, 0.01]), np.array([True, False])).any()
    generator, families = np.random.default_rng(23), 400
    wrong = sum(discoveries(generator.uniform(size=20), np.ones(20, bool)).any() for _ in range(families))
    assert stats.binomtest(wrong, families, 0.1).pvalue > 0.01


def test_bumps_go_with_the_gap_over_networks() -> None:
    made, members, layouts = networks((2, 3, 4, 5, 6, 7), 2)
    gaps = [member.final(1, 0) - member.final(0, 0) for member in members]
    tables = compared.measure(members, layouts, gaps, [], 0.0, family_head(made, members))
    (row,) = np.flatnonzero(tables["compared_ranks"]["score"] == "bump")
    assert tables["compared_ranks"]["correlation"][row] == 1
    assert tables["compared_ranks"]["outcome"][row] == "gap"
    assert len(tables["compared_scores"]) == 0


def test_few_networks_are_not_tested() -> None:
    tables = {name: [table] for name, table in compared_tables().items()}
    found = findings.statements(tables)
    of_row = [statement for statement in found if statement.known]
    assert [statement.verdict for statement in of_row] == ["not testable"]
    assert "not tested at this size (networks = 6; 20 would do)" in of_row[0].reason
    assert all("not tested at this size (n = 6)" in s.claim for s in found if "correlation" in s.claim and not s.known)


# Learning rates by the limit of a network.

STARTS = {
    "name": "starts",
    "vary": {"net": {"a": {"model.hidden": [4]}, "b": {"model.hidden": [4, 4]}}, "seed": [0, 1]},
    "set": {"model": {"factory": "mlp"}, "iterations": 1, "checkpoints": [0], "trajectory": {"stride": 1}},
}
CHOSEN = {"family": "starts", "by": "limit", "fraction": 0.1}
NETS = {
    "name": "nets",
    "vary": {
        "other": {"one": {"model.hidden": [4]}, "two": {"model.hidden": [4, 4]}},
        "seed": {"5": {"seed": 5, "checkpoints": [20]}, "6": {"seed": 6}},
    },
    "set": {"model": {"factory": "mlp"}, "learning_rate": {"schedule": "constant", "value": 0.1}, "chosen": CHOSEN},
}


def raw(*families: Any, **more: Any) -> dict[str, Any]:
    return {**TINY, "families": list(families), **more}


def test_a_network_takes_its_rate_from_its_own_range_tests(tmp_path: Any) -> None:
    given = raw(STARTS, NETS)
    experiment = parse_experiment(given)
    starts, nets = experiment.grids
    assert nets.repeats == ("seed",)  # also where its levels name checkpoints
    for place, member in enumerate(nets.members):
        choice = experiment.choices[member.run]
        own = tuple(one.run for one in starts.members[:2]) if place < 2 else tuple(o.run for o in starts.members[2:])
        assert isinstance(choice, OfLimit)
        assert member.limits == own
        assert choice.starts == tuple((run, 0) for run in own)
    targets = Targets(Problem.of(experiment))
    run = nets.members[0].run
    assert targets.training_inputs(run)["chosen"] == [
        targets.result("ruggedness", start, "0") for start in nets.members[0].limits
    ]
    tables = []
    for limit in (2.34567, 1.23456):
        manifest = tmp_path / f"{limit}" / "manifest-x.json"
        manifest.parent.mkdir()
        scores_of("starts/x", 0, limit=limit).write(table_path(manifest, "ruggedness"))
        tables.append(str(manifest))
    trained = run_to_train(experiment, given, run, tables, lambda _: None)
    assert trained.learning_rate.value == 0.123  # of the least, three digits
    assert (trained.name, trained.seed, trained.momentum) == (run, 5, 0.9)


def test_a_range_test_without_a_limit_is_an_error(tmp_path: Any) -> None:
    given = raw(STARTS, NETS)
    experiment = parse_experiment(given)
    scores_of("starts/x", 0, limit=np.nan).write(table_path(tmp_path / "manifest-x.json", "ruggedness"))
    tables = [str(tmp_path / "manifest-x.json")] * 2
    with pytest.raises(ConfigError, match=r"The range test of run 'starts/\w{8}' at iteration 0 found no limit"):
        run_to_train(experiment, given, experiment.grids[1].members[0].run, tables, lambda _: None)


def test_the_comparison_reads_the_checkpoints_of_members_and_of_their_range_tests() -> None:
    experiment = parse_experiment(
        raw(STARTS, NETS, measures={**TINY["measures"], "ruggedness_compared": {"on": True, "runs": ["nets"]}})
    )
    targets = Targets(Problem.of(experiment))
    from quadscape.measures import MEASURES

    inputs = targets.inputs(MEASURES["ruggedness_compared"], "nets", "family")
    starts, nets = experiment.grids
    expected = [targets.result("ruggedness", member.run, "0") for member in starts.members]
    expected += [targets.result("ruggedness", member.run, "20") for member in nets.members[::2]]
    assert inputs["ruggedness"] == expected
    assert inputs["interpolation"] == [targets.result("interpolation", member.run, "run") for member in nets.members]


def test_another_seed_of_a_range_test_renames_nothing() -> None:
    names = [member.run for member in parse_experiment(raw(STARTS, NETS)).grids[1].members]
    more = {**STARTS, "vary": {**STARTS["vary"], "seed": [0, 1, 2]}}
    assert [member.run for member in parse_experiment(raw(more, NETS)).grids[1].members] == names
    other = {**NETS, "set": {**NETS["set"], "chosen": {**CHOSEN, "fraction": 0.2}}}
    assert not {member.run for member in parse_experiment(raw(STARTS, other)).grids[1].members} & set(names)


def test_a_family_without_limits_is_described_as_before() -> None:
    made = family({"a": ("x", "y"), "seed": ("0", "1")})
    assert made.document()["members"][0] == {"run": "family/0", "labels": {"a": "x", "seed": "0"}}
    assert Family.of_document(made.document()) == made
    with_limits = parse_experiment(raw(STARTS, NETS)).grids[1]
    assert Family.of_document(with_limits.document()) == with_limits


@pytest.mark.parametrize(
    ("chosen", "more", "sentence"),
    [
        ({"family": "starts", "by": "limit"}, {}, r"by is 'limit', which needs a fraction above 0"),
        (
            {"family": "starts", "fraction": 0.1},
            {},
            r"fraction is 0\.1, but by is 'validation'; valid with it is by: limit",
        ),
        ({**CHOSEN, "fraction": 0}, {}, r"chosen\.fraction is 0"),
        ({**CHOSEN, "fractoin": 0.1}, {}, r"chosen\.fractoin is not a known key \(did you mean 'fraction'\?\)"),
        ({**CHOSEN, "family": "start"}, {}, r"chosen names the family 'start'; the families are starts, nets"),
        (
            CHOSEN,
            {"model": {"factory": "mlp", "activation": "tanh"}},
            r"none of whose members has the same model, loss",
        ),
        (
            CHOSEN,
            {"learning_rate": {"schedule": "table", "path": "x"}},
            r"family 'nets', other one, seed 5: learning_rate",
        ),
    ],
)
def test_a_wrong_choice_is_one_sentence(chosen: dict[str, Any], more: dict[str, Any], sentence: str) -> None:
    nets = {**NETS, "set": {**NETS["set"], **more, "chosen": chosen}}
    with pytest.raises(ConfigError, match=sentence) as caught:
        parse_experiment(raw(STARTS, nets))
    assert "\n" not in str(caught.value)


def test_every_checkpoint_counts() -> None:
    starts = {**STARTS, "set": {**STARTS["set"], "iterations": 10, "checkpoints": [0, 10]}}
    experiment = parse_experiment(raw(starts, NETS))
    member = experiment.grids[1].members[0]
    assert len(member.limits) == 2
    expected = tuple((run, iteration) for run in member.limits for iteration in (0, 10))
    assert experiment.choices[member.run].starts == expected


def test_a_family_without_checkpoints_has_no_limits() -> None:
    starts = {**STARTS, "set": {**STARTS["set"], "checkpoints": []}}
    with pytest.raises(ConfigError, match=r"whose members have no checkpoints; valid is checkpoints: \[0\] in its set"):
        parse_experiment(raw(starts, NETS))
