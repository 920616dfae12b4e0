"""The loss along the straight line between the ends of two runs (Frankle et al., arXiv 1912.05671)."""

from dataclasses import replace
from typing import Any

from quadscape.errors import ConfigError
from quadscape.measures.connection.declaration import CONNECTION, CONNECTION_SUMMARY
from quadscape.measures.interpolation.compute import empty, measure
from quadscape.measures.job import Job
from quadscape.measures.run_losses import RunLosses, run_head
from quadscape.tables import Table

_SHARED = ("model", "loss", "data")


def compute(job: Job) -> dict[str, Table]:
    """The line between the ends of a pair of runs.

    Args:
        job: Of a pair; reads data and trajectories.

    Returns:
        Tables `connection` and `connection_summary`, empty where a run diverged. Attributes as those of
        `interpolation`, of the first run, and runs, the names of both.

    Raises:
        ConfigError: The runs differ in network, loss or data, so that no line has one loss.
    """
    both = [job.trajectory(which) for which in (0, 1)]
    names = [member.run for member in job.family.members]
    given: list[dict[str, Any]] = [trajectory.stage.manifest["parameters"] for trajectory in both]
    for key in _SHARED:
        if given[0][key] != given[1][key]:
            raise ConfigError(
                f"The runs of the pair '{names[0]}', '{names[1]}' have another {key} each, so that no loss is defined "
                "between their ends; pair runs of one network, loss and data set."
            )
    losses = RunLosses(job)
    head = run_head(job, both[0], losses.counts["train"], losses.batch_norm) | {"runs": names}
    lost = [name for name, trajectory in zip(names, both, strict=True) if trajectory.diverged is not None]
    if lost:
        job.log(f"run '{lost[0]}' diverged: it has no end to go to")
        found = empty(head)
    else:
        ends = [trajectory.theta(trajectory.training.iterations) for trajectory in both]
        found = measure(losses.at, ends[0], ends[1], losses.counts, job.options.points, head, job.epsilon, job.log)
    return {
        "connection": replace(found["interpolation"], schema=CONNECTION),
        "connection_summary": replace(found["interpolation_summary"], schema=CONNECTION_SUMMARY),
    }
