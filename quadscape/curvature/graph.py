"""A network as a list of single operations, so that each can be differentiated by itself.

`torch.export` makes every parameter an input, shows tied weights, and refuses control flow that depends on data. What
it yields for one batch size is a list of nodes, each a pure function of earlier values. Whether axis 0 of a value
counts the examples, and only that, is found by tracing two batch sizes and comparing shapes.
"""

import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from quadscape.errors import ModelError
from quadscape.network.parameters import ParameterLayout
from quadscape.network.substitutes import OPERATIONS

# Nodes that only assert properties of their inputs.
_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: Name of its value.
        target: The operation, for what knows it.
        arguments: Its arguments, where `Input` stands for a tensor; keyword arguments included.
        inputs: Names of the tensors, in the order in which `function` takes them.
        index: Which of several outputs this node's value is; None where there is only one.
        layer: Name of the module whose code the operation stands in; "" for the network itself.
    """

    name: str
    target: Callable[..., Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    inputs: tuple[str, ...]
    index: int | None
    layer: str = ""

    def function(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The operation as a pure function of its tensors."""
        args, kwargs = fx.node.map_aggregate(
            self.arguments, lambda a: tensors[a.position] if isinstance(a, Input) else a
        )
        result = self.target(*args, **kwargs)
        return result if self.index is None else result[self.index]


@dataclass(frozen=True)
class Input:
    """Stands for one of a node's tensors in its arguments.

    Attributes:
        position: Which one.
    """

    position: int


@dataclass(frozen=True)
class Graph:
    """A network on batches of one size.

    Attributes:
        nodes: Operations in the order of their evaluation.
        images: Name of the input.
        outputs: Name of the value that holds the class scores.
        parameters: Index of the parameter tensor in the layout, by name of the value.
        constants: Buffers and constants by name.
        active: Names of the values that depend on a parameter, parameters included; see `differentiable`.
        batched: Names of the values whose axis 0 is the examples, and whose other axes do not depend on their number.
    """

    nodes: tuple[Node, ...]
    images: str
    outputs: str
    parameters: dict[str, int]
    constants: dict[str, torch.Tensor]
    active: frozenset[str]
    batched: frozenset[str]

    def users(self, name: str) -> list[Node]:
        """The nodes that take a value."""
        return [node for node in self.nodes if name in node.inputs]


def trace(
    model: torch.nn.Module, layout: ParameterLayout, images: torch.Tensor, batched: frozenset[str] | None = None
) -> Graph:
    """Traces a network for the batch size of some images.

    Args:
        model: The network, in evaluation mode, in the dtype and on the device of `images`.
        layout: Where its parameters lie in θ.
        images: One batch.
        batched: `Graph.batched`, where it is known from another batch size.

    Returns:
        The graph; it holds for batches of this size.

    Raises:
        ModelError: The network has no such graph: control flow depends on data, or a buffer is changed.
    """
    exported = _export(model, images)
    _refuse_dropout(exported)
    if batched is None:
        batched = _batched(exported, model, images)
    signature = exported.graph_signature
    if signature.buffers_to_mutate:
        changed = next(iter(signature.buffers_to_mutate.values()))
        raise ModelError(
            f"The network's forward pass changes its buffer '{_own(changed)}', so its loss is not a function of its "
            "parameters; change buffers only in training mode."
        )
    index = _parameter_index(model, layout)
    parameters = {name: index[_own(path)] for name, path in signature.inputs_to_parameters.items()}
    buffers = dict(_Whole(model).named_buffers(remove_duplicate=False))
    constants = {
        name: buffers[path] if path in buffers else exported.constants[path]
        for name, path in signature.inputs_to_buffers.items()
    }
    constants |= {name: exported.constants[path] for name, path in signature.inputs_to_lifted_tensor_constants.items()}
    (image_name,) = signature.user_inputs
    nodes: list[Node] = []
    several: dict[str, fx.Node] = {}
    active = set(parameters)
    for node in exported.graph.nodes:
        if node.op != "call_function" or any(word in str(node.target) for word in _ASSERTIONS):
            continue
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise ModelError(
                f"The network uses {node.target.name()}, whose parts are not operations that can be differentiated one "
                "by one; write it without control flow or transformations of functions."
            )
        if node.target is operator.getitem:
            made = _node(node.name, several[node.args[0].name], node.args[1])
        elif isinstance(node.meta.get("val"), (tuple, list)):
            several[node.name] = node
            continue
        else:
            made = _node(node.name, node, None)
        nodes.append(made)
        if active.intersection(made.inputs):
            active.add(made.name)
    (outputs,) = signature.user_outputs
    used = _used(nodes, outputs)
    return Graph(
        tuple(node for node in nodes if node.name in used),
        str(image_name),
        str(outputs),
        {name: i for name, i in parameters.items() if name in used},
        constants,
        frozenset(active & used),
        batched,
    )


