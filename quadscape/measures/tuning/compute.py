"""Which setting of a family is best on validation data: means over seeds of the final losses."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quadscape.measures.intervals import student
from quadscape.measures.job import Job
from quadscape.measures.members import MemberRun, by_cell, columns_of, family_head, read_members
from quadscape.measures.tuning.declaration import RUNS, TUNING
from quadscape.tables import Table

_LOSSES = {"training_loss": 0, "validation_loss": 1}


def compute(job: Job) -> dict[str, Table]:
    """Means over the seeds of every cell.

    Args:
        job: Reads the trajectories.

    Returns:
        The tables of `measure`.
    """
    members = read_members(job)
    return measure(members, family_head(job.family, members))


def measure(members: Sequence[MemberRun], head: Mapping[str, Any]) -> dict[str, Table]:
    """Means over the seeds of every cell.

    A cell of which a member diverged counts as infinite: whoever chooses by the mean must not choose a setting that
    works for some seeds.

    Args:
        members: Members of the family.
        head: Attributes of the tables.

    Returns:
        Tables `tuning` and `tuning_runs`.
    """
    rows, runs = [], []
    for cell, own in by_cell(members).items():
        ends = {name: np.array([_end(member, split) for member in own]) for name, split in _LOSSES.items()}
        row = {
            "cell": cell,
            **own[0].settings,
            "members": len(own),
            "diverged": sum(member.diverged >= 0 for member in own),
        }
        for name, values in ends.items():
            row[name], row[f"{name}_low"], row[f"{name}_high"] = student(values)
        rows.append(row)
        for place, member in enumerate(own):
            runs.append(
                {
                    **member.member,
                    "learning_rate": member.learning_rate,
                    "diverged_at": member.diverged,
                    **{name: float(values[place]) for name, values in ends.items()},
                }
            )
    runs.sort(key=lambda run: run["run"])
    return {
        "tuning": Table(TUNING, columns_of(rows, TUNING.all_columns()), head),
        "tuning_runs": Table(RUNS, columns_of(runs, RUNS.all_columns()), head),
    }


def _end(member: MemberRun, split: int) -> float:
    """Final loss; what is not finite counts as infinite."""
    value = member.final(split, 0)
    return value if math.isfinite(value) else math.inf
