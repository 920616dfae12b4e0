"""What one example costs in a network, counted on torch's meta device: nothing is computed, whatever its size."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quadscape.config.sections import Model
from quadscape.network.counts import Counts, TensorCounts
from quadscape.network.losses import example_losses
from quadscape.network.models import build_model
from quadscape.network.objective import graph_bytes, storage_of
from quadscape.network.parameters import ParameterLayout
from quadscape.network.shapes import Shape

_EXAMPLES = 2
"""Of one, some networks and operations take a way of their own."""


class _Recorded:
    """One operation of a forward pass.

    Attributes:
        operations: Of its products; 0 for all others.
        inputs: Parameter tensors among its inputs, by name.
        numbers: That it makes.
        taken: Numbers of its input.
        unfolded: Numbers of that input, unfolded, as a product takes it.
        folded: Numbers of its output for each position of the kernel, as the product of an adjoint gives them.
        positions: Of its output, for one channel.
    """

    def __init__(
        self, operation: Any, arguments: tuple[Any, ...], outcome: Any, names: dict[int, str], registry: Any
    ) -> None:
        tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
        outcomes = [value for value in _flat(outcome) if isinstance(value, torch.Tensor)]
        self.inputs = {names[key] for tensor in tensors if (key := storage_of(tensor)) in names}
        fresh = [value for value in outcomes if storage_of(value) not in {storage_of(tensor) for tensor in tensors}]
        self.numbers = sum(value.numel() for value in fresh)
        count = registry.get(operation.overloadpacket)
        self.operations = 0 if count is None else int(count(*arguments, out_val=outcome))
        self.taken = self.unfolded = self.folded = self.positions = 0
        given = [tensor for tensor in tensors if storage_of(tensor) not in names and tensor.dim() > 1]
        if self.operations and given and outcomes and outcomes[0].dim() > 1:
            made, taken = outcomes[0], given[0]
            channel = 1 if "conv" in str(operation) else -1
            self.taken = taken.numel()
            self.positions = made.numel() // (made.shape[0] * made.shape[channel]) if len(made) else 0
            self.unfolded = self.operations // (2 * max(1, made.shape[channel]))
            self.folded = self.operations // (2 * max(1, taken.shape[channel]))


def _flat(value: Any) -> list[Any]:
    return [part for one in value for part in _flat(one)] if isinstance(value, tuple | list) else [value]


class _Record(TorchDispatchMode):
    """Writes down every operation."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        # Here, since it takes two seconds, which jobs that only ask for the graph need not wait.
        from torch.utils.flop_counter import flop_registry

        self.names, self.found, self._registry = names, list[_Recorded](), flop_registry
        self.alive = list[Any]()
        """What was made: no memory is used twice meanwhile."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = operation(*args, **(kwargs or {}))
        self.found.append(_Recorded(operation, args, outcome, self.names, self._registry))
        self.alive.append(outcome)
        return outcome


def module_outputs(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Numbers that modules hand on in a forward pass, each module within another counted as well.

    Args:
        model: The network.
        images: Its inputs.

    Returns:
        Their number.
    """
    total = 0

    def add(_: Any, __: Any, made: Any) -> None:
        nonlocal total
        total += made.numel() if isinstance(made, torch.Tensor) else 0

    hooks = [module.register_forward_hook(add) for module in model.modules()]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return total


class _Network:
    """A network on a device, with its loss over some examples."""

    def __init__(self, model: torch.nn.Module, shape: tuple[int, ...], loss: str, device: str) -> None:
        self.layout = ParameterLayout.of(model)
        self.model, self._loss = model.to(device).eval(), loss
        self.parameters = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
        self._shape, self._device = shape, device

    def _images(self, count: int) -> torch.Tensor:
        return torch.zeros(count, *self._shape, device=self._device)

    def loss(self, count: int) -> torch.Tensor:
        """The loss of some examples."""
        outputs = torch.func.functional_call(self.model, self.parameters, (self._images(count),))
        labels = torch.zeros(count, dtype=torch.int64, device=self._device)
        return example_losses(outputs, labels, self._loss).sum()

    def outputs(self) -> float:
        """Numbers that modules hand on, for one example."""
        return module_outputs(self.model, self._images(_EXAMPLES)) / _EXAMPLES

    def graph_numbers(self, count: int) -> float:
        """Numbers that autograd keeps for a gradient whose own derivative will be taken."""
        return graph_bytes(lambda: self.loss(count), list(self.parameters.values())) / 4


def _graph_numbers(network: _Network) -> float:
    return max(0.0, network.graph_numbers(3) - network.graph_numbers(2))


def count_graph(model: Model, shape: Shape, classes: int, loss: str) -> float:
    """Numbers that autograd keeps of one example, for a gradient whose own derivative will be taken.

    Args:
        model: The `model` section.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        loss: `cross_entropy` or `squared_error`.

    Returns:
        As `count_network` counts them.
    """
    return _graph_numbers(_Network(build_model(model, shape, classes).float(), shape, loss, "cpu"))


def _counted(network: _Network) -> Counts:
    names = {storage_of(value): name for name, value in network.parameters.items()}
    with _Record(names) as forward:
        loss = network.loss(_EXAMPLES)
    with _Record({}) as backward:
        torch.autograd.grad(loss, list(network.parameters.values()), allow_unused=True)
    return Counts(
        forward=sum(one.operations for one in forward.found) / _EXAMPLES,
        backward=sum(one.operations for one in backward.found) / _EXAMPLES,
        graph_numbers=_graph_numbers(network),
        outputs=network.outputs(),
        values=sum(one.numbers for one in forward.found) / _EXAMPLES,
        unfolded=sum(one.unfolded + one.folded for one in forward.found) / _EXAMPLES,
        tensors=tuple(_tensors(network.layout, forward.found)),
    )


def _tensors(layout: ParameterLayout, found: list[_Recorded]) -> list[TensorCounts]:
    # Views of a tensor make nothing, and stand for it.
    made = [one for one in found if one.numbers]
    counted, earliest = list[TensorCounts](), len(made)
    for block in reversed(layout.blocks):
        users = [index for index, one in enumerate(made) if block.name in one.inputs]
        # Whatever a tensor of θ from this one on acts on is moved with it.
        earliest = min([earliest, *users])
        layer = made[users[0]] if len(users) == 1 and users[0] == earliest and made[users[0]].operations else None
        later = made[earliest + (layer is not None) :]
        weight = layer is not None and len(block.shape) > 1
        counted.append(
            TensorCounts(
                columns=block.stop - block.start,
                per_channel=(block.stop - block.start) // (block.shape[0] if block.shape else 1),
                positions=layer.positions if layer is not None and weight else 0,
                own=layer.operations / _EXAMPLES if layer is not None and weight else 0.0,
                later=sum(one.operations for one in later) / _EXAMPLES,
                values=sum(one.numbers for one in made[earliest:]) / _EXAMPLES,
                unfolded=max((one.unfolded for one in made[earliest:]), default=0) / _EXAMPLES,
            )
        )
    return counted[::-1]


def count_network(model: Model, shape: Shape, classes: int, loss: str) -> Counts:
    """Counts what one example costs.

    Args:
        model: The `model` section.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        loss: `cross_entropy` or `squared_error`.

    Returns:
        The counts.
    """

    def on(device: str) -> Counts:
        return _counted(_Network(build_model(model, shape, classes).float(), shape, loss, device))

    try:
        return on("meta")
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        # Some networks look at values, which the meta device does not have.
        return on("cpu")
