"""Members of a family as measures of it read them: label, settings, course, and whether they diverged."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.digests import json_digest
from quadscape.measures.family import Family
from quadscape.tables import Column

if TYPE_CHECKING:
    from quadscape.config.sections import Training
    from quadscape.measures.job import Job
    from quadscape.training.trajectory import Curves


@dataclass(frozen=True)
class MemberRun:
    """One trained member of a family.

    Attributes:
        place: Its place in the family.
        cell: Its cell.
        seed: Its seed.
        training: The section under which it was trained.
        course: Losses, norms and evaluations; NaN from where it diverged.
        parameters: P.
        diverged: Iteration at which its loss was first not finite, −1 if it never was.
        beside: Digest of what determines the run besides training section and seed: network, loss, data, start.
    """

    place: int
    cell: str
    seed: int
    training: "Training"
    course: "Curves"
    parameters: int
    diverged: int = -1
    beside: str = ""

    @property
    def examples(self) -> int:
        """N."""
        return int(self.course.counts["train"])

    @property
    def batch_size(self) -> int:
        """B."""
        return self.training.batch_of(self.examples)

    @property
    def learning_rate(self) -> float:
        """η at the start, after the warm-up; NaN where it comes from a table."""
        return float(getattr(self.training.learning_rate, "value", np.nan))

    @property
    def but_rate(self) -> str:
        """Digest of all that determines the run but its seed and the height of its learning rate."""
        section = json.loads(self.training.model_dump_json(exclude={"seed"}))
        section["learning_rate"].pop("value", None)
        return json_digest([section, self.beside])

    @property
    def settings(self) -> dict[str, Any]:
        """Values of `SETTINGS`."""
        momentum = self.training.rule()["momentum"]
        return {
            "method": self.training.optimizer.method,
            "momentum": np.nan if momentum is None else momentum,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "weight_decay": self.training.weight_decay,
            "iterations": self.training.iterations,
            "examples": self.examples,
            "parameters": self.parameters,
        }

    @property
    def member(self) -> dict[str, Any]:
        """Values of `MEMBER`."""
        return {"run": self.place, "cell": self.cell, "seed": self.seed}

    def evaluated(self, split: int, metric: int) -> tuple[np.ndarray, np.ndarray]:
        """Evaluations of a whole split.

        Args:
            split: 0 for training, 1 for validation.
            metric: 0 for the loss, 1 for the accuracy.

        Returns:
            Iterations, int64, and values of the same length, before the run diverged.
        """
        iterations = self.course.evaluated
        return iterations, self.course.evaluation[iterations, split, metric]

    def steps_to(self, target: float) -> int:
        """Steps taken at the first evaluation at which the training loss is at most `target`; −1 if that is never."""
        iterations, losses = self.evaluated(0, 0)
        reached = iterations[losses <= target]
        return int(reached[0]) if len(reached) else -1

    def final(self, split: int, metric: int) -> float:
        """The evaluation at the end of the run; NaN if it diverged."""
        return float(self.course.evaluation[self.training.iterations, split, metric]) if self.diverged < 0 else np.nan


def read_members(job: "Job") -> list[MemberRun]:
    """All members of a job's family.

    Args:
        job: A job of a family that reads trajectories.

    Returns:
        The members, in order.
    """
    found = []
    for place, member in enumerate(job.family.members):
        trajectory = job.trajectory(place)
        given = trajectory.stage.manifest["parameters"]
        found.append(
            MemberRun(
                place,
                job.family.cell(member),
                int(given["seed"]),
                trajectory.training,
                trajectory.curves(),
                int(given["parameters"]),
                -1 if trajectory.diverged is None else trajectory.diverged,
                json_digest({name: value for name, value in given.items() if name not in {"training", "seed"}}),
            )
        )
    return found


def target_loss(members: Sequence[MemberRun], given: float) -> float:
    """The training loss whose first reach is counted.

    Args:
        members: The members.
        given: The loss; 0 for the default.

    Returns:
        What is given, or the median of the finite final training losses; NaN where there is none.
    """
    if given != 0:
        return given
    ends = np.array([member.final(0, 0) for member in members])
    finite = ends[np.isfinite(ends)]
    return float(np.median(finite)) if len(finite) else float("nan")


def by_cell(members: Sequence[MemberRun]) -> dict[str, list[MemberRun]]:
    """Members of every cell, in order."""
    found: dict[str, list[MemberRun]] = {}
    for member in members:
        found.setdefault(member.cell, []).append(member)
    return found


def family_head(family: Family, members: Sequence[MemberRun]) -> dict[str, Any]:
    """What every table of a family carries.

    Args:
        family: The family.
        members: Its members.

    Returns:
        run, the family's name; axes and repeats; cells, the labels of every cell by axis; rate_axes, the axes along
        which runs differ in the height of the learning rate alone; P and N where all share them.
    """
    axes = {axis: list(labels) for axis, labels in family.axes.items() if axis not in family.repeats}
    cells = {cell: {axis: of[0].labels[axis] for axis in axes} for cell, of in family.cells.items()}
    head: dict[str, Any] = {"run": family.name, "axes": axes, "repeats": list(family.repeats), "cells": cells}
    head["rate_axes"] = _rate_axes(family, members, list(axes))
    for name, values in {"P": {m.parameters for m in members}, "N": {m.examples for m in members}}.items():
        if len(values) == 1:
            head[name] = values.pop()
    return head


def _rate_axes(family: Family, members: Sequence[MemberRun], axes: Sequence[str]) -> list[str]:
    found = []
    for axis in axes:
        groups: dict[tuple[str, ...], list[MemberRun]] = {}
        for run in members:
            labels = family.members[run.place].labels
            groups.setdefault(tuple(labels[name] for name in axes if name != axis), []).append(run)
        alike = all(len({run.but_rate for run in group}) == 1 for group in groups.values())
        if alike and any(len({run.learning_rate for run in group}) > 1 for group in groups.values()):
            found.append(axis)
    return found


def columns_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """Rows as columns of a table, also where there are none.

    Args:
        rows: One mapping per row.
        columns: All columns of the table.

    Returns:
        Arrays by name.
    """
    kinds = {"float": np.float64, "int": np.int64, "bool": np.bool_, "str": np.str_}
    return {name: np.array([row[name] for row in rows], dtype=kinds[column.kind]) for name, column in columns.items()}
