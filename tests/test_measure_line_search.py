import math

import numpy as np
import pytest
from measure_cases import InFloat32, PlainBasis, SeparableObjective, chosen, random_orthogonal

from quadscape.measures.line_search import compute as line_search
from quadscape.measures.line_search.analysis import (
    Centre,
    analyse,
    choose_form,
    fit_forms,
    fit_window,
    grid,
    held_out,
    minimum,
    quadratic_radius,
    second_derivative,
)
from quadscape.measures.line_search.compute import choose_directions
from quadscape.measures.line_search.declaration import PARAMETERS, TOLERANCE
from quadscape.measures.line_search.losses import ROUNDINGS, SplitLosses, read_off

T = grid(61, 2.0, 1.0, 100.0)
FLOOR = 1e-16


def look(f, *, gradient=0.0, curvature=2.0, eigenvalue=None, position=0.0, decay=0.0, t=T, floor=FLOOR):
    rise = np.array([f(value) - f(0.0) for value in t])
    return analyse(
        t,
        rise,
        Centre(gradient, curvature, curvature if eigenvalue is None else eigenvalue, position),
        weight_decay=decay,
        loss_rise=100.0,
        floor=floor,
        epsilon=2e-16,
    )


def test_the_grid_is_symmetric_dense_at_zero_and_capped() -> None:
    assert T[30] == 0
    np.testing.assert_array_equal(T, -T[::-1])
    assert T[-1] == pytest.approx(1.0)  # ½·2·t² = 1
    steps = np.diff(T[30:])
    assert (np.diff(steps) > 0).all()
    assert T[31] < 1e-2 * T[-1] / 5
    assert grid(61, 1e-9, 1.0, 0.25)[-1] == pytest.approx(0.25)
    assert grid(61, -2.0, 1.0, 0.25)[-1] == pytest.approx(0.25)
    assert grid(61, -8.0, 1.0, 10.0)[-1] == pytest.approx(0.5)
    assert grid(9, 0.0, 1.0, 0.0)[-1] == pytest.approx(1.0)


def test_a_quadratic_is_quadratic() -> None:
    row, form = look(lambda t: 0.3 * t + t**2, gradient=0.3)
    assert form.form == "quadratic"
    assert row["curvature_ratio"] == pytest.approx(1, abs=1e-8)
    assert row["curvature_ratio_low"] <= 1 <= row["curvature_ratio_high"]
    assert row["coefficient_1"] == pytest.approx(0.3)
    assert row["coefficient_2"] == pytest.approx(1.0)
    assert row["minimum"] == pytest.approx(-0.15, abs=1e-9)
    assert row["newton"] == pytest.approx(-0.15)
    assert row["asymmetry"] == pytest.approx(0, abs=1e-10)
    for side in ("positive", "negative"):
        for suffix in ("", "_decayed"):
            assert row[f"radius{suffix}_{side}_status"] == "censored"
            assert row[f"radius{suffix}_{side}"] == T[-1]
            assert row[f"radius{suffix}_{side}_high"] == math.inf


@pytest.mark.parametrize("third", [0.7, -0.2])
def test_a_planted_cubic_is_recovered_with_its_radius(third: float) -> None:
    row, form = look(lambda t: 0.1 * t + t**2 + third * t**3, gradient=0.1)
    assert form.form == "cubic"
    np.testing.assert_allclose(form.coefficients[:4], [0, 0.1, 1, third], atol=1e-9)
    # |c₃|t³ = 0.1·t²: both sides alike.
    for side in ("positive", "negative"):
        assert row[f"radius_{side}"] == pytest.approx(0.1 / abs(third), rel=1e-6)
        assert row[f"radius_{side}_status"] == "measured"
        assert row[f"radius_{side}_low"] <= 0.1 / abs(third) <= row[f"radius_{side}_high"]
    assert np.sign(row["asymmetry"]) == np.sign(third)


