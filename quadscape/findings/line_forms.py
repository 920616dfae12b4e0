"""Findings on forms of lines: which is best where none is good, how far the quadratic holds, and growth beyond it."""

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import finite, median_estimate
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "line_forms"

PRIMARY = "growth-sub-quadratic"
"""The finding declared beforehand; all others are exploratory."""

LEAST_LINES = 6
"""Lines below which nothing is tested."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `line_forms`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        for table in run.tables:
            found += [*_best(run, table), *_radius(run, table)]
        if run.last is not None:
            found.append(_growth(run, run.last))
    return found


def _best(run: RunTables, table: Table) -> list[Statement]:
    poor = table.where(table["form"] == "none")
    if not len(poor):
        return []
    names, counts = np.unique(poor["best_form"], return_counts=True)
    best = names[int(np.argmax(counts))]
    errors = median_estimate(poor["best_error"], "eigenvectors")
    text = f"Of {len(poor):,} lines that no form fits to 1 %, {int(counts.max()):,} are {best} at best; the best form "
    text += f"misses held-out points by {number(100 * errors.value)} % of their spread, in the median"
    return [described(text, errors, **reading.place(MEASURE, run, table))]


def _radius(run: RunTables, table: Table) -> list[Statement]:
    """Radius on the side where the quadratic ends first, as the rise of the loss there."""
    found = []
    for sign, word in ((1, "positive"), (-1, "negative")):
        own = reading.of_sign(table, sign)
        rises = finite(own["rise"])
        if not len(rises):
            continue
        estimate = median_estimate(rises, "eigenvectors", "loss")
        text = f"Along eigenvectors of {word} eigenvalue the quadratic holds up to ½|λ|t² of {number(estimate.value)}, "
        text += f"in the median of {len(rises):,} of {len(own):,} lines (the others do not show its end)"
        found.append(described(text, estimate, **reading.place(MEASURE, run, table)))
    return found


def _growth(run: RunTables, table: Table) -> Statement:
    place = reading.place(MEASURE, run, table)
    exponents = finite(reading.of_sign(table, 1)["growth"])
    if len(exponents) < LEAST_LINES:
        reason = (
            f"{len(exponents)} lines of positive curvature reach beyond their quadratic radius; {LEAST_LINES} would do"
        )
        return untestable(PRIMARY, reason, **place)
    estimate = median_estimate(exponents, "lines")
    text = f"Beyond the quadratic radius the loss grows as |t| to the power {number(estimate.value)}, in the median"
    return compared(PRIMARY, text, estimate, run.setting, **place)
