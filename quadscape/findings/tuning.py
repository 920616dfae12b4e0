"""Findings from tuning on validation data: the best setting, and whether it lies at an edge of what was tried."""

import numpy as np

from quadscape.findings import reading
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, described
from quadscape.measures.variants import variants
from quadscape.tables import Table

MEASURE = "tuning"

PRIMARY = ""
"""No published result is tested: it is what others choose by."""

_INTERVAL = "95 %, Student's t, over seeds"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all families.

    Args:
        tables: `tuning`.

    Returns:
        Statements, by family.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        table = run.tables[0]
        found += _best(run, table)
        names = variants(table)
        for name in dict.fromkeys(names.tolist()):
            found += _rate(run, table.where(names == name), name)
    return found


def _estimate(table: Table, row: int) -> Estimate:
    return reading.estimate(table, "validation_loss", row, _INTERVAL, "one seed, no interval", "loss")


def _best(run: RunTables, table: Table) -> list[Statement]:
    losses = table["validation_loss"]
    diverged = int(np.count_nonzero(table["diverged"]))
    found = []
    if diverged:
        text = f"In {diverged:,} of {len(table):,} settings a member diverged; they are no candidates"
        found.append(described(text, Estimate.exact(diverged), measure=MEASURE, run=run.run))
    if not np.isfinite(losses).any():
        return found
    best = int(np.nanargmin(np.where(np.isfinite(losses), losses, np.nan)))
    text = f"Of {len(table):,} settings the least validation loss is that of {table['cell'][best]}"
    found.append(described(text, _estimate(table, best), measure=MEASURE, run=run.run))
    return found


def _rate(run: RunTables, table: Table, name: str) -> list[Statement]:
    """The best learning rate of one variant."""
    rates, losses = table["learning_rate"], table["validation_loss"]
    if len(np.unique(rates)) < 2 or not np.isfinite(losses).any():
        return []
    best = int(np.nanargmin(np.where(np.isfinite(losses), losses, np.nan)))
    rate = float(rates[best])
    place = "inside the grid"
    if rate in {float(rates.min()), float(rates.max())}:
        place = "at an edge of the grid: a better one may lie beyond"
    text = f"The best learning rate of {name} is {number(rate)} of {len(np.unique(rates))} tried, {place}"
    grid = f"smallest and largest neighbour in the grid, on validation; {_seeds(table)}"
    ordered = np.unique(rates)
    at = int(np.searchsorted(ordered, rate))
    low, high = (float(ordered[max(at - 1, 0)]), float(ordered[min(at + 1, len(ordered) - 1)]))
    return [described(text, Estimate(rate, low, high, grid), measure=MEASURE, run=run.run)]


def _seeds(table: Table) -> str:
    seeds = int(table["members"].max())
    return "one seed" if seeds == 1 else f"{seeds} seeds"
