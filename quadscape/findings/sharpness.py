"""Findings on the largest eigenvalue through training: its course, the stability limit, and batch sharpness."""

import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from quadscape.findings import reading
from quadscape.findings.known import known_rows
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import UNDECIDED, Estimate, Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "sharpness"

PRIMARY = "batch-sharpness-edge"
"""The finding declared beforehand; all others are exploratory."""

_DECAY = "original-edge-needs-decay"
_NUMERICAL = "residual of the eigenvalue, on this training set"
_BLOCKS = "95 %, Student's t, over blocks in time"
_UNIT = "loss / parameter²"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `sharpness` and `sharpness_plateaus`.

    Returns:
        Statements, by run; what compares runs comes last.
    """
    plateaus = {run.run: run for run in reading.runs_of(tables, "sharpness_plateaus")}
    found: list[Statement] = []
    runs = reading.runs_of(tables, MEASURE)
    for run in runs:
        found += [*_course(run, run.tables[0]), _settling(run, plateaus.get(run.run))]
    return [*found, *_decay(list(plateaus.values()))] if runs else []


def _course(run: RunTables, table: Table) -> list[Statement]:
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    good = table.where(table["state"] == "converged")
    found = []
    if len(good):
        place, steps = int(np.argmax(good["largest"])), good["iteration"]
        first, top, last = (float(good["largest"][row]) for row in (0, place, -1))
        text = f"The largest eigenvalue goes from {number(first)} at iteration {int(steps[0]):,} over {number(top)} at "
        text += f"{int(steps[place]):,}, its highest, to {number(last)} at {int(steps[-1]):,}"
        error = float(good["residual"][-1])
        estimate = Estimate(last, last - error, last + error, _NUMERICAL, _UNIT)
        found.append(described(text, estimate, iterations=(int(steps[-1]),), **at))
        found += _scaled(good, at)
        found += _nearest(good, float(table.attributes["weight_decay"]), at)
    lost = len(table) - len(good)
    if lost:
        states = [str(state) for state in table["state"].tolist() if state != "converged"]
        why = ", ".join(f"{state}: {states.count(state)}" for state in dict.fromkeys(states))
        text = f"The largest eigenvalue of {lost:,} of {len(table):,} iterates could not be relied on ({why})"
        found.append(described(text, Estimate.exact(lost / len(table)), **at))
    return found


def _scaled(good: Table, at: dict[str, Any]) -> list[Statement]:
    """Growth of λ₁ beside that of λ₁ times the squared norm of scale-invariant weights."""
    if not np.isfinite(good["scaled"]).all() or len(good) < 2 or min(good["largest"][0], good["largest"][-1]) <= 0:
        return []
    plain, scaled = (float(good[name][-1] / good[name][0]) for name in ("largest", "scaled"))
    text = f"From start to end λ₁ changes by a factor {number(plain)}; times the squared norm of the scale-invariant "
    text += f"weights, by {number(scaled)}"
    ends = (int(good["iteration"][0]), int(good["iteration"][-1]))
    return [described(text, Estimate.exact(scaled), iterations=ends, **at)]


def _nearest(good: Table, decay: float, at: dict[str, Any]) -> list[Statement]:
    ratios = (good["largest"] + decay) / good["limit"]
    if not np.isfinite(ratios).any():
        return []
    place = int(np.nanargmax(ratios))
    value, error = float(ratios[place]), float(good["residual"][place] / good["limit"][place])
    text = f"λ₁ + δ comes to {percent(value)} of the stability limit of its learning rate, nearest at iteration "
    text += f"{int(good['iteration'][place]):,}"
    estimate = Estimate(value, value - error, value + error, _NUMERICAL)
    return [described(text, estimate, iterations=(int(good["iteration"][place]),), **at)]


def _settling(run: RunTables, plateaus: RunTables | None) -> Statement:
    """Batch sharpness over 2/η on the last plateau, judged where λ₁ has settled."""
    would_do = known_rows()[PRIMARY].would_do
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    if plateaus is None:
        return untestable(PRIMARY, f"no plateau of constant learning rate; {would_do} would do", **at)
    table = plateaus.tables[0]
    at["iterations"] = (int(table["first"][-1]), int(table["last"][-1]))
    value, low, high = (float(table[f"batch_ratio{end}"][-1]) for end in ("", "_low", "_high"))
    why = _unsettled(table)
    text = f"On the last plateau batch sharpness is {number(value)} times 2/η"
    if math.isnan(value):
        return untestable(PRIMARY, f"{why}; {would_do} would do", **at)
    if not why:
        return compared(PRIMARY, text, Estimate(value, low, high, _BLOCKS), run.setting, **at)
    found = compared(PRIMARY, text, Estimate.alone(value, why), run.setting, **at)
    return replace(found, reason=f"{why}; {would_do} would do") if found.verdict == UNDECIDED else found


def _unsettled(table: Table) -> str:
    """Why nothing can be said of the last plateau; empty where λ₁ has settled."""
    if not table["blocks"][-1]:
        return f"its later half has {int(table['iterates'][-1]):,} iterates, too few for 10 independent blocks"
    if table["settled"][-1]:
        return ""
    low, high = (100 * float(table[f"change{end}"][-1]) for end in ("_low", "_high"))
    return f"it cannot be told that sharpening has stopped: λ₁ changes by {number(low)} to {number(high)} % there"


def _decay(runs: list[RunTables]) -> list[Statement]:
    """λ₁ without weight decay over that with it, of runs that differ in nothing else."""
    found = []
    for without, having in permutations(runs, 2):
        if not _decay_alone(without, having):
            continue
        tables = [run.tables[0] for run in (without, having)]
        name = f"{without.run}, {having.run}"
        why = [f"{run.run}: {_unsettled(t)}" for run, t in zip((without, having), tables, strict=True) if _unsettled(t)]
        (a, a_low, a_high), (b, b_low, b_high) = (
            [float(table[f"largest{end}"][-1]) for end in ("", "_low", "_high")] for table in tables
        )
        if why or not b_low > 0:
            reason = "; ".join(why) or "the mean of λ₁ with decay is not above its error"
            found.append(untestable(_DECAY, f"{reason}; {known_rows()[_DECAY].would_do} would do", **_pair(name)))
            continue
        text = f"At one learning rate λ₁ without weight decay settles at {number(a / b)} of λ₁ with it"
        estimate = Estimate(a / b, a_low / b_high, a_high / b_low, f"{_BLOCKS}, of both runs")
        found.append(compared(_DECAY, text, estimate, having.setting, **_pair(name)))
    if found:
        return found
    reason = f"no two runs that differ in weight decay alone; {known_rows()[_DECAY].would_do} would do"
    return [untestable(_DECAY, reason, measure=MEASURE)]


def _pair(name: str) -> dict[str, Any]:
    return {"measure": MEASURE, "run": name}


def _decay_alone(without: RunTables, having: RunTables) -> bool:
    decays = [float(run.setting.get("weight_decay", math.nan)) for run in (without, having)]
    rates = [float(run.tables[0]["learning_rate"][-1]) for run in (without, having)]
    beside = [{k: v for k, v in run.setting.items() if k != "weight_decay"} for run in (without, having)]
    return decays[0] == 0 < decays[1] and math.isclose(*rates, rel_tol=1e-6) and beside[0] == beside[1]
