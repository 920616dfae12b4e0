"""Findings from the overlap of eigenbases: is the top subspace kept, and into what do eigenvectors change?"""

from itertools import pairwise
from typing import Any

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import median_estimate
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "overlap"

PRIMARY = "top-subspace-preserved"
"""The finding declared beforehand; all others are exploratory."""

LEAST_BANDS = 6
"""Bands of positive eigenvalues below which nothing is said about neighbours."""

CHANCE = 0.5
"""Bands whose window of ranks i/2 … 2i holds more than this share of all directions say nothing."""

_GRID = "sizes k of the table around C, on this training set"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all pairs of checkpoints.

    Args:
        tables: `overlap_rows`, `overlap_bands` and `overlap_subspace`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, "overlap_rows"):
        for table in run.tables:
            found += _maxima(run, table)
    for run in reading.runs_of(tables, "overlap_subspace"):
        found.append(_subspace(run))
    for run in reading.runs_of(tables, "overlap_bands"):
        found += [_neighbours(run, table) for table in run.tables]
    return found


def pair_of(table: Table) -> tuple[int, ...]:
    """The two iterations of a pair's table."""
    return tuple(int(table.attributes[name]) for name in ("iteration_a", "iteration_b") if name in table.attributes)


def successive(tables: tuple[Table, ...]) -> list[Table]:
    """Pairs after the start whose checkpoints follow each other among those compared."""
    starts = sorted({i for table in tables for i in pair_of(table)})
    following = set(pairwise(starts))
    return [
        table for table in tables if min(pair_of(table), default=0) > 0 and tuple(sorted(pair_of(table))) in following
    ]


def _maxima(run: RunTables, table: Table) -> list[Statement]:
    top = table.where((table["sign"] > 0) & (table["rank"] <= 10))
    if not len(top):
        return []
    estimate = median_estimate(top["maximum"], "eigenvectors")
    chance = reading.attribute(table, "chance_maximum_median")
    text = f"The first {len(top)} eigenvectors keep a partner with a median |cos| of {number(estimate.value)}"
    text += f"; by chance the best of all would have {number(chance)}"
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run, "iterations": pair_of(table)}
    return [described(text, estimate, **at)]


def top_overlap(table: Table, k: int) -> tuple[float, float, float]:
    """Mean cos² of the top-k spans, between the sizes of the table around k.

    Args:
        table: `overlap_subspace`.
        k: Dimension.

    Returns:
        k·overlap interpolated in k and divided by k, and bounds: the power Σcos² = k·overlap cannot
        fall with k, nor rise by more than two per added dimension (one unit vector on either side). NaN if k is beyond
        the table.
    """
    own = table.where(table["end"] == "top")
    order = np.argsort(own["k"])
    ks, power = own["k"][order].astype(float), (own["k"] * own["overlap"])[order]
    if not len(ks) or not ks[0] <= k <= ks[-1]:
        return (float("nan"),) * 3
    place = int(np.searchsorted(ks, k))
    if ks[place] == k:
        return (float(power[place] / k),) * 3
    below, above = place - 1, place
    value = float(np.interp(k, ks, power))
    low = max(power[below], power[above] - 2 * (ks[above] - k))
    high = min(power[above], power[below] + 2 * (k - ks[below]))
    return value / k, float(low) / k, float(high) / k


def _subspace(run: RunTables) -> Statement:
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    classes, size = reading.classes_of(run.setting), int(run.setting.get("P", 0))
    if not classes:
        return untestable(PRIMARY, "the tables do not say how many classes there are", **at)
    pairs = successive(run.tables)
    if not pairs or classes >= size:
        reason = "no pair of checkpoints after the start; two of them would do"
        if pairs:
            reason = f"{size:,} parameters with {classes:,} classes; many more parameters than classes would do"
        return untestable(PRIMARY, reason, **at)
    value, low, high = min(top_overlap(table, classes) for table in pairs)
    text = f"The spans of the first {classes} eigenvectors of successive checkpoints share {percent(value)} or more"
    text += f" (chance {percent(classes / size)})"
    iterations = sorted({i for pair in pairs for i in pair_of(pair)})
    return compared(PRIMARY, text, Estimate(value, low, high, _GRID), run.setting, iterations=iterations, **at)


def captured(table: Table) -> np.ndarray:
    """How much of each positive band lies within ranks i/2 … 2i of the other basis, beyond chance.

    Args:
        table: `overlap_bands` with the attribute P.

    Returns:
        (captured − chance)/(1 − chance) by band: 1 for vectors that stay among neighbours, 0 for random ones. Bands
        whose window is more than `CHANCE` of all directions are left out.
    """
    size = float(table.attributes["P"])
    own = table.where((table["sign_a"] > 0) & (table["sign_b"] > 0))
    found = []
    for band in np.unique(own["band_a"]):
        row = own.where(own["band_a"] == band)
        first, last = row["first_rank_a"][0] // 2, 2 * row["last_rank_a"][0]
        near = (row["first_rank_b"] <= last) & (row["last_rank_b"] >= first)
        share = (row["last_rank_b"] - row["first_rank_b"] + 1) / size
        chance = float(share[near].sum())
        if chance <= CHANCE:
            found.append((float((row["ratio"] * share)[near].sum()) - chance) / (1 - chance))
    return np.array(found)


def _neighbours(run: RunTables, table: Table) -> Statement:
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run, "iterations": pair_of(table)}
    row = "original-neighbours-mix"
    values = captured(table)
    if len(values) < LEAST_BANDS:
        reason = f"{len(values)} bands of positive eigenvalues are narrow enough; {LEAST_BANDS} would do"
        return untestable(row, reason, **at)
    estimate = median_estimate(values, "bands")
    text = (
        f"Beyond chance, {percent(estimate.value)} of an eigenvector lies at half to twice its rank in the other basis"
    )
    return compared(row, text, estimate, run.setting, **at)
