"""Convolutions and linear layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from quadscape.curvature.operations.base import (
    Adjoint,
    Expansion,
    Operation,
    Scaled,
    Tangent,
    Tensor,
    aten,
    laid_out,
    on_gpu,
    plain,
)
from quadscape.curvature.operations.normalization import over_positions, per_channel

# Columns from which one product with what they share is faster than a convolution for each, on a CPU (measured).
_MANY_COLUMNS = 32
# Examples times positions in one such product.
_PIECE = 1024
# Thread blocks that keep a GPU busy, sides of what one of them computes of a product, and the shortest sum it is worth.
_BLOCKS, _BLOCK_SIDE, _SHORTEST = 264, 128, 1024
# Images of one convolution, at most: cuDNN counts them along an axis of its grid, which is 16 bits long.
LARGEST_BATCH = 65_535


class Affine(Operation, ABC):
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
        """See `Operation`; each product has two terms."""
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
            pulled = _copied(self.channels_last(plain(adjoint))[..., first:])
            size = pulled[0].nbytes
        if moving is not None:
            inputs = moving.channels if self.range_of_inputs else inputs
            data = moving.data if self.range_of_inputs else moving.dense(self.values[0].shape)
            pushed = _copied(self.channels_last(data))
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
        if on_gpu(directions):
            return _folded_product(shared[rows].unflatten(0, (self.groups, -1)), flat)
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
        flat = _in_launches(lambda images: self._forward(images, weight, self.groups), data.flatten(0, 1))
        return flat.unflatten(0, data.shape[:2])

    def forward_weight(self, weight: Tensor) -> Tensor:
        """Ẇ·U(x): for one group, directions are output channels."""
        x = self.values[0]
        if self.groups > 1:
            return torch.stack([self._forward(x, each, self.groups) for each in weight])
        output = self._forward(x, weight.flatten(0, 1), 1)
        return output.unflatten(1, weight.shape[:2]).transpose(0, 1)

    def forward_bias(self, bias: Tensor) -> Tensor:
        """ḃ, in the shape of the output."""
        return per_channel(bias, self.adjoint.ndim).expand(len(bias), *self.adjoint.shape)

    def backward(self, adjoint: Adjoint) -> Tensor:
        """Uᵀ(Wᵀḡ̇), all directions as one batch."""
        x, weight = self.values[:2]
        if isinstance(adjoint, Scaled):
            weight = weight * adjoint.factor.reshape(-1, *[1] * (weight.ndim - 1))
            adjoint = adjoint.data
        adjoint = plain(adjoint)

        def pulled(images: Tensor) -> Tensor:
            shape = x.new_empty(1).expand(len(images), *x.shape[1:])
            return self._backward(images, shape, weight, self.groups, [True, False, False])

        flat = _in_launches(pulled, adjoint.flatten(0, 1))
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
        return over_positions(adjoint)

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


class LinearLayer(Affine):
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


def _copied(directions: Tensor) -> Tensor:
    """Contiguous, or on a GPU with directions as the last axis in memory: as the products of either want them."""
    if on_gpu(directions):
        return directions.movedim(0, -1).contiguous().movedim(-1, 0)
    return directions.contiguous()


def _in_launches(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A function of images, which on a GPU are given to it in as many parts as its grids hold."""
    if len(images) <= LARGEST_BATCH or not on_gpu(images):
        return run(images)
    return torch.cat([run(part) for part in images.tensor_split(-(-len(images) // LARGEST_BATCH))])


def _folded_product(matrix: Tensor, directions: Tensor) -> Tensor:
    """A matrix times all directions as one product, group by group: for GPUs, which a batch of thin ones leaves idle.

    Where that has few entries, its sum is cut into pieces which are added at the end, so that all processors have some.

    Args:
        matrix: Shape (groups, rows, M).
        directions: Shape (K, M, groups · c); copied unless K is the last axis in memory.

    Returns:
        Shape (K, groups, rows, c).
    """
    groups, rows, length = matrix.shape
    flat = directions.movedim(0, -1).unflatten(1, (groups, -1)).movedim(1, 0)
    columns, flat = flat.shape[2:], flat.flatten(2)
    blocks = -(-rows // _BLOCK_SIDE) * -(-flat.shape[2] // _BLOCK_SIDE) * groups
    wanted = -(-_BLOCKS // max(1, blocks))
    pieces = next((p for p in range(wanted, 4 * wanted) if length % p == 0 and length >= p * _SHORTEST), 1)
    if groups == 1 and pieces > 1:
        matrix, flat = matrix[0].unflatten(1, (pieces, -1)).transpose(0, 1), flat[0].unflatten(0, (pieces, -1))
        product = torch.bmm(matrix, flat).sum(dim=0, keepdim=True)
    else:
        product = torch.bmm(matrix, flat)
    return product.unflatten(2, columns).movedim(-1, 0)


def _product(matrix: Tensor, directions: Tensor) -> Tensor:
    """A matrix times all directions, on a CPU.

    In single precision as a convolution with 1×1 kernels, which oneDNN does at twice the speed of MKL's matrix product;
    in pieces, as longer sums ran up to twice slower (measured).

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
    return tensor.dtype == torch.float32 and not on_gpu(tensor)
