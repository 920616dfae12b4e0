"""Minima of batches along lines, on losses whose batches have their minima in closed form."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_cases import PlainBasis, chosen, random_orthogonal
from scipy import stats

from quadscape.measures.batches import batch_sizes, draw
from quadscape.measures.finite_batch.compute import measure, of_batches, sides
from quadscape.measures.finite_batch.minima import derivatives, minima, thinned
from quadscape.measures.line_search import compute as line_search
from quadscape.measures.line_search.analysis import grid
from quadscape.measures.line_search.declaration import EXAMPLES
from quadscape.tables import Table

T = grid(61, 2.0, 1.0, 100.0)


class Planted:
    """ℓₙ(θ) = Σᵢ (sₙᵢaᵢ + ½hₙᵢaᵢ² + kᵢaᵢ⁴), aᵢ = qᵢᵀ(θ − θ₀): every example's line along qᵢ is known."""

    def __init__(self, vectors, theta, slopes, curvatures, quartics=None) -> None:
        self._vectors, self._theta = vectors, theta
        self.slopes, self.curvatures = slopes, curvatures
        self._quartics = np.zeros(len(theta)) if quartics is None else np.asarray(quartics)
        self.count, self.size = slopes.shape

    def example_losses(self, theta: np.ndarray) -> np.ndarray:
        along = self._vectors.T @ (theta - self._theta)
        return self.slopes @ along + 0.5 * self.curvatures @ along**2 + float(self._quartics @ along**4)

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        along = self._vectors.T @ (theta - self._theta)
        mean = self.slopes.mean(0) + self.curvatures.mean(0) * along + 4 * self._quartics * along**3
        return self._vectors @ mean

    def hessian_product(self, theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        along = self._vectors.T @ (theta - self._theta)
        return self._vectors @ ((self.curvatures.mean(0) + 12 * self._quartics * along**2) * (self._vectors.T @ v))


def searched(
    slopes, curvatures, quartics=None, weight_decay=0.0, **options
) -> tuple[Table, Table, np.ndarray, Planted]:
    """Tables of line searches along all directions of a planted loss, its examples' lines, and it."""
    size = slopes.shape[1]
    vectors = random_orthogonal(size, 4)
    theta = vectors @ np.full(size, 2.0)
    loss = Planted(vectors, theta, slopes, curvatures, quartics)
    eigenvalues = curvatures.mean(axis=0)
    assert (np.diff(eigenvalues) <= 0).all(), "in descending order"
    head = {"run": "a", "iteration": 40, "P": size, "N": len(slopes), "weight_decay": weight_decay}
    given = chosen("line_search", directions=size, **({"loss_rise": 1.0, "reach": 10.0} | options))
    basis = PlainBasis(eigenvalues, vectors)
    sides_of = [line_search.SplitLosses(loss, theta, 2e-16, 0) for _ in range(2)]
    lines = line_search.Lines(*sides_of, basis, theta, given, weight_decay)
    values = lines.values(slice(None), keep=True)
    tables = lines.tables(values, {**head, "zero_threshold": 1e-12}, 2e-16)
    return tables["line_search"], tables["line_fit"], values[EXAMPLES], loss


def noise(count: int, size: int, seed: int = 1) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, size))
    return drawn - drawn.mean(axis=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_of_a_quadratic_loss_the_spread_is_the_predicted_one(weight_decay: float) -> None:
    count, values = 301, np.array([4.0, 1.0, 0.25])
    slopes = 0.05 * np.sqrt(values) * noise(count, 3) + 0.01
    lines, fits, kept, loss = searched(slopes, np.broadcast_to(values, (count, 3)), weight_decay=weight_decay)
    batches = 2000
    tables = measure(lines, fits, kept, batches, batch_size=50)
    found, single = tables["finite_batch"], tables["line_noise"]
    assert sorted(set(found["batch_size"].tolist())) == [8, 32, 50, 128]
    assert set(found["decayed"].tolist()) == ({True, False} if weight_decay else {True})
    decay = np.where(found["decayed"], weight_decay, 0.0)
    total = found["eigenvalue"] + decay
    # θᵀq = 2 along every direction.
    np.testing.assert_allclose(found["minimum"], -(0.01 + 2 * decay) / total, rtol=1e-6)
    np.testing.assert_allclose(found["curvature"], total, rtol=1e-6)
    variance = loss.slopes.var(axis=0)[found["index"]]
    size = found["batch_size"]
    expected = np.sqrt(variance / size * (count - size) / (count - 1)) / total
    np.testing.assert_allclose(found["predicted"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["predicted_there"], expected, rtol=1e-6)
    # The interquartile range of n Gaussian values has a relative standard error of 1.36/√n.
    error = 1.36 / math.sqrt(batches)
    assert np.abs(found["ratio"] - 1).max() < 4.5 * error
    assert np.mean((found["ratio_low"] <= 1) & (found["ratio_high"] >= 1)) > 0.75
    assert (found["curvature_spread"] < 1e-5).all()
    assert found["gaussian"].all()
    assert np.abs(found["kurtosis"]).max() < 5 * math.sqrt(24 / batches)
    assert np.abs(found["tail"] - 1).max() < 0.15
    # ½λt² lies between a batch's minimum and the centre; a minimum elsewhere costs all examples as much.
    np.testing.assert_allclose(found["excess"], 0.5 * total * (0.6745 * expected) ** 2, rtol=0.25)
    np.testing.assert_allclose(single["slope_variance"], loss.slopes.var(axis=0), rtol=1e-5)
    np.testing.assert_allclose(single["line_curvature"], values, rtol=1e-6)
    assert (single["curvature_variance"] < 1e-9).all()


def test_slopes_and_curvatures_off_a_minimum_enter_the_prediction_together() -> None:
    count = 400
    h = 2.0 + 0.1 * noise(count, 1, 3)
    s = 0.3 + 0.1 * h - 0.2
    lines, fits, kept, _ = searched(s, h)
    found = measure(lines, fits, kept, 2000)["finite_batch"]
    offset = -s.mean() / h.mean()
    exact = (s + offset * h).var()
    size = found["batch_size"]
    expected = np.sqrt(exact / size * (count - size) / (count - 1)) / h.mean()
    np.testing.assert_allclose(found["predicted"], expected, rtol=1e-4)
    assert np.abs(found["ratio"] - 1).max() < 0.15


def test_a_batch_of_all_examples_is_the_full_batch() -> None:
    count = 40
    slopes, curvatures = 0.1 * noise(count, 2), np.array([3.0, 1.0]) + 0.3 * noise(count, 2, 2)
    lines, fits, kept, _ = searched(slopes + 0.05, curvatures, quartics=[0.5, 0.2])
    found = measure(lines, fits, kept, 20, batch_size=count)["finite_batch"]
    rows = found.where(found["batch_size"] == count)
    assert len(rows) == 2
    np.testing.assert_allclose(rows["median"], rows["minimum"], rtol=1e-9)
    np.testing.assert_allclose(rows["spread"], 0, atol=1e-12)
    np.testing.assert_allclose(rows["predicted"], 0, atol=1e-12)
    np.testing.assert_allclose(rows["excess"], 0, atol=1e-12)
    np.testing.assert_allclose(rows["minimum"], fits["minimum"][rows["index"]], rtol=1e-6)


def test_minima_beyond_the_line_are_counted_and_spread_needs_quartiles() -> None:
    count, value = 500, 2.0
    slopes = 2.0 * noise(count, 1)
    lines, fits, kept, _ = searched(slopes, np.full((count, 1), value), loss_rise=0.01)
    end = float(lines["t"].max())
    found = measure(lines, fits, kept, 4000)["finite_batch"]
    for row in range(len(found)):
        size = int(found["batch_size"][row])
        deviation = math.sqrt(slopes.var() / size * (count - size) / (count - 1)) / value
        beyond = stats.norm.sf(end / deviation)
        error = math.sqrt(beyond * (1 - beyond) / 4000)
        assert abs(found["below"][row] - beyond) < 4.5 * error + 1e-3
        assert abs(found["above"][row] - beyond) < 4.5 * error + 1e-3
        assert np.isfinite(found["spread"][row]) == (beyond < 0.25)
        assert not (found["gaussian"][row] and beyond > 0.01)
    assert not np.isfinite(found["spread"]).all()
    assert np.isnan(found["kurtosis"][found["above"] > 0]).all()


def test_curvatures_that_differ_make_heavy_tails_and_no_gaussian_claim() -> None:
    count = 600
    h = np.where(np.arange(count) % 10 == 0, 20.0, 0.1)[:, None]
    slopes = 0.05 * noise(count, 1)
    lines, fits, kept, _ = searched(slopes, h)
    found = measure(lines, fits, kept, 1000)["finite_batch"]
    small = found.where(found["batch_size"] == 8)
    assert not small["gaussian"].any()
    assert small["curvature_spread"][0] > 0.2
    assert small["tail"][0] > 1.3
    assert small["not_normal"][0] or np.isnan(small["p_normal"][0])


def test_a_coupling_of_slope_and_curvature_is_seen() -> None:
    count = 600
    z = noise(count, 1, 7)
    lines, fits, kept, _ = searched(0.1 * z, 2.0 + 0.3 * z)
    tables = measure(lines, fits, kept, 400)
    assert tables["line_noise"]["slope_curvature"][0] == pytest.approx(1, abs=1e-4)
    # A larger slope puts the minimum further to the left.
    found = tables["finite_batch"]
    assert (found["correlation"] < -0.9).all()
    assert (found["correlation_high"] < -0.9).all()


def test_negative_curvature_has_a_row_for_each_of_two_minima() -> None:
    # −½a² + ¼a⁴: minima at ±1, of curvature 2, where an example's slope still is what it is at 0.
    count = 400
    slopes = np.concatenate([np.zeros((count, 1)), 0.1 * noise(count, 1)], axis=1)
    h = np.broadcast_to([1.0, -1.0], (count, 2))
    lines, fits, kept, _ = searched(slopes, h, quartics=[0.0, 0.25], loss_rise=2.0)
    found = measure(lines, fits, kept, 2000)["finite_batch"]
    assert found["side"][found["index"] == 0].tolist() == ["only"] * 3
    for side, place in (("negative", -1.0), ("positive", 1.0)):
        rows = found.where((found["index"] == 1) & (found["side"] == side))
        assert len(rows) == 3
        np.testing.assert_allclose(rows["minimum"], place, atol=2e-3)
        np.testing.assert_allclose(rows["curvature"], 2.0, rtol=0.02)
        assert np.isnan(rows["predicted"]).all()
        size = rows["batch_size"]
        expected = np.sqrt(slopes[:, 1].var() / size * (count - size) / (count - 1)) / 2
        np.testing.assert_allclose(rows["predicted_there"], expected, rtol=0.02)
        np.testing.assert_allclose(rows["spread"], expected, rtol=0.15)


def test_directions_of_noise_that_is_shared_are_correlated() -> None:
    count = 900
    own, shared = noise(count, 3, 8), noise(count, 1, 9)
    h = np.broadcast_to([3.0, 2.0, 1.0], (count, 3))
    for slopes, expected in ((own, 0.0), (np.broadcast_to(shared, (count, 3)), 1.0)):
        lines, fits, kept, _ = searched(0.1 * slopes, h)
        table = measure(lines, fits, kept, 20)["line_noise"]
        assert table.attributes["chance_cross"] == pytest.approx(1 / 30)
        np.testing.assert_allclose(table["cross"], expected, atol=4 / 30)


def test_what_overflows_ends_the_line() -> None:
    count = 32
    lines, fits, kept, _ = searched(0.1 * noise(count, 1), np.full((count, 1), 2.0))
    whole = measure(lines, fits, kept, 20)["finite_batch"]
    broken = kept.copy()
    broken[0, -3:, 5] = np.inf
    cut = measure(lines, fits, broken, 20)["finite_batch"]
    np.testing.assert_allclose(cut["minimum"], whole["minimum"], atol=1e-9)
    broken[0, 32:, 5] = np.nan
    nothing = measure(lines, fits, broken, 20)
    assert not len(nothing["finite_batch"])
    assert len(nothing["line_noise"]) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17])
