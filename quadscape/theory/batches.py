"""What batches know of each other: the autocovariance of gradient noise, for every way of drawing batches.

With g_n of N examples, c = (1/N) Σ(g_n − g)², S² = cN/(N − 1), batches of b_t examples and no example twice within an
epoch, the noises of two steps of one epoch have covariance S²(δ/b_t − 1/N), those of two epochs none. What a linear
filter makes of such noise has, on average over the phase of the epoch, the variance that it makes of stationary noise
with the autocovariance averaged over that phase: which is what stands here.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How batches are drawn.

    Attributes:
        examples: N, 2 or more.
        batch: B, 1 to N.
        reshuffled: Whether every epoch is a permutation of all examples; otherwise each batch is drawn anew, no example
            twice within it.
        remainder: Of a permutation that is no multiple of B: `wrap` (permutations are one stream, cut into batches),
            `keep` (a smaller batch) or `drop`.
    """

    examples: int
    batch: int
    reshuffled: bool = True
    remainder: str = "wrap"

    def __post_init__(self) -> None:
        if self.examples < 2:
            raise ValueError(f"{self.examples} examples have no variance; 2 or more are needed")
        if not 1 <= self.batch <= self.examples:
            raise ValueError(f"batches of {self.batch} of {self.examples} examples; valid are 1 to {self.examples}")
        if self.remainder not in {"wrap", "keep", "drop"}:
            raise ValueError(f"remainder is '{self.remainder}'; valid are wrap, keep and drop")

    @property
    def steps(self) -> float:
        """Steps of an epoch, N/B without their fraction under `drop`, with it under `wrap`, rounded up under `keep`."""
        if self.remainder == "drop":
            return float(self.examples // self.batch)
        return float(-(-self.examples // self.batch)) if self.remainder == "keep" else self.examples / self.batch

    @property
    def sizes(self) -> np.ndarray:
        """Examples of the batches of an epoch that begins with a batch, int64; under `wrap` of whole ones."""
        whole, rest = divmod(self.examples, self.batch)
        kept = [rest] * (self.remainder == "keep" and rest > 0)
        return np.array([self.batch] * whole + kept, dtype=np.int64)

    @property
    def spread(self) -> float:
        """S²/c = N/(N − 1)."""
        return self.examples / (self.examples - 1)

    @property
    def variance(self) -> float:
        """Variance of the noise of a step, averaged over an epoch, in units of c."""
        if not self.reshuffled:
            return self.spread * (1 / self.batch - 1 / self.examples)
        # A batch of two epochs is of two parts that do not know of each other.
        own = self._together(0) if self.remainder == "wrap" else 1.0
        return self.spread * (float(np.mean(1 / self.sizes)) - own / self.examples)

    @cached_property
    def shared(self) -> np.ndarray:
        """w_k: autocovariances of lags k ≥ 1 are −S²w_k/N.

        w_k = 1 − k/K, the share of steps that have their k-th successor in the same epoch. Under `wrap` a batch may
        lie in two epochs, and w_k is the mean of Σₑ (share of the one batch in epoch e)(share of the other): the same
        but for the last two lags.

        Returns:
            From lag 1 on, float64; empty for independent batches.
        """
        if not self.reshuffled:
            return np.empty(0)
        if self.remainder != "wrap" or self.examples % self.batch == 0:
            steps = round(self.steps)
            return 1 - np.arange(1, steps) / steps
        count, size = self.examples, self.batch
        whole = count // size
        found = 1 - np.arange(1, whole + 2) * size / count
        for lag in (whole, whole + 1):
            found[lag - 1] = self._together(lag)
        return found

    def _together(self, lag: int) -> float:
        """W of one lag under `wrap`, by the beginnings of batches that occur, multiples of gcd(N, B)."""
        count, size = self.examples, self.batch
        begin = np.arange(0, count, math.gcd(count, size), dtype=np.int64)
        total = np.zeros(len(begin))
        for epoch in (0, 1, 2):
            shares = []
            for first in (begin, begin + lag * size):
                inside = np.minimum(first + size, (epoch + 1) * count) - np.maximum(first, epoch * count)
                shares.append(np.maximum(inside, 0) / size)
            total += shares[0] * shares[1]
        return float(total.mean())

    @property
    def surplus(self) -> float:
        """Sum of the autocovariances of all lags, both signs, in units of S².

        It is what flat directions see in the long run: 0 under `wrap`, as every example comes equally often.
        """
        if not self.reshuffled:
            return 1 / self.batch - 1 / self.examples
        if self.remainder == "wrap" or self.examples % self.batch == 0:
            return 0.0
        # Σ_k (1 − |k|/K) = K.
        return float(np.mean(1 / self.sizes)) - round(self.steps) / self.examples
