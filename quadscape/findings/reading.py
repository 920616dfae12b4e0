"""Tables by run and checkpoint, and what they say of a run's setting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadscape.findings.statement import Estimate
from quadscape.tables import Table

Tables = Mapping[str, Sequence[Table]]
"""All tables of an experiment, by the name of their schema."""

SETTING = (
    "P",
    "N",
    "classes",
    "weight_decay",
    "momentum",
    "nesterov",
    "batch_size",
    "sampling",
    "normalization",
    "data",
    "loss",
)
"""Attributes of tables that tell a run's setting; one table of the run suffices."""


@dataclass(frozen=True)
class RunTables:
    """The tables of one kind that belong to one run.

    Attributes:
        run: Name of the run.
        tables: Its tables that have rows, by iteration.
        setting: What is known of it; see `run_setting`.
    """

    run: str
    tables: tuple[Table, ...]
    setting: Mapping[str, Any]

    @property
    def after_start(self) -> tuple[Table, ...]:
        """Tables of checkpoints after iteration 0 (pairs: whose first checkpoint is)."""
        return tuple(table for table in self.tables if iteration_of(table) > 0)

    @property
    def last(self) -> Table | None:
        """Table of the last checkpoint after iteration 0."""
        return self.after_start[-1] if self.after_start else None


def iteration_of(table: Table) -> int:
    """Iteration of a table's checkpoint, of a pair the first; 0 for a table of a whole run."""
    return int(table.attributes.get("iteration", table.attributes.get("iteration_a", 0)))


def place(measure: str, run: RunTables, table: Table) -> dict[str, Any]:
    """Where a statement on one table comes from: arguments of `described`, `compared` and `untestable`.

    Args:
        measure: Name of the measure.
        run: The run.
        table: The table.

    Returns:
        measure, run and iterations.
    """
    return {"measure": measure, "run": run.run, "iterations": (iteration_of(table),)}


def runs_of(tables: Tables, name: str) -> list[RunTables]:
    """The tables of one kind, run by run.

    Args:
        tables: All tables.
        name: Name of the schema.

    Returns:
        Runs in the order in which they come, without tables that have no rows.
    """
    found: dict[str, list[Table]] = {}
    for table in tables.get(name, ()):
        if len(table):
            found.setdefault(str(table.attributes.get("run", "")), []).append(table)
    return [RunTables(run, tuple(sorted(of, key=iteration_of)), run_setting(tables, run)) for run, of in found.items()]


def run_setting(tables: Tables, run: str) -> dict[str, Any]:
    """What the tables of a run say of its setting.

    Args:
        tables: All tables.
        run: Name of the run.

    Returns:
        Those of `SETTING` that some table of the run has among its attributes, and full_batch, whether a batch holds
        all N training examples, where both sizes are known.
    """
    found: dict[str, Any] = {}
    for table in (table for of in tables.values() for table in of):
        if str(table.attributes.get("run", "")) == run:
            found |= {name: table.attributes[name] for name in SETTING if name in table.attributes}
    if "batch_size" in found and "N" in found:
        found["full_batch"] = bool(found["batch_size"] >= found["N"])
    return found


def learning_rate_before(tables: Tables, run: str, iteration: int) -> float:
    """The learning rate of the last step before a checkpoint.

    Args:
        tables: All tables; `curves` of the run is read.
        run: Name of the run.
        iteration: Steps taken at the checkpoint.

    Returns:
        η, NaN where no curve tells it.
    """
    for of in runs_of(tables, "curves"):
        if of.run == run:
            steps, rates = of.tables[0]["iteration"], of.tables[0]["learning_rate"]
            before = np.flatnonzero((steps < iteration) & np.isfinite(rates))
            return float(rates[before[np.argmax(steps[before])]]) if len(before) else math.nan
    return math.nan


def drops_of(tables: Tables, run: str) -> list[int]:
    """Iterations from which a lower learning rate holds, from the run's `curves`."""
    for of in runs_of(tables, "curves"):
        if of.run == run:
            return [int(drop) for drop in of.tables[0].attributes.get("drops", ())]
    return []


def classes_of(setting: Mapping[str, Any]) -> int:
    """Number of classes C, 0 where it is not known."""
    return int(setting.get("classes", 0) or 0)


def attribute(table: Table, name: str) -> float:
    """A number among a table's attributes, NaN where it is missing."""
    value = table.attributes.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def of_sign(table: Table, sign: int) -> Table:
    """Rows of directions of eigenvalues of one sign, beyond numerical zero."""
    return table.where((table["sign"] == sign) & ~table["is_zero"] & (table["eigenvalue"] * sign > 0))


def estimate(table: Table, name: str, row: int, interval: str, without: str, unit: str = "1") -> Estimate:
    """A number of a table with the interval that its columns `<name>_low` and `<name>_high` hold.

    Args:
        table: The table.
        name: Column of the number.
        row: Its row.
        interval: What the interval is.
        without: What is said where there is none.
        unit: Unit.

    Returns:
        The estimate.
    """
    value, low, high = (float(table[f"{name}{end}"][row]) for end in ("", "_low", "_high"))
    if math.isnan(low):
        return Estimate.alone(value, without, unit)
    return Estimate(value, low, high, interval, unit)
