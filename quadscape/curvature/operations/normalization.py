"""Normalization over a batch's stored statistics, groups and layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from quadscape.curvature.operations.base import Adjoint, Expansion, Operation, Scaled, Tangent, Tensor, on_gpu, plain


class Normalization(Operation, ABC):
    """y = γx̂ + β per channel, with inputs x, γ, β: what frozen BatchNorm and GroupNorm have in common."""

    def adjoint_tangent(
        self, tangents: Sequence[Tangent | None], adjoint: Adjoint | None, wanted: Sequence[bool]
    ) -> list[Adjoint | None]:
        """See `Operation`."""
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


class FrozenBatchNorm(Normalization):
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
        turned = per_channel(gamma.data, self.adjoint.ndim) * (self.adjoint * self.inverse)
        return turned if adjoint is None else adjoint * self.scale + turned

    def example_rows(self, moving: Tangent | None, adjoint: Tensor | None) -> list[Tensor | None]:
        """Σ over positions of ḡ̇x̂ + ḡẋ/σ, and of ḡ̇."""
        gamma = None if adjoint is None else _dot_over_positions(adjoint, self.normalised)
        beta = None if adjoint is None else over_positions(adjoint)
        self._summed = None if adjoint is None or beta is None else (adjoint, beta)
        if moving is not None:
            part = _dot_over_positions(moving.data, moving.part(self.adjoint * self.inverse))
            if gamma is None:
                gamma = part.new_zeros(len(part), *self.values[0].shape[:2])
            gamma[:, :, moving.channels] += part
        return [gamma, beta]


class GroupNorm(Normalization):
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

    def _grouped(self, moving: Tangent) -> tuple[Tensor, slice]:
        """ẋ with zeros up to whole groups, shape (S, n, groups of the range, …), and the range of groups."""
        data, groups = moving.data, slice(0, self.groups)
        if moving.first is not None:
            begin, end = moving.first // self.per_group, -(-(moving.first + data.shape[2]) // self.per_group)
            groups = slice(begin, end)
            before, width = moving.first - begin * self.per_group, (end - begin) * self.per_group
            if data.shape[2] != width:
                padded = data.new_zeros(*data.shape[:2], width, *data.shape[3:])
                padded[:, :, before : before + data.shape[2]] = data
                data = padded
        return data.reshape(*data.shape[:2], groups.stop - groups.start, -1), groups

    def _moved(self, moving: Tangent) -> tuple[Tensor, Tensor, slice]:
        """dx̂ and −dr/r, shapes (S, n, groups of the range, …), and the range of groups."""
        if self._last is not None and self._last[0] is moving.data:
            return self._last[1:]
        flat, groups = self._grouped(moving)
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
        part = None if moving is None else self._input_tangent(moving)
        if gamma is None and beta is None:
            assert part is not None
            return part
        dense = None if part is None else part.dense(shape)
        return Tangent(_normalised_tangent(dense, gamma, beta, self.normalised.reshape(shape)))

    def _input_tangent(self, moving: Tangent) -> Tangent:
        """γ·dx̂."""
        moved, _, groups = self._moved(moving)
        return self._of_groups(moved * self.gamma[groups], groups)

    def _of_groups(self, part: Tensor, groups: slice) -> Tangent:
        """What has shape (S, n, groups of the range, …) as a tangent of the output."""
        first = None if groups == slice(0, self.groups) else groups.start * self.per_group
        return Tangent(part.reshape(*part.shape[:2], -1, *self.values[0].shape[2:]), first)

    def input_adjoint_tangent(
        self, moving: Tangent | None, gamma: Tangent | None, adjoint: Tensor | None
    ) -> Tensor | None:
        """The derivative of r·(h − mean h − x̂·mean(x̂h)) with h = γḡ."""
        shape = self.values[0].shape
        turned = None
        if adjoint is not None:
            turned = adjoint.reshape(len(adjoint), *self.normalised.shape) * self.gamma
        if gamma is not None:
            part = (per_channel(gamma.data, len(shape)) * self.adjoint).reshape(-1, *self.normalised.shape)
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
        beta = None if adjoint is None else over_positions(adjoint)
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


def over_positions(directions: Tensor) -> Tensor:
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
    if on_gpu(directions) or directions.ndim == 3:
        return over_positions(directions * values)
    found = directions.new_empty(directions.shape[:3])
    product = torch.empty_like(values)
    for each, sums in zip(directions, found, strict=True):
        torch.mul(each, values, out=product)
        torch.sum(product.flatten(2), dim=2, out=sums)
    return found


def per_channel(directions: Tensor, ndim: int) -> Tensor:
    """Directions of a vector over channels, shape (S, c), to be broadcast over values (n, c, …)."""
    return directions.reshape(len(directions), 1, -1, *[1] * (ndim - 2))


def _normalised_tangent(part: Tensor | None, gamma: Tangent | None, beta: Tangent | None, normalised: Tensor) -> Tensor:
    """ẏ = (what moves through x) + γ̇·x̂ + β̇."""
    if gamma is not None:
        turned = per_channel(gamma.data, normalised.ndim) * normalised
        part = turned if part is None else part + turned
    if beta is not None:
        shift = per_channel(beta.data, normalised.ndim)
        part = shift.expand(len(shift), *normalised.shape) if part is None else part + shift
    assert part is not None
    return part
