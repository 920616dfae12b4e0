"""How quadratic is a line? Its grid, form, minimum, curvature and quadratic radius, from plain arrays.

They take a grid t, the rise ΔL of the loss at it, and the rounding floor below which a difference of losses means
nothing. Nothing is claimed below that floor.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import least_squares

from quadscape.measures.interfaces import ObjectiveLike, as_array
from quadscape.measures.line_search.declaration import HELD_OUT_ERROR, PARAMETERS, TOLERANCE

CLUSTERING = 6.0
"""The grid is sinh-spaced, t ∝ sinh(CLUSTERING · u): about three decades of |t| on each side."""

RESOLUTION = 10.0
"""A difference of losses is used only where it is to be told from zero by this many rounding floors."""


def grid(points: int, eigenvalue: float, loss_rise: float, limit: float) -> np.ndarray:
    """A symmetric grid of t, dense near 0.

    Args:
        points: Odd number of points.
        eigenvalue: λ; ½|λ|t² reaches `loss_rise` at the ends, unless the limit comes first.
        loss_rise: Rise of the loss.
        limit: Largest |t| allowed, a fraction of |θ|; 0 (θ = 0 has no scale) for no limit.

    Returns:
        Ascending, antisymmetric t of shape (points,), with 0 in the middle.
    """
    reach = limit if limit > 0 else math.inf
    if eigenvalue != 0:
        reach = min(reach, math.sqrt(2 * loss_rise / abs(eigenvalue)))
    reach = reach if math.isfinite(reach) else 1.0
    half = (points - 1) // 2
    side = reach * np.sinh(CLUSTERING * np.arange(1, half + 1) / half) / math.sinh(CLUSTERING)
    return np.concatenate([-side[::-1], [0.0], side])


def scan(
    losses: Callable[[np.ndarray], Any], theta: np.ndarray, direction: np.ndarray, t: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean differences of losses along a line.

    Args:
        losses: Per-example losses at a point of parameter space, shape (N,).
        theta: θ, shape (P,).
        direction: Unit vector q, shape (P,).
        t: Points, shape (T,).
        centre: Per-example losses at t = 0.

    Returns:
        Mean difference and its standard error over examples, float64 of shape (T,) each; exactly 0 at t = 0.
    """
    mean, error = np.zeros(len(t)), np.zeros(len(t))
    for position, value in enumerate(t):
        if value == 0:
            continue
        difference = as_array(losses(theta + value * direction)) - centre
        mean[position] = difference.mean()
        error[position] = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else np.nan
    return mean, error


def rounding_floor(
    objective: ObjectiveLike, theta: np.ndarray, gradient: np.ndarray, epsilon: float, seed: int, samples: int = 8
) -> float:
    """What a difference of losses is worth: its largest error under displacements of the size of θ's own rounding.

    Args:
        objective: The loss.
        theta: θ, float64, shape (P,).
        gradient: Its gradient there.
        epsilon: Machine epsilon of the network's dtype.
        seed: Seed of the displacements.
        samples: Number of displacements.

    Returns:
        The largest |ΔL − gᵀd| over random d with |d| = ε|θ|, and at least ε times the loss over √N.
    """
    generator = np.random.default_rng(seed)
    centre = as_array(objective.example_losses(theta))
    least = epsilon * float(np.abs(centre).mean()) / math.sqrt(len(centre))
    worst = 0.0
    for _ in range(samples):
        step = generator.standard_normal(len(theta))
        step *= epsilon * max(float(np.linalg.norm(theta)), np.finfo(float).tiny) / np.linalg.norm(step)
        rise = float((as_array(objective.example_losses(theta + step)) - centre).mean())
        worst = max(worst, abs(rise - float(gradient @ step)))
    return max(worst, least)


