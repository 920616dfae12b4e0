"""Findings on which eigenvectors the data determine, from planted tables that flip them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from findings_cases import plant
from identified_cases import halvings, sharing, side, tables

from quadscape.findings.identified import halves_at, statements
from quadscape.findings.statement import Statement
from quadscape.findings.statements import all_statements
from quadscape.tables import Table

SIZE = 200
VALUES = 10.0 * np.arange(1, SIZE + 1) ** -1.2


def pair(medians: np.ndarray, first: int = 0, second: int = 10) -> Table:
    """Row maxima of single ranks between two checkpoints."""
    ranks = np.arange(1, len(medians) + 1)
    columns = {"sign_a": np.ones(len(ranks), int), "first_rank_a": ranks, "last_rank_a": ranks, "median": medians}
    return plant("overlap_maxima", columns, run="r0", iteration_a=first, iteration_b=second)


def found(own, sides, pairs: tuple[Table, ...] = (), iteration: int = 10) -> list[Statement]:
    measured = tables(own, sides, iteration=iteration)
    return statements({name: [table] for name, table in measured.items()} | {"overlap_maxima": list(pairs)})


def said(of: list[Statement], words: str) -> Statement:
    (one,) = [statement for statement in of if words in statement.claim]
    return one


@pytest.mark.parametrize("shared", [0, 10, 40])
def test_the_dimension_has_its_range_and_names_its_target(shared: int) -> None:
    one = said(found(*halvings(VALUES, shared, 3)), "one by one")
    assert (one.value > 0) == (shared > 0)
    assert abs(one.value - shared) <= 0.25 * shared
    assert one.low <= one.value <= one.high
    assert "of the population; a lower bound, since halves have 100 examples" in one.interval
    assert ("none of the 200" in one.claim) == (shared == 0)
    assert "not tested" not in one.claim
    assert one.section == 2


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_fewer_than_three_halvings_claim_nothing(count: int) -> None:
    of = found(*halvings(VALUES, 10, count), pairs=(pair(np.full(SIZE, 0.9)),))
    words = f"not tested at this size (n = {count}), 3 would do"
    for one in (one for one in of if "halves of the data agree" in one.claim.lower()):
        assert (words in one.claim) == (count < 3)
    one = said(of, "one by one")
    assert math.isnan(one.low) == (count < 3)
    assert one.value > 5


def test_the_primary_finding_is_marked_once() -> None:
    measured = tables(*halvings(VALUES, 10, 3), iteration=10)
    later = tables(*halvings(VALUES, 10, 3), iteration=20)
    every = all_statements({name: [table, later[name]] for name, table in measured.items()})
    (marked,) = [one for one in every if one.primary and one.measure == "identified"]
    assert marked.iterations == (10,)
    assert "positive eigenvectors one by one" in marked.claim
    # Without halvings there is none.
    own = side(VALUES, sharing(10, SIZE, 1))
    assert not [one for one in found(own, [side(VALUES, sharing(9, SIZE, 2), shuffled=True)]) if one.primary]


def test_ranks_at_which_chance_would_do_are_said() -> None:
    own = side(VALUES, np.eye(SIZE))
    of = found(own, [side(VALUES, np.eye(SIZE), half=half) for half in (0, 1)])
    one = said(of, "up to mixing")
    rank = int(one.claim.split("from rank ")[1].split(" ")[0])
    # From half to twice the rank are 1.5 of it, as a share of P; bands are some ranks wide.
    assert 0.49 * SIZE / 1.5 * 0.75 < rank < 0.49 * SIZE / 1.5 * 1.25
    assert "chance alone would do" not in said(found(*halvings(VALUES, 5, 3)), "up to mixing").claim


@pytest.mark.parametrize("rank", [0, 5, 60])
def test_from_which_rank_rounding_turns_eigenvectors(rank: int) -> None:
    own = side(VALUES, sharing(rank or SIZE, SIZE, 1))
    of = found(own, [side(VALUES, sharing(rank or SIZE, SIZE, 2), shuffled=True)])
    if rank:
        one = said(of, "Summed in another order, the same data turn positive eigenvectors from rank")
        assert rank * 0.8 <= one.value - 1 <= rank
    else:
        one = said(of, "Rounding turns none of the 200 positive eigenvectors beyond zero")
        assert one.value == pytest.approx(1)


@pytest.mark.parametrize(("median", "words"), [(0.5, "differ by more than"), (1.0, "differ by less than")])
def test_a_change_of_checkpoints_against_that_of_halves(median: float, words: str) -> None:
    own, sides = halvings(VALUES, 40, 3)
    # Halves turned by a known angle: 0.8.
    sides = [
        replace(one, basis=side(VALUES, sharing(40, SIZE, 5 + n, math.acos(0.8) * (n % 2))).basis)
        for n, one in enumerate(sides)
    ]
    of = found(own, sides, (pair(np.full(SIZE, median)),))
    one = said(of, "between the checkpoints")
    assert f"the two checkpoints {words} halves do" in one.claim
    assert one.value == pytest.approx(0.8 - median, abs=1e-6)
    assert one.iterations == (0, 10)
    # A spread that goes both ways decides nothing.
    mixed = said(found(own, sides, (pair(np.tile([0.5, 1.0], SIZE // 2)),)), "between the checkpoints")
    assert "cannot be told whether" in mixed.claim
    assert mixed.low < 0 < mixed.high


def test_only_neighbouring_checkpoints_are_compared() -> None:
    of = found(
        *halvings(VALUES, 40, 3), (pair(np.ones(SIZE), 0, 10), pair(np.ones(SIZE), 0, 20), pair(np.ones(SIZE), 10, 20))
    )
    assert [one.iterations for one in of if "between the checkpoints" in one.claim] == [(0, 10), (10, 20)]
    of = found(*halvings(VALUES, 40, 3), (pair(np.ones(SIZE), 20, 30),))
    assert not [one for one in of if "between the checkpoints" in one.claim]


def test_without_agreement_a_change_cannot_be_told() -> None:
    one = said(found(*halvings(VALUES, 0, 3), (pair(np.ones(SIZE)),)), "cannot be told")
    assert math.isnan(one.value)


def test_a_network_so_small_that_chance_finds_partners_is_not_tested() -> None:
    own = side(np.array([3.0, 2.0, 1.0]), np.eye(3))
    of = found(own, [side(own.basis.eigenvalues, np.eye(3), half=half) for half in (0, 1)])
    assert "not tested at this size (P = 3)" in said(of, "determine").claim
    assert not [one for one in of if "agree" in one.claim]


def test_halves_are_read_where_they_are() -> None:
    table = tables(*halvings(VALUES, 40, 3))["identified_maxima"]
    own = table.where((table["kind"] == "halves") & (table["comparison"] == 0))
    middle = np.sqrt(own["first_rank"] * own["last_rank"])
    medians = [table["median"][(table["comparison"] == n) & (table["kind"] == "halves")] for n in range(3)]
    np.testing.assert_allclose(halves_at(table, middle), np.median(medians, axis=0))
    assert np.isnan(halves_at(table.where(table["kind"] == "order"), middle)).all()
