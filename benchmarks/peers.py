"""Other ways to compute columns of a Hessian, each set as well as it can be.

Every peer computes whole columns: all P rows. A peer that can leave out work that is known to be zero does so: columns
are asked for by tensor, and a tensor's gradient depends only on a part of the graph.
"""

import copy
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import psutil
import torch
from torch.func import grad, jvp

from benchmarks.setting import timed
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterBlock

_MEMORY_SHARE = 0.4
_WORSE = 1.05
_REPEATS = 3


class Peer(ABC):
    """A way to compute columns.

    Attributes:
        name: Key in the results.
        blocks: Numbers of columns at once that are worth trying.
        formats: Whether images and weights lie with channels last: what is worth trying.
        uniform: Whether all columns cost the same by construction, so that a few tensors stand for all.
        baseline: Whether it is our own refinement of a way in use, which nobody offers: reported apart from the peers.
    """

    name: str
    baseline: bool = False
    blocks: tuple[int, ...] = (1,)
    formats: tuple[bool, ...] = (False, True)
    uniform = False

    @abstractmethod
    def __init__(self, objective: Objective, theta: torch.Tensor, channels_last: bool) -> None:
        """Prepares what all columns share.

        Args:
            objective: L, all examples in one chunk.
            theta: θ.
            channels_last: How images and weights lie.
        """

    @abstractmethod
    def columns(self, tensor: ParameterBlock, offsets: Sequence[int]) -> torch.Tensor:
        """Whole columns of one tensor's elements, taken at once.

        Args:
            tensor: The tensor.
            offsets: Elements of the tensor.

        Returns:
            Shape (P, number of columns).
        """


def _memory_format(objective: Objective, theta: torch.Tensor, last: bool) -> tuple[dict[str, Any], torch.Tensor]:
    """Parameters and images, with channels last or not."""
    parameters = {name: value.detach().clone() for name, value in objective.parameters(theta).items()}
    if not last:
        return parameters, objective.images
    form = torch.channels_last
    parameters = {n: v.contiguous(memory_format=form) if v.ndim == 4 else v for n, v in parameters.items()}
    return parameters, objective.images.contiguous(memory_format=form)