def second_derivative(t: np.ndarray, rise: np.ndarray, floor: float | np.ndarray) -> tuple[float, float]:
    """f″(0) from the values of f on a symmetric grid.

    The even part is 2(f(t) + f(−t))/2t² = f″ + f⁗t²/12 + …; the second term is removed with the point at twice the
    position on the grid (Richardson), and the pair is taken whose estimated error is least.

    Args:
        t: Symmetric grid with 0 in the middle.
        rise: f(t) − f(0).
        floor: Rounding floor of `rise`, of all points or of each.

    Returns:
        f″(0) and its estimated error; NaN and infinity if no pair of points is finite.
    """
    half = len(t) // 2
    side = t[half + 1 :]
    with np.errstate(invalid="ignore", over="ignore"):
        even = (rise[half + 1 :] + rise[:half][::-1]) / side**2
    floors = np.broadcast_to(floor, np.shape(t))
    worst = np.maximum(floors[half + 1 :], floors[:half][::-1])
    near = np.arange(half // 2)
    far = 2 * near + 1
    worst = np.maximum(worst[near], worst[far])
    squares = (side[far] / side[near]) ** 2
    with np.errstate(invalid="ignore", over="ignore"):
        estimate = (squares * even[near] - even[far]) / (squares - 1)
        steps = np.abs(np.diff(estimate))
        truncation = np.maximum(np.append(steps, 0), np.insert(steps, 0, 0))
        error = truncation + 2 * worst / side[near] ** 2 * (squares + 1) / (squares - 1)
    error = np.where(np.isfinite(error), error, np.inf)
    best = int(np.argmin(error))
    return (float(estimate[best]), float(error[best])) if np.isfinite(error[best]) else (math.nan, math.inf)


@dataclass(frozen=True)
class Fit:
    """One form fitted to a line.

    Attributes:
        form: Its name, a key of `PARAMETERS`, or `none` or `unresolved`.
        error: Root mean square of the residuals on held-out points over the standard deviation of the values there.
        coefficients: c₀ … c₄; c₀ is the offset of any form.
        amplitude: a, NaN for polynomials.
        centre: t₀, NaN for polynomials.
        width: w, NaN for polynomials.
    """

    form: str
    error: float
    coefficients: tuple[float, ...] = (math.nan,) * 5
    amplitude: float = math.nan
    centre: float = math.nan
    width: float = math.nan

    def __call__(self, t: np.ndarray) -> np.ndarray:
        """The form's values at t; NaN for `none` and `unresolved`."""
        if self.form not in PARAMETERS:
            return np.full(np.shape(t), np.nan)
        if self.form in _SHAPES:
            shape = _SHAPES[self.form](np.square((t - self.centre) / self.width))
            return self.coefficients[0] + self.amplitude * shape
        return np.polynomial.polynomial.polyval(t, self.coefficients)


_SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log": np.log1p,
    # x/(√(1+x)+1) is √(1+x) − 1 without its cancellation at small x.
    "hyperbolic": lambda x: x / (np.sqrt(1 + x) + 1),
}


def finite_part(finite: np.ndarray) -> slice:
    """The part of a symmetric grid around its centre in which all is finite.

    Args:
        finite: Whether the value at each point is, shape (T,), T odd.

    Returns:
        Points, as many on either side; empty where the centre is not finite.
    """
    half = len(finite) // 2
    both = finite & finite[::-1]
    reach = int(np.argmin(np.append(both[half:], False))) - 1
    return slice(half - reach, half + reach + 1)


def held_out(t: np.ndarray) -> np.ndarray:
    """Which points of a symmetric grid test the fits: every third from next to the ends inwards, mirrored, never 0."""
    half = len(t) // 2
    distance = np.abs(np.arange(len(t)) - half)
    # From the ends: values are largest there, and an error relative to a spread without them would say nothing.
    return ((half - distance) % 3 == 1) & (distance > 0)


def fit_window(t: np.ndarray, rise: np.ndarray, loss_rise: float) -> slice:
    """The part of a line over which forms are compared: around 0, as far as |f(t) − f(0)| ≤ `loss_rise` on both sides.

    Where the loss outgrows its quadratic the ends of the grid lie far above the rise that it was made for, and forms
    would be judged by those ends alone, and by others in every direction.

    Args:
        t: Symmetric grid with 0 in the middle.
        rise: f(t) − f(0).
        loss_rise: Largest change of the loss.

    Returns:
        A symmetric slice of the grid, of at least nine points.
    """
    half = len(t) // 2
    with np.errstate(invalid="ignore"):
        beyond = ~(np.abs(rise) <= loss_rise)
    outside = np.flatnonzero(beyond[half + 1 :] | beyond[:half][::-1])
    reach = max(4, int(outside[0]) if len(outside) else half)
    return slice(half - reach, half + reach + 1)


