"""Long measures: their work is cut into items, and the protocol of long stages keeps what is done.

The values of all items lie in a stage directory beside the tables until these are written; a job that was killed goes
on after the last unit of items that it finished. Of a measure that keeps values, such as losses of single examples, the
directory stays: `verify` checks it, `purge` frees what is large in it, and a job without it measures again.
"""

import math
import shutil
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quadscape.measures.declaration import Measure
from quadscape.measures.job import Job
from quadscape.measures.result import items_directory
from quadscape.numerics import apply_numerics
from quadscape.stage.finished import open_stage
from quadscape.stage.protocol import Arrays, Needs, StageStore
from quadscape.stage.run import run_stage
from quadscape.store import ArraySpec
from quadscape.tables import Table

UNIT_SECONDS = 5.0
"""What the items of one unit may take by the nominal law; a CPU takes ten times as long."""


class Work(Protocol):
    """What the compute module of a long measure supplies, as a class `Work` made from a job."""

    @property
    def items(self) -> int:
        """Number of items, none of which depends on another."""

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Shape of the array that is stored of each item, by name: float64, or float32 of what the measure keeps."""

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """Values of some items: arrays of the layout's shapes with one axis for the items in front."""

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """The measure's tables from the values of all items."""


class ItemsTask:
    """The values of all items, as a long stage.

    Attributes:
        name: `measure`.
        version: Of the format, not of the mathematics, which the origin stands for.
    """

    name = "measure"
    version = 1

    def __init__(self, measure: Measure, job: Job, origin: str) -> None:
        self._measure, self._job, self._origin = measure, job, origin
        self._cost = measure.cost(job.sizes(), vars(job.options))

    @cached_property
    def work(self) -> Work:
        """What computes the items."""
        return import_module(self._measure.module).Work(self._job)

    def parameters(self) -> dict[str, Any]:
        """The digest of everything that the values follow from."""
        return {"measure": self._measure.name, "origin": self._origin}

    def plan(self) -> dict[str, Any]:
        """How many items one unit has, and what their values depend on besides the parameters."""
        items = self.work.items
        seconds = self._cost.nominal_seconds / max(1, items)
        together = max(1, min(items, math.floor(UNIT_SECONDS / seconds) if seconds > 0 else items))
        return {
            "items": items,
            "together": together,
            "layout": {name: list(shape) for name, shape in self.work.layout().items()},
            "threads": self._job.threads,
            "device": self._job.device.type,
        }

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """One array for each name of the layout, items in front; a unit is a file."""
        found = []
        for name, shape in plan["layout"].items():
            axes = tuple(f"{name}_{axis}" for axis in range(len(shape)))
            chunks = (plan["together"], *shape)
            found.append(ArraySpec(name, (plan["items"], *shape), self._dtype(name), ("item", *axes), chunks))
        return found

    def _dtype(self, name: str) -> str:
        return "float32" if name in self._measure.keeps else "float64"

    def units(self, plan: dict[str, Any]) -> int:
        """Number of units."""
        return -(-plan["items"] // plan["together"])

    def estimate(self, plan: dict[str, Any]) -> Needs:
        """Memory by the measure's law, and the size of all values."""
        disk = sum(spec.nbytes for spec in self.arrays(plan))
        return Needs(int(self._cost.memory_bytes), disk + (1 << 20))

    def start(self, plan: dict[str, Any]) -> None:
        """The threads of the plan, whatever this job was given."""
        apply_numerics(plan["threads"])

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """The items of one unit."""
        part = slice(unit * plan["together"], min(plan["items"], (unit + 1) * plan["together"]))
        values = self.work.measure(part)
        # Copies, so that a measure may use its buffers again while these are stored.
        return {
            name: ((part, *(slice(0, length) for length in shape)), np.array(values[name], dtype=self._dtype(name)))
            for name, shape in plan["layout"].items()
        }

    def smaller(self, plan: dict[str, Any]) -> None:
        """A single item cannot be made smaller."""

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """Nothing besides the arrays."""
        return {}


def measure_items(measure: Measure, job: Job, origin: str, manifest: Path) -> dict[str, Table]:
    """Measures all items, or those that are missing, and makes the tables.

    Args:
        measure: A measure with items.
        job: What it works on.
        origin: Digest of everything that the result follows from.
        manifest: The declared file of the result.

    Returns:
        The tables by name.
    """
    directory = items_directory(manifest)
    apply_numerics(job.threads)
    task = ItemsTask(measure, job, origin)
    run_stage(task, directory, log=job.log)
    stage = open_stage(directory, task.name)
    # As planned when the work began, whatever this job was given.
    apply_numerics(stage.manifest["plan"]["threads"])
    names = [name for name in task.work.layout() if name not in measure.keeps]
    return task.work.tables({name: stage.read(name) for name in names})


def remove_items(manifest: Path) -> None:
    """Removes the values of the items once the tables are written."""
    shutil.rmtree(items_directory(manifest), ignore_errors=True)
