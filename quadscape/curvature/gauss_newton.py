"""The two parts of the Hessian: the Gauss–Newton matrix G = (1/N) Σₙ JₙᵀHₙJₙ, and the remainder R = H − G.

Jₙ holds the derivatives of the C outputs of example n, Hₙ = FₙFₙᵀ is the Hessian of its loss in them. G is therefore
AᵀA/N with the rows AₙFₙᵀJₙ of all examples: per-example Jacobians, then pure matrix products (SYRK). R carries the
curvature of the network itself, weighted with the errors of its outputs.

Counted at P = 104,234 (ResNet9, w = 2), N = 50,000 and C = 10: the products take N·C·P² = 5.4e15 operations for the
lower triangle, all Jacobians (N times one forward and C backward passes) 1.3e13. The matrix A of N·C rows fits nowhere,
so the Jacobians are computed anew for every run of columns that is accumulated at once. They run slower than products
(5 against 34 GFLOP/s on one core at w = 1), so runs are as wide as memory allows, and are cut to a minute's work only
as long as the products of a run count 32 times the operations of its Jacobians: a fifth of the time. Accumulated are,
in float64, 1 GiB on a CPU and an eighth of a GPU's memory: five runs at that size on 80 GB.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch.func import vjp, vmap

from quadscape.config.sections import Curvature
from quadscape.curvature.costs import (
    ACCUMULATED_BYTES,
    ROW_BYTES,
    SIGN_PROBES,
    column_block,
    lower_entries,
    resident_bytes,
    rows_bytes,
    run_bytes,
)
from quadscape.curvature.divide_and_conquer import tridiagonal_eigenvalues
from quadscape.curvature.hessian import HessianMatrix
from quadscape.curvature.large_products import release_device_memory, square
from quadscape.curvature.solver_plan import LIBRARY_LIMIT, leaf_of, spectrum_bytes, streamed_plan
from quadscape.curvature.strips import (
    UNIT_FLOPS,
    StripMatrix,
    check_finite,
    flops_per_example,
    matrix_spec,
    multiply_probes,
    probe_block,
    product_specs,
)
from quadscape.curvature.symmetric_product import checked_product
from quadscape.curvature.tridiagonal_reduction import blas_threads, tridiagonal_form
from quadscape.curvature.verification import (
    PROBE_SEED,
    Checks,
    sign_probes,
    solver_growth,
    verify_hessian,
)
from quadscape.errors import VerificationError
from quadscape.network.objective import CheckpointObjectives, Objective, Parameters, Vector
from quadscape.numerics import (
    apply_numerics,
    current_threads,
    device_memory_explained,
    halved,
    is_failure,
    resolve_device,
)
from quadscape.provenance.versions import STAGE_VERSIONS
from quadscape.stage.finished import open_stage
from quadscape.stage.protocol import Arrays, Needs, StageStore
from quadscape.store import ArraySpec

_STAGE = "gauss_newton"
_CUDA_FRACTION = 1 / 8
_LIBRARY_LIMIT = {**LIBRARY_LIMIT, "cpu": 1 << 62}
"""Largest matrix whose eigenvalues are left to a library: without vectors LAPACK's workspace is short."""
_COPIED_BYTES = 256 << 20
_JACOBIAN_SHARE = 32
"""The products of a run of columns may count so many times the operations of its Jacobians, however long that takes."""


# ---------------------------------------------------------------------------------------------------------------------
# Rows and columns


def output_factor(outputs: torch.Tensor, loss: str) -> torch.Tensor:
    """A square root F of every example's Hessian of the loss in its outputs: H = FFᵀ.

    Args:
        outputs: Class scores, shape (n, C).
        loss: Loss of one example, as in `quadscape.network.losses`.

    Returns:
        Float64, shape (n, C, C).
    """
    count, classes = outputs.shape
    identity = torch.eye(classes, dtype=torch.float64, device=outputs.device).expand(count, classes, classes)
    if loss == "squared_error":
        return identity
    # diag(p) − ppᵀ = diag(s)(I − ssᵀ)diag(s) with s = √p, and I − ssᵀ is a projection, so equal to its square.
    root = torch.softmax(outputs.double(), dim=1).sqrt()
    return root[:, :, None] * (identity - root[:, :, None] * root[:, None, :])


