"""What one step of training takes: seconds, and peak memory, counted and measured.

**Counted.** With P parameters, b bytes a number of the forward and backward pass, θ and all state in float64, V vectors
of the optimizer's state, B' examples at once, X numbers of an input and A numbers that the layers put out for one
example, a step holds

    8P(2 + V)                      θ, the last gradient and the optimizer's state, all the time, and
    max( bP[b < 8] + bB'(X + A),   at the end of the forward pass: θ in the precision of the pass, batch, activations;
         bP[b < 8] + 2bP + 8P[b < 8] )   when the gradient is put together: by tensor, as one vector, in float64.

Left out are what the backward pass holds beside the activations (about the largest two of them), what single operations
need for themselves, masks, and the memory of the optimizer's own temporaries.

**Measured.** On a CPU the largest sum of the bytes of all tensors alive at once after any operation of a step, with
each storage counted once; the data set is not counted. On a GPU the peak of torch's allocator, less what it held before
that is no part of the state.
"""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quadscape.config.model import model_section
from quadscape.config.sections import Model, Training
from quadscape.data.sets import DataSet
from quadscape.network.models import build_model, cast, initial_vector
from quadscape.network.parameters import ParameterLayout
from quadscape.training.optimizers import clip, make_optimizer, state_names
from quadscape.training.steps import DTYPES, Trainer
from quadscape.training.task import FULL_CHUNK


class PeakBytes(TorchDispatchMode):
    """Peak of the bytes of tensors that were made under it, or given to it, and live at once.

    Attributes:
        peak: The largest number of bytes so far.
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        """Counts these tensors too, as long as they live.

        Args:
            held: Tensors.
        """
        super().__init__()
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        for tensor in held:
            self._add(tensor, counted=True)
        self._update()

    def _add(self, tensor: torch.Tensor, *, counted: bool) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        known = self._seen.get(reference.cdata)
        # The structure of a storage outlives it as long as it is referred to, so that no address comes twice.
        if known is None:
            self._seen[reference.cdata] = (reference, storage.nbytes() if counted else 0)

    def _update(self) -> None:
        self._seen = {key: entry for key, entry in self._seen.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._seen.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor):
                self._add(value, counted=False)
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor):
                self._add(value, counted=True)
        self._update()
        return found


class _TrainingExamples(Trainer):
    """A trainer that has the training split only."""

    def __init__(self, config: Model, loss: str, data: str | Path, dtype: torch.dtype, device: torch.device) -> None:
        self.device, self.dtype, self.loss = device, dtype, loss
        loaded = DataSet.load(data, device, dtype)
        self.splits = {"train": loaded.split("train")}
        self.start = initial_vector(config, loaded.shape, len(loaded.classes), 0)
        self.model = build_model(config, loaded.shape, len(loaded.classes)).to(device)
        cast(self.model, dtype)
        self.layout = ParameterLayout.of(self.model)
        numbers = self.layout.layer_index()
        self.layer_sizes = np.diff(np.flatnonzero(np.diff(numbers, prepend=-1, append=-1))).tolist()


def step_cost(
    training: Training, model: Any, loss: str, data: str | Path, device: torch.device, repetitions: int
) -> dict[str, Any]:
    """Seconds and memory of one step, as training takes it, at the initial parameters and learning rate 0.

    Args:
        training: The section of the run.
        model: The `model` section, as JSON values.
        loss: The loss.
        data: The data store.
        device: Where.
        repetitions: Number of timed steps.

    Returns:
        at_once, seconds_per_step, counted_bytes and measured_bytes.
    """
    config = model_section(model)
    trainer = _TrainingExamples(config, loss, data, DTYPES[training.dtype], device)
    images, labels = trainer.splits["train"]
    size, full = training.batch_of(len(labels)), training.batch_size == "full"
    at_once = min(size, FULL_CHUNK[device.type]) if full else size
    state = trainer.start_state(trainer.start, state_names(training))
    theta = torch.nn.Parameter(state.theta)
    state.theta = theta.data
    optimizer = make_optimizer(training, theta, state.moments, 0)
    batch = np.arange(size)

    def step() -> None:
        _, gradient = trainer.full_gradient(state, at_once) if full else trainer.gradient(state, batch)
        trainer.layer_norms(gradient)
        theta.grad = gradient
        clip(training, theta)
        optimizer.step()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        step()
        held = [theta.data, *state.moments.values(), *state.buffers.values()]
        measured = _peak(step, held, theta, device)
        seconds = min(_seconds(step, device) for _ in range(repetitions))
    vectors = len(state_names(training))
    counted = counted_bytes(
        trainer.layout.size,
        images.element_size(),
        vectors,
        at_once * (math.prod(images.shape[1:]) + activations(trainer.model, images[:1])),
    )
    return {
        "at_once": at_once,
        "seconds_per_step": seconds,
        "counted_bytes": float(counted),
        "measured_bytes": float(measured),
    }


def counted_bytes(parameters: int, itemsize: int, vectors: int, numbers: int) -> int:
    """Peak memory of a step by the formula of this module.

    Args:
        parameters: P.
        itemsize: b, bytes of a number of the pass.
        vectors: V, vectors of the optimizer's state.
        numbers: B'(X + A), inputs and outputs of layers of the examples at once.

    Returns:
        Bytes.
    """
    copy = itemsize * parameters if itemsize < 8 else 0
    forward = copy + itemsize * numbers
    gradient = copy + 2 * itemsize * parameters + (8 * parameters if itemsize < 8 else 0)
    return 8 * parameters * (2 + vectors) + max(forward, gradient)


def activations(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Numbers that the innermost modules of a network put out for one image.

    Args:
        model: The network.
        images: One image, shape (1, channels, height, width).

    Returns:
        A.
    """
    total = 0

    def count(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        nonlocal total
        total += outputs.numel() if isinstance(outputs, torch.Tensor) else 0

    innermost = [module for module in model.modules() if next(module.children(), None) is None]
    hooks = [m.register_forward_hook(count) for m in innermost if not isinstance(m, torch.nn.Identity)]
    was_training = model.training
    with torch.no_grad():
        model.eval()(images)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return total


def _peak(step: Callable[[], None], held: list[torch.Tensor], theta: torch.nn.Parameter, device: torch.device) -> int:
    """Measured peak of a step; `held`, and the gradient of θ, are there before it."""
    assert theta.grad is not None
    if device.type == "cuda":
        own = sum(tensor.untyped_storage().nbytes() for tensor in (*held, theta.grad))
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before + own
    with PeakBytes([*held, theta.grad]) as mode:
        step()
    return mode.peak


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