class DoubleBackward(Peer):
    """One gradient graph, then one backward pass per column through the flat gradient."""

    name = "double_backward"
    uniform = True

    def __init__(self, objective: Objective, theta: torch.Tensor, channels_last: bool) -> None:
        leaves, images = _memory_format(objective, theta, channels_last)
        self.inputs = [leaves[block.name].requires_grad_() for block in objective.layout.blocks]
        loss = objective.chunk_loss(leaves, images, objective.labels) / objective.count
        gradients = torch.autograd.grad(loss, self.inputs, create_graph=True)
        self.gradients = {b.name: g for b, g in zip(objective.layout.blocks, gradients, strict=True)}
        self._flat = torch.cat([gradient.reshape(-1) for gradient in gradients])

    def element(self, tensor: ParameterBlock, offset: int) -> torch.Tensor:
        """The element of the gradient that is differentiated."""
        return self._flat[tensor.start + offset]

    def columns(self, tensor: ParameterBlock, offsets: Sequence[int]) -> torch.Tensor:
        """Whole columns, one after another."""
        found = []
        for offset in offsets:
            rows = torch.autograd.grad(
                self.element(tensor, offset), self.inputs, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            found.append(torch.cat([row.reshape(-1) for row in rows]))
        return torch.stack(found, dim=1)


class DoubleBackwardByTensor(DoubleBackward):
    """The same through the gradient of the column's own tensor: autograd then skips what is known to be zero."""

    name = "double_backward_by_tensor"
    baseline = True
    uniform = False

    def element(self, tensor: ParameterBlock, offset: int) -> torch.Tensor:
        """The element of the gradient that is differentiated."""
        return self.gradients[tensor.name].reshape(-1)[offset]


class BatchedDoubleBackward(DoubleBackward):
    """The same over a block of columns at once (`is_grads_batched`, which is vmap)."""

    name = "double_backward_vmap"
    baseline = True
    blocks = (2, 4, 8, 16, 32)
    formats = (False,)
    uniform = False

    def columns(self, tensor: ParameterBlock, offsets: Sequence[int]) -> torch.Tensor:
        """Whole columns."""
        gradient = self.gradients[tensor.name]
        units = torch.zeros(len(offsets), gradient.numel())
        units[range(len(offsets)), list(offsets)] = 1.0
        rows = torch.autograd.grad(
            gradient,
            self.inputs,
            units.view(-1, *gradient.shape),
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([row.reshape(len(offsets), -1) for row in rows], dim=1).T


class ForwardOverReverse(Peer):
    """The derivative of the gradient along one unit vector, the tangent starting at the column's own tensor."""

    name = "forward_over_reverse"

    def __init__(self, objective: Objective, theta: torch.Tensor, channels_last: bool) -> None:
        self._objective = objective
        self._parameters, self._images = _memory_format(objective, theta, channels_last)

    def columns(self, tensor: ParameterBlock, offsets: Sequence[int]) -> torch.Tensor:
        """Whole columns, one after another."""
        objective, found = self._objective, []

        def gradient(value: torch.Tensor) -> dict[str, torch.Tensor]:
            return grad(objective.chunk_loss)({**self._parameters, tensor.name: value}, self._images, objective.labels)

        value = self._parameters[tensor.name]
        for offset in offsets:
            unit = torch.zeros(value.numel())
            unit[offset] = 1.0
            _, rows = jvp(gradient, (value,), (unit.view(value.shape),))
            found.append(objective.layout.flatten(rows) / objective.count)
        return torch.stack(found, dim=1).detach()


class ElementaryGroupNorm(torch.nn.GroupNorm):
    """The same function of elementary operations: torch's own has no forward derivative of its backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (n, channels, …) to the same shape."""
        groups = x.reshape(len(x), self.num_groups, -1)
        variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
        shape = (1, -1, *[1] * (x.ndim - 2))
        normalised = ((groups - mean) * torch.rsqrt(variance + self.eps)).reshape(x.shape)
        return normalised * self.weight.view(shape) + self.bias.view(shape)


class Curvlinops(Peer):
    """curvlinops' `HessianLinearOperator` times a block of unit vectors."""

    name = "curvlinops"
    blocks = (1, 4, 8, 16, 32)
    formats = (False,)
    uniform = True

    def __init__(self, objective: Objective, theta: torch.Tensor, channels_last: bool) -> None:
        from curvlinops import HessianLinearOperator

        parameters, images = _memory_format(objective, theta, channels_last)
        model = copy.deepcopy(objective.model)
        for name, parameter in model.named_parameters():
            parameter.data = parameters[name]
        for module in model.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.__class__ = ElementaryGroupNorm
        self._size = objective.size
        self.operator = HessianLinearOperator(
            model,
            torch.nn.CrossEntropyLoss(),
            list(model.parameters()),
            [(images, objective.labels)],
            check_deterministic=False,
            num_data=objective.count,
        )

    def columns(self, tensor: ParameterBlock, offsets: Sequence[int]) -> torch.Tensor:
        """Whole columns."""
        units = torch.zeros(self._size, len(offsets))
        units[[tensor.start + offset for offset in offsets], range(len(offsets))] = 1.0
        with torch.no_grad():
            return self.operator @ units


class CompiledCurvlinops(Curvlinops):
    """The same with its product compiled, for one block size.

    `torch.compile` alone breaks the graph at the operator's split of the vector into tensors and leaves it as slow as
    before; traced by `make_fx` first, it compiles as one graph.
    """

    name = "curvlinops_compiled"

    def __init__(self, objective: Objective, theta: torch.Tensor, channels_last: bool, block: int) -> None:
        super().__init__(objective, theta, channels_last)
        from torch.fx.experimental.proxy_tensor import make_fx

        self.blocks = (block,)
        units = [torch.zeros(*p.shape, block) for p in objective.model.parameters()]
        images, labels = self.operator._data[0]
        with torch.no_grad():
            traced = make_fx(self.operator._mp)(images, labels, *units)
            self.operator.__dict__["_mp"] = torch.compile(traced)


PEERS: tuple[type[Peer], ...] = (
    DoubleBackward,
    DoubleBackwardByTensor,
    BatchedDoubleBackward,
    ForwardOverReverse,
    Curvlinops,
)


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


def _representatives(objective: Objective, uniform: bool) -> list[ParameterBlock]:
    """Tensors that are measured; a smaller one takes the time of the last of these before it."""
    blocks = [block for block in objective.layout.blocks if block.stop - block.start >= objective.size / 500]
    if uniform:
        largest = max(blocks, key=lambda block: block.stop - block.start)
        return [blocks[0], largest] if largest is not blocks[0] else [largest]
    return blocks


def _offsets(tensor: ParameterBlock, block: int) -> list[int]:
    size = tensor.stop - tensor.start
    first = max(0, size // 2 - block // 2)
    return list(range(first, min(size, first + block)))


def _best_block(peer: Peer, objective: Objective, tensor: ParameterBlock) -> int:
    """The best of the peer's block sizes in a short trial; sizes grow until columns get slower or memory ends."""
    graph = objective.count * objective.graph_bytes_per_example()
    best, chosen = float("inf"), peer.blocks[0]
    for block in peer.blocks:
        if block > peer.blocks[0] and block * graph > _MEMORY_SHARE * psutil.virtual_memory().available:
            break
        offsets = _offsets(tensor, block)
        peer.columns(tensor, offsets)  # warms up
        seconds = timed(partial(peer.columns, tensor, offsets))[0] / len(offsets)
        if seconds < best:
            best, chosen = seconds, block
        elif seconds > _WORSE * best:
            break
    return chosen


def _seconds_per_column(peer: Peer, objective: Objective, block: int, limit: float) -> dict[str, float]:
    """Seconds per column by tensor: the best of at most three repeats, as long as time allows."""
    measured: dict[str, float] = {}
    representatives = _representatives(objective, peer.uniform)
    for tensor in representatives:
        work = partial(peer.columns, tensor, offsets := _offsets(tensor, block))
        times = [timed(work)[0]]
        while len(times) < _REPEATS and sum(times) + times[-1] < limit / len(representatives):
            times.append(timed(work)[0])
        measured[tensor.name] = min(times) / len(offsets)
    last = next(iter(measured.values()))
    by_tensor = {}
    for tensor in objective.layout.blocks:
        last = by_tensor[tensor.name] = measured.get(tensor.name, last)
    return by_tensor


@dataclass(frozen=True)
class Measured:
    """What one peer took.

    Attributes:
        seconds: Per column, by tensor.
        mean: Seconds per column over all columns.
        block: Columns at once.
        channels_last: How images and weights lay.
        tensor: A tensor of which columns are kept, to check.
        offsets: Which of its elements; at most two.
        columns: These columns.
    """

    seconds: dict[str, float]
    mean: float
    block: int
    channels_last: bool
    tensor: ParameterBlock
    offsets: list[int]
    columns: torch.Tensor


def measure(kind: type[Peer], objective: Objective, theta: torch.Tensor, limit: float, **settings: Any) -> Measured:
    """Times one peer in its best setting.

    Args:
        kind: The peer.
        objective: L, all examples in one chunk.
        theta: θ.
        limit: Seconds that repeats may take.
        **settings: Further arguments of the peer.

    Returns:
        What it took.
    """
    blocks = objective.layout.blocks
    largest = max(blocks, key=lambda block: block.stop - block.start)
    found = []
    for channels_last in kind.formats:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # curvlinops and vmap warn of what does not concern a timing
            peer = kind(objective, theta, channels_last, **settings)
            block = _best_block(peer, objective, largest)
            seconds = _seconds_per_column(peer, objective, block, limit / len(kind.formats))
            offsets = _offsets(largest, block)
            columns = peer.columns(largest, offsets).detach()[:, :2].clone()
        mean = sum((b.stop - b.start) * seconds[b.name] for b in blocks) / objective.size
        found.append(Measured(seconds, mean, block, channels_last, largest, offsets[:2], columns))
    return min(found, key=lambda measured: measured.mean)


def compiler_missing() -> str | None:
    """Why nothing can be compiled here, if so."""
    return None if shutil.which("g++") else "torch.compile needs g++, which is not installed"


def package_missing(package: str) -> str | None:
    """Why a peer's package cannot be used here, if so."""
    return None if find_spec(package) else f"{package} is not installed (requirements-bench.txt)"
