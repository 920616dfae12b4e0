"""Escape from the basins of a planted loss: where runs begin and end."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quadscape.config.model import model_section
from quadscape.measures.curves.compute import wilson
from quadscape.measures.escape.declaration import ESCAPE, RUNS
from quadscape.measures.job import Job
from quadscape.measures.members import MemberRun, by_cell, columns_of, family_head, read_members
from quadscape.tables import Table


class Planted(Protocol):
    """What a planted loss says of itself; see `quadscape.network.planted`."""

    def wells(self) -> np.ndarray:
        """Its minima, the best one first, shape (wells, P)."""

    def basin(self, theta: np.ndarray) -> int:
        """Index of the well of a point."""

    def training_loss(self, theta: np.ndarray) -> float:
        """The training loss in closed form."""


def compute(job: Job) -> dict[str, Table]:
    """Basins of all members whose network declares wells; others are left out, and said in the log.

    Args:
        job: Reads data (their shape) and trajectories.

    Returns:
        The tables of `measure`, empty where no network declares wells.
    """
    members, planted, ends = [], [], []
    every = read_members(job)
    for member in every:
        trajectory = job.trajectory(member.place)
        network = _planted(trajectory.stage.manifest["parameters"]["model"], job.path("data", member.place))
        if network is None:
            job.log(f"{member.cell}, seed {member.seed}: the network declares no wells")
            continue
        members.append(member)
        planted.append(network)
        ends.append((trajectory.theta(0), trajectory.theta(member.training.iterations)))
    return measure(members, planted, ends, family_head(job.family, every))


def _planted(model: Any, data: str | Path) -> Planted | None:
    from quadscape.data.info import data_info
    from quadscape.network.models import build_model

    info = data_info(data)
    network: Any = build_model(model_section(model), info.shape, len(info.classes))
    return network if hasattr(network, "wells") else None


def measure(
    members: Sequence[MemberRun],
    planted: Sequence[Planted],
    ends: Sequence[tuple[np.ndarray, np.ndarray]],
    head: Mapping[str, Any],
) -> dict[str, Table]:
    """Where starts on planted losses end.

    Args:
        members: The members.
        planted: The loss of each.
        ends: First and last iterate of each.
        head: Attributes of the tables.

    Returns:
        Tables `escape` and `escape_runs`. Attribute largest_error: by how much the closed form and the evaluated
        training loss differ at most, at the last iterates.
    """
    runs, error = [], 0.0
    for member, loss, (first, last) in zip(members, planted, ends, strict=True):
        ended = -1 if member.diverged >= 0 else loss.basin(last)
        row = {**member.member, "diverged_at": member.diverged, "began": loss.basin(first), "ended": ended}
        excess = math.nan
        if ended >= 0:
            value = loss.training_loss(last)
            excess = value - loss.training_loss(loss.wells()[0])
            error = max(error, abs(value - member.final(0, 0)))
        runs.append({**row, "excess": excess})
    cells = by_cell(members)
    rows = [_cell(cell, own, [run for run in runs if run["cell"] == cell]) for cell, own in cells.items()]
    head = {**head, "largest_error": error if runs else None}
    return {
        "escape": Table(ESCAPE, columns_of(rows, ESCAPE.all_columns()), head),
        "escape_runs": Table(RUNS, columns_of(runs, RUNS.all_columns()), head),
    }


def _cell(cell: str, members: Sequence[MemberRun], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    count, ended = len(runs), sum(run["ended"] == 0 for run in runs)
    low, high = wilson(np.array([ended / count]), count)
    return {
        "cell": cell,
        **members[0].settings,
        "starts": count,
        "diverged": sum(run["ended"] < 0 for run in runs),
        "began": sum(run["began"] == 0 for run in runs),
        "ended": ended,
        "moved": sum(run["ended"] not in {-1, run["began"]} for run in runs),
        "share": ended / count,
        "share_low": float(low[0]),
        "share_high": float(high[0]),
    }
