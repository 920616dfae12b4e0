"""Findings on the curvature of single examples: many a little, or a few a lot?"""

from dataclasses import replace

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import median_estimate
from quadscape.findings.numbers import percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Statement, described
from quadscape.tables import Table

MEASURE = "example_curvature"

PRIMARY = ""
"""No published result is tested. The primary finding is the effective share of examples along the first ones."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs, of their last checkpoints.

    Args:
        tables: `example_curvature`.

    Returns:
        Statements, by run; the first of the primary finding is marked.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        if run.last is not None:
            found += _of(run, run.last.where(~run.last["is_zero"]))
    first = next((place for place, one in enumerate(found) if one.primary), None)
    return [replace(one, primary=place == first) for place, one in enumerate(found)]


def _of(run: RunTables, table: Table) -> list[Statement]:
    place, found = reading.place(MEASURE, run, table), []
    positive = reading.of_sign(table, 1)
    classes = reading.classes_of(run.setting) or 10
    first, rest = (
        positive.where(np.asarray(which)) for which in (positive["rank"] <= classes, positive["rank"] > classes)
    )
    for rows, where in ((first, f"the first {classes}"), (rest, "all further positive")):
        told = rows.where(np.isfinite(rows["participation"]))
        if not len(told):
            continue
        share = median_estimate(told["participation"], "eigenvectors")
        few = float(np.median(told["few"]))
        text = (
            f"The curvature along {where} eigenvectors belongs to effectively {percent(share.value)} of the examples, "
        )
        text += f"in the median of {len(told):,}; the largest 1 % of them have {percent(few)} of it"
        found.append(replace(described(text, share, **place), primary=rows is first))
    told = first.where(np.isfinite(first["opposed"]))
    if len(told):
        opposed = median_estimate(told["opposed"], "eigenvectors")
        text = f"Along the first {classes} eigenvectors the slopes of the 1 % of examples that push most cancel by "
        text += f"{percent(opposed.value)}, in the median"
        found.append(described(text, opposed, **place))
    return found
