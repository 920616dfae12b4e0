"""How each operation carries tangents forward and tangents of adjoints backward.

Let y = f(x₁ … x_m) be one node, ḡ_v = ∂ℓ/∂v the adjoint of a value v, and a dot the derivative along a direction. A
rule computes, for S directions at once,

    tangent            ẏ = Σ J_i ẋ_i
    adjoint tangent    ḡ̇_i = J_iᵀ ḡ̇_y + Σ_j ∂²⟨ḡ_y, f⟩/∂x_i∂x_j · ẋ_j

which is forward over reverse differentiation of that node alone (Pearlmutter 1994, node by node). Tangents carry the S
directions in front: shape (S, *shape of the value). What does not depend on the directions is computed once per data
chunk, in `prepare`, and shared by all of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, overload

import torch
from torch.func import jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from quadscape.curvature.graph import Graph, Input, Node

Tensor = torch.Tensor
aten = torch.ops.aten

# Columns from which one product with what they share is faster than a convolution for each, on a CPU (measured).
_MANY_COLUMNS = 32
# Examples times positions in one such product.
_PIECE = 1024


def laid_out(tensor: Tensor) -> Tensor:
    """With channels last in memory where kernels are fastest so: images and their kernels on a CPU.

    Args:
        tensor: Any tensor.

    Returns:
        The same values.
    """
    if tensor.ndim == 4 and not tensor.is_cuda:
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
        """Columns of a tangent of shape (S, n, …): shape (K, n, …), contiguous where they are computed here."""
        if self.matrix is None:
            return directions
        count, columns = self.matrix.shape[:2]
        flat = directions.reshape(*directions.shape[:2], -1).transpose(0, 1)
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
        width, columns = max(1, self.tile // max(1, size)), self.matrix.shape[1]
        for left in range(0, columns, width):
            part = slice(left, min(columns, left + width))
            yield part, Expansion(self.matrix[:, part], self.tile)


class Rule:
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
            OutOfMemoryError: The device's memory does not hold them.
        """
        with sdpa_kernel(SDPBackend.MATH):
            if self._batches.get(kind, True):
                try:
                    found = vmap(function)(*directions)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError:
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


