"""Findings on variants of gradient descent: paired by seed, each variant at the rate that other seeds chose."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import paired_mean, rank_correlation
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.measures.variants import variants
from quadscape.tables import Table

MEASURE = "descent"

PRIMARY = "adam-gain-full-batch"
"""The finding declared beforehand; all others are exploratory."""

GROWS = "adam-gain-grows"

SEEDS = 5
"""Fewest seeds for a claim about generalisation."""

RATES = 5
"""Fewest learning rates over which a method counts as tuned."""


@dataclass(frozen=True)
class Tuned:
    """A set of cells as one method that is tuned over them.

    For every seed the cell is chosen by the mean validation loss of the *other* seeds (with one seed, by its own), so
    that no seed is used both to choose and to compare.

    Attributes:
        seeds: The seeds that all cells have.
        training: Final training loss by seed; infinite if the run diverged.
        validation: Final validation loss by seed; the same.
        rates: Number of learning rates.
        at_edge: Whether the best cell over all seeds has the least or the largest of them.
    """

    seeds: tuple[int, ...]
    training: np.ndarray
    validation: np.ndarray
    rates: int
    at_edge: bool

    @property
    def fair(self) -> bool:
        """Whether it was tuned over enough rates, and the best is inside their grid."""
        return self.rates >= RATES and not self.at_edge


def tuned(table: Table) -> Tuned:
    """What a set of cells gives when it is tuned on validation data.

    Args:
        table: Rows of `descent_members`.

    Returns:
        Losses by seed; no seeds where the cells share none.
    """
    cells = list(dict.fromkeys(table["cell"].tolist()))
    parts = [table.where(table["cell"] == cell) for cell in cells]
    shared = sorted(set.intersection(*(set(part["seed"].tolist()) for part in parts)))
    losses = {}
    for name in ("training_loss", "validation_loss"):
        rows = [[part[name][part["seed"] == seed][0] for seed in shared] for part in parts]
        values = np.array(rows, dtype=np.float64).reshape(len(cells), len(shared))
        losses[name] = np.where(np.isfinite(values), values, math.inf)
    validation, chosen = losses["validation_loss"], []
    for place in range(len(shared)):
        others = np.delete(validation, place, axis=1) if len(shared) > 1 else validation
        chosen.append(int(np.argmin(others.mean(axis=1))))
    rates = np.array([float(part["learning_rate"][0]) for part in parts])
    best = rates[int(np.argmin(validation.mean(axis=1)))] if shared else math.nan
    columns = np.arange(len(shared))
    return Tuned(
        tuple(shared),
        losses["training_loss"][chosen, columns] if shared else np.empty(0),
        validation[chosen, columns] if shared else np.empty(0),
        len(np.unique(rates)),
        best in {float(rates.min()), float(rates.max())},
    )


def statements(tables: Tables) -> list[Statement]:
    """Findings of all families.

    Args:
        tables: `descent_members` and `descent_cost`; `tuning` of other families, for rates that were chosen there.

    Returns:
        Statements, by family.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, "descent_members"):
        table = run.tables[0]
        found += _gains(run, table, _chosen_elsewhere(tables, run.run))
        found += [*_against_first(run, table), *_spread(run, table), *_noise(run, table)]
        found += [*_speed(run, table), *_gap(run, table)]
    for run in reading.runs_of(tables, "descent_cost"):
        found += _memory(run, run.tables[0])
    return found


# Adam against plain descent


def _chosen_elsewhere(tables: Tables, run: str) -> list[Table]:
    """Tables of tuning of other families."""
    return [of.tables[0] for of in reading.runs_of(tables, "tuning") if of.run != run]


def _was_tuned(own: Table, elsewhere: list[Table]) -> bool:
    """Whether each variant of a method has one rate, the best of that variant and budget elsewhere, inside its grid."""
    # SGD with and without momentum are two variants of one method, each with a rate of its own.
    momenta = own["momentum"]
    return all(_variant_was_tuned(own.where(_same(momenta, value)), elsewhere) for value in np.unique(momenta))


def _same(values: np.ndarray, wanted: float) -> np.ndarray:
    return np.isnan(values) if np.isnan(wanted) else values == wanted


def _variant_was_tuned(own: Table, elsewhere: list[Table]) -> bool:
    if len(np.unique(own["learning_rate"])) > 1:
        return False
    for table in elsewhere:
        same = _same(table["momentum"], own["momentum"][0])
        for name in ("method", "batch_size", "iterations", "examples", "parameters"):
            same &= table[name] == own[name][0]
        rows = table.where(same & np.isfinite(table["validation_loss"]))
        rates = np.unique(table["learning_rate"][same])
        if not len(rows) or len(rates) < RATES:
            continue
        best = float(rows["learning_rate"][int(np.argmin(rows["validation_loss"]))])
        if rates[0] < best < rates[-1] and np.allclose(own["learning_rate"], best, rtol=1e-9):
            return True
    return False


