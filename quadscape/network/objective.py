"""The loss L(θ) over a fixed set of examples, with its gradient and matrix-free Hessian products.

L(θ) = (1/N) Σₙ ℓ(f(xₙ; θ), yₙ). The examples are taken in chunks of fixed size in their fixed order; sums over
chunks are float64, and a ragged last chunk counts by its size because sums, not means, are added up.

The Hessian product here is forward over reverse (the derivative of the gradient along v), whereas the Hessian engine
(`quadscape.curvature.engine`) goes node by node through rules of its own: neither can hide the other's mistakes.
The Gauss–Newton product leaves out the network's own second derivative: G = (1/N) Σₙ Jₙᵀ ∇²ℓ(f(xₙ)) Jₙ.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from quadscape.errors import DataError, ModelError, StoreError
from quadscape.network.counts import CPU_GRAPH_BYTES, PRODUCT_GRAPHS, chunk_of
from quadscape.network.losses import example_losses
from quadscape.network.parameters import ParameterLayout
from quadscape.network.substitutes import Substituted
from quadscape.numerics import is_failure, memory_share

if TYPE_CHECKING:
    from quadscape.data.sets import DataSet
    from quadscape.data.sources import Split
    from quadscape.network.checkpoint import Checkpoint

Vector = torch.Tensor | np.ndarray
Parameters = dict[str, torch.Tensor]


class Objective:
    """L(θ) for one network and one fixed set of examples.

    Attributes:
        model: The network, in evaluation mode, in the dtype and on the device of the images.
        layout: Where its parameters lie in θ.
        images: Normalised inputs, shape (N, channels, height, width).
        labels: Class indices, int64, shape (N,).
        loss_kind: Loss of one example, as in `quadscape.network.losses`.
        chunk: Examples that are taken at once.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layout: ParameterLayout,
        images: torch.Tensor,
        labels: torch.Tensor,
        loss: str,
        chunk: int,
    ) -> None:
        if len(images) == 0:
            raise DataError("There are no examples to take the loss over.")
        self.model = model.eval()
        self.layout = layout
        self.images = images
        self.labels = labels
        self.loss_kind = loss
        self.chunk = max(1, min(chunk, len(images)))
        self._batches: bool | None = None  # whether gradients of single examples are right at once; None: not tried

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return self.layout.size

    @property
    def count(self) -> int:
        """N, the number of examples."""
        return len(self.images)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the forward and backward passes."""
        return self.images.dtype

    @property
    def device(self) -> torch.device:
        """Where they run."""
        return self.images.device

    def part(self, examples: slice | torch.Tensor) -> "Objective":
        """The same loss over some of the examples."""
        images, labels = self.images[examples], self.labels[examples]
        return Objective(self.model, self.layout, images, labels, self.loss_kind, self.chunk)

    def over(self, images: torch.Tensor, labels: torch.Tensor) -> "Objective":
        """The same network's loss over other examples, in chunks chosen by memory."""
        objective = Objective(self.model, self.layout, images, labels, self.loss_kind, 1)
        objective.chunk = data_chunk(objective.graph_bytes_per_example(), len(images), self.device)
        return objective

    def chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images and labels, chunk after chunk."""
        yield from zip(self.images.split(self.chunk), self.labels.split(self.chunk), strict=True)

    def parameters(self, theta: Vector) -> Parameters:
        """The network's parameters at θ.

        Args:
            theta: Shape (P,), float64.

        Returns:
            Detached tensors by name, in this objective's dtype and on its device.
        """
        vector = torch.as_tensor(theta).detach().to(self.device, self.dtype)
        return self.layout.unflatten(vector)

    def chunk_loss(self, parameters: Parameters, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the losses of some examples, differentiable in the parameters.

        Args:
            parameters: Tensors by name.
            images: Shape (n, channels, height, width).
            labels: Shape (n,).

        Returns:
            Scalar.
        """
        outputs = self.network(parameters, images)
        return example_losses(outputs, labels, self.loss_kind).sum()

    def network(self, parameters: Parameters, images: torch.Tensor) -> torch.Tensor:
        """Class scores of some images, differentiable in the parameters."""
        # The fused kernels of attention have no second derivative, torch's plain one has.
        with sdpa_kernel(SDPBackend.MATH), Substituted():
            return functional_call(self.model, parameters, (images,))

    def outputs(self, theta: Vector) -> torch.Tensor:
        """Class scores of all examples, shape (N, classes), on this objective's device."""
        parameters = self.parameters(theta)
        with torch.no_grad():
            return torch.cat([self.network(parameters, images) for images, _ in self.chunks()])

    def example_losses(self, theta: Vector) -> torch.Tensor:
        """Loss of every example, float64, shape (N,), on the CPU."""
        parameters = self.parameters(theta)
        found = []
        with torch.no_grad():
            for images, labels in self.chunks():
                outputs = self.network(parameters, images)
                found.append(example_losses(outputs, labels, self.loss_kind).double())
        return torch.cat(found).cpu()

    def loss(self, theta: Vector) -> float:
        """L(θ)."""
        return float(self.example_losses(theta).sum()) / self.count

    def gradient(self, theta: Vector) -> torch.Tensor:
        """∇L(θ), float64, shape (P,), on the CPU."""
        return self._mean(self.parameters(theta), grad(self.chunk_loss))

    def hessian_product(self, theta: Vector, vector: Vector) -> torch.Tensor:
        """∇²L(θ)·v by forward over reverse differentiation.

        Args:
            theta: Shape (P,), float64.
            vector: v, shape (P,).

        Returns:
            Float64, shape (P,), on the CPU.
        """
        tangents = self.parameters(vector)

        def forward_over_reverse(primal: Parameters, images: torch.Tensor, labels: torch.Tensor) -> Parameters:
            return jvp(lambda p: grad(self.chunk_loss)(p, images, labels), (primal,), (tangents,))[1]

        def reverse_over_reverse(primal: Parameters, images: torch.Tensor, labels: torch.Tensor) -> Parameters:
            def slope(p: Parameters) -> torch.Tensor:
                gradient = grad(self.chunk_loss)(p, images, labels)
                return torch.stack([(gradient[name] * tangents[name]).sum() for name in gradient]).sum()

            return grad(slope)(primal)

        return self._mean_of_either(self.parameters(theta), forward_over_reverse, reverse_over_reverse)

    def gauss_newton_product(self, theta: Vector, vector: Vector) -> torch.Tensor:
        """G·v, the generalised Gauss–Newton matrix: v through the network, the loss's own Hessian, and back.

        Args:
            theta: Shape (P,), float64.
            vector: v, shape (P,).

        Returns:
            Float64, shape (P,), on the CPU.
        """
        tangents = self.parameters(vector)

        def product(primal: Parameters, images: torch.Tensor, labels: torch.Tensor, forward: bool) -> Parameters:
            def network(p: Parameters) -> torch.Tensor:
                return self.network(p, images)

            outputs, pull_back = vjp(network, primal)[:2]
            if forward:
                along = jvp(network, (primal,), (tangents,))[1]
            else:
                # u ↦ Jᵀu is linear, and Jv is its transpose applied to v.
                along = vjp(lambda u: pull_back(u)[0], torch.zeros_like(outputs))[1](tangents)[0]
            slope = grad(lambda o: example_losses(o, labels, self.loss_kind).sum())
            return pull_back(jvp(slope, (outputs,), (along,))[1])[0]

        return self._mean_of_either(
            self.parameters(theta), partial(product, forward=True), partial(product, forward=False)
        )

    def example_gradients(self, theta: Vector, examples: slice | np.ndarray | torch.Tensor) -> torch.Tensor:
        """Gradients of single examples' losses.

        Args:
            theta: Shape (P,), float64.
            examples: Which examples: a slice or n indices.

        Returns:
            Shape (n, P), in this objective's dtype, on its device.

        Raises:
            RuntimeError: A device, or memory, failed.
        """
        parameters = self.parameters(theta)
        if not isinstance(examples, slice):
            examples = torch.as_tensor(examples, dtype=torch.int64, device=self.device)

        def of_one(image: torch.Tensor, label: torch.Tensor) -> Parameters:
            return grad(self.chunk_loss)(parameters, image[None], label[None])

        images, labels = self.images[examples], self.labels[examples]
        result = torch.empty(len(images), self.size, dtype=self.dtype, device=self.device)
        for start in range(0, len(images), self.chunk):
            rows = slice(start, start + self.chunk)
            gradients = None
            if self._batches is not False:
                try:
                    gradients = vmap(of_one)(images[rows], labels[rows])
                except RuntimeError as failure:
                    if is_failure(failure):
                        raise
                    # The network does something that cannot be batched (reads a value, say).
                    self._batches = False
                else:
                    if self._batches is None:  # torch's batching has mistakes: seen once, not trusted again
                        single = self.layout.flatten(of_one(images[start], labels[start]))
                        error = self.layout.flatten({name: g[0] for name, g in gradients.items()}) - single
                        self._batches = not bool(error.norm() > 1e-3 * single.norm())
            if gradients is None or self._batches is False:
                each = [of_one(image, label) for image, label in zip(images[rows], labels[rows], strict=True)]
                gradients = {name: torch.stack([one[name] for one in each]) for name in each[0]}
            for block in self.layout.blocks:
                result[rows, block.start : block.stop] = (
                    gradients[block.name].detach().reshape(-1, block.stop - block.start)
                )
        return result

    def example_curvatures(self, theta: Vector, direction: Vector) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """First and second derivatives of single examples' losses along a direction q.

        With outputs f, f′ = ∂f/∂t and f″ = ∂²f/∂t² at θ + tq, and slope s and Hessian A of the loss in the outputs:
        qᵀGₙq = f′ᵀAf′ and qᵀHₙq = f′ᵀAf′ + sᵀf″.

        Args:
            theta: Shape (P,), float64.
            direction: q, shape (P,).

        Returns:
            gₙᵀq, qᵀHₙq and qᵀGₙq, float64, shape (N,) each, on the CPU.
        """
        primal, tangents = self.parameters(theta), self.parameters(direction)

        def of_chunk(images: torch.Tensor, labels: torch.Tensor, forward: bool) -> torch.Tensor:
            def outputs(p: Parameters) -> torch.Tensor:
                return self.network(p, images)

            def along(
                function: Callable[[Parameters], torch.Tensor], p: Parameters
            ) -> tuple[torch.Tensor, torch.Tensor]:
                """A function and its derivative along q."""
                if forward:
                    return jvp(function, (p,), (tangents,))[:2]
                # u ↦ Jᵀu is linear, and Jq is its transpose applied to q.
                values, pull_back = vjp(function, p)[:2]
                return values, vjp(lambda u: pull_back(u)[0], torch.zeros_like(values))[1](tangents)[0]

            values = outputs(primal)
            first, second = along(lambda p: along(outputs, p)[1], primal)
            slope = grad(lambda o: example_losses(o, labels, self.loss_kind).sum())
            slopes, bent = jvp(slope, (values,), (first,))[:2]
            curvature = (first * bent).sum(dim=1)
            found = torch.stack([(slopes * first).sum(dim=1), curvature + (slopes * second).sum(dim=1), curvature])
            return found.detach().double()

        def of_all(forward: bool) -> torch.Tensor:
            return torch.cat([of_chunk(images, labels, forward) for images, labels in self.chunks()], dim=1).cpu()

        found = _either(partial(of_all, forward=True), partial(of_all, forward=False))
        return found[0], found[1], found[2]

    def graph_bytes_per_example(self) -> int:
        """What one more example adds to the graph of the gradient, measured: the bytes that autograd keeps.

        Returns:
            Bytes per example; depends on nothing but the network, the image's shape and the dtype.
        """
        more, fewer = self._graph_bytes(3), self._graph_bytes(2)
        return max(1, more - fewer)

    def product_bytes(self) -> int:
        """Estimated peak of the memory for one Hessian product, beside network and data.

        Returns:
            Bytes.
        """
        return PRODUCT_GRAPHS * min(self.chunk, self.count) * self.graph_bytes_per_example()

    def _graph_bytes(self, count: int) -> int:
        leaves = {name: p.detach().clone().requires_grad_() for name, p in self.model.named_parameters()}
        images = self.images[:1].expand(count, *self.images.shape[1:]).contiguous()
        labels = self.labels[:1].expand(count)
        return graph_bytes(lambda: self.chunk_loss(leaves, images, labels), list(leaves.values()))

    def _mean_of_either(
        self, parameters: Parameters, forward: Callable[..., Parameters], backward: Callable[..., Parameters]
    ) -> torch.Tensor:
        """The mean of `forward`, or of the equal `backward`."""

        def mean(of_chunk: Callable[..., Parameters]) -> torch.Tensor:
            return self._mean(parameters, of_chunk)

        return _either(partial(mean, forward), partial(mean, backward))

    def _mean(self, parameters: Parameters, of_chunk: Callable[..., Parameters]) -> torch.Tensor:
        total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        for images, labels in self.chunks():
            total += self.layout.flatten(of_chunk(parameters, images, labels)).detach()
        return (total / self.count).cpu()


