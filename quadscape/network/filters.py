"""Filter normalisation of directions (Li et al., arXiv 1712.09913).

A network with ReLU computes the same function when the weights into a layer are multiplied and those out of it divided
by one number, but the loss along a random direction of fixed length is then another one. So each filter of a direction
gets the length of that filter of θ. As in the authors' reference implementation (its setting `biasbn`), a filter is
what shares the first index of a weight with two or more axes: one output channel of a convolution, one row of a
linear layer. Directions are zero along parameters with fewer axes: biases, and scales and shifts of normalisation.
"""

from dataclasses import dataclass

import numpy as np

from quadscape.network.parameters import ParameterLayout


@dataclass(frozen=True)
class Filters:
    """The filters of a network.

    Attributes:
        index: For every index of θ the number of its filter, −1 for parameters that belong to none; int64, shape (P,).
        count: Number of filters.
    """

    index: np.ndarray
    count: int

    @classmethod
    def of(cls, layout: ParameterLayout) -> "Filters":
        """The filters of a layout.

        Args:
            layout: Where each parameter lies in θ.

        Returns:
            Its filters, numbered in the order of θ.
        """
        index, count = np.full(layout.size, -1, dtype=np.int64), 0
        for block in layout.blocks:
            if len(block.shape) >= 2:
                each = (block.stop - block.start) // block.shape[0]
                index[block.start : block.stop] = count + np.repeat(np.arange(block.shape[0]), each)
                count += block.shape[0]
        return cls(index, count)

    def norms(self, vector: np.ndarray) -> np.ndarray:
        """Length of every filter of a vector, float64, shape (count,)."""
        inside = self.index >= 0
        return np.sqrt(np.bincount(self.index[inside], np.square(vector[inside]), minlength=self.count))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of filters at every index of θ, 0 where there is none; shape (P,)."""
        return np.append(values, 0.0)[self.index]

    def normalised(self, direction: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """A direction whose filters are as long as those of θ.

        Args:
            direction: d, shape (P,).
            theta: θ, shape (P,).

        Returns:
            d_f ‖θ_f‖ / ‖d_f‖ in every filter f, 0 in a filter where d is 0 and along parameters that belong to none;
            shape (P,).
        """
        lengths = self.norms(direction)
        ratio = np.divide(self.norms(theta), lengths, out=np.zeros(self.count), where=lengths > 0)
        return direction * self.spread(ratio)
