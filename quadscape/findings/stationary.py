"""Findings on how far runs from one checkpoint spread, and on how batches are drawn."""

from dataclasses import replace

import numpy as np

from quadscape.findings import reading
from quadscape.findings.numbers import number, times
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.measures.temperature import PRIOR, changes
from quadscape.tables import Table

MEASURE = "stationary"

PRIMARY = ""
"""The primary finding is of how many bands the interval covers the model, which is no published result."""

ROW = "reshuffled-spreads-less"

LEAST_BANDS = 3
"""Bands below which no crossing is counted."""

_INTERVAL = "95 %, jackknife over blocks of time, and iterates of the noise"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all families.

    Args:
        tables: `stationary` and `sampling_ratio`.

    Returns:
        Statements, by family; the first is the primary finding.
    """
    pairs = {of.run: of.tables[0] for of in reading.runs_of(tables, "sampling_ratio")}
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        table = run.tables[0]
        members = [table.where(table["run"] == place) for place in np.unique(table["run"]).tolist()]
        found += [_member(run, member) for member in members]
        found += [one for member in members for one in _temperature(run, member)]
        found += _pairs(run, pairs.get(run.run))
    return [replace(one, primary=place == 0) for place, one in enumerate(found)]


def _member(run: RunTables, table: Table) -> Statement:
    """In how many bands a member spreads as far as expected."""
    name = f"{table['cell'][0]} (seed {table['seed'][0]})"
    told = table.where(table["told"])
    judged = told.where(np.isfinite(told["ratio_low"]))
    if not len(judged):
        why = "no band in which it can be told" if not len(told) else "too few blocks of time for an interval"
        text = f"Whether {name} spreads as the noisy quadratic model expects is not told: {why}"
        return described(text, Estimate.alone(np.nan, why), measure=MEASURE, run=run.run)
    covered = int(np.count_nonzero((judged["ratio_low"] <= 1) & (judged["ratio_high"] >= 1)))
    middle = float(np.median(judged["ratio"]))
    text = f"In {covered:,} of {len(judged):,} bands of λ̃ from {number(float(judged['lowest'].min()))} to "
    text += (
        f"{number(float(judged['highest'].max()))}, {name} spreads as the noisy quadratic model expects, within the "
    )
    text += f"interval; measured over expected variance is {number(middle)} in the median"
    return described(text, Estimate.exact(covered / len(judged)), measure=MEASURE, run=run.run)


def _temperature(run: RunTables, table: Table) -> list[Statement]:
    """How often a member's variance crosses the posterior's, in bands of which something may be said."""
    decay = reading.attribute(table, "weight_decay")
    told = table.where(table["told"] & (table["lowest"] >= PRIOR * decay))
    if len(told) < LEAST_BANDS:
        return []
    told = Table(told.schema, {key: of[np.argsort(told["curvature"])] for key, of in told.columns.items()}, {})
    measured, expected = (changes(told[name]) for name in ("temperature", "temperature_expected"))
    text = (
        f"Between curvatures {number(float(told['lowest'][0]))} and {number(float(told['highest'][-1]))} the variance "
    )
    text += (
        f"of {table['cell'][0]} (seed {table['seed'][0]}) crosses the posterior's {times(measured)} as measured and "
    )
    text += (
        f"{times(expected)} by the noisy quadratic model; it is {number(float(told['temperature'][0]))} of it in the "
    )
    text += f"flattest of these bands and {number(float(told['temperature'][-1]))} in the steepest"
    estimate = Estimate.alone(measured, "a count over bands")
    return [described(text, estimate, measure=MEASURE, run=run.run)]


def _pairs(run: RunTables, pairs: Table | None) -> list[Statement]:
    if pairs is None:
        return []
    found = []
    for first, second in dict.fromkeys(zip(pairs["reshuffled"].tolist(), pairs["independent"].tolist(), strict=True)):
        own = pairs.where((pairs["reshuffled"] == first) & (pairs["independent"] == second))
        told = own.where(own["told"] & np.isfinite(own["ratio_low"]))
        size = int(own["batch_size"][0])
        where = f"batches of {size:,} at η = {number(float(own['learning_rate'][0]))}"
        if not len(told):
            why = f"no band of {where} is told with an interval"
            found.append(untestable(ROW, why, measure=MEASURE, run=run.run))
            continue
        row = int(np.argmin(told["curvature"]))
        estimate = reading.estimate(told, "ratio", row, _INTERVAL, "too few blocks of time")
        epoch = reading.attribute(pairs, "N") / size
        if not told["relaxation"][row] >= epoch / 2:
            why = f"the flattest band that is told comes to rest within half an epoch of {number(epoch)} steps"
            found.append(untestable(ROW, why, measure=MEASURE, run=run.run))
            continue
        text = f"With {where}, reshuffled ones leave {number(estimate.value)} of the variance "
        text += f"of independent ones in the flattest band that is told (λ̃ = {number(float(told['curvature'][row]))}, "
        text += (
            f"τ = {number(float(np.rint(told['relaxation'][row])))} steps), where the noisy quadratic model expects "
        )
        text += number(float(told["expected"][row]))
        found.append(compared(ROW, text, estimate, run.setting, measure=MEASURE, run=run.run))
        covered = int(
            np.count_nonzero((told["ratio_low"] <= told["expected"]) & (told["expected"] <= told["ratio_high"]))
        )
        apart = float(np.exp(np.median(np.log(told["ratio"] / told["expected"]))))
        text = f"With {where}, the ratio of both variances is as expected, within its "
        text += f"interval, in {covered:,} of {len(told):,} bands; it is {number(apart)} times "
        text += "the expected one in the median"
        found.append(described(text, Estimate.exact(covered / len(told)), measure=MEASURE, run=run.run))
    return found
