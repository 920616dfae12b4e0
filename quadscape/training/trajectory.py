"""A finished training: its iterates, losses and evaluations."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quadscape.config.sections import Training
from quadscape.data.sources import SPLITS
from quadscape.errors import ConfigError
from quadscape.stage.finished import FinishedStage, open_stage

STAGE = "training"
METRICS = ("loss", "accuracy")

_PIECE_BYTES = 2 << 20
"""Of iterates that are read together: a small one is read in less time than it takes to begin."""


@dataclass(frozen=True)
class Curves:
    """The course of a run.

    Attributes:
        loss: Batch loss at each step, shape (T,).
        learning_rate: Shape (T,).
        gradient_norm: Norm of the batch gradient by layer, shape (T, layers).
        layers: Names of the layers.
        evaluation: Mean loss and accuracy (last axis) of train, validation and test, shape (T + 1, 3, 2); NaN where not
            evaluated.
        counts: Number of examples of train, validation and test.
    """

    loss: np.ndarray
    learning_rate: np.ndarray
    gradient_norm: np.ndarray
    layers: tuple[str, ...]
    evaluation: np.ndarray
    counts: dict[str, int]

    @property
    def evaluated(self) -> np.ndarray:
        """Iterations with an evaluation, ascending, int64."""
        return np.flatnonzero(~np.isnan(self.evaluation[:, 0, 0])).astype(np.int64)


class Trajectory:
    """A finished training run.

    Attributes:
        stage: The stage: its manifest and its arrays.
        training: The `training` section under which it ran.
    """

    def __init__(self, stage: FinishedStage) -> None:
        self.stage = stage
        section = json.dumps(stage.manifest["parameters"]["training"])
        self.training = Training.model_validate_json(section, strict=True)

    @classmethod
    def open(cls, path: str | Path) -> "Trajectory":
        """Opens a run.

        Args:
            path: The stage's directory, or the manifest in it.

        Returns:
            The run.
        """
        return cls(open_stage(path, STAGE))

    @property
    def diverged(self) -> int | None:
        """The iteration at which the loss was first not finite; nothing is stored from there on. None: at none."""
        return self.stage.manifest["results"].get("diverged")

    @property
    def saved(self) -> np.ndarray:
        """The iterations whose θ was kept, ascending, int64."""
        total = self.training.iterations + 1
        return np.array([t for t in range(total) if self.training.is_saved(t)], dtype=np.int64)

    def theta(self, iteration: int) -> np.ndarray:
        """Parameters after so many steps.

        Args:
            iteration: Number of steps.

        Returns:
            θ, float64, shape (P,).

        Raises:
            ConfigError: This iterate was not kept.
        """
        if not self.training.is_saved(iteration):
            kept = self.saved
            near = sorted(
                {int(kept[kept <= iteration].max(initial=0)), int(kept[kept >= min(iteration, kept[-1])].min())}
            )
            raise ConfigError(
                f"Iteration {iteration} of this run was not kept; the nearest kept are {' and '.join(map(str, near))}."
            )
        return self.stage.read("theta", iteration)

    def iterates(self, first: int, last: int) -> Iterator[np.ndarray]:
        """Parameters after every number of steps in a range, some read at a time.

        Args:
            first: First number of steps.
            last: Last number of steps; all of them were kept.

        Yields:
            θ, float64, shape (P,).
        """
        size = int(self.stage.manifest["parameters"]["parameters"])
        yield from read_in_pieces(lambda part: self.stage.read("theta", part), first, last + 1, size)

    def curves(self) -> Curves:
        """Losses, learning rates, gradient norms and evaluations of the whole run."""
        steps = self.training.iterations
        results = self.stage.manifest["results"]
        return Curves(
            self.stage.read("loss")[:steps],
            self.stage.read("learning_rate")[:steps],
            self.stage.read("gradient_norm")[:steps],
            tuple(results["layers"]),
            self.stage.read("evaluation"),
            {name: results["counts"][name] for name in SPLITS},
        )


def read_in_pieces(read: Callable[[slice], np.ndarray], first: int, stop: int, size: int) -> Iterator[np.ndarray]:
    """Consecutive rows of a stored matrix, one after another, as many read at a time as fill two mebibytes.

    Args:
        read: Gives rows of a slice, float64, shape (rows, size).
        first: First row.
        stop: One after the last.
        size: Length of a row.

    Yields:
        Rows, shape (size,).
    """
    together = max(1, _PIECE_BYTES // (8 * max(1, size)))
    for start in range(first, stop, together):
        yield from read(slice(start, min(start + together, stop)))