def test_few_examples(count: int) -> None:
    slopes = 0.1 * noise(count, 1)
    lines, fits, kept, _ = searched(slopes, np.full((count, 1), 2.0))
    tables = measure(lines, fits, kept, 20, batch_size=4)
    assert len(tables["finite_batch"]) >= 1
    assert (tables["finite_batch"]["batch_size"] <= count).all()


def test_no_lines_are_empty_tables() -> None:
    lines, fits, kept, _ = searched(0.1 * noise(16, 1), np.full((16, 1), 2.0))
    nothing = fits.where(np.zeros(1, dtype=bool))
    tables = measure(lines, nothing, kept[:0], 20)
    assert not len(tables["finite_batch"])
    assert not len(tables["line_noise"])


def test_sizes_of_batches() -> None:
    assert batch_sizes(719, 64) == [8, 32, 64, 128]
    assert batch_sizes(50_000) == [8, 32, 128, 512, 2048, 8192]
    assert batch_sizes(10) == [5]
    assert batch_sizes(10, 512) == [10]
    assert batch_sizes(1) == [1]


def test_batches_are_independent_and_hold_no_example_twice() -> None:
    drawn = draw(40, 10, 3000, (0, 1))
    assert drawn.shape == (3000, 10)
    assert all(len(set(batch)) == 10 for batch in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=40)
    expected = 3000 * 10 / 40
    assert stats.chi2.sf(((counts - expected) ** 2 / expected).sum() * 39 / 30, 39) > 1e-3
    assert not np.array_equal(drawn, draw(40, 10, 3000, (0, 2)))
    values = np.random.default_rng(0).standard_normal((7, 40))
    np.testing.assert_allclose(of_batches(values, drawn), values[:, drawn].mean(axis=2), rtol=1e-12, atol=1e-15)


