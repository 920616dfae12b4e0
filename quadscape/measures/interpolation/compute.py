"""The loss along the straight line from the start of a run to its end (Goodfellow et al., arXiv 1412.6544).

Whether it falls monotonically is the question of Lucas et al. (arXiv 2104.11044). The barrier is the excess over the
straight line between the end losses (Frankle et al., arXiv 1912.05671), which a convex loss never has.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from quadscape.measures.curves.compute import wilson
from quadscape.measures.interpolation.declaration import INTERPOLATION, REFINED, SUMMARY
from quadscape.measures.job import Job
from quadscape.measures.members import columns_of
from quadscape.measures.run_losses import ROUNDING, Evaluation, RunLosses, run_head
from quadscape.tables import Table

Evaluate = Callable[[np.ndarray], Mapping[str, Evaluation]]


def compute(job: Job) -> dict[str, Table]:
    """The line of one run.

    Args:
        job: Reads data and trajectory.

    Returns:
        The tables of `measure`, empty where the run diverged.
    """
    trajectory, losses = job.trajectory(), RunLosses(job)
    head = run_head(job, trajectory, losses.counts["train"], losses.batch_norm)
    if trajectory.diverged is not None:
        job.log(f"run '{job.run}' diverged at iteration {trajectory.diverged}: it has no end to go to")
        return empty(head)
    ends = trajectory.theta(0), trajectory.theta(trajectory.training.iterations)
    return measure(losses.at, *ends, losses.counts, job.options.points, head, job.epsilon, job.log)


def measure(
    evaluate: Evaluate,
    first: np.ndarray,
    last: np.ndarray,
    counts: Mapping[str, int],
    points: int,
    attributes: Mapping[str, Any],
    epsilon: float = float(np.finfo(np.float64).eps),
    log: Callable[[str], object] = print,
) -> dict[str, Table]:
    """The loss along a line, refined once where it has a bump or a barrier.

    Args:
        evaluate: Every split at a θ.
        first: θ at α = 0, shape (P,).
        last: θ at α = 1, shape (P,).
        counts: Number of examples by split.
        points: Evenly spaced values of α.
        attributes: Head of the tables.
        epsilon: Machine epsilon of the precision of the losses.
        log: Told of splits whose loss is not finite somewhere on the line, which have no summary.

    Returns:
        Tables `interpolation` and `interpolation_summary`. Attribute distance: |θ_T − θ₀|.
    """
    alpha = np.linspace(0.0, 1.0, points)
    found = {float(a): evaluate(_point(first, last, a)) for a in alpha}
    for a in sorted({float(a) for split in counts for a in refinement(*_line(found, split), epsilon)} - found.keys()):
        found[a] = evaluate(_point(first, last, a))
    rows, summaries = [], []
    for split, count in counts.items():
        alpha, loss, scale = _line(found, split)
        accuracy = np.array([found[float(a)][split].accuracy for a in alpha])
        low, high = wilson(accuracy, count)
        rows += [
            {
                "split": split,
                "alpha": a,
                "loss": value,
                "accuracy": share,
                "accuracy_low": below,
                "accuracy_high": above,
            }
            for a, value, share, below, above in zip(alpha, loss, accuracy, low, high, strict=True)
        ]
        if np.isfinite(loss).all():
            summaries.append({"split": split, **describe(alpha, loss, floor_of(scale, epsilon))})
        else:
            log(f"the {split} loss is not finite everywhere on the line from start to end")
    return _tables(rows, summaries, {**attributes, "distance": float(np.linalg.norm(last - first))})


def empty(head: Mapping[str, Any]) -> dict[str, Table]:
    """The tables where there is no line.

    Args:
        head: Their attributes.

    Returns:
        Tables without rows.
    """
    return _tables([], [], head)


def _tables(rows: list, summaries: list, head: Mapping[str, Any]) -> dict[str, Table]:
    return {
        "interpolation": Table(INTERPOLATION, columns_of(rows, INTERPOLATION.all_columns()), head),
        "interpolation_summary": Table(SUMMARY, columns_of(summaries, SUMMARY.all_columns()), head),
    }


def _point(first: np.ndarray, last: np.ndarray, alpha: float) -> np.ndarray:
    # Exact at both ends.
    return (1 - alpha) * first + alpha * last


def _line(found: Mapping[float, Mapping[str, Evaluation]], split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    alpha = np.array(sorted(found))
    values = [found[float(a)][split] for a in alpha]
    return alpha, np.array([v.loss for v in values]), np.array([v.scale for v in values])


def floor_of(scale: np.ndarray, epsilon: float) -> float:
    """A bound on the rounding error of a difference of two losses of the line.

    Args:
        scale: `Evaluation.scale` of its points.
        epsilon: Machine epsilon of the losses.

    Returns:
        64ε times the largest scale.
    """
    return ROUNDING * epsilon * float(np.max(scale))


def describe(alpha: np.ndarray, loss: np.ndarray, floor: float) -> dict[str, Any]:
    """Bump and barrier of a line.

    Args:
        alpha: Ascending from 0 to 1.
        loss: Losses there, finite.
        floor: Rounding floor; what is no larger is 0.

    Returns:
        Values of the columns of `interpolation_summary` but the split.
    """
    rise = loss - np.minimum.accumulate(loss)
    top = int(np.argmax(rise))
    foot = int(np.argmin(loss[: top + 1]))
    excess = loss - ((1 - alpha) * loss[0] + alpha * loss[-1])
    height = int(np.argmax(excess))
    bump, barrier = float(rise[top]), float(excess[height])
    monotone = bump <= floor
    return {
        "monotone": monotone,
        "bump": 0.0 if monotone else bump,
        "foot": math.nan if monotone else float(alpha[foot]),
        "top": math.nan if monotone else float(alpha[top]),
        "barrier": barrier if barrier > floor else 0.0,
        "barrier_at": float(alpha[height]) if barrier > floor else math.nan,
        "start": float(loss[0]),
        "end": float(loss[-1]),
        "floor": floor,
    }


def refinement(alpha: np.ndarray, loss: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    """Further points beside the foot and the top of a bump and the top of a barrier; none where there are none.

    Args:
        alpha: Ascending from 0 to 1.
        loss: Losses there.
        scale: `Evaluation.scale` there.
        epsilon: Machine epsilon of the losses.

    Returns:
        Values of α, not those that are there, ascending.
    """
    if not np.isfinite(loss).all():
        return np.empty(0)
    found = describe(alpha, loss, floor_of(scale, epsilon))
    added: list[np.ndarray] = []
    for place in {found["foot"], found["top"], found["barrier_at"]}:
        if math.isnan(place):
            continue
        at = int(np.searchsorted(alpha, place))
        for left in range(max(0, at - 1), min(len(alpha) - 1, at + 1)):
            added.append(np.linspace(alpha[left], alpha[left + 1], REFINED + 2)[1:-1])
    return np.unique(np.concatenate(added)) if added else np.empty(0)
