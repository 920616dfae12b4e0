"""The exact Hessian of L over the whole training set: its shards, the stage that gathers and checks them, the reader.

A shard is a stage of its own: a run of column strips of the lower triangle (`quadscape.curvature.strips`), cut so
that all shards cost the same. The strips are the same for every number of shards, and so is the matrix, bit for bit.
The square on the diagonal of each strip holds both triangles, computed independently; their difference is one of the
checks.

The stage `hessian` copies nothing: it computes the products with sign vectors that the matrix is verified against
(`quadscape.curvature.verification`), reads all shards once, and lists them with their digests in its manifest.
"""

import hashlib
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadscape.config.sections import Curvature
from quadscape.curvature.costs import SIGN_PROBES, resident_bytes, storing_bytes, strips_bytes
from quadscape.curvature.engine import HessianEngine
from quadscape.curvature.shards import shard_directory, shard_name
from quadscape.curvature.strips import (
    UNIT_FLOPS,
    StripMatrix,
    check_finite,
    cut_strips,
    matrix_spec,
    multiply_probes,
    probe_block,
    product_specs,
    share_of_strips,
    strip_bounds,
)
from quadscape.curvature.verification import PROBE_SEED, sign_probes, verify_hessian
from quadscape.errors import DeviceMemoryError, StageError, StoreError
from quadscape.network.objective import CheckpointObjectives, Objective
from quadscape.numerics import (
    apply_numerics,
    current_threads,
    device_memory_explained,
    halved,
    keep_large_freed_memory,
    resolve_device,
)
from quadscape.provenance.versions import STAGE_VERSIONS
from quadscape.stage.finished import FinishedStage, open_stage
from quadscape.stage.protocol import Arrays, Needs, StageStore
from quadscape.store import ArraySpec

_SHARD_STAGE, _STAGE = "hessian_shard", "hessian"


# ---------------------------------------------------------------------------------------------------------------------
# Shards


