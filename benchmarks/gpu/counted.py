"""What all columns of the Hessian take besides operations: bytes that go through memory, and calls of kernels.

The engine runs on a CPU, over two and over four examples with tiles in proportion, as many columns of every parameter
tensor as are carried together, and every call of an operation is written down. What grows with the examples is a chunk
of any size; what does not comes once per chunk. A GPU multiplies some small factors in one call where a CPU does in
many, so its calls are fewer. Products are left out of the bytes, for they are counted in
operations; so these are the bytes of all that is element-wise, a sum or a copy, and not fused with anything.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.setting import problem, random_data
from quadscape.curvature.engine import HessianEngine

_FEW = 2
_FREE = frozenset({"aten::detach", "aten::_unsafe_view", "aten::_reshape_alias", "aten::lift_fresh", "aten::alias"})


@dataclass
class Moved:
    """What was counted.

    Attributes:
        bytes: Read and written by operations that are no products.
        calls: Of all operations that compute or copy.
    """

    bytes: float = 0.0
    calls: float = 0.0


class _Count(TorchDispatchMode):
    """Adds up operations."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = Moved()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = operation(*args, **(kwargs or {}))
        name = operation._schema.name
        if operation.is_view or name in _FREE or "empty" in name:
            return outcome
        self.moved.calls += 1
        if operation.overloadpacket not in flop_registry:
            tensors = [t for t in tree_leaves((args, kwargs, outcome)) if isinstance(t, torch.Tensor)]
            self.moved.bytes += sum(map(_bytes, tensors))
        return outcome


def _bytes(tensor: torch.Tensor) -> int:
    """Of its elements, those that share memory once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count


def _of_columns(width: int, examples: int, chunk: int, tile: int) -> Moved:
    """All columns over so many examples in one chunk, with carries as wide as over a whole chunk."""
    objective, theta = problem(width, "group", torch.float32, random_data(examples))
    engine = HessianEngine(objective, theta, {"chunk": examples, "tile": tile * examples // chunk})
    traced = engine._chunk(slice(0, examples), 0)
    total = Moved()
    for index, block in enumerate(objective.layout.blocks):
        size, origin = block.stop - block.start, traced.origins[index]
        together = min(size, origin.width) if origin.node is None else size // block.shape[0]
        start = block.start + size // together // 2 * together
        totals = engine._totals(index, together)
        with _Count() as count:
            engine._block(traced, index, block, (start, start + together), totals)
        total.bytes += count.moved.bytes * size / together
        total.calls += count.moved.calls * size / together
    return total


def moved(width: int, images: int, chunk: int, tile: int) -> Moved:
    """All columns of the reference network with GroupNorm.

    Args:
        width: w.
        images: N.
        chunk: Examples of a data chunk.
        tile: Bytes of tangents that are carried at once.

    Returns:
        Bytes and calls.
    """
    one, two = (_of_columns(width, times * _FEW, chunk, tile) for times in (1, 2))
    each = (two.bytes - one.bytes) / _FEW
    once = one.bytes - each * _FEW
    # Calls of a chunk do not depend on its size, but for carries that its tile cuts otherwise.
    return Moved(images * each + images / chunk * once, images / chunk * two.calls)
