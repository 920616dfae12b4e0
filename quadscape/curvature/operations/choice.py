"""Which operation a node of the graph is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quadscape.curvature.graph import Graph, Input, Node
from quadscape.curvature.operations.affine import Convolution, LinearLayer
from quadscape.curvature.operations.base import Operation, Tensor, aten
from quadscape.curvature.operations.elementwise import SUMS, AveragePooling, Pointwise, SpatialMean, Sum
from quadscape.curvature.operations.fused import FusedGroupNorm, FusedPointwise
from quadscape.curvature.operations.normalization import FrozenBatchNorm, GroupNorm

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}


def operation_for(node: Node, graph: Graph, values: Sequence[Tensor], result: Tensor, fused: bool = False) -> Operation:
    """The derivatives of a node of the graph: the fastest way that holds for it.

    Args:
        node: The operation.
        graph: Its graph.
        values: Its inputs, of which kinds and shapes count.
        result: Its output.
        fused: Whether element-wise formulas are compiled.

    Returns:
        The operation.
    """
    if any(value.is_complex() for value in (*values, result)):
        return Operation(node, graph)  # the others take derivatives for numbers that commute with conjugation
    shapes, output = [value.shape for value in values], result.shape
    args, kwargs = node.arguments
    active = [i for i, name in enumerate(node.inputs) if name in graph.active]
    tensors = [isinstance(a, Input) for a in args]
    kind: type[Operation] = Operation
    if node.target in _CONVOLUTIONS and len(shapes[0]) == len(shapes[1]) and tensors[:2] == [True, True]:
        kind = Convolution
    elif node.target is aten.linear.default and tensors[:2] == [True, True] and len(shapes[0]) > 1:
        kind = LinearLayer
    elif node.target in SUMS and active == [0, 1] and shapes[0] == shapes[1]:
        kind = Sum
    elif (
        node.target is aten._native_batch_norm_legit_no_training.default
        and all(tensors[:5])
        and active
        and active[-1] < 3
    ):
        kind = FrozenBatchNorm
    elif node.target is aten.group_norm.default and len(node.inputs) == 3 and len(shapes[0]) > 2:
        kind = FusedGroupNorm if fused else GroupNorm
    elif node.target is aten.avg_pool2d.default and len(shapes[0]) == 4 and not kwargs:
        kind = AveragePooling
    elif (
        node.target is aten.mean.dim
        and node.inputs[0] in graph.batched
        and len(args) > 1
        and args[1]
        and not kwargs
        and all(axis % len(shapes[0]) >= 2 for axis in args[1])
    ):
        kind = SpatialMean
    elif len(active) == 1 and shapes[active[0]] == output and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        kind = FusedPointwise if fused else Pointwise
    return kind(node, graph)