def _gains(run: RunTables, table: Table, elsewhere: list[Table]) -> list[Statement]:
    """By what factor plain descent ends above Adam, with all examples and with the smallest batch that both have."""
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    by_method = {
        name: table.where(table["method"] == method) for name, method in (("descent", "sgd"), ("adam", "adam"))
    }
    sizes = [set(part["batch_size"].tolist()) for part in by_method.values()]
    count = int(table["examples"].max())
    shared = sorted(sizes[0] & sizes[1])
    if count not in shared:
        reason = (
            "the family has no full-batch runs of both SGD and Adam; both tuned over one grid at full batch would do"
        )
        return [untestable(row, reason, **at) for row in (PRIMARY, GROWS)]
    gains: dict[int, np.ndarray] = {}
    fair = True
    for size in {shared[0], count}:
        parts = {name: part.where(part["batch_size"] == size) for name, part in by_method.items()}
        ends = {name: tuned(part) for name, part in parts.items()}
        fair &= all(ends[name].fair or _was_tuned(part, elsewhere) for name, part in parts.items())
        with np.errstate(divide="ignore"):
            logs = {name: np.log(one.training) for name, one in ends.items()}
        gains[size] = _differences(logs["descent"], ends["descent"].seeds, logs["adam"], ends["adam"].seeds)
    full = _factor(gains[count])
    text = f"Full-batch descent ends at {number(full.value)} times the training loss of full-batch Adam"
    if not fair:
        # What is not tuned is described, and decides nothing.
        reason = f"SGD or Adam was not tuned over {RATES} rates or more with the best inside; that would do"
        untuned = [untestable(row, reason, **at) for row in (PRIMARY, GROWS)]
        return [described(f"{text}, not both of them tuned", full, **at), *untuned]
    found = [compared(PRIMARY, text, full, run.setting, **at)]
    if len(gains) == 1:
        return [*found, untestable(GROWS, "the family has one batch size; a small one beside it would do", **at)]
    more = gains[count] - gains[shared[0]] if len(gains[count]) == len(gains[shared[0]]) else np.empty(0)
    growth = _factor(more)
    text = f"Adam's gain over descent is {number(growth.value)} times as large at full batch as with batches of "
    return [*found, compared(GROWS, f"{text}{shared[0]:,}", growth, run.setting, **at)]


def _factor(logs: np.ndarray) -> Estimate:
    """A factor from its natural logarithms, paired by seed."""
    mean = paired_mean(logs, "seeds")
    ends = [math.inf if value > 700 else math.exp(value) for value in (mean.value, mean.low, mean.high)]
    return Estimate(ends[0], ends[1], ends[2], mean.interval)


# Variants against the first


def _against_first(run: RunTables, table: Table) -> list[Statement]:
    """Every variant against the first that the experiment file names, each tuned."""
    names = variants(table)
    kinds = list(dict.fromkeys(names.tolist()))
    ends = {name: tuned(table.where(names == name)) for name in kinds}
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    found: list[Statement] = []
    first = ends[kinds[0]]
    for name in kinds[1:]:
        other = ends[name]
        seeds = [seed for seed in first.seeds if seed in other.seeds]
        pairs = {
            "training": _differences(other.training, other.seeds, first.training, first.seeds),
            "validation": _differences(other.validation, other.seeds, first.validation, first.seeds),
        }
        lost = int(np.count_nonzero(~np.isfinite(pairs["training"])))
        if lost or not seeds:
            text = f"{name} cannot be compared with {kinds[0]}: in {lost:,} of {len(seeds):,} pairs a run diverged"
            found.append(described(text, Estimate.exact(lost), **at))
            continue
        mean = paired_mean(pairs["training"], "seeds", "loss")
        found.append(described(f"{name} ends {_above(mean.value)} the training loss of {kinds[0]}", mean, **at))
        found.append(_generalisation(name, kinds[0], pairs["validation"], at))
    return found


def _differences(
    values: np.ndarray, seeds: tuple[int, ...], others: np.ndarray, of_others: tuple[int, ...]
) -> np.ndarray:
    """Values less others, of the seeds that both have."""
    shared = [seed for seed in seeds if seed in of_others]
    with np.errstate(invalid="ignore"):  # ∞ − ∞, where both diverged
        return values[[seeds.index(seed) for seed in shared]] - others[[of_others.index(seed) for seed in shared]]


def _above(difference: float) -> str:
    return f"{number(abs(difference))} {'above' if difference >= 0 else 'below'}"


