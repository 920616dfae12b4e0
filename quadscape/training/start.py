"""Start points: the whole state of a run after some of its steps, from which another run goes on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadscape.config.sections import Start
from quadscape.errors import StoreError
from quadscape.store import open_store, read_store
from quadscape.training.steps import State, enter_buffers


@dataclass(frozen=True)
class Stream:
    """Where a run's batches, noise and optimizer begin.

    Attributes:
        seed: Of the batches and of what is random in a step.
        position: Batches of that stream that were drawn before.
        steps: Steps that the optimizer has taken before.
    """

    seed: int
    position: int = 0
    steps: int = 0


@dataclass(frozen=True)
class StartPoint:
    """The state that a run starts from, as its `start` section takes it.

    Attributes:
        parameters: What of it determines the trajectory, as JSON values.
        theta: θ, float64, shape (P,).
        moments: What the optimizer keeps of the past; empty where it starts afresh.
        buffers: The network's buffers, one after another.
    """

    parameters: Mapping[str, Any]
    theta: np.ndarray
    moments: Mapping[str, np.ndarray]
    buffers: np.ndarray

    @classmethod
    def load(cls, path: str | Path, section: Start) -> "StartPoint":
        """Loads a start point.

        Args:
            path: Directory of the store, or the `zarr.json` in it.
            section: The run's `start` section.

        Returns:
            The start point.
        """
        arrays, attributes = read_store(path)
        theta, buffers = arrays.pop("theta"), arrays.pop("buffers", np.zeros(0))
        parameters: dict[str, Any] = {"digest": str(open_store(path).attrs["digest"]), **section.kept()}
        if section.batches == "kept":
            parameters |= {key: attributes[key] for key in ("batch_seed", "batch_position")}
        if section.optimizer == "kept":
            parameters["steps"] = attributes["steps"]
        return cls(parameters, theta, arrays if section.optimizer == "kept" else {}, buffers)

    def enter(self, state: State) -> None:
        """Puts a state where this one stands.

        Args:
            state: The state before the first step of a run that starts by itself.

        Raises:
            StoreError: The start point is that of another network or optimizer.
        """
        if len(self.theta) != len(state.theta) or (self.moments and self.moments.keys() != state.moments.keys()):
            raise StoreError("The start point is that of another network or optimizer; run the workflow again.")
        state.theta = torch.from_numpy(self.theta.copy()).to(state.theta.device)
        for name, values in self.moments.items():
            state.moments[name] = torch.from_numpy(values.copy()).to(state.theta.device)
        enter_buffers(state, torch.from_numpy(self.buffers))


def stream_of(parameters: Mapping[str, Any] | None, seed: int) -> Stream:
    """Where a run's batches, noise and optimizer begin.

    Args:
        parameters: Of its start point, as in the manifest; None where it starts by itself.
        seed: The run's.

    Returns:
        The stream.
    """
    given = parameters or {}
    return Stream(given.get("batch_seed", seed), given.get("batch_position", 0), given.get("steps", 0))