class Pointwise(Rule):
    """y = f(x) element by element: both derivatives are numbers per element."""

    takes_tangent_factor = True
    takes_adjoints = (Spread,)

    def prepare(self, values: Sequence[Tensor], output: Tensor, adjoint: Tensor) -> None:
        """Evaluates f′ and ḡ·f″."""
        super().prepare(values, output, adjoint)
        (position,) = self.active
        with torch.enable_grad():
            x = values[position].detach().requires_grad_()
            y = self._of_active(self.values)(x)
            (slope,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
            self.second = None
            if slope.requires_grad:
                (second,) = torch.autograd.grad(slope, x, torch.ones_like(slope), allow_unused=True)
                self.second = None if second is None else second * adjoint
        self.slope = slope.detach()
        self._scaled: dict[str, tuple[Tensor, Tensor]] = {}

    def _times(self, name: str, value: Tensor, factor: Tensor | None) -> Tensor:
        """A derivative times a pending factor, which is the same one for all directions of a data chunk."""
        if factor is None:
            return value
        if name not in self._scaled or self._scaled[name][0] is not factor:
            self._scaled[name] = factor, value * factor
        return self._scaled[name][1]

    def tangent(self, tangents: Sequence[Tangent | None]) -> Tangent:
        """f′·ẋ."""
        moving = tangents[self.active[0]]
        assert moving is not None
        return Tangent(moving.data * moving.part(self._times("slope", self.slope, moving.factor)), moving.first)

    def adjoint_tangent(
        self, tangents: Sequence[Tangent | None], adjoint: Adjoint | None, wanted: Sequence[bool]
    ) -> list[Adjoint | None]:
        """f′·ḡ̇ + ḡ·f″·ẋ."""
        (position,) = self.active
        found: list[Adjoint | None] = [None] * len(self.values)
        moving = tangents[position] if self.second is not None else None
        if not wanted[position] or (adjoint is None and moving is None):
            return found
        if adjoint is None:
            assert moving is not None
            result = moving.data.new_zeros(len(moving.data), *self.slope.shape)
        elif isinstance(adjoint, Spread):
            result = adjoint.times(self.slope)
        else:
            result = plain(adjoint) * self.slope
        if moving is not None:
            assert self.second is not None
            target = result if moving.first is None else result[:, :, moving.channels]
            target.addcmul_(moving.data, moving.part(self._times("second", self.second, moving.factor)))
        found[position] = result
        return found


class Sum(Rule):
    """y = a ± αb, of one shape."""

    def _factors(self) -> list[float]:
        alpha = self.node.arguments[1].get("alpha", 1)
        return [1.0, -alpha if self.node.target in _DIFFERENCES else alpha]

    def tangent(self, tangents: Sequence[Tangent | None]) -> Tangent:
        """ȧ ± αḃ."""
        terms = [
            (t if factor == 1 else Tangent(t.data * factor, t.first))
            for t, factor in zip(tangents, self._factors(), strict=True)
            if t is not None
        ]
        if len(terms) == 1:
            return terms[0]
        a, b = terms
        if a.first == b.first and a.data.shape == b.data.shape:
            return Tangent(a.data + b.data, a.first)
        if a.first is not None:
            a, b = b, a  # if one is of the whole value, then the first
        result = a.data.clone() if a.first is None else a.dense(self.values[0].shape)
        result[:, :, b.channels] += b.data
        return Tangent(result)

    def adjoint_tangent(
        self, tangents: Sequence[Tangent | None], adjoint: Adjoint | None, wanted: Sequence[bool]
    ) -> list[Adjoint | None]:
        """ḡ̇ and ±αḡ̇."""
        adjoint = plain(adjoint)
        if adjoint is None:
            return [None, None]
        return [
            None if not want else adjoint if factor == 1 else adjoint * factor
            for want, factor in zip(wanted, self._factors(), strict=True)
        ]


class SpatialMean(Rule):
    """y = mean of x over some of the axes behind the channels."""

    def tangent(self, tangents: Sequence[Tangent | None]) -> Tangent:
        """The mean of ẋ."""
        moving = tangents[0]
        assert moving is not None
        flat = self.node.function(moving.data.flatten(0, 1))
        return Tangent(flat.unflatten(0, moving.data.shape[:2]), moving.first)

    def adjoint_tangent(
        self, tangents: Sequence[Tangent | None], adjoint: Adjoint | None, wanted: Sequence[bool]
    ) -> list[Adjoint | None]:
        """ḡ̇ spread evenly."""
        adjoint = plain(adjoint)
        found: list[Adjoint | None] = [None] * len(self.values)
        if adjoint is not None and wanted[0]:
            found[0] = self.spread(adjoint)
        return found

    def spread(self, adjoint: Tensor) -> Adjoint:
        """The transposed map."""
        shape, axes = self.values[0].shape, [a % self.values[0].ndim for a in self.node.arguments[0][1]]
        kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
        part = (adjoint / math.prod(shape[a] for a in axes)).reshape(len(adjoint), *kept)
        return part.expand(len(adjoint), *shape)


class AveragePooling(SpatialMean):
    """Average pooling in two dimensions, of any kernel, stride and padding."""

    def spread(self, adjoint: Tensor) -> Adjoint:
        """The transposed map."""
        x = self.values[0]
        given = self.node.arguments[0]
        settings: tuple[Any, ...] = (*given, *(None, None, [], [0, 0], False, True, None)[len(given) :])
        _, kernel, stride, padding, ceiling, padded, divisor = settings
        high, wide = [*kernel, *kernel][:2]
        disjoint = [*(stride or kernel), *(stride or kernel)][:2] == [high, wide] and not any(padding) and not divisor
        if disjoint and x.shape[2] % high == x.shape[3] % wide == 0:  # every input is in just one tile
            return Spread(adjoint / (high * wide), (high, wide), _format(x))
        like = torch.empty(  # only its shape, and the order of its axes in memory, are read
            (len(adjoint) * len(x), *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=_format(x)
        )
        flat = aten.avg_pool2d_backward(
            adjoint.flatten(0, 1), like, kernel, stride or kernel, padding, ceiling, padded, divisor
        )
        return flat.unflatten(0, adjoint.shape[:2])


def _format(x: Tensor) -> torch.memory_format:
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class Normalisation(Rule, ABC):
    """y = γx̂ + β per channel, with inputs x, γ, β: what frozen BatchNorm and GroupNorm have in common."""

    def adjoint_tangent(
        self, tangents: Sequence[Tangent | None], adjoint: Adjoint | None, wanted: Sequence[bool]
    ) -> list[Adjoint | None]:
        """See `Rule`."""
        adjoint = plain(adjoint)
        found: list[Adjoint | None] = [None] * len(self.values)
        if any(wanted[1:3]):
            found[1:] = self._added(tangents, adjoint, [False, *wanted[1:]])[1:]
        if wanted[0]:
            found[0] = self.input_adjoint_tangent(tangents[0], tangents[1], adjoint)
        return found

    def add_rows(
        self,
        tangents: Sequence[Tangent | None],
        adjoint: Adjoint | None,
        targets: Sequence[Tensor | None],
        expansion: Expansion,
        first: int,
    ) -> None:
        """Adds directions of the gradients in γ and β: sums over positions by example, then over examples."""
        for target, rows in zip(targets[1:3], self.example_rows(tangents[0], plain(adjoint)), strict=True):
            if target is not None and rows is not None:
                target += expansion.summed(rows)

    @abstractmethod
    def input_adjoint_tangent(
        self, moving: Tangent | None, gamma: Tangent | None, adjoint: Tensor | None
    ) -> Adjoint | None:
        """ḡ̇ of x."""

    @abstractmethod
    def example_rows(self, moving: Tangent | None, adjoint: Tensor | None) -> list[Tensor | None]:
        """Directions of the gradients in γ and β by example, shape (S, n, channels) each."""


class FrozenBatchNorm(Normalisation):
    """y = γ(x − μ)/σ + β with fixed statistics, per channel."""

    def prepare(self, values: Sequence[Tensor], output: Tensor, adjoint: Tensor) -> None:
        """Evaluates 1/σ, γ/σ and the normalised input."""
        super().prepare(values, output, adjoint)
        x, gamma, _, mean, variance = values
        eps = self.node.arguments[0][6]
        shape = (1, -1, *[1] * (x.ndim - 2))
        self.inverse = torch.rsqrt(variance + eps).reshape(shape)
        self.scale = gamma.reshape(shape) * self.inverse
        self.normalised = (x - mean.reshape(shape)) * self.inverse
        self._summed: tuple[Tensor, Tensor] | None = None

    def tangent(self, tangents: Sequence[Tangent | None]) -> Tangent:
        """ẋ·γ/σ + γ̇·(x − μ)/σ + β̇."""
        moving, gamma, beta = tangents[:3]
        if gamma is None and beta is None:
            assert moving is not None
            return Tangent(moving.data, moving.first, self.scale)
        return Tangent(
            _normalised_tangent(
                None if moving is None else moving.dense(self.values[0].shape) * self.scale,
                gamma,
                beta,
                self.normalised,
            )
        )

    def input_adjoint_tangent(
        self, moving: Tangent | None, gamma: Tangent | None, adjoint: Tensor | None
    ) -> Adjoint | None:
        """ḡ̇γ/σ + ḡγ̇/σ."""
        if gamma is None:
            if adjoint is None:
                return None
            total = None if self._summed is None or self._summed[0] is not adjoint else self._summed[1]
            self._summed = None
            return Scaled(adjoint, self.scale, total)
        turned = _per_channel(gamma.data, self.adjoint.ndim) * (self.adjoint * self.inverse)
        return turned if adjoint is None else adjoint * self.scale + turned

    def example_rows(self, moving: Tangent | None, adjoint: Tensor | None) -> list[Tensor | None]:
        """Σ over positions of ḡ̇x̂ + ḡẋ/σ, and of ḡ̇."""
        gamma = None if adjoint is None else _dot_over_positions(adjoint, self.normalised)
        beta = None if adjoint is None else _over_positions(adjoint)
        self._summed = None if adjoint is None or beta is None else (adjoint, beta)
        if moving is not None:
            part = _dot_over_positions(moving.data, moving.part(self.adjoint * self.inverse))
            if gamma is None:
                gamma = part.new_zeros(len(part), *self.values[0].shape[:2])
            gamma[:, :, moving.channels] += part
        return [gamma, beta]


class GroupNorm(Normalisation):
    """y = γx̂ + β with x̂ = (x − m)·r, m the mean and r = 1/√(variance + ε) of a group of channels of one example."""

    def prepare(self, values: Sequence[Tensor], output: Tensor, adjoint: Tensor) -> None:
        """Evaluates r, x̂, and the means that the second derivative needs."""
        super().prepare(values, output, adjoint)
        x, gamma = values[0], values[1]
        _, groups, _, _, eps, *_ = self.node.arguments[0]
        self.groups, self.per_group = groups, x.shape[1] // groups
        flat = x.reshape(len(x), groups, -1)
        variance, mean = torch.var_mean(flat, dim=2, correction=0, keepdim=True)
        self.inverse = torch.rsqrt(variance + eps)
        self.normalised = (flat - mean) * self.inverse
        self.gamma = gamma.reshape(groups, self.per_group, 1).expand(-1, -1, flat.shape[2] // self.per_group).flatten(1)
        self.flat_adjoint = adjoint.reshape(flat.shape)
        self.turned = self.flat_adjoint * self.gamma
        self.mean_product = (self.turned * self.normalised).mean(dim=2, keepdim=True)
        centred = self.turned - self.turned.mean(dim=2, keepdim=True)
        self.input_adjoint = (centred - self.normalised * self.mean_product) * self.inverse
        self._last: tuple[Tensor, Tensor, Tensor, slice] | None = None

    def _moved(self, moving: Tangent) -> tuple[Tensor, Tensor, slice]:
        """dx̂ and −dr/r, shapes (S, n, groups of the range, …), and the range of groups."""
        if self._last is not None and self._last[0] is moving.data:
            return self._last[1:]
        data, groups = moving.data, slice(0, self.groups)
        if moving.first is not None:
            begin, end = moving.first // self.per_group, -(-(moving.first + data.shape[2]) // self.per_group)
            groups = slice(begin, end)
            before, width = moving.first - begin * self.per_group, (end - begin) * self.per_group
            if data.shape[2] != width:
                padded = data.new_zeros(*data.shape[:2], width, *data.shape[3:])
                padded[:, :, before : before + data.shape[2]] = data
                data = padded
        flat = data.reshape(*data.shape[:2], groups.stop - groups.start, -1)
        normalised, inverse = self.normalised[:, groups], self.inverse[:, groups]
        product = _mean_product(flat, normalised)
        moved = flat - flat.mean(dim=3, keepdim=True)
        moved.addcmul_(normalised, product, value=-1.0).mul_(inverse)
        self._last = (moving.data, moved, product * inverse, groups)
        return self._last[1:]

    def tangent(self, tangents: Sequence[Tangent | None]) -> Tangent:
        """γ·dx̂ + γ̇·x̂ + β̇."""
        moving, gamma, beta = tangents[:3]
        shape = self.values[0].shape
        if moving is None:
            part, first = None, None
        else:
            moved, _, groups = self._moved(moving)
            whole = groups == slice(0, self.groups)
            first = None if whole else groups.start * self.per_group
            part = (moved * self.gamma[groups]).reshape(*moved.shape[:2], -1, *shape[2:])
        if gamma is None and beta is None:
            assert part is not None
            return Tangent(part, first)
        part = None if part is None else Tangent(part, first).dense(shape)
        return Tangent(_normalised_tangent(part, gamma, beta, self.normalised.reshape(shape)))

    def input_adjoint_tangent(
        self, moving: Tangent | None, gamma: Tangent | None, adjoint: Tensor | None
    ) -> Tensor | None:
        """The derivative of r·(h − mean h − x̂·mean(x̂h)) with h = γḡ."""
        shape = self.values[0].shape
        turned = None
        if adjoint is not None:
            turned = adjoint.reshape(len(adjoint), *self.normalised.shape) * self.gamma
        if gamma is not None:
            part = (_per_channel(gamma.data, len(shape)) * self.adjoint).reshape(-1, *self.normalised.shape)
            turned = part if turned is None else turned + part
        if turned is not None:
            product = _mean_product(turned, self.normalised)
            turned = turned - turned.mean(dim=3, keepdim=True)
            turned.addcmul_(self.normalised, product, value=-1.0).mul_(self.inverse)
        if moving is not None:
            moved, shrunk, groups = self._moved(moving)
            if turned is None:
                turned = moved.new_zeros(len(moved), *self.normalised.shape)
            part = turned[:, :, groups]
            inverse = self.inverse[:, groups]
            product = _mean_product(moved, self.turned[:, groups]) * inverse
            part.addcmul_(self.normalised[:, groups], product, value=-1.0)
            part.addcmul_(moved, self.mean_product[:, groups] * inverse, value=-1.0)
            part.addcmul_(self.input_adjoint[:, groups], shrunk, value=-1.0)
        return None if turned is None else turned.reshape(len(turned), *shape)

    def example_rows(self, moving: Tangent | None, adjoint: Tensor | None) -> list[Tensor | None]:
        """Σ over positions of ḡ̇x̂ + ḡ·dx̂, and of ḡ̇."""
        shape = self.values[0].shape
        gamma = None if adjoint is None else _dot_over_positions(adjoint, self.normalised.reshape(shape))
        beta = None if adjoint is None else _over_positions(adjoint)
        if moving is not None:
            moved, _, groups = self._moved(moving)
            channels = slice(groups.start * self.per_group, groups.stop * self.per_group)
            part = _dot_over_positions(moved.reshape(*moved.shape[:2], -1, *shape[2:]), self.adjoint[:, channels])
            if gamma is None:
                gamma = part.new_zeros(len(part), *shape[:2])
            gamma[:, :, channels] += part
        return [gamma, beta]


def _mean_product(directions: Tensor, values: Tensor) -> Tensor:
    """Mean over the last axis of (S, n, G, L) times (n, G, L), shape (S, n, G, 1)."""
    return torch.einsum("sngl,ngl->sng", directions, values)[..., None] / values.shape[2]


def _over_positions(directions: Tensor) -> Tensor:
    """Sum over all axes behind the channels: (S, n, c, …) gives (S, n, c)."""
    return directions.flatten(3).sum(dim=3) if directions.ndim > 3 else directions


def _dot_over_positions(directions: Tensor, values: Tensor) -> Tensor:
    """Sum over all axes behind the channels of (S, n, c, …) times (n, c, …), shape (S, n, c).

    On a CPU one direction after another, whose product is summed while it is in the processor's cache.

    Args:
        directions: Shape (S, n, c, …).
        values: Shape (n, c, …).

    Returns:
        The sums.
    """
    if directions.is_cuda or directions.ndim == 3:
        return _over_positions(directions * values)
    found = directions.new_empty(directions.shape[:3])
    product = torch.empty_like(values)
    for each, sums in zip(directions, found, strict=True):
        torch.mul(each, values, out=product)
        torch.sum(product.flatten(2), dim=2, out=sums)
    return found


def _per_channel(directions: Tensor, ndim: int) -> Tensor:
    """Directions of a vector over channels, shape (S, c), to be broadcast over values (n, c, …)."""
    return directions.reshape(len(directions), 1, -1, *[1] * (ndim - 2))


def _normalised_tangent(part: Tensor | None, gamma: Tangent | None, beta: Tangent | None, normalised: Tensor) -> Tensor:
    """ẏ = (what moves through x) + γ̇·x̂ + β̇."""
    if gamma is not None:
        turned = _per_channel(gamma.data, normalised.ndim) * normalised
        part = turned if part is None else part + turned
    if beta is not None:
        shift = _per_channel(beta.data, normalised.ndim)
        part = shift.expand(len(shift), *normalised.shape) if part is None else part + shift
    assert part is not None
    return part


class Affine(Rule, ABC):
    """y = W·U(x) + b: bilinear in weight and input. Subclasses know the layer's products.

    Inputs are x, W and, where there is one, b.

    Attributes:
        groups: Groups of inputs and outputs that do not meet.
        range_of_inputs: Whether a tangent's range of channels is one of the weight's inputs.
        unfolds_adjoint: Whether ḡ is unfolded to meet ẋ; otherwise ẋ is, which is less work where inputs are skipped.
        unfolding: Elements of what meets ḡ for one of ẋ.
    """

    groups = 1
    range_of_inputs = True
    unfolds_adjoint = True
    unfolding = 1.0

    def prepare(self, values: Sequence[Tensor], output: Tensor, adjoint: Tensor) -> None:
        """Forgets what was shared by the directions of the last data chunk."""
        super().prepare(values, output, adjoint)
        self._shared: dict[str, Tensor] = {}

    def tangent(self, tangents: Sequence[Tangent | None]) -> Tangent:
        """W·U(ẋ) + Ẇ·U(x) + ḃ."""
        moving, weight, bias = [*tangents, None][:3]
        terms = []
        if moving is not None:
            terms.append(self.forward(moving))
        if weight is not None:
            terms.append(self.forward_weight(weight.data))
        if bias is not None:
            terms.append(self.forward_bias(bias.data))
        return Tangent(sum(terms[1:], terms[0]))

    def adjoint_tangent(
        self, tangents: Sequence[Tangent | None], adjoint: Adjoint | None, wanted: Sequence[bool]
    ) -> list[Adjoint | None]:
        """See `Rule`; each product has two terms."""
        weight = tangents[1]
        found: list[Adjoint | None] = [None] * len(self.values)
        if wanted[0]:
            if adjoint is not None:
                found[0] = self.backward(adjoint)
            if weight is not None:
                part, other = self.backward_weight(weight.data), plain(found[0])
                found[0] = part if other is None else other + part
        if any(wanted[1:]):
            found[1:] = self._added(tangents, adjoint, [False, *wanted[1:]])[1:]
        return found

    def add_rows(
        self,
        tangents: Sequence[Tangent | None],
        adjoint: Adjoint | None,
        targets: Sequence[Tensor | None],
        expansion: Expansion,
        first: int,
    ) -> None:
        """Adds directions of the gradients in W, Σ ḡ̇ ⊗ U(x) + Σ ḡ ⊗ U(ẋ), and in b.

        Each sum is one product of all directions with a matrix that they share: x unfolded for the first, ḡ unfolded
        for the second.
        """
        if targets[1] is not None:
            self._add_weight_rows(tangents[0], adjoint, targets[1], expansion, first if self.groups == 1 else 0)
        if len(targets) > 2 and targets[2] is not None and adjoint is not None:
            if isinstance(adjoint, Scaled):
                total = self.sum_over_positions(adjoint.data) if adjoint.total is None else adjoint.total
                targets[2] += expansion.summed(total) * adjoint.factor.flatten()
            else:
                targets[2] += expansion.summed(self.sum_over_positions(plain(adjoint)))

    def _add_weight_rows(
        self, moving: Tangent | None, adjoint: Adjoint | None, target: Tensor, expansion: Expansion, first: int
    ) -> None:
        pulled = pushed = factor = None
        if isinstance(adjoint, Scaled):
            factor, adjoint = adjoint.factor.flatten()[first:], adjoint.data
        inputs, size = slice(None), 0
        if adjoint is not None:
            pulled = self.channels_last(plain(adjoint))[..., first:].contiguous()
            size = pulled[0].nbytes
        if moving is not None:
            inputs = moving.channels if self.range_of_inputs else inputs
            data = moving.data if self.range_of_inputs else moving.dense(self.values[0].shape)
            pushed = self.channels_last(data).contiguous()
            size = max(size, math.ceil(self.unfolding * pushed[0].nbytes))
        for part, expand in expansion.parts(size):
            rows = target[part, first:]
            if pulled is not None:
                self.add_input_products(rows, expand(pulled), factor)
            if pushed is not None:
                self.add_adjoint_products(rows[:, :, inputs], expand(pushed), first)

    def add_input_products(self, rows: Tensor, adjoint: Tensor, factor: Tensor | None) -> None:
        """Adds Σ ḡ̇ ⊗ U(x).

        Args:
            rows: What to add to: shape (K, outputs of the range, *shape of W behind the outputs).
            adjoint: ḡ̇ with channels last, shape (K, n, *positions, outputs of the range).
            factor: What it is still to be multiplied with, shape (outputs of the range,); None: nothing.
        """
        product = self._outer(self.unfolded_input, adjoint, slice(None))
        if factor is not None:
            product *= factor.reshape(self.groups, 1, -1)
        rows += product.unflatten(2, (*rows.shape[3:], rows.shape[2])).movedim(-2, 2).movedim(-1, 2).flatten(1, 2)

    def add_adjoint_products(self, rows: Tensor, moving: Tensor, first: int) -> None:
        """Adds Σ ḡ ⊗ U(ẋ).

        Args:
            rows: What to add to: shape (K, outputs from `first` on, inputs of the range, *kernel).
            moving: ẋ with channels last, shape (K, n, *positions, inputs of the range).
            first: The first output.
        """
        kernel = rows.shape[3:]
        if self.unfolds_adjoint:
            product = self._outer(self.unfolded_adjoint, moving, slice(first * kernel.numel(), None))
            rows += product.unflatten(2, (-1, *kernel)).movedim(-1, 3).flatten(1, 2)
        else:
            product = self._outer(self.plain_adjoint, self.unfold(moving), slice(first, None))
            rows += product.unflatten(3, (-1, *kernel)).flatten(1, 2)

    def _outer(self, matrix: Callable[[], Tensor], directions: Tensor, rows: slice) -> Tensor:
        """A sum over examples and positions of all directions times one matrix, group by group.

        Args:
            matrix: What all directions share, shape (groups · rows, examples · positions).
            directions: Shape (K, n, *positions, groups · c).
            rows: Rows of the matrix that are wanted; all where there are groups.

        Returns:
            Shape (K, groups, rows, c).
        """
        if matrix.__name__ not in self._shared:
            self._shared[matrix.__name__] = matrix()
        shared, flat = self._shared[matrix.__name__], directions.flatten(1, -2)
        if self.groups == 1:
            return _product(shared[rows], flat).unsqueeze(1)
        shared, flat = shared.unflatten(0, (self.groups, -1)), flat.unflatten(2, (self.groups, -1))
        return torch.einsum("gjm,kmgc->kgjc", shared, flat)

    @abstractmethod
    def channels_last(self, directions: Tensor) -> Tensor:
        """Directions (S, n, …) of an input or an output with the channels behind the positions."""

    @abstractmethod
    def unfolded_input(self) -> Tensor:
        """U(x), shape (taps · inputs, examples · output positions)."""

    @abstractmethod
    def unfolded_adjoint(self) -> Tensor:
        """ḡ where it meets each input, shape (outputs · taps, examples · input positions); if `unfolds_adjoint`."""

    @abstractmethod
    def plain_adjoint(self) -> Tensor:
        """ḡ, shape (outputs, examples · output positions)."""

    @abstractmethod
    def unfold(self, directions: Tensor) -> Tensor:
        """U(ẋ), shape (K, n, *output positions, inputs · taps), of ẋ with shape (K, n, *positions, inputs)."""

    @abstractmethod
    def sum_over_positions(self, adjoint: Tensor) -> Tensor:
        """ḡ̇ of the bias by example, shape (S, n, outputs)."""

    @abstractmethod
    def forward(self, moving: Tangent) -> Tensor:
        """W·U(ẋ)."""

    @abstractmethod
    def forward_weight(self, weight: Tensor) -> Tensor:
        """Ẇ·U(x)."""

    @abstractmethod
    def forward_bias(self, bias: Tensor) -> Tensor:
        """ḃ, in the shape of the output."""

    @abstractmethod
    def backward(self, adjoint: Adjoint) -> Tensor:
        """Uᵀ(Wᵀḡ̇)."""

    @abstractmethod
    def backward_weight(self, weight: Tensor) -> Tensor:
        """Uᵀ(Ẇᵀḡ)."""

    @abstractmethod
    def unfolded(self, output: int, columns: slice) -> Tensor:
        """What some weights of one output channel are multiplied with.

        Args:
            output: The channel.
            columns: The weights, as indices of W[output] in C order.

        Returns:
            Shape (n, K, *positions of the output).
        """

    @abstractmethod
    def placed(self, data: Tensor, output: int) -> Tangent:
        """Directions of one output channel, shape (S, n, *positions), as a tangent of the output."""

    @abstractmethod
    def positions(self, output: torch.Size) -> int:
        """Positions of one output channel of one example, for an output of that shape."""

    def multiply_adds(self, output: torch.Size, weight: torch.Size) -> int:
        """Of y = W·U(x), for one example."""
        return self.positions(output) * weight.numel()


@cache
def _aborts_on_strides() -> bool:
    """Whether oneDNN may end the process in the weights' gradient of a strided 1×1 convolution."""
    # Seen with torch 2.15 for channels-last inputs of a few channels in float32.
    return torch.backends.cpu.get_cpu_capability() != "AVX512"


class Convolution(Affine):
    """Convolution in any number of dimensions, with any stride, padding, dilation and groups."""

    takes_adjoints = (Scaled,)

    def prepare(self, values: Sequence[Tensor], output: Tensor, adjoint: Tensor) -> None:
        """Reads the settings."""
        super().prepare([laid_out(values[0]), *values[1:]], output, laid_out(adjoint))
        dimensions = values[0].ndim - 2
        given = self.node.arguments[0]
        settings = [*given, *(None, None, None, 1, 0, 1, 1)[len(given) :]][3:]
        lists = ([s] if isinstance(s, int) else list(s) for s in settings[:3])
        self.settings = [s * dimensions if len(s) == 1 else s for s in lists]
        self.groups = settings[3]
        self.zeros = [0] * dimensions
        self.range_of_inputs = self.groups == 1
        strides = math.prod(self.settings[0])
        self.unfolds_adjoint = strides == 1
        self.unfolding = 1.0 if self.unfolds_adjoint else max(1.0, values[1].shape[2:].numel() / strides)

    def _forward(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        stride, padding, dilation = self.settings
        return aten.convolution(x, weight, None, stride, padding, dilation, False, self.zeros, groups)

    def _backward(
        self,
        adjoint: Tensor,
        x: Tensor,
        weight: Tensor,
        groups: int,
        mask: list[bool],
        stride: list[int] | None = None,
    ) -> Tensor:
        own, padding, dilation = self.settings
        stride = own if stride is None else stride
        found = aten.convolution_backward(
            adjoint, x, weight, None, stride, padding, dilation, False, self.zeros, groups, mask
        )
        return found[mask.index(True)]

    def forward(self, moving: Tangent) -> Tensor:
        """W·U(ẋ), all directions as one batch."""
        x, weight = self.values[:2]
        data = moving.data
        if self.groups == 1:
            weight = moving.part(weight)
        else:
            data = moving.dense(x.shape)
        return self._forward(data.flatten(0, 1), weight, self.groups).unflatten(0, data.shape[:2])

    def forward_weight(self, weight: Tensor) -> Tensor:
        """Ẇ·U(x): for one group, directions are output channels."""
        x = self.values[0]
        if self.groups > 1:
            return torch.stack([self._forward(x, each, self.groups) for each in weight])
        output = self._forward(x, weight.flatten(0, 1), 1)
        return output.unflatten(1, weight.shape[:2]).transpose(0, 1)

    def forward_bias(self, bias: Tensor) -> Tensor:
        """ḃ, in the shape of the output."""
        return _per_channel(bias, self.adjoint.ndim).expand(len(bias), *self.adjoint.shape)

    def backward(self, adjoint: Adjoint) -> Tensor:
        """Uᵀ(Wᵀḡ̇), all directions as one batch."""
        x, weight = self.values[:2]
        if isinstance(adjoint, Scaled):
            weight = weight * adjoint.factor.reshape(-1, *[1] * (weight.ndim - 1))
            adjoint = adjoint.data
        adjoint = plain(adjoint)
        shape = x.new_empty(1).expand(adjoint.shape[0] * adjoint.shape[1], *x.shape[1:])
        flat = self._backward(adjoint.flatten(0, 1), shape, weight, self.groups, [True, False, False])
        return flat.unflatten(0, adjoint.shape[:2])

    def backward_weight(self, weight: Tensor) -> Tensor:
        """Uᵀ(Ẇᵀḡ)."""
        x = self.values[0]
        shape = x.new_empty(1).expand(x.shape)
        parts = [self._backward(self.adjoint, shape, each, self.groups, [True, False, False]) for each in weight]
        return torch.stack(parts)

    def channels_last(self, directions: Tensor) -> Tensor:
        """Channels are axis 2."""
        return directions.movedim(2, -1)

    def _windows(self, x: Tensor, padding: Sequence[int], stride: Sequence[int]) -> Tensor:
        """What the kernel covers at each of its places: (b, c, *positions) gives (b, c, *places, *kernel)."""
        x = torch.nn.functional.pad(x, [p for p in reversed(padding) for _ in (0, 1)])
        kernel = self.values[1].shape[2:]
        for axis, (size, step, dilation) in enumerate(zip(kernel, stride, self.settings[2], strict=True), start=2):
            x = x.unfold(axis, dilation * (size - 1) + 1, step)[..., ::dilation]
        return x

    def _one_by_one(self, rows: Tensor) -> bool:
        """Whether a convolution for each column is fastest: on CPUs, for few columns."""
        return with_onednn(self.adjoint) and len(rows) < _MANY_COLUMNS

    def add_input_products(self, rows: Tensor, adjoint: Tensor, factor: Tensor | None) -> None:
        """Adds Σ ḡ̇ ⊗ U(x)."""
        if not self._one_by_one(rows):
            super().add_input_products(rows, adjoint, factor)
            return
        for row, each in zip(rows, adjoint.movedim(-1, 2), strict=True):
            product = self._weight(each, self.values[0], row.shape)
            row += product if factor is None else product * factor.reshape(-1, *[1] * (row.ndim - 1))

    def add_adjoint_products(self, rows: Tensor, moving: Tensor, first: int) -> None:
        """Adds Σ ḡ ⊗ U(ẋ)."""
        if not self._one_by_one(rows):
            super().add_adjoint_products(rows, moving, first)
            return
        adjoint = laid_out(self.adjoint[:, first:])
        for row, each in zip(rows, moving.movedim(-1, 2), strict=True):
            row += self._weight(adjoint, each, row.shape)

    def _weight(self, adjoint: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        like, mask = x.new_empty(1).expand(shape), [False, True, False]
        strides, padding, _ = self.settings
        if shape[2:].numel() > 1 or math.prod(strides) == 1 or any(padding) or not _aborts_on_strides():
            return self._backward(adjoint, x, like, self.groups, mask)
        # A 1×1 convolution sees only every so many pixels.
        every: list[Any] = [slice(None, None, step) for step in strides]
        seen = x[..., *every]
        return self._backward(adjoint, laid_out(seen), like, self.groups, mask, [1] * len(strides))

    def unfolded_input(self) -> Tensor:
        """Windows of x."""
        windows = self._matrix(self._windows(self.values[0], self.settings[1], self.settings[0]))
        taps = self.values[1].shape[2:].numel()
        return windows.unflatten(0, (self.groups, -1, taps)).transpose(1, 2).flatten(0, 2)

    def unfolded_adjoint(self) -> Tensor:
        """Windows of ḡ, in which the kernel's taps run backwards."""
        kernel, (_, padding, dilation) = self.values[1].shape[2:], self.settings
        outside = [d * (size - 1) - p for d, size, p in zip(dilation, kernel, padding, strict=True)]
        windows = self._windows(self.adjoint, outside, [1] * len(kernel))
        return self._matrix(windows.flip(list(range(2 + len(kernel), windows.ndim))))

    def plain_adjoint(self) -> Tensor:
        """Channels in front."""
        return self.adjoint.transpose(0, 1).flatten(1)

    @staticmethod
    def _matrix(windows: Tensor) -> Tensor:
        """(b, c, *places, *kernel) as (c · kernel, b · places)."""
        d = (windows.ndim - 2) // 2
        return windows.permute(1, *range(2 + d, 2 + 2 * d), 0, *range(2, 2 + d)).flatten(1 + d).flatten(0, d)

    def unfold(self, directions: Tensor) -> Tensor:
        """Windows of ẋ."""
        places = directions.ndim - 3
        flat = directions.movedim(-1, 2).flatten(0, 1)
        windows = self._windows(flat, self.settings[1], self.settings[0])
        flat = windows.movedim(1, 1 + places).flatten(1 + places)
        return flat.unflatten(0, directions.shape[:2])

    def sum_over_positions(self, adjoint: Tensor) -> Tensor:
        """Sum over all axes behind the channels."""
        return _over_positions(adjoint)

    def unfolded(self, output: int, columns: slice) -> Tensor:
        """What weights of one output channel are multiplied with: a convolution with unit weights."""
        x, weight = self.values[:2]
        per_group = weight.shape[1]
        begin = output // (weight.shape[0] // self.groups) * per_group
        count = math.prod(weight.shape[1:])
        units = torch.eye(count, dtype=x.dtype, device=x.device)[columns].reshape(-1, *weight.shape[1:])
        return self._forward(x[:, begin : begin + per_group], units, 1)

    def placed(self, data: Tensor, output: int) -> Tangent:
        """Directions of one output channel."""
        return Tangent(data.unsqueeze(2), output)

    def positions(self, output: torch.Size) -> int:
        """All axes behind the channels."""
        return output[2:].numel()


class Linear(Affine):
    """y = x Wᵀ + b over the last axis."""

    def prepare(self, values: Sequence[Tensor], output: Tensor, adjoint: Tensor) -> None:
        """Reads what axis 1 counts: features or positions."""
        super().prepare(values, output, adjoint)
        self.range_of_inputs = values[0].ndim == 2

    def forward(self, moving: Tangent) -> Tensor:
        """Ẋ Wᵀ."""
        weight = self.values[1]
        if self.values[0].ndim > 2:  # axis 1 counts positions
            return moving.dense(self.values[0].shape) @ weight.T
        return moving.data @ moving.part(weight).T

    def forward_weight(self, weight: Tensor) -> Tensor:
        """X Ẇᵀ."""
        x = self.values[0]
        return torch.einsum("bi,soi->sbo", x.reshape(-1, x.shape[-1]), weight).reshape(
            len(weight), *x.shape[:-1], weight.shape[1]
        )

    def forward_bias(self, bias: Tensor) -> Tensor:
        """ḃ, in the shape of the output."""
        shape = self.adjoint.shape
        return bias.reshape(len(bias), *[1] * (len(shape) - 1), -1).expand(len(bias), *shape)

    def backward(self, adjoint: Adjoint) -> Tensor:
        """Ḡ̇ W."""
        return plain(adjoint) @ self.values[1]

    def backward_weight(self, weight: Tensor) -> Tensor:
        """Ḡ Ẇ."""
        return torch.einsum("bo,soi->sbi", self.adjoint.reshape(-1, weight.shape[1]), weight).reshape(
            len(weight), *self.values[0].shape
        )

    def channels_last(self, directions: Tensor) -> Tensor:
        """They are."""
        return directions

    def unfolded_input(self) -> Tensor:
        """The input itself."""
        return self.values[0].flatten(0, -2).T

    def unfolded_adjoint(self) -> Tensor:
        """ḡ."""
        return self.adjoint.flatten(0, -2).T

    plain_adjoint = unfolded_adjoint

    def unfold(self, directions: Tensor) -> Tensor:
        """ẋ."""
        return directions

    def sum_over_positions(self, adjoint: Tensor) -> Tensor:
        """Sum over all axes between examples and features."""
        return adjoint if adjoint.ndim == 3 else adjoint.flatten(2, -2).sum(dim=2)

    def unfolded(self, output: int, columns: slice) -> Tensor:
        """Some inputs, shape (n, K, *positions)."""
        return self.values[0][..., columns].movedim(-1, 1)

    def placed(self, data: Tensor, output: int) -> Tangent:
        """Directions of one output feature."""
        if data.ndim == 2:
            return Tangent(data.unsqueeze(2), output)
        full = data.new_zeros(*data.shape, self.values[1].shape[0])
        full[..., output] = data
        return Tangent(full)

    def positions(self, output: torch.Size) -> int:
        """All axes between examples and features."""
        return output[1:-1].numel()


def _product(matrix: Tensor, directions: Tensor) -> Tensor:
    """A matrix times all directions.

    On CPUs as a convolution with 1×1 kernels, which oneDNN does at twice the speed of MKL's matrix product; in pieces,
    as longer sums ran up to twice slower (measured).

    Args:
        matrix: Shape (rows, M).
        directions: Shape (K, M, c).

    Returns:
        Shape (K, rows, c).
    """
    if not with_onednn(matrix):
        return torch.matmul(matrix, directions)
    found = None
    for begin in range(0, matrix.shape[1], _PIECE):
        piece = slice(begin, begin + _PIECE)
        term = torch.nn.functional.conv2d(directions[:, piece, :, None], matrix[:, piece, None, None])[..., 0]
        found = term if found is None else found.add_(term)
    assert found is not None
    return found


def with_onednn(tensor: Tensor) -> bool:
    """Whether torch convolves a tensor with oneDNN: those of single precision on CPUs.

    Args:
        tensor: The tensor.

    Returns:
        Whether it does.
    """
    return tensor.dtype == torch.float32 and not tensor.is_cuda


_DIFFERENCES = {aten.sub.Tensor}
_SUMS = {aten.add.Tensor, *_DIFFERENCES}
_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}


def rule_for(node: Node, graph: Graph, values: Sequence[Tensor], result: Tensor) -> Rule:
    """The rule for an operation: the fastest that holds for it.

    Args:
        node: The operation.
        graph: Its graph.
        values: Its inputs, of which kinds and shapes count.
        result: Its output.

    Returns:
        The rule.
    """
    if any(value.is_complex() for value in (*values, result)):
        return Rule(node, graph)  # the others take derivatives for numbers that commute with conjugation
    shapes, output = [value.shape for value in values], result.shape
    args, kwargs = node.arguments
    active = [i for i, name in enumerate(node.inputs) if name in graph.active]
    tensors = [isinstance(a, Input) for a in args]
    kind: type[Rule] = Rule
    if node.target in _CONVOLUTIONS and len(shapes[0]) == len(shapes[1]) and tensors[:2] == [True, True]:
        kind = Convolution
    elif node.target is aten.linear.default and tensors[:2] == [True, True] and len(shapes[0]) > 1:
        kind = Linear
    elif node.target in _SUMS and active == [0, 1] and shapes[0] == shapes[1]:
        kind = Sum
    elif (
        node.target is aten._native_batch_norm_legit_no_training.default
        and all(tensors[:5])
        and active
        and active[-1] < 3
    ):
        kind = FrozenBatchNorm
    elif node.target is aten.group_norm.default and len(node.inputs) == 3 and len(shapes[0]) > 2:
        kind = GroupNorm
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
        kind = Pointwise
    return kind(node, graph)
