"""Findings on escape: how many starts end in the best basin of a planted loss, and whether small batches help."""

import math

import numpy as np

from quadscape.findings import reading
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, described
from quadscape.tables import Table

MEASURE = "escape"

PRIMARY = ""
"""No published result is tested."""

MOST = 8
"""Most cells that get a sentence of their own."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all families.

    Args:
        tables: `escape`.

    Returns:
        Statements, by family.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        table = run.tables[0]
        found += [*_shares(run, table), *_batches(run, table)]
    return found


def _shares(run: RunTables, table: Table) -> list[Statement]:
    found = []
    for row in range(min(len(table), MOST)):
        value, low, high = (float(table[f"share{end}"][row]) for end in ("", "_low", "_high"))
        began = float(table["began"][row] / table["starts"][row])
        text = (
            f"{percent(value)} of {table['starts'][row]:,} starts of {table['cell'][row]} end in the best basin, where "
        )
        text += f"{percent(began)} began"
        if table["diverged"][row]:
            text += f" ({table['diverged'][row]:,} diverged)"
        estimate = Estimate(value, low, high, "95 %, Wilson, over starts")
        found.append(described(text, estimate, measure=MEASURE, run=run.run))
    return found


def _batches(run: RunTables, table: Table) -> list[Statement]:
    """Share with the smallest batch less that with the largest; interval of Newcombe, Statistics in Medicine, 1998."""
    sizes = np.unique(table["batch_size"])
    if len(sizes) < 2:
        return []
    small, large = (int(np.flatnonzero(table["batch_size"] == size)[0]) for size in (sizes[0], sizes[-1]))
    (p, p_low, p_high), (q, q_low, q_high) = (
        [float(table[f"share{end}"][row]) for end in ("", "_low", "_high")] for row in (small, large)
    )
    low = p - q - math.hypot(p - p_low, q_high - q)
    high = p - q + math.hypot(p_high - p, q - q_low)
    word = "larger" if p >= q else "smaller"
    text = (
        f"The share of starts that end in the best basin is {number(abs(p - q))} {word} with batches of {sizes[0]:,} "
    )
    text += f"than with {sizes[-1]:,}"
    estimate = Estimate(p - q, low, high, "95 %, Newcombe, over starts as if unpaired")
    return [described(text, estimate, measure=MEASURE, run=run.run)]
