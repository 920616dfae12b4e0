"""Where do single batches see the minimum along an eigenvector? From lines that were searched; no loss is evaluated.

The loss of a batch along θ + tq is the mean of its examples' losses, which the line searches keep, so that any number
of batches of any size follow from one line. With weight decay δ what a batch minimises is L̃_b = L_b + (δ/2)|θ|², whose
added part, δ(tθᵀq + t²/2), is the same for all batches; rows for L_b alone stand beside.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.sparse import csr_array
from scipy.stats import kurtosis, rankdata, shapiro

from quadscape.measures.batches import batch_sizes, draw
from quadscape.measures.discoveries import discoveries
from quadscape.measures.finite_batch.declaration import GAUSSIAN_CURVATURE, MINIMA, NOISE
from quadscape.measures.finite_batch.minima import LEAST_POINTS, Minima, derivatives, minima, thinned
from quadscape.measures.interfaces import merged
from quadscape.measures.job import Job, KeptValues
from quadscape.measures.line_search.analysis import decay_rise, finite_part
from quadscape.measures.line_search.declaration import EXAMPLES, FITS, LINES
from quadscape.measures.members import columns_of
from quadscape.tables import Table

REPLICATES = 200
"""Bootstrap replicates over batches."""

QUARTILES, GAUSSIAN_QUARTILES = (0.25, 0.75), 1.3489795
"""Interquartile range of a Gaussian of standard deviation 1."""

TAILS, GAUSSIAN_TAIL = (0.025, 0.975), 2.9058372
"""Its middle 95 % over its interquartile range."""

CURVATURE_ERROR = 0.01
"""Rounding may change a batch's curvature by about this part of λ; points that lie closer are left out."""


def compute(job: Job) -> dict[str, Table]:
    """Minima of batches along the lines of one checkpoint.

    Args:
        job: Reads checkpoint and line searches, with what they keep.

    Returns:
        The tables of `measure`.
    """
    lines, fits = job.table("line_search", LINES), job.table("line_search", FITS)
    kept = job.kept_values("line_search", EXAMPLES)
    batch_size = (job.training or {}).get("batch_size")
    return measure(lines, fits, kept, job.options.batches, batch_size)


def measure(
    lines: Table,
    fits: Table,
    kept: KeptValues | np.ndarray,
    batches: int,
    batch_size: int | None = None,
    seed: int = 0,
) -> dict[str, Table]:
    """Minima of batches.

    Args:
        lines: `line_search`.
        fits: `line_fit` of the same checkpoint.
        kept: Differences ℓₙ(θ + tq) − ℓₙ(θ), shape (lines, points, N), in the order of `fits`.
        batches: Batches of each direction and size.
        batch_size: That of the training, one of the sizes; None: it is not known.
        seed: Of the batches and of the bootstrap.

    Returns:
        Tables `finite_batch` and `line_noise`, with the attributes of `fits`.
    """
    count = int(kept.shape[2])
    sizes = batch_sizes(count, batch_size)
    rows: list[dict[str, Any]] = []
    noise: dict[str, list[float]] = {}
    slopes = np.zeros((len(fits), count))
    weight_decay = float(fits.attributes["weight_decay"])
    which = {name: fits[name] for name in ("index", "sign", "rank", "eigenvalue", "is_zero")}
    for place in range(len(fits)):
        line = _Line.of(lines, fits, place, np.asarray(kept[place], dtype=np.float64), weight_decay)
        slopes[place], curvatures = line.slopes, line.curvatures
        for name, value in _noise(line.slopes, curvatures).items():
            noise.setdefault(name, []).append(value)
        direction = {name: values[place].item() for name, values in which.items()}
        own = (seed, int(fits["index"][place]))
        # Of both losses the same batches.
        several = {size: of_batches(line.values, draw(count, size, batches, (*own, size))) for size in sizes}
        for decayed in (True, False) if weight_decay else (True,):
            rows += [{**direction, "decayed": decayed, **row} for row in line.rows(several, decayed, own)]
    rejected = discoveries(np.array([row["p_normal"] for row in rows]), np.ones(len(rows), dtype=bool))
    rows = [{**row, "not_normal": bool(one)} for row, one in zip(rows, rejected, strict=True)]
    head = merged(fits.attributes, batches=batches, training_batch_size=int(batch_size or 0))
    values = {name: np.array(noise.get(name, []), dtype=np.float64) for name in _NOISE}
    values |= {**which, "cross": _cross(slopes)}
    return {
        "finite_batch": Table(MINIMA, columns_of(rows, MINIMA.all_columns()), head),
        "line_noise": Table(NOISE, values, merged(head, chance_cross=1 / math.sqrt(count))),
    }


