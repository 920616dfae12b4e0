import math

import numpy as np
import pytest
from measure_cases import GivenGradients, PlainBasis, random_orthogonal

from quadscape.measures.gradients import compute as gradients

SIZE, COUNT = 48, 3000
HEAD = {"run": "a", "iteration": 1, "P": SIZE, "N": COUNT, "weight_decay": 0.0, "zero_threshold": 0.0}
EIGENVALUES = np.concatenate([np.geomspace(5, 1e-4, 30), -np.geomspace(1e-4, 1, 18)])
BASIS = PlainBasis(EIGENVALUES, random_orthogonal(SIZE, 0))
THETA = np.zeros(SIZE)


def measure(values: np.ndarray, **options) -> dict:
    return gradients.measure(GivenGradients(values), BASIS, THETA, HEAD, bands=10, **options)


@pytest.fixture(scope="module")
def isotropic() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((COUNT, SIZE))


def test_isotropic_gaussian_gradients_meet_every_chance_level(isotropic) -> None:
    tables = measure(isotropic)
    table = tables["gradients"]
    # Var of the ratio (Σa²)²/(NΣa⁴) by the delta method: (4·2 + 96/9 − 4·12/3)/N = (8/3)/N, times (1/3)².
    error = math.sqrt(8 / 3 / COUNT) / 3
    z = (table["participation"] - gradients.GAUSSIAN_PARTICIPATION) / error
    assert abs(z.mean()) < 4 / math.sqrt(SIZE) + 0.3
    assert np.abs(z).max() < 5
    # |z|/√P is the limit of large P; at P = 48 the exact mean is larger by 1/(4P).
    exact = math.exp(math.lgamma(SIZE / 2) - math.lgamma((SIZE + 1) / 2)) / math.sqrt(math.pi)
    assert table["mean"].mean() == pytest.approx(exact, rel=0.01)
    assert table.attributes["chance_mean"] == pytest.approx(exact, rel=1 / SIZE)
    for name in gradients.QUANTILES:
        assert tables["gradient_bands"][name].mean() == pytest.approx(table.attributes[f"chance_{name}"], rel=0.05)
    np.testing.assert_allclose(table["share"].sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(table["variance"], 1, rtol=0.2)


def test_intervals_cover(isotropic) -> None:
    table = measure(isotropic)["gradients"]
    for name, truth in (("share", 1 / SIZE), ("participation", 1 / 3)):
        covered = (table[f"{name}_low"] <= truth) & (truth <= table[f"{name}_high"])
        assert covered.mean() > 0.8
        assert (table[f"{name}_low"] < table[name]).all()
        assert (table[name] < table[f"{name}_high"]).all()


def test_one_example_that_dominates() -> None:
    values = np.full((40, SIZE), 0.0)
    values[17] = 3 * BASIS.vectors(0, SIZE).sum(axis=1)
    table = measure(values)["gradients"]
    np.testing.assert_allclose(table["participation"], 1 / 40, rtol=1e-10)
    np.testing.assert_array_equal(table["top_example"], 17)
    np.testing.assert_allclose(table["top_share"], 1)
    np.testing.assert_allclose(table["mean"], 1 / math.sqrt(SIZE), rtol=1e-10)
    assert table.attributes["zero_gradients"] == 39


def test_quantiles_agree_with_sorting(isotropic) -> None:
    tables = measure(isotropic)
    cosines = np.abs(isotropic @ BASIS.vectors(0, SIZE)) / np.linalg.norm(isotropic, axis=1)[:, None]
    for name, q in gradients.QUANTILES.items():
        np.testing.assert_allclose(tables["gradients"][name], np.quantile(cosines, q, axis=0), rtol=10 ** (1 / 64) - 1)
    band = tables["gradient_bands"]
    pooled = cosines[:, band["first_rank"][3] - 1 : band["last_rank"][3]]
    assert band["median"][3] == pytest.approx(np.median(pooled), rel=0.01)
    share = np.square(isotropic @ BASIS.vectors(0, SIZE)).sum(axis=0) / np.square(isotropic).sum()
    np.testing.assert_allclose(band["share"].sum(), 1)
    np.testing.assert_allclose(tables["gradients"]["share"], share)


@pytest.mark.parametrize("memory", [1, 100_000, 250_000])
def test_batches_and_tiles_do_not_matter(memory: int, isotropic) -> None:
    values = isotropic[:301]
    whole, cut = measure(values), measure(values, memory=memory)
    for name, table in whole.items():
        for column, expected in table.columns.items():
            if expected.dtype.kind == "f":
                np.testing.assert_allclose(cut[name][column], expected, rtol=1e-9, atol=1e-15, err_msg=column)
            else:
                np.testing.assert_array_equal(cut[name][column], expected)
        assert table.attributes == cut[name].attributes


def test_gradients_of_zero_leave_no_numbers_behind() -> None:
    table = measure(np.zeros((5, SIZE)))["gradients"]
    assert np.isnan(table["mean"]).all()
    assert np.isnan(table["median"]).all()
    assert np.isnan(table["participation"]).all()
    assert table.attributes["zero_gradients"] == 5


def test_a_direction_without_gradients_has_cosine_zero() -> None:
    values = np.random.default_rng(2).standard_normal((50, 1)) * BASIS.vectors(0, 1).T
    table = measure(values)["gradients"]
    assert table["median"][0] == pytest.approx(1, rel=0.02)
    assert (table["median"][1:] < 1e-9).all()
    assert table["share"][0] == pytest.approx(1)