class GaussNewtonEngine:
    """Columns of G by per-example Jacobians.

    Attributes:
        objective: L, in the precision of the computation.
        theta: Where, shape (P,), float64.
        examples: Examples whose Jacobians are in memory at once.
    """

    def __init__(self, objective: Objective, theta: Vector, examples: int) -> None:
        self.objective = objective
        self.theta = theta
        self.examples = examples

    def rows(self, parameters: Parameters, images: torch.Tensor) -> torch.Tensor:
        """FₙᵀJₙ of some examples.

        Args:
            parameters: Tensors by name.
            images: Shape (n, channels, height, width).

        Returns:
            Shape (n·C, P), in the objective's dtype, on its device.

        Raises:
            RuntimeError: A device, or memory, failed.
        """
        objective = self.objective

        def scores(p: Parameters, image: torch.Tensor) -> torch.Tensor:
            return objective.network(p, image[None])[0]

        with torch.no_grad():
            outputs = objective.network(parameters, images)
        factors = output_factor(outputs, objective.loss_kind).to(objective.dtype).transpose(1, 2)

        def of_one(image: torch.Tensor, factor: torch.Tensor) -> Parameters:
            back = vjp(lambda p: scores(p, image), parameters)[1]
            return vmap(lambda cotangent: back(cotangent)[0])(factor)

        def of_one_unbatched(image: torch.Tensor, factor: torch.Tensor) -> Parameters:
            back = vjp(lambda p: scores(p, image), parameters)[1]
            each = [back(cotangent)[0] for cotangent in factor]
            return {name: torch.stack([one[name] for one in each]) for name in each[0]}

        try:
            jacobian = vmap(of_one)(images, factors)
        except RuntimeError as error:
            if is_failure(error):
                raise
            # The network does something that cannot be batched (reads a value, say): one example after another.
            each = [of_one_unbatched(image, factor) for image, factor in zip(images, factors, strict=True)]
            jacobian = {name: torch.stack([one[name] for one in each]) for name in each[0]}
        result = torch.empty(factors.shape[0] * factors.shape[1], objective.size, dtype=objective.dtype)
        result = result.to(objective.device)
        for block in objective.layout.blocks:
            result[:, block.start : block.stop] = jacobian[block.name].detach().reshape(len(result), -1)
        return result

    def columns(self, start: int, stop: int, block: int) -> Iterator[tuple[int, torch.Tensor]]:
        """A run of columns, a block at a time; only the lower triangle is computed.

        Args:
            start: First column.
            stop: One after the last.
            block: Columns of one block.

        Yields:
            First column c, and rows c … P − 1 of columns c … c + K − 1: float64, on the CPU. Sums within a chunk of
            examples are in the objective's dtype, sums over chunks in float64.
        """
        objective = self.objective
        parameters = objective.parameters(self.theta)
        starts = range(start, stop, block)
        totals = [
            torch.zeros(objective.size - c, min(stop, c + block) - c, dtype=torch.float64, device=objective.device)
            for c in starts
        ]
        for images in objective.images.split(self.examples):
            rows = self.rows(parameters, images)
            for c, total in zip(starts, totals, strict=True):
                total += rows[:, c:].T @ rows[:, c : c + total.shape[1]]
        for c, total in zip(starts, totals, strict=True):
            yield c, (total / objective.count).cpu()


def _cut_runs(size: int, block: int, most_bytes: int, most_entries: float) -> list[int]:
    """Bounds of runs of whole blocks whose lower parts fit into memory and into the work of one unit."""
    bounds, entries = [0], 0
    for start in range(0, size, block):
        more = lower_entries(size, block, start, min(size, start + block))
        if entries and (8 * (entries + more) > most_bytes or entries + more > most_entries):
            bounds.append(start)
            entries = 0
        entries += more
    return [*bounds, size]


# ---------------------------------------------------------------------------------------------------------------------
# Stage


