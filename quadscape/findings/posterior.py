"""Findings on the curvature at which SGD spreads as the posterior does."""

from dataclasses import replace
from typing import Any

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import largest_factor
from quadscape.findings.known import known_rows
from quadscape.findings.numbers import number, times
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "posterior"

PRIMARY = ""
"""No published result is tested first. The primary finding is how often the run's own setting crosses the posterior."""

_ORIGINAL = "original-posterior-crossing"

_COUNTS = "95 %, bootstrap over the directions of each band of the noise"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all checkpoints.

    Args:
        tables: `posterior` and `posterior_crossings`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    bands = {(run.run, reading.iteration_of(of)): of for run in reading.runs_of(tables, MEASURE) for of in run.tables}
    for run in reading.runs_of(tables, "posterior_crossings"):
        for table in run.tables:
            of = bands.get((run.run, reading.iteration_of(table)))
            found += [] if of is None else _own(run, table, of)
            found += _elsewhere(run, table)
        found += _published(run)
    first = next((place for place, one in enumerate(found) if one.primary), None)
    return [replace(one, primary=place == first) for place, one in enumerate(found)]


def _own(run: RunTables, table: Table, bands: Table) -> list[Statement]:
    """How often the run crosses, and on which side it is warmer."""
    own, place = table.where(table["own"]), reading.place(MEASURE, run, table)
    told = bands.where(bands["told"])
    row = {name: values[0] for name, values in own.columns.items()}
    shown = f"batches of {int(row['batch_size']):,}, {row['sampling']}, at rate {number(float(row['learning_rate']))}"
    if not np.isfinite(row["lowest"]):
        largest = float(bands["expected"].max())
        text = (
            f"With {shown}, no curvature above ten times the weight decay can be claimed, as it is too slow for the "
            f"window or the loss is not steady; the noisy quadratic model gives at most {number(largest)} of the "
            "posterior's variance along any band"
        )
        return [described(text, Estimate.alone(largest, "of a model, nothing is measured"), **place)]
    text = f"With {shown}, SGD's variance crosses the posterior's {times(int(row['predicted']))} by theory"
    text += f" and {times(int(row['measured']))} as measured, between curvatures {number(float(row['lowest']))} and "
    text += number(float(row["highest"]))
    if row["predicted"]:
        text += f", at {number(float(row['first']))}"
        text += ": flatter directions are " + ("too cold" if row["low_side"] < 1 else "too warm")
    elif len(told):
        side = "below" if float(np.median(told["ratio"])) < 1 else "above"
        text += f"; it lies {side} it throughout, at most {number(float(told['ratio'].max()))} times it"
    value, low, high = (float(row[name]) for name in ("predicted", "predicted_least", "predicted_most"))
    return [replace(described(text, Estimate(value, low, high, _COUNTS), **place), primary=True)]


def _elsewhere(run: RunTables, table: Table) -> list[Statement]:
    """Counts in other settings, by how batches are drawn."""
    place, found = reading.place(MEASURE, run, table), []
    others = table.where(~table["own"] & np.isfinite(table["lowest"]))
    for sampling in ("independent", "reshuffled"):
        rows = others.where(others["sampling"] == sampling)
        if not len(rows):
            continue
        counts = [int((rows["predicted"] == number_).sum()) for number_ in (0, 1)]
        several = len(rows) - sum(counts)
        text = (
            f"By theory, of {len(rows):,} other learning rates and batch sizes with {sampling} batches {counts[0]:,} "
            f"never cross the posterior's variance, {counts[1]:,} once and {several:,} several times"
        )
        crossing = rows.where(rows["predicted"] > 0)
        if len(crossing):
            largest = int(crossing["batch_size"].max())
            rate = float(crossing["learning_rate"][crossing["batch_size"] == largest].min())
            text += f"; batches of {largest:,} at rate {number(rate)} do"
        found.append(described(text, Estimate.exact(counts[1] / len(rows)), **place))
    return found


def _published(run: RunTables) -> list[Statement]:
    """Rows of published results."""
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    values = {float(rate): float(value) for rate, value in known_rows()[_ORIGINAL].values.items()}
    ours: dict[float, tuple[float, float, float]] = {}
    for table in run.after_start:
        own = table.where(table["own"] & (table["predicted"] == 1) & (table["measured"] == 1))
        for rate, first in zip(own["learning_rate"], own["first"], strict=True):
            near = next((one for one in values if np.isclose(rate, one)), None)
            if near is not None:
                ours[near] = (float(first),) * 3
    if not ours:
        reason = f"no plateau at either rate crosses once; {known_rows()[_ORIGINAL].would_do} would do"
        return [untestable(_ORIGINAL, reason, **at)]
    estimate = largest_factor(list(ours.values()), [values[rate] for rate in ours], "of a curve")
    text = "SGD's variance equals the posterior's at " + ", ".join(
        f"{number(value[0])} for rate {number(rate)}" for rate, value in ours.items()
    )
    return [compared(_ORIGINAL, text, estimate, run.setting, **at)]
