"""Is the noise of one step correlated with that of later ones? Batches as they were drawn, at the iterates they met.

Of two batches with m examples in common, of B and B′ of N, the noises ξ = g_b − g have, if the examples' gradients are
the same for both, E ξᵀξ′ = (m/(BB′) − 1/N)·N/(N − 1)·tr C over random examples with that overlap. Batches of one epoch
share none, and are correlated by −1/(K − 1); independent ones share B²/N on average, and are not.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from quadscape.measures.interfaces import as_array
from quadscape.measures.job import Job
from quadscape.measures.members import columns_of
from quadscape.measures.noise_memory.declaration import MEMORY
from quadscape.measures.run_losses import RunLosses, run_head
from quadscape.measures.sharpness.iterates import plateaus_of
from quadscape.tables import Table

NOISE = "noise"

LEAST_PAIRS = 2
"""Pairs of iterates that a standard error takes."""


class Window(NamedTuple):
    """Iterates at the end of a plateau.

    Attributes:
        iterations: Steps taken before each, evenly spaced, shape (W,).
        learning_rate: η of their steps.
    """

    iterations: np.ndarray
    learning_rate: float


def windows(kept: np.ndarray, rates: np.ndarray, most: int) -> list[Window]:
    """The last iterates of each plateau that lie evenly.

    Args:
        kept: Iterations whose θ was kept, ascending.
        rates: η of every step, shape (T,); the noise of step t is that at the iterate before it.
        most: Iterates of a window.

    Returns:
        Windows of 2 to `most` iterates, in order.
    """
    found = []
    for first, last in plateaus_of(rates):
        inside = kept[(kept >= first) & (kept < last)]
        if len(inside) < 2:
            continue
        # The stride that most of the plateau has: near drops of the rate iterates may lie closer.
        steps = np.diff(inside)
        stride = int(np.bincount(steps).argmax())
        even = inside[(inside - inside[0]) % stride == 0]
        gaps = np.flatnonzero(np.diff(even) != stride)
        even = even[gaps[-1] + 1 :] if len(gaps) else even
        if len(even) > 1:
            found.append(Window(even[-most:], float(rates[first])))
    return found


def overlaps(batches: list[np.ndarray], count: int) -> np.ndarray:
    """m/(BB′) − 1/N of every pair of batches.

    Args:
        batches: Indices of the examples of each, none twice.
        count: N.

    Returns:
        Shape (W, W).
    """
    share = np.zeros((len(batches), count))
    for row, batch in enumerate(batches):
        share[row, batch] = 1 / len(batch)
    return share @ share.T - 1 / count


def memory_rows(products: np.ndarray, expected: np.ndarray, iterations: np.ndarray) -> list[dict[str, Any]]:
    """Correlations by lag.

    Args:
        products: ξ_tᵀξ_s, shape (W, W).
        expected: From `overlaps`, of the same batches.
        iterations: Of the iterates, evenly spaced.

    Returns:
        One row for each lag of up to half of the iterates, as further apart there are few pairs; none where there is no
        noise.
    """
    variance, predicted = float(np.diag(products).mean()), float(np.diag(expected).mean())
    if not variance > 0 or not predicted > 0:
        return []
    rows = []
    for lag in range(1, len(iterations) // 2 + 1):
        own = np.diagonal(products, lag) / variance
        if len(own) < LEAST_PAIRS:
            break
        half = 1.96 * float(own.std(ddof=1)) / math.sqrt(len(own))
        value = float(own.mean())
        rows.append(
            {
                "lag": int(iterations[lag] - iterations[0]),
                "pairs": len(own),
                "correlation": value,
                "correlation_low": value - half,
                "correlation_high": value + half,
                "predicted": float(np.diagonal(expected, lag).mean()) / predicted,
            }
        )
    return rows


class Work:
    """The iterates of a run's plateaus as items of a long measure."""

    def __init__(self, job: Job) -> None:
        self._job, self._trajectory = job, job.trajectory()

    @cached_property
    def _losses(self) -> RunLosses:
        return RunLosses(self._job, ("train",))

    @cached_property
    def windows(self) -> list[Window]:
        """Where the run is looked at; nowhere where there is no noise."""
        kept, diverged = self._trajectory.saved, self._trajectory.diverged
        rates = self._job.course.learning_rate
        if diverged is not None:
            kept, rates = kept[kept < diverged], rates[:diverged]
        if self._trajectory.training.batch_of(self._losses.counts["train"]) >= self._losses.counts["train"]:
            return []
        return windows(kept, rates, self._job.options.iterates)

    @property
    def items(self) -> int:
        """Number of iterates on all plateaus."""
        return sum(len(window.iterations) for window in self.windows)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """The noise of an iterate."""
        return {NOISE: (int(self._trajectory.stage.manifest["parameters"]["parameters"]),)}

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """The noise of some iterates."""
        every = [int(iteration) for window in self.windows for iteration in window.iterations]
        return {NOISE: np.array([self._noise(iteration) for iteration in every[part]])}

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """Correlations on all plateaus."""
        rows: list[dict[str, Any]] = []
        count, start = self._losses.counts["train"], 0
        for number, window in enumerate(self.windows):
            stop = start + len(window.iterations)
            noise = values[NOISE][start:stop]
            expected = overlaps([self._batch(int(iteration)) for iteration in window.iterations], count)
            where = {"plateau": number, "learning_rate": window.learning_rate}
            where |= {"first": int(window.iterations[0]), "last": int(window.iterations[-1])}
            rows += [where | row for row in memory_rows(noise @ noise.T, expected, window.iterations)]
            start = stop
        head = run_head(self._job, self._trajectory, count, self._losses.batch_norm)
        return {"noise_memory": Table(MEMORY, columns_of(rows, MEMORY.all_columns()), head)}

    def _batch(self, iteration: int) -> np.ndarray:
        """Indices of the examples of one step."""
        indices = self._trajectory.stage.read("batch", iteration)
        return indices[indices >= 0]

    def _noise(self, iteration: int) -> np.ndarray:
        """g_b − g at an iterate, float64, shape (P,)."""
        import torch

        theta = self._trajectory.theta(iteration)
        objective = self._losses.objective("train", theta)
        part = objective.part(torch.from_numpy(self._batch(iteration)))
        return as_array(part.gradient(theta)) - as_array(objective.gradient(theta))


def compute(job: Job) -> dict[str, Table]:
    """Autocorrelation of the noise of one run, in one piece.

    Args:
        job: Reads trajectory and data.

    Returns:
        The table `noise_memory`.
    """
    work = Work(job)
    return work.tables(work.measure(slice(None)) if work.items else {NOISE: np.empty((0, 0))})
