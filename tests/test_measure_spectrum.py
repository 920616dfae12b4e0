import numpy as np
import pytest

from quadscape.measures import SCHEMAS
from quadscape.measures.spectrum import compute as spectrum
from quadscape.tables import read_table

HEAD = {"run": "a", "iteration": 3, "P": 5, "N": 10, "weight_decay": 0.0, "zero_threshold": 0.5}
OVERLAPS = np.zeros((5, 2))


def test_counts_and_sums_of_a_known_spectrum() -> None:
    table = spectrum.measure(np.array([4.0, 2.0, 0.1, -0.5, -1.0]), 0.5, OVERLAPS, HEAD)
    assert table["sign"].tolist() == [1, 1, 1, -1, -1]
    assert table["rank"].tolist() == [1, 2, 3, 2, 1]
    assert table["is_zero"].tolist() == [False, False, True, True, False]
    assert table.attributes["trace"] == pytest.approx(4.6)
    assert table.attributes["frobenius_squared"] == pytest.approx(21.26)
    assert table.attributes["participation_rank"] == pytest.approx(7.6**2 / 21.26)
    at_zero, at_threshold = table.attributes["cuts"][:2]
    assert (at_zero["positive"], at_zero["negative"], at_zero["zero"]) == (3, 2, 0)
    assert (at_threshold["positive"], at_threshold["negative"], at_threshold["zero"]) == (2, 1, 2)
    assert at_threshold["negative_share"] == pytest.approx(1 / 7)


def test_effective_rank_of_equal_eigenvalues_is_their_number() -> None:
    table = spectrum.measure(np.array([2.0] * 7 + [0.0] * 3), 0.0, np.zeros((10, 2)), HEAD)
    assert table.attributes["effective_rank"] == pytest.approx(7)
    assert table.attributes["participation_rank"] == pytest.approx(7)


def test_a_long_spectrum_is_thinned_but_sums_are_exact(tmp_path) -> None:
    eigenvalues = np.concatenate([np.geomspace(10, 1e-8, 20000), -np.geomspace(1e-8, 1, 5000)])
    overlaps = np.random.default_rng(0).uniform(size=(25000, 2))
    table = spectrum.measure(eigenvalues, 1e-6, overlaps, HEAD)
    np.testing.assert_array_equal(table["scale_overlap"], overlaps[table["index"], 0])
    np.testing.assert_array_equal(table["shift_overlap"], overlaps[table["index"], 1])
    assert len(table) == 2000
    assert table.attributes["trace"] == pytest.approx(eigenvalues.sum(), rel=1e-12)
    assert table.attributes["cuts"][0]["negative"] == 5000
    np.testing.assert_array_equal(table["eigenvalue"], eigenvalues[table["index"]])
    table.write(tmp_path / "spectrum.parquet")
    again = read_table(tmp_path / "spectrum.parquet", SCHEMAS["spectrum"])
    assert again.attributes == table.attributes


def test_the_zero_matrix_has_a_spectrum() -> None:
    table = spectrum.measure(np.zeros(5), 0.0, OVERLAPS, HEAD)
    assert table.attributes["effective_rank"] == 0
    assert table["is_zero"].all()
