"""Columns of the exact Hessian, a block at a time."""

from functools import cached_property

import torch
from torch.utils.flop_counter import FlopCounterMode

from quadscape.objective import Objective, Vector


class HessianEngine:
    """Columns of ∇²L(θ) by plain double backward.

    Per data chunk the graph of the gradient is built once and shared by all columns of a block; each column is one
    vector–Jacobian product of it. The graph starts, and the products stop, at the first parameter tensor that the
    block's lower triangle needs.

    Attributes:
        objective: L, in the precision of the computation.
        theta: Where, shape (P,), float64.
        plan: Tile sizes, as of `plan_for`.
    """

    def __init__(self, objective: Objective, theta: Vector, plan: dict[str, int] | None = None) -> None:
        self.objective = objective
        self.theta = torch.as_tensor(theta)
        self.plan = self.plan_for(objective) if plan is None else plan

    @staticmethod
    def plan_for(objective: Objective) -> dict[str, int]:
        """Tile sizes; they depend on network, shapes, dtype and device, never on timing."""
        return {"chunk": objective.chunk}

    def columns(self, start: int, stop: int) -> torch.Tensor:
        """A block of columns, from its first row on.

        Args:
            start: First column, and first row.
            stop: One after the last column.

        Returns:
            Rows start … P − 1 of columns start … stop − 1: shape (P − start, stop − start), float64, on the CPU. Sums
            within a data chunk are in the objective's dtype, sums over chunks in float64.
        """
        objective, chunk = self.objective, self.plan["chunk"]
        parameters = objective.parameters(self.theta)
        later = [block for block in objective.layout.blocks if block.stop > start]
        own = [block for block in later if block.start < stop]
        total = torch.zeros(stop - start, objective.size - start, dtype=torch.float64, device=objective.device)
        for images, labels in zip(objective.images.split(chunk), objective.labels.split(chunk), strict=True):
            leaves = {name: value.clone() for name, value in parameters.items()}
            for block in later:
                leaves[block.name].requires_grad_()
            loss = objective.chunk_loss(leaves, images, labels)
            gradients = torch.autograd.grad(
                loss, [leaves[block.name] for block in own], create_graph=True, allow_unused=True
            )
            inputs = [leaves[block.name] for block in later]
            for block, gradient in zip(own, gradients, strict=True):
                if gradient is None or not gradient.requires_grad:
                    continue  # the loss does not depend on it, or at most linearly: zero columns
                unit = torch.zeros_like(gradient)
                for column in range(max(start, block.start), min(stop, block.stop)):
                    unit.view(-1)[column - block.start] = 1.0
                    rows = torch.autograd.grad(
                        gradient, inputs, unit, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                    unit.view(-1)[column - block.start] = 0.0
                    flat = torch.cat([row.reshape(-1) for row in rows])
                    total[column - start] += flat[start - later[0].start :]
        return (total / objective.count).T.contiguous().cpu()

    def flops(self, start: int, stop: int) -> float:
        """Floating-point operations of matrix products and convolutions for a block, at most (no layer is left out)."""
        graph, column = self._flops_per_example
        return self.objective.count * (graph + (stop - start) * column)

    @cached_property
    def _flops_per_example(self) -> tuple[int, int]:
        """Of the gradient's graph, and of one product with it, counted on one example."""
        objective = self.objective
        leaves = {name: p.clone().requires_grad_() for name, p in objective.parameters(self.theta).items()}
        with FlopCounterMode(display=False) as graph:
            loss = objective.chunk_loss(leaves, objective.images[:1], objective.labels[:1])
            gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)
        known = [gradient for gradient in gradients if gradient is not None and gradient.requires_grad]
        with FlopCounterMode(display=False) as column:
            if known:
                torch.autograd.grad(known, list(leaves.values()), list(map(torch.ones_like, known)), allow_unused=True)
        return graph.get_total_flops(), column.get_total_flops()

    def memory_bytes(self, columns: int) -> int:
        """Estimated peak of the device's memory for so many columns, beside network and data."""
        return 2 * self.plan["chunk"] * self.objective.graph_bytes_per_example() + 16 * columns * self.objective.size
