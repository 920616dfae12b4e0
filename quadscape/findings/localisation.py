"""Findings from the localisation of eigenvectors: in how few weights the top of the spectrum lives."""

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import median_estimate
from quadscape.findings.known import known_rows
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "localisation"

PRIMARY = "original-localised"
"""The finding declared beforehand; all others are exploratory."""

TOP = 10
"""Eigenvectors of the largest eigenvalues."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `localisation`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        for table in run.tables:
            found += _participation(run, table)
        if run.last is not None:
            found.append(_largest(run, run.last))
    return found


def _top(table: Table) -> Table:
    return table.where((table["sign"] > 0) & (table["rank"] <= TOP))


def _participation(run: RunTables, table: Table) -> list[Statement]:
    top, chance = _top(table), float(table.attributes["chance_participation"])
    if not len(top):
        return []
    value = float(np.median(top["participation"]))
    return [
        described(
            f"The top {len(top)} eigenvectors are spread over {number(value)} parameters, in the median; a random one "
            f"over {number(chance)}",
            Estimate.exact(value, "parameters"),
            **reading.place(MEASURE, run, table),
        )
    ]


def _largest(run: RunTables, table: Table) -> Statement:
    row, top = known_rows()[PRIMARY], _top(table)
    place = reading.place(MEASURE, run, table)
    if len(top) < TOP:
        why = f"only {len(top)} positive eigenvalues beyond the numerical zero; {TOP} would do"
        return untestable(row, why, **place)
    if int(table.attributes["P"]) <= 10 * int(table.attributes["largest"]):
        size = 10 * int(table.attributes["largest"])
        return untestable(row, f"100 of {table.attributes['P']:,} weights are no few; P > {size:,} would do", **place)
    estimate = median_estimate(top["largest_share"], "top eigenvectors")
    share = percent(estimate.value)
    claim = f"The top {TOP} eigenvectors hold {share} of their squared norm in 100 weights, in the median"
    return compared(row, claim, estimate, run.setting, **place)