def _either(forward: Callable[[], torch.Tensor], backward: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What `forward` gives, or the equal `backward` where torch has no forward derivative (fused attention)."""
    try:
        return forward()
    except NotImplementedError:
        return backward()


def storage_of(tensor: torch.Tensor) -> int:
    """What tells the memory of a living tensor from any other, also on the meta device, where none has an address."""
    return int(tensor.untyped_storage()._cdata)


def graph_bytes(loss: Callable[[], torch.Tensor], leaves: Sequence[torch.Tensor]) -> int:
    """Bytes that autograd keeps for a gradient whose own derivative will be taken.

    Args:
        loss: Computes a scalar.
        leaves: With respect to which it is derived.

    Returns:
        Bytes, of every memory once.
    """
    kept: list[torch.Tensor] = []  # so that no memory is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.autograd.grad(loss(), leaves, create_graph=True, allow_unused=True)
    return sum({storage_of(tensor): tensor.untyped_storage().nbytes() for tensor in kept}.values())


def data_chunk(bytes_per_example: int, count: int, device: torch.device) -> int:
    """Examples per chunk: the largest power of two whose gradient graph fits the device's share of memory.

    Args:
        bytes_per_example: As measured by `Objective.graph_bytes_per_example`.
        count: N.
        device: Where the graph lives.

    Returns:
        Between 1 and `count`. On the CPU it depends on no property of the machine.
    """
    budget = CPU_GRAPH_BYTES
    if device.type == "cuda":
        budget = memory_share(device)
    return chunk_of(bytes_per_example, count, budget)


def objective_for(
    checkpoint: "Checkpoint",
    data: "DataSet",
    split: "Split",
    dtype: torch.dtype,
    device: torch.device | str,
    chunk: int | None = None,
) -> Objective:
    """The objective of a checkpoint's network over one split of a data set.

    Args:
        checkpoint: Network and loss.
        data: The data set, loaded in `dtype` (a data set in less keeps its rounding).
        split: `train`, `validation` or `test`.
        dtype: Precision of the forward and backward passes.
        device: Where they run.
        chunk: Examples per chunk; None: chosen by memory.

    Returns:
        The objective; θ is given to its methods.

    Raises:
        ModelError: The checkpoint's layout is not that of its network.
    """
    device = torch.device(device)
    model = checkpoint.model(dtype, device)
    images, labels = data.split(split)
    images, labels = images.to(device, dtype), labels.to(device)
    layout = ParameterLayout.of(model)
    if layout != checkpoint.layout:
        raise ModelError(
            "The network that the checkpoint's model section builds has other parameters than the checkpoint."
        )
    objective = Objective(model, layout, images, labels, checkpoint.loss, chunk or 1)
    return objective.over(images, labels) if chunk is None else objective


class CheckpointObjectives:
    """The objectives of one stored checkpoint over one split, loaded when first asked for, in any precision.

    Only this class reads stores: L itself needs torch alone, and so imports nothing more.

    Attributes:
        split: The split.
    """

    def __init__(self, checkpoint_path: str | Path, data_path: str | Path, split: "Split") -> None:
        self._checkpoint_path, self._data_path = checkpoint_path, data_path
        self.split = split
        self._loaded: dict[torch.dtype, Objective] = {}

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """The checkpoint."""
        from quadscape.network.checkpoint import Checkpoint

        return Checkpoint.load(self._checkpoint_path)

    @property
    def theta(self) -> np.ndarray:
        """The checkpoint's θ, shape (P,), float64."""
        return self.checkpoint.theta

    @property
    def size(self) -> int:
        """P."""
        return len(self.theta)

    @property
    def numbers(self) -> int:
        """Numbers of all images."""
        return self.examples * int(np.prod(self.checkpoint.shape))

    @property
    def examples(self) -> int:
        """N."""
        from quadscape.data.info import data_info

        return data_info(self._data_path).counts[self.split]

    def parameters(self) -> dict[str, Any]:
        """What determines L and θ, as JSON values."""
        self._check_data()
        return {"checkpoint": self.checkpoint.digest, "data": self.checkpoint.data_digest, "split": self.split}

    def _check_data(self) -> None:
        from quadscape.data.info import data_info

        if data_info(self._data_path).digest != self.checkpoint.data_digest:
            raise StoreError(
                f"The checkpoint {self._checkpoint_path} was made with another data set than the one in "
                f"{self._data_path}; remove the checkpoint's directory and run the workflow again."
            )

    def get(self, dtype: torch.dtype, device: torch.device | str, chunk: int | None = None) -> Objective:
        """The objective in one precision.

        Args:
            dtype: Precision of the forward and backward passes; images are normalised in float64 and rounded once.
            device: Where they run.
            chunk: Examples per chunk; None: chosen by memory.

        Returns:
            The objective; the same one at every call for a precision.
        """
        if dtype not in self._loaded:
            from quadscape.data.sets import DataSet

            data = DataSet.load(self._data_path, device=device, dtype=dtype)
            self._loaded[dtype] = objective_for(self.checkpoint, data, self.split, dtype, device, chunk)
        objective = self._loaded[dtype]
        if chunk is not None:  # a plan with smaller chunks may have taken the place of the first one
            objective.chunk = chunk
        return objective