class HessianShardTask:
    """One shard of the Hessian of one checkpoint: the stage that computes columns.

    Attributes:
        name: Name of the stage.
        version: To be increased when its mathematics changes.
    """

    name = _SHARD_STAGE
    version = STAGE_VERSIONS["hessian"]

    def __init__(
        self, checkpoint_path: str | Path, data_path: str | Path, config: Curvature, device: str, number: int = 1
    ) -> None:
        self._config = config
        self._device = device
        self._number = number
        self._objectives = CheckpointObjectives(checkpoint_path, data_path, "train")
        self._engine: HessianEngine | None = None
        self._seconds: float | None = None

    def _objective(self, device: torch.device | str, chunk: int | None) -> Objective:
        return self._objectives.get(getattr(torch, self._config.dtype), device, chunk)

    def parameters(self) -> dict[str, Any]:
        """What determines the result."""
        return {
            **self._objectives.parameters(),
            "dtype": self._config.dtype,
            "tf32": self._config.tf32,
            "shard": self._number,
            "shards": self._config.shards,
        }

    def plan(self) -> dict[str, Any]:
        """Threads, device, data chunk, tiles of the engine, and the bounds of this shard's strips."""
        threads, device = current_threads(), resolve_device(self._device)
        if self._config.tf32 and device.type != "cuda":
            raise StageError(
                "curvature.tf32 is true, but this job runs on a CPU, which has no TF32; valid here is false."
            )
        apply_numerics(threads, self._config.tf32)
        keep_large_freed_memory()
        objective = self._objective(device, None)
        tiles = HessianEngine.plan_for(objective)
        engine = HessianEngine(objective, self._objectives.theta, tiles)
        block, bounds = cut_strips(objective.size, engine.flops, UNIT_FLOPS[device.type])
        if self._config.shards > len(bounds) - 1:
            raise StageError(
                f"curvature.shards is {self._config.shards}, but this Hessian of {objective.size} columns is cut into "
                f"{len(bounds) - 1} strips; valid are 1 to {len(bounds) - 1}."
            )
        strips = share_of_strips(bounds, engine.flops, self._number, self._config.shards)
        costs = [engine.flops(start, stop) for start, stop in pairwise(strips)]
        self._engine = engine
        self._seconds = self._expected_seconds(strips, costs)
        return {
            "threads": threads,
            "device": device.type,
            "chunk": objective.chunk,
            "engine": {self._config.dtype: tiles},
            "block": block,
            "strips": strips,
            "flops": costs,
            "memory_bytes": engine.memory_bytes(int(np.diff(strips).max())),
        }

    def _expected_seconds(self, strips: list[int], costs: list[float]) -> float | None:
        """Time of all strips at the speed of a usual one over one data chunk; shown, and no part of the plan."""
        assert self._engine is not None
        whole = self._engine.objective
        few = self._engine.plan["chunk"]
        engine = self._engine.of_part(slice(0, max(whole.chunk // few, 1) * few))  # whole data chunks, which are alike
        half = int(np.searchsorted(np.cumsum(costs), sum(costs) / 2))  # half of the work is before this strip
        try:
            with device_memory_explained("a strip of the Hessian"):
                engine.columns(strips[half], strips[half] + 1)  # warms up
                began = time.perf_counter()
                engine.columns(strips[half], strips[half + 1])
                seconds = time.perf_counter() - began
        except DeviceMemoryError:  # `smaller` will be asked for another plan
            return None
        counted = engine.flops(strips[half], strips[half + 1])
        return seconds * (sum(costs) / counted if counted else whole.count / engine.objective.count * len(costs))

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """The matrix, of which a shard fills its own files."""
        return [matrix_spec(self._objectives.size, plan["block"], self._config.dtype, "Hessian of the loss")]

    def units(self, plan: dict[str, Any]) -> int:
        """Column strips."""
        return len(plan["strips"]) - 1

    def estimate(self, plan: dict[str, Any]) -> Needs:
        """The strips on disk; beside torch and data strips in memory, and on the CPU what the engine needs."""
        size, bounds = self._objectives.size, np.array(plan["strips"])
        widths = np.diff(bounds)
        working = 0 if plan["device"] == "cuda" else plan["memory_bytes"]
        resident = resident_bytes(plan["device"], self._objectives.numbers)
        itemsize, widest = np.dtype(self._config.dtype).itemsize, int(widths.max())
        memory = resident + working + strips_bytes(size, widest)
        memory += storing_bytes(size, widest, itemsize) if len(widths) > 1 else 0
        disk = int(np.dot(size - bounds[:-1], widths)) * itemsize
        return Needs(memory, disk, self._seconds, plan["flops"])

    def start(self, plan: dict[str, Any]) -> None:
        """Sets threads and determinism, and makes the engine."""
        apply_numerics(plan["threads"], self._config.tf32)
        keep_large_freed_memory()
        objective = self._objective(plan["device"], plan["chunk"])
        tiles = plan["engine"][self._config.dtype]
        if self._engine is None or self._engine.plan != tiles:
            self._engine = HessianEngine(objective, self._objectives.theta, tiles)

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """One column strip."""
        assert self._engine is not None
        size = self._objectives.size
        start, stop = plan["strips"][unit : unit + 2]
        with device_memory_explained(f"columns {start} to {stop} of the Hessian"):
            strip = self._engine.columns(start, stop).numpy()
        check_finite(strip, start, "the Hessian")
        values = np.full((size, stop - start), np.nan, dtype=self._config.dtype)
        values[start:] = strip
        return {"matrix": ((slice(0, size), slice(start, stop)), values)}

    def smaller(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        """Half of the engine's chunks of examples and tiles of tangents; the strips stay."""
        self._engine = None  # and its memory
        tiles = halved(plan["engine"][self._config.dtype])
        return None if tiles is None else {**plan, "engine": {self._config.dtype: tiles}}

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """Which columns these are; what they are worth is told once all shards are there."""
        return {"size": self._objectives.size, "columns": [plan["strips"][0], plan["strips"][-1]]}


# ---------------------------------------------------------------------------------------------------------------------
# Gather


def _open_shards(directory: str | Path, count: int) -> list[FinishedStage]:
    return [
        open_stage(shard_directory(directory, shard_name(number, count)), _SHARD_STAGE)
        for number in range(1, count + 1)
    ]


def _join(shards: list[FinishedStage]) -> StripMatrix:
    return StripMatrix([(shard, strip_bounds(shard)) for shard in shards])


class HessianTask:
    """The `hessian` stage of one checkpoint: joins finished shards and verifies them.

    Attributes:
        name: Name of the stage.
        version: To be increased when its mathematics changes.
    """

    name = _STAGE
    version = STAGE_VERSIONS["hessian"]

    def __init__(
        self,
        directory: str | Path,
        checkpoint_path: str | Path,
        data_path: str | Path,
        config: Curvature,
        device: str,
    ) -> None:
        """Opens the shards.

        Args:
            directory: The stage's own directory, beside which the shards lie.
            checkpoint_path: The checkpoint.
            data_path: The data set.
            config: Precision and number of shards.
            device: Where the products are computed.
        """
        self._config = config
        self._device = device
        self._objectives = CheckpointObjectives(checkpoint_path, data_path, "train")
        self._shards = _open_shards(directory, config.shards)

    def _objective(self, dtype: str, plan: dict[str, Any]) -> Objective:
        return self._objectives.get(getattr(torch, dtype), plan["device"], plan["chunk"][dtype])

    def parameters(self) -> dict[str, Any]:
        """What determines the result: the shards by their digests, and the probes."""
        return {
            **self._objectives.parameters(),
            "dtype": self._config.dtype,
            "shards": {shard.directory.name: shard.digest for shard in self._shards},
            "probes": SIGN_PROBES,
            "seed": PROBE_SEED,
        }

    def plan(self) -> dict[str, Any]:
        """Threads, device, data chunks by dtype, and the block of probes."""
        threads, device = current_threads(), resolve_device(self._device)
        apply_numerics(threads)
        plan: dict[str, Any] = {"threads": threads, "device": device.type, "chunk": {"float32": None, "float64": None}}
        objectives = {name: self._objective(name, plan) for name in plan["chunk"]}
        widest = objectives["float64"]
        return {
            **plan,
            "chunk": {name: objective.chunk for name, objective in objectives.items()},
            "probe_block": probe_block(widest, self._objectives.theta, UNIT_FLOPS[device.type]),
            "product_bytes": widest.product_bytes(),
        }

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """The products that the matrix is verified with."""
        return product_specs(self._objectives.size, SIGN_PROBES, plan["probe_block"], "Hessian")

    def units(self, plan: dict[str, Any]) -> int:
        """Blocks of probes."""
        return -(-SIGN_PROBES // plan["probe_block"])

    def estimate(self, plan: dict[str, Any]) -> Needs:
        """The products on disk; in memory torch, data, three strips and (on the CPU) one product."""
        size = self._objectives.size
        widest = max(int(np.diff(strip_bounds(shard)).max()) for shard in self._shards)
        product = 0 if plan["device"] == "cuda" else plan["product_bytes"]
        memory = resident_bytes(plan["device"], self._objectives.numbers) + product + strips_bytes(size, widest)
        return Needs(memory, 2 * size * SIGN_PROBES * 8)

    def start(self, plan: dict[str, Any]) -> None:
        """Sets threads and determinism."""
        apply_numerics(plan["threads"])

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """The products with one block of probes."""
        size, theta = self._objectives.size, self._objectives.theta
        block = slice(unit * plan["probe_block"], min(SIGN_PROBES, (unit + 1) * plan["probe_block"]))
        with device_memory_explained("a product with the Hessian"):
            return multiply_probes(size, block, lambda dtype, v: self._objective(dtype, plan).hessian_product(theta, v))

    def smaller(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        """Half of the chunks of examples."""
        chunk = halved(plan["chunk"])
        return None if chunk is None else {**plan, "chunk": chunk}

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """Size, a digest of matrix and products, and under `verification` trace, norm and errors of the matrix."""
        products, content = store.read("products"), hashlib.sha256()
        content.update(products.tobytes())

        def strips() -> Iterator[tuple[int, np.ndarray]]:
            for start, strip in _join(self._shards).stored_strips():
                content.update(np.ascontiguousarray(strip).data)
                yield start, strip

        verification = verify_hessian(
            strips(),
            self._objectives.checkpoint.layout,
            sign_probes(self._objectives.size, SIGN_PROBES, PROBE_SEED),
            products,
            store.read("float32_products"),
            self._config.dtype,
        )
        return {
            "size": self._objectives.size,
            "examples": self._objectives.examples,
            "content": content.hexdigest(),
            "verification": verification,
        }


# ---------------------------------------------------------------------------------------------------------------------
# Reader


class HessianMatrix(StripMatrix):
    """A finished Hessian.

    Attributes:
        results: What the stage's manifest says of it.
        digest: Digest of matrix and products; the same for every number of shards.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the stage and its shards.

        Args:
            path: Directory of the stage `hessian`, or the manifest in it.

        Raises:
            StoreError: A part is missing or damaged, or not what was gathered.
        """
        self._stage = open_stage(path, _STAGE)
        listed = self._stage.manifest["parameters"]["shards"]
        shards = _open_shards(self._stage.directory, len(listed))
        for shard in shards:
            if shard.digest != listed[shard.directory.name]:
                raise StoreError(
                    f"{shard.directory} is not the shard that {self._stage.directory} was gathered from; remove the "
                    f"directory {self._stage.directory} and run the workflow again."
                )
        super().__init__([(shard, strip_bounds(shard)) for shard in shards])
        self.results: dict[str, Any] = self._stage.manifest["results"]
        self.digest: str = self.results["content"]

    def products(self) -> np.ndarray:
        """Independent float64 products with the sign vectors of `PROBE_SEED`, shape (P, SIGN_PROBES)."""
        return self._stage.read("products")