def of_batches(values: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """Lines of batches.

    Args:
        values: Of single examples, float64, shape (points, N).
        batches: Indices, shape (M, B).

    Returns:
        Means, shape (points, M).
    """
    number, size = batches.shape
    starts = np.arange(0, number * size + 1, size)
    mean = csr_array((np.full(number * size, 1 / size), batches.ravel(), starts), shape=(number, values.shape[1]))
    return np.asarray((mean @ values.T).T)


@dataclass(frozen=True)
class _Line:
    """One line of all examples.

    Attributes:
        t: Points at which all of them are finite, with 0 in the middle, shape (T,).
        values: Differences of single examples, shape (T, N).
        slopes: gₙᵀq.
        curvatures: hₙ.
        gradient: gᵀq, from the gradient itself.
        curvature: qᵀHq, from one product.
        position: θᵀq.
        floor: Rounding floor of the mean of all examples' differences.
        weight_decay: δ.
        is_zero: Whether λ is within the numerical zero.
    """

    t: np.ndarray
    values: np.ndarray
    slopes: np.ndarray
    curvatures: np.ndarray
    gradient: float
    curvature: float
    position: float
    floor: float
    weight_decay: float
    is_zero: bool

    @classmethod
    def of(cls, lines: Table, fits: Table, place: int, values: np.ndarray, weight_decay: float) -> "_Line":
        row = {name: fits[name][place].item() for name in ("index", "gradient", "curvature", "floor", "is_zero")}
        t = np.sort(lines["t"][(lines["index"] == row.pop("index")) & (lines["split"] == "train")])
        part = finite_part(np.isfinite(values).all(axis=1))
        t, values = t[part], values[part]
        nothing = np.full(values.shape[1], np.nan)
        slopes, curvatures = derivatives(t, values) if len(t) > LEAST_POINTS else (nothing, nothing)
        position = (fits["gradient_decayed"][place] - row["gradient"]) / weight_decay if weight_decay else 0.0
        return cls(t, values, slopes, curvatures, position=float(position), weight_decay=weight_decay, **row)

    def rows(self, several: Mapping[int, np.ndarray], decayed: bool, seed: tuple[int, int]) -> Iterator[dict[str, Any]]:
        """Rows of all sizes and sides; `several` has the lines of batches of L, shape (T, M), by their size."""
        decay = self.weight_decay if decayed else 0.0
        total = self.curvature + decay
        count = self.values.shape[1]
        for size, lines in several.items():
            # Where rounding would show in second derivatives, between points that lie closer.
            floor = self.floor * math.sqrt(count / size)
            spacing = math.sqrt(4 * floor / (CURVATURE_ERROR * abs(total))) if total else 0.0
            keep = thinned(self.t, spacing)
            t, values = self.t[keep], self.values[keep]
            if len(t) < LEAST_POINTS:
                continue
            rise = decay_rise(t, self.position, decay)[:, None]
            some, every = lines[keep] + rise, values.mean(axis=1, keepdims=True) + rise
            predicted = math.nan
            if total > 0 and not self.is_zero:
                newton = -(self.gradient + decay * self.position) / total
                predicted = _deviation(self.slopes + newton * self.curvatures, total, size)
            for side, part in sides(t, every[:, 0], total):
                whole = minima(t[part], every[part])
                found = minima(t[part], some[part])
                expected = predicted if side == "only" else math.nan
                spreads = _of_minima(found, (*seed, size, 1), tell=not self.is_zero)
                # What is not above zero has no ratio to it.
                below = expected if expected > 0 else math.nan
                yield {
                    "side": side,
                    "batch_size": size,
                    "minimum": float(whole.place[0]) if whole.inside[0] else math.nan,
                    "curvature": float(whole.curvature[0]),
                    "predicted": expected,
                    "predicted_there": self._predicted_there(t, values, rise, whole, size),
                    **spreads,
                    **{f"ratio{end}": spreads[f"spread{end}"] / below for end in ("", "_low", "_high")},
                    "excess": _excess(t[part], every[part, 0], whole, found),
                }

    def _predicted_there(self, t: np.ndarray, values: np.ndarray, rise: np.ndarray, whole: Minima, size: int) -> float:
        """Spread by the examples' slopes at the minimum of all examples."""
        if not whole.inside[0]:
            return math.nan
        # The derivative of a spline at a place is one sum over its values.
        weights = CubicSpline(t, np.eye(len(t)))(whole.place[0], 1)
        return _deviation(weights @ (values + rise), float(whole.curvature[0]), size)


def sides(t: np.ndarray, values: np.ndarray, curvature: float) -> list[tuple[str, slice]]:
    """The parts of a line that have a minimum each.

    Args:
        t: Symmetric grid, shape (T,).
        values: The loss of all examples, shape (T,).
        curvature: Its second derivative at t = 0.

    Returns:
        One part, `only`; or where the curvature is negative, and on both sides of the maximum next to the centre there
        is a minimum, `negative` and `positive`, which share the point of the maximum.
    """
    tops = 1 + np.flatnonzero((values[1:-1] >= values[:-2]) & (values[1:-1] >= values[2:]))
    tops = tops[(tops >= LEAST_POINTS - 1) & (tops <= len(t) - LEAST_POINTS)]
    if curvature < 0 and len(tops):
        top = int(tops[np.abs(t[tops]).argmin()])
        parts = [("negative", slice(0, top + 1)), ("positive", slice(top, len(t)))]
        if all(minima(t[part], values[part, None]).inside[0] for _, part in parts):
            return parts
    return [("only", slice(0, len(t)))]


def _deviation(slopes: np.ndarray, curvature: float, size: int) -> float:
    """Standard deviation of a batch's minimum: that of its slope over the curvature, of a finite set."""
    count = len(slopes)
    left = (count - size) / (count - 1) if count > 1 else 0.0
    return math.sqrt(float(slopes.var()) / size * left) / abs(curvature) if curvature else math.nan


def _quantiles(values: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """Order statistics, which may be infinite, along the last axis."""
    return np.quantile(values, levels, axis=-1, method="closest_observation")


def _spread(values: np.ndarray) -> np.ndarray:
    low, high = _quantiles(values, QUARTILES)
    # Infinity less infinity is no spread; nor is infinity.
    with np.errstate(invalid="ignore"):
        width = (high - low) / GAUSSIAN_QUARTILES
    return np.where(np.isfinite(width), width, np.nan)


def _of_minima(found: Minima, seed: tuple[int, ...], *, tell: bool) -> dict[str, float | bool]:
    """Columns that follow from the batches' minima alone; `tell`: whether they are more than rounding."""
    places, inside = found.place, found.inside
    number = len(places)
    drawn = np.random.default_rng(seed).integers(0, number, (REPLICATES, number))
    spread, replicates = float(_spread(places)), _spread(places[drawn])
    certain = bool(np.isfinite(replicates).all())
    low, high = np.quantile(replicates, [0.025, 0.975]) if certain else (math.nan, math.nan)
    curvatures = found.curvature[inside]
    median = float(np.median(curvatures)) if len(curvatures) else math.nan
    curvature_spread = float(_spread(curvatures)) / median if len(curvatures) else math.nan
    middle = float(_quantiles(places, (0.5,))[0])
    row: dict[str, float | bool] = {
        "median": middle if math.isfinite(middle) else math.nan,
        "spread": spread,
        "spread_low": float(low),
        "spread_high": float(high),
        "curvature_spread": curvature_spread,
        "height": float(np.median(found.value)),
        "kurtosis": math.nan,
        "tail": math.nan,
        "p_normal": math.nan,
        "below": float(np.mean(places == -np.inf)),
        "above": float(np.mean(places == np.inf)),
        "gaussian": bool(tell and inside.all() and curvature_spread < GAUSSIAN_CURVATURE),
    }
    outer = _quantiles(places, TAILS)
    if tell and spread > 0 and np.isfinite(outer).all():
        row["tail"] = float(outer[1] - outer[0]) / (spread * GAUSSIAN_QUARTILES) / GAUSSIAN_TAIL
    if tell and inside.all() and np.ptp(places) > 0:
        row |= {"kurtosis": float(kurtosis(places)), "p_normal": float(shapiro(places).pvalue)}
    return row | _correlation(places[inside], curvatures)


def _correlation(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Spearman's ρ with the interval by Fisher's z, whose standard error is √((1 + ρ²/2)/(n − 3))."""
    names = ("correlation", "correlation_low", "correlation_high")
    if len(x) < LEAST_POINTS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(names, math.nan)
    value = float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    if abs(value) >= 1:
        return dict.fromkeys(names, value)
    half = 1.96 * math.sqrt((1 + value**2 / 2) / (len(x) - 3))
    ends = (math.tanh(math.atanh(value) + sign * half) for sign in (-1, 1))
    return dict(zip(names, (value, *ends), strict=True))


def _excess(t: np.ndarray, every: np.ndarray, whole: Minima, found: Minima) -> float:
    """Median rise of the loss of all examples from its minimum to the batches'."""
    ends = np.where(found.place < 0, t[0], t[-1])
    places = np.where(found.inside, found.place, ends)
    return float(np.median(CubicSpline(t, every)(places)) - whole.value[0])


_NOISE = ("slope", "slope_variance", "line_curvature", "curvature_variance", "slope_curvature")


def _noise(slopes: np.ndarray, curvatures: np.ndarray) -> dict[str, float]:
    """Columns of one line in `line_noise`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = float(np.mean((slopes - slopes.mean()) * (curvatures - curvatures.mean())))
        correlation = covariance / math.sqrt(float(slopes.var() * curvatures.var())) if covariance else math.nan
    values = (slopes.mean(), slopes.var(), curvatures.mean(), curvatures.var(), correlation)
    return dict(zip(_NOISE, map(float, values), strict=True))


def _cross(slopes: np.ndarray) -> np.ndarray:
    """Root mean square correlation of each line's slopes with the others'."""
    centred = slopes - slopes.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, lengths, out=np.full_like(centred, np.nan), where=lengths > 0)
    squares = np.square(unit @ unit.T)
    np.fill_diagonal(squares, np.nan)
    there = np.isfinite(squares)
    total = np.where(there, squares, 0.0).sum(axis=1)
    return np.sqrt(np.divide(total, there.sum(axis=1), out=np.full(len(slopes), np.nan), where=there.any(axis=1)))
