"""Findings on gradients by layer: whether they vanish or explode with depth, and what training makes of it."""

import math

import numpy as np

from quadscape.findings import reading
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "layers"

PRIMARY = "gradient-norm-depth"
"""The finding declared beforehand; all others are exploratory."""

DECADE = 1.0
"""Smallest change across the layers, in decades, at which it is asked whether it is linear in depth."""

MOST = 8
"""Most cells that get a sentence of their own: those in which gradients change most with depth."""

_INTERVAL = "95 %, Student's t, over seeds"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all families.

    Args:
        tables: `layer_slopes`.

    Returns:
        Statements, by family.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, "layer_slopes"):
        table = run.tables[0]
        initial = table.where((table["window"] == "initial") & np.isfinite(table["slope"]))
        found += _linear(run, initial)
        strongest = np.argsort(-np.abs(initial["slope"]), kind="stable")[:MOST]
        for row in sorted(strongest.tolist()):
            found += _cell(run, table.where(table["cell"] == initial["cell"][row]))
    return found


def _estimate(table: Table, name: str, row: int, unit: str = "1") -> Estimate:
    return reading.estimate(table, name, row, _INTERVAL, "one seed, no interval", unit)


def _linear(run: RunTables, initial: Table) -> list[Statement]:
    """R² of the straight line at the start, where there is growth to speak of."""
    grows = np.abs(initial["slope"]) * (initial["layers"] - 1) >= DECADE
    rows = np.flatnonzero(grows & np.isfinite(initial["linearity"]))
    if not len(rows):
        reason = "no network here has hidden layers of equal shape across which the gradient changes by a factor 10; "
        reason += "plain networks of 20 layers or more, away from the critical gain, would do"
        return [untestable(PRIMARY, reason, measure=MEASURE, run=run.run)]
    found = []
    # The deepest networks first: what is too shallow is not tested.
    for row in sorted(rows.tolist(), key=lambda row: -initial["layers"][row])[:MOST]:
        estimate = _estimate(initial, "linearity", row)
        text = (
            f"At the start a straight line in depth explains {number(estimate.value)} of the variance of the logarithm "
        )
        text += f"of the gradient's norm in {initial['cell'][row]}"
        setting = {**run.setting, "layers": int(initial["layers"][row])}
        found.append(compared(PRIMARY, text, estimate, setting, measure=MEASURE, run=run.run))
    return found


def _cell(run: RunTables, table: Table) -> list[Statement]:
    """What one setting does to the gradient at the start, and at the end."""
    rows = {str(window): row for row, window in enumerate(table["window"])}
    first = _estimate(table, "slope", rows["initial"], "log10 per layer")
    word = "shrinks" if first.value < 0 else "grows"
    text = f"In {table['cell'][0]} the gradient {word} towards the input by a factor {number(10 ** abs(first.value))} "
    text += "per layer at the start"
    last = float(table["slope"][rows["end"]]) if "end" in rows else math.nan
    if math.isfinite(last):
        text += f", and {'shrinks' if last < 0 else 'grows'} by {number(10 ** abs(last))} at the end"
    without = int(table["without"][rows["end"]]) if "end" in rows else 0
    if without:
        text += f" ({without:,} of {without + table['members'][rows['end']]:,} members have no slope there)"
    return [described(text, first, measure=MEASURE, run=run.run)]
