"""Which eigenvectors the data determine: planted populations, and how comparisons follow from what subsets are."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from identified_cases import halvings, plausible, sharing, side, tables, together
from measure_cases import PlainBasis, random_orthogonal
from scipy.linalg import hadamard

from quadscape.measures.identified import compute as identified
from quadscape.measures.ranks import rank_bands, signed_ranks
from quadscape.measures.subsets import Side, comparisons

SIZE = 160
FALLING = 10.0 * np.arange(1, SIZE + 1) ** -1.2
SIGNED = np.concatenate([np.geomspace(5, 1e-3, 100), -np.geomspace(1e-3, 2, 60)])


def resolved(eigenvalues: np.ndarray, rank: int, bands: int = 30) -> tuple[int, int]:
    """Between which ranks k* lies when every eigenvector up to a rank is determined, and none beyond it."""
    cut = rank_bands(eigenvalues, bands)
    lasts = np.sort(cut.last_ranks[cut.signs > 0])
    return int(lasts[lasts <= rank].max(initial=0)), int(lasts[lasts >= rank].min())


@settings(max_examples=25, deadline=None)
@given(size=st.integers(60, 200), data=st.data())
def test_what_two_populations_share_is_found(size: int, data: st.DataObject) -> None:
    shared = data.draw(st.integers(0, size // 2))
    seed = data.draw(st.integers(0, 99))
    values = 10.0 * np.arange(1, size + 1) ** -1.2
    found = together(tables(*halvings(values, shared, 3, seed=seed))["identified_dimension"])
    low, high = resolved(values, shared) if shared else (0, 0)
    # A band that shared and other eigenvectors straddle may go either way.
    assert low <= found["k_vec"] <= high
    assert low <= found["k_vec_low"] <= found["k_vec_high"] <= high
    assert found["halvings"] == 3
    assert found["directions"] == size
    # Of a vector that is shared its own rank captures all, so that the span is no smaller.
    assert found["k_sub"] >= low


def test_two_matrices_that_share_eigenvectors() -> None:
    """From the matrices themselves: equal well-separated top eigenvectors, independent symmetric rests."""
    top, generator = np.geomspace(50, 8, 12), np.random.default_rng(3)
    sides = []
    for half in (0, 1):
        matrix = np.zeros((SIZE, SIZE))
        matrix[:12, :12] = np.diag(top)
        rest = generator.standard_normal((SIZE - 12, SIZE - 12)) / math.sqrt(2 * SIZE)
        matrix[12:, 12:] = rest + rest.T
        values, vectors = np.linalg.eigh(matrix)
        sides.append(side(values[::-1], vectors[:, ::-1], half=half))
    found = tables(sides[0], sides)["identified_dimension"]
    low, high = resolved(sides[0].basis.eigenvalues, 12)
    assert low <= together(found)["k_vec"] <= high
    assert together(found, "bottom")["k_vec"] == 0


@pytest.mark.parametrize("zero", [0.0, 0.01, 100.0])
def test_equal_bases_are_determined_up_to_zero(zero: float) -> None:
    q = random_orthogonal(SIZE, 1)
    own = side(SIGNED, q, zero)
    found = tables(own, [side(SIGNED, q, zero, half=half) for half in (0, 1)])
    if zero > 5:
        assert len(found["identified_maxima"]) == len(found["identified_dimension"]) == 0
        return
    for end, sign in (("top", 1), ("bottom", -1)):
        row, count = together(found["identified_dimension"], end), np.count_nonzero(sign * SIGNED > zero)
        assert row["k_vec"] == row["k_sub"] == row["directions"] == count
    maxima = found["identified_maxima"]
    assert maxima["count"].sum() == np.count_nonzero(np.abs(SIGNED) > zero)
    np.testing.assert_allclose(maxima["captured"], 1)
    np.testing.assert_allclose(maxima["upper_quartile"], 1)


def test_independent_bases_are_as_chance_has_it() -> None:
    found = tables(*halvings(SIGNED, 0, 3))
    for end in ("top", "bottom"):
        row = together(found["identified_dimension"], end)
        assert (row["k_vec"], row["k_sub"]) == (0, 0)
    maxima = found["identified_maxima"]
    head = maxima.attributes
    wide = maxima.where(maxima["count"] >= 8)
    assert len(wide) > 10
    assert ((head["chance_maximum_q05"] < wide["median"]) & (wide["median"] < head["chance_maximum_q95"])).all()
    assert np.mean(wide["median"]) == pytest.approx(head["chance_maximum_median"], rel=0.05)
    # Of w² directions of P the captured squared norm fluctuates by about √(2w)/P.
    share = wide["captured_chance"] ** 2
    assert (np.abs(wide["captured"] ** 2 - share) < 5 * np.sqrt(2 * share / SIZE)).all()
    assert np.corrcoef(wide["captured"], wide["captured_chance"])[0, 1] > 0.95


@pytest.mark.parametrize("first", [4, 16, 32])
def test_a_cluster_that_is_turned_within_itself_stops_single_vectors_and_not_their_span(first: int) -> None:
    q = random_orthogonal(SIZE, 2)
    turned = q.copy()
    last = 2 * first  # the cluster lies within half to twice the rank of each of its vectors
    turned[:, first:last] = q[:, first:last] @ (hadamard(first) / math.sqrt(first))
    values = FALLING.copy()
    values[first:last] = np.linspace(values[first], values[first] * (1 - 1e-9), last - first)
    own = side(values, q)
    found = tables(own, [side(values, q, half=0), side(values, turned, half=1)])
    maximum, _, _ = identified.agreement(own.basis, PlainBasis(values, turned))
    np.testing.assert_allclose(maximum[first:last], 1 / math.sqrt(first))
    found = together(found["identified_dimension"])
    low, high = resolved(values, first)
    assert low <= found["k_vec"] <= high
    assert found["k_sub"] == SIZE


def test_signs_and_order_within_equal_eigenvalues_change_only_partners() -> None:
    generator = np.random.default_rng(0)
    values = np.repeat(np.geomspace(8, 0.01, SIZE // 4), 4)
    q = random_orthogonal(SIZE, 1)
    own = side(values, q)
    order = np.concatenate([4 * block + generator.permutation(4) for block in range(SIZE // 4)])
    changed = q[:, order] * generator.choice([-1.0, 1.0], SIZE)
    other = sharing(30, SIZE, 7)
    for vectors in (q, changed):
        maximum, captured, chance = identified.agreement(side(values, vectors).basis, PlainBasis(values, other))
        if vectors is q:
            expected = maximum, captured, chance
        else:
            # The same numbers, each with its own eigenvector; windows follow ranks, so they may move with it.
            np.testing.assert_allclose(maximum, expected[0][order], rtol=1e-12)
            np.testing.assert_array_equal(chance, expected[2])
    same = tables(own, [side(values, q, half=0), side(values, changed, half=1)])
    assert together(same["identified_dimension"])["k_vec"] == SIZE
    np.testing.assert_allclose(same["identified_maxima"]["median"], 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("memory", [1, 100_000, None])
def test_tiles_agree_with_the_dense_matrix(memory: int | None, dtype: str) -> None:
    other = np.linspace(4, -2, SIZE)
    first = PlainBasis(SIGNED, random_orthogonal(SIZE, 1).astype(dtype))
    second = PlainBasis(other, random_orthogonal(SIZE, 2).astype(dtype))
    dense = np.abs(first.vectors(0, SIZE).T.astype(float) @ second.vectors(0, SIZE))
    maximum, captured, chance = identified.agreement(first, second, memory=memory)
    (signs, ranks), (other_signs, other_ranks) = signed_ranks(SIGNED), signed_ranks(other)
    inside = (signs[:, None] == other_signs) & (2 * other_ranks >= ranks[:, None]) & (other_ranks <= 2 * ranks[:, None])
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(maximum, dense.max(axis=1), rtol=tolerance)
    np.testing.assert_allclose(captured, np.sqrt((dense**2 * inside).sum(axis=1)), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(chance, np.sqrt(inside.sum(axis=1) / SIZE))


def test_ranks_that_the_other_basis_does_not_have_capture_nothing() -> None:
    values, others = np.array([3.0, 2.0, 1.0, 0.5]), np.array([1.0, -1.0, -2.0, -3.0])
    starts, stops = identified.rank_windows(values, others)
    assert np.maximum(stops - starts, 0).tolist() == [1, 1, 0, 0]
    starts, stops = identified.rank_windows(others, values)
    assert np.maximum(stops - starts, 0).tolist() == [2, 0, 0, 0]
    _, captured, chance = identified.agreement(PlainBasis(others, np.eye(4)), PlainBasis(values, np.eye(4)))
    assert captured.tolist() == [1, 0, 0, 0]
    assert chance.tolist() == [math.sqrt(0.5), 0, 0, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_smallest_bases(size: int) -> None:
    for values in (np.ones(size), -np.ones(size), np.linspace(1, -1, size)):
        own = side(values, np.eye(size))
        found = tables(own, [side(values, np.eye(size), half=half) for half in (0, 1)])
        maxima = found["identified_maxima"]
        assert maxima["count"].sum() == np.count_nonzero(values)
        for end, sign in (("top", 1), ("bottom", -1)):
            assert together(found["identified_dimension"], end)["k_vec"] == np.count_nonzero(values * sign > 0)


def test_bases_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match="160 and 3"):
        tables(side(SIGNED, random_orthogonal(SIZE, 1)), [side(np.arange(3.0)[::-1], np.eye(3), shuffled=True)])


def test_every_band_up_to_the_rank_must_reach_the_level() -> None:
    cut = rank_bands(SIGNED, 12)
    for sign in (1, -1):
        order = np.flatnonzero(cut.signs == sign)[np.argsort(cut.first_ranks[cut.signs == sign])]
        for failing in range(len(order)):
            medians = np.full(len(cut), 0.7)
            medians[order[failing]] = 0.7 - 1e-12
            expected = cut.last_ranks[order[failing - 1]] if failing else 0
            assert identified.last_rank(cut, medians, sign) == expected
        assert identified.last_rank(cut, np.full(len(cut), 0.7), sign) == np.count_nonzero(SIGNED * sign > 0)
        assert identified.last_rank(cut, np.full(len(cut), np.nan), sign) == 0


def test_the_range_over_halvings_is_the_interval() -> None:
    own, sides = side(FALLING, sharing(30, SIZE, 9)), []
    for seed, shared in enumerate((4, 30, 12)):
        sides += [side(FALLING, sharing(shared, SIZE, 10 * seed + half), half=half, seed=seed) for half in (0, 1)]
    dimension = tables(own, sides)["identified_dimension"]
    row = together(dimension)
    single = dimension.where((dimension["end"] == "top") & (dimension["halving"] >= 0))
    assert single["seed"].tolist() == [0, 1, 2]
    assert (row["k_vec_low"], row["k_vec"], row["k_vec_high"]) == tuple(np.sort(single["k_vec"]))
    assert row["k_vec_low"] < row["k_vec"] < row["k_vec_high"]
    assert np.isnan(single["k_vec_low"]).all()


def test_no_rank_is_beyond_the_directions_that_are_told() -> None:
    lasts = enumerate((0.02, 0.005, 0.002, 0.001))
    spectra = [(seed, np.geomspace(9, last, SIZE)) for seed, last in lasts]
    sides = [side(values, np.eye(SIZE), 0.01, half=half, seed=seed) for seed, values in spectra for half in (0, 1)]
    row = together(tables(side(FALLING, np.eye(SIZE)), sides)["identified_dimension"])
    told = [np.count_nonzero(values > 0.01) for _, values in spectra]
    assert (row["k_vec_low"], row["k_vec_high"]) == (min(told), max(told))
    assert row["k_vec"] == np.median(told) <= row["directions"] == math.ceil(np.median(told))


# ---------------------------------------------------------------------------------------------------------------------
# What is compared with what


def kinds(own: dict[str, Any], *subsets: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    basis = PlainBasis(np.ones(1), np.eye(1))
    whole = Side(basis, own, 10)
    found = comparisons(whole, [Side(basis, subset, 5) for subset in subsets])
    return [(one.kind, dict(one.first.subset), dict(one.second.subset)) for one in found]


def described(**keys: Any) -> dict[str, Any]:
    """As data stores say it."""
    return {"classes": None, "per_class": None, "half": None, "shuffled": False, "seed": 0, **keys}


def test_halves_are_compared_with_each_other_and_the_rest_with_the_own_basis() -> None:
    b1, a0, a1 = described(half=1, seed=2), described(half=0, seed=1), described(half=1, seed=1)
    alone, order, few = described(half=0, seed=3), described(shuffled=True, seed=4), described(per_class=5)
    b0 = described(half=0, seed=2)
    assert kinds({}, b1, a0, order, few, a1, alone, b0) == [
        ("halves", b0, b1),
        ("halves", a0, a1),
        ("order", {}, order),
        ("subset", {}, few),
        ("subset", {}, alone),
    ]


def test_halves_of_different_parts_are_no_halving() -> None:
    first, second = described(half=0, per_class=5), described(half=1, per_class=6)
    assert [kind for kind, *_ in kinds({}, first, second)] == ["subset", "subset"]
    assert [kind for kind, *_ in kinds({}, first, described(half=1, per_class=5))] == ["halves"]


def test_an_order_is_of_the_same_examples() -> None:
    few = described(per_class=5, seed=1)
    assert [kind for kind, *_ in kinds(few, described(shuffled=True))] == ["subset"]
    assert [kind for kind, *_ in kinds(few, described(per_class=5, seed=1, shuffled=True))] == ["order"]
    assert [kind for kind, *_ in kinds(few, described(per_class=5, seed=2, shuffled=True))] == ["subset"]
    assert [kind for kind, *_ in kinds({}, described(classes=["1", "2"], shuffled=True))] == ["subset"]
    own = described(classes=["2", "1"])
    assert [kind for kind, *_ in kinds(own, described(classes=["1", "2"], shuffled=True, seed=7))] == ["order"]


def test_columns_say_what_was_compared() -> None:
    found = plausible(60, 3)["identified_maxima"]
    first = np.unique(found["comparison"], return_index=True)[1]
    assert found["kind"][first].tolist() == ["halves"] * 3 + ["order", "subset"]
    assert found["subset"][first].tolist() == [
        *(f"halves, seed {seed}" for seed in range(3)),
        "another order, seed 0",
        "3 per class, seed 0",
    ]
    assert found["examples"][first].tolist() == [100, 100, 100, 200, 200]
    assert (found["largest"] >= found["eigenvalue"]).all()
    assert (found["eigenvalue"] >= found["smallest"]).all()
    assert found.attributes["halvings"] == 3
