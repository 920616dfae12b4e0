"""Columns of the exact Hessian, several times faster than Hessian–vector products.

Three things are saved. *Layer cut*: a unit tangent in one layer changes nothing before it, and by symmetry only rows of
this and later layers are wanted. *One primal pass* per data chunk serves all columns. *Directions in output space*: the
weights of one output channel move the layer's output only through its positions, of which there are often far fewer
than weights; unit tangents of the positions are carried through the network once, and turned into columns, example by
example, where they meet the gradients of later weights.

Every operation knows its own derivatives (`quadscape.curvature.operations`).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch.func import grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from quadscape.curvature.costs import ENGINE_CHUNK, ENGINE_TILE_BYTES, USUAL_COLUMNS
from quadscape.curvature.graph import Graph, Node, differentiable, trace
from quadscape.curvature.operations.affine import LARGEST_BATCH, Affine, with_onednn
from quadscape.curvature.operations.base import (
    Adjoint,
    Expansion,
    Operation,
    Tangent,
    evenly,
    laid_out,
    on_gpu,
    plain,
)
from quadscape.curvature.operations.choice import operation_for
from quadscape.curvature.operations.fused import can_fuse, check_can_fuse
from quadscape.network.losses import example_losses
from quadscape.network.models import check_sum_over_examples
from quadscape.network.objective import Objective, Vector
from quadscape.network.parameters import ParameterBlock
from quadscape.numerics import memory_share

Tensor = torch.Tensor

_CUDA_CHUNK = 1024
# What columns are expanded to at once on a GPU, of what is carried: it needs no more to be busy.
_CUDA_EXPANSION = 8
# Numbers of one tensor on a GPU, of which libraries count more in 32 bits.
_CUDA_NUMBERS = 2**31 - 1
# A multiply–add of the small products that expand directions costs as much as several of a convolution.
_EXPANSION_COST = 4
# An element-wise operation costs about as much as this many multiply–adds, over all its passes.
_ELEMENT_COST = 60


@dataclass(frozen=True)
class _Origin:
    """Where the directions of a parameter tensor's columns start.

    Attributes:
        node: The layer at whose output they do; None: at the tensor itself.
        positions: How many stand for all columns of an output channel; None: they are the columns themselves.
        width: Directions that are carried at once, where they are columns.
    """

    node: Node | None
    positions: int | None
    width: int


@dataclass(frozen=True)
class _Traced:
    """The graph for one batch size with its operations.

    Attributes:
        graph: The graph.
        operations: By name of the node.
        shapes: Of every value.
        depends: By name of a value, the largest index of a parameter tensor that it depends on; −1: none.
        origins: Of every parameter tensor.
    """

    graph: Graph
    operations: dict[str, Operation]
    shapes: dict[str, torch.Size]
    depends: dict[str, int]
    origins: list[_Origin]


class HessianEngine:
    """Columns of ∇²L(θ).

    Attributes:
        objective: L, in the precision of the computation.
        theta: Where, shape (P,), float64.
        plan: Examples of a data chunk, bytes of the tangents that are carried at once, and on a GPU whether formulas
            are compiled; see `plan_for`.
        current: The operation that is or was last differentiated, for messages.
    """

    def __init__(self, objective: Objective, theta: Vector, plan: dict[str, int] | None = None) -> None:
        self.objective = objective
        self.theta = torch.as_tensor(theta)
        self.plan = plan or self.plan_for(objective)
        if "fused" in self.plan:
            check_can_fuse(objective.device)
        self._parameters = {name: laid_out(p) for name, p in objective.parameters(self.theta).items()}
        self._traced: dict[int, _Traced] = {}
        self.current: Node | None = None
        self._trace(min(self.plan["chunk"], objective.count))
        if objective.count > 1:  # the loss of one example is a sum over examples in any case
            images = objective.images[:4]
            with torch.no_grad():
                classes = objective.model(images).shape[-1]
            check_sum_over_examples(objective.model, images, classes)

    @property
    def graph(self) -> Graph:
        """The network for the size of a data chunk."""
        return next(iter(self._traced.values())).graph

    @staticmethod
    def plan_for(objective: Objective) -> dict[str, int]:
        """Sizes that fit the device; they depend on network, shapes, dtype and kind of device only.

        Among GPUs, they are the same on all whose memory has the same `memory_share`.

        Args:
            objective: L.

        Returns:
            `chunk`, examples of one primal pass, and `tile`, bytes of tangents at once; on GPUs also `fused`, 1, where
            element-wise formulas can be compiled.
        """
        device = objective.device
        if device.type == "cuda":
            chunk = alike_chunk(objective.count, min(objective.chunk, _CUDA_CHUNK))
            plan = {"chunk": chunk, "tile": memory_share(device)}
            return {**plan, "fused": 1} if can_fuse(device) else plan
        return {"chunk": min(objective.chunk, ENGINE_CHUNK), "tile": ENGINE_TILE_BYTES}

    def of_part(self, examples: slice) -> "HessianEngine":
        """The engine of the loss of some of the examples, which takes over what is known of the network.

        Its columns and those of this engine must not be computed at the same time.

        Args:
            examples: Which.

        Returns:
            Another engine, with the same plan.
        """
        part = copy.copy(self)
        part.objective = self.objective.part(examples)
        return part

    def flops(self, start: int, stop: int) -> float:
        """Floating-point operations of matrix products and convolutions that a block of columns takes, over all data.

        Counted on a few columns of every parameter tensor and two examples; nothing is timed.

        Args:
            start: First column.
            stop: One after the last column.

        Returns:
            Two operations per multiply–add.
        """
        total, costs = self._counted
        for block, (first, last) in zip(self.objective.layout.blocks, costs, strict=True):
            begin, end = max(start, block.start), min(stop, block.stop)
            if begin >= end:
                continue
            size, per_channel = block.stop - block.start, _per_channel(block)
            channels = (end - 1 - block.start) // per_channel - (begin - block.start) // per_channel + 1
            place = ((begin + end) / 2 - block.start) / size  # later channels have fewer rows to compute
            for low, high, count in zip(first, last, (channels, end - begin), strict=True):
                total += count * (low + (high - low) * place)
        return total * self.objective.count

    @cached_property
    def _counted(self) -> tuple[float, list[tuple[tuple[float, float], tuple[float, float]]]]:
        """Operations for one example of the primal pass, and of columns.

        The latter by parameter tensor, for its first and its last channel: per channel, and per column of it.
        """
        count = min(2, self.objective.count)
        with FlopCounterMode(display=False) as counted:
            traced = self._chunk(slice(0, count), 0)
        primal = counted.get_total_flops() / count
        found = []
        for index, block in enumerate(self.objective.layout.blocks):
            per_channel = _per_channel(block)
            ends = []
            for begin in (block.start, block.stop - per_channel):
                counts = []
                for width in (1, 2) if per_channel > 1 else (1,):
                    totals = self._totals(index, width)
                    with FlopCounterMode(display=False) as counted:
                        self._block(traced, index, block, (begin, begin + width), totals)
                    counts.append(counted.get_total_flops() / count)
                per_column = counts[-1] - counts[0] if len(counts) > 1 else counts[0]
                ends.append((counts[0] - per_column, per_column))
            found.append((ends[0], ends[1]))
        return primal, found

    def memory_bytes(self, columns: int) -> int:
        """Estimated peak of the device's memory for one strip, beside network and data.

        Args:
            columns: Columns of the strip.

        Returns:
            Bytes.
        """
        objective = self.objective
        traced = self._trace(min(self.plan["chunk"], objective.count))
        itemsize = objective.dtype.itemsize
        values = {n.name: traced.shapes[n.name].numel() * itemsize for n in traced.graph.nodes}
        unfolded, shared = {}, 0
        for name, operation in traced.operations.items():
            if isinstance(operation, Affine):
                x, weight, *_ = (traced.shapes[i] for i in operation.node.inputs)
                products = x[0] * operation.multiply_adds(traced.shapes[name], weight) * itemsize
                groups = x[1] // weight[1] if len(weight) > 2 else 1
                unfolded[name] = products * groups // weight[0]
                shared += unfolded[name] + products // weight[1]
        if with_onednn(objective.images):
            unfolded = {}  # the others unfold all directions of a convolution's input
        carried = largest_rows = 0
        for index, block in enumerate(objective.layout.blocks):
            origin = traced.origins[index]
            directions = min(origin.width, block.stop - block.start, columns)
            if origin.node is not None:
                directions = min(directions, _per_channel(block))
            if origin.positions is not None:
                directions = origin.positions
            later = 2 * sum(size for name, size in values.items() if traced.depends[name] >= index)
            later += max((size for name, size in unfolded.items() if traced.depends[name] >= index), default=0)
            carried = max(carried, directions * later)
            largest_rows = max(largest_rows, block.stop - block.start)
        primal = 5 * sum(values.values())
        strip = columns * objective.size * 8
        rows = 3 * min(columns, USUAL_COLUMNS) * largest_rows * itemsize
        return primal + shared + carried + 4 * self._expanded_bytes + strip + rows

    @property
    def _expanded_bytes(self) -> int:
        """Of what columns are expanded to at once."""
        return self.plan["tile"] // (_CUDA_EXPANSION if on_gpu(self.objective.images) else 1)

    # -----------------------------------------------------------------------------------------------------------------
    # Primal pass

    def _trace(self, count: int) -> _Traced:
        if count not in self._traced:
            objective = self.objective
            images = objective.images[:count]
            known = next((traced.graph.batched for traced in self._traced.values()), None)
            graph = trace(objective.model, objective.layout, images, known)
            values = self._values(graph, images)
            graph = replace(graph, active=differentiable(graph, values))
            shapes = {name: value.shape for name, value in values.items()}
            operations = {
                node.name: operation_for(
                    node, graph, [values[i] for i in node.inputs], values[node.name], "fused" in self.plan
                )
                for node in graph.nodes
                if node.name in graph.active
            }
            depends = dict.fromkeys(values, -1) | graph.parameters
            for node in graph.nodes:
                if node.name in graph.active:
                    depends[node.name] = max(depends[i] for i in node.inputs)
            traced = _Traced(graph, operations, shapes, depends, [])
            traced.origins.extend(self._origin(traced, i, b) for i, b in enumerate(objective.layout.blocks))
            self._traced[count] = traced
        return self._traced[count]

    def _origin(self, traced: _Traced, index: int, block: ParameterBlock) -> _Origin:
        node = _weighted(traced, index)
        positions = None
        if node is not None and _cheaper_by_positions(traced, node, index, min(_per_channel(block), USUAL_COLUMNS)):
            positions = _affine(traced, node).positions(traced.shapes[node.name])
        size = sum(traced.shapes[n.name].numel() for n in traced.graph.nodes if traced.depends[n.name] >= index)
        width = self.plan["tile"] // max(1, size * self.objective.dtype.itemsize)
        if on_gpu(self.objective.images):
            examples = min(self.plan["chunk"], self.objective.count)
            largest = max(shape.numel() for shape in traced.shapes.values())
            width = min(width, LARGEST_BATCH // examples, _CUDA_NUMBERS // largest)
        return _Origin(node, positions, max(1, width))

    def _values(self, graph: Graph, images: Tensor, first: int | None = None) -> dict[str, Tensor]:
        """All values of the network on one chunk, as functions of the parameter tensors from a first one on."""
        values = {graph.images: images, **graph.constants}
        blocks = self.objective.layout.blocks
        leaves: dict[int, Tensor] = {}
        for name, index in graph.parameters.items():
            if index not in leaves:
                leaf = self._parameters[blocks[index].name].detach()
                leaves[index] = leaf.requires_grad_() if first is not None and index >= first else leaf
            values[name] = leaves[index]
        with torch.set_grad_enabled(first is not None):
            for node in graph.nodes:
                values[node.name] = node.function(*(values[i] for i in node.inputs))
        return values

    def _chunk(self, examples: slice, first: int) -> _Traced:
        """One primal pass: gives every operation that columns from parameter tensor `first` on need its values."""
        images, labels = laid_out(self.objective.images[examples]), self.objective.labels[examples]
        traced = self._trace(len(images))
        graph = traced.graph
        values = self._values(graph, images, first)
        moving = [node for node in graph.nodes if traced.depends[node.name] >= first]
        with torch.enable_grad():
            loss = example_losses(values[graph.outputs], labels, self.objective.loss_kind).sum()
        # None is left where no parameter tensor from `first` on has an effect, and none of these where none moves it.
        asked = [values[n.name] for n in moving if values[n.name].requires_grad] if loss.requires_grad else []
        found = iter(torch.autograd.grad(loss, asked, allow_unused=True) if asked else ())
        for node in moving:
            self.current = node
            adjoint = next(found) if asked and values[node.name].requires_grad else None
            output = values[node.name].detach()
            traced.operations[node.name].prepare(
                [values[i].detach() for i in node.inputs],
                output,
                torch.zeros_like(output) if adjoint is None else _written_out(adjoint),
            )
        self._outputs, self._labels = values[graph.outputs].detach(), labels
        return traced

    # -----------------------------------------------------------------------------------------------------------------
    # Tangents

    def _carry(
        self, traced: _Traced, seeds: dict[str, Tangent], first: int
    ) -> Iterator[tuple[Node, list[Tangent | None], Adjoint | None]]:
        """Carries directions to the outputs and back.

        Args:
            traced: Graph, with its operations prepared.
            seeds: Tangents to start from, by name of a value.
            first: Adjoints are wanted for values that depend on a parameter tensor from this one on.

        Yields:
            Every node with parameters among its inputs, the tangents of its inputs, the adjoint tangent of its output.
        """
        graph, operations, depends = traced.graph, traced.operations, traced.depends
        tangents: dict[str, Tangent | None] = dict(seeds)

        def of_inputs(node: Node) -> list[Tangent | None]:
            for name in () if operations[node.name].takes_tangent_factor else node.inputs:
                if (moving := tangents.get(name)) is not None:
                    tangents[name] = moving.plain()
            return [tangents.get(name) for name in node.inputs]

        for node in graph.nodes:
            if node.name not in operations or node.name in tangents:
                continue
            if any(tangents.get(i) is not None for i in node.inputs):
                self.current = node
                tangents[node.name] = operations[node.name].tangent(of_inputs(node))
        last = tangents.get(graph.outputs)
        if last is None:
            return
        last = last.plain()
        outputs, labels = self._outputs, self._labels
        slope = grad(lambda z: example_losses(z, labels, self.objective.loss_kind).sum())
        turned = vmap(lambda d: jvp(slope, (outputs,), (d,))[1])(last.dense(outputs.shape))
        adjoints: dict[str, Adjoint] = {graph.outputs: turned}
        for node in reversed(graph.nodes):
            if depends[node.name] < first:
                continue
            self.current = node
            adjoint, moving = adjoints.pop(node.name, None), of_inputs(node)
            if not isinstance(adjoint, operations[node.name].takes_adjoints):
                adjoint = plain(adjoint)
            if adjoint is None and not any(t is not None for t in moving):
                continue
            if any(i in graph.parameters and graph.parameters[i] >= first for i in node.inputs):
                yield node, moving, adjoint
            wanted = [i not in graph.parameters and depends[i] >= first for i in node.inputs]
            if any(wanted):
                parts = operations[node.name].adjoint_tangent(moving, adjoint, wanted)
                for name, part in zip(node.inputs, parts, strict=True):
                    if part is not None:
                        other = plain(adjoints.get(name))
                        adjoints[name] = part if other is None else other + plain(part)
            if node.name not in seeds:
                tangents[node.name] = None

    # -----------------------------------------------------------------------------------------------------------------
    # Columns

    def columns(self, start: int, stop: int) -> Tensor:
        """A block of columns, from its first row on.

        Args:
            start: First column, and first row.
            stop: One after the last column.

        Returns:
            Rows start … P − 1 of columns start … stop − 1: shape (P − start, stop − start), float64, on the CPU. Sums
            within a data chunk are in the objective's dtype, sums over chunks in float64. Entries of two parameter
            tensors are computed once; those within one are computed at both their places.
        """
        objective = self.objective
        blocks = [(i, b) for i, b in enumerate(objective.layout.blocks) if b.stop > start and b.start < stop]
        totals = self._totals(blocks[0][0], stop - start)
        chunk = self.plan["chunk"]
        for begin in range(0, objective.count, chunk):
            traced = self._chunk(slice(begin, begin + chunk), blocks[0][0])
            for index, block in blocks:
                self._block(traced, index, block, (start, stop), totals)
        result = torch.empty(stop - start, objective.size - start, dtype=torch.float64)
        for index in sorted(totals, reverse=True):  # frees the last, and largest, first
            block, rows = objective.layout.blocks[index], totals.pop(index).div_(objective.count)
            above = max(0, start - block.start)
            result[:, block.start + above - start : block.stop - start] = rows.reshape(stop - start, -1)[:, above:]
        for _, block in blocks:  # rows of earlier tensors, by symmetry
            begin, end = max(start, block.start) - start, min(stop, block.stop) - start
            result[begin:end, :begin] = result[:begin, begin:end].T
        return result.T

    def _totals(self, first: int, columns: int) -> dict[int, Tensor]:
        """Zeros to add rows to, by parameter tensor from one on: shape (columns, *shape), channels last in memory."""
        found = {}
        for index, block in enumerate(self.objective.layout.blocks[first:], start=first):
            outputs, inputs, kernel = block.shape[:1], block.shape[1:2], block.shape[2:]
            zeros = torch.zeros(columns, *outputs, *kernel, *inputs, dtype=torch.float64, device=self.objective.device)
            found[index] = zeros.movedim(-1, 2) if kernel else zeros
        return found

    def _block(
        self, traced: _Traced, index: int, block: ParameterBlock, strip: tuple[int, int], totals: dict[int, Tensor]
    ) -> None:
        """Adds one chunk's part of the columns that belong to one parameter tensor."""
        begin, end = max(strip[0], block.start), min(strip[1], block.stop)
        node, width = traced.origins[index].node, traced.origins[index].width
        if node is not None:
            self._weight_columns(traced, node, block, index, (begin, end), strip[0], totals)
            return
        names = [name for name, i in traced.graph.parameters.items() if i == index]
        for left, right in evenly(begin, end, width, on_gpu(self.objective.images)) if names else ():
            units = torch.zeros(
                right - left, block.stop - block.start, dtype=self.objective.dtype, device=self.objective.device
            )
            units[torch.arange(right - left), torch.arange(left, right) - block.start] = 1
            seed = Tangent(units.reshape(-1, *block.shape))
            self._add(traced, dict.fromkeys(names, seed), index, None, (left, right), strip[0], totals)

    def _weight_columns(
        self,
        traced: _Traced,
        node: Node,
        block: ParameterBlock,
        index: int,
        columns: tuple[int, int],
        origin: int,
        totals: dict[int, Tensor],
    ) -> None:
        """Columns of the weight of one layer, output channel by output channel."""
        per_channel, width = _per_channel(block), traced.origins[index].width
        begin, end = columns
        layer = _affine(traced, node)
        while begin < end:
            channel, offset = divmod(begin - block.start, per_channel)
            until = min(end, block.start + (channel + 1) * per_channel)
            part = layer.unfolded(channel, slice(offset, offset + until - begin))
            if (count := traced.origins[index].positions) is not None:
                positions = part.shape[2:]
                units = torch.eye(count, dtype=part.dtype, device=part.device).reshape(count, 1, *positions)
                seed = layer.placed(units.expand(count, len(part), *positions), channel)
                expansion = part.flatten(2) if positions else part.unsqueeze(2)
                self._add(traced, {node.name: seed}, index, expansion, (begin, until), origin, totals)
            else:
                for left, right in evenly(begin, until, width, on_gpu(part)):
                    data = part[:, left - begin : right - begin].transpose(0, 1).contiguous()
                    seed = layer.placed(data, channel)
                    self._add(traced, {node.name: seed}, index, None, (left, right), origin, totals)
            begin = until

    def _add(
        self,
        traced: _Traced,
        seeds: dict[str, Tangent],
        first: int,
        expansion: Tensor | None,
        columns: tuple[int, int],
        origin: int,
        totals: dict[int, Tensor],
    ) -> None:
        """Carries directions and adds the rows that they give to columns `columns` of a strip from `origin` on."""
        graph, blocks = traced.graph, self.objective.layout.blocks
        part, expand = slice(columns[0] - origin, columns[1] - origin), Expansion(expansion, self._expanded_bytes)
        for node, moving, adjoint in self._carry(traced, seeds, first):
            operation = traced.operations[node.name]
            indices = [graph.parameters.get(name, -1) for name in node.inputs]
            # Rows of a weight above the strip are not needed.
            skipped = 0
            if isinstance(operation, Affine) and indices[1] >= first:
                block = blocks[indices[1]]
                skipped = max(0, origin - block.start) // _per_channel(block)
            targets = [totals[index][part] if index >= first else None for index in indices]
            operation.add_rows(moving, adjoint, targets, expand, skipped)


