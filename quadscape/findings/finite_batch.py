"""Findings on lines of single batches: how far their minima spread, and where Gaussian theory says so."""

import math
from dataclasses import replace

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import largest_factor, median_estimate, power_law
from quadscape.findings.known import known_rows
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "finite_batch"

PRIMARY = ""
"""No published result is tested first. The primary finding is whether theory predicts the spread where it may speak."""

LEAST_LINES = 6
"""Lines below which nothing is told."""

_ORIGINAL = "original-minima-spread"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs, of their last checkpoints.

    Args:
        tables: `finite_batch`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        if run.last is None:
            continue
        decayed = run.last.where(run.last["decayed"] & ~run.last["is_zero"])
        found += [*_predicted(run, decayed), *_shape(run, decayed), *_growth(run, decayed), _spread(run, decayed)]
    first = next((place for place, one in enumerate(found) if one.primary), None)
    return [replace(one, primary=place == first) for place, one in enumerate(found)]


def _predicted(run: RunTables, table: Table) -> list[Statement]:
    """Spread over its prediction, where curvatures of batches are alike, and where they are not."""
    place, found = reading.place(MEASURE, run, table), []
    known = table.where(np.isfinite(table["ratio"]))
    for gaussian in (True, False):
        rows = known.where(known["gaussian"] == gaussian)
        if len(rows) < LEAST_LINES:
            continue
        estimate = median_estimate(rows["ratio"], "lines and batch sizes")
        where = "differ by less than 20 %" if gaussian else "differ more, or whose minima leave the line,"
        text = (
            f"Where batches' curvatures {where} ({len(rows):,} of {len(known):,} lines and batch sizes) their minima "
        )
        text += f"spread {number(estimate.value)} times as far as slopes' variance over λ² predicts, in the median"
        found.append(replace(described(text, estimate, **place), primary=gaussian))
    return found


def _shape(run: RunTables, table: Table) -> list[Statement]:
    tested = table.where(np.isfinite(table["p_normal"]))
    if not len(tested):
        return []
    rejected = int(np.count_nonzero(tested["not_normal"]))
    text = f"Of {len(tested):,} lines and batch sizes the minima of {rejected:,} are not Gaussian (Shapiro and Wilk's "
    text += "test, false discoveries 10 %)"
    return [described(text, Estimate.exact(rejected / len(tested)), **reading.place(MEASURE, run, table))]


def _own(table: Table) -> Table:
    """Rows of positive λ and of the training's batch size, or of the largest where that is not known."""
    rows = table.where((table["eigenvalue"] > 0) & (table["side"] == "only") & np.isfinite(table["spread"]))
    size = int(reading.attribute(table, "training_batch_size") or 0)
    return rows.where(rows["batch_size"] == (size or (rows["batch_size"].max() if len(rows) else 0)))


def _growth(run: RunTables, table: Table) -> list[Statement]:
    rows = _own(table)
    total = rows["eigenvalue"] + float(table.attributes["weight_decay"])
    if len(rows) < LEAST_LINES or total.max() < 10 * total.min():
        return []
    estimate = power_law(total, rows["spread"], f"the {len(rows)} lines' range of λ + δ")
    text = f"The spread of minima of batches of {int(rows['batch_size'][0]):,} goes as λ + δ to the power "
    text += f"{number(estimate.value)} (noise as λ^γ: γ/2 − 1)"
    return [described(text, estimate, **reading.place(MEASURE, run, table))]


def _spread(run: RunTables, table: Table) -> Statement:
    """Against the original study's, interpolated in both logarithms."""
    row, rows = known_rows()[_ORIGINAL], _own(table)
    rows = rows.where(np.argsort(rows["eigenvalue"]))
    ours, theirs = [], []
    for eigenvalue, published in row.values.items():
        value = float(eigenvalue)
        if len(rows) and rows["eigenvalue"][0] <= value <= rows["eigenvalue"][-1]:
            names = ("spread", "spread_low", "spread_high")
            ours.append(tuple(_interpolated(rows["eigenvalue"], rows[name], value) for name in names))
            theirs.append(float(published))
    place = reading.place(MEASURE, run, table)
    if not ours:
        return untestable(row, f"no such line; {row.would_do} would do", **place)
    estimate = largest_factor(
        [(a, b, c) for a, b, c in ours], theirs, "95 %, bootstrap over batches of this training set"
    )
    text = (
        f"The spread of batches' minima differs from the original study's by at most a factor {number(estimate.value)}"
    )
    return compared(row, text, estimate, run.setting, **place)


def _interpolated(eigenvalues: np.ndarray, spread: np.ndarray, at: float) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return math.exp(float(np.interp(math.log(at), np.log(eigenvalues), np.log(spread))))
