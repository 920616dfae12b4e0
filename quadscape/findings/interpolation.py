"""Findings from the straight line from start to end: whether the loss falls throughout, bumps, barriers."""

import math
from typing import Any

from quadscape.findings import reading
from quadscape.findings.known import known_rows
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "interpolation"

PRIMARY = "interpolation-monotone"
"""The finding declared beforehand; all others are exploratory."""

_CONDITIONS = ("method", "batch_norm", "initial", "loss")
_EXACT = "rounding floor; exact on this training set, at the points of the grid"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `interpolation_summary`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, "interpolation_summary"):
        table = run.tables[0]
        parts = {split: table.where(table["split"] == split) for split in ("train", "validation")}
        if len(parts["train"]):
            found += _training(run, parts["train"])
        if len(parts["validation"]):
            found += _validation(run, parts["validation"])
    return found


def _training(run: RunTables, own: Table) -> list[Statement]:
    start, end, bump, floor = (float(own[name][0]) for name in ("start", "end", "bump", "floor"))
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    fall = start - end
    if not fall > floor:
        reason = f"the training loss does not fall from start to end; {known_rows()[PRIMARY].would_do} would do"
        return [untestable(PRIMARY, reason, **at)]
    setting = dict(run.setting) | {name: own.attributes[name] for name in _CONDITIONS if name in own.attributes}
    share, error = bump / fall, floor / fall
    estimate = Estimate(share, share - error, share + error, _EXACT)
    if own["monotone"][0]:
        text = "The training loss falls throughout on the straight line from start to end"
    else:
        text = f"On the straight line from start to end the training loss rises between {_place(own)}, by "
        text += f"{percent(share)} of its whole fall"
    found = [compared(PRIMARY, text, estimate, setting, **at)]
    barrier = float(own["barrier"][0])
    if barrier > 0:
        text = f"The training loss rises above the line between its end values by up to {number(barrier)}, at α = "
        text += number(float(own["barrier_at"][0]), 2)
        value = Estimate(barrier, barrier - floor, barrier + floor, _EXACT, "loss")
    else:
        text = "The training loss lies nowhere above the line between its end values"
        value = Estimate(0.0, 0.0, floor, _EXACT, "loss")
    return [*found, described(text, value, **at)]


def _validation(run: RunTables, own: Table) -> list[Statement]:
    if own["monotone"][0]:
        return []
    bump = float(own["bump"][0])
    text = f"On the straight line from start to end the validation loss rises between {_place(own)}, by {number(bump)}"
    estimate = Estimate(bump, math.nan, math.nan, "one validation split, no interval", "loss")
    return [described(text, estimate, measure=MEASURE, run=run.run)]


def _place(own: Table) -> str:
    return f"α = {number(float(own['foot'][0]), 2)} and {number(float(own['top'][0]), 2)}"
