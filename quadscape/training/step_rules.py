"""What may stand between the gradient of a batch and the optimizer: the protocol, and where a run's own comes from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from quadscape.config.sections import Training
from quadscape.data.info import data_info


class StepRule(Protocol):
    """From the gradient of a batch, clipped if it is, to the direction that the optimizer takes for a gradient.

    It must be the same map throughout a run, bit by bit, on the same device with the same number of threads.
    """

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What of it determines a trajectory, as JSON values."""

    def memory_bytes(self, size: int, device: str, /) -> int:
        """Memory of the host that it takes for P parameters, with gradients on `cpu` or `cuda`."""

    def prepare(self, size: int, device: torch.device) -> None:
        """Loads what it needs, once; called before the first gradient, when the run's threads are set."""

    def direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """The direction, float64, shape (P,), of a gradient of that shape, which it leaves as it is."""


def step_of(
    training: Training, rule: Mapping[str, Any] | None, eigenbasis: str | Path | None, data: str | Path
) -> StepRule | None:
    """The step of a run.

    Args:
        training: Its training parameters, of which the posterior's weight decay is taken.
        rule: What `rule` of its `step` section gives; None: it has none.
        eigenbasis: Directory or manifest of the eigenbasis that the section names, if it names one.
        data: The data store.

    Returns:
        The step; None where the gradient is the direction.
    """
    if rule is None:
        return None
    # Here, since most runs have none.
    from quadscape.curvature.step_rules import make_step

    return make_step(rule, eigenbasis, training.rule()["weight_decay"], data_info(data).counts["train"])
