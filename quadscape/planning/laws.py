"""What every stage and every measure takes: memory, disk, files and work, as functions of a run's sizes.

One law each, from which follow what SLURM is asked for (`quadscape.planning.problem`) and what `quadscape estimate`
tells. Stages announce what their own plan takes by the same formulas (`quadscape.training.costs`,
`quadscape.curvature.costs`, `quadscape.curvature.solver_plan`, the `cost` of a measure's declaration), which a law
takes at the most that any plan may ask for: plan ≤ law ≤ 3 × plan. Nothing here loads torch or data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from quadscape.config.sections import Projected, RandomSubspace, Run
from quadscape.curvature import costs
from quadscape.curvature.solver_plan import (
    LIBRARY_LIMIT,
    UnitWork,
    advisable_bytes,
    library_bytes,
    library_plan,
    library_work,
    scratch_bytes,
    streamed_bytes,
    streamed_plan,
    streamed_work,
)
from quadscape.data.sources import DataDescription
from quadscape.measures import MEASURES
from quadscape.measures.declaration import TABLE_BYTES, Cost
from quadscape.network.counts import TORCH_BYTES, Counts
from quadscape.planning.experiment import Experiment
from quadscape.planning.work import Work
from quadscape.results.sizes import Network
from quadscape.training.costs import (
    EVALUATION_CHUNK,
    step_threads,
    together,
    training_bytes,
    training_disk,
    unit_steps,
    vectors_of_state,
)

ON_GPU = frozenset({"training", "extract_start", "hessian_shard", "hessian", "gauss_newton", "eigenbasis"})
"""Stages that a GPU computes; of small members of families, which share a job, the steps are too short for one."""
_CHECKED = 24 + costs.SIGN_PROBES + 4
"""Vectors that a basis is verified with, beside one for each parameter tensor, at most."""
_ITEMSIZE = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class Law:
    """What one job takes.

    Attributes:
        memory_bytes: Of the host, of the whole process, at most.
        disk_bytes: While it is at work, at most.
        kept_bytes: When it is finished.
        files: That it leaves, about.
        work: What it does.
    """

    memory_bytes: float
    disk_bytes: float
    kept_bytes: float
    files: float
    work: Work = field(default_factory=Work)


class Sized(Protocol):
    """What laws follow from: `quadscape.planning.problem.Problem`."""

    @property
    def experiment(self) -> Experiment:
        """The experiment."""

    @property
    def data(self) -> DataDescription:
        """What the data set holds."""

    @property
    def networks(self) -> Mapping[str, Network]:
        """Sizes of the network of each run."""

    def counts(self, run: str) -> Counts:
        """What one example costs in the network of a run."""

    def training_images(self, run: Run) -> int:
        """N of a run."""

    def threads(self, run: str) -> int:
        """CPU threads of the stages of a run."""


class Laws:
    """Laws of one experiment.

    Attributes:
        problem: Experiment and sizes.
        device: What `auto` stands for: `cpu` or `cuda`.
    """

    def __init__(self, problem: Sized, device: str = "cuda") -> None:
        self.problem = problem
        asked = problem.experiment.device
        self.device = device if asked == "auto" else asked
        self._trainings: dict[str, Law] = {}

    @cached_property
    def _jobs(self) -> dict[str, Callable[[Run], Law]]:
        return {
            "data": self._data,
            "checkpoint": self._checkpoint,
            "training": self._training,
            "extract_start": self._extract_start,
            "hessian_shard": self._shard,
            "hessian": self._hessian,
            "gauss_newton": self._gauss_newton,
            "eigenbasis": self._eigenbasis,
            "figures": self._figures,
        }

    def of(self, job: str, run: str | None = None) -> Law:
        """The law of a stage.

        Args:
            job: Kind of job.
            run: Name of the run that it belongs to; None: the one with the largest network.

        Returns:
            What one of these jobs takes.
        """
        runs, networks = self.problem.experiment.runs, self.problem.networks
        if run is None:
            return self._jobs[job](max(runs, key=lambda one: networks[one.name].parameters))
        return self._jobs[job](self.problem.experiment.run(run))

    def device_of(self, job: str) -> str:
        """Where a job computes; `job` as in `of`, or the name of a measure."""
        on_gpu = MEASURES[job].gpu if job in MEASURES else job in ON_GPU
        return self.device if on_gpu else "cpu"

    # -----------------------------------------------------------------------------------------------------------------
    # Sizes

    @property
    def _itemsize(self) -> int:
        return _ITEMSIZE[self.problem.experiment.curvature.dtype]

    def _size(self, run: Run) -> int:
        return self.problem.networks[run.name].parameters

    @property
    def _pixels(self) -> int:
        channels, height, width = self.problem.data.shape
        return channels * height * width

    @property
    def _all(self) -> int:
        """Examples of all splits."""
        data = self.problem.data
        return data.training + data.validation + data.test

    def _resident(self, job: str, run: Run) -> float:
        return costs.resident_bytes(self.device_of(job), self.problem.training_images(run) * self._pixels)

    def _product_bytes(self, job: str, run: Run) -> float:
        """Of one Hessian product in float64, which takes nothing of the host where a GPU computes it."""
        if self.device_of(job) == "cuda":
            return 0.0
        return self.problem.counts(run.name).product_bytes(self.problem.training_images(run), 8)

    def _passes(
        self, run: Run, dtype: str, *, forward: float = 0.0, gradient: float = 0.0, product: float = 0.0
    ) -> Work:
        """So many passes of single examples."""
        counts = self.problem.counts(run.name)
        both = counts.forward + counts.backward
        return Work(
            {
                f"forward {dtype}": forward * counts.forward,
                f"gradient {dtype}": gradient * both,
                f"product {dtype}": product * 2 * both,
            }
        )

    def _probed(self, run: Run) -> Work:
        """Products with sign vectors, in both precisions, and one pass over the matrix."""
        count, size = self.problem.training_images(run), float(self._size(run))
        products = [self._passes(run, dtype, product=costs.SIGN_PROBES * count) for dtype in ("float32", "float64")]
        matrix = {
            "matrix float64": 2 * costs.SIGN_PROBES * size**2,
            "stored": size**2 / 2 * self._itemsize,
            "units": costs.SIGN_PROBES / 4,
        }
        return products[0] + products[1] + Work(matrix)

    # -----------------------------------------------------------------------------------------------------------------
    # Data, training, checkpoints

    def _data(self, _: Run) -> Law:
        images = 8.0 * self._all * self._pixels
        work = Work({"starts": 1, "images": self._all, "stored": images})
        return Law(TORCH_BYTES["cpu"] + 2 * images, images, images, 20, work)

    def _figures(self, _: Run) -> Law:
        return Law(TABLE_BYTES, 1e6, 1e6, 3, Work({"tables": 2}))

    def _checkpoint(self, run: Run) -> Law:
        size, count = self._size(run), self.problem.training_images(run)
        # A few dozen vectors of the size of θ while the network is checked.
        memory = costs.resident_bytes("cpu", count * self._pixels) + 40 * 8 * size
        disk = 16.0 * size + 1e5
        return Law(memory, disk, disk, 10, Work({"starts": 1, "checks": 1, "stored": 12.0 * count * self._pixels}))

    def _unit_steps(self, run: Run, batch: int) -> int:
        device, forward = self.device_of("training"), self.problem.counts(run.name).forward
        threads = step_threads(batch, int(forward), self.problem.threads(run.name))
        return unit_steps(run, self._size(run), batch, int(forward), device, threads)

    def _training(self, run: Run) -> Law:
        """The same for all seeds of a family, of which there may be hundreds."""
        kind = run.model_dump_json(exclude={"name", "seed"}) if "/" in run.name else run.name
        if kind not in self._trainings:
            self._trainings[kind] = self._trained(run)
        return self._trainings[kind]

    def _trained(self, run: Run) -> Law:
        size, counts, device = self._size(run), self.problem.counts(run.name), self.device_of("training")
        count = self.problem.training_images(run)
        batch, states = run.batch_of(count), vectors_of_state(run)
        steps = self._unit_steps(run, batch)
        units = -(-run.iterations // steps)
        examples = max(together(run, batch, device), EVALUATION_CHUNK[device])
        memory = training_bytes(run, size, self._all * self._pixels, counts.outputs, examples, steps, device)
        disk = float(training_disk(run, size, states, 1 if run.batch_size == "full" else batch, units))
        evaluated = (run.iterations // run.evaluate_every + 1) * self._all
        work = self._passes(run, run.dtype, gradient=float(run.iterations) * batch, forward=float(evaluated))
        # The vectors of a step rule pass by twice in float64; of a basis that is kept, not read from disk.
        read = 0.0 if run.step is None else run.iterations * run.step.vectors(size) * 16.0 * size
        work += Work({"steps": run.iterations, "units": units, "starts": 1, "stored": disk, "read": read})
        return Law(memory + self.step_bytes(run), disk, disk, 20 + units * (8 + states), work)

    def step_bytes(self, run: Run) -> float:
        """What the step rule of a run holds in memory: the vectors of its subspace, or a basis where that can be."""
        if run.step is None:
            return 0.0
        size, dtype = self._size(run), self.problem.experiment.curvature.dtype
        if isinstance(run.step, Projected | RandomSubspace):
            return 3.0 * 8 * size * run.step.vectors(size)
        # No more than where the basis was made: what is not kept is read anew for each step. Half of it may be free.
        return min(2.0 * size**2 * self._itemsize, advisable_bytes(size, dtype)) + 2**28

    def _extract_start(self, run: Run) -> Law:
        whole, count = self._training(run), self.problem.training_images(run)
        steps = min(self._unit_steps(run, run.batch_of(count)), run.iterations)
        disk = 8.0 * self._size(run) * (1 + vectors_of_state(run))
        steps_alone = Work({**whole.work.amounts, "starts": 0.0}).times(steps / max(1, run.iterations))
        work = steps_alone + Work({"starts": 1, "stored": disk})
        return Law(whole.memory_bytes, disk, disk, 10, work)

    # -----------------------------------------------------------------------------------------------------------------
    # Curvature

    def _matrix_files(self, run: Run) -> float:
        size = self._size(run)
        return -(-size // costs.column_block(size))

    def _shard(self, run: Run) -> Law:
        size, counts, options = self._size(run), self.problem.counts(run.name), self.problem.experiment.curvature
        count, columns = self.problem.training_images(run), costs.strip_columns(size)
        memory = self._resident("hessian_shard", run) + costs.strips_bytes(size, columns)
        memory += costs.storing_bytes(size, columns, self._itemsize)
        if self.device_of("hessian_shard") == "cpu":
            memory += costs.engine_bytes(counts, count, self._itemsize, columns)
        whole = costs.triangle_bytes(size, self._itemsize)
        # Shards share the work, not the disk: where columns are cheap, there are more of them.
        disk = whole if options.shards == 1 else min(whole, 2 * whole / options.shards)
        files = self._matrix_files(run) / options.shards
        # Every strip begins with a pass of its own, and most cut a channel in two.
        passes = 2 * files * (counts.forward + counts.backward)
        operations = count * (costs.columns_operations(counts) / options.shards + passes)
        kept = whole / options.shards
        work = Work(
            {f"columns {options.dtype}": operations, "units": files, "stored": kept, "starts": 1, "transforms": 1}
        )
        return Law(memory, disk, kept, files + 12, work)

    def _hessian(self, run: Run) -> Law:
        size = self._size(run)
        memory = self._resident("hessian", run) + self._product_bytes("hessian", run)
        memory += costs.strips_bytes(size, costs.strip_columns(size))
        disk = 2.0 * size * costs.SIGN_PROBES * 8
        return Law(memory, disk, disk, 24, self._probed(run) + Work({"starts": 1, "transforms": 1}))

    def _gauss_newton(self, run: Run) -> Law:
        size, classes, counts = self._size(run), len(self.problem.data.classes), self.problem.counts(run.name)
        count, options = self.problem.training_images(run), self.problem.experiment.curvature
        device = self.device_of("gauss_newton")
        memory = self._resident("gauss_newton", run) + self._product_bytes("gauss_newton", run)
        memory += costs.gauss_newton_bytes(device, size, classes, self._itemsize)
        disk = costs.triangle_bytes(size, self._itemsize) + 2.0 * size * costs.SIGN_PROBES * 8
        runs = max(1.0, 4.0 * size**2 / costs.ACCUMULATED_BYTES[device])
        jacobians = runs * count * (counts.forward + classes * counts.backward)
        work = Work(
            {
                f"gradient {options.dtype}": jacobians,
                f"matrix {options.dtype}": float(count) * classes * size**2,
                "units": self._matrix_files(run),
                "stored": 2 * disk,
                "starts": 1,
                "transforms": 1,
            }
        )
        return Law(memory, disk, disk, self._matrix_files(run) + 24, work + self._probed(run))

    def _eigenbasis(self, run: Run) -> Law:
        size, dtype, device = self._size(run), self.problem.experiment.curvature.dtype, self.device_of("eigenbasis")
        count, tensors = self.problem.training_images(run), len(self.problem.counts(run.name).tensors)
        product, checked = self._product_bytes("eigenbasis", run), _CHECKED + tensors
        basis, scratch = float(size) * size * self._itemsize + 8.0 * size, 0.0
        if size <= LIBRARY_LIMIT[device]:
            plan = library_plan(size, dtype, device)
            units = library_work(size, dtype, plan["block"])
            solver = library_bytes(size, dtype) if device == "cuda" else advisable_bytes(size, dtype)
        else:
            plan = streamed_plan(size, dtype, device)
            units, solver = streamed_work(size, dtype, plan), streamed_bytes(size, dtype, plan)
            scratch = float(scratch_bytes(size, dtype, plan))
        products = 8.0 * size * (checked + 16)
        blocks = -(-size // plan["block"])
        work = _solver_work(units, dtype) + self._passes(run, "float64", product=checked * count)
        # The check of orthogonality multiplies half of QᵀQ; estimates of all residuals are in float64.
        work += Work({f"matrix {dtype}": float(size) ** 3, "matrix float64": 4.0 * costs.SIGN_PROBES * size**2})
        work += Work({"stored": 3 * (basis + scratch) + products, "units": len(units) + checked / 4, "starts": 1})
        work += Work({"transforms": 1})
        memory = costs.eigenbasis_bytes(device, plan["solver"], solver, product)
        return Law(memory, basis + scratch + products, basis + products, blocks + checked / 4 + 40, work)

    # -----------------------------------------------------------------------------------------------------------------
    # Measures

    def measure(self, name: str, run: Run, cost: Cost, dtype: str) -> Law:
        """The law of a measure.

        Args:
            name: Its name.
            run: A run that it is measured of, whose network it evaluates.
            cost: By its declaration.
            dtype: Precision in which it does so.

        Returns:
            What one of its jobs takes.
        """
        passes = self._passes(run, dtype, forward=cost.evaluations, gradient=cost.gradients, product=cost.products)
        passes += self._passes(run, "float32", forward=cost.single_evaluations)
        # Whose memory is that of a process with torch has loaded it.
        loads = cost.memory_bytes >= TORCH_BYTES["cpu"]
        size = float(self._size(run))
        vectors = size if cost.vectors is None else cost.vectors
        opened = {"eigenbasis", "start_eigenbasis"}.intersection(MEASURES[name].reads)
        read = vectors * size * self._itemsize if opened else 0.0
        work = passes + Work(
            {
                f"matrix {dtype}": cost.flops,
                "numbers": cost.numbers,
                "calls": cost.calls,
                "starts" if loads else "tables": 1,
                "transforms": float(loads and cost.gradients + cost.products > 0),
                "stored": cost.kept_bytes + read,
                "units": cost.kept_bytes / 1e8,
            }
        )
        disk = cost.kept_bytes + 1e5
        return Law(cost.memory_bytes, disk, disk, 6 + cost.kept_bytes / 1e8, work)


def _solver_work(units: list[UnitWork], dtype: str) -> Work:
    """The work of all units of a solver."""
    return Work(
        {
            "read": sum(unit.read for unit in units),
            "matrix float32": sum(unit.float32 for unit in units),
            "matrix float64": sum(unit.float64 for unit in units),
        }
    )


def together_law(laws: Sequence[Law], jobs: int = 1) -> Law:
    """What each of some jobs takes that share the work of many, one after another.

    Args:
        laws: Of the work by itself.
        jobs: Number of jobs.

    Returns:
        Of one job, on average.
    """
    work = Work()
    for law in laws:
        work += law.work
    disk, kept, files = (sum(getattr(law, key) for law in laws) for key in ("disk_bytes", "kept_bytes", "files"))
    # Only the first of a job waits for the process to start.
    shared = Work({**work.amounts, "starts": float(jobs)}).times(1 / jobs)
    return Law(max(law.memory_bytes for law in laws), disk / jobs, kept / jobs, files / jobs, shared)
