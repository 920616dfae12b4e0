"""Which examples a training step sees."""

import numpy as np

from quadscape.errors import ConfigError

_BATCH_STREAM = 0xBA7C
_INDEPENDENT_STREAM = 0x1BA7


class Batches:
    """The batches of a run, by random access: from the seed and the number of the step or epoch alone.

    `reshuffled`: a fresh permutation every epoch. Under `wrap` the permutations are one endless stream that is cut into
    batches; under `keep` and `drop` every epoch starts a new batch, and its N mod B left-over examples are a smaller
    batch or unused.

    `independent`: each batch is drawn anew from all examples, none twice within a batch. The mean over a batch then has
    covariance (1 − B/N) S²/B, S² over N−1, and no two batches know of each other; `remainder` says nothing.

    Attributes:
        count: Number of examples, N.
        batch_size: Examples of a full batch, B.
        remainder: `wrap`, `keep` or `drop`.
        sampling: `reshuffled` or `independent`.
    """

    def __init__(self, count: int, batch_size: int, remainder: str, seed: int, sampling: str = "reshuffled") -> None:
        if batch_size > count:
            raise ConfigError(
                f"batch_size is {batch_size}, but there are only {count} training images; valid are 1 to {count}."
            )
        self.count, self.batch_size, self.remainder, self.sampling = count, batch_size, remainder, sampling
        self._seed = seed
        self._permutations: dict[int, np.ndarray] = {}

    def permutation(self, epoch: int) -> np.ndarray:
        """The order of the examples in one epoch.

        Args:
            epoch: Counted from 0.

        Returns:
            A permutation of 0 … N−1, int64.
        """
        if epoch not in self._permutations:
            sequence = np.random.SeedSequence([_BATCH_STREAM, self._seed, epoch])
            order = np.random.Generator(np.random.PCG64(sequence)).permutation(self.count).astype(np.int64)
            # A batch reaches over two epochs at most.
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1} | {epoch: order}
        return self._permutations[epoch]

    @property
    def smallest(self) -> int:
        """Size of the smallest batch."""
        if self.remainder == "keep" and self.sampling == "reshuffled":
            return self.count % self.batch_size or self.batch_size
        return self.batch_size

    def batch(self, iteration: int) -> np.ndarray:
        """Examples of one step.

        Args:
            iteration: Number of steps taken before it.

        Returns:
            Indices into the training split, int64; B of them, except for a smaller batch under `keep`.
        """
        size = self.batch_size
        if self.sampling == "independent":
            sequence = np.random.SeedSequence([_INDEPENDENT_STREAM, self._seed, iteration])
            generator = np.random.Generator(np.random.PCG64(sequence))
            return generator.choice(self.count, size, replace=False).astype(np.int64)
        if self.remainder == "wrap":
            epoch, start = divmod(iteration * size, self.count)
            first = self.permutation(epoch)[start : start + size]
            return (
                np.concatenate([first, self.permutation(epoch + 1)[: size - len(first)]])
                if len(first) < size
                else first
            )
        per_epoch = self.count // size if self.remainder == "drop" else -(-self.count // size)
        epoch, position = divmod(iteration, per_epoch)
        return self.permutation(epoch)[position * size : (position + 1) * size]
