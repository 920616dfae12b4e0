"""Variants of gradient descent compared: courses, ends, noise of steps, and what a step costs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.measures.descent.declaration import COST, COURSE, MEMBERS
from quadscape.measures.intervals import relative_variance
from quadscape.measures.job import Job
from quadscape.measures.members import MemberRun, by_cell, columns_of, family_head, read_members, target_loss
from quadscape.tables import Table

if TYPE_CHECKING:
    from quadscape.training.trajectory import Trajectory

PAIRS = 512
"""Largest number of steps whose lengths are taken."""


def compute(job: Job) -> dict[str, Table]:
    """Compares the members of a family; takes a few steps of each cell to time and size them, and trains nothing.

    Args:
        job: Reads the data and the trajectories.

    Returns:
        The tables `descent_course`, `descent_members` and `descent_cost`.
    """
    from quadscape.measures.descent.cost import step_cost

    members = read_members(job)
    head = family_head(job.family, members)
    lengths = [step_lengths(job.trajectory(member.place), member) for member in members]
    tables = measure(members, lengths, job.options.target, head)
    rows = []
    for cell, own in by_cell(members).items():
        given = job.trajectory(own[0].place).stage.manifest["parameters"]
        cost = step_cost(
            own[0].training,
            given["model"],
            given["loss"],
            job.path("data", own[0].place),
            job.device,
            job.options.repetitions,
        )
        job.log(f"{cell}: {cost['seconds_per_step']:.2g} s for a step, {cost['measured_bytes'] / 1e6:.3g} MB")
        rows.append({"cell": cell, **own[0].settings, **cost})
    machine = {"device": job.device.type, "threads": job.threads}
    return tables | {"descent_cost": Table(COST, columns_of(rows, COST.all_columns()), head | machine)}


def last_quarter(member: MemberRun) -> range:
    """Steps of the last quarter of a run."""
    steps = member.training.iterations
    return range(steps - steps // 4, steps)


def step_lengths(trajectory: "Trajectory", member: MemberRun) -> np.ndarray:
    """Lengths |θ(t+1) − θ(t)| of steps of the last quarter of which both iterates were kept, at most `PAIRS`.

    The distance of iterates further apart is no length of a step: it grows with the root of their distance where steps
    are noise, and in proportion to it where they are not.

    Args:
        trajectory: The training.
        member: The member that it is of.

    Returns:
        Lengths, shape (n,); none if the run diverged.
    """
    if member.diverged >= 0:
        return np.empty(0)
    training = trajectory.training
    kept = [t for t in last_quarter(member) if training.is_saved(t) and training.is_saved(t + 1)]
    chosen = kept[-PAIRS:]  # neighbours, where the stride is one: what is evenly thinned has another series
    found, before = [], (-1, np.empty(0))
    for t in chosen:
        start = before[1] if before[0] == t else trajectory.theta(t)
        before = (t + 1, trajectory.theta(t + 1))
        found.append(float(np.linalg.norm(before[1] - start)))
    return np.array(found)


def measure(
    members: Sequence[MemberRun], lengths: Sequence[np.ndarray], target: float, head: Mapping[str, Any]
) -> dict[str, Table]:
    """Courses and ends of the members of a family.

    Args:
        members: The members.
        lengths: Lengths of the steps of each; see `step_lengths`.
        target: Training loss whose first reach is timed; 0: the median of the final training losses.
        head: Attributes of the tables.

    Returns:
        Tables `descent_course` and `descent_members`, with the target among their attributes.
    """
    target = target_loss(members, target)
    head = {**head, "target_loss": None if np.isnan(target) else target}
    rows = [_member(member, one, target) for member, one in zip(members, lengths, strict=True)]
    courses = [_course(member) for member in members]
    course = {name: np.concatenate([part[name] for part in courses]) for name in COURSE.all_columns()}
    return {
        "descent_course": Table(COURSE, course, head),
        "descent_members": Table(MEMBERS, columns_of(rows, MEMBERS.all_columns()), head),
    }


def _course(member: MemberRun) -> dict[str, np.ndarray]:
    iterations, training_loss = member.evaluated(0, 0)
    count = len(iterations)
    return {
        "run": np.full(count, member.place),
        "cell": np.full(count, member.cell),
        "seed": np.full(count, member.seed),
        "iteration": iterations,
        "examples_seen": iterations * member.batch_size,
        "training_loss": training_loss,
        "validation_loss": member.evaluated(1, 0)[1],
        "training_accuracy": member.evaluated(0, 1)[1],
        "validation_accuracy": member.evaluated(1, 1)[1],
    }


def _member(member: MemberRun, lengths: np.ndarray, target: float) -> dict[str, Any]:
    steps = member.steps_to(target)
    own = last_quarter(member)
    norms = np.linalg.norm(member.course.gradient_norm[own.start : own.stop], axis=1)
    return {
        **member.member,
        **member.settings,
        "diverged_at": member.diverged,
        "training_loss": member.final(0, 0),
        "validation_loss": member.final(1, 0),
        "validation_accuracy": member.final(1, 1),
        "gap": member.final(1, 0) - member.final(0, 0),
        "steps_to_target": steps,
        "examples_to_target": steps * member.batch_size if steps >= 0 else -1,
        "gradient_variance": relative_variance(norms) if member.diverged < 0 else np.nan,
        "step_variance": relative_variance(lengths),
    }