class GaussNewtonTask:
    """The `gauss_newton` stage of one checkpoint.

    Attributes:
        name: Name of the stage.
        version: To be increased when its mathematics changes.
    """

    name = _STAGE
    version = STAGE_VERSIONS["gauss_newton"]

    def __init__(self, checkpoint_path: str | Path, data_path: str | Path, config: Curvature, device: str) -> None:
        self._config = config
        self._device = device
        self._objectives = CheckpointObjectives(checkpoint_path, data_path, "train")

    def _objective(self, dtype: str, plan: dict[str, Any]) -> Objective:
        return self._objectives.get(getattr(torch, dtype), plan["device"], plan["chunk"][dtype])

    def parameters(self) -> dict[str, Any]:
        """What determines the result."""
        return {**self._objectives.parameters(), "dtype": self._config.dtype, "probes": SIGN_PROBES, "seed": PROBE_SEED}

    def plan(self) -> dict[str, Any]:
        """Threads, device, data chunks by dtype, examples of one Jacobian, and the bounds of the runs of columns."""
        threads, device = current_threads(), resolve_device(self._device)
        apply_numerics(threads)
        plan: dict[str, Any] = {"threads": threads, "device": device.type, "chunk": {"float32": None, "float64": None}}
        objectives = {name: self._objective(name, plan) for name in plan["chunk"]}
        objective, theta = objectives[self._config.dtype], self._objectives.theta
        size, budget = objective.size, UNIT_FLOPS[device.type]
        with torch.no_grad():
            example = objective.network(objective.parameters(theta), objective.images[:1])
        classes = example.shape[1]
        forward, backward = flops_per_example(objective, theta)
        jacobians = objective.count * (forward + classes * backward)
        most_entries = max(budget, _JACOBIAN_SHARE * jacobians) / (2.0 * objective.count * classes)
        row = classes * size * objective.dtype.itemsize
        # The backward passes of all classes are in memory at once, too.
        fitting = min(ROW_BYTES[device.type] // row, objective.chunk // classes)
        block, accumulated = column_block(size), _accumulated_bytes(device)
        runs = _cut_runs(size, block, accumulated, most_entries)
        widest = objectives["float64"]
        return {
            **plan,
            "chunk": {name: objective.chunk for name, objective in objectives.items()},
            "classes": classes,
            "examples": max(1, min(objective.count, fitting)),
            "block": block,
            "runs": runs,
            "probe_block": probe_block(widest, theta, budget),
            "product_bytes": widest.product_bytes(),
        }

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """The matrix, and the products that it is verified with."""
        size = self._objectives.size
        return [
            matrix_spec(size, plan["block"], self._config.dtype, "Gauss–Newton matrix of the loss"),
            *product_specs(size, SIGN_PROBES, plan["probe_block"], "Gauss–Newton matrix"),
        ]

    def units(self, plan: dict[str, Any]) -> int:
        """Runs of columns, then blocks of probes."""
        return len(plan["runs"]) - 1 + -(-SIGN_PROBES // plan["probe_block"])

    def estimate(self, plan: dict[str, Any]) -> Needs:
        """Half the matrix on disk; in memory a run of columns in float64 and as stored, on a CPU the Jacobians too."""
        size, itemsize = self._objectives.size, np.dtype(self._config.dtype).itemsize
        run = max(
            run_bytes(size, lower_entries(size, plan["block"], start, stop), stop - start, itemsize)
            for start, stop in pairwise(plan["runs"])
        )
        rows = 0 if plan["device"] == "cuda" else rows_bytes(size, plan["examples"] * plan["classes"], itemsize)
        product = 0 if plan["device"] == "cuda" else plan["product_bytes"]
        disk = size * (size + plan["block"]) // 2 * itemsize + 2 * size * SIGN_PROBES * 8
        return Needs(resident_bytes(plan["device"], self._objectives.numbers) + run + rows + product, disk)

    def start(self, plan: dict[str, Any]) -> None:
        """Sets threads and determinism."""
        apply_numerics(plan["threads"])

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """One run of columns, or the products with one block of probes."""
        size, theta, runs = self._objectives.size, self._objectives.theta, len(plan["runs"]) - 1
        if unit < runs:
            start, stop = plan["runs"][unit : unit + 2]
            engine = GaussNewtonEngine(self._objective(self._config.dtype, plan), theta, plan["examples"])
            values = np.full((size, stop - start), np.nan, dtype=self._config.dtype)
            with device_memory_explained(f"columns {start} to {stop} of the Gauss–Newton matrix"):
                for first, strip in engine.columns(start, stop, plan["block"]):
                    check_finite(strip.numpy(), first, "the Gauss–Newton matrix")
                    values[first:, first - start : first - start + strip.shape[1]] = strip.numpy()
            return {"matrix": ((slice(0, size), slice(start, stop)), values)}
        first = (unit - runs) * plan["probe_block"]
        block = slice(first, min(SIGN_PROBES, first + plan["probe_block"]))
        with device_memory_explained("a product with the Gauss–Newton matrix"):
            return multiply_probes(
                size, block, lambda dtype, v: self._objective(dtype, plan).gauss_newton_product(theta, v)
            )

    def smaller(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        """Half of the examples of one Jacobian and of the chunks in products; the runs of columns stay."""
        sizes = halved({"examples": plan["examples"], **plan["chunk"]})
        if sizes is None:
            return None
        return {**plan, "examples": sizes["examples"], "chunk": {name: sizes[name] for name in plan["chunk"]}}

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """Size, trace, norm and errors of the matrix, under `verification`."""
        size = self._objectives.size
        verification = verify_hessian(
            StripMatrix([(store, _strip_bounds(size, plan))]).stored_strips(),
            self._objectives.checkpoint.layout,
            sign_probes(size, SIGN_PROBES, PROBE_SEED),
            store.read("products"),
            store.read("float32_products"),
            self._config.dtype,
            "The Gauss–Newton matrix",
        )
        return {"size": size, "examples": self._objectives.examples, "verification": verification}


def _accumulated_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * _CUDA_FRACTION)
    return ACCUMULATED_BYTES["cpu"]


def _strip_bounds(size: int, plan: dict[str, Any]) -> list[int]:
    """Every file is a strip: within a run, too, nothing above the blocks on the diagonal is computed."""
    return [*range(0, size, plan["block"]), size]


# ---------------------------------------------------------------------------------------------------------------------
# Readers


class GaussNewtonMatrix(StripMatrix):
    """A finished Gauss–Newton matrix G.

    Attributes:
        verification: Errors, norms and checks of the matrix.
        digest: Digest of its content.
    """

    def __init__(self, path: str | Path) -> None:
        stage = open_stage(path, _STAGE)
        results = stage.manifest["results"]
        super().__init__([(stage, _strip_bounds(results["size"], stage.manifest["plan"]))])
        self.verification: dict[str, Any] = results["verification"]
        self.digest = stage.digest


class RemainderMatrix:
    """R = H − G, read from the two; it is nowhere on disk.

    Attributes:
        size: P.
    """

    def __init__(self, hessian: HessianMatrix, gauss_newton: GaussNewtonMatrix) -> None:
        self._hessian, self._gauss_newton = hessian, gauss_newton
        self.size = hessian.size

    def strips(self) -> Iterator[tuple[int, np.ndarray]]:
        """Column strips of the lower block triangle.

        Yields:
            First column c, and rows c … P − 1 of columns c … c + K − 1 with a symmetric square on the diagonal.
        """
        for start, strip in self._hessian.strips():
            yield start, strip - self._gauss_newton.columns(start, start + strip.shape[1], lower=True)

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Whole columns.

        Args:
            start: First column.
            stop: One after the last.

        Returns:
            Shape (P, stop − start), in the stored dtype.
        """
        return self._hessian.columns(start, stop) - self._gauss_newton.columns(start, stop)

    def dense(self, dtype: str | None = None) -> np.ndarray:
        """The whole symmetric matrix.

        Args:
            dtype: NumPy dtype name; None: the stored one.

        Returns:
            Shape (P, P), C-contiguous; beside it only one strip is ever in memory.
        """
        result = self._hessian.dense(dtype)
        for start, strip in self._gauss_newton.strips():
            width = strip.shape[1]
            result[start:, start : start + width] -= strip
            result[start : start + width, start + width :] -= strip[width:].T
        return result


# ---------------------------------------------------------------------------------------------------------------------
# Spectra


def _streamed_values(matrix: np.ndarray, device: torch.device, threads: int) -> np.ndarray:
    """By tridiagonal form and divide and conquer, with one matrix and a panel on the device; ascending, float64."""
    plan = streamed_plan(len(matrix), str(matrix.dtype), device.type)
    work = square(len(matrix), torch.from_numpy(matrix[:0]).dtype, device)
    # In parts, since rows that lie apart are copied by way of a tensor of their own.
    step = max(1, _COPIED_BYTES // max(1, matrix[0].nbytes))
    for start in range(0, len(matrix), step):
        work[start : start + step] = torch.from_numpy(matrix[start : start + step])
    with blas_threads(threads):
        diagonal, off_diagonal = tridiagonal_form(work, plan["engine"], checked_product(work))
    del work
    release_device_memory()
    return tridiagonal_eigenvalues(diagonal, off_diagonal, device, plan["tile_bytes"], leaf_of(plan))


def eigenvalues(matrix: np.ndarray, device: torch.device, threads: int, subject: str) -> np.ndarray:
    """All eigenvalues of a dense symmetric matrix, without vectors, checked against its trace and norm.

    Args:
        matrix: Shape (P, P), C-contiguous; its memory may be overwritten.
        device: `cpu` (LAPACK) or `cuda`, where a matrix that cuSOLVER cannot do is reduced in its own memory.
        threads: Threads of LAPACK; results depend on their number.
        subject: What the matrix is, for messages.

    Returns:
        In descending order, float64, shape (P,).

    Raises:
        VerificationError: The matrix has entries that are not finite, or sum or norm of the eigenvalues are wrong.
    """
    size, eps = len(matrix), float(np.finfo(matrix.dtype).eps)
    trace = float(np.trace(matrix, dtype=np.float64))
    frobenius = float(np.sqrt(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64)))
    if not np.isfinite(frobenius):
        raise VerificationError(f"{subject} has entries that are not finite, so it has no eigenvalues.")
    if size > _LIBRARY_LIMIT[device.type]:
        needed = spectrum_bytes(size, str(matrix.dtype), device.type) / 1e9
        with device_memory_explained(f"the spectrum of {subject} ({needed:.0f} GB)"):
            values = _streamed_values(matrix, device, threads)
        release_device_memory()
    elif device.type == "cuda":
        values = torch.linalg.eigvalsh(torch.from_numpy(matrix).to(device)).cpu().numpy()
    else:
        with blas_threads(threads):
            # The transpose is the same symmetric matrix, in the column order in which LAPACK can work in place.
            values = scipy.linalg.eigh(matrix.T, driver="evd", eigvals_only=True, overwrite_a=True, check_finite=False)
    values = values[::-1].astype(np.float64)
    checks = Checks(f"The spectrum of {subject}")
    backward = solver_growth(size) * eps * frobenius
    checks.require("difference of the eigenvalues' sum from the trace", abs(values.sum() - trace), size**0.5 * backward)
    checks.require(
        "difference of the eigenvalues' norm from that of the matrix",
        abs(float(np.linalg.norm(values)) - frobenius),
        backward,
    )
    checks.finish()
    return values


def eigenvalue_error(values: np.ndarray, dtype: np.dtype, matrix_error: float) -> float:
    """Bound on the error of every eigenvalue: the solver's, plus the error of the matrix itself (Weyl).

    Args:
        values: The eigenvalues.
        dtype: In which they were computed.
        matrix_error: ‖ΔA‖₂, estimated.

    Returns:
        The numerical zero of this spectrum.
    """
    return solver_growth(len(values)) * float(np.finfo(dtype).eps) * float(np.abs(values).max()) + matrix_error