def alike_chunk(count: int, most: int) -> int:
    """Examples of a data chunk such that all chunks are alike, and so are the shapes of all that follows.

    Args:
        count: N.
        most: Examples of a chunk, at most.

    Returns:
        The largest divisor of N above half of `most`; where there is none, what leaves the last chunk least short.
    """
    divisor = next((c for c in range(most, most // 2, -1) if count % c == 0), None)
    return divisor or -(-count // -(-count // most))


def _written_out(tensor: Tensor) -> Tensor:
    """Without elements that share memory, which torch's forward derivatives cannot write to; else as it is."""
    shared = any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.contiguous() if shared else tensor


def _per_channel(block: ParameterBlock) -> int:
    """Elements of a parameter tensor for one index of its first axis; 1 for a scalar."""
    return (block.stop - block.start) // (block.shape[0] if block.shape else 1)


def _weighted(traced: _Traced, index: int) -> Node | None:
    """The layer whose output can stand for its weight as the place where columns start.

    Args:
        traced: The graph.
        index: The weight's.

    Returns:
        None where the tensor is not the weight of just one layer, or where a later tensor of θ acts before that
        layer: its rows would lack the part that comes from the weight through the layer's input.
    """
    graph = traced.graph
    names = [name for name, i in graph.parameters.items() if i == index]
    users = [node for name in names for node in graph.users(name)]
    if len(users) != 1 or not isinstance(traced.operations.get(users[0].name), Affine):
        return None
    inputs = users[0].inputs
    alone = inputs[1] == names[0] and inputs.count(names[0]) == 1
    return users[0] if alone and traced.depends[inputs[0]] < index else None


def _affine(traced: _Traced, node: Node) -> Affine:
    operation = traced.operations[node.name]
    assert isinstance(operation, Affine)
    return operation


def _cheaper_by_positions(traced: _Traced, node: Node, index: int, columns: int) -> bool:
    """Whether it costs less to carry the positions of a layer's output than the columns of one channel."""
    graph, shapes = traced.graph, traced.shapes
    later = [n for n in graph.nodes if traced.depends[n.name] >= index]
    for n in later:
        if n.name not in graph.batched or any(
            i in graph.active and i not in graph.parameters and i not in graph.batched for i in n.inputs
        ):
            return False
    positions = _affine(traced, node).positions(shapes[node.name])
    carried = expanded = elements = 0
    for n in later:
        elements += shapes[n.name][1:].numel()
        other = traced.operations[n.name]
        if isinstance(other, Affine):
            if n is not node:
                carried += 2 * other.multiply_adds(shapes[n.name], shapes[n.inputs[1]])
                expanded += shapes[n.inputs[0]][1:].numel()
            expanded += shapes[n.name][1:].numel()
    carried += _ELEMENT_COST * elements
    return positions * carried + columns * _EXPANSION_COST * positions * expanded < columns * carried
