"""The whole eigenbasis of a stored Hessian: the stage that computes and verifies it, and the reader.

H = QΛQᵀ with λ₁ ≥ … ≥ λ_P. On the CPU LAPACK decomposes the dense matrix, on CUDA torch.linalg.eigh does, once per
process and in the precision of the Hessian; the units then write blocks of columns of Q. Each qᵢ has its component of
largest magnitude positive. Further units compute the float64 products that the basis is verified against.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.linalg
import torch
from threadpoolctl import threadpool_limits

from quadscape.config import Curvature
from quadscape.curvature.hessian import HessianMatrix
from quadscape.curvature.verification import (
    DEFLATED_SEED,
    PROBE_SEED,
    PROBES,
    Evidence,
    deflated_indices,
    project_out,
    sampled_ranks,
    sign_probes,
    verify_eigenbasis,
)
from quadscape.errors import StageError, VerificationError
from quadscape.numerics import apply_numerics, current_threads, resolve_device
from quadscape.objective import CheckpointObjectives
from quadscape.stage import Arrays, Estimate, StageStore, open_stage
from quadscape.store import ArraySpec
from quadscape.versions import STAGE_VERSIONS

_UNIT_BYTES = 128 << 20
_TILE_BYTES = 512 << 20
_SMALLEST_BLOCK = 16
_LARGEST_BLOCK = 4096
_INNER = 16
_CHECK_BLOCK = 4
_DIVIDE_AND_CONQUER_LIMIT = 32_000
"""Up to this size LAPACK's divide and conquer is used. Beyond, the length of its workspace of 2P² exceeds a 32-bit
integer, and QR iteration takes its place: slower, but as orthogonal, which MRRR (`evr`) is not: it lost 100 eps already
at P = 60."""


def decompose(matrix: np.ndarray, driver: Literal["evd", "ev", "cuda"], threads: int) -> tuple[np.ndarray, np.ndarray]:
    """All eigenpairs of a dense symmetric matrix.

    Args:
        matrix: Shape (P, P), C-contiguous; its memory may be overwritten.
        driver: `evd` or `ev` (LAPACK), or `cuda`.
        threads: Threads of LAPACK; results depend on their number.

    Returns:
        Eigenvalues in descending order, float64, shape (P,), and eigenvectors as columns in the matrix's dtype.

    Raises:
        VerificationError: The matrix has entries that are not finite.
    """
    if not np.isfinite(np.einsum("ij->", matrix, dtype=np.float64)):
        raise VerificationError("The Hessian has entries that are not finite, so it has no eigenbasis.")
    if driver == "cuda":
        values, vectors = (part.cpu().numpy() for part in torch.linalg.eigh(torch.from_numpy(matrix).cuda()))
    else:
        with threadpool_limits(threads, user_api="blas"):
            # The transpose is the same symmetric matrix, in the column order in which LAPACK can work in place.
            values, vectors = scipy.linalg.eigh(matrix.T, driver=driver, overwrite_a=True, check_finite=False)
    return values[::-1].astype(np.float64), vectors[:, ::-1]


def fix_signs(vectors: np.ndarray) -> np.ndarray:
    """Columns with their first component of largest magnitude made positive; C-contiguous copy."""
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return np.ascontiguousarray(vectors * np.where(largest < 0, -1, 1).astype(vectors.dtype))


class _StoredBasis:
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

    def tiles(self, width: int) -> Iterator[tuple[int, np.ndarray]]:
        """The basis in order.

        Args:
            width: Columns of one tile; the last may have fewer.

        Yields:
            First index, and eigenvectors as columns, shape (P, at most width).
        """
        for start in range(0, self.size, width):
            yield start, self.vectors(start, min(self.size, start + width))


class Eigenbasis(_StoredBasis):
    """A finished eigenbasis.

    Attributes:
        verification: Value and threshold of every check, and the estimates behind them.
        zero_threshold: Numerical zero ε_λ: eigenvalues of smaller magnitude cannot be told from 0.
        digest: Digest of its content.
    """

    def __init__(self, path: str | Path) -> None:
        stage = open_stage(path, EigenbasisTask.name)
        super().__init__(stage)
        self.verification: dict[str, Any] = stage.manifest["results"]["verification"]
        self.zero_threshold: float = self.verification["zero_threshold"]
        self.digest = stage.digest


class EigenbasisTask:
    """The `eigenbasis` stage of one checkpoint.

    Attributes:
        name: Name of the stage.
        version: To be increased when its mathematics changes.
    """

    name = "eigenbasis"
    version = STAGE_VERSIONS["eigenbasis"]

    def __init__(
        self,
        hessian_path: str | Path,
        checkpoint_path: str | Path,
        data_path: str | Path,
        config: Curvature,
        device: str,
    ) -> None:
        self._hessian = HessianMatrix(hessian_path)
        self._objectives = CheckpointObjectives(checkpoint_path, data_path, "train")
        self._config = config
        self._device = device
        self._pairs: tuple[np.ndarray, np.ndarray] | None = None
        self._checked: np.ndarray | None = None

    @property
    def _size(self) -> int:
        return self._hessian.size

    def parameters(self) -> dict[str, Any]:
        """What determines the result."""
        seeds = {"probes": PROBES, "seed": PROBE_SEED, "deflated_seed": DEFLATED_SEED}
        return {
            **self._objectives.parameters(),
            "hessian": self._hessian.digest,
            "dtype": self._config.dtype,
            **seeds,
        }

    def plan(self) -> dict[str, Any]:
        """Threads, device, solver, columns of one unit."""
        threads, device = current_threads(), resolve_device(self._device)
        apply_numerics(threads)
        size, itemsize = self._size, np.dtype(self._config.dtype).itemsize
        objective = self._objectives.get(torch.float64, device)
        lapack = "evd" if size <= _DIVIDE_AND_CONQUER_LIMIT else "ev"
        fitting = min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, min(size // 8, _UNIT_BYTES // (size * itemsize))))
        return {
            "threads": threads,
            "device": device.type,
            "chunk": objective.chunk,
            "product_bytes": objective.product_bytes(),
            "driver": "cuda" if device.type == "cuda" else lapack,
            "block": fitting // _INNER * _INNER,
            "check_block": _CHECK_BLOCK,
            "tile": max(1, min(size, _TILE_BYTES // (size * itemsize))),
        }

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """Eigenvalues, eigenvectors, and the products that they are verified with."""
        size, block = self._size, plan["block"]
        checked = len(sampled_ranks(size)) + PROBES
        return [
            ArraySpec(
                "eigenvalues",
                (size,),
                "float64",
                ("index",),
                (size,),
                attributes={"description": "Eigenvalues of the Hessian, descending", "unit": "1"},
            ),
            ArraySpec(
                "eigenvectors",
                (size, size),
                self._config.dtype,
                ("parameter", "index"),
                (size, _INNER),
                shards=(size, block),
                attributes={"description": "Eigenvectors as columns", "unit": "1"},
            ),
            ArraySpec(
                "products",
                (size, checked),
                "float64",
                ("parameter", "check"),
                (size, plan["check_block"]),
                attributes={
                    "description": "Hessian times eigenvectors of sampled ranks, then deflated sign vectors",
                    "unit": "1",
                },
            ),
        ]

    def _blocks(self, plan: dict[str, Any]) -> int:
        return -(-self._size // plan["block"])

    def units(self, plan: dict[str, Any]) -> int:
        """Blocks of eigenvectors, then blocks of products."""
        checked = len(sampled_ranks(self._size)) + PROBES
        return self._blocks(plan) + -(-checked // plan["check_block"])

    def estimate(self, plan: dict[str, Any]) -> Estimate:
        """The basis on disk; in memory the matrix and what the solver needs beside it."""
        matrix = self._size**2 * np.dtype(self._config.dtype).itemsize
        copies = {"evd": 3, "ev": 1, "cuda": 2}[plan["driver"]]
        resident = (3 << 30) if plan["device"] == "cuda" else (1 << 30) + plan["product_bytes"]
        disk = matrix + 8 * self._size * (1 + len(sampled_ranks(self._size)) + PROBES)
        return Estimate(resident + copies * matrix, disk)

    def start(self, plan: dict[str, Any]) -> None:
        """Sets threads and determinism."""
        apply_numerics(plan["threads"])

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """One block of eigenvectors (the first with all eigenvalues), or one block of products."""
        blocks = self._blocks(plan)
        if unit >= blocks:
            self._pairs = None
            return self._products(unit - blocks, plan, store)
        if self._pairs is None:
            self._pairs = decompose(self._hessian.dense(self._config.dtype), plan["driver"], plan["threads"])
            self._check_repeated(store)
        values, vectors = self._pairs
        start = unit * plan["block"]
        stop = min(self._size, start + plan["block"])
        found: dict[str, tuple[tuple[slice | int, ...], np.ndarray]] = {
            "eigenvectors": ((slice(0, self._size), slice(start, stop)), fix_signs(vectors[:, start:stop]))
        }
        if unit == 0:
            found["eigenvalues"] = ((slice(0, self._size),), values)
        return found

    def _check_repeated(self, store: StageStore) -> None:
        """A resumed process must repeat the decomposition bit for bit, or blocks of two bases would be mixed."""
        assert self._pairs is not None
        stored = store.read("eigenvalues")  # NaN until unit 0 is committed
        if not np.isnan(stored).all() and not np.array_equal(stored, self._pairs[0]):
            raise StageError(
                f"The decomposition in {store.directory} was begun on a machine that rounds differently; remove that "
                "directory and run the workflow again."
            )

    def _products(self, number: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        vectors = self._checked_vectors(store)
        start = number * plan["check_block"]
        stop = min(vectors.shape[1], start + plan["check_block"])
        objective = self._objectives.get(torch.float64, plan["device"], plan["chunk"])
        theta = self._objectives.theta
        columns = [objective.hessian_product(theta, vector).numpy() for vector in vectors[:, start:stop].T]
        return {"products": ((slice(0, self._size), slice(start, stop)), np.stack(columns, axis=1))}

    def _checked_vectors(self, store: StageStore) -> np.ndarray:
        """Eigenvectors of sampled ranks, then deflated sign vectors; float64."""
        if self._checked is None:
            basis = _StoredBasis(store)
            signs = sign_probes(self._size, PROBES, DEFLATED_SEED)
            deflated = project_out(basis.select(deflated_indices(basis.eigenvalues)), signs)
            sampled = basis.select(sampled_ranks(self._size)).astype(np.float64)
            self._checked = np.concatenate([sampled, deflated], axis=1)
        return self._checked

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """Size, and under `verification` every check with its threshold."""
        vectors, products = self._checked_vectors(store), store.read("products")
        sampled = len(sampled_ranks(self._size))
        verification = verify_eigenbasis(
            _StoredBasis(store),
            self._hessian.results["verification"],
            Evidence(sign_probes(self._size, PROBES, PROBE_SEED), self._hessian.products()),
            Evidence(vectors[:, :sampled], products[:, :sampled]),
            Evidence(vectors[:, sampled:], products[:, sampled:]),
            self._config.dtype,
            plan["device"],
            plan["tile"],
        )
        return {"size": self._size, "verification": verification}
