"""Findings from the spectral density: the trace and the ends of the spectrum, from Hessian products alone."""

import math

from quadscape.findings import reading
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, described
from quadscape.tables import Table

MEASURE = "density"

PRIMARY = ""
"""No published result is tested: what the density says is compared with the exact spectrum."""

INTERVAL = "95 %, Student's t, over start vectors"

_UNIT = "loss / parameter²"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `density`; `spectrum` of the same checkpoints for what is exact.

    Returns:
        Statements, by run.
    """
    exact = {
        (run.run, reading.iteration_of(table)): table
        for run in reading.runs_of(tables, "spectrum")
        for table in run.tables
    }
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        for table in run.tables:
            found += _checkpoint(run, table, exact.get((run.run, reading.iteration_of(table))))
    return found


def _checkpoint(run: RunTables, table: Table, spectrum: Table | None) -> list[Statement]:
    at = reading.place(MEASURE, run, table)
    trace, low, high = (reading.attribute(table, name) for name in ("trace", "trace_low", "trace_high"))
    estimate = Estimate(trace, low, high, INTERVAL, _UNIT)
    if spectrum is None:
        text = f"The trace of the Hessian is about {number(trace)}, from products with random vectors alone"
        return [described(text, estimate, **at)]
    known = reading.attribute(spectrum, "trace")
    word = "holds" if low <= known <= high else "misses"
    text = f"The trace from random vectors is {number(trace)}; its interval {word} the exact one, {number(known)}"
    found = [described(text, estimate, **at)]
    largest, node = reading.attribute(spectrum, "largest"), reading.attribute(table, "largest")
    if math.isfinite(node) and largest > 0:
        text = f"The largest Ritz value of the density is {percent(node / largest)} of the exact largest eigenvalue"
        found.append(described(text, Estimate.alone(node / largest, "a lower bound of 1, no interval"), **at))
    return found
