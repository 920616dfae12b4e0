"""The exact Hessian of L over the whole training set: the engine that computes columns, the stage, and the reader.

The stage stores the lower block triangle as column strips: strip b holds columns bK … bK + K − 1 and the rows from bK
on; what is above is NaN, costs nothing, and is mirrored on reading. The K×K block on the diagonal holds both triangles,
computed independently: readers average them, and their difference is one of the checks. Further units compute the
products with sign vectors that the matrix is verified against (`quadscape.curvature.verification`).
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadscape.config import Curvature
from quadscape.curvature.verification import PROBE_SEED, PROBES, sign_probes, verify_hessian
from quadscape.errors import VerificationError
from quadscape.numerics import apply_numerics, current_threads, resolve_device
from quadscape.objective import CheckpointObjectives, Objective, Vector
from quadscape.stage import Arrays, Estimate, StageStore, open_stage
from quadscape.store import ArraySpec
from quadscape.versions import STAGE_VERSIONS

_STRIP_BYTES = 256 << 20
_UNIT_SECONDS = 30.0
_LARGEST_BLOCK = 256
_SMALLEST_BLOCK = 16
_ROWS = 1024
_PROBE_BLOCK = 4


# ---------------------------------------------------------------------------------------------------------------------
# Engine


class HessianEngine:
    """Columns of ∇²L(θ) by plain double backward.

    Per data chunk the graph of the gradient is built once and shared by all columns of a block; each column is one
    vector–Jacobian product of it. The graph starts, and the products stop, at the first parameter tensor that the
    block's lower triangle needs.

    Attributes:
        objective: L, in the precision of the computation.
        theta: Where, shape (P,), float64.
    """

    def __init__(self, objective: Objective, theta: Vector) -> None:
        self.objective = objective
        self.theta = torch.as_tensor(theta)

    def columns(self, start: int, stop: int, chunks: int | None = None) -> torch.Tensor:
        """A block of columns, from its first row on.

        Args:
            start: First column, and first row.
            stop: One after the last column.
            chunks: Number of data chunks to take, for timing; None: all.

        Returns:
            Rows start … P − 1 of columns start … stop − 1: shape (P − start, stop − start), float64, on the CPU. Sums
            within a data chunk are in the objective's dtype, sums over chunks in float64.
        """
        objective = self.objective
        parameters = objective.parameters(self.theta)
        later = [block for block in objective.layout.blocks if block.stop > start]
        own = [block for block in later if block.start < stop]
        total = torch.zeros(stop - start, objective.size - start, dtype=torch.float64, device=objective.device)
        for number, (images, labels) in enumerate(objective.chunks()):
            if number == chunks:
                break
            leaves = {name: value.clone() for name, value in parameters.items()}
            for block in later:
                leaves[block.name].requires_grad_()
            loss = objective.chunk_loss(leaves, images, labels)
            gradients = torch.autograd.grad(
                loss, [leaves[block.name] for block in own], create_graph=True, allow_unused=True
            )
            inputs = [leaves[block.name] for block in later]
            for block, gradient in zip(own, gradients, strict=True):
                if gradient is None or not gradient.requires_grad:
                    continue  # the loss does not depend on it, or at most linearly: zero columns
                unit = torch.zeros_like(gradient)
                for column in range(max(start, block.start), min(stop, block.stop)):
                    unit.view(-1)[column - block.start] = 1.0
                    rows = torch.autograd.grad(
                        gradient, inputs, unit, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                    unit.view(-1)[column - block.start] = 0.0
                    flat = torch.cat([row.reshape(-1) for row in rows])
                    total[column - start] += flat[start - later[0].start :]
        return (total / objective.count).T.contiguous().cpu()


# ---------------------------------------------------------------------------------------------------------------------
# Stage


def column_block(size: int) -> int:
    """Columns of one unit, K, for a Hessian of P columns: a power of two.

    Args:
        size: P.

    Returns:
        At most 256, at least 16, about a thirty-second of P in between, and so few that one strip in float64 stays
        under 256 MiB.
    """
    wanted = max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, size // 32))
    return _power_of_two_below(max(1, min(wanted, size, _STRIP_BYTES // (8 * size))))


def _power_of_two_below(value: int) -> int:
    return 1 << (value.bit_length() - 1)


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class HessianTask:
    """The `hessian` stage of one checkpoint.

    Attributes:
        name: Name of the stage.
        version: To be increased when its mathematics changes.
    """

    name = "hessian"
    version = STAGE_VERSIONS["hessian"]

    def __init__(self, checkpoint_path: str | Path, data_path: str | Path, config: Curvature, device: str) -> None:
        self._config = config
        self._device = device
        self._objectives = CheckpointObjectives(checkpoint_path, data_path, "train")
        self._seconds_per_unit: float | None = None

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self._config.dtype == "float32" else torch.float64

    def _objective(self, dtype: torch.dtype, plan: dict[str, Any]) -> Objective:
        return self._objectives.get(dtype, plan["device"], plan["chunk"][str(dtype).removeprefix("torch.")])

    def parameters(self) -> dict[str, Any]:
        """What determines the result."""
        return {**self._objectives.parameters(), "dtype": self._config.dtype, "probes": PROBES, "seed": PROBE_SEED}

    def plan(self) -> dict[str, Any]:
        """Threads, device, data chunks by dtype, and block sizes; slow columns make the block smaller."""
        threads, device = current_threads(), resolve_device(self._device)
        apply_numerics(threads)
        plan: dict[str, Any] = {
            "threads": threads,
            "device": device.type,
            "chunk": {"float32": None, "float64": None},
            "block": column_block(self._objectives.size),
            "probe_block": _PROBE_BLOCK,
        }
        objectives = {name: self._objective(getattr(torch, name), plan) for name in plan["chunk"]}
        plan["chunk"] = {name: objective.chunk for name, objective in objectives.items()}
        widest = objectives["float64"]
        plan["graph_bytes"] = widest.chunk * widest.graph_bytes_per_example()
        # One data chunk of the widest columns, after a first call that warms up; powers of two make the plan the same
        # on machines of about the same speed, and small problems never come near the limit.
        objective = objectives[self._config.dtype]
        engine, chunks = HessianEngine(objective, self._objectives.theta), -(-objective.count // objective.chunk)
        engine.columns(0, 1, chunks=1)
        two = min(2, objective.size)
        graph = _seconds(lambda: engine.columns(0, 1, chunks=1)) * chunks
        column = max(0.0, _seconds(lambda: engine.columns(0, two, chunks=1)) * chunks - graph)
        while plan["block"] > 1 and graph + plan["block"] * column > _UNIT_SECONDS:
            plan["block"] //= 2
        product = 4 * graph  # float64 beside float32
        while plan["probe_block"] > 1 and plan["probe_block"] * product > _UNIT_SECONDS:
            plan["probe_block"] //= 2
        self._seconds_per_unit = graph + plan["block"] * column / 2
        return plan

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """The matrix, and the products that it is verified with."""
        size, block = self._objectives.size, plan["block"]
        rows = min(size, _ROWS)
        described = {
            "description": "Hessian of the loss; lower block triangle in column strips, NaN above",
            "unit": "1",
        }
        return [
            ArraySpec(
                "matrix",
                (size, size),
                self._config.dtype,
                ("row", "column"),
                (rows, block),
                shards=(-(-size // rows) * rows, block),
                attributes=described,
            ),
            *(
                ArraySpec(
                    name,
                    (size, PROBES),
                    "float64",
                    ("parameter", "probe"),
                    (size, plan["probe_block"]),
                    attributes={"description": f"Hessian times sign vectors, matrix-free in {dtype}", "unit": "1"},
                )
                for name, dtype in (("products", "float64"), ("float32_products", "float32"))
            ),
        ]

    def _strips(self, plan: dict[str, Any]) -> int:
        return -(-self._objectives.size // plan["block"])

    def units(self, plan: dict[str, Any]) -> int:
        """Column strips, then blocks of probes."""
        return self._strips(plan) + -(-PROBES // plan["probe_block"])

    def estimate(self, plan: dict[str, Any]) -> Estimate:
        """Half the matrix on disk; three strips in memory, beside torch, the data and (on the CPU) twice the graph."""
        size, itemsize = self._objectives.size, self._dtype.itemsize
        strip = size * plan["block"] * 8
        images = 12 * self._objectives.examples * int(np.prod(self._objectives.checkpoint.shape))
        resident = (3 << 30) if plan["device"] == "cuda" else (1 << 30) + 2 * plan["graph_bytes"]
        disk = size * (size + plan["block"]) // 2 * itemsize + 2 * size * PROBES * 8
        seconds = None if self._seconds_per_unit is None else self._seconds_per_unit * self.units(plan)
        return Estimate(resident + images + 3 * strip, disk, seconds)

    def start(self, plan: dict[str, Any]) -> None:
        """Sets threads and determinism."""
        apply_numerics(plan["threads"])

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """One column strip, or the products with one block of probes."""
        size, strips = self._objectives.size, self._strips(plan)
        theta = self._objectives.theta
        if unit < strips:
            start = unit * plan["block"]
            stop = min(size, start + plan["block"])
            block = HessianEngine(self._objective(self._dtype, plan), theta).columns(start, stop).numpy()
            finite = np.isfinite(block).all(axis=0)
            if not finite.all():
                raise VerificationError(
                    f"Column {start + int(np.argmin(finite))} of the Hessian is not finite; did training diverge "
                    "before this checkpoint?"
                )
            values = np.full((size, stop - start), np.nan, dtype=self._config.dtype)
            values[start:] = block
            return {"matrix": ((slice(0, size), slice(start, stop)), values)}
        start = (unit - strips) * plan["probe_block"]
        stop = min(PROBES, start + plan["probe_block"])
        probes = sign_probes(size, PROBES, PROBE_SEED)[:, start:stop]
        found: dict[str, tuple[tuple[slice | int, ...], np.ndarray]] = {}
        for name, dtype in (("products", torch.float64), ("float32_products", torch.float32)):
            objective = self._objective(dtype, plan)
            columns = [objective.hessian_product(theta, probe).numpy() for probe in probes.T]
            found[name] = ((slice(0, size), slice(start, stop)), np.stack(columns, axis=1))
        return found

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """Size, trace, norm and errors of the matrix, under `verification`."""
        size = self._objectives.size
        verification = verify_hessian(
            _read_strips(store, size, plan["block"]),
            self._objectives.checkpoint.layout,
            sign_probes(size, PROBES, PROBE_SEED),
            store.read("products"),
            store.read("float32_products"),
            self._config.dtype,
        )
        return {"size": size, "examples": self._objectives.examples, "verification": verification}


# ---------------------------------------------------------------------------------------------------------------------
# Reader


def _read_strips(store: StageStore, size: int, block: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, size, block):
        yield start, store.read("matrix", (slice(start, size), slice(start, min(size, start + block))))


class HessianMatrix:
    """A finished Hessian, mirrored on reading; one strip at a time is in memory.

    Attributes:
        size: P.
        results: What the stage's manifest says of it.
        digest: Digest of its content.
    """

    def __init__(self, path: str | Path) -> None:
        self._stage = open_stage(path, HessianTask.name)
        self._block: int = self._stage.manifest["plan"]["block"]
        self.results: dict[str, Any] = self._stage.manifest["results"]
        self.size: int = self.results["size"]
        self.digest = self._stage.digest

    def strips(self) -> Iterator[tuple[int, np.ndarray]]:
        """Column strips of the lower block triangle.

        Yields:
            First column c, and rows c … P − 1 of columns c … c + K − 1 with a symmetric block on the diagonal.
        """
        for start, strip in _read_strips(self._stage, self.size, self._block):
            width = strip.shape[1]
            strip[:width] = (strip[:width] + strip[:width].T) / 2
            yield start, strip

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Whole columns.

        Args:
            start: First column.
            stop: One after the last.

        Returns:
            Shape (P, stop − start), in the stored dtype.
        """
        result = np.empty((self.size, stop - start), dtype=self._stage.array("matrix").dtype)
        for first in range(0, min(stop, self.size), self._block):
            last = min(self.size, first + self._block)
            if last <= start:  # a strip to the left: its rows start … stop − 1 are, by symmetry, rows of these columns
                result[first:last] = self._stage.read("matrix", (slice(start, stop), slice(first, last))).T
                continue
            strip = self._stage.read("matrix", (slice(first, self.size), slice(first, last)))
            width = last - first
            strip[:width] = (strip[:width] + strip[:width].T) / 2
            a, b = max(start, first), min(stop, last)
            result[first:, a - start : b - start] = strip[:, a - first : b - first]
            if last < stop:  # and its rows last … stop − 1 are the upper part of the later columns
                result[first:last, last - start :] = strip[last - first : stop - first].T
        return result

    def dense(self, dtype: str | None = None) -> np.ndarray:
        """The whole symmetric matrix.

        Args:
            dtype: NumPy dtype name; None: the stored one.

        Returns:
            Shape (P, P), C-contiguous; beside it only one strip is ever in memory.
        """
        result = np.empty((self.size, self.size), dtype=dtype or self._stage.array("matrix").dtype)
        for start, strip in self.strips():
            width = strip.shape[1]
            result[start:, start : start + width] = strip
            result[start : start + width, start + width :] = strip[width:].T
        return result

    def products(self) -> np.ndarray:
        """Independent float64 products with the sign vectors of `PROBE_SEED`, shape (P, PROBES)."""
        return self._stage.read("products")
