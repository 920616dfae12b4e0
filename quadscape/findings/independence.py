"""Findings on independence: what single lines say of the loss off them, beyond what the quadratic says."""

from dataclasses import replace

import numpy as np

from quadscape.findings import reading
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, described
from quadscape.tables import Table

MEASURE = "independence"

PRIMARY = ""
"""No published result is tested. The primary finding is the skill in directions made of all lines."""

_SETS = {
    "all": "all lines searched",
    "top": "lines of the largest eigenvalues",
    "bulk": "lines of the smallest eigenvalues",
    "bottom": "lines of negative eigenvalues",
    "isotropic": "all parameters alike",
}
"""What directions are made of, in words; the first is the primary finding."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs, of their last checkpoints.

    Args:
        tables: `independence`.

    Returns:
        Statements, by run and set; the first of the primary finding is marked.
    """
    found, marked = [], False
    for run in reading.runs_of(tables, MEASURE):
        for name in _SETS:
            statement = _of_set(run, name)
            if statement is None:
                continue
            primary = name == "all" and not marked
            marked |= primary
            found.append(replace(statement, primary=primary))
    return found


def _of_set(run: RunTables, name: str) -> Statement | None:
    """The skill of one set at the last checkpoint, where lines have left their quadratic."""
    if run.last is None:
        return None
    rows = run.last.where((run.last["set"] == name) & run.last["beyond"] & np.isfinite(run.last["skill"]))
    if not len(rows):
        return None
    estimate = _skill(rows)
    text = f"In directions of {_SETS[name]}, where some line has left its quadratic radius, single lines added up have "
    text += f"a skill of {number(estimate.value)} (1: they act independently, 0: no better than the quadratic)"
    if name == "isotropic":
        share = float(np.median(rows["odd_size"] / np.abs(rows["actual"] - rows["quadratic"])))
        text += f"; odd parts that the sum leaves out are {number(share)} of what the quadratic misses"
    return described(text, estimate, **reading.place(MEASURE, run, run.last))


def _skill(rows: Table) -> Estimate:
    """The median over points, from the least to the largest of single directions: points of one are not independent."""
    directions = np.unique(rows["direction"])
    medians = [float(np.median(rows["skill"][rows["direction"] == one])) for one in directions]
    value = float(np.median(rows["skill"]))
    if len(medians) < 2:
        return Estimate.alone(value, f"median of {len(rows)} points of one direction: too few for an interval")
    text = f"smallest and largest of {len(medians)} directions' medians, on this training set"
    return Estimate(value, min(medians), max(medians), text)
