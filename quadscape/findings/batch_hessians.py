"""Findings on Hessians of batches: how far their largest eigenvalue lies above that of all examples."""

import math

import numpy as np

from quadscape.findings import reading
from quadscape.findings.known import known_rows
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.measures.slopes import slope
from quadscape.tables import Table

MEASURE = "batch_hessians"

PRIMARY = "batch-hessian-broadened"
"""The finding declared beforehand; all others are exploratory."""

LEAST_SIZES = 3
"""Batch sizes below which no exponent is given."""

REPLICATES = 1000
"""Of the bootstrap over batches."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `batch_hessians` and `batch_broadening`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    pairs = {of.run: of for of in reading.runs_of(tables, MEASURE)}
    for run in reading.runs_of(tables, "batch_broadening"):
        if run.last is None:
            continue
        found += _captured(run, run.last)
        own = pairs[run.run].last if run.run in pairs else None
        if own is not None:
            found.append(_exponent(run, own, run.last))
    return found


def _captured(run: RunTables, table: Table) -> list[Statement]:
    first = table.where((table["place"] == 1) & np.isfinite(table["eigenvalue"]))
    if not len(first):
        return []
    row = {name: values[np.argmin(first["batch_size"])] for name, values in first.columns.items()}
    size, ratio = int(row["batch_size"]), float(row["eigenvalue"] / row["full"])
    low, high = (float(row[f"eigenvalue_{end}"] / row["full"]) for end in ("low", "high"))
    text = f"The largest eigenvalue of a batch of {size:,} is {number(ratio)} times that of all examples, and its "
    text += f"eigenvector has {percent(float(row['captured']))} of its square in their first "
    text += f"{int(table['place'].max()):,}"
    interval = "95 %, Student's t over batches of this training set"
    return [described(text, Estimate(ratio, low, high, interval), **reading.place(MEASURE, run, table))]


def exponent(pairs: Table, full: float) -> Estimate:
    """The exponent of λ₁(B) − λ₁(N) in B.

    Args:
        pairs: `batch_hessians`.
        full: λ₁(N).

    Returns:
        By least squares in both logarithms through means over batches, with a bootstrap over the batches of each size;
        NaN below `LEAST_SIZES` sizes, or where a mean does not exceed λ₁(N).
    """
    first = pairs.where((pairs["place"] == 1) & np.isfinite(pairs["eigenvalue"]))
    sizes = [int(size) for size in np.unique(first["batch_size"]) if (first["batch_size"] == size).sum() > 1]
    if len(sizes) < LEAST_SIZES:
        return Estimate.alone(math.nan, "too few batch sizes")
    excess = [first["eigenvalue"][first["batch_size"] == size] - full for size in sizes]
    generator = np.random.default_rng(0)
    drawn = np.stack(
        [own[generator.integers(0, len(own), (REPLICATES, len(own)))].mean(axis=1) for own in excess], axis=1
    )
    means, logs = np.array([own.mean() for own in excess]), np.log(sizes)
    if (means <= 0).any():
        return Estimate.alone(math.nan, "a mean does not exceed that of all examples")
    value = slope(logs, np.log(means))
    known = drawn[(drawn > 0).all(axis=1)]
    if len(known) < 0.975 * REPLICATES:
        return Estimate.alone(value, "the excess of some batch size cannot be told from zero")
    low, high = np.quantile([slope(logs, np.log(one)) for one in known], [0.025, 0.975])
    return Estimate(value, float(low), float(high), "95 %, bootstrap over batches of this training set")


def _exponent(run: RunTables, pairs: Table, table: Table) -> Statement:
    place = reading.place(MEASURE, run, table)
    full = float(table["full"][table["place"] == 1][0])
    estimate = exponent(pairs, full)
    if math.isnan(estimate.value):
        reason = f"{estimate.interval}; {known_rows()[PRIMARY].would_do} would do"
        return untestable(PRIMARY, reason, **place)
    text = "The excess of a batch's largest eigenvalue over that of all examples goes as the batch size to the power "
    text += number(estimate.value)
    return compared(PRIMARY, text, estimate, run.setting, **place)
