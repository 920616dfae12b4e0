"""Findings on families: who is compared with whom, at which rate, and what a few seeds cannot say."""

import itertools
import math

import family_cases as cases
import numpy as np
import pytest
from findings_cases import adam, deep, plant

from quadscape.findings import descent, escape, layers, tuning
from quadscape.findings.estimates import paired_mean
from quadscape.findings.statement import AGREES, NOT_TESTABLE, Statement
from quadscape.measures.variants import rate_axes, variants
from quadscape.tables import Table


def listed(tables: dict[str, Table]) -> dict[str, list[Table]]:
    return {name: [table] for name, table in tables.items()}


def claims(statements: list[Statement]) -> str:
    return "\n".join(statement.claim for statement in statements)


def members(validation: list[list[float]], rates: list[float]) -> Table:
    """A row for each cell (a rate) and seed; the training loss is a tenth of the validation loss."""
    rows = [(place, seed) for place, row in enumerate(validation) for seed in range(len(row))]
    losses = np.array([validation[place][seed] for place, seed in rows])
    columns = {
        "cell": [f"η={rates[place]:g}" for place, _ in rows],
        "seed": [seed for _, seed in rows],
        "learning_rate": [rates[place] for place, _ in rows],
        "training_loss": losses / 10,
        "validation_loss": losses,
    }
    return plant("descent_members", columns)


def test_rates_are_chosen_by_the_other_seeds() -> None:
    # By all seeds the second is best, but without its own good value seed 0 would have taken the first.
    found = descent.tuned(members([[1.0, 1.0, 1.0], [0.1, 1.1, 1.1]], [0.1, 0.2]))
    assert found.validation.tolist() == [1.0, 1.1, 1.1]
    np.testing.assert_allclose(found.training, found.validation / 10)
    assert found.rates == 2
    assert found.at_edge
    assert not found.fair


def test_a_rate_that_diverges_for_another_seed_is_not_chosen() -> None:
    found = descent.tuned(members([[1.0, 1.0], [0.1, math.nan]], [0.1, 0.2]))
    assert found.validation.tolist() == [1.0, math.inf]


def test_one_seed_chooses_for_itself() -> None:
    found = descent.tuned(members([[3.0], [1.0], [2.0]], [0.1, 0.2, 0.4]))
    assert found.validation.tolist() == [1.0]
    assert not found.at_edge


def test_cross_fitting_does_not_profit_from_noise() -> None:
    # Ten rates that are equally good: the chosen one is no better than any on the seed that it is compared on.
    generator = np.random.default_rng(0)
    rates = [0.1 * 2**k for k in range(10)]
    drawn = [members(generator.normal(5, 1, (10, 3)).tolist(), rates) for _ in range(200)]
    found = [descent.tuned(table).validation.mean() for table in drawn]
    assert np.mean(found) == pytest.approx(5, abs=4 * np.std(found) / math.sqrt(200))


def test_variants_leave_the_rate_out() -> None:
    tables = cases.descent_tables(rates=(0.01, 0.1), seeds=1)
    table = tables["descent_members"]
    assert rate_axes(table) == ("rate",)
    assert set(variants(table)) == {"sgd · B=50", "sgd · full", "adam · B=50", "adam · full"}
    alone = cases.descent_tables(seeds=1)["descent_members"]
    assert rate_axes(alone) == ()
    assert set(variants(alone)) == set(alone["cell"])


def test_generalisation_needs_five_seeds() -> None:
    few = descent.statements(listed(cases.descent_tables(seeds=4)))
    assert "not tested at this size (n = 4 seeds; 5 would do)" in claims(few)
    assert "the validation loss of" not in claims(few)
    many = descent.statements(listed(cases.descent_tables(seeds=5)))
    assert "not tested at this size" not in claims(many)
    told = [s for s in many if "validation loss" in s.claim and "sgd" in s.claim]
    assert told
    assert all(math.isfinite(s.low) for s in told)


def test_pairs_of_which_one_diverged_are_said_and_not_compared() -> None:
    statements = descent.statements(listed(cases.descent_tables(diverged=(4,))))
    wanted = "sgd · full · η=0.1 cannot be compared with sgd · B=50 · η=0.1: in 1 of 3 pairs a run diverged"
    assert wanted in claims(statements)
    (gain, grows) = [s for s in statements if s.known]
    assert {gain.verdict, grows.verdict} == {NOT_TESTABLE}


def test_one_family_or_one_batch_is_not_enough() -> None:
    statements = descent.statements(listed(cases.descent_tables(methods=("sgd",))))
    assert {s.verdict for s in statements if s.known} == {NOT_TESTABLE}
    one = descent.statements(listed(cases.descent_tables(batches=("full",))))
    assert {s.verdict for s in one if s.known} == {NOT_TESTABLE}
    assert "not both of them tuned" in claims(one)
    alone = cases.descent_tables(batches=("full",), rates=(0.01, 0.03, 0.1, 0.3, 1.0))
    gain, grows = [s for s in descent.statements(listed(alone)) if s.known]
    assert (gain.verdict, grows.verdict) == (AGREES, NOT_TESTABLE)
    assert "data" in gain.reason


