"""The whole eigenbasis of a stored Hessian: the stage that computes and verifies it, and the reader.

H = QΛQᵀ with λ₁ ≥ … ≥ λ_P, each qᵢ with its component of largest magnitude positive, by one of the ways of
`quadscape.curvature.eigensolver` and in the precision of the Hessian. Further units compute the float64 products that
the basis is verified against.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadscape.config import Curvature
from quadscape.curvature.eigensolver import NOMINAL_RATES, Solver, basis_specs, make_solver, plan_solver
from quadscape.curvature.hessian import HessianMatrix
from quadscape.curvature.strips import flops_per_example
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
from quadscape.numerics import apply_numerics, current_threads, resolve_device
from quadscape.objective import CheckpointObjectives
from quadscape.stage import Arrays, Estimate, StageStore, open_stage
from quadscape.store import ArraySpec
from quadscape.versions import STAGE_VERSIONS

_TILE_BYTES = 512 << 20
_CHECK_BLOCK = 4


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
        self._solver: Solver | None = None
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
        """Threads, device, the solver and its units."""
        threads, device = current_threads(), resolve_device(self._device)
        apply_numerics(threads)
        size, itemsize = self._size, np.dtype(self._config.dtype).itemsize
        objective = self._objectives.get(torch.float64, device)
        return {
            **plan_solver(size, self._config.dtype, device),
            "threads": threads,
            "device": device.type,
            "chunk": objective.chunk,
            "product_bytes": objective.product_bytes(),
            "product_flops": objective.count * sum(flops_per_example(objective, self._objectives.theta)) * 2,
            "check_block": _CHECK_BLOCK,
            "tile": max(1, min(size, _TILE_BYTES // (size * itemsize))),
        }

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """Eigenvalues, eigenvectors, what the solver needs on its way, and the products that they are verified with."""
        size = self._size
        checked = len(sampled_ranks(size)) + PROBES
        return [
            *basis_specs(size, self._config.dtype, plan["block"]),
            *self._solver_of(plan).scratch,
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

    def _solver_of(self, plan: dict[str, Any]) -> Solver:
        if self._solver is None:
            self._solver = make_solver(self._size, self._config.dtype, plan, self._hessian.fill)
        return self._solver

    def _product_units(self, plan: dict[str, Any]) -> int:
        return -(-(len(sampled_ranks(self._size)) + PROBES) // plan["check_block"])

    def units(self, plan: dict[str, Any]) -> int:
        """The solver's, then blocks of products."""
        return self._solver_of(plan).units + self._product_units(plan)

    def estimate(self, plan: dict[str, Any]) -> Estimate:
        """Memory and disk of the solver, and its time at nominal rates."""
        solver = self._solver_of(plan)
        disk = sum(spec.nbytes for spec in self.arrays(plan))
        # What is stored of V and W are triangles.
        disk -= sum(spec.nbytes // 2 for spec in solver.scratch if spec.shape == (self._size, self._size))
        rates = NOMINAL_RATES[plan["device"]]
        seconds = solver.seconds(rates)
        seconds += [plan["check_block"] * plan["product_flops"] / rates.float64] * self._product_units(plan)
        if plan["device"] == "cuda":
            # The matrix is on the GPU; the host holds strips, and a library's results.
            host = (3 << 30) + (solver.memory_bytes() if plan["solver"] == "cusolver" else 8 * _TILE_BYTES)
        else:
            host = (1 << 30) + max(plan["product_bytes"], solver.memory_bytes())
        return Estimate(host, disk, sum(seconds), seconds, solver.method)

    def start(self, plan: dict[str, Any]) -> None:
        """Sets threads and determinism."""
        apply_numerics(plan["threads"])

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """One unit of the solver, or one block of products."""
        solver = self._solver_of(plan)
        if unit < solver.units:
            return solver.compute(unit, store)
        self._solver = None  # and its memory
        return self._products(unit - solver.units, plan, store)

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