def fit_forms(t: np.ndarray, rise: np.ndarray) -> dict[str, Fit]:
    """Fits every form to the points that are not held out.

    Args:
        t: Symmetric grid with 0 in the middle.
        rise: f(t) − f(0); points that are not finite are left out.

    Returns:
        A fit for each key of `PARAMETERS`; error infinity where there are too few finite points.
    """
    finite, testing = np.isfinite(rise), held_out(t)
    fitting, testing = finite & ~testing, finite & testing
    scale_t, scale_y = float(np.abs(t).max()), float(np.abs(rise[finite]).max())
    spread = float(rise[testing].std()) if testing.any() else 0.0
    if np.count_nonzero(fitting) < 6 or np.count_nonzero(testing) < 2 or spread == 0 or scale_y == 0:
        return {form: Fit(form, math.inf) for form in PARAMETERS}
    s, y = t[fitting] / scale_t, rise[fitting] / scale_y
    fits = {}
    for form, count in PARAMETERS.items():
        if form in _SHAPES:
            offset, amplitude, centre, width = _fit_shape(s, y, _SHAPES[form])
            rest = (math.nan,) * 4
            fit = Fit(form, 0.0, (offset * scale_y, *rest), amplitude * scale_y, centre * scale_t, width * scale_t)
        else:
            powers = np.arange(5)
            solution = np.linalg.lstsq(np.vander(s, count, increasing=True), y, rcond=None)[0]
            fit = Fit(form, 0.0, tuple(np.append(solution, np.zeros(5 - count)) * scale_y / scale_t**powers))
        error = float(np.sqrt(np.mean(np.square(fit(t[testing]) - rise[testing])))) / spread
        fits[form] = Fit(form, error, fit.coefficients, fit.amplitude, fit.centre, fit.width)
    return fits


def _fit_shape(
    s: np.ndarray, y: np.ndarray, shape: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float, float, float]:
    """Least squares of c + a·shape((s − s₀)²/w²); c and a are linear, so only s₀ and log w are searched."""

    def linear(parameters: np.ndarray) -> tuple[float, float, np.ndarray]:
        values = shape(np.square((s - parameters[0]) / math.exp(parameters[1])))
        centred = values - values.mean()
        norm = float(centred @ centred)
        amplitude = float(centred @ y) / norm if norm > 0 else 0.0
        offset = float(y.mean() - amplitude * values.mean())
        return offset, amplitude, offset + amplitude * values - y

    lower, upper = np.array([-10.0, math.log(1e-3)]), np.array([10.0, math.log(1e2)])
    starts = [np.array([c, w]) for c in np.linspace(-1.5, 1.5, 25) for w in np.log(np.geomspace(3e-3, 30, 13))]
    starts.sort(key=lambda p: float(np.square(linear(p)[2]).sum()))

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return linear(parameters)[2]

    found = [
        least_squares(residuals, start, bounds=(lower, upper), x_scale=(0.1, 0.3), xtol=1e-14, ftol=1e-14, gtol=1e-14)
        for start in starts[:3]
    ]
    best = min(found, key=lambda result: result.cost).x
    offset, amplitude, _ = linear(best)
    return offset, amplitude, float(best[0]), math.exp(best[1])


