"""What the lines searched are at best, and how they grow, from their tables alone: no loss is evaluated.

It stands beside the line searches, so that these, which take long, need not be repeated for it.
"""

import math

import numpy as np

from quadscape.measures.job import Job
from quadscape.measures.line_forms.declaration import FORMS, LEAST_BEYOND, RESOLUTION
from quadscape.measures.line_search.declaration import FITS, LINES, PARAMETERS
from quadscape.measures.slopes import slope
from quadscape.tables import Table

_SIDES = ("positive", "negative")


def compute(job: Job) -> dict[str, Table]:
    """Forms and growth of the lines of one checkpoint.

    Args:
        job: Reads the line searches.

    Returns:
        The table of `measure`.
    """
    return measure(job.table("line_search", LINES), job.table("line_search", FITS))


def measure(lines: Table, fits: Table) -> dict[str, Table]:
    """Forms and growth from the tables of line searches.

    Args:
        lines: `line_search`.
        fits: `line_fit` of the same checkpoint.

    Returns:
        The table `line_forms`, with the attributes of `fits`.
    """
    names, errors = best_forms(fits)
    exponents = [growth(*_beyond(lines, fits, row)) for row in range(len(fits))]
    columns = {name: fits[name] for name in ("index", "sign", "rank", "eigenvalue", "is_zero", "form")}
    columns |= {"best_form": names, "best_error": errors, "rise": rises(fits)}
    for place, name in enumerate(("growth", "growth_low", "growth_high")):
        columns[name] = np.array([exponent[place] for exponent in exponents], dtype=np.float64)
    return {"line_forms": Table(FORMS, columns, fits.attributes)}


def best_forms(fits: Table) -> tuple[np.ndarray, np.ndarray]:
    """The form that describes each line best.

    Args:
        fits: `line_fit`.

    Returns:
        Names, and held-out errors: of the simplest form within 1 %, or where there is none of the one with the least
        error; `unresolved` and NaN where nothing can be told.
    """
    every = list(PARAMETERS)
    errors = np.stack([fits[f"error_{form}"] for form in every]) if every else np.empty((0, len(fits)))
    names, least = [], []
    for row, form in enumerate(fits["form"].tolist()):
        best = int(np.argmin(errors[:, row]))
        if form in PARAMETERS:
            best = every.index(form)
        told = form != "unresolved" and bool(np.isfinite(errors[best, row]))
        names.append(every[best] if told else "unresolved")
        least.append(float(errors[best, row]) if told else math.nan)
    return np.array(names, dtype=str), np.array(least, dtype=np.float64)


def rises(fits: Table) -> np.ndarray:
    """½|λ|r² of every line on the side where its quadratic ends first.

    Args:
        fits: `line_fit`.

    Returns:
        Rises of the loss; NaN unless one side is measured and the other known to end no earlier: measured, or still
        quadratic where the line ends.
    """
    status = np.stack([fits[f"radius_{side}_status"] for side in _SIDES])
    radius = np.stack([fits[f"radius_{side}"] for side in _SIDES])
    measured, known = status == "measured", np.isin(status, ("measured", "censored")) & np.isfinite(radius)
    shortest = np.where(measured, radius, np.inf).min(axis=0)
    usable = known.all(axis=0) & measured.any(axis=0)
    return np.where(usable, 0.5 * np.abs(fits["eigenvalue"]) * np.where(usable, shortest, 0.0) ** 2, np.nan)


def _beyond(lines: Table, fits: Table, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances beyond both radii of a line and the even part of the training loss there, and its rounding floors."""
    line = lines.where((lines["index"] == fits["index"][row]) & (lines["split"] == "train"))
    line = line.where(np.argsort(line["t"]))
    half = len(line) // 2
    # Where a side never leaves its quadratic nothing lies beyond; one that left it below rounding did so before all.
    left = all(fits[f"radius_{side}_status"][row] in {"measured", "bounded"} for side in _SIDES)
    start = max(float(fits[f"radius_{side}"][row]) for side in _SIDES) if left else math.inf
    t = line["t"][half + 1 :]
    even = 0.5 * (line["difference"][half + 1 :] + line["difference"][:half][::-1])
    floors = np.maximum(line["rounding"][half + 1 :], line["rounding"][:half][::-1])
    inside = (t >= start) & (t <= fits["form_reach"][row])
    return t[inside], even[inside], floors[inside]


def growth(t: np.ndarray, even: np.ndarray, floor: float | np.ndarray) -> tuple[float, float, float]:
    """The exponent p of a power law |ΔL| ∝ tᵖ.

    Args:
        t: Distances, positive and ascending, shape (n,).
        even: ½(ΔL(t) + ΔL(−t)) at them, into which no slope enters.
        floor: Rounding floor of `even`, of all points or of each.

    Returns:
        Least squares in both logarithms over the points that lie `RESOLUTION` floors or more from zero, on the side on
        which most of them do; then the smallest and the largest of this exponent and those of the inner and the outer
        half of the points, which share one. All NaN below `LEAST_BEYOND` points, or where |ΔL| does not grow
        throughout, as along negative curvature that turns.
    """
    nothing = (math.nan,) * 3
    finite = np.isfinite(even)
    even, t, floor = even[finite], t[finite], np.broadcast_to(floor, np.shape(t))[finite]
    if len(even) < LEAST_BEYOND:
        return nothing
    size = math.copysign(1.0, float(np.median(even))) * even
    above = size >= RESOLUTION * floor
    t, size = t[above], size[above]
    if len(size) < LEAST_BEYOND or (np.diff(size) <= 0).any():
        return nothing
    x, y, middle = np.log(t), np.log(size), len(size) // 2
    slopes = [slope(x[part], y[part]) for part in (slice(None), slice(middle + 1), slice(middle, None))]
    return slopes[0], min(slopes), max(slopes)
