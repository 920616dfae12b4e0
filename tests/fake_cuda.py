"""The Hessian engine on a GPU that is not there: every operation is asked for its shapes, and none is computed.

Tensors are torch's fake ones, of device `cuda`. What a GPU would have to do is recorded: launches, the numbers that
each reads and writes, and the memory that is in use. Nothing here says how long it takes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quadscape.curvature import engine as engines
from quadscape.curvature.graph import trace
from quadscape.curvature.operations import fused
from quadscape.network.objective import Objective

MEMORY = {"H100": 85_899_345_920, "H200": 150_754_820_096}
"""Bytes of a GPU, as CUDA tells them."""
_WRITTEN_ONLY = {"aten::copy_", "aten::fill_", "aten::zero_"}
_MAKES_NOTHING = {
    "aten::empty",
    "aten::new_empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty_strided",
    "aten::_unsafe_view",
}


def _numbers(tensor: torch.Tensor) -> int:
    """Different ones: along an axis without stride there is one."""
    return int(torch.Size([s for s, t in zip(tensor.shape, tensor.stride(), strict=True) if t != 0]).numel())


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@dataclass
class Record(TorchDispatchMode):
    """What a GPU was asked to do within the context.

    Attributes:
        launches: Number of operations by name, views left out.
        moved: Bytes that each kind of operation reads and writes, as if it kept nothing in a cache.
        peak: Most bytes of tensors at once that were made within the context.
        largest: Most different numbers of an operand.
        shapes: Shapes of the tensors that each kind of operation takes, with the result's.
    """

    launches: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    largest: int = 0
    shapes: dict[str, list[list[torch.Size]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._living: dict[int, tuple[int, StorageWeakRef]] = {}
        self._now = 0
        self._within = False

    def __enter__(self) -> Record:
        _RECORDS.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _RECORDS.remove(self)
        super().__exit__(*error)

    def one_launch(self, formula: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Any:
        """A formula as what it is compiled to: one operation, that reads and writes every tensor once."""
        self._within = True
        try:
            made = formula(*tensors)
        finally:
            self._within = False
        self._launch(f"fused::{formula.__name__}", list(tensors), _tensors(made))
        return made

    def _keep(self, made: Sequence[torch.Tensor]) -> None:
        for tensor in made:
            storage = tensor.untyped_storage()
            if tensor.device.type == "cuda" and storage._cdata not in self._living:
                self._living[storage._cdata] = storage.nbytes(), StorageWeakRef(storage)
                self._now += storage.nbytes()
        if self._now > self.peak:
            self._living = {key: kept for key, kept in self._living.items() if not kept[1].expired()}
            self._now = sum(size for size, _ in self._living.values())
            self.peak = max(self.peak, self._now)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Lets it be done, and writes it down."""
        kwargs = kwargs or {}
        result, name = function(*args, **kwargs), function._schema.name
        if self._within:
            return result
        if function.is_view or name in _MAKES_NOTHING or not name.startswith("aten::"):
            self._keep(_tensors(result))
            return result
        read = (args[1:] if name in _WRITTEN_ONLY else args, {k: v for k, v in kwargs.items() if k != "out"})
        self._launch(name, _tensors(read), _tensors(result))
        return result

    def _launch(self, name: str, read: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        self._keep(made)
        operands = [tensor for tensor in read + made if tensor.device.type == "cuda"]
        self.launches[name] += 1
        self.moved[name] += sum(_numbers(tensor) * tensor.itemsize for tensor in operands)
        self.largest = max([self.largest, *map(_numbers, operands)])
        self.shapes.setdefault(name, []).append([tensor.shape for tensor in operands])


_RECORDS: list[Record] = []


def _one_launch(formula: Callable[..., Any]) -> Callable[..., Any]:
    """In place of `torch.compile`."""

    def call(*tensors: torch.Tensor) -> Any:
        return _RECORDS[-1].one_launch(formula, tensors) if _RECORDS else formula(*tensors)

    return call


def _gradients(outputs: Any, inputs: Any, *_: Any, create_graph: bool = False, **__: Any) -> tuple[torch.Tensor, ...]:
    """In place of automatic differentiation, which asks the device itself: tensors of the right shapes."""
    return tuple(torch.empty_like(each, requires_grad=create_graph) for each in _tensors(inputs))


@contextlib.contextmanager
def fake_gpu(memory: int, fuses: bool = True) -> Generator[None]:
    """A GPU of so many bytes, of which only kind and memory can be asked.

    Args:
        memory: Bytes.
        fuses: Whether formulas can be compiled for it.
    """
    with (
        mock.patch.object(torch.cuda, "get_device_properties", return_value=SimpleNamespace(total_memory=memory)),
        mock.patch.object(fused, "compiled", _one_launch),
        mock.patch.object(engines, "can_fuse", return_value=fuses),
        mock.patch.object(engines, "check_can_fuse"),
        FakeTensorMode(),
    ):
        yield


@contextlib.contextmanager
def fake_engine(objective: Objective, count: int, memory: int, fuses: bool = True) -> Generator[engines.HessianEngine]:
    """An engine on a GPU over so many examples.

    Args:
        objective: The loss on a CPU, over any examples.
        count: N.
        memory: Bytes of the GPU.
        fuses: Whether formulas can be compiled for it.

    Yields:
        The engine; its `columns` over one data chunk are what takes part of a second.
    """
    network, layout, kind = objective.model, objective.layout, objective.loss_kind
    with torch.no_grad():
        model = _Scores(network(objective.images[:1]).shape[-1])
    traced: dict[int, Any] = {}

    def known(_: Any, __: Any, images: torch.Tensor, *___: Any) -> Any:
        return traced[len(images)]

    def vmapped(_: Callable[..., Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        return torch.empty_like

    with fake_gpu(memory, fuses):
        images, labels = _examples(objective, count)
        plan = engines.HessianEngine.plan_for(Objective(model, layout, images, labels, kind, 4096))
    traced[plan["chunk"]] = trace(network, layout, objective.images[:1].repeat(plan["chunk"], 1, 1, 1))
    with (
        mock.patch.object(engines, "trace", known),
        mock.patch.object(engines, "vmap", vmapped),
        mock.patch.object(engines, "check_sum_over_examples"),
        mock.patch.object(Objective, "parameters", lambda self, _: _parameters(self)),
        mock.patch.object(torch.autograd, "grad", _gradients),
        fake_gpu(memory, fuses),
    ):
        images, labels = _examples(objective, plan["chunk"])
        part = Objective(model, layout, images, labels, kind, 4096)
        yield engines.HessianEngine(part, torch.empty(layout.size), plan)


class _Scores(torch.nn.Module):
    """In place of a network: scores of the right shape."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._classes = classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Shape (n, classes)."""
        return images.new_empty(len(images), self._classes)


def _examples(objective: Objective, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.empty(count, *objective.images.shape[1:], device="cuda")
    return images, torch.empty(count, dtype=torch.int64, device="cuda")


def _parameters(objective: Objective) -> dict[str, torch.Tensor]:
    return {block.name: torch.empty(block.shape, device="cuda") for block in objective.layout.blocks}