def choose_form(fits: Mapping[str, Fit], rise: np.ndarray, floor: float) -> Fit:
    """The simplest form that predicts held-out points.

    Args:
        fits: From `fit_forms`.
        rise: The values fitted.
        floor: Their rounding floor.

    Returns:
        Of the forms with error below `HELD_OUT_ERROR` the one with fewest parameters, of equals the one with the
        smallest error. A fit called `unresolved` if the values do not rise far enough above the floor to tell, and
        `none` if no form is good enough (its error is then the best).
    """
    spread = float(np.nanstd(np.where(np.isfinite(rise), rise, np.nan)))
    if spread * HELD_OUT_ERROR < floor:
        return Fit("unresolved", math.nan)
    good = [fit for fit in fits.values() if fit.error < HELD_OUT_ERROR]
    if not good:
        return Fit("none", min(fit.error for fit in fits.values()))
    return min(good, key=lambda fit: (PARAMETERS[fit.form], fit.error))


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: The number.
        low: Lower end.
        high: Upper end.
        status: For radii, see the columns of `FITS`.
    """

    value: float
    low: float
    high: float
    status: str = "measured"


def minimum(t: np.ndarray, rise: np.ndarray, floor: float | np.ndarray) -> Estimate:
    """Where a line is least, from the cubic spline through its points.

    Args:
        t: Ascending grid.
        rise: Values; points that are not finite are left out.
        floor: Rounding floor of the values, of all points or of each.

    Returns:
        The place with the interval within which the spline rises by less than the floor (in second order); NaN where
        the least value is at an end of the grid, or not told from it.
    """
    nothing = Estimate(math.nan, math.nan, math.nan)
    finite = np.isfinite(rise)
    if np.count_nonzero(finite) < 4:
        return nothing
    t, rise, floors = t[finite], rise[finite], np.broadcast_to(floor, t.shape)[finite]
    spline = CubicSpline(t, rise)
    places = spline.derivative().roots(extrapolate=False)
    places = places[np.isfinite(places)]
    places = places[spline(places, 2) > 0]
    if len(places) == 0:
        return nothing
    values = spline(places)
    best = float(places[np.argmin(values)])
    # What a point moves the spline by falls by 2 − √3 with every knot from it on, and the floor enters as its root.
    knots = np.maximum(np.abs(np.arange(len(t)) - np.searchsorted(t, best) + 0.5) - 0.5, 0)
    around = float((floors * (2 - math.sqrt(3)) ** (2 * knots)).max())
    end = min((0, -1), key=lambda place: float(rise[place]))
    if values.min() > rise[end] - RESOLUTION * max(around, float(floors[end])):
        return nothing
    width = math.sqrt(2 * around / float(spline(best, 2)))
    return Estimate(best, best - width, best + width)


def quadratic_radius(t: np.ndarray, departure: np.ndarray, curvature: float, floor: np.ndarray) -> Estimate:
    """The smallest |t| at which a line departs from its quadratic by the tolerance.

    Args:
        t: Distances of one side, positive and ascending.
        departure: ΔL − gt − ½λt² at them; what is not finite counts as departed.
        curvature: λ or λ̃; the tolerance is `TOLERANCE`·½|curvature|t².
        floor: Rounding floor of the departure at each point.

    Returns:
        The first crossing of the spline through departure/tolerance (exact for departures up to the fifth order, and
        not blind to what lies between two points), with the points around it as interval. Its status is described in
        the columns of `FITS`.
    """
    allowed = TOLERANCE * 0.5 * abs(curvature) * t**2
    usable = (allowed >= RESOLUTION * floor) & (allowed > 0)
    if not usable.any():
        return Estimate(math.nan, 0.0, math.inf, "unresolved")
    t, ratio = t[usable], departure[usable] / allowed[usable]
    overflown = np.flatnonzero(~np.isfinite(ratio))
    end = int(overflown[0]) if len(overflown) else len(t)
    if end == 0 or abs(ratio[0]) >= 1:
        return Estimate(float(t[0]), 0.0, float(t[0]), "bounded")
    crossings = _crossings(t[:end], ratio[:end])
    if not len(crossings) and end == len(t):
        return Estimate(float(t[-1]), float(t[-1]), math.inf, "censored")
    if not len(crossings):
        return Estimate(float(t[end - 1]), float(t[end - 1]), float(t[end]))
    value = float(crossings[0])
    after = min(max(int(np.searchsorted(t, value)), 1), end - 1)
    return Estimate(value, float(t[after - 1]), float(t[after]))


def _crossings(t: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Where a ratio first passes ±1, from the spline through its points: it may do so, and come back, between two."""
    if len(t) < 2:
        return np.empty(0)
    spline = CubicSpline(t, ratio)
    roots = np.concatenate([spline.solve(level, extrapolate=False) for level in (1.0, -1.0)])
    return np.sort(roots[np.isfinite(roots)])


