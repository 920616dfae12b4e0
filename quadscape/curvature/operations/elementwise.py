"""Operations on each number by itself, sums, and means over positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from quadscape.curvature.operations.base import Adjoint, Operation, Spread, Tangent, Tensor, aten, plain


class Pointwise(Operation):
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


class Sum(Operation):
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


class SpatialMean(Operation):
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


_DIFFERENCES = {aten.sub.Tensor}
SUMS = {aten.add.Tensor, *_DIFFERENCES}