def test_the_best_at_an_edge_is_not_tuned() -> None:
    (table,) = adam(True)["descent_members"]
    worse = table["learning_rate"] < 0.5
    edge = Table(table.schema, {**table.columns, "validation_loss": table["validation_loss"] + worse}, table.attributes)
    statements = [s for s in descent.statements({"descent_members": [edge]}) if s.known]
    assert all(s.verdict == NOT_TESTABLE and "was not tuned" in s.reason for s in statements)


def test_rates_from_another_family_count_as_tuned() -> None:
    rates = (0.01, 0.03, 0.1, 0.3, 1.0)
    other = cases.descent_tables(rates=rates)["tuning"]
    other = Table(other.schema, other.columns, {**other.attributes, "run": "tuning"})
    best = {}
    for method, batch in itertools.product(("sgd", "adam"), (50, 1000)):
        rows = other.where((other["method"] == method) & (other["batch_size"] == batch))
        best[method, batch] = float(rows["learning_rate"][np.argmin(rows["validation_loss"])])
    final = cases.descent_tables(seeds=3)["descent_members"]
    own = np.array([best[key] for key in zip(final["method"].tolist(), final["batch_size"].tolist(), strict=True)])
    final = Table(final.schema, {**final.columns, "learning_rate": own}, final.attributes | {"data": "text"})
    with_it = [s for s in descent.statements({"descent_members": [final], "tuning": [other]}) if s.known]
    assert all(s.verdict != NOT_TESTABLE for s in with_it)
    without = [s for s in descent.statements({"descent_members": [final]}) if s.known]
    assert all("was not tuned" in s.reason for s in without)


def test_descent_with_and_without_momentum_are_tuned_apart() -> None:
    rates = (0.01, 0.03, 0.1, 0.3, 1.0)
    tables = {
        "tuning": cases.descent_tables(rates=rates)["tuning"],
        "members": cases.descent_tables()["descent_members"],
    }
    both = {}
    for name, table in tables.items():
        plain = table["method"] == "sgd"
        # The variant with momentum is best at a tenth of the rate.
        more = table.where(plain)
        columns = {**more.columns, "momentum": np.full(len(more), 0.9), "learning_rate": more["learning_rate"] / 10}
        columns["cell"] = np.array([f"momentum · {cell}" for cell in more["cell"].tolist()])
        joined = {key: np.concatenate([values, columns[key]]) for key, values in table.columns.items()}
        both[name] = Table(table.schema, joined, table.attributes | {"run": name, "data": "text"})
    other, final = both["tuning"], both["members"]
    best = {}
    for row in range(len(other)):
        key = (str(other["method"][row]), str(other["momentum"][row]), int(other["batch_size"][row]))
        loss = float(other["validation_loss"][row])
        best[key] = min(best.get(key, (math.inf, 0.0)), (loss, float(other["learning_rate"][row])))
    own = [
        best[method, str(momentum), batch][1]
        for method, momentum, batch in zip(
            *(final[name].tolist() for name in ("method", "momentum", "batch_size")), strict=True
        )
    ]
    final = Table(final.schema, {**final.columns, "learning_rate": np.array(own)}, final.attributes)
    found = [s for s in descent.statements({"descent_members": [final], "tuning": [other]}) if s.known]
    assert all(s.verdict != NOT_TESTABLE for s in found)


def test_tuning_says_what_lies_at_an_edge() -> None:
    text = claims(tuning.statements(listed(cases.descent_tables(rates=(0.01, 0.1, 1.0)))))
    assert "The best learning rate of sgd · B=50 is 0.100 of 3 tried, inside the grid" in text
    text = claims(tuning.statements(listed(cases.descent_tables(rates=(0.1, 1.0), diverged=(9,)))))
    assert "at an edge of the grid: a better one may lie beyond" in text
    assert "In 1 of 8 settings a member diverged" in text


def test_escape_differences_by_newcombe() -> None:
    # Newcombe's example: 56/70 and 48/80, difference 0.2, interval 0.0524 to 0.3339 (Statistics in Medicine 17, 1998).
    from quadscape.measures.curves.compute import wilson

    ends = [wilson(np.array([k / n]), n, 1.959964) for k, n in ((56, 70), (48, 80))]
    columns = {
        "cell": ["small", "large"],
        "batch_size": [1, 100],
        "starts": [70, 80],
        "began": [20, 20],
        "diverged": [0, 0],
        "share": [0.8, 0.6],
        "share_low": [float(end[0][0]) for end in ends],
        "share_high": [float(end[1][0]) for end in ends],
    }
    found = escape.statements({"escape": [plant("escape", columns, run="w")]})[-1]
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_flat_gradients_are_not_asked_for_a_line() -> None:
    (table,) = deep(True)["layer_slopes"]
    flat = Table(table.schema, {**table.columns, "slope": table["slope"] / 10}, table.attributes)
    (statement,) = [s for s in layers.statements({"layer_slopes": [flat]}) if s.known]
    assert statement.verdict == NOT_TESTABLE
    assert "factor 10" in statement.reason


def test_paired_means_cover() -> None:
    generator = np.random.default_rng(0)
    for count in (2, 5, 9, 14):
        found = [paired_mean(generator.standard_normal(count), "seeds") for _ in range(2000)]
        assert np.mean([e.low <= 0 <= e.high for e in found]) == pytest.approx(0.953, abs=0.017)
    assert math.isnan(paired_mean(np.array([1.0]), "seeds").low)
    assert math.isnan(paired_mean(np.array([1.0, math.inf]), "seeds").value)