@dataclass(frozen=True)
class Centre:
    """What is known of a line at t = 0, not from its grid.

    Attributes:
        gradient: Slope gᵀq.
        curvature: qᵀHq.
        eigenvalue: λ as stored, for f″(0)/λ.
        position: θᵀq.
    """

    gradient: float
    curvature: float
    eigenvalue: float
    position: float


def analyse(
    t: np.ndarray,
    rise: np.ndarray,
    centre: Centre,
    rounding: np.ndarray | None = None,
    *,
    weight_decay: float,
    loss_rise: float,
    floor: float,
    epsilon: float,
) -> tuple[dict[str, Any], Fit]:
    """Everything that one line of the training loss says.

    Args:
        t: Symmetric grid with 0 in the middle, shape (T,).
        rise: ΔL at it, exactly 0 in the middle.
        centre: What is known at t = 0.
        rounding: Rounding floor of each value, where some are of less precision than the others, and right to a small
            part of what radii and forms read off them; None: `floor`.
        weight_decay: δ.
        loss_rise: Largest change of the loss over which forms are compared.
        floor: Rounding floor of `rise` near t = 0.
        epsilon: Machine epsilon of the network's dtype; large losses round in proportion.

    Returns:
        Values of the columns of `FITS` that depend on the training line, and the form chosen.
    """
    half, gradient, curvature = len(t) // 2, centre.gradient, centre.curvature
    decayed = rise + decay_rise(t, centre.position, weight_decay)
    floors = floor + epsilon * (np.abs(np.where(np.isfinite(rise), rise, 0.0)) + np.abs(gradient * t))
    rounding = np.full(len(t), floor) if rounding is None else rounding
    second, error = second_derivative(t, rise, rounding)
    window = fit_window(t, rise, loss_rise)
    fits = fit_forms(t[window], rise[window])
    chosen = choose_form(fits, rise[window], floor)
    row: dict[str, Any] = {
        "gradient": gradient,
        "gradient_decayed": gradient + weight_decay * centre.position,
        "curvature": curvature,
        "reach": float(t[-1]),
        "floor": floor,
        "form": chosen.form,
        "form_reach": float(t[window][-1]),
        "amplitude": chosen.amplitude,
        "centre": chosen.centre,
        "width": chosen.width,
        "newton": -gradient / curvature if curvature > 0 else math.nan,
    }
    total = curvature + weight_decay
    row["newton_decayed"] = -row["gradient_decayed"] / total if total > 0 else math.nan
    row |= {f"error_{form}": fit.error for form, fit in fits.items()}
    row |= {f"coefficient_{k}": value for k, value in enumerate(chosen.coefficients)}
    ratio = spread = math.nan
    if centre.eigenvalue != 0:
        ratio, spread = second / centre.eigenvalue, error / abs(centre.eigenvalue)
    enter_estimate(row, "curvature_ratio", Estimate(ratio, ratio - spread, ratio + spread))
    enter_estimate(row, "minimum", minimum(t, rise, rounding))
    enter_estimate(row, "minimum_decayed", minimum(t, decayed, rounding))
    ends = rise[[0, -1]] - gradient * t[[0, -1]]
    row["asymmetry"] = float((ends[1] - ends[0]) / np.abs(ends).sum()) if np.abs(ends).sum() > 2 * floor else math.nan
    departure = rise - gradient * t - 0.5 * curvature * t**2
    for suffix, scale in (("", curvature), ("_decayed", total)):
        for side, select in (("positive", slice(half + 1, None)), ("negative", slice(half - 1, None, -1))):
            found = quadratic_radius(np.abs(t[select]), departure[select], scale, floors[select])
            enter_estimate(row, f"radius{suffix}_{side}", found)
            row[f"radius{suffix}_{side}_status"] = found.status
    return row, chosen


def decay_rise(t: np.ndarray, position: float | np.ndarray, weight_decay: float) -> np.ndarray:
    """(δ/2)(|θ + tq|² − |θ|²) for a unit vector q with θᵀq = `position`."""
    return weight_decay * (t * position + 0.5 * t**2)


def enter_estimate(row: dict[str, Any], name: str, estimate: Estimate) -> None:
    """Adds the three columns of an estimate to a row."""
    row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
