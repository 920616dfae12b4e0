"""Runs that take keys from a family, once tables say what its best cell, or the limit of its learning rates, is."""

from collections.abc import Mapping, Sequence
from typing import Any

from quadscape.config.sections import Run
from quadscape.measures import SCHEMAS
from quadscape.measures.result import table_path
from quadscape.planning.experiment import Experiment
from quadscape.planning.families import OfLimit, chosen_run, run_at_limit
from quadscape.stage.events import Log
from quadscape.tables import read_table

TUNING = "tuning"
"""The measure, and its table, that says how well each cell of a family does on validation data."""

LIMITS = "ruggedness"
"""The measure, and its table, that holds the limit of the learning rate at a checkpoint."""


def run_to_train(experiment: Experiment, raw: Mapping[str, Any], name: str, tables: Sequence[str], log: Log) -> Run:
    """A run with everything that its training needs.

    Args:
        experiment: The experiment.
        raw: The content of its file.
        name: The run's.
        tables: Manifests of what it chooses from; none where it chooses nothing.
        log: Is told what was chosen.

    Returns:
        The run.
    """
    if name not in experiment.choices:
        return experiment.run(name)
    choice = experiment.choices[name]
    if isinstance(choice, OfLimit):
        run = run_at_limit(experiment, raw, name, [_limit(path) for path in tables])
        rate = getattr(run.learning_rate, "value", float("nan"))
        log(f"Learning rate {rate:g}, {choice.fraction:g} of the limit of its network in family '{choice.family}'.")
        return run
    table = read_table(table_path(tables[0], TUNING), SCHEMAS[TUNING])
    losses = dict(zip(map(str, table.columns["cell"]), map(float, table.columns["validation_loss"]), strict=True))
    run, levels = chosen_run(experiment, raw, name, losses)
    said = ", ".join(f"{axis} {level.label}" for axis, level in levels.items())
    log(f"Chosen from family '{choice.family}' by the loss on validation data: {said}.")
    return run


def _limit(manifest: str) -> float:
    """Where displacements along q₁ begin to grow, as the range test of one checkpoint found it."""
    table = read_table(table_path(manifest, LIMITS), SCHEMAS[LIMITS])
    return float(table["value"][table["score"] == "limit"][0])
