"""Runs that take keys from the best cell of a family, once its table says which that is."""

from collections.abc import Mapping, Sequence
from typing import Any

from quadscape.config.sections import Run
from quadscape.measures import SCHEMAS
from quadscape.measures.result import table_path
from quadscape.planning.experiment import Experiment
from quadscape.planning.families import chosen_run
from quadscape.stage.events import Log
from quadscape.tables import read_table

TUNING = "tuning"
"""The measure, and its table, that says how well each cell of a family does on validation data."""


def run_to_train(experiment: Experiment, raw: Mapping[str, Any], name: str, tables: Sequence[str], log: Log) -> Run:
    """A run with everything that its training needs.

    Args:
        experiment: The experiment.
        raw: The content of its file.
        name: The run's.
        tables: The manifest of the table that it chooses from; none where it chooses nothing.
        log: Is told what was chosen.

    Returns:
        The run.
    """
    if name not in experiment.choices:
        return experiment.run(name)
    table = read_table(table_path(tables[0], TUNING), SCHEMAS[TUNING])
    losses = dict(zip(map(str, table.columns["cell"]), map(float, table.columns["validation_loss"]), strict=True))
    run, levels = chosen_run(experiment, raw, name, losses)
    said = ", ".join(f"{axis} {level.label}" for axis, level in levels.items())
    log(f"Chosen from family '{experiment.choices[name].family}' by the loss on validation data: {said}.")
    return run