def test_a_planted_quartic_is_recovered() -> None:
    row, form = look(lambda t: t**2 - 0.4 * t**3 + 3 * t**4)
    assert form.form == "quartic"
    np.testing.assert_allclose(form.coefficients, [0, 0, 1, -0.4, 3], atol=1e-9)
    expected = {}
    for side, sign in (("positive", -1), ("negative", 1)):
        # 3t² ∓ 0.4t = 0.1 for the smallest positive t, of either sign of the departure
        roots = np.concatenate([np.roots([3, sign * 0.4, -0.1]), np.roots([3, sign * 0.4, 0.1])])
        expected[side] = min(r.real for r in roots if abs(r.imag) < 1e-12 and r.real > 0)
        assert row[f"radius_{side}_low"] <= expected[side] <= row[f"radius_{side}_high"]
        assert row[f"radius_{side}"] == pytest.approx(expected[side], rel=1e-6)
    assert row["curvature_ratio"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("centre", "width"), [(0.0, 0.2), (0.15, 0.1), (-0.3, 0.4)])
@pytest.mark.parametrize("form", ["log", "hyperbolic"])
def test_planted_saturating_forms_are_recovered(form: str, centre: float, width: float) -> None:
    def shape(x):
        return math.log1p(x) if form == "log" else math.sqrt(1 + x) - 1

    def f(t):
        return 0.7 * shape(((t - centre) / width) ** 2)

    rise = np.array([f(t) - f(0) for t in T])
    chosen = choose_form(fit_forms(T, rise), rise, FLOOR)
    assert chosen.form == form
    assert chosen.amplitude == pytest.approx(0.7, rel=1e-5)
    assert chosen.centre == pytest.approx(centre, abs=1e-6)
    assert chosen.width == pytest.approx(width, rel=1e-5)
    np.testing.assert_allclose(chosen(T), rise, atol=1e-7)
    assert minimum(T, rise, FLOOR).value == pytest.approx(centre, abs=2e-3)


def test_negative_curvature() -> None:
    row, form = look(lambda t: -(t**2) + 2 * t**4, curvature=-2.0)
    assert form.form == "quartic"
    assert row["curvature_ratio"] == pytest.approx(1, abs=1e-6)
    assert row["radius_positive"] == pytest.approx(math.sqrt(0.1 / 2), rel=1e-6)
    assert abs(row["minimum"]) == pytest.approx(0.5, rel=1e-3)
    assert math.isnan(row["newton"])


def test_a_straight_descent_has_no_minimum_on_the_line() -> None:
    row, _ = look(lambda t: -5 * t + t**2, gradient=-5.0)
    assert math.isnan(row["minimum"])
    assert row["newton"] == pytest.approx(2.5)


@pytest.mark.parametrize("curvature", [1e-12, 0.0, -1e-12])
def test_of_a_flat_direction_nothing_is_claimed(curvature: float) -> None:
    noise = np.random.default_rng(0).standard_normal(61) * 1e-15
    noise[30] = 0
    t = grid(61, curvature, 1.0, 0.02)
    row, form = look(lambda _: 0.0, curvature=curvature, t=t, floor=3e-15)
    assert form.form == "unresolved"
    assert row["radius_positive_status"] == "unresolved"
    assert math.isnan(row["radius_positive"])
    found = quadratic_radius(t[31:], noise[31:], curvature, np.full(30, 3e-15))
    assert found.status == "unresolved"


def test_flat_directions_of_a_fourth_order_valley_have_a_small_radius() -> None:
    t = grid(61, 1e-4, 1.0, 1.0)
    row, _ = look(lambda x: 0.5e-4 * x**2 + 5 * x**4, curvature=1e-4, t=t)
    assert row["radius_positive"] == pytest.approx(math.sqrt(0.1 * 0.5e-4 / 5), rel=1e-6)
    assert row["radius_positive_status"] == "measured"


