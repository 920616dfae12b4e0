import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_cases import PlainBasis, random_orthogonal

from quadscape.measures.overlap import compute as overlap
from quadscape.measures.overlap.magnitudes import magnitude_bands, magnitude_edges
from quadscape.tables import Table

HEAD = {"run": "a", "iteration_a": 0, "iteration_b": 9}
SIZE = 180
EIGENVALUES = np.concatenate([np.geomspace(5, 1e-5, 140), -np.geomspace(1e-5, 1, 40)])


def basis(seed: int, dtype: str = "float64") -> PlainBasis:
    return PlainBasis(EIGENVALUES, random_orthogonal(SIZE, seed).astype(dtype))


def test_a_basis_overlaps_with_itself() -> None:
    tables = overlap.measure(basis(1), basis(1), 20, HEAD)
    rows = tables["overlap_rows"]
    np.testing.assert_allclose(rows["maximum"], 1, atol=1e-12)
    np.testing.assert_array_equal(rows["partner"], rows["index"])
    np.testing.assert_array_equal(rows["partner_eigenvalue"], rows["eigenvalue"])
    np.testing.assert_allclose(tables["overlap_subspace"]["overlap"], 1, atol=1e-12)
    bands = tables["overlap_bands"]
    same = bands["band_a"] == bands["band_b"]
    counts = bands["last_rank_a"] - bands["first_rank_a"] + 1
    np.testing.assert_allclose(bands["ratio"][same], SIZE / counts[same], rtol=1e-9)
    np.testing.assert_allclose(bands["ratio"][~same], 0, atol=1e-12)
    assert rows.attributes["norm_error"] < 1e-12


def test_random_bases_overlap_by_chance() -> None:
    tables = overlap.measure(basis(1), basis(2), 12, HEAD)
    maxima = tables["overlap_rows"]["maximum"]
    head = tables["overlap_rows"].attributes
    inside = (head["chance_maximum_q05"] <= maxima) & (maxima <= head["chance_maximum_q95"])
    assert inside.mean() == pytest.approx(0.9, abs=0.08)
    assert np.median(maxima) == pytest.approx(head["chance_maximum_median"], rel=0.03)
    bands = tables["overlap_bands"]
    pairs = (bands["last_rank_a"] - bands["first_rank_a"] + 1) * (bands["last_rank_b"] - bands["first_rank_b"] + 1)
    # cos² is z²/P: its mean over m pairs fluctuates by √(2/m).
    z = (bands["ratio"] - 1) / np.sqrt(2 / pairs)
    assert abs(z).max() < 7
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=0.25)
    subspace = tables["overlap_subspace"]
    spread = np.sqrt(2 * (1 - subspace["chance"])) * (1 - subspace["chance"]) ** 0.5 / SIZE
    assert (np.abs(subspace["overlap"] - subspace["chance"]) <= 5 * spread + 1e-12).all()


