"""Operations of torch whose derivatives are wrong or missing, written out in operations whose derivatives are right.

What exactly is wrong, under which version of torch, stands in docs/refused.md with an example for each that a test
runs, so that it is seen when torch has mended it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


def weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """`torch._weight_norm`: the original's second derivative is wrong, silently."""
    axes = None if dim == -1 else [axis for axis in range(v.ndim) if axis != dim]
    return v * (g / torch.linalg.vector_norm(v, 2, axes, keepdim=axes is not None))


def hardsigmoid(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """`torch.nn.functional.hardsigmoid`: the original has no second derivative."""
    result = (x + 3).clamp(0, 6) / 6
    return x.copy_(result) if inplace else result


def cdist(x: torch.Tensor, y: torch.Tensor, p: float = 2.0, compute_mode: object = None) -> torch.Tensor:
    """`torch.cdist`: the original's derivative is wrong, silently, for several directions at once (under vmap)."""
    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)


OPERATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    aten._weight_norm.default: weight_norm,
    aten.hardsigmoid.default: hardsigmoid,
    aten.cdist.default: cdist,
    aten._cdist_forward.default: cdist,
}
"""By operation of a traced network."""

_FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch._weight_norm: weight_norm,
    functional.hardsigmoid: hardsigmoid,
    torch._C._nn.hardsigmoid: hardsigmoid,
    torch.cdist: cdist,
}


class Substituted(TorchFunctionMode):
    """Within it a network's forward pass takes the written-out operations."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls the function, or what stands for it."""
        return _FUNCTIONS.get(func, func)(*args, **(kwargs or {}))
