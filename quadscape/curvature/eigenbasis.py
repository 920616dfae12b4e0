"""The whole eigenbasis of a stored Hessian: the stage that computes and verifies it, and the reader.

H = QΛQᵀ with λ₁ ≥ … ≥ λ_P, each qᵢ with its component of largest magnitude positive, by one of the ways of
`quadscape.curvature.eigensolver` and in the precision of the Hessian. Further units compute the float64 products that
the basis is verified against, and the overlaps of the eigenvectors with the network's invariances.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadscape.config.sections import Curvature
from quadscape.curvature.costs import SIGN_PROBES, eigenbasis_bytes
from quadscape.curvature.eigensolver import Solver, basis_specs, make_solver, plan_solver
from quadscape.curvature.hessian import HessianMatrix
from quadscape.curvature.invariances import (
    KINDS,
    Generators,
    combined,
    find_generators,
    joined,
    negatives_without,
    overlaps,
)
from quadscape.curvature.large_products import release_device_memory
from quadscape.curvature.projections import HOST_MEMORY
from quadscape.curvature.solver_plan import NOMINAL_RATES
from quadscape.curvature.stored_basis import STAGE, StoredBasis
from quadscape.curvature.strips import flops_per_example
from quadscape.curvature.verification import (
    DEFLATED_SEED,
    FORCED,
    FORCED_SEED,
    PROBE_SEED,
    SPOT_SEED,
    BasisEvidence,
    Evidence,
    Forced,
    Spots,
    deflated_indices,
    project_out,
    rounded,
    sampled_ranks,
    sign_probes,
    spot_columns,
    verify_eigenbasis,
)
from quadscape.network.objective import CheckpointObjectives
from quadscape.numerics import apply_numerics, current_threads, device_memory_explained, halved, resolve_device
from quadscape.provenance.versions import STAGE_VERSIONS
from quadscape.stage.protocol import Arrays, Needs, StageStore
from quadscape.store import ArraySpec

_TILE_BYTES = 256 << 20
_CHECK_BLOCK = 4
_LEAST_CHECK_BYTES = 512 << 20


def disk_bytes(specs: Sequence[ArraySpec]) -> int:
    """Disk that the stage takes while it runs.

    Args:
        specs: All its arrays.

    Returns:
        Bytes; of the strips of a reduction only triangles are stored.
    """
    triangles = {"reflectors", "updates"}
    return sum(spec.nbytes // 2 if spec.name in triangles else spec.nbytes for spec in specs)


class EigenbasisTask:
    """The `eigenbasis` stage of one checkpoint.

    Attributes:
        name: Name of the stage.
        version: To be increased when its mathematics changes.
    """

    name = STAGE
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
        self._found: list[Generators] | None = None

    @property
    def _size(self) -> int:
        return self._hessian.size

    def parameters(self) -> dict[str, Any]:
        """What determines the result."""
        seeds = {"probes": SIGN_PROBES, "seed": PROBE_SEED, "deflated_seed": DEFLATED_SEED}
        seeds |= {"spot_seed": SPOT_SEED, "forced_seed": FORCED_SEED}
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
            "generators": [part.count for part in self._generators(device, objective.chunk)],
            "tile": max(1, min(size, _TILE_BYTES // (size * itemsize))),
        }

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """Eigenvalues, eigenvectors, what the solver needs on its way, and the products that they are verified with."""
        size, checked, generators = self._size, self._checked_count(plan), sum(plan["generators"])
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
                    "description": "Hessian times eigenvectors of sampled ranks, deflated sign vectors, single "
                    "coordinates, and generators of invariances",
                    "unit": "1",
                },
            ),
            ArraySpec(
                "generator_overlaps",
                (size, len(KINDS)),
                "float64",
                ("index", "kind"),
                (plan["tile"], len(KINDS)),
                attributes={
                    "description": "Squared length of each eigenvector's projection onto scale, then shift generators",
                    "unit": "1",
                },
            ),
            ArraySpec(
                "generator_components",
                (size, max(1, generators)),
                "float64",
                ("index", "generator"),
                (plan["tile"], max(1, generators)),
                scratch=True,
            ),
        ]

    def _generators(self, device: torch.device | str, chunk: int) -> list[Generators]:
        if self._found is None:
            objective = self._objectives.get(torch.float64, device, chunk)
            self._found = find_generators(objective, self._objectives.theta)
        return self._found

    def _checked_count(self, plan: dict[str, Any]) -> int:
        kinds = sum(count > 0 for count in plan["generators"])
        blocks = len(self._objectives.checkpoint.layout.blocks)
        return len(sampled_ranks(self._size)) + SIGN_PROBES + blocks + FORCED * kinds

    def _solver_of(self, plan: dict[str, Any]) -> Solver:
        if self._solver is None:
            self._solver = make_solver(self._size, self._config.dtype, plan, self._hessian.fill)
        return self._solver

    def _check_bytes(self, plan: dict[str, Any]) -> int | None:
        """Memory for QᵀQ: most of a GPU's, and of a host's half of what the matrix took, which is free again."""
        if plan["device"] == "cuda":
            return None
        return max(_LEAST_CHECK_BYTES, min(HOST_MEMORY, self._size**2 * np.dtype(self._config.dtype).itemsize // 2))

    def _product_units(self, plan: dict[str, Any]) -> int:
        return -(-self._checked_count(plan) // plan["check_block"])

    def _overlap_units(self, plan: dict[str, Any]) -> int:
        return -(-self._size // plan["tile"])

    def units(self, plan: dict[str, Any]) -> int:
        """The solver's, then tiles of overlaps, then blocks of products."""
        return self._solver_of(plan).units + self._overlap_units(plan) + self._product_units(plan)

    def estimate(self, plan: dict[str, Any]) -> Needs:
        """Memory and disk of the solver, and its time at nominal rates."""
        solver = self._solver_of(plan)
        rates = NOMINAL_RATES[plan["device"]]
        seconds = solver.seconds(rates)
        seconds += [self._size * plan["tile"] * 4 / 1e9] * self._overlap_units(plan)
        seconds += [plan["check_block"] * plan["product_flops"] / rates.float64] * self._product_units(plan)
        memory = eigenbasis_bytes(plan["device"], plan["solver"], solver.memory_bytes(), plan["product_bytes"])
        return Needs(memory, disk_bytes(self.arrays(plan)), sum(seconds), seconds, solver.method)

    def start(self, plan: dict[str, Any]) -> None:
        """Sets threads and determinism."""
        apply_numerics(plan["threads"])

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """One unit of the solver, or one block of products."""
        solver = self._solver_of(plan)
        if unit < solver.units:
            with device_memory_explained(f"the eigenproblem of {self._size} columns"):
                return solver.compute(unit, store)
        unit -= solver.units
        # Its memory is free before the objective's images are loaded, or they would lie in the matrix's segment.
        self._solver = None
        del solver
        release_device_memory()
        if unit < self._overlap_units(plan):
            return self._overlaps(unit, plan, store)
        return self._products(unit - self._overlap_units(plan), plan, store)

    def _overlaps(self, number: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        rows = slice(number * plan["tile"], min(self._size, (number + 1) * plan["tile"]))
        vectors = StoredBasis(store).vectors(rows.start, rows.stop).astype(np.float64)
        squares = np.zeros((rows.stop - rows.start, len(KINDS)))
        components = []
        for kind, part in enumerate(self._generators(plan["device"], plan["chunk"])):
            along = (part.vectors.T @ vectors).T
            squares[:, kind] = overlaps(along, part.gram)
            components.append(along)
        # An array has at least one column; it is left empty where there are no generators.
        every = np.concatenate(components, axis=1) if sum(plan["generators"]) else np.zeros((len(squares), 1))
        return {
            "generator_overlaps": ((rows, slice(0, len(KINDS))), squares),
            "generator_components": ((rows, slice(0, every.shape[1])), every),
        }

    def _products(self, number: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        vectors = self._checked_vectors(plan, store)
        start = number * plan["check_block"]
        stop = min(vectors.shape[1], start + plan["check_block"])
        objective = self._objectives.get(torch.float64, plan["device"], plan["chunk"])
        theta = self._objectives.theta
        with device_memory_explained("a product with the Hessian"):
            columns = [objective.hessian_product(theta, vector).numpy() for vector in vectors[:, start:stop].T]
        return {"products": ((slice(0, self._size), slice(start, stop)), np.stack(columns, axis=1))}

    def smaller(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        """Half of the chunks of examples in products; the solver needs what it needs."""
        if self._solver is not None:
            return None
        chunk = halved({"chunk": plan["chunk"]})
        return None if chunk is None else plan | chunk

    def _checked_vectors(self, plan: dict[str, Any], store: StageStore) -> np.ndarray:
        """Eigenvectors of sampled ranks, deflated sign vectors, unit vectors, sums of generators; float64."""
        if self._checked is None:
            basis = StoredBasis(store)
            signs = sign_probes(self._size, SIGN_PROBES, DEFLATED_SEED)
            deflated = project_out(basis.select(deflated_indices(basis.eigenvalues)), signs)
            sampled = basis.select(sampled_ranks(self._size)).astype(np.float64)
            spots = spot_columns(self._objectives.checkpoint.layout)
            units = np.zeros((self._size, len(spots)))
            units[spots, np.arange(len(spots))] = 1.0
            sums = [vectors for vectors, _ in self._combined(plan).values()]
            self._checked = np.concatenate([sampled, deflated, units, *sums], axis=1)
        return self._checked

    def _combined(self, plan: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Random sums of the generators of each kind that there is, with the diagonals of their A."""
        parts = self._generators(plan["device"], plan["chunk"])
        return {p.kind: combined(p, sign_probes(p.count, FORCED, FORCED_SEED)) for p in parts if p.count}

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """Size, under `verification` every check with its threshold, and what the invariances are."""
        vectors, products = self._checked_vectors(plan, store), store.read("products")
        spots = spot_columns(self._objectives.checkpoint.layout)
        sampled = len(sampled_ranks(self._size))
        ends = np.cumsum([sampled, SIGN_PROBES, len(spots)])
        generators = self._generators(plan["device"], plan["chunk"])
        deviations: dict[str, float] = {part.kind: part.deviation for part in generators}
        objective = self._objectives.get(torch.float64, plan["device"], plan["chunk"])
        with device_memory_explained("the gradient"):
            gradient = objective.gradient(self._objectives.theta)
        release_device_memory()  # of chunks: the check of orthogonality takes most of a GPU
        forced = {}
        for number, (kind, (sums, exponents)) in enumerate(self._combined(plan).items()):
            columns = slice(ends[2] + FORCED * number, ends[2] + FORCED * (number + 1))
            expected = -exponents * gradient.numpy()[:, None]
            forced[kind] = Forced(sums, products[:, columns], expected, deviations[kind])
        stored = np.concatenate([self._hessian.columns(int(j), int(j) + 1) for j in spots], axis=1)
        basis = StoredBasis(store)
        evidence = BasisEvidence(
            Evidence(sign_probes(self._size, SIGN_PROBES, PROBE_SEED), self._hessian.products()),
            Evidence(vectors[:, :sampled], products[:, :sampled]),
            Evidence(vectors[:, sampled : ends[1]], products[:, sampled : ends[1]]),
            Spots(stored.astype(np.float64), products[:, ends[1] : ends[2]]),
            forced,
        )
        verification = verify_eigenbasis(
            basis,
            self._hessian.results["verification"],
            evidence,
            self._config.dtype,
            plan["device"],
            plan["tile"],
            self._check_bytes(plan),
        )
        cut = verification["zero_threshold"]
        every = joined(generators)
        components = store.read("generator_components", (slice(None), slice(0, every.shape[1])))
        gram = (every.T @ every).toarray()
        invariances: dict[str, Any] = {
            **{part.kind: {"generators": part.count, "deviation": rounded(part.deviation)} for part in generators},
            "negative": int((basis.eigenvalues < -cut).sum()),
            "negative_without_generators": negatives_without(basis.eigenvalues, components, gram, cut),
        }
        return {"size": self._size, "verification": verification, "invariances": invariances}
