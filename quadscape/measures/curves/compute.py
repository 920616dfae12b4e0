"""How the training went: batch loss, learning rate, evaluations, gradient norms, thinned for drawing ."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quadscape.measures.curves.declaration import CURVES, EVALUATIONS, NORMS
from quadscape.measures.interfaces import merged
from quadscape.measures.job import Job
from quadscape.tables import Table

ROWS = 2000
"""Largest number of rows along the run."""

WINDOWS = 100
"""A running window is this fraction of the run."""

DROP = 0.8
"""A learning rate that falls below this fraction of the one before is a drop; windows do not reach across it."""

SPLITS = ("train", "validation")
"""The first splits in arrays of evaluations. The last one, of test data, is for `final_test` alone."""


def wilson(share: np.ndarray, count: int, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval for a binomial share.

    Args:
        share: Observed shares.
        count: Number of trials.
        z: Normal quantile.

    Returns:
        Lower and upper ends.
    """
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    width = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return np.maximum(middle - width, 0.0), np.minimum(middle + width, 1.0)


def find_drops(learning_rate: np.ndarray) -> np.ndarray:
    """Iterations from which a markedly lower learning rate holds, int64."""
    rates = np.asarray(learning_rate)
    return np.flatnonzero(rates[1:] < DROP * rates[:-1]) + 1


def windows(iterations: int, drops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Running windows that do not reach across learning-rate drops.

    Args:
        iterations: Length of the run.
        drops: Iterations at which a new segment begins.

    Returns:
        Centres, starts and stops of the windows, int64; at most about `ROWS`.
    """
    half = max(2, iterations // (2 * WINDOWS))
    edges = np.concatenate([[0], drops, [iterations]])
    spaced = np.unique(np.rint(np.linspace(0, iterations - 1, min(iterations, ROWS))).astype(np.int64))
    # Both sides of a drop are always shown, or the curve would lean.
    centres = np.unique(np.concatenate([spaced, drops, drops - 1])).astype(np.int64)
    segment = np.searchsorted(edges, centres, side="right") - 1
    return centres, np.maximum(centres - half, edges[segment]), np.minimum(centres + half + 1, edges[segment + 1])


def compute(job: Job) -> dict[str, Table]:
    """Curves of one run.

    Args:
        job: Reads the trajectory.

    Returns:
        The tables of `measure`.
    """
    course = job.course
    return measure(
        course.loss,
        course.learning_rate,
        course.gradient_norm,
        course.layers,
        course.evaluation,
        course.counts,
        {"run": job.run},
    )


def measure(
    loss: np.ndarray,
    learning_rate: np.ndarray,
    gradient_norm: np.ndarray,
    layers: Sequence[str],
    evaluation: np.ndarray,
    counts: Mapping[str, int],
    attributes: Mapping[str, Any],
) -> dict[str, Table]:
    """Curves of one run.

    Args:
        loss: Batch loss before each step, shape (T,) or longer; what is not finite at the end is left out.
        learning_rate: η of each step, same length.
        gradient_norm: Norm of the batch gradient per layer, shape (T or more, layers).
        layers: Names of the layers.
        evaluation: Loss and accuracy, shape (T + 1, 3, 2), train, validation and test; NaN where not evaluated.
        counts: Number of examples of each split, by name.
        attributes: Head of the tables: run and the like.

    Returns:
        Tables `curves`, `evaluations` and `layer_gradients`. Attributes: drops, the iterations of learning-rate drops,
        and window, the width of the running window.
    """
    loss = np.asarray(loss, dtype=np.float64)
    rates = np.asarray(learning_rate, dtype=np.float64)
    steps = int(np.flatnonzero(np.isfinite(rates))[-1]) + 1 if np.isfinite(rates).any() else 0
    loss, rates = loss[:steps], rates[:steps]
    norms = np.asarray(gradient_norm, dtype=np.float64)[:steps]
    drops = find_drops(rates)
    if steps:
        centres, starts, stops = windows(steps, drops)
    else:
        centres = starts = stops = np.empty(0, dtype=np.int64)
    spans = list(zip(starts, stops, strict=True))
    pieces = np.array([[loss[a:b].mean(), *np.quantile(loss[a:b], [0.05, 0.95])] for a, b in spans]).reshape(-1, 3)
    head = merged(attributes, drops=[int(i) for i in drops], window=2 * max(2, steps // (2 * WINDOWS)) + 1)
    curves = {
        "iteration": centres,
        "batch_loss": pieces[:, 0],
        "batch_loss_q05": pieces[:, 1],
        "batch_loss_q95": pieces[:, 2],
        "learning_rate": rates[centres],
    }
    squares = np.array([np.sqrt(np.square(norms[a:b]).mean(axis=0)) for a, b in spans]).reshape(-1, len(layers))
    by_layer = {
        "iteration": np.tile(centres, len(layers)),
        "layer": np.repeat(np.array(list(layers), dtype=str), len(centres)),
        "norm": squares.T.ravel(),
    }
    return {
        "curves": Table(CURVES, curves, head),
        "evaluations": Table(EVALUATIONS, _evaluations(np.asarray(evaluation, dtype=np.float64), counts), head),
        "layer_gradients": Table(NORMS, by_layer, head),
    }


def _evaluations(evaluation: np.ndarray, counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    taken = np.flatnonzero(np.isfinite(evaluation).any(axis=(1, 2)))
    if len(taken) > ROWS:
        taken = taken[np.unique(np.rint(np.linspace(0, len(taken) - 1, ROWS)).astype(np.int64))]
    columns: dict[str, list[np.ndarray]] = {name: [] for name in EVALUATIONS.all_columns()}
    # By name: a mapping that went through JSON need not keep its order.
    for place, split in enumerate(SPLITS):
        count = counts[split]
        values = evaluation[taken, place]
        low, high = wilson(values[:, 1], count) if count else (np.full(len(taken), math.nan),) * 2
        for name, part in {
            "iteration": taken,
            "split": np.full(len(taken), split),
            "loss": values[:, 0],
            "accuracy": values[:, 1],
            "accuracy_low": low,
            "accuracy_high": high,
        }.items():
            columns[name].append(part)
    return {name: np.concatenate(parts) for name, parts in columns.items()}
