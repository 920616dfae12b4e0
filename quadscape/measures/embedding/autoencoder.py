"""A small autoencoder with a plane in its middle: points → 32 → 2 → 32 → points."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quadscape.measures.embedding.declaration import HIDDEN, STEPS

_RATE = 0.01


@dataclass(frozen=True)
class Autoencoders:
    """Autoencoders of several sets of points, trained side by side and each for itself.

    Attributes:
        codes: Points of the plane, shape (sets, n, 2).
        decoded: What they are decoded to, shape (sets, n, d).
        weights: Of all layers, weight and bias in turn; shapes (sets, inputs, outputs) and (sets, 1, outputs).
        linear: Whether the hidden units have no activation.
    """

    codes: np.ndarray
    decoded: np.ndarray
    weights: tuple[np.ndarray, ...]
    linear: bool

    def decode(self, which: int, codes: np.ndarray) -> np.ndarray:
        """Points of the space that an autoencoder decodes points of its plane to.

        Args:
            which: Which one.
            codes: Shape (m, 2).

        Returns:
            Shape (m, d).
        """
        into, shift, out, last = (weight[which] for weight in self.weights[4:])
        hidden = codes @ into + shift
        return (hidden if self.linear else np.tanh(hidden)) @ out + last


def fit(points: np.ndarray, seeds: Sequence[int], steps: int = STEPS, linear: bool = False) -> Autoencoders:
    """Trains autoencoders on all points, in float64 on the CPU, with Adam and a rate that falls to 0 as a cosine.

    Args:
        points: Sets of points, of mean squared length 1 each, shape (sets, n, d).
        seeds: Seed of the initial parameters of each.
        steps: Steps of Adam, each on all points.
        linear: Without activation, so that the best plane is that of PCA.

    Returns:
        The autoencoders; equal input gives equal bits.
    """
    import torch

    from quadscape.network.models import derive_seed

    inputs = torch.from_numpy(np.ascontiguousarray(points))
    size = points.shape[2]
    # So that hidden units, codes and outputs begin at a size of about 1.
    shapes = (
        (size, HIDDEN, 1.0),
        (HIDDEN, 2, HIDDEN**-0.5),
        (2, HIDDEN, 2**-0.5),
        (HIDDEN, size, (HIDDEN * size) ** -0.5),
    )
    initial: list[list[torch.Tensor]] = [[] for _ in range(2 * len(shapes))]
    for seed in seeds:
        generator = torch.Generator().manual_seed(derive_seed(STEPS, seed))
        for layer, (rows, columns, scale) in enumerate(shapes):
            initial[2 * layer].append(scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64))
            initial[2 * layer + 1].append(torch.zeros(1, columns, dtype=torch.float64))
    weights = [torch.stack(of).requires_grad_() for of in initial]
    optimizer = torch.optim.Adam(weights, lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def activated(hidden: torch.Tensor) -> torch.Tensor:
        return hidden if linear else torch.tanh(hidden)

    def encode() -> torch.Tensor:
        return activated(inputs @ weights[0] + weights[1]) @ weights[2] + weights[3]

    def decode(codes: torch.Tensor) -> torch.Tensor:
        return activated(codes @ weights[4] + weights[5]) @ weights[6] + weights[7]

    for _ in range(steps):
        optimizer.zero_grad()
        # A sum over the sets, so that none changes what another learns.
        (decode(encode()) - inputs).square().sum(dim=2).mean(dim=1).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        codes = encode()
        decoded = decode(codes)
    return Autoencoders(codes.numpy(), decoded.numpy(), tuple(w.detach().numpy() for w in weights), linear)
