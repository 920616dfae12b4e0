import math

import numpy as np
import pytest
from measure_cases import PlainBasis, random_orthogonal

from quadscape.measures.overlap import compute as overlap

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