@settings(deadline=None, max_examples=50)
@given(
    st.floats(-0.8, 0.8),
    st.floats(0.05, 50.0),
    st.floats(-0.3, 0.3),
    st.floats(1e-3, 1e3),
)
def test_minima_of_cubics(place: float, curvature: float, third: float, scale: float) -> None:
    t = scale * T

    def f(x: np.ndarray) -> np.ndarray:
        x = x / scale - place
        return curvature * (0.5 * x**2 + third * x**3 / 6)

    found = minima(t, f(t)[:, None])
    np.testing.assert_allclose(found.place, scale * place, atol=1e-6 * scale)
    np.testing.assert_allclose(found.value, 0, atol=1e-9 * curvature)
    np.testing.assert_allclose(found.curvature, curvature / scale**2, rtol=1e-4)


def test_minima_at_the_ends() -> None:
    values = np.stack([T, -T, -(T**2) + 1e-3 * T, np.zeros_like(T)], axis=1)
    found = minima(T, values)
    assert found.place[:3].tolist() == [-np.inf, np.inf, -np.inf]
    assert not found.inside.any()
    np.testing.assert_allclose(found.value[:2], T[0])


def test_derivatives_of_many_lines() -> None:
    generator = np.random.default_rng(2)
    g, h, third, fourth = generator.standard_normal((4, 30))
    t = T[:, None]
    values = g * t + 0.5 * h * t**2 + third * t**3 + fourth * t**4
    slopes, curvatures = derivatives(T, values)
    np.testing.assert_allclose(slopes, g, atol=1e-9)
    np.testing.assert_allclose(curvatures, h, atol=1e-7)
    slopes, curvatures = derivatives(T, values.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(slopes, g, atol=1e-5)
    np.testing.assert_allclose(curvatures, h, atol=1e-4)


def test_thinned_grids_keep_their_centre_and_symmetry() -> None:
    assert thinned(T, 0.0).all()
    keep = thinned(T, 0.1)
    np.testing.assert_array_equal(keep, keep[::-1])
    assert keep[30]
    assert np.diff(T[keep]).min() >= 0.1 - 1e-12
    assert thinned(T, 5.0).sum() == 1


def test_one_side_with_a_minimum_is_no_two() -> None:
    assert [name for name, _ in sides(T, -(T**2) + 3 * T**4, -2.0)] == ["negative", "positive"]
    assert [name for name, _ in sides(T, -(T**2), -2.0)] == ["only"]
    assert [name for name, _ in sides(T, T**2, 2.0)] == ["only"]