def _generalisation(name: str, other: str, differences: np.ndarray, at: Mapping[str, Any]) -> Statement:
    mean, count = paired_mean(differences, "seeds", "loss"), len(differences)
    if count < SEEDS:
        seeds = "seed" if count == 1 else "seeds"
        text = f"Whether {name} generalises better than {other} is not tested at this size (n = {count} {seeds}; "
        alone = Estimate.alone(mean.value, f"{count} {seeds}: {SEEDS} are needed for a claim", "loss")
        return described(f"{text}{SEEDS} would do)", alone, **at)
    half = (mean.high - mean.low) / 2
    words = f"{name} ends {_above(mean.value)} the validation loss of {other}"
    if mean.low <= 0 <= mean.high:
        words = f"The validation losses of {name} and {other} cannot be told apart: one of {number(half)} may be there"
    return described(words, mean, **at)


# Spread, noise, speed, gap, memory


def _spread(run: RunTables, table: Table) -> list[Statement]:
    """Where the final training loss depends most on the seed."""
    found = {}
    for cell in dict.fromkeys(table["cell"].tolist()):
        values = table["training_loss"][table["cell"] == cell]
        if len(values) > 1 and np.isfinite(values).all() and values.mean() > 0:
            found[cell] = (float(values.std(ddof=1) / values.mean()), len(values))
    if not found:
        return []
    most = max(found, key=lambda cell: found[cell][0])
    share, count = found[most]
    text = f"The final training loss depends most on the seed in {most}: its standard deviation is {number(share)} of "
    estimate = Estimate.alone(share, f"{count} seeds, the largest of {len(found)} settings: no interval")
    return [described(f"{text}its mean", estimate, measure=MEASURE, run=run.run)]


def _noise(run: RunTables, table: Table) -> list[Statement]:
    """Relative variance of the gradient's norm with the smallest batch over that with the largest, of one method."""
    method = table["method"][0]
    own = table.where((table["method"] == method) & np.isfinite(table["gradient_variance"]))
    sizes = np.unique(own["batch_size"])
    if len(sizes) < 2:
        return []
    logs = []
    for size in (sizes[0], sizes[-1]):
        rows = own.where((own["batch_size"] == size) & (own["gradient_variance"] > 0))
        seeds = {seed: rows["gradient_variance"][rows["seed"] == seed] for seed in np.unique(rows["seed"]).tolist()}
        logs.append({seed: float(np.log(values).mean()) for seed, values in seeds.items()})
    shared = [seed for seed in logs[0] if seed in logs[1]]
    if not shared:
        return []
    ratio = _factor(np.array([logs[0][seed] - logs[1][seed] for seed in shared]))
    text = (
        f"Late in training the norm of the batch gradient has {number(ratio.value)} times the relative variance with "
    )
    text += f"batches of {sizes[0]:,} than with {sizes[-1]:,} ({method})"
    return [described(text, ratio, measure=MEASURE, run=run.run)]


def _speed(run: RunTables, table: Table) -> list[Statement]:
    """Whether what reaches the target sooner ends with a better validation loss, over settings."""
    steps, losses = [], []
    for cell in dict.fromkeys(table["cell"].tolist()):
        rows = table.where(table["cell"] == cell)
        taken = rows["examples_to_target"].astype(np.float64)
        # A run that never reaches the target is later than all others: ranks need no more.
        steps.append(float(np.where(taken < 0, math.inf, taken).mean()))
        losses.append(float(rows["validation_loss"].mean()))
    late = np.array(steps)
    finite = late[np.isfinite(late)]
    late = np.where(np.isfinite(late), late, 2 * finite.max() + 1 if len(finite) else math.nan)
    found = rank_correlation(late, np.array(losses), "settings")
    if not math.isfinite(found.value):
        return []
    text = "Over settings, the examples that it takes to reach the target loss and the final validation loss have the "
    return [described(f"{text}rank correlation {number(found.value)}", found, measure=MEASURE, run=run.run)]


def _gap(run: RunTables, table: Table) -> list[Statement]:
    """The gap with the fewest and with the most examples."""
    counts = np.unique(table["examples"])
    if len(counts) < 2:
        return []
    ends = [table["gap"][table["examples"] == count] for count in (counts[0], counts[-1])]
    small, large = (float(np.nanmean(gaps)) if np.isfinite(gaps).any() else math.nan for gaps in ends)
    text = f"The gap between validation and training loss is {number(small)} with {counts[0]:,} examples and "
    text += f"{number(large)} with {counts[-1]:,}"
    return [described(text, Estimate.alone(small - large, "means over members", "loss"), measure=MEASURE, run=run.run)]


def _memory(run: RunTables, table: Table) -> list[Statement]:
    ratio = table["measured_bytes"] / table["counted_bytes"]
    text = f"The peak memory of a step is {number(float(np.median(ratio)))} times what is counted, from "
    text += f"{number(float(table['measured_bytes'].min()))} to {number(float(table['measured_bytes'].max()))} bytes"
    where = f"smallest and largest of {len(table):,} settings"
    estimate = Estimate(float(np.median(ratio)), float(ratio.min()), float(ratio.max()), where)
    return [described(text, estimate, measure=MEASURE, run=run.run)]
