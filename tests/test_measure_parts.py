from itertools import pairwise

import numpy as np
import pytest
from measure_cases import random_orthogonal

from quadscape.measures.parts import compute as parts

HEAD = {"run": "a", "iteration": 3, "P": 40, "N": 10, "weight_decay": 0.0, "zero_threshold": 1e-3}


class InStrips:
    """A matrix whose strips are as wide as given, NaN above the diagonal squares being left out."""

    def __init__(self, matrix, bounds):
        self.matrix, self.bounds = matrix, bounds

    def strips(self):
        for start, stop in pairwise(self.bounds):
            yield start, self.matrix[start:, start:stop]


@pytest.mark.parametrize("bounds", [[0, 40], [0, 16, 32, 40], [0, 1, 2, 39, 40]])
def test_ritz_values_in_one_pass(bounds):
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((40, 40))
    matrix += matrix.T
    vectors = generator.standard_normal((40, 7)).astype(np.float32)
    q = vectors.astype(np.float64)
    expected = np.diag(q.T @ matrix @ q)
    np.testing.assert_allclose(parts.ritz_values(InStrips(matrix, bounds), vectors), expected, atol=1e-12)


def test_eigenvectors_return_eigenvalues_and_parts_add_up():
    q, values = random_orthogonal(40, 0), np.linspace(3, -1, 40)
    matrix = (q * values) @ q.T
    np.testing.assert_allclose(parts.ritz_values(InStrips(matrix, [0, 13, 40]), q), values, atol=1e-13)
    indices = np.array([0, 2, 38])
    table = parts.along_eigenvectors(values, indices, values[indices] + 0.5, np.full(3, -0.5), 1e-6, HEAD)
    assert table["eigenvalue"].tolist() == values[indices].tolist()
    assert table["sign"].tolist() == [1, 1, -1]
    assert table["rank"].tolist() == [1, 3, 2]
    np.testing.assert_allclose(table["gauss_newton"] + table["remainder"], table["eigenvalue"])
    assert table.attributes["error"] == 1e-6
    assert table.attributes["iteration"] == 3


def test_spectra_count_beyond_each_parts_own_zero():
    values = {
        "H": np.array([5.0, 1.0, 1e-4, -1e-4, -2.0]),
        "G": np.array([4.0, 2.0, 0.0, -1e-9, -1e-5]),
        "R": np.array([1.0, 0.1, 0.02, -0.02, -3.0]),
    }
    table = parts.spectra(values, {"H": 1e-3, "G": 1e-2, "R": 0.05}, HEAD)
    sums = table.attributes["parts"]
    assert [(sums[p]["positive"], sums[p]["zero"], sums[p]["negative"]) for p in "HGR"] == [
        (2, 2, 1),
        (2, 3, 0),
        (2, 2, 1),
    ]
    assert sums["R"]["trace"] == pytest.approx(-1.9)
    assert (sums["G"]["largest"], sums["G"]["smallest"]) == (4.0, -1e-5)
    assert table["part"].tolist() == ["H"] * 5 + ["G"] * 5 + ["R"] * 5
    g = table.where(table["part"] == "G")
    assert g["rank"].tolist() == [1, 2, 3, 2, 1]
    assert g["is_zero"].tolist() == [False, False, True, True, True]


def test_long_spectra_are_thinned_and_their_sums_are_exact():
    values = np.linspace(2, -1, 9000)
    table = parts.spectra(dict.fromkeys("HGR", values), dict.fromkeys("HGR", 0.5), HEAD)
    assert len(table) <= 3 * 2 * parts.ROWS_PER_SIGN
    assert table.attributes["parts"]["H"]["negative"] == int((values < -0.5).sum())
