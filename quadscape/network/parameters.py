"""The one place that converts between the flat vector θ and a network's parameters.

θ is flat in `named_parameters()` order, each parameter in C order. The layout knows the name, shape and layer
of every index; the layer is the module that owns the parameter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from quadscape.errors import ModelError


@dataclass(frozen=True)
class ParameterBlock:
    """One parameter tensor within θ.

    Attributes:
        name: As in `named_parameters()`, for example `conv1.weight`.
        layer: Name of the owning module, for example `conv1`; "" for a parameter of the model itself.
        shape: Shape of the tensor.
        start: Index of its first element in θ.
        stop: Index after its last element.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class ParameterLayout:
    """Where each parameter of a network lies in θ.

    Attributes:
        blocks: The parameters in order.
    """

    blocks: tuple[ParameterBlock, ...]

    @classmethod
    def of(cls, model: torch.nn.Module) -> "ParameterLayout":
        """The layout of a network's trainable parameters.

        Args:
            model: The network.

        Returns:
            Its layout.

        Raises:
            ModelError: There are no parameters, or some are of a kind that has no place in θ.
        """
        blocks, start = [], 0
        for name, parameter in model.named_parameters():
            _check_parameter(name, parameter)
            stop = start + parameter.numel()
            blocks.append(ParameterBlock(name, name.rpartition(".")[0], tuple(parameter.shape), start, stop))
            start = stop
        if start == 0:
            raise ModelError("The model has no parameters.")
        return cls(tuple(blocks))

    @property
    def size(self) -> int:
        """P, the length of θ."""
        return self.blocks[-1].stop

    def flatten(self, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Concatenates tensors (parameters or gradients) by name into a vector of shape (P,)."""
        return torch.cat([parameters[block.name].reshape(-1) for block in self.blocks])

    def unflatten(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of a vector, by parameter name.

        Args:
            vector: Shape (P,) or, for a batch of vectors, (..., P).

        Returns:
            Tensors of shape (..., *parameter shape) that share the vector's memory where it is contiguous.
        """
        lead = vector.shape[:-1]
        return {b.name: vector[..., b.start : b.stop].reshape((*lead, *b.shape)) for b in self.blocks}

    def layer_index(self) -> np.ndarray:
        """For every index of θ the number of its layer, counted in order of first appearance; int64, shape (P,)."""
        numbers: dict[str, int] = {}
        index = np.empty(self.size, dtype=np.int64)
        for block in self.blocks:
            index[block.start : block.stop] = numbers.setdefault(block.layer, len(numbers))
        return index

    def to_json(self) -> list[dict[str, Any]]:
        """The blocks as JSON values."""
        return [
            {"name": b.name, "layer": b.layer, "shape": list(b.shape), "start": b.start, "stop": b.stop}
            for b in self.blocks
        ]


def _check_parameter(name: str, parameter: torch.nn.Parameter) -> None:
    if torch.nn.parameter.is_lazy(parameter):
        raise ModelError(
            f"Parameter '{name}' belongs to a lazy module, whose shape is open until its first forward pass; let the "
            "factory run one batch through the network, or give the module its sizes."
        )
    if parameter.is_complex():
        raise ModelError(
            f"Parameter '{name}' is complex ({parameter.dtype}), but θ is real; keep real and imaginary parts in a "
            "real parameter with a last axis of 2, and use torch.view_as_complex."
        )
    if not parameter.is_floating_point():
        raise ModelError(f"Parameter '{name}' holds {parameter.dtype} and no real numbers; make it a buffer.")
    if not parameter.requires_grad:
        raise ModelError(f"Parameter '{name}' does not require gradients; make it a buffer, or trainable.")
    if parameter.numel() == 0:
        raise ModelError(
            f"Parameter '{name}' has no elements (shape {tuple(parameter.shape)}); remove its layer, or give it a size."
        )


def current_vector(model: torch.nn.Module) -> torch.Tensor:
    """A network's parameters as one detached vector of shape (P,), in their dtype."""
    return ParameterLayout.of(model).flatten(dict(model.named_parameters())).detach()


def assign_vector(model: torch.nn.Module, vector: torch.Tensor) -> None:
    """Copies a vector of shape (P,) into a network's parameters, casting to their dtype and device."""
    with torch.no_grad():
        values = ParameterLayout.of(model).unflatten(vector)
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])
