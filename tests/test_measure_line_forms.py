"""Best forms of lines and their growth, from tables of line searches with planted lines."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from measure_cases import PlainBasis, SeparableObjective, chosen, random_orthogonal

from quadscape.measures.line_forms import compute as line_forms
from quadscape.measures.line_search import compute as line_search
from quadscape.measures.line_search.analysis import grid, held_out
from quadscape.tables import Table

SIDE = grid(61, 2.0, 1.0, 100.0)[31:]
HEAD = {"run": "a", "iteration": 40, "P": 6, "N": 16, "weight_decay": 0.0, "zero_threshold": 1e-9}


def searched(functions: Sequence[Callable], eigenvalues: Sequence[float]) -> dict[str, Table]:
    """Tables of line searches along eigenvectors of a loss that is these functions along each, and their forms."""
    size = len(functions)
    vectors = random_orthogonal(size, 4)
    theta = vectors @ np.full(size, 2.0)
    loss, basis = SeparableObjective(vectors, functions, theta), PlainBasis(np.array(eigenvalues), vectors)
    options = chosen("line_search", directions=size, loss_rise=1.0)
    tables = line_search.measure(loss, loss, basis, theta, options, HEAD)
    return tables | line_forms.measure(tables["line_search"], tables["line_fit"])


def test_every_line_has_a_best_form_with_its_error() -> None:
    def wavy(t: np.ndarray) -> np.ndarray:
        return t**2 + 0.02 * np.sin(40 * t) * np.tanh(8 * t) ** 3

    functions = [lambda t: 2 * t**2, lambda t: t**2 + 0.5 * t**3, wavy, lambda t: 0.5 * np.log1p(2 * t**2)]
    tables = searched(functions, [4.0, 2.0, 2.0, 2.0])
    forms, fits = tables["line_forms"], tables["line_fit"]
    assert forms["form"].tolist() == ["quadratic", "cubic", "none", "log"]
    np.testing.assert_array_equal(forms["form"], fits["form"])
    accepted = forms["form"] != "none"
    np.testing.assert_array_equal(forms["best_form"][accepted], forms["form"][accepted])
    assert (forms["best_error"][accepted] < 0.01).all()
    row = int(np.flatnonzero(~accepted)[0])
    errors = {name: fits[f"error_{name}"][row] for name in ("quadratic", "cubic", "log", "hyperbolic", "quartic")}
    assert forms["best_form"][row] == min(errors, key=lambda name: errors[name])
    assert forms["best_error"][row] == min(errors.values())
    # No form can follow the wave: what is missed is its size, over the spread of what is held out.
    lines = tables["line_search"]
    own = lines.where((lines["index"] == fits["index"][row]) & (lines["split"] == "train"))
    own = own.where(np.abs(own["t"]) <= fits["form_reach"][row])
    testing = held_out(own["t"])
    wave = (own["difference"] - own["t"] ** 2)[testing]
    expected = float(np.sqrt(np.mean(wave**2))) / float(own["difference"][testing].std())
    assert forms["best_error"][row] == pytest.approx(expected, rel=0.5)


def test_a_line_below_rounding_is_unresolved() -> None:
    forms = searched([lambda t: 0.0 * t, lambda t: t**2], [2.0, 2.0])["line_forms"]
    assert forms["best_form"].tolist() == ["unresolved", "quadratic"]
    assert math.isnan(forms["best_error"][0])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.5, 3.5])
def test_growth_beyond_the_radius(exponent: float, sign: float) -> None:
    # Quadratic up to 0.1, and a power of |t| beyond, tilted by a slope, which the even part has not.
    def power(t: np.ndarray) -> np.ndarray:
        size = np.abs(t)
        return 0.1 * t + sign * np.where(size < 0.1, size**2, 0.01 * (size / 0.1) ** exponent)

    forms = searched([power, lambda t: -1.5 * t**2], [sign * 2.0, -3.0])["line_forms"]
    assert forms["growth"][0] == pytest.approx(exponent, rel=1e-4)
    assert forms["growth_low"][0] == pytest.approx(forms["growth_high"][0], rel=1e-3)


def test_what_grows_by_no_one_power_has_a_wide_interval() -> None:
    value, low, high = line_forms.growth(SIDE, np.log1p(50 * SIDE**2) / 50, 1e-16)
    assert low < value < high
    assert 0 < value < 2
    assert high - low > 0.2


def test_what_does_not_grow_has_no_exponent() -> None:
    assert math.isnan(line_forms.growth(SIDE[-3:], SIDE[-3:] ** 2, 0.0)[0])  # too few points
    assert math.isnan(line_forms.growth(SIDE, -(SIDE**2) + 2 * SIDE**4, 0.0)[0])  # turns
    assert math.isnan(line_forms.growth(SIDE, SIDE**3, 1.0)[0])  # below the rounding floor
    assert math.isnan(line_forms.growth(SIDE, np.full(len(SIDE), np.nan), 0.0)[0])
    forms = searched([lambda t: t**2, lambda t: -(t**2)], [2.0, -2.0])["line_forms"]
    assert np.isnan(forms["growth"]).all()  # never leaves its quadratic
    assert np.isnan(forms["rise"]).all()


def test_points_below_the_floor_do_not_count() -> None:
    even = np.where(SIDE < 0.1, 1e-9, SIDE**1.5)
    value, low, high = line_forms.growth(SIDE, even, 1e-6)
    assert value == pytest.approx(1.5)
    assert low == pytest.approx(high)


def test_the_rise_at_the_radius() -> None:
    # t² + ct³ departs by a tenth of t² at |t| = 0.1/c on both sides.
    forms = searched([lambda t: t**2 + 0.5 * t**3, lambda t: 0.5 * t**2], [2.0, 1.0])["line_forms"]
    assert forms["rise"][0] == pytest.approx(0.2**2, rel=1e-3)
    assert math.isnan(forms["rise"][1])


def test_no_lines_give_an_empty_table() -> None:
    tables = searched([lambda t: t**2], [2.0])
    lines, fits = (tables[name].where(np.zeros(len(tables[name]), dtype=bool)) for name in ("line_search", "line_fit"))
    assert len(line_forms.measure(lines, fits)["line_forms"]) == 0
