import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadscape.measures.ranks import log_edges, log_indices, log_ranks, rank_bands, signed_ranks


@given(st.integers(1, 3000), st.integers(1, 90))
def test_log_edges_partition_all_ranks(count: int, bands: int) -> None:
    edges = log_edges(count, bands)
    assert edges[0] == 1
    assert edges[-1] == count + 1
    assert (np.diff(edges) >= 1).all()
    assert len(edges) - 1 == min(bands, count)


@given(st.integers(0, 3000), st.integers(0, 90))
def test_log_ranks_are_distinct_and_reach_both_ends(count: int, samples: int) -> None:
    ranks = log_ranks(count, samples)
    assert len(ranks) == min(count, samples)
    assert (np.diff(ranks) >= 1).all()
    if samples >= 2 and count >= 2:
        assert ranks[0] == 1
        assert ranks[-1] == count


def test_log_edges_are_log_spaced_where_ranks_allow() -> None:
    ratios = log_edges(10**6, 30)[-10:] / log_edges(10**6, 30)[-11:-1]
    np.testing.assert_allclose(ratios, 10 ** (6 / 30), rtol=1e-3)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(2, 80))
def test_bands_partition_the_spectrum_by_sign(positive: int, negative: int, bands: int) -> None:
    if positive + negative < 1:
        return
    eigenvalues = np.concatenate([np.linspace(2, 0, positive), -np.linspace(1, 2, negative)])
    parts = rank_bands(eigenvalues, bands)
    signs, ranks = signed_ranks(eigenvalues)
    assert parts.starts[0] == 0
    assert parts.stops[-1] == positive + negative
    np.testing.assert_array_equal(parts.starts[1:], parts.stops[:-1])
    assert len(parts) <= bands
    for start, stop, sign, first, last in zip(
        parts.starts, parts.stops, parts.signs, parts.first_ranks, parts.last_ranks, strict=True
    ):
        assert (signs[start:stop] == sign).all()
        assert {int(ranks[start:stop].min()), int(ranks[start:stop].max())} == {first, last}


def test_ranks_count_from_both_ends() -> None:
    signs, ranks = signed_ranks(np.array([3.0, 1.0, 0.0, -1.0, -2.0]))
    assert signs.tolist() == [1, 1, 1, -1, -1]
    assert ranks.tolist() == [1, 2, 3, 2, 1]


@pytest.mark.parametrize("negative", [0, 1, 40])
def test_log_indices_keep_the_extremes(negative: int) -> None:
    eigenvalues = np.sort(np.concatenate([np.geomspace(1, 1e-6, 500), -np.geomspace(1, 1e-6, 40)[:negative]]))[::-1]
    kept = log_indices(eigenvalues, 20)
    assert kept[0] == 0
    assert kept[-1] == len(eigenvalues) - 1
    assert (np.diff(kept) > 0).all()
    assert len(kept) == 20 + min(20, negative)
