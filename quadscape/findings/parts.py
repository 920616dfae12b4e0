"""Findings from the parts of the Hessian: which part makes the outliers, and which the negative eigenvalues."""

from collections.abc import Mapping

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import median_estimate
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "parts"

PRIMARY = "outliers-gauss-newton"
"""The finding declared beforehand; all others are exploratory."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `parts_spectrum` and `parts_ritz`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, "parts_spectrum"):
        for table in run.tables:
            found += _traces(run, table)
    for run in reading.runs_of(tables, "parts_ritz"):
        for table in run.tables:
            found += _negative(run, table)
        if run.last is not None:
            found.append(_outliers(run, run.last))
    return found


def _traces(run: RunTables, table: Table) -> list[Statement]:
    parts: Mapping[str, Mapping[str, float]] = table.attributes.get("parts", {})
    if not {"H", "G", "R"} <= set(parts) or not parts["H"]["trace"]:
        return []
    share = float(parts["G"]["trace"] / parts["H"]["trace"])
    text = f"The Gauss–Newton part has {percent(share)} of the Hessian's trace; beyond numerical zero the Hessian has "
    text += f"{int(parts['H']['negative']):,} negative eigenvalues, the remainder alone {int(parts['R']['negative']):,}"
    return [described(text, Estimate.exact(share), **reading.place(MEASURE, run, table))]


def _negative(run: RunTables, table: Table) -> list[Statement]:
    own = table.where((table["sign"] < 0) & ~table["is_zero"] & (table["eigenvalue"] < 0))
    if not len(own):
        return []
    estimate = median_estimate(own["remainder"] / own["eigenvalue"], "eigenvectors")
    text = f"Along negative eigenvectors the remainder is {number(estimate.value)} times the eigenvalue, in the median"
    return [described(text, estimate, **reading.place(MEASURE, run, table))]


def _outliers(run: RunTables, table: Table) -> Statement:
    classes = reading.classes_of(run.setting)
    if not classes:
        return untestable(
            PRIMARY, "the tables do not say how many classes there are", **reading.place(MEASURE, run, table)
        )
    top = table.where((table["sign"] > 0) & ~table["is_zero"] & (table["rank"] <= classes))
    if len(top) < classes:
        reason = (
            f"{len(top)} of the first {classes} eigenvectors are in the table and above numerical zero; all would do"
        )
        return untestable(PRIMARY, reason, **reading.place(MEASURE, run, table))
    shares, error = top["gauss_newton"] / top["eigenvalue"], reading.attribute(table, "error")
    # The share that is farthest from 1, whether below or above.
    far = int(np.argmax(np.abs(shares - 1)))
    half = error / float(top["eigenvalue"][far])
    estimate = Estimate(float(shares[far]), float(shares[far]) - half, float(shares[far]) + half, _ERROR)
    text = f"Of the first {classes} eigenvalues the Gauss–Newton part makes {percent(float(shares.min()))} or more each"
    return compared(PRIMARY, text, estimate, run.setting, **reading.place(MEASURE, run, table))


_ERROR = "numerical error of the parts, on this training set"
