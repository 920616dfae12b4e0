"""Findings on the way of a run along eigenvectors, beside the noisy quadratic model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import median_estimate, power_law
from quadscape.findings.known import known_rows
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.measures.curves.compute import wilson
from quadscape.tables import Table

MEASURE = "evolution"

PRIMARY = ""
"""No published result is tested. The primary finding is how many bands fluctuate as the noisy quadratic model says."""

NEAR = (0.6, 1.3)
"""Measured over expected variance that is called near."""

LEAST_BANDS = 4
"""Bands below which no exponent is told."""

_CROSSOVER, _DISCRETE = "variance-crossover", "discrete-time-variance"

_OVER_BLOCKS = "95 %, Student's t over blocks of time of both windows"

_SHARES = "95 %, Wilson's, bands as if independent"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all checkpoints.

    Args:
        tables: `evolution`, `evolution_bands` and `evolution_drops`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    ways = {(run.run, reading.iteration_of(of)): of for run in reading.runs_of(tables, MEASURE) for of in run.tables}
    drops = {run.run: run for run in reading.runs_of(tables, "evolution_drops")}
    for run in reading.runs_of(tables, "evolution_bands"):
        for bands in run.tables:
            found += _fluctuations(run, bands)
            way = ways.get((run.run, reading.iteration_of(bands)))
            found += [] if way is None else [*_settling(run, way), *_energy(run, way)]
        found += _drops(run, drops.get(run.run))
        found += _published(run, ways)
    first = next((place for place, one in enumerate(found) if one.primary), None)
    return [replace(one, primary=place == first) for place, one in enumerate(found)]


def _share(hits: int, count: int) -> Estimate:
    low, high = (float(end[0]) for end in wilson(np.array([hits / count]), count))
    return Estimate(hits / count, low, high, _SHARES)


def _fluctuations(run: RunTables, bands: Table) -> list[Statement]:
    place = reading.place(MEASURE, run, bands)
    told = bands.where(bands["told"])
    of = told if len(told) else bands
    near = int(((of["ratio"] >= NEAR[0]) & (of["ratio"] <= NEAR[1])).sum())
    first, last = (int(bands.attributes[name]) for name in ("first", "last"))
    if len(told):
        why = "windows of ten relaxation times or more"
    elif not bands.attributes["steady"]:
        why = "none of which may be claimed, as the loss is not steady"
    else:
        why = "none of which may be claimed, as the window is shorter than ten relaxation times"
    median = number(float(np.median(of["ratio"])))
    text = (
        f"From iteration {first:,} to {last:,}, variances of {near:,} of {len(of):,} bands of curvature ({why}) lie "
        f"within {NEAR[0]:g} to {NEAR[1]:g} of what the noisy quadratic model expects; {median} times in the median"
    )
    found = [replace(described(text, _share(near, len(of)), **place), primary=True)]
    exact = told.where(np.isfinite(told["ratio_low"]))
    if len(exact):
        covered = int(((exact["ratio_low"] <= 1) & (exact["ratio_high"] >= 1)).sum())
        text = (
            f"The interval of {covered:,} of {len(exact):,} such bands with ten blocks of time covers what is expected"
        )
        found.append(described(text, _share(covered, len(exact)), **place))
    if len(of) >= LEAST_BANDS and (of["variance"] > 0).all():
        exponent = power_law(of["curvature"], of["variance"], "bands of curvature")
        spread = median_estimate(of["independent"] / of["expected"], "bands")
        text = f"Their variances grow as curvature to the {number(exponent.value)}"
        if str(bands.attributes["sampling"]) == "reshuffled":
            text += f"; independent batches would make them {number(spread.value)} times as large in the median"
        found.append(described(text, exponent, **place))
    return found


def _published(run: RunTables, ways: Mapping[tuple[str, int], Table]) -> list[Statement]:
    """Rows of published results, at the last checkpoint whose window tells of the stationary state."""
    known = known_rows()
    claimed = [one for one in run.tables if one["told"].any() and (run.run, reading.iteration_of(one)) in ways]
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    if not claimed:
        why = "no window has ten relaxation times of any direction, at a steady loss"
        return [untestable(row, f"{why}; {known[row].would_do} would do", **at) for row in (_CROSSOVER, _DISCRETE)]
    bands = claimed[-1]
    place, table = reading.place(MEASURE, run, bands), ways[run.run, reading.iteration_of(bands)]
    told = table.where(table["told"] & (table["expected"] > 0))
    ratio = median_estimate(told["variance"] / told["expected"], "directions")
    text = f"Where stationary, directions fluctuate {number(ratio.value)} times as much as discrete-time theory says"
    found = [compared(_DISCRETE, text + ", in the median", ratio, run.setting, **place)]
    epoch = float(bands.attributes["epoch"])
    above = bands.where(bands["told"] & (bands["relaxation"] < epoch))
    if str(bands.attributes["sampling"]) != "reshuffled" or len(above) < LEAST_BANDS:
        why = (
            "batches are independent"
            if str(bands.attributes["sampling"]) != "reshuffled"
            else (f"{len(above):,} bands that relax within an epoch are told, {LEAST_BANDS} would do")
        )
        return [*found, untestable(_CROSSOVER, why, **place)]
    exponent = power_law(above["curvature"], above["variance"], "bands that relax within an epoch")
    text = "Above the crossover, where directions relax within an epoch, variances grow as curvature to the "
    text += number(exponent.value)
    return [*found, compared(_CROSSOVER, text, exponent, run.setting, **place)]


def _drops(run: RunTables, drops: RunTables | None) -> list[Statement]:
    """What fluctuations add to the loss before and after every decrease of the learning rate that is seen."""
    if drops is None:
        why = "no decrease of the learning rate adjoins the window of a checkpoint"
        text = f"How much of the loss goes with the fluctuations when the learning rate falls cannot be told: {why}"
        return [described(text, Estimate.alone(np.nan, why, "loss"), measure=MEASURE, run=run.run)]
    # A checkpoint at a decrease sees what one behind it sees, and nearer.
    nearest: dict[int, tuple[Table, int]] = {}
    for table in drops.tables:
        for row in np.argsort(table["decrease"], kind="stable").tolist():
            nearest.setdefault(int(table["decrease"][row]), (table, row))
    return [_drop(run, table, row) for _, (table, row) in sorted(nearest.items())]


def _drop(run: RunTables, table: Table, row: int) -> Statement:
    """One decrease."""
    place = reading.place(MEASURE, run, table)
    own = {name: values[row] for name, values in table.columns.items()}
    rates = " to ".join(number(float(own[f"rate_{when}"])) for when in ("before", "after"))
    text = f"At iteration {int(own['decrease']):,} the learning rate falls from {rates}"
    if not own["told"]:
        why = "no direction has 20 relaxation times on both sides"
        if own["count"]:
            why = "the loss is not steady on both sides, or its noise is known at fewer than 16 iterates"
        text += f"; how much of the loss goes with the fluctuations is not told, as {why}"
        return described(text, Estimate.alone(np.nan, why, "loss"), **place)
    drop, expected, loss = (
        reading.estimate(table, name, row, _OVER_BLOCKS, "too few blocks of time", "loss")
        for name in ("drop", "expected", "loss")
    )
    half = float(np.hypot(drop.high - drop.value, expected.high - expected.value))
    apart = drop.value - expected.value
    side = "as expected within both intervals" if abs(apart) <= half else "more" if apart > 0 else "less"
    text += (
        f"; along the {int(own['count']):,} directions that come to rest on both sides fluctuations then take "
        f"{number(drop.value)} less of the loss, where the noisy quadratic model expects {number(expected.value)} "
        f"({number(expected.low)} to {number(expected.high)}): {side}; the loss of batches falls by "
        f"{number(loss.value)} in all"
    )
    return described(text, drop, **place)


def _energy(run: RunTables, table: Table) -> list[Statement]:
    """What fluctuations take of the loss on a plateau."""
    count, place = int(np.count_nonzero(table["told"])), reading.place(MEASURE, run, table)
    if not count:
        return []
    measured, model = (float(table.attributes[name]) for name in ("energy", "energy_expected"))
    text = (
        f"Fluctuations along the {count:,} directions that are told take {number(measured)} of the loss, where the "
        f"noisy quadratic model expects {number(model)}"
    )
    why = "a sum over directions of different relaxation times has no blocks"
    return [described(text, Estimate.alone(measured, why, "loss"), **place)]


def _settling(run: RunTables, table: Table) -> list[Statement]:
    stable = table.where(np.isin(table["state"], ["settled", "never out", "not settled"]))
    if not len(stable):
        return []
    place = reading.place(MEASURE, run, table)
    settled = stable.where(stable["state"] == "settled")
    share = percent(len(settled) / len(stable))
    slow = percent(float(np.mean(stable["state"] == "not settled")))
    text = f"{share} of the directions with a minimum settle within the window, {slow} are too slow for it"
    if len(settled):
        text += f"; it takes them {number(float(np.median(settled['settling'] / settled['relaxation'])))} relaxation"
        text += " times in the median"
    return [described(text, Estimate.exact(len(settled) / len(stable)), **place)]
