"""Element-wise formulas over many directions, each compiled to one pass over memory where torch can do that.

On a GPU the passes over directions of group normalisations and activations, one for every addition and multiplication,
take longer than the products. `torch.compile` makes one pass of each formula; it needs Triton and a C compiler, which
not every machine has. An engine's plan says whether they are used, since the last bits depend on it.

The operations below take these formulas where all that they need is there, and those of their base where it is not. A
formula is a function of tensors alone, with directions in front: shape (S, n, G, L) of the channels and positions of
each group, or (S, n, c, p) of the positions of each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any, TypeVar

import torch

from quadscape.curvature.operations.base import Adjoint, Spread, Tangent, plain
from quadscape.curvature.operations.elementwise import Pointwise
from quadscape.curvature.operations.normalization import GroupNorm
from quadscape.errors import StageError

Tensor = torch.Tensor
Result = TypeVar("Result", Tensor, tuple[Tensor, ...])

# Variants of one formula: directions, examples or groups may be one, or adjacent in memory or not.
_VARIANTS = 256


@cache
def compiled(formula: Callable[..., Result]) -> Callable[..., Result]:
    """A formula as one pass, for tensors of any size.

    Args:
        formula: A function of tensors.

    Returns:
        The same function. It is compiled when it is first called; nothing about it depends on measured times.
    """
    import torch._dynamo.config as limits
    import torch._inductor.config as options

    limits.recompile_limit = max(limits.recompile_limit, _VARIANTS)
    chosen: dict[str, Any] = {"deterministic": True} if hasattr(options, "deterministic") else {}
    return torch.compile(formula, dynamic=True, fullgraph=True, options=chosen)


def _one_pass(formula: Callable[..., Result]) -> Callable[..., Result]:
    @wraps(formula)
    def call(*tensors: Tensor) -> Result:
        with torch.no_grad():
            return compiled(formula)(*tensors)

    return call


@cache
def can_fuse(device: torch.device) -> bool:
    """Whether formulas can be compiled for a device: by doing so, as every other sign of it can mislead.

    Args:
        device: The device.

    Returns:
        Whether one was, and is right.
    """
    x = torch.arange(24, dtype=torch.float32, device=device).reshape(2, 3, 1, 4)
    try:
        found = product_rule(x, x, x[0], x[0])
    except Exception:  # compilers fail in any way
        return False
    return torch.equal(found, 2 * x * x[0])


def check_can_fuse(device: torch.device) -> None:
    """Refuses a machine that cannot go on with what another one began.

    Args:
        device: The device.

    Raises:
        StageError: Formulas cannot be compiled for it.
    """
    if not can_fuse(device):
        raise StageError(
            "This stage was begun with formulas compiled by Triton, but torch.compile does not work on this machine, "
            "whose results would differ in the last bits; make Triton and a C compiler available, or remove the "
            "stage's directory to begin anew without them."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Activations


@_one_pass
def product_rule(adjoint: Tensor, moving: Tensor, slope: Tensor, second: Tensor) -> Tensor:
    """f′·ḡ̇ + ḡf″·ẋ, of any shapes that broadcast."""
    return adjoint * slope + moving * second


# ---------------------------------------------------------------------------------------------------------------------
# Group normalisation: x̂ = (x − m)·r


@_one_pass
def group_tangent(moving: Tensor, normalised: Tensor, inverse: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """γ·dx̂, and what dx̂ is made of: the means of ẋ and of x̂ẋ over each group.

    Args:
        moving: ẋ, shape (S, n, G, L).
        normalised: x̂, shape (n, G, L).
        inverse: r, shape (n, G, 1).
        gamma: γ of each number of a group, shape (G, L).

    Returns:
        Shapes (S, n, G, L) and twice (S, n, G, 1).
    """
    mean = moving.mean(dim=3, keepdim=True)
    product = (moving * normalised).mean(dim=3, keepdim=True)
    return (moving - mean - normalised * product) * (inverse * gamma), mean, product


def _pulled(turned: Tensor, normalised: Tensor, inverse: Tensor) -> Tensor:
    """r·(h − mean h − x̂·mean(x̂h))."""
    product = (turned * normalised).mean(dim=3, keepdim=True)
    return (turned - turned.mean(dim=3, keepdim=True) - normalised * product) * inverse


def _bent(
    moving: Tensor, mean: Tensor, product: Tensor, normalised: Tensor, inverse: Tensor, fixed: tuple[Tensor, ...]
) -> Tensor:
    """−(x̂·mean(dx̂·h)·r + dx̂·mean(x̂h)·r + ḡ_x·(−dr/r)), with h = γḡ, mean(x̂h) and ḡ_x in `fixed`."""
    turned, mean_product, input_adjoint = fixed
    moved = (moving - mean - normalised * product) * inverse
    other = (moved * turned).mean(dim=3, keepdim=True)
    return -(normalised * (other * inverse) + moved * (mean_product * inverse) + input_adjoint * (product * inverse))


@_one_pass
def group_pulled(adjoint: Tensor, normalised: Tensor, inverse: Tensor, gamma: Tensor) -> Tensor:
    """The transposed map of a group normalisation, of ḡ̇ with shape (S, n, G, L)."""
    return _pulled(adjoint * gamma, normalised, inverse)


@_one_pass
def group_bent(
    moving: Tensor, mean: Tensor, product: Tensor, normalised: Tensor, inverse: Tensor, *fixed: Tensor
) -> Tensor:
    """The second derivative along ẋ, of ẋ with shape (S, n, G, L)."""
    return _bent(moving, mean, product, normalised, inverse, fixed)


@_one_pass
def group_pulled_and_bent(
    adjoint: Tensor,
    gamma: Tensor,
    moving: Tensor,
    mean: Tensor,
    product: Tensor,
    normalised: Tensor,
    inverse: Tensor,
    *fixed: Tensor,
) -> Tensor:
    """Both, where ẋ has all groups."""
    return _pulled(adjoint * gamma, normalised, inverse) + _bent(moving, mean, product, normalised, inverse, fixed)


@_one_pass
def sums_of_adjoint(adjoint: Tensor, normalised: Tensor) -> tuple[Tensor, Tensor]:
    """Σ over positions of ḡ̇x̂ and of ḡ̇, of shapes (S, n, c, p) and (n, c, p)."""
    return (adjoint * normalised).sum(dim=3), adjoint.sum(dim=3)


@_one_pass
def sums_of_moved(
    moving: Tensor, mean: Tensor, product: Tensor, normalised: Tensor, inverse: Tensor, adjoint: Tensor
) -> Tensor:
    """Σ over positions of ḡ·dx̂.

    Args:
        moving: ẋ, shape (S, n, G, channels of a group, p).
        mean: Mean of ẋ over a group, shape (S, n, G, 1, 1).
        product: Mean of x̂ẋ, likewise.
        normalised: x̂, shape (n, G, channels of a group, p).
        inverse: r, shape (n, G, 1, 1).
        adjoint: ḡ, shape (n, G, channels of a group, p).

    Returns:
        Shape (S, n, G, channels of a group).
    """
    return ((moving - mean - normalised * product) * (inverse * adjoint)).sum(dim=4)


# ---------------------------------------------------------------------------------------------------------------------
# Operations


class FusedPointwise(Pointwise):
    """`Pointwise` with both terms of its adjoint tangent in one pass."""

    def adjoint_tangent(
        self, tangents: Sequence[Tangent | None], adjoint: Adjoint | None, wanted: Sequence[bool]
    ) -> list[Adjoint | None]:
        """f′·ḡ̇ + ḡ·f″·ẋ."""
        (position,) = self.active
        moving = tangents[position]
        if not wanted[position] or adjoint is None or moving is None or moving.first is not None or self.second is None:
            return super().adjoint_tangent(tangents, adjoint, wanted)
        second = self._times("second", self.second, moving.factor)
        found: list[Adjoint | None] = [None] * len(self.values)
        if isinstance(adjoint, Spread):
            parts = [adjoint.tiles(part) for part in (moving.data, self.slope, second)]
            found[position] = product_rule(adjoint.each, *parts).reshape(moving.data.shape)
        else:
            found[position] = product_rule(plain(adjoint), moving.data, self.slope, second)
        return found


class FusedGroupNorm(GroupNorm):
    """`GroupNorm` with one pass for each of its results; dx̂ is made again where it is wanted, of ẋ and two means."""

    def prepare(self, values: Sequence[Tensor], output: Tensor, adjoint: Tensor) -> None:
        """Forgets the means of the last data chunk."""
        super().prepare(values, output, adjoint)
        self._known: tuple[Tensor, Tensor, Tensor] | None = None

    def _input_tangent(self, moving: Tangent) -> Tangent:
        flat, groups = self._grouped(moving)
        part, *means = group_tangent(flat, self.normalised[:, groups], self.inverse[:, groups], self.gamma[groups])
        self._known = (moving.data, means[0], means[1])
        return self._of_groups(part, groups)

    def _means(self, moving: Tangent) -> tuple[Tensor, Tensor]:
        """Of ẋ and x̂ẋ over each group of the range, shape (S, n, groups, 1)."""
        if self._known is None or self._known[0] is not moving.data:
            self._input_tangent(moving)
        assert self._known is not None
        return self._known[1:]

    def input_adjoint_tangent(
        self, moving: Tangent | None, gamma: Tangent | None, adjoint: Tensor | None
    ) -> Tensor | None:
        """See `GroupNorm`."""
        if adjoint is None or gamma is not None:
            return super().input_adjoint_tangent(moving, gamma, adjoint)
        turned, shape = adjoint.reshape(len(adjoint), *self.normalised.shape), self.values[0].shape
        if moving is None:
            return group_pulled(turned, self.normalised, self.inverse, self.gamma).reshape(-1, *shape)
        flat, groups = self._grouped(moving)
        bend = [flat, *self._means(moving), self.normalised[:, groups], self.inverse[:, groups]]
        bend += [self.turned[:, groups], self.mean_product[:, groups], self.input_adjoint[:, groups]]
        if groups == slice(0, self.groups):
            return group_pulled_and_bent(turned, self.gamma, *bend).reshape(-1, *shape)
        found = group_pulled(turned, self.normalised, self.inverse, self.gamma)
        found[:, :, groups] += group_bent(*bend)
        return found.reshape(-1, *shape)

    def example_rows(self, moving: Tangent | None, adjoint: Tensor | None) -> list[Tensor | None]:
        """See `GroupNorm`."""
        gamma = beta = None
        count, channels = self.values[0].shape[:2]
        if adjoint is not None:
            gamma, beta = sums_of_adjoint(adjoint.flatten(3), self.normalised.reshape(count, channels, -1))
        if moving is not None:
            flat, groups = self._grouped(moving)
            split = (self.per_group, -1)
            part = sums_of_moved(
                flat.unflatten(3, split),
                *(mean[..., None] for mean in self._means(moving)),
                self.normalised[:, groups].unflatten(2, split),
                self.inverse[:, groups, :, None],
                self.flat_adjoint[:, groups].unflatten(2, split),
            ).flatten(2)
            if gamma is None:
                gamma = part.new_zeros(len(part), count, channels)
            gamma[:, :, groups.start * self.per_group : groups.stop * self.per_group] += part
        return [gamma, beta]
