"""Findings from the curves of training: losses and accuracies, drops of the learning rate, plateaus.

Only training and validation are read: the test split belongs to the one measure that reads frozen choices.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import largest_factor, time_mean
from quadscape.findings.known import known_rows
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "curves"

PRIMARY = "original-loss-path"
"""The finding declared beforehand; all others are exploratory."""

_NO_INTERVAL = "one run, no interval"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `curves`, `evaluations` and `layer_gradients`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, "evaluations"):
        seen = read_splits(run.tables[0])
        found += [*_ends(run, seen), *_loss_path(run, seen["train"])]
    for run in reading.runs_of(tables, MEASURE):
        found += [*_drops(run), *_plateaus(run)]
    for run in reading.runs_of(tables, "layer_gradients"):
        found += _layers(run)
    return found


def read_splits(table: Table) -> dict[str, Table]:
    """The rows of the training and of the validation split that were evaluated, by iteration; never of the test."""
    parts = {}
    for split in ("train", "validation"):
        own = table.where((table["split"] == split) & np.isfinite(table["loss"]))
        parts[split] = own.where(np.argsort(own["iteration"], kind="stable"))
    return parts


def _ends(run: RunTables, seen: dict[str, Table]) -> list[Statement]:
    found = []
    words = {"train": "training", "validation": "validation"}
    for split, table in seen.items():
        if not len(table):
            continue
        first, last = int(table["iteration"][0]), int(table["iteration"][-1])
        at: dict[str, Any] = {"measure": MEASURE, "run": run.run, "iterations": (last,)}
        loss, accuracy = float(table["loss"][-1]), float(table["accuracy"][-1])
        start = number(float(table["loss"][0]))
        text = f"The {words[split]} loss goes from {start} at iteration {first:,} to {number(loss)}"
        exact = "exact" if split == "train" else "exact on this validation split"
        found.append(described(text, Estimate(loss, loss, loss, exact, "loss"), **at))
        if math.isfinite(accuracy):
            low, high = float(table["accuracy_low"][-1]), float(table["accuracy_high"][-1])
            # All of the training set is there: its share is a fact; of validation it estimates the population's.
            estimate = Estimate.exact(accuracy)
            if split != "train":
                estimate = Estimate(accuracy, low, high, "95 %, Wilson, over examples of the population")
            found.append(
                described(
                    f"{percent(accuracy)} of the {words[split]} examples are classified correctly", estimate, **at
                )
            )
    return found + _gap(run, seen)


def _gap(run: RunTables, seen: dict[str, Table]) -> list[Statement]:
    training, validation = seen["train"], seen["validation"]
    shared = np.intersect1d(training["iteration"], validation["iteration"])
    if not len(shared):
        return []
    last, best = int(shared[-1]), int(np.argmin(validation["loss"]))
    losses = [float(part["loss"][part["iteration"] == last][0]) for part in (training, validation)]
    gap, least = losses[1] - losses[0], int(validation["iteration"][best])
    text = f"The validation loss lies {number(gap)} above the training loss and was least at iteration {least:,}"
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run, "iterations": (last,)}
    return [described(text, Estimate.alone(gap, _NO_INTERVAL, "loss"), **at)]


def _loss_path(run: RunTables, training: Table) -> list[Statement]:
    published = known_rows()["original-loss-path"].values
    shared = [
        (int(i), float(loss)) for i, loss in zip(training["iteration"], training["loss"], strict=True) if i in published
    ]
    iterations = [i for i, _ in shared]
    if not any(i > 0 for i in iterations):
        reason = (
            f"no evaluation after the start at an iteration of the original study; {known_rows()[PRIMARY].would_do}"
        )
        return [untestable(PRIMARY, f"{reason} would do", measure=MEASURE, run=run.run)]
    estimate = largest_factor([(loss,) * 3 for _, loss in shared], [published[i] for i in iterations], "exact")
    text = f"The training loss differs from the original study's by at most a factor {number(estimate.value)}"
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run, "iterations": iterations}
    return [compared(PRIMARY, text, estimate, run.setting, **at)]


def _drops(run: RunTables) -> list[Statement]:
    """Batch loss one window after a drop of the learning rate, over that in the window before it."""
    table = run.tables[0]
    steps, losses, window = table["iteration"], table["batch_loss"], int(table.attributes.get("window", 1))
    drops = [int(drop) for drop in table.attributes.get("drops", ())]
    found = []
    for drop, following in pairwise([*drops, math.inf]):
        before = np.flatnonzero((steps <= drop - 1 - window // 2) & np.isfinite(losses))
        after = np.flatnonzero((steps >= drop + window // 2) & (steps < following) & np.isfinite(losses))
        if not len(before) or not len(after):
            continue
        ratio = float(losses[after[0]] / losses[before[-1]])
        text = f"Within {window:,} iterations of the drop of the learning rate at iteration {drop:,} the batch loss "
        text += f"goes to {percent(ratio)} of what it was"
        at: dict[str, Any] = {"measure": MEASURE, "run": run.run, "iterations": (drop,)}
        found.append(described(text, Estimate.alone(ratio, "one window on each side, no interval"), **at))
    return found


def _plateaus(run: RunTables) -> list[Statement]:
    """Mean batch losses over the original study's windows, with intervals from blocks of time."""
    row = known_rows()["original-plateau-loss"]
    table = run.tables[0]
    steps, losses = table["iteration"], table["batch_loss"]
    ours, theirs, ends, texts = [], [], [], []
    for window, published in row.values.items():
        start, stop = (int(end) for end in str(window).split("-"))
        inside = (steps >= start) & (steps < stop)
        if not len(steps) or steps.max() < stop - 1 or not inside.any():
            continue
        mean = time_mean(losses[inside], "loss")
        ours.append((mean.value, mean.low, mean.high))
        theirs.append(float(published))
        ends.append(stop)
        texts.append(mean.interval)
    if not ours:
        reason = f"the run is shorter than the plateaus; {row.would_do} would do"
        return [untestable(row, reason, measure=MEASURE, run=run.run)]
    estimate = largest_factor(ours, theirs, "; ".join(dict.fromkeys(texts)))
    text = f"The plateaus' mean losses differ from the original study's by at most a factor {number(estimate.value)}"
    return [compared(row, text, estimate, run.setting, measure=MEASURE, run=run.run, iterations=ends)]


def _layers(run: RunTables) -> list[Statement]:
    table = run.tables[0]
    last = int(table["iteration"].max())
    own = table.where((table["iteration"] == last) & (table["norm"] > 0) & np.isfinite(table["norm"]))
    if len(own) < 2:
        return []
    high, low = int(np.argmax(own["norm"])), int(np.argmin(own["norm"]))
    ratio = float(own["norm"][high] / own["norm"][low])
    text = f"The batch gradient is {number(ratio)} times as long in {own['layer'][high]} as in {own['layer'][low]}"
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run, "iterations": (last,)}
    return [described(text, Estimate.alone(ratio, "one window, no interval"), **at)]
