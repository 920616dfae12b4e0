"""How rugged is the loss around a checkpoint? All scores of `SCORES`, in one table, with intervals.

Spectrum: exact, from the eigenbasis, or estimated where there is none. Sharpness: Keskar et al. (arXiv 1609.04836) and
Kwon et al. (arXiv 2102.11600) for balls that follow the sizes of parameters. Gradient noise: McCandlish et al. (arXiv
1812.06162). Random lines have filters as long as those of θ (Li et al., arXiv 1712.09913).
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.signal import find_peaks
from scipy.stats import binom

from quadscape.measures.intervals import jackknife, student
from quadscape.measures.job import Job
from quadscape.measures.members import columns_of
from quadscape.measures.ruggedness.declaration import GROWTH, KINDS, LINES, RAMP, RUGGEDNESS, SCORES
from quadscape.measures.ruggedness.probes import NOISE_HEAD, OF_BATCH, Probes
from quadscape.measures.ruggedness.spectral import Value, exact_scores
from quadscape.tables import Table

if TYPE_CHECKING:
    from quadscape.network.objective import Objective

FLAT = 0.1
"""Rise of the loss up to which a line counts as flat."""

_FAR = 10.0

_LINES, _PAIRS, _BATCHES = "lines, Student's t", "pairs of displacements, Student's t", "batches, Student's t"
_NOTHING = Value(math.nan, math.nan, math.nan, "", 0, ranked=False)


class Work:
    """The probes as items of a long measure."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @cached_property
    def _probes(self) -> Probes:
        job = self._job
        leading, values = job.basis.vectors(0, 1)[:, 0], job.basis.eigenvalues
        checkpoint = job.checkpoint
        return Probes(
            job.objective("train"),
            checkpoint.theta,
            leading,
            float(values[0]),
            checkpoint.weight_decay,
            job.options,
            job.epsilon,
        )

    @property
    def items(self) -> int:
        """Number of probes."""
        return len(self._probes.items)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Shape of the numbers of each probe."""
        return {"values": (self._probes.width,)}

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """Some of the probes."""
        return {"values": np.array([self._probes.values(item) for item in self._probes.items[part]])}

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """The tables from all of them."""
        spectrum = exact_scores(np.asarray(self._job.basis.eigenvalues))
        return tabulate(self._probes, values["values"], spectrum, self._job.options, self._job.head)


def compute(job: Job) -> dict[str, Table]:
    """The scores of one checkpoint, in one piece.

    Args:
        job: Reads checkpoint, data and eigenbasis.

    Returns:
        The tables of `tabulate`.
    """
    work = Work(job)
    return work.tables(work.measure(slice(0, work.items)))


def measure(
    objective: "Objective",
    theta: np.ndarray,
    spectrum: Mapping[str, Value],
    leading: np.ndarray,
    options: Any,
    attributes: Mapping[str, Any],
    *,
    epsilon: float = float(np.finfo(np.float64).eps),
    log: Any = None,
) -> dict[str, Table]:
    """The scores of a loss at θ.

    Args:
        objective: The training loss.
        theta: θ, shape (P,).
        spectrum: Scores of the spectrum: `quadscape.measures.ruggedness.spectral`.
        leading: q₁, shape (P,).
        options: Those of the measure.
        attributes: Head of the tables; weight_decay is δ.
        epsilon: Machine epsilon of the network's precision.
        log: Told after every probe which it was, and how many of how many are done.

    Returns:
        The tables of `tabulate`.
    """
    largest, decay = spectrum["largest"].value, float(attributes["weight_decay"])
    probes = Probes(objective, theta, leading, largest, decay, options, epsilon)
    rows = []
    for number, item in enumerate(probes.items):
        rows.append(probes.values(item))
        if log is not None:
            log(item, number + 1, len(probes.items))
    return tabulate(probes, np.array(rows), spectrum, options, attributes)


def tabulate(
    probes: Probes, rows: np.ndarray, spectrum: Mapping[str, Value], options: Any, attributes: Mapping[str, Any]
) -> dict[str, Table]:
    """Scores from the numbers of all probes.

    Args:
        probes: What they are of.
        rows: Their numbers, shape (items, width).
        spectrum: Scores of the spectrum.
        options: Those of the measure.
        attributes: Head of the tables.

    Returns:
        Tables `ruggedness`, `ruggedness_lines` and `ruggedness_growth`. Attributes: the options, with batch_size as it
        was taken, and batches.
    """

    def of(kind: str) -> np.ndarray:
        return np.array([row for item, row in zip(probes.items, rows, strict=True) if item.kind == kind])

    lines, t = of("line"), probes.places
    rises = lines[:, : len(t)]
    floor = float(lines[0, len(t)])
    noise = of("noise")[0, : NOISE_HEAD + probes.batches * (OF_BATCH + probes.batches)]
    constant, ramp = of("rate")[:, :2], of("ramp")[0, : 2 * RAMP].reshape(2, RAMP).T
    count = int(attributes["N"])
    found = dict(spectrum)
    found |= _mean_scores(of("mean")[:, : options.directions])
    found |= _worst_scores(of("worst")[:, :2])
    found |= line_scores(t, rises, floor)
    found |= noise_scores(noise, probes.batches, probes.batch_size, count)
    curvature = spectrum["largest"].value + float(attributes["weight_decay"])
    found |= rate_scores(constant, ramp, curvature)
    head = {
        **attributes,
        **{name: getattr(options, name) for name in ("directions", "points", "reach", "radius", "noise")},
        "batch_size": probes.batch_size,
        "batches": probes.batches,
    }
    return {
        "ruggedness": _score_table(found, head),
        "ruggedness_lines": Table(
            LINES,
            {
                "line": np.repeat(np.arange(len(rises)), len(t)),
                "t": np.tile(t, len(rises)),
                "rise": rises.ravel(),
            },
            head,
        ),
        "ruggedness_growth": _growth_table(constant, ramp, curvature, head),
    }


def _score_table(found: Mapping[str, Value], head: Mapping[str, Any]) -> Table:
    rows = [
        {
            "group": score.group,
            "score": name,
            "unit": score.unit,
            "value": found[name].value,
            "value_low": found[name].low,
            "value_high": found[name].high,
            "over": found[name].over,
            "repeats": found[name].repeats,
            "ranked": found[name].ranked and math.isfinite(found[name].value),
        }
        for name, score in SCORES.items()
    ]
    return Table(RUGGEDNESS, columns_of(rows, RUGGEDNESS.all_columns()), head)


def _growth_table(constant: np.ndarray, ramp: np.ndarray, curvature: float, head: Mapping[str, Any]) -> Table:
    rows = [
        {"test": test, "rate": rate, "scaled": rate * curvature / 2, "growth": growth}
        for test, tried in (("constant", constant), ("ramp", ramp))
        for rate, growth in tried.tolist()
        if math.isfinite(rate) and not math.isnan(growth)
    ]
    return Table(GROWTH, columns_of(rows, GROWTH.all_columns()), head)


def _mean_scores(rises: np.ndarray) -> dict[str, Value]:
    return {f"mean_rise_{kind}": Value(*student(row), _PAIRS, len(row)) for kind, row in zip(KINDS, rises, strict=True)}


def _worst_scores(rises: np.ndarray) -> dict[str, Value]:
    found = {}
    for kind, row in zip(KINDS, rises, strict=True):
        best = float(np.nanmax(row)) if not np.isnan(row).all() else math.nan
        found[f"worst_rise_{kind}"] = Value(best, best, math.nan, "a lower bound: the larger of two searches", 2)
    return found


def line_scores(t: np.ndarray, rises: np.ndarray, floor: float) -> dict[str, Value]:
    """Scores of random lines.

    Args:
        t: Places, ascending, shape (points,).
        rises: Loss above that at t = 0, shape (lines, points).
        floor: Rounding floor of a rise.

    Returns:
        flat_width, gradient_variance, minima, total_variation and excess_variation. Lines with a loss that is not
        finite count for flat_width alone.
    """
    length, finite = float(t[-1] - t[0]), np.isfinite(rises).all(axis=1)
    whole = rises[finite]
    steps = np.diff(whole, axis=1)
    variation = np.abs(steps).sum(axis=1)
    well = whole[:, 0] + whole[:, -1] - 2 * whole.min(axis=1, initial=math.inf)
    # A line that stays within rounding has no wells, as has one without any descent towards its lowest point.
    excess = variation[well > floor] / well[well > floor]
    minima = [len(find_peaks(-row, prominence=2 * floor)[0]) for row in whole]

    def mean(values: Any) -> Value:
        return Value(*student(np.asarray(values, dtype=np.float64)), _LINES, len(values))

    return {
        "flat_width": median_interval(np.array([flat_width(t, row) for row in rises]), length),
        "gradient_variance": mean((steps / np.diff(t)).var(axis=1)),
        "minima": mean(np.array(minima) / length),
        "total_variation": mean(variation / length),
        "excess_variation": mean(excess),
    }


def flat_width(t: np.ndarray, rise: np.ndarray) -> float:
    """Length of the piece around t = 0 on which the loss is nowhere more than `FLAT` from its centre.

    Args:
        t: Places, ascending, with 0 in the middle, shape (points,).
        rise: Loss above that at t = 0.

    Returns:
        The length, interpolated between points; that of the whole line where it never leaves.
    """
    middle, total = len(t) // 2, 0.0
    for side in (slice(middle, None), slice(middle, None, -1)):
        places, away = np.abs(t[side]), np.abs(rise[side])
        out = np.flatnonzero(~(away <= FLAT))
        if not len(out):
            total += float(places[-1])
            continue
        k = int(out[0])
        share = (FLAT - away[k - 1]) / (away[k] - away[k - 1]) if math.isfinite(away[k]) else 0.0
        total += float(places[k - 1] + share * (places[k] - places[k - 1]))
    return total


def median_interval(values: np.ndarray, most: float) -> Value:
    """A median with the interval between two order statistics.

    Args:
        values: Independent values, shape (n,).
        most: What values are censored at: as upper end it stands for infinity.

    Returns:
        The median; the ends hold it with at least 95 %, or are infinite where n is too small for that.
    """
    ordered, count = np.sort(values), len(values)
    # The smallest number that 2.5 % of samples have below the median, or fewer.
    place = int(binom.ppf(0.025, count, 0.5))
    low, high = (float(ordered[place - 1]), float(ordered[count - place])) if place else (0.0, math.inf)
    over = "lines, order statistics of the median"
    return Value(float(np.median(ordered)), low, math.inf if high >= most else high, over, count)


def noise_scores(numbers: np.ndarray, batches: int, size: int, count: int) -> dict[str, Value]:
    """Scores of gradient noise.

    Batches are drawn without replacement: E|g_b − g|² = (1/B − 1/N) N/(N − 1) tr C, C divided by N.

    Args:
        numbers: What `Probes` gives: `NOISE_HEAD` numbers, `OF_BATCH` of each batch, and the cosines of all pairs.
        batches: Number of batches.
        size: B.
        count: N.

    Returns:
        cosine, the noise scales and norm_variation. The whole gradient is exact on this training set, so that the
        intervals are those of tr C and tr(HC). A scale is not ranked where the gradient is no longer than its own
        error as that of a population, √(tr C / N).
    """
    names = ("noise_scale", "noise_scale_decayed", "curvature_noise_scale", "curvature_noise_scale_decayed")
    if batches < 2 or size >= count:
        return dict.fromkeys(("cosine", *names, "norm_variation"), _NOTHING)
    norm, norm_decayed, curved, curved_decayed = numbers[:NOISE_HEAD]
    end = NOISE_HEAD + batches * OF_BATCH
    square, product, lengths, _ = numbers[NOISE_HEAD:end].reshape(batches, OF_BATCH).T
    to_single = 1 / ((1 / size - 1 / count) * count / (count - 1))
    covariance = student(to_single * square)
    curvature = student(to_single * product)
    error = covariance[0] / count

    def scale(numerator: tuple[float, float, float], denominator: float, length: float) -> Value:
        if not denominator > 0:
            return Value(math.nan, math.nan, math.nan, _BATCHES, batches, ranked=False)
        return Value(*numerator, _BATCHES, batches, ranked=length > error).times(1 / denominator)

    return {
        "cosine": mean_cosine(numbers[end:].reshape(batches, batches)),
        "noise_scale": scale(covariance, norm, norm).above(0.0),
        "noise_scale_decayed": scale(covariance, norm_decayed, norm_decayed).above(0.0),
        "curvature_noise_scale": scale(curvature, curved, norm),
        "curvature_noise_scale_decayed": scale(curvature, curved_decayed, norm_decayed),
        "norm_variation": norm_variation(lengths),
    }


def mean_cosine(cosines: np.ndarray) -> Value:
    """Mean over pairs of different batches, with the jackknife over batches.

    Args:
        cosines: Of all pairs, shape (n, n).

    Returns:
        The mean; the interval needs three batches.
    """
    count = len(cosines)
    off = cosines - np.diag(np.diag(cosines))
    total, own = float(off.sum()), off.sum(axis=1)
    mean = total / (count * (count - 1))
    without = (total - 2 * own) / ((count - 1) * (count - 2)) if count > 2 else np.full(count, math.nan)
    return _jackknifed(mean, without)


def norm_variation(lengths: np.ndarray) -> Value:
    """Relative variance Var|g_b| / (mean |g_b|)² over batches, with the jackknife over them.

    Args:
        lengths: Norms, shape (n,).

    Returns:
        The relative variance; the interval needs three batches.
    """

    def relative(values: np.ndarray) -> float:
        middle = float(values.mean())
        return float(values.var(ddof=1)) / middle**2 if middle > 0 else math.nan

    without = [relative(np.delete(lengths, k)) for k in range(len(lengths))] if len(lengths) > 2 else [math.nan]
    return _jackknifed(relative(lengths), np.array(without)).above(0.0)


def _jackknifed(value: float, without: np.ndarray) -> Value:
    return Value(value, *jackknife(value, without), "batches, jackknife", len(without))


def rate_scores(constant: np.ndarray, ramp: np.ndarray, curvature: float) -> dict[str, Value]:
    """Where displacements along q₁ begin to grow.

    Args:
        constant: Rates and growth of some steps at each, shape (rates, 2).
        ramp: Rates and growth of the steps of a ramp, shape (steps, 2).
        curvature: λ₁ + δ.

    Returns:
        limit, limit_ratio and ramp_limit: interpolated between the first rate at which they grow and the one before;
        the interval is between these two. Beyond, both runs may come to lie where the loss is flatter, and the
        displacement shrinks again.
    """
    over = "between two rates tried"
    limit = Value(*crossing(constant), over)
    return {
        "limit": limit,
        "limit_ratio": limit.times(curvature / 2),
        "ramp_limit": Value(*crossing(ramp), over),
    }


def crossing(tried: np.ndarray) -> tuple[float, float, float]:
    """The rate at which growth first passes 1, interpolated linearly, as |1 − ηλ̃| is beyond 1/λ̃.

    Args:
        tried: Rates, ascending, and growth, NaN where there is none, shape (n, 2).

    Returns:
        The rate, and those on both sides of it. Growth at every rate leaves the lower end at 0, none the upper one
        infinite, and then there is no value.
    """
    rates, growth = tried[~np.isnan(tried[:, 1])].T
    if not len(rates):
        return (math.nan,) * 3
    above = growth > 1
    if not above.any():
        return math.nan, float(rates[-1]), math.inf
    place = int(np.argmax(above))
    if place == 0:
        return math.nan, 0.0, float(rates[0])
    low, high = float(rates[place - 1]), float(rates[place])
    # Far beyond the limit growth is no longer that of the displacement.
    before, after = float(growth[place - 1]), min(float(growth[place]), _FAR)
    return low + (high - low) * (1 - before) / (after - before), low, high
