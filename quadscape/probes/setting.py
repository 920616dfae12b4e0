"""What a probe of one checkpoint works on, opened from the stores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quadscape.checkpoint import Checkpoint
from quadscape.config import Experiment
from quadscape.curvature.eigenbasis import Eigenbasis
from quadscape.data import Split, data_info
from quadscape.numerics import resolve_device
from quadscape.objective import CheckpointObjectives, Objective
from quadscape.probes.interfaces import checkpoint_attributes


@dataclass(frozen=True)
class Setting:
    """A checkpoint, its eigenbasis, and its loss on each split.

    Attributes:
        checkpoint: The checkpoint.
        basis: Its eigenbasis.
        attributes: Head of every table of this checkpoint.
        device: Where the probe runs.
        dtype: Precision of the network.
    """

    checkpoint: Checkpoint
    basis: Eigenbasis
    attributes: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    _paths: tuple[Path, Path]

    @classmethod
    def load(cls, inputs: Any, experiment: Experiment) -> "Setting":
        """Opens the stores of one checkpoint.

        Args:
            inputs: Has the paths `checkpoint`, `eigenbasis` and `data`.
            experiment: Gives device and precision.

        Returns:
            The setting.
        """
        checkpoint, basis = Checkpoint.load(inputs.checkpoint), Eigenbasis(inputs.eigenbasis)
        return cls(
            checkpoint,
            basis,
            checkpoint_attributes(checkpoint, basis, data_info(inputs.data).counts["train"]),
            resolve_device(experiment.device),
            getattr(torch, experiment.probes.dtype),
            (Path(inputs.checkpoint), Path(inputs.data)),
        )

    @property
    def epsilon(self) -> float:
        """Machine epsilon of the network's precision."""
        return torch.finfo(self.dtype).eps

    def objective(self, split: Split) -> Objective:
        """The loss on one split."""
        return CheckpointObjectives(*self._paths, split).get(self.dtype, self.device)