def differentiable(graph: Graph, values: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """The values that have a derivative in a parameter, as far as autograd knows.

    Others are constants of the derivatives although they are made from parameters: comparisons, indices, `zeros_like`,
    what a network takes out of autograd's sight.

    Args:
        graph: A network.
        values: Its values for one batch, without gradients.

    Returns:
        Names of the values, those of parameters included.
    """
    active = set(graph.parameters)
    for node in graph.nodes:
        if not active.intersection(node.inputs):
            continue
        with torch.enable_grad():
            inputs = [
                values[name].detach().requires_grad_() if name in active else values[name] for name in node.inputs
            ]
            if node.function(*inputs).requires_grad:
                active.add(node.name)
    return frozenset(active)


def _batched(exported: torch.export.ExportedProgram, model: torch.nn.Module, images: torch.Tensor) -> frozenset[str]:
    """The values whose axis 0 is the examples, by the shapes for another batch size."""
    counts = (len(images), 3 if len(images) != 3 else 2)
    other = _export(model, images[:1].repeat(counts[1], *[1] * (images.ndim - 1)))
    first, second = _shapes(exported), _shapes(other)
    return frozenset(
        name
        for name in first.keys() & second.keys()
        if (first[name][:1], second[name][:1]) == ((counts[0],), (counts[1],)) and first[name][1:] == second[name][1:]
    )


def _used(nodes: list[Node], outputs: str) -> set[str]:
    """Names of the values that the outputs depend on."""
    used = {outputs}
    for node in reversed(nodes):
        if node.name in used:
            used.update(node.inputs)
    return used


class _Whole(torch.nn.Module):
    """A network as a child, since names such as `code` and `graph` are taken in the modules that are traced."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)


def _export(model: torch.nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # An empty table makes the graph functional and splits no operation that has a derivative of its own.
            return torch.export.export(_Whole(model), (images,), strict=False).run_decompositions({})
    except Exception as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:160]
        raise ModelError(
            "The network cannot be written as a fixed list of operations, which its exact Hessian needs "
            f"({type(error).__name__}: {reason} …); a forward pass must not branch on values of tensors."
        ) from error


def _refuse_dropout(exported: torch.export.ExportedProgram) -> None:
    for node in exported.graph.nodes:
        if "dropout" in str(node.target) and not str(node.target).startswith("aten.scaled"):
            training = node.args[2] if len(node.args) > 2 else True
            if training is not False and node.args[1] > 0:
                raise ModelError(
                    "The network applies dropout in evaluation mode too, so its loss is random; give "
                    "torch.nn.functional.dropout the argument training=self.training."
                )


def _shapes(exported: torch.export.ExportedProgram) -> dict[str, tuple[int, ...]]:
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, torch.Tensor)}


def _parameter_index(model: torch.nn.Module, layout: ParameterLayout) -> dict[str, int]:
    """Index in the layout of every name of every parameter; tied parameters have several names."""
    numbers = {block.name: number for number, block in enumerate(layout.blocks)}
    tensors = {id(p): numbers[name] for name, p in model.named_parameters()}
    return {name: tensors[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def _node(name: str, node: fx.Node, index: int | None) -> Node:
    inputs: list[str] = []

    def replaced(argument: fx.Node) -> Input:
        inputs.append(argument.name)
        return Input(len(inputs) - 1)

    arguments: Any = fx.node.map_arg((node.args, dict(node.kwargs)), cast(Any, replaced))
    target = cast(Callable[..., Any], node.target)
    stack = node.meta.get("nn_module_stack") or {}
    layer = next(reversed(stack.values()))[0] if stack else ""
    return Node(name, _EQUIVALENTS.get(target, target), arguments, tuple(inputs), index, _own(str(layer)))


def _own(path: str) -> str:
    """The name that a network has for what `_Whole` calls `model.<name>`."""
    return path.removeprefix("model").removeprefix(".")


def _copied(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Assignment to a slice, as a function of what is assigned; the original asks for memory that it may write to."""
    return source.expand(target.shape).to(target.dtype)


# A view holds for the strides that were traced, the same reshaping for all.
_EQUIVALENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    **OPERATIONS,
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.copy.default: _copied,
}
