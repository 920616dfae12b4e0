"""Findings on which eigenvectors the data determine, and whether rounding or sampling explains how they change."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import median_estimate
from quadscape.findings.numbers import number
from quadscape.findings.overlap import pair_of
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, described
from quadscape.tables import Table

MEASURE = "identified"

PRIMARY = ""
"""No published result is tested. The primary finding is how many positive eigenvectors halves agree on one by one."""

ENOUGH_HALVINGS = 3
"""Halvings below which nothing is claimed."""

STEADY = 0.99
"""Median |cos| below which rounding counts as turning the eigenvectors of a band."""

_ORDERS = "on this training set, on this machine, over the orders listed"
_ENDS = (("top", 1, "positive"), ("bottom", -1, "negative"))
_WAYS = {"k_vec": "one by one", "k_sub": "up to mixing among half to twice the rank"}
_HALVES_AGREE = "Halves of the data agree on"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all checkpoints whose curvature was computed on subsets of the data.

    Args:
        tables: `identified_dimension`, `identified_maxima` and `overlap_maxima`.

    Returns:
        Statements, by run and checkpoint; the first of the primary finding is marked.
    """
    found: list[Statement] = []
    dimensions = {of.run: of for of in reading.runs_of(tables, "identified_dimension")}
    changes = {of.run: of.tables for of in reading.runs_of(tables, "overlap_maxima")}
    for run in reading.runs_of(tables, "identified_maxima"):
        for table in run.tables:
            at = reading.place(MEASURE, run, table)
            known = dimensions[run.run].tables if run.run in dimensions else ()
            dimension = next((one for one in known if reading.iteration_of(one) == reading.iteration_of(table)), None)
            if dimension is not None and reading.attribute(table, "chance_maximum_q95") >= table.attributes["enough"]:
                found.append(_too_small(table, at))
                dimension = None
            if dimension is not None:
                found += _dimensions(dimension, at)
            found += _rounding(table, at)
            if dimension is not None:
                found += _changes(run, table, dimension, changes.get(run.run, ()), at)
    first = next((place for place, one in enumerate(found) if one.claim.startswith(_HALVES_AGREE)), None)
    return [replace(one, primary=place == first) for place, one in enumerate(found)]


def _too_small(table: Table, at: dict[str, Any]) -> Statement:
    chance = reading.attribute(table, "chance_maximum_q95")
    text = f"Whether data determine eigenvectors is not tested at this size (P = {int(table.attributes['P']):,}): by"
    return described(f"{text} chance, too, some pair has a |cos| of {number(chance)}", Estimate.exact(chance), **at)


def _together(dimension: Table, end: str) -> Table:
    return dimension.where((dimension["end"] == end) & (dimension["halving"] < 0))


def _dimensions(dimension: Table, at: dict[str, Any]) -> list[Statement]:
    ends = [(_together(dimension, end), word) for end, _, word in _ENDS]
    return [
        _dimension(row, name, word, at) for row, word in ends if len(row) and row["directions"][0] for name in _WAYS
    ]


def _dimension(row: Table, name: str, word: str, at: dict[str, Any]) -> Statement:
    value, low, high = (float(row[f"{name}{end}"][0]) for end in ("", "_low", "_high"))
    directions, count = int(row["directions"][0]), int(row["halvings"][0])
    first = f"the first {number(value)} of {directions:,}" if value else f"none of the {directions:,}"
    claim = f"{_HALVES_AGREE} {first} {word} eigenvectors {_WAYS[name]}"
    if value:
        claim += "; all of the data determine at least as many"
    trivial = int(row["chance_from"][0])
    if name == "k_sub" and 0 < trivial <= value:
        claim += f"; from rank {trivial:,} on chance alone would do"
    if count < ENOUGH_HALVINGS:
        claim += _not_tested(count)
        return described(claim, Estimate.alone(value, f"{count} of {ENOUGH_HALVINGS} halvings: no interval"), **at)
    examples = int(row["examples"][0])
    interval = f"range over {count} halvings, of the population; a lower bound, since halves have {examples:,} examples"
    return described(claim, Estimate(value, low, high, interval), **at)