def test_a_rotated_degenerate_pair_leaves_its_subspace_alone() -> None:
    first = random_orthogonal(SIZE, 3)
    second = first.copy()
    angle = 0.6
    second[:, 4] = math.cos(angle) * first[:, 4] + math.sin(angle) * first[:, 5]
    second[:, 5] = -math.sin(angle) * first[:, 4] + math.cos(angle) * first[:, 5]
    tables = overlap.measure(PlainBasis(EIGENVALUES, first), PlainBasis(EIGENVALUES, second), 20, HEAD)
    rows = tables["overlap_rows"]
    np.testing.assert_allclose(rows["maximum"][[4, 5]], math.cos(angle), rtol=1e-12)
    np.testing.assert_allclose(np.delete(rows["maximum"], [4, 5]), 1, atol=1e-12)
    top = tables["overlap_subspace"].where(tables["overlap_subspace"]["end"] == "top")
    by_k = dict(zip(top["k"].tolist(), top["overlap"].tolist(), strict=True))
    assert by_k[6] == pytest.approx(1)
    assert by_k[5] == pytest.approx((4 + math.cos(angle) ** 2) / 5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("memory", [1, 150_000, 300_000])
def test_tiles_do_not_matter(memory: int, dtype: str) -> None:
    whole = overlap.measure(basis(1, dtype), basis(2, dtype), 15, HEAD)
    tiled = overlap.measure(basis(1, dtype), basis(2, dtype), 15, HEAD, memory=memory)
    tolerance = 1e-5 if dtype == "float32" else 1e-11
    for name, table in whole.items():
        for column, values in table.columns.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(tiled[name][column], values, rtol=tolerance, atol=tolerance, err_msg=column)
            else:
                np.testing.assert_array_equal(tiled[name][column], values)


def test_sums_agree_with_the_dense_matrix() -> None:
    first, second = basis(1), basis(2)
    dense = np.abs(first.vectors(0, SIZE).T @ second.vectors(0, SIZE))
    tables = overlap.measure(first, second, 15, HEAD, memory=200_000)
    np.testing.assert_allclose(tables["overlap_rows"]["maximum"], dense.max(axis=1))
    bands = tables["overlap_bands"]
    total = np.sum(
        bands["ratio"]
        / SIZE
        * (bands["last_rank_a"] - bands["first_rank_a"] + 1)
        * (bands["last_rank_b"] - bands["first_rank_b"] + 1)
    )
    assert total == pytest.approx(SIZE)
    for end, cut in (("top", lambda k: dense[:k, :k]), ("bottom", lambda k: dense[SIZE - k :, SIZE - k :])):
        part = tables["overlap_subspace"].where(tables["overlap_subspace"]["end"] == end)
        expected = [np.square(cut(k)).sum() / k for k in part["k"]]
        np.testing.assert_allclose(part["overlap"], expected)
    maxima = tables["overlap_maxima"]
    assert maxima["count"].sum() == SIZE
    last = slice(SIZE - maxima["last_rank_a"][-1], SIZE - maxima["first_rank_a"][-1] + 1)
    assert maxima["median"][-1] == pytest.approx(np.median(dense.max(axis=1)[last]))


def test_bases_of_different_size_are_refused() -> None:
    other = PlainBasis(np.arange(3.0)[::-1], np.eye(3))
    with pytest.raises(ValueError, match="180 and 3"):
        overlap.measure(basis(1), other, 5, HEAD)


# ---------------------------------------------------------------------------------------------------------------------
# Bands of |λ|


def band_of(power: Table, side: str, value: float) -> np.ndarray:
    """Rows whose band of one axis holds an eigenvalue beyond zero."""
    within = (power[f"least_{side}"] < abs(value)) & (abs(value) <= power[f"most_{side}"])
    return within & (power[f"sign_{side}"] == np.sign(value))


# Pairs of eigenvectors, by index, and the angle by which they turn into each other: neighbours, across decades, across
# the sign, with what cannot be told from zero.
ANGLES = {(0, 1): 0.3, (4, 60): 0.5, (10, 170): 1.1, (20, 141): 0.2, (30, 100): math.pi / 2}
ZERO = 1e-4


@pytest.mark.parametrize("memory", [1, 150_000, None])
def test_a_planted_rotation_is_found_exactly(memory: int | None) -> None:
    first, second = random_orthogonal(SIZE, 3), random_orthogonal(SIZE, 3)
    for (i, j), angle in ANGLES.items():
        second[:, i] = math.cos(angle) * first[:, i] + math.sin(angle) * first[:, j]
        second[:, j] = -math.sin(angle) * first[:, i] + math.cos(angle) * first[:, j]
    bases = [PlainBasis(EIGENVALUES, vectors, ZERO) for vectors in (first, second)]
    tables = overlap.measure(*bases, 20, HEAD, memory=memory)
    rows, power = tables["overlap_rows"], tables["overlap_power"]
    expected, partner = np.ones(SIZE), np.arange(SIZE)
    for (i, j), angle in ANGLES.items():
        expected[[i, j]] = max(math.cos(angle), math.sin(angle))
        if math.sin(angle) > math.cos(angle):
            partner[[i, j]] = j, i
    np.testing.assert_allclose(rows["maximum"], expected, rtol=1e-12)
    np.testing.assert_array_equal(rows["partner"], partner)

    # What left a band is sin² of each eigenvector that left it, and lies where its partner does.
    bands = magnitude_bands(bases[0], magnitude_edges(bases, 20))
    place = np.repeat(np.arange(len(bands.starts)), bands.counts)
    moved = np.diag(bands.counts.astype(float))
    for (i, j), angle in ANGLES.items():
        for own, other in ((i, j), (j, i)):
            moved[place[own], place[own]] -= math.sin(angle) ** 2
            moved[place[own], place[other]] += math.sin(angle) ** 2
    found = (power["power"] * power["count_a"]).reshape(moved.shape)
    np.testing.assert_allclose(found, moved, atol=1e-11)
    assert (bands.signs == 0).sum() == 1
    zero = power.where((power["sign_a"] == 0) & (power["sign_b"] == 0))
    assert zero["count_a"].tolist() == [np.count_nonzero(np.abs(EIGENVALUES) <= ZERO)]
    assert zero["most_a"].tolist() == [ZERO]
    assert 0 < zero["power"][0] < 1
    np.testing.assert_allclose(power["chance"], power["count_b"] / SIZE)
    np.testing.assert_allclose(power["ratio"] * power["chance"], power["power"], atol=1e-15)


def test_power_of_a_band_sums_to_one_and_has_its_expectation() -> None:
    other = PlainBasis(np.linspace(3, -1, SIZE), random_orthogonal(SIZE, 2), 0.01)
    power = overlap.measure(PlainBasis(EIGENVALUES, random_orthogonal(SIZE, 1), 1e-4), other, 16, HEAD)["overlap_power"]
    for value in (4.0, 0.02, -0.5):
        rows = power.where(band_of(power, "a", value))
        assert rows["power"].sum() == pytest.approx(1)
        assert rows["chance"].sum() == pytest.approx(1)
        assert rows["count_b"].sum() == SIZE
    # cos² is z²/P: its mean over m pairs fluctuates by √(2/m).
    z = (power["ratio"] - 1) / np.sqrt(2 / (power["count_a"] * power["count_b"]))
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=0.35)
    # Both axes have the same edges.
    for value in (1.0, -0.3):
        edges = {
            tuple(power[f"{end}_{side}"][band_of(power, side, value)][0] for end in ("least", "most")) for side in "ab"
        }
        assert len(edges) == 1, edges


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-12), min_size=1, max_size=40),
    bands=st.integers(2, 60),
    zero=st.sampled_from([0.0, 1e-9, 1.0, 1e7]),
)
def test_bands_of_magnitude_are_a_partition(values: list[float], bands: int, zero: float) -> None:
    basis = PlainBasis(np.sort(values)[::-1], np.eye(len(values)), zero)
    edges = magnitude_edges([basis], bands)
    found = magnitude_bands(basis, edges)
    assert found.starts[0] == 0
    assert found.stops[-1] == len(values)
    np.testing.assert_array_equal(found.starts[1:], found.stops[:-1])
    assert (found.counts > 0).all()
    assert (np.diff(edges) > 0).all()
    for sign in (1, -1):
        assert np.count_nonzero(found.signs == sign) <= max(1, bands // 2)
    for start, stop, sign, least, most in zip(
        found.starts, found.stops, found.signs, found.least, found.most, strict=True
    ):
        inside = basis.eigenvalues[start:stop]
        if sign:
            assert (np.sign(inside) == sign).all()
            assert (np.abs(inside) > zero).all()
            assert (np.abs(inside) >= least * (1 - 1e-12)).all()
        assert (np.abs(inside) <= most * (1 + 1e-12)).all()
    assert (np.abs(basis.eigenvalues) <= zero).sum() == found.counts[found.signs == 0].sum()


@pytest.mark.parametrize("size", [1, 2, 3, 17])
def test_the_smallest_bases_and_those_of_zeros(size: int) -> None:
    for values, zero in ((np.ones(size), 0.0), (np.zeros(size), 0.0), (np.linspace(1, -1, size), 2.0)):
        basis = PlainBasis(values, np.eye(size), zero)
        tables = overlap.measure(basis, basis, max(2, size), HEAD)
        power = tables["overlap_power"]
        assert power["count_a"].tolist() == [size]
        assert power["sign_a"].tolist() == [0 if (np.abs(values) <= zero).all() else 1]
        np.testing.assert_allclose(power["power"], 1)
        np.testing.assert_allclose(tables["overlap_rows"]["maximum"], 1)
