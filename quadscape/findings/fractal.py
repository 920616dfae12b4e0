"""Findings from nested line searches: whether anything rough lies above the rounding floor."""

from dataclasses import replace

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import median_estimate, paired_mean
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.measures.fractal.declaration import LINES, NOTHING, ROUGH, SMOOTH
from quadscape.tables import Table

MEASURE = "fractal"

PRIMARY = "loss-fractal"
"""The finding declared beforehand, of the last checkpoint of each run in float64; all others are exploratory."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `fractal`.

    Returns:
        Statements on the last checkpoint of each run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        if run.last is not None:
            found += [_exponent(run, run.last), *_floors(run, run.last)]
    return found


def _exponent(run: RunTables, table: Table) -> Statement:
    place = reading.place(MEASURE, run, table)
    exact = table.where(table["precision"] == "float64")
    rows = [row for line in LINES if (row := _narrowest(exact, line)) is not None]
    norm = float(table.attributes["theta_norm"])
    if not rows:
        reason = f"nothing lies above the rounding floor in any of {len(exact)} windows, so that there is no exponent; "
        reason += f"what is left is at most {number(float(exact['residual'].max()))}, rounding included"
        return untestable(PRIMARY, reason, **place)
    estimate = _mean(exact, rows)
    widths = exact["half_width"][rows] / norm if norm > 0 else exact["half_width"][rows]
    reach = " to ".join(dict.fromkeys(number(width) for width in (float(widths.min()), float(widths.max()))))
    text = "In the narrowest windows where float64 resolves what a polynomial leaves of the loss (half-widths of "
    text += f"{reach} |θ|), its structure function grows as h to the power {number(estimate.value)}; of a "
    text += "differentiable function it is 2"
    return compared(PRIMARY, text, estimate, run.setting, **place)


def _narrowest(exact: Table, line: str) -> int | None:
    """Row of the narrowest window of a line that has anything above the floor."""
    above = np.flatnonzero((exact["line"] == line) & np.isin(exact["state"], (SMOOTH, ROUGH)))
    return int(above[np.argmax(exact["window"][above])]) if len(above) else None


def _mean(exact: Table, rows: list[int]) -> Estimate:
    """Mean exponent of the lines; of one line alone its own interval."""
    if len(rows) > 1:
        mean = paired_mean(exact["exponent"][rows], "lines")
        return replace(mean, interval=f"95 %, Student's t, over {len(rows)} lines, on this training set")
    value, low, high = (float(exact[name][rows[0]]) for name in ("exponent", "exponent_low", "exponent_high"))
    return Estimate(value, low, high, "95 %, jackknife over blocks of the one window, on this training set")


def _floors(run: RunTables, table: Table) -> list[Statement]:
    place, found = reading.place(MEASURE, run, table), []
    own = {name: table.where(table["precision"] == name) for name in ("float64", "float32")}
    exact, single = own["float64"], own["float32"]
    below = exact.where(exact["state"] == NOTHING)
    if len(below):
        ratio = median_estimate(below["residual"] / below["floor"], "windows")
        text = f"In {len(below):,} of {len(exact):,} windows nothing lies above float64's rounding floor: what is left "
        text += f"there is {number(ratio.value)} times the rounding error of one loss, in the median"
        found.append(described(text, ratio, **place))
    larger = median_estimate(single["floor"] / exact["floor"], "windows")
    rough = int(np.count_nonzero(single["state"] == ROUGH))
    text = f"The rounding floor of float32 is {number(larger.value)} times that of float64, in the median; above it "
    text += f"{rough or 'none'} of {len(single):,} windows {'is' if rough < 2 else 'are'} rough"
    return [*found, described(text, larger, **place)]
