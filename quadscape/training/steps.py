"""One step of training: the learning rate, the state between two steps, and the loss of a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call

from quadscape.config.sections import Constant, Exponential, Model, Steps, Table
from quadscape.config.sections import LearningRate as Schedule
from quadscape.data.sets import DataSet
from quadscape.data.sources import SPLITS
from quadscape.network.losses import example_losses
from quadscape.network.models import build_model, cast, check_model
from quadscape.network.parameters import ParameterLayout

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def learning_rate(schedule: Schedule, iteration: int, iterations: int, table: np.ndarray | None = None) -> float:
    """Learning rate of one step.

    Args:
        schedule: The schedule.
        iteration: Number of steps taken before it.
        iterations: Number of steps of the run.
        table: The rates of a schedule that is a table, shape (iterations,).

    Returns:
        η. During the warm-up the schedule's rate is multiplied by (iteration + 1) / warmup.
    """
    if isinstance(schedule, Table):
        assert table is not None, "the rates of a table are read first"
        return float(table[iteration])
    rate = schedule.value
    if isinstance(schedule, Steps):
        rate *= schedule.factor ** sum(iteration >= milestone for milestone in schedule.milestones)
    elif isinstance(schedule, Exponential):
        length = max(1, iterations - 1 - schedule.warmup)
        rate *= (schedule.final / schedule.value) ** min(1.0, max(0, iteration - schedule.warmup) / length)
    elif not isinstance(schedule, Constant):
        length = max(1, iterations - 1 - schedule.warmup)
        progress = min(1.0, max(0, iteration - schedule.warmup) / length)
        rate = schedule.final + (schedule.value - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress))
    if iteration < schedule.warmup:
        rate *= (iteration + 1) / schedule.warmup
    return rate


@dataclass
class State:
    """Where training stands: everything that the next step depends on.

    Attributes:
        theta: θ, float64, shape (P,).
        moments: What the optimizer keeps of the past, by name (`quadscape.training.optimizers`), float64, shape (P,).
        buffers: The network's buffers by name.
    """

    theta: torch.Tensor
    moments: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]


class Trainer:
    """The network, the data and the loss on one device: what a step needs."""

    def __init__(self, config: Model, loss: str, data: str | Path, dtype: torch.dtype, device: torch.device) -> None:
        self.device, self.dtype, self.loss = device, dtype, loss
        loaded = DataSet.load(data, device, self.dtype)
        self.splits = {name: loaded.split(name) for name in SPLITS}
        self.model = build_model(config, loaded.shape, len(loaded.classes))
        images = self.splits["train"][0]
        check_model(self.model.to(device), images[:4], len(loaded.classes))
        cast(self.model, self.dtype)
        self.layout = ParameterLayout.of(self.model)
        numbers = self.layout.layer_index()
        self.layer_sizes = np.diff(np.flatnonzero(np.diff(numbers, prepend=-1, append=-1))).tolist()

    def full_gradient(self, state: State, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of all examples, summed over chunks of them, each counted with its own size."""
        count = len(self.splits["train"][1])
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        gradient = torch.zeros_like(state.theta)
        for start in range(0, count, chunk):
            part = np.arange(start, min(start + chunk, count))
            part_loss, part_gradient = self.gradient(state, part)
            loss += part_loss * (len(part) / count)
            gradient += part_gradient * (len(part) / count)
        return loss, gradient

    def gradient(self, state: State, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss (a scalar) and gradient (float64, flat) of a batch in training mode; updates the state's buffers."""
        images, labels = self.splits["train"]
        chosen = torch.from_numpy(indices).to(self.device)
        self.model.train()
        parameters = {
            name: value.detach().requires_grad_()
            for name, value in self.layout.unflatten(state.theta.to(self.dtype)).items()
        }
        outputs = functional_call(self.model, {**parameters, **state.buffers}, (images[chosen],))
        loss = example_losses(outputs, labels[chosen], self.loss).mean()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        gradient = torch.cat([part.reshape(-1) for part in found]).to(torch.float64)
        return loss.detach(), gradient

    @torch.no_grad()
    def evaluate(self, state: State, chunk: int) -> np.ndarray:
        """Mean loss and accuracy of each split in evaluation mode, shape (splits, measures)."""
        self.model.eval()
        tensors = {**self.layout.unflatten(state.theta.to(self.dtype)), **state.buffers}
        found = []
        for images, labels in self.splits.values():
            total = torch.zeros(2, dtype=torch.float64, device=self.device)
            for start in range(0, len(labels), chunk):
                part = slice(start, start + chunk)
                outputs = functional_call(self.model, tensors, (images[part],))
                losses = example_losses(outputs, labels[part], self.loss).to(torch.float64)
                total += torch.stack([losses.sum(), (outputs.argmax(1) == labels[part]).sum().to(torch.float64)])
            found.append(total / len(labels))
        return torch.stack(found).cpu().numpy()

    def layer_norms(self, gradient: torch.Tensor) -> torch.Tensor:
        """Euclidean norm of each layer's part of a flat gradient."""
        return torch.stack([torch.linalg.vector_norm(part) for part in gradient.split(self.layer_sizes)])

    def start_state(self, theta: torch.Tensor, names: Sequence[str]) -> State:
        """The state before the first step of an optimizer that keeps vectors of these names."""
        theta = theta.to(self.device)
        moments = {name: torch.zeros_like(theta) for name in names}
        return State(theta, moments, {n: b.detach().clone() for n, b in self.model.named_buffers()})


def flat_state(state: State) -> dict[str, np.ndarray]:
    """A copy of a state as float64 vectors: what is stored for resuming."""
    vectors = {"theta": state.theta, **state.moments}
    if any(buffer.numel() for buffer in state.buffers.values()):
        vectors["buffers"] = torch.cat([as_real(b).reshape(-1).to(torch.float64) for b in state.buffers.values()])
    return {name: vector.detach().cpu().numpy().copy() for name, vector in vectors.items()}


def enter_buffers(state: State, values: torch.Tensor) -> None:
    """Gives a state's buffers the values of such a vector."""
    buffers = [as_real(buffer) for buffer in state.buffers.values()]
    for buffer, part in zip(buffers, values.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.reshape(buffer.shape))


def as_real(buffer: torch.Tensor) -> torch.Tensor:
    """A view of a buffer in real numbers: real and imaginary parts of a complex one."""
    return torch.view_as_real(buffer) if buffer.is_complex() else buffer