def _not_tested(count: int) -> str:
    return f": not tested at this size (n = {count}), {ENOUGH_HALVINGS} would do"


def _rounding(table: Table, at: dict[str, Any]) -> list[Statement]:
    """From which rank on the same data, summed otherwise, give other eigenvectors."""
    found = []
    for _, sign, word in _ENDS:
        own = table.where((table["kind"] == "order") & (table["sign"] == sign))
        if not len(own):
            continue
        # Of several orders the one that turns more.
        first = own.where(~(own["median"] >= STEADY))
        last = int(own["last_rank"].max())
        if len(first):
            rank = int(first["first_rank"].min())
            least = float(np.nanmin(own["median"])) if np.isfinite(own["median"]).any() else math.nan
            text = f"Summed in another order, the same data turn {word} eigenvectors from rank {rank:,} on: the median"
            text += f" |cos| of a band falls to {number(least)}"
            found.append(described(text, Estimate(rank, rank, rank, _ORDERS), **at))
        else:
            text = (
                f"Rounding turns none of the {last:,} {word} eigenvectors beyond zero: summed in another order, every"
            )
            text += f" band keeps a median |cos| of {STEADY} or more"
            value = float(own["median"].min())
            found.append(described(text, Estimate(value, value, value, _ORDERS), **at))
    return found


def halves_at(table: Table, ranks: np.ndarray) -> np.ndarray:
    """What halves give for positive eigenvectors of some ranks.

    Args:
        table: `identified_maxima`.
        ranks: Ranks.

    Returns:
        Medians of bands, interpolated in the logarithm of the rank, the median over halvings; NaN where there is none.
    """
    own = table.where((table["kind"] == "halves") & (table["sign"] > 0) & np.isfinite(table["median"]))
    found = []
    for comparison in np.unique(own["comparison"]):
        of = own.where(own["comparison"] == comparison)
        of = of.where(np.argsort(of["first_rank"], kind="stable"))
        found.append(np.interp(np.log(ranks), np.log(_middle(of)), of["median"]))
    return np.median(found, axis=0) if found else np.full(len(ranks), np.nan)


def _middle(table: Table, suffix: str = "") -> np.ndarray:
    return np.sqrt(table[f"first_rank{suffix}"] * table[f"last_rank{suffix}"])


def _changes(
    run: RunTables, table: Table, dimension: Table, pairs: tuple[Table, ...], at: dict[str, Any]
) -> list[Statement]:
    """Whether this checkpoint differs from the one before or after it by more than halves of the data do."""
    here, found = reading.iteration_of(table), []
    row = _together(dimension, "top")
    most = float(row["k_vec"][0]) if len(row) else math.nan
    compared = sorted({i for pair in pairs for i in pair_of(pair)})
    for pair in pairs:
        iterations = pair_of(pair)
        if here not in iterations or abs(compared.index(iterations[0]) - compared.index(iterations[1])) != 1:
            continue
        bands = pair.where((pair["sign_a"] > 0) & (pair["last_rank_a"] <= most))
        place = {**at, "iterations": tuple(sorted(iterations))}
        if not len(bands):
            text = (
                "Whether eigenvectors differ more between the two checkpoints than between halves of the data cannot be"
            )
            text += " told: the halves agree on none one by one"
            found.append(described(text, Estimate.alone(math.nan, "no band to compare"), **place))
            continue
        estimate = median_estimate(halves_at(table, _middle(bands, "_a")) - bands["median"], "bands")
        text = f"Among the first {number(most)} positive eigenvectors, on which halves of the data agree, "
        text += f"{_differ(estimate)}: the median |cos| of a band is {number(abs(estimate.value))}"
        text += f" {'lower' if estimate.value >= 0 else 'higher'} between the checkpoints"
        if (count := int(row["halvings"][0])) < ENOUGH_HALVINGS:
            text += _not_tested(count)
        found.append(described(text, estimate, **place))
    return found


def _differ(estimate: Estimate) -> str:
    """What the interval of (halves − checkpoints) says."""
    if estimate.low > 0:
        return "the two checkpoints differ by more than halves do"
    if estimate.high < 0:
        return "the two checkpoints differ by less than halves do"
    return "it cannot be told whether the two checkpoints differ by more or less than halves do"
