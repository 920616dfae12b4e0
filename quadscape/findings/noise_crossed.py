"""Findings on how gradient noise grows with curvature, where the directions are of other examples than both."""

import math
from dataclasses import replace

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import power_law
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, described
from quadscape.measures.noise_crossed.declaration import POWERS
from quadscape.tables import Table

MEASURE = "noise_crossed"

PRIMARY = ""
"""No published result is tested. The primary finding is the cross-fitted exponent."""

LEAST_BANDS = 6
"""Bands below which no exponent is given."""

DECADE = 10.0
"""Least ratio between the largest and the smallest curvature of an exponent."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all checkpoints whose curvature was computed on halves of the data.

    Args:
        tables: `noise_crossed`.

    Returns:
        Statements, by run and checkpoint; the first of the primary finding is marked.
    """
    found = [
        statement for run in reading.runs_of(tables, MEASURE) for table in run.tables for statement in _of(run, table)
    ]
    first = next((place for place, one in enumerate(found) if np.isfinite(one.value)), None)
    return [replace(one, primary=place == first) for place, one in enumerate(found)]


def exponents(table: Table, prefix: str = "") -> list[Estimate]:
    """The exponent γ of noise ∝ curvature^γ of each half of each halving, through means of bands.

    Args:
        table: `noise_crossed`.
        prefix: Empty: cross-fitted; `own_`: all of one half.

    Returns:
        Those that have bands enough.
    """
    return [_exponent(rows, f"{prefix}curvature", f"{prefix}noise") for rows in _crossings(table, prefix)]


def _crossings(table: Table, prefix: str = "") -> list[Table]:
    """Bands of each half of each halving, where they reach far enough."""
    found = []
    for halving in np.unique(table["halving"]):
        for half in (0, 1):
            rows = table.where((table["halving"] == halving) & (table["half"] == half) & table["told"])
            rows = rows.where((rows[f"{prefix}curvature"] > 0) & (rows[f"{prefix}noise"] > 0))
            curvature = rows[f"{prefix}curvature"]
            if len(rows) >= LEAST_BANDS and curvature.max() >= DECADE * curvature.min():
                found.append(rows)
    return found


def _exponent(rows: Table, curvature: str, noise: str) -> Estimate:
    return power_law(rows[curvature], rows[noise], "the bands' range of curvature")


def _by_powers(rows: Table) -> float:
    """The power of the other half's Hessian that grows along the same directions as the noise does."""
    wanted = _exponent(rows, "curvature", "noise").value
    slopes = np.array([_exponent(rows, "curvature", name).value for name in POWERS])
    powers = np.array(list(POWERS.values()))
    if not np.isfinite(slopes).all() or (np.diff(slopes) <= 0).any():
        return math.nan
    if wanted > slopes[-1]:
        return math.inf
    return float(np.interp(wanted, slopes, powers))


def _of(run: RunTables, table: Table) -> list[Statement]:
    place = reading.place(MEASURE, run, table)
    crossings, own = _crossings(table), exponents(table, "own_")
    if not crossings:
        return []
    crossed = exponents(table)
    bounds = [bound for bound in map(_by_powers, crossings) if not math.isnan(bound)]
    value = float(np.mean([one.value for one in crossed]))
    low = min([one.low for one in crossed] + bounds)
    high = max([one.high for one in crossed] + bounds)
    interval = f"bounds from imprecise directions and parts of the range, over {len(crossed)} crossings"
    text = "Along directions of one half of the data, gradient noise grows as the curvature to the power "
    text += f"{number(value)} on the other half"
    if own:
        text += f"; read off one half alone, {number(float(np.mean([one.value for one in own])))}"
    return [described(text, Estimate(value, low, high, interval), **place)]
