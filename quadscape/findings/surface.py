"""Findings from planes through checkpoints: what a picture suggests beside the Hessian, and what random planes hide."""

import math

import numpy as np

from quadscape.findings import reading
from quadscape.findings.known import known_rows
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.measures.curves.compute import wilson
from quadscape.tables import Table

MEASURE = "surface"

PRIMARY = "random-planes-hide-saddles"
"""The finding declared beforehand, of the last checkpoint of each run; all others are exploratory."""

_WILSON = "95 %, Wilson, over random planes"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `surface_planes` and `surface_samples`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, "surface_samples"):
        for table in run.tables:
            found += _hidden(run, table, is_last=table is run.last)
    for run in reading.runs_of(tables, "surface_planes"):
        for table in run.tables:
            found += [*_suggested(run, table), *_minima(run, table)]
    return found


def _hidden(run: RunTables, samples: Table, *, is_last: bool) -> list[Statement]:
    at = reading.place(MEASURE, run, samples)
    zero, least = (reading.attribute(samples, name) for name in ("zero_threshold", "smallest_eigenvalue"))
    if not least < -zero:
        reason = f"the Hessian has no negative eigenvalue; {known_rows()[PRIMARY].would_do} that has one would do"
        return [untestable(PRIMARY, reason, **at)] if is_last else []
    shown = samples["smallest"] < -zero
    share, count = float(np.mean(shown)), len(samples)
    low, high = (float(end[0]) for end in wilson(np.array([share]), count))
    estimate = Estimate(share, low, high, _WILSON)
    text = (
        f"Of {count:,} random planes {int(shown.sum()):,} have a direction of negative curvature; the plane of extreme "
    )
    text += f"eigenvectors has one of {number(least)}"
    return [compared(PRIMARY, text, estimate, run.setting, **at) if is_last else described(text, estimate, **at)]


def _suggested(run: RunTables, planes: Table) -> list[Statement]:
    found = []
    sharpness = reading.attribute(planes, "sharpness")
    for row in range(len(planes)):
        picture, hessian = (float(planes[f"{which}_largest"][row]) for which in ("suggested", "measured"))
        ratio = picture / hessian if hessian else math.nan
        if not math.isfinite(ratio):
            continue
        text = f"The picture of the plane '{planes['plane'][row]}' suggests a largest curvature of {number(picture)}; "
        text += f"the Hessian's is {number(hessian)} in this plane, {number(sharpness)} in all directions"
        found.append(described(text, Estimate.exact(ratio), **reading.place(MEASURE, run, planes)))
    return found


def _minima(run: RunTables, planes: Table) -> list[Statement]:
    found = []
    for row in np.flatnonzero(planes["minima"] > 1):
        count = int(planes["minima"][row])
        text = f"The loss on the plane '{planes['plane'][row]}' has {count:,} local minima at the points of the grid"
        found.append(described(text, Estimate.exact(count), **reading.place(MEASURE, run, planes)))
    return found