def test_a_radius_below_what_rounding_resolves_is_an_upper_bound() -> None:
    t = np.geomspace(1e-3, 1, 30)
    found = quadratic_radius(t, 5 * t**3, 1.0, np.full(30, 1e-4))
    assert found.status == "bounded"
    assert found.low == 0
    assert found.value == found.high
    assert found.value > 0.1 * 0.5 / 5
    assert 0.05 * found.value**2 >= 10 * 1e-4


def test_radius_where_the_departure_changes_sign_or_overflows() -> None:
    t = np.array([1.0, 2.0, 3.0])
    allowed = 0.05 * t**2
    crossing = quadratic_radius(t, np.array([-0.5, -0.5, 1.5]) * allowed, 1.0, np.zeros(3))
    assert crossing.value == pytest.approx(1.5 + math.sqrt(1.75))  # −½ + (t − 1)(t − 2) = 1
    overflow = quadratic_radius(t, np.array([0.0, 0.1, math.inf]), 1.0, np.zeros(3))
    assert (overflow.value, overflow.high, overflow.status) == (2.0, 3.0, "measured")


def test_weight_decay_shifts_the_minimum_and_the_tolerance() -> None:
    decay, position = 0.5, 0.8
    row, _ = look(lambda t: -0.2 * t + t**2 + 0.5 * t**3, gradient=-0.2, position=position, decay=decay)
    assert row["gradient_decayed"] == pytest.approx(-0.2 + decay * position)
    # −0.2 + 0.4 + (2 + 0.5)t + 1.5t² = 0 with weight decay, without it −0.2 + 2t + 1.5t² = 0
    assert row["minimum"] == pytest.approx((-2 + math.sqrt(4 + 1.2)) / 3, rel=1e-6)
    assert row["minimum_decayed"] == pytest.approx((-2.5 + math.sqrt(6.25 - 1.2)) / 3, rel=1e-6)
    assert row["newton_decayed"] == pytest.approx(-0.2 / 2.5)
    assert row["radius_positive"] == pytest.approx(0.2, rel=1e-6)
    assert row["radius_decayed_positive"] == pytest.approx(0.25, rel=1e-6)


def test_second_derivative_says_how_wrong_it_is() -> None:
    generator = np.random.default_rng(1)
    for floor in (1e-16, 1e-10, 1e-6):
        rise = np.exp(T) - 1 + generator.uniform(-floor, floor, len(T))
        rise[30] = 0
        value, error = second_derivative(T, rise, floor)
        assert abs(value - 1) <= error
        assert error < 1e3 * math.sqrt(floor)


def test_form_choice_prefers_few_parameters_and_admits_defeat() -> None:
    generator = np.random.default_rng(2)
    rise = T**2 + 1e-3 * T**4
    assert choose_form(fit_forms(T, rise), rise, FLOOR).form == "quadratic"
    ragged = generator.standard_normal(61)
    assert choose_form(fit_forms(T, ragged), ragged, FLOOR).form == "none"


