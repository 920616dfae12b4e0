"""Reading a stored eigenbasis, for which nothing but Zarr is loaded."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quadscape.stage.finished import open_stage
from quadscape.stage.protocol import StageStore

STAGE = "eigenbasis"


class StoredBasis:
    """Eigenvalues and eigenvectors of a store."""

    def __init__(self, store: StageStore) -> None:
        self._store = store

    @cached_property
    def eigenvalues(self) -> np.ndarray:
        """λ₁ ≥ … ≥ λ_P, float64, shape (P,)."""
        return self._store.read("eigenvalues")

    @property
    def size(self) -> int:
        """P."""
        return int(self._store.array("eigenvectors").shape[0])

    def vectors(self, start: int, stop: int) -> np.ndarray:
        """Eigenvectors of consecutive indices.

        Args:
            start: First index, from 0 for λ₁.
            stop: One after the last.

        Returns:
            Columns, shape (P, stop − start), in the stored dtype.
        """
        return self._store.read("eigenvectors", (slice(None), slice(start, stop)))

    def select(self, indices: np.ndarray) -> np.ndarray:
        """Eigenvectors of any indices.

        Args:
            indices: Shape (k,), integers.

        Returns:
            Columns, shape (P, k), in the stored dtype.
        """
        indices = np.asarray(indices, dtype=np.int64)
        result = np.empty((self.size, len(indices)), dtype=self._store.array("eigenvectors").dtype)
        # Runs of consecutive indices are read at once: each read decodes whole inner chunks.
        runs = np.split(np.arange(len(indices)), np.flatnonzero(np.diff(indices) != 1) + 1) if len(indices) else []
        for run in runs:
            result[:, run] = self.vectors(int(indices[run[0]]), int(indices[run[-1]]) + 1)
        return result


class Eigenbasis(StoredBasis):
    """A finished eigenbasis.

    Attributes:
        verification: Value and threshold of every check, and the estimates behind them.
        zero_threshold: Numerical zero ε_λ: eigenvalues of smaller magnitude cannot be told from 0.
        invariances: Numbers of generators, and of negative eigenvalues with and without them.
        digest: Digest of its content.
    """

    def __init__(self, path: str | Path) -> None:
        stage = open_stage(path, STAGE)
        super().__init__(stage)
        self.verification: dict[str, Any] = stage.manifest["results"]["verification"]
        self.zero_threshold: float = self.verification["zero_threshold"]
        self.invariances: dict[str, Any] = stage.manifest["results"]["invariances"]
        self.digest = stage.digest

    @cached_property
    def generator_overlaps(self) -> np.ndarray:
        """Squared lengths of the eigenvectors' projections onto scale, then shift generators, shape (P, 2)."""
        return self._store.read("generator_overlaps")
