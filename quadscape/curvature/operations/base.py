"""Tangents, adjoints, and what holds of any operation that can be differentiated twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
from torch.func import jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from quadscape.curvature.graph import Graph, Node
from quadscape.numerics import is_failure

Tensor = torch.Tensor
aten = torch.ops.aten


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor is where many small products, and passes over memory, cost more than their operations."""
    return tensor.is_cuda


def evenly(begin: int, end: int, most: int, even: bool) -> Iterator[tuple[int, int]]:
    """Divides a range.

    Args:
        begin: Its first number.
        end: One after its last.
        most: Numbers of one part, at most.
        even: Whether the parts are alike; otherwise all but the last are as large as they may be.

    Yields:
        Bounds of the parts.
    """
    width = -(-(end - begin) // -(-(end - begin) // most)) if even and end > begin else most
    for left in range(begin, end, width):
        yield left, min(end, left + width)


def laid_out(tensor: Tensor) -> Tensor:
    """With channels last in memory where kernels are fastest so: images and their kernels on a CPU.

    Args:
        tensor: Any tensor.

    Returns:
        The same values.
    """
    if tensor.ndim == 4 and not on_gpu(tensor):
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


@dataclass(frozen=True)
class Scaled:
    """Directions of an adjoint that are still to be multiplied with a factor per channel.

    A pass over memory is saved where the next product can take the factor into its weight.

    Attributes:
        data: Shape (S, n, channels, …).
        factor: Shape (1, channels, 1, …).
        total: Sum of the data over positions, shape (S, n, channels), where it is known.
    """

    data: Tensor
    factor: Tensor
    total: Tensor | None = None

    def __len__(self) -> int:
        return len(self.data)

    def plain(self) -> Tensor:
        """The directions."""
        return self.data * self.factor


@dataclass(frozen=True)
class Spread:
    """Directions of an adjoint that are equal within tiles, and not written out yet.

    A pass over memory is saved where they are multiplied with something else next.

    Attributes:
        data: One value per tile, shape (S, n, channels, tiles, tiles).
        tile: Height and width of a tile.
        format: Order in memory of what is written out.
    """

    data: Tensor
    tile: tuple[int, int]
    format: torch.memory_format

    def __len__(self) -> int:
        return len(self.data)

    def _written(self, write: Callable[[Tensor, Tensor], object]) -> Tensor:
        """A new tensor, written by a function of tiles (S · n, channels, rows, high, columns, wide) and the data."""
        flat, (high, wide) = self.data.flatten(0, 1), self.tile
        shape = (*flat.shape[:2], flat.shape[2] * high, flat.shape[3] * wide)
        found = torch.empty(shape, dtype=flat.dtype, device=flat.device, memory_format=self.format)
        write(_tiles(found, self.tile), flat[:, :, :, None, :, None])
        return found.unflatten(0, self.data.shape[:2])

    def plain(self) -> Tensor:
        """The directions."""
        return self._written(lambda tiles, data: tiles.copy_(data))

    @property
    def each(self) -> Tensor:
        """The data, to be broadcast over `tiles`."""
        return self.data[..., :, None, :, None]

    def tiles(self, value: Tensor) -> Tensor:
        """A value (…, channels, height, width) as (…, channels, rows, high, columns, wide)."""
        return value.unflatten(-1, (-1, self.tile[1])).unflatten(-3, (-1, self.tile[0]))

    def times(self, value: Tensor) -> Tensor:
        """The directions times a value (n, channels, …)."""
        factor, count = _tiles(value, self.tile), self.data.shape[:2]
        return self._written(
            lambda tiles, data: torch.mul(data.unflatten(0, count), factor, out=tiles.unflatten(0, count))
        )


def _tiles(value: Tensor, tile: tuple[int, int]) -> Tensor:
    return value.unflatten(3, (-1, tile[1])).unflatten(2, (-1, tile[0]))


Adjoint = Tensor | Scaled | Spread


@overload
def plain(adjoint: Adjoint) -> Tensor: ...


@overload
def plain(adjoint: Adjoint | None) -> Tensor | None: ...


def plain(adjoint: Adjoint | None) -> Tensor | None:
    """An adjoint with nothing pending."""
    return adjoint.plain() if isinstance(adjoint, Scaled | Spread) else adjoint


@dataclass(frozen=True)
class Tangent:
    """Directions of one value; zero outside a range of channels, which are axis 1 of the value.

    Attributes:
        data: Shape (S, n, channels of the range, …), or (S, *shape) where the range is None.
        first: First channel of the range; None: all of the value.
        factor: What the data are still to be multiplied with, shape (1, channels of the value, 1, …); None: nothing.
    """

    data: Tensor
    first: int | None = None
    factor: Tensor | None = None

    def plain(self) -> Tangent:
        """The same without a pending factor."""
        return self if self.factor is None else Tangent(self.data * self.part(self.factor), self.first)

    @property
    def channels(self) -> slice:
        """The range as an index of axis 1 of the value."""
        return slice(None) if self.first is None else slice(self.first, self.first + self.data.shape[2])

    def part(self, value: Tensor) -> Tensor:
        """The range of a value (n, channels, …); all of it where there is no range."""
        return value if self.first is None else value[:, self.channels]

    def dense(self, shape: Sequence[int]) -> Tensor:
        """All of it, for a value of that shape."""
        if self.first is None:
            return self.data
        full = self.data.new_zeros(len(self.data), *shape)
        full[:, :, self.channels] = self.data
        return full


@dataclass(frozen=True)
class Expansion:
    """Turns directions of a layer's output into columns of its weight, example by example.

    Attributes:
        matrix: U, shape (n, K, S): the tangent of column k on example n is Σ_s U[n, k, s] · direction s. None: the
            directions are the columns.
        tile: Bytes that columns may take at once.
    """

    matrix: Tensor | None
    tile: int

    def __call__(self, directions: Tensor) -> Tensor:
        """Columns of a tangent.

        Args:
            directions: Shape (S, n, …).

        Returns:
            Shape (K, n, …). Where they are computed here, they are contiguous on a CPU; on a GPU columns are the last
            axis in memory.
        """
        if self.matrix is None:
            return directions
        count, columns = self.matrix.shape[:2]
        flat = directions.reshape(*directions.shape[:2], -1).transpose(0, 1)
        if on_gpu(directions):
            found = torch.bmm(flat.transpose(1, 2), self.matrix.transpose(1, 2)).permute(2, 0, 1)
            return found.reshape(columns, count, *directions.shape[2:])
        found = flat.new_empty(columns, count, flat.shape[2])
        torch.bmm(self.matrix, flat, out=found.transpose(0, 1))
        return found.view(columns, count, *directions.shape[2:])

    def summed(self, rows: Tensor) -> Tensor:
        """Sum over examples of rows by example (S, n, c), as columns (K, c)."""
        if self.matrix is None:
            return rows.sum(dim=1)
        return torch.einsum("snc,nks->kc", rows, self.matrix)

    def parts(self, size: int) -> Iterator[tuple[slice, Expansion]]:
        """Divides the columns so that what is computed of them at once stays within the tile.

        Args:
            size: Bytes of that for one column.

        Yields:
            Some columns, and their expansion.
        """
        if self.matrix is None:
            yield slice(None), self
            return
        width = max(1, self.tile // max(1, size))
        for left, right in evenly(0, self.matrix.shape[1], width, on_gpu(self.matrix)):
            yield slice(left, right), Expansion(self.matrix[:, left:right], self.tile)


class Operation:
    """Any operation without state: the formulas above through torch.func, for this node alone.

    Attributes:
        node: The operation.
        active: Positions of the inputs that depend on parameters.
        values: Values of the inputs.
        adjoint: ḡ of the output.
        takes_tangent_factor: Whether tangents of the inputs may come with a pending factor.
        takes_adjoints: Kinds of pending adjoint tangents that the output may have.
    """

    takes_tangent_factor = False
    takes_adjoints: tuple[type, ...] = ()

    def __init__(self, node: Node, graph: Graph) -> None:
        self.node = node
        self.active = [i for i, name in enumerate(node.inputs) if name in graph.active]
        self._batches: dict[str, bool] = {}

    def prepare(self, values: Sequence[Tensor], output: Tensor, adjoint: Tensor) -> None:
        """Takes the values of one data chunk.

        Args:
            values: Values of the inputs.
            output: Value of the node.
            adjoint: ḡ of the node.
        """
        # functorch writes tangents in the layout of their primals, which must not be expanded ones.
        self.values = [value.contiguous() if 0 in value.stride() else value for value in values]
        self.adjoint = adjoint

    @cached_property
    def linear(self) -> bool:
        """Whether the output is jointly linear in its active inputs: a property of the operation, not of its values."""
        with torch.enable_grad():
            leaves = [self.values[i].detach().requires_grad_() for i in self.active]
            result = self._of_active(self.values)(*leaves)
            pulled = torch.autograd.grad(result, leaves, self.adjoint, create_graph=True, allow_unused=True)
        return not any(g is not None and g.requires_grad for g in pulled)

    def _of_active(self, tensors: Sequence[Tensor]) -> Callable[..., Tensor]:
        """The operation as a function of its active inputs."""

        def function(*changed: Tensor) -> Tensor:
            arguments = list(tensors)
            for position, value in zip(self.active, changed, strict=True):
                arguments[position] = value
            return self.node.function(*arguments)

        return function

    def _directions(self, tangents: Sequence[Tangent | None]) -> list[Tensor]:
        """Dense tangents of the active inputs; zeros where there is none."""
        count = next(len(t.data) for t in tangents if t is not None)
        found = []
        for position in self.active:
            moving, shape = tangents[position], self.values[position].shape
            if moving is None:
                found.append(self.values[position].new_zeros(count, *shape))
            else:
                found.append(moving.dense(shape).contiguous())
        return found

    def tangent(self, tangents: Sequence[Tangent | None]) -> Tangent:
        """ẏ.

        Args:
            tangents: Of each input, None for zero; at least one is not.

        Returns:
            The output's.
        """
        function, primals = self._of_active(self.values), tuple(self.values[i] for i in self.active)
        directions = tuple(self._directions(tangents))
        (found,) = self._each("tangent", lambda *d: (_jvp(function, primals, d),), directions)
        return Tangent(found)

    def adjoint_tangent(
        self, tangents: Sequence[Tangent | None], adjoint: Adjoint | None, wanted: Sequence[bool]
    ) -> list[Adjoint | None]:
        """ḡ̇ of each input that is wanted.

        Args:
            tangents: Of each input, None for zero.
            adjoint: ḡ̇ of the output, shape (S, *shape); None for zero.
            wanted: By input.

        Returns:
            By input, shape (S, *shape); None where it is zero or not wanted.
        """
        adjoint = plain(adjoint)
        primals = tuple(self.values[i] for i in self.active)
        function = self._of_active(self.values)
        found: list[Adjoint | None] = [None] * len(self.values)
        moving = [] if self.linear else [t for t in tangents if t is not None]
        if moving:
            directions = tuple(self._directions(tangents))
            if adjoint is None:
                adjoint = self.adjoint.new_zeros(len(moving[0].data), *self.adjoint.shape)
            adjoint = adjoint.contiguous()  # functorch writes into it
            parts = self._each(
                "second derivative",
                lambda g, *d: _vjp_jvp(function, primals, self.adjoint, d, g),
                (adjoint, *directions),
            )
        elif adjoint is not None:
            pull = vjp(function, *primals)[1]
            parts = self._each("adjoint", pull, (adjoint.contiguous(),))
        else:
            return found
        for position, part in zip(self.active, parts, strict=True):
            if wanted[position]:
                # What a real value takes of a complex one is the real part.
                found[position] = part.real if part.is_complex() and not self.values[position].is_complex() else part
        return found

    def _each(
        self, kind: str, function: Callable[..., tuple[Tensor, ...]], directions: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """A function of every direction, at once where torch can, and does it right: its batching has mistakes.

        Args:
            kind: Which derivative; whether it can be trusted is found out once for each.
            function: Of one direction.
            directions: Of each argument, stacked.

        Returns:
            Its results, stacked.

        Raises:
            RuntimeError: A device, or memory, failed.
        """
        with sdpa_kernel(SDPBackend.MATH):
            if self._batches.get(kind, True):
                try:
                    found = vmap(function)(*directions)
                except RuntimeError as error:
                    if is_failure(error):
                        raise
                    self._batches[kind] = False
                else:
                    agrees = True if kind in self._batches else _agrees(function, directions, found)
                    # One direction, or directions that give nothing, do not show that many are right.
                    if agrees is not None and (not agrees or len(directions[0]) > 1):
                        self._batches[kind] = agrees
                    if agrees is not False:
                        return found
            results = [function(*each) for each in zip(*directions, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))

    def add_rows(
        self,
        tangents: Sequence[Tangent | None],
        adjoint: Adjoint | None,
        targets: Sequence[Tensor | None],
        expansion: Expansion,
        first: int,
    ) -> None:
        """Adds directions of the gradients in the parameters among the inputs, summed over examples.

        Args:
            tangents: Of each input, None for zero.
            adjoint: ḡ̇ of the output; None for zero.
            targets: By input, what to add to: shape (K, *shape), None where nothing is wanted.
            expansion: What turns the S directions into K columns.
            first: Rows of a layer's weight below this output are not needed and may be left as they are.
        """
        adjoint = plain(adjoint)
        moving = [adjoint, *(None if t is None else t.data for t in tangents)]
        for part, expand in expansion.parts(max((d[0].nbytes for d in moving if d is not None), default=0)):
            expanded = [None if t is None else Tangent(expand(t.data), t.first) for t in tangents]
            pulled = None if adjoint is None else expand(adjoint)
            found = self.adjoint_tangent(expanded, pulled, [target is not None for target in targets])
            for target, rows in zip(targets, map(plain, found), strict=True):
                if target is not None and rows is not None:
                    target[part] += rows

    def _added(
        self, tangents: Sequence[Tangent | None], adjoint: Adjoint | None, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """What `add_rows` adds, by input: for inputs that are functions of parameters."""
        count = next(len(d) for d in (adjoint, *(t.data for t in tangents if t is not None)) if d is not None)
        found = [
            value.new_zeros(count, *value.shape) if want else None
            for value, want in zip(self.values, wanted, strict=True)
        ]
        self.add_rows(tangents, adjoint, found, Expansion(None, 0), 0)
        return found


def _agrees(
    function: Callable[..., tuple[Tensor, ...]], directions: tuple[Tensor, ...], found: tuple[Tensor, ...]
) -> bool | None:
    """Whether a batched result is that of the single calls, for its first and its last direction; None: all is zero."""
    told = None
    for place in (0, -1):
        for single, batched in zip(function(*(d[place] for d in directions)), found, strict=True):
            size, error = (float(torch.linalg.vector_norm(x)) for x in (single, batched[place] - single))
            # Rounding differs with the order of sums; mistakes are of the size of the result.
            if not error <= 1e-3 * size and math.isfinite(size):
                return False
            told = True if size > 0 else told
    return told


def _jvp(function: Callable[..., Tensor], primals: tuple[Tensor, ...], directions: tuple[Tensor, ...]) -> Tensor:
    try:
        return jvp(function, primals, directions)[1]
    except NotImplementedError:
        # No forward derivative: J v is the derivative of Jᵀ u, which is linear in u, along v.
        output, pull = vjp(function, *primals)[:2]
        return vjp(lambda u: pull(u), torch.zeros_like(output))[1](directions)[0]


def _vjp_jvp(
    function: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    adjoint: Tensor,
    directions: tuple[Tensor, ...],
    adjoint_direction: Tensor,
) -> tuple[Tensor, ...]:
    def pull(*arguments: Tensor) -> tuple[Tensor, ...]:
        return vjp(function, *arguments[1:])[1](arguments[0])

    try:
        return jvp(pull, (adjoint, *primals), (adjoint_direction, *directions))[1]
    except NotImplementedError:
        # The second derivative of ⟨ḡ, f⟩ is symmetric: backwards twice gives the same product.
        def slope(*arguments: Tensor) -> tuple[Tensor, ...]:
            return vjp(lambda *x: pull(adjoint, *x), *arguments)[1](directions)

        first, second = vjp(function, *primals)[1](adjoint_direction), slope(*primals)
        return tuple(a + b for a, b in zip(first, second, strict=True))