def test_results_do_not_depend_on_the_sign_of_the_eigenvector() -> None:
    def f(t):
        return math.exp(t) - t

    one, _ = look(f, curvature=1.0)
    other, _ = look(lambda t: f(-t), curvature=1.0)
    assert one["form"] == other["form"]
    assert one["radius_positive"] == pytest.approx(other["radius_negative"], rel=1e-9)
    assert one["asymmetry"] == pytest.approx(-other["asymmetry"])
    for name in PARAMETERS:
        assert one[f"error_{name}"] == pytest.approx(other[f"error_{name}"], rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("negative", [0, 1, 30])
@pytest.mark.parametrize("count", [1, 2, 5, 48, 100])
def test_directions_are_as_many_as_asked_and_reach_both_ends(count: int, negative: int) -> None:
    eigenvalues = np.sort(np.concatenate([np.geomspace(1, 1e-6, 70), -np.geomspace(1, 1e-3, 30)[:negative]]))[::-1]
    chosen = choose_directions(eigenvalues, min(count, len(eigenvalues)))
    assert len(set(chosen.tolist())) == min(count, len(eigenvalues))
    assert chosen.min() >= 0
    assert chosen.max() < len(eigenvalues)
    assert chosen[0] == 0
    if negative and count >= 4:
        assert chosen[-1] == len(eigenvalues) - 1


@pytest.mark.parametrize("short", [False, True], ids=["float64", "float32 where that is enough"])
def test_measure_on_a_separable_loss(short: bool) -> None:
    size = 6
    vectors = random_orthogonal(size, 4)
    eigenvalues = np.array([4.0, 2.0, 1.0, 0.1, -0.2, -1.0])
    thirds = np.array([0.0, 0.8, 0.0, 0.0, 0.0, 0.0])
    fourths = np.array([0.0, 0.0, 0.0, 0.0, 0.3, 0.5])
    slopes = np.array([0.2, 0.0, -0.1, 0.0, 0.0, 0.0])
    functions = [
        lambda t, s=s, h=h, c=c, q=q: s * t + 0.5 * h * t**2 + c * t**3 + q * t**4
        for s, h, c, q in zip(slopes, eigenvalues, thirds, fourths, strict=True)
    ]
    theta = vectors @ np.array([3.0, 1.0, -2.0, 0.5, 0.0, 1.0])
    training = SeparableObjective(vectors, functions, theta)
    validation = SeparableObjective(vectors, functions, theta + 0.05 * vectors[:, 0])
    head = {"run": "a", "iteration": 0, "P": size, "N": 16, "weight_decay": 0.01, "zero_threshold": 1e-9}
    basis = PlainBasis(eigenvalues, vectors.astype(np.float32))
    tables = line_search.measure(
        training,
        validation,
        basis,
        theta,
        chosen("line_search", directions=6, loss_rise=1.0),
        head,
        short=(InFloat32(training), InFloat32(validation)) if short else None,
    )
    fits, lines = tables["line_fit"], tables["line_search"]
    assert fits["index"].tolist() == list(range(6))
    assert fits["form"].tolist() == ["quadratic", "cubic", "quadratic", "quadratic", "quartic", "quartic"]
    np.testing.assert_allclose(fits["curvature"], eigenvalues, atol=1e-6)
    np.testing.assert_allclose(fits["curvature_ratio"], 1, atol=1e-5)
    np.testing.assert_allclose(fits["gradient"], slopes, atol=1e-6)
    np.testing.assert_allclose(fits["gradient_decayed"], slopes + 0.01 * (vectors.T @ theta), atol=1e-6)
    assert fits["radius_positive"][1] == pytest.approx(0.1 * 1.0 / 0.8, rel=1e-3)
    assert (
        fits["radius_positive_status"].tolist() == ["censored", "measured", "censored", "censored"] + ["measured"] * 2
    )
    assert fits["minimum"][0] == pytest.approx(-0.05, abs=1e-6)
    assert fits["minimum_validation"][0] == pytest.approx(0.0, abs=1e-6)
    assert len(lines) == 6 * 2 * 61
    np.testing.assert_allclose(
        lines["decayed"] - lines["difference"],
        0.005 * (lines["t"] ** 2 + 2 * lines["t"] * (vectors.T @ theta)[lines["index"]]),
        atol=1e-6,
    )
    top = lines.where((lines["index"] == 0) & (lines["split"] == "train"))
    np.testing.assert_allclose(top["difference"], top["quadratic"], atol=1e-6)
    inside = np.isfinite(top["fitted"])
    np.testing.assert_array_equal(inside, np.abs(top["t"]) <= fits["form_reach"][0])
    assert inside.sum() > 55
    np.testing.assert_allclose(top["difference"][inside], top["fitted"][inside], atol=1e-6)
    assert (top["difference_low"] <= top["difference"]).all()
    # Both ends of every line are far above the floors of float32, and no point next to the centre is.
    ends = np.abs(lines["t"]) == np.repeat(fits["reach"], 2 * 61)
    assert (lines["rounding"][ends] > 1e-9).all() == short
    assert (lines["rounding"][~ends & (np.abs(lines["t"]) < 1e-2)] < 1e-12).all()


def separable(fourths: list[float], curvatures: list[float], slopes: list[float]):
    """A loss Σ gᵢt + ½λᵢt² + cᵢt⁴ in coordinates of eigenvectors, its basis, and a θ that is not 0."""
    size = len(curvatures)
    vectors = random_orthogonal(size, 3)
    functions = [
        lambda t, g=g, h=h, c=c: g * t + 0.5 * h * t**2 + c * t**4
        for g, h, c in zip(slopes, curvatures, fourths, strict=True)
    ]
    theta = vectors @ np.linspace(-4, 4, size)
    return SeparableObjective(vectors, functions, theta), PlainBasis(np.array(curvatures), vectors), theta


HEAD = {"run": "a", "iteration": 0, "P": 4, "N": 16, "weight_decay": 0.01, "zero_threshold": 1e-9}
CURVATURES = [4.0, 1.0, 0.1, -1.0]


@pytest.mark.parametrize("short", [False, True], ids=["float64", "float32 where that is enough"])
@pytest.mark.parametrize("fourth", [0.0, 1.0])
def test_radius_minimum_and_form_of_an_exact_model(fourth: float, short: bool) -> None:
    slopes = [-0.2, 0.0, 0.01, 0.05]
    loss, basis, theta = separable([fourth] * 4, CURVATURES, slopes)
    options = chosen("line_search", directions=4, loss_rise=1.0, reach=1.0)
    fits = line_search.measure(
        loss, loss, basis, theta, options, HEAD, short=(InFloat32(loss), InFloat32(loss)) if short else None
    )["line_fit"]
    assert fits["form"].tolist() == ["quartic" if fourth else "quadratic"] * 4
    for suffix, shift in (("", 0.0), ("_decayed", 0.01)):
        for side in ("positive", "negative"):
            name = f"radius{suffix}_{side}"
            if not fourth:  # a quadratic never ends
                assert set(fits[f"{name}_status"]) == {"censored"}
                np.testing.assert_array_equal(fits[name], fits["reach"])
                continue
            assert set(fits[f"{name}_status"]) == {"measured"}
            # c·t⁴ = 0.1·½|λ|t²
            expected = np.sqrt(TOLERANCE * 0.5 * np.abs(np.array(CURVATURES) + shift) / fourth)
            np.testing.assert_allclose(fits[name], expected, rtol=1e-3 if short else 1e-6)
    for row in range(3):
        roots = np.roots([4 * fourth, 0.0, CURVATURES[row], slopes[row]] if fourth else [CURVATURES[row], slopes[row]])
        (least,) = roots[np.abs(roots.imag) < 1e-12].real
        assert fits["minimum_low"][row] - 1e-4 <= least <= fits["minimum_high"][row] + 1e-4
        assert fits["minimum"][row] == pytest.approx(least, abs=1e-4)


@pytest.mark.parametrize("weight_decay", [0.0, 1.0 - 1e-4])
@pytest.mark.parametrize("slope", [0.0, 1e-3, 0.03, 3000.0])
@pytest.mark.parametrize("fourth", [0.0, 1e-3, 0.3])
def test_float32_is_used_only_where_its_error_is_small_beside_what_is_read_off(
    fourth: float, slope: float, weight_decay: float
) -> None:
    loss, basis, theta = separable([0.0, 0.0, 0.0, fourth], CURVATURES, [0.0, 0.0, 0.0, slope])
    q, t = basis.vectors(3, 4)[:, 0], grid(61, -1.0, 1.0, 1.0)
    short = InFloat32(loss)
    exact = SplitLosses(loss, theta, 2e-16, 0).along(q, t, -1.0, weight_decay)
    mixed = SplitLosses(loss, theta, 2e-16, 0, short).along(q, t, -1.0, weight_decay, keep=True)
    used = mixed.rounding > exact.rounding
    error = np.abs(mixed.mean - exact.mean)
    sizes = [read_off(place, rise, slope, -1.0, weight_decay) for place, rise in zip(t, exact.mean, strict=True)]
    assert (error[used] <= np.array(sizes)[used] / ROUNDINGS).all()
    assert (error[~used] == 0).all()
    # From the ends inwards, without a gap, and beside the centre never.
    half = len(t) // 2
    assert (np.diff(used[:half].astype(int)) <= 0).all()
    assert (np.diff(used[half:].astype(int)) >= 0).all()
    assert not used[half - 1 : half + 2].any()
    # Where a slope hides the curvature nothing is right enough, and beside λ̃ ≈ 0 only a departure.
    assert used.any() == (slope < 3000 and (weight_decay == 0 or fourth > 0))
    np.testing.assert_allclose(mixed.examples.mean(axis=1, dtype=np.float64), mixed.mean, rtol=1e-6, atol=1e-9)
    assert mixed.examples.dtype == np.float32


def test_what_is_not_finite_in_float32_is_evaluated_in_the_precision_asked_for() -> None:
    loss, basis, theta = separable([0.0] * 4, CURVATURES, [0.0] * 4)

    class Overflowing(InFloat32):
        def example_losses(self, point: np.ndarray) -> np.ndarray:
            found = super().example_losses(point)
            return np.where(np.linalg.norm(point - theta) > 0.5, np.inf, found)

    q, t = basis.vectors(0, 1)[:, 0], grid(61, 4.0, 1.0, 1.0)
    exact = SplitLosses(loss, theta, 2e-16, 0).along(q, t, 4.0, 0.0)
    mixed = SplitLosses(loss, theta, 2e-16, 0, Overflowing(loss)).along(q, t, 4.0, 0.0)
    np.testing.assert_array_equal(mixed.mean, exact.mean)
    np.testing.assert_array_equal(mixed.rounding, exact.rounding)


@pytest.mark.parametrize("points", [9, 11, 13, 41, 61])
def test_held_out_points_are_mirrored_and_reach_the_ends(points: int) -> None:
    testing = held_out(grid(points, 1.0, 1.0, 1.0))
    np.testing.assert_array_equal(testing, testing[::-1])
    assert testing[[1, -2]].all()
    assert not testing[[0, points // 2, -1]].any()
    assert testing.sum() >= 2
    assert (~testing).sum() >= 6


def test_no_minimum_is_claimed_among_rounding_errors() -> None:
    noise = np.random.default_rng(3).standard_normal(61) * 1e-15
    noise[[0, -1]] = 2e-15
    assert math.isnan(minimum(T, noise, 1e-15).value)


def test_forms_are_compared_over_the_same_rise_of_the_loss() -> None:
    rise = T**2 + 40 * T**4
    window = fit_window(T, rise, 1.0)
    assert np.abs(rise[window]).max() <= 1.0
    assert rise[window.stop] > 1.0
    assert window.start + window.stop == len(T)
    assert fit_window(T, rise, 1e3) == slice(0, 61)
    steep = fit_window(T, np.where(T == 0, 0.0, np.nan), 1.0)
    assert steep == slice(26, 35)


def test_an_excursion_between_two_points_is_found() -> None:
    t = grid(41, 1.0, 1.0, 1.0)[21:]
    # c₃t³ − c₄t⁴ departs by just over a tenth, comes back, and departs for good.
    third, fourth = 0.5, 1.24
    departure = third * t**3 - fourth * t**4
    assert (np.abs(departure) < 0.05 * t**2)[t < 0.3].all()
    found = quadratic_radius(t, departure, 1.0, np.zeros(20))
    roots = np.roots([-fourth, third, -0.05])
    assert found.value == pytest.approx(min(roots.real), rel=1e-6)
