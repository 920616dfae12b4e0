"""Networks with few parameters whose training loss is a known function of θ, to test what is said about training.

`multi_well` is a factory for an experiment file:

    model: {factory: "quadscape.network.planted:multi_well", arguments: {dimensions: 2, noise: 15.0}}
    loss: squared_error
"""

import math
from itertools import product

import numpy as np
import torch
from torch import nn

from quadscape.errors import ModelError


class MultiWell(nn.Module):
    """Squared error that is V(θ) up to a constant on any training set, with noise of known form between examples.

    All C outputs are the same number h, so that the squared error ½ Σ_c (h − 1[c = y])² = ½C(h − 1/C)² + ½(1 − 1/C)
    does not depend on the label. With h = 1/C + √(2/C) √(V(θ) + f + s zₙ Σᵢθᵢ) it is

        ℓₙ(θ) = V(θ) + f + s zₙ Σᵢθᵢ + ½(1 − 1/C),   V(θ) = Σᵢ v(θᵢ),   v(t) = a(t² − 1)² + b t − min.

    zₙ is the mean of an example's normalised pixels, whose mean over the training split is 0 by that normalisation: the
    training loss has no noise term, and the gradient of a batch that of s z̄ along (1, …, 1), whatever θ is.

    v has a well near −1, the better one for b > 0, one near +1, and a barrier between them, where v' = 4at(t² − 1) + b
    vanishes. V has 2^d wells; the basin of gradient flow is known from the side of the barrier on which each θᵢ lies,
    as the coordinates do not know of each other.

    Attributes:
        position: θ, shape (d,).
    """

    def __init__(self, classes: int, dimensions: int, tilt: float, height: float, noise: float, floor: float) -> None:
        super().__init__()
        self._classes, self._tilt, self._height, self._noise, self._floor = classes, tilt, height, noise, floor
        roots = np.roots([4 * height, 0, -4 * height, tilt])
        if dimensions < 1 or height <= 0 or tilt <= 0 or np.iscomplex(roots).any() or len(set(roots.tolist())) < 3:
            raise ModelError(
                f"multi_well has dimensions {dimensions}, tilt {tilt:g} and height {height:g}; valid are at least one "
                "dimension, a height above 0, and a tilt above 0 that leaves two wells: below 1.54 times the height."
            )
        self._low, self._barrier, self._high = np.sort(roots.real).tolist()
        self._least = self._energy(self._low)
        self.position = nn.Parameter(torch.empty(dimensions).uniform_(-1.5, 1.5))

    def _energy(self, t: float) -> float:
        return self._height * (t * t - 1) ** 2 + self._tilt * t

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images (n, channels, height, width) to equal scores (n, classes)."""
        t = self.position
        energy = (self._height * (t * t - 1).square() + self._tilt * t - self._least).sum() + self._floor
        noise = self._noise * images.flatten(1).mean(dim=1) * t.sum()
        scores = 1 / self._classes + (2 / self._classes * (energy + noise)).sqrt()
        return scores[:, None].expand(-1, self._classes)

    def wells(self) -> np.ndarray:
        """The minima of the training loss, the best one first, float64, shape (2^d, d)."""
        return np.array(list(product((self._low, self._high), repeat=len(self.position))))

    def basin(self, theta: np.ndarray) -> int:
        """In which well gradient flow on the training loss ends.

        Args:
            theta: θ, shape (d,).

        Returns:
            Index into `wells`; −1 where θ is not finite.
        """
        if not np.isfinite(theta).all():
            return -1
        return int(sum(int(t > self._barrier) << power for power, t in enumerate(np.asarray(theta)[::-1])))

    def training_loss(self, theta: np.ndarray) -> float:
        """The training loss in closed form.

        Args:
            theta: θ, shape (d,).

        Returns:
            V(θ) + floor + ½(1 − 1/C).
        """
        energy = math.fsum(self._energy(float(t)) - self._least for t in theta)
        return energy + self._floor + 0.5 * (1 - 1 / self._classes)


def multi_well(
    input_shape: tuple[int, int, int],
    classes: int,
    dimensions: int = 2,
    tilt: float = 0.1,
    height: float = 0.25,
    noise: float = 15.0,
    floor: float = 30.0,
) -> MultiWell:
    """A planted loss with 2^dimensions wells, of which the one at about (−1, …, −1) is the best.

    Args:
        input_shape: Channels, height and width of an image.
        classes: Number of classes.
        dimensions: Number of parameters.
        tilt: b; two wells of one coordinate differ in loss by about 2b.
        height: a, about the barrier between two wells.
        noise: s, the noise between examples; zₙ has a standard deviation of 0.09 on the digits.
        floor: f, above what noise takes away anywhere a run goes: below 0 the loss of an example is not defined.

    Returns:
        The network, for `loss: squared_error`.
    """
    return MultiWell(classes, dimensions, tilt, height, noise, floor)
