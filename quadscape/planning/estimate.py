"""What an experiment will take, before anything of it is made: memory, disk and time of every stage.

Memory, disk and the cuts of the work come from the stages themselves, which plan here for a loss over one image that
stands for all: no data are loaded and no checkpoint exists. Times are counted work over rates. On a device of this
machine the rates are measured in seconds: one strip of the Hessian, one product, one training step, and products and
reads of plain matrices. A GPU that is not here has nominal rates, which small networks do not reach.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from quadscape.amounts import format_bytes, format_seconds
from quadscape.config.sections import Curvature, Run
from quadscape.curvature.eigenbasis import disk_bytes, host_bytes
from quadscape.curvature.eigensolver import basis_specs, make_solver, plan_solver
from quadscape.curvature.engine import HessianEngine
from quadscape.curvature.gauss_newton import GaussNewtonEngine, GaussNewtonTask
from quadscape.curvature.hessian import HessianShardTask, resident_bytes
from quadscape.curvature.solver_plan import NOMINAL_RATES, Rates, streamed_plan
from quadscape.curvature.strips import column_block, flops_per_example, matrix_spec
from quadscape.curvature.verification import FORCED, SIGN_PROBES, sampled_ranks
from quadscape.measures import MEASURES
from quadscape.network.models import build_model, cast, initial_vector
from quadscape.network.objective import CheckpointObjectives, Objective, data_chunk
from quadscape.network.parameters import ParameterLayout
from quadscape.numerics import apply_numerics, current_threads
from quadscape.planning.experiment import Experiment
from quadscape.planning.problem import Problem, memory_mb
from quadscape.planning.targets import Targets
from quadscape.training.optimizers import make_optimizer, state_names
from quadscape.training.steps import DTYPES, Trainer
from quadscape.training.task import FULL_CHUNK

_UNIT_OVERHEAD = 0.04
"""Seconds for which a unit is written, synced and journalled, whatever it holds (measured)."""
_UNIT_STEPS = 256
"""Most steps of a unit of training."""
_START = 0.5
"""Seconds until a process has used everything for the first time (measured)."""
_MEASURED_SECONDS = 0.3
"""After which no piece of work is timed again: there are some for each network."""
_DISK_RATE = 1e9
_CUDA_SHARE = 0.25
"""Part of the nominal rate of a GPU that convolutions and the products of the Hessian reach (docs/performance.md)."""
_CUDA_LAUNCH = 5e-3
"""Seconds of one training step of any network on a GPU: launches of kernels."""


@dataclass(frozen=True)
class Need:
    """What one stage takes.

    Attributes:
        stage: Its name.
        jobs: How often the experiment has it.
        memory_bytes: Of the host, for one of them.
        disk_bytes: Of one of them.
        seconds: Of one of them.
    """

    stage: str
    jobs: int
    memory_bytes: float
    disk_bytes: float
    seconds: float


@dataclass(frozen=True)
class Estimates:
    """What an experiment takes on one device.

    Attributes:
        device: `cpu` or `cuda`.
        measured: Whether the rates were measured here; they are nominal otherwise.
        needs: By stage, in the order in which they run.
    """

    device: str
    measured: bool
    needs: tuple[Need, ...]

    @property
    def memory_bytes(self) -> float:
        """Of the largest stage."""
        return max(need.memory_bytes for need in self.needs)

    @property
    def disk_bytes(self) -> float:
        """Of all stages together."""
        return sum(need.jobs * need.disk_bytes for need in self.needs)

    @property
    def seconds(self) -> float:
        """Of all stages, one after another."""
        return sum(need.jobs * need.seconds for need in self.needs)


# ---------------------------------------------------------------------------------------------------------------------
# A loss that nobody has to store


class _ImaginedObjectives(CheckpointObjectives):
    """Objectives at the initial parameters over one random image, which stands for all N by a stride of zero."""

    def __init__(self, problem: Problem) -> None:
        super().__init__("", "", "train")
        experiment, data = problem.experiment, problem.data
        classes = len(data.classes)
        self._model, self._loss, self._shape, self._count = experiment.model, experiment.loss, data.shape, data.training
        self._classes = classes
        layout = ParameterLayout.of(build_model(experiment.model, data.shape, classes))
        vector = initial_vector(experiment.model, data.shape, classes, experiment.seed).numpy()
        self.__dict__["checkpoint"] = SimpleNamespace(theta=vector, layout=layout, shape=data.shape)

    @property
    def examples(self) -> int:
        """N."""
        return self._count

    def get(self, dtype: torch.dtype, device: torch.device | str, chunk: int | None = None) -> Objective:
        """The objective in one precision.

        Args:
            dtype: Precision of the forward and backward passes.
            device: Where they run.
            chunk: Examples per chunk; None: chosen by memory.

        Returns:
            The objective.
        """
        if dtype not in self._loaded:
            device = torch.device(device)
            model = cast(build_model(self._model, self._shape, self._classes), dtype, device).eval()
            generator = torch.Generator().manual_seed(0)
            image = torch.randn(1, *self._shape, generator=generator, dtype=torch.float64).to(device, dtype)
            images = image.expand(self._count, *self._shape)
            labels = torch.zeros(1, dtype=torch.int64, device=device).expand(self._count)
            layout = self.checkpoint.layout
            objective = Objective(model, layout, images, labels, self._loss, chunk or 1)
            if chunk is None:
                objective.chunk = data_chunk(objective.graph_bytes_per_example(), self._count, device)
            self._loaded[dtype] = objective
        return self._loaded[dtype]


class _ImaginedTrainer(Trainer):
    """What a training step needs."""

    def __init__(self, objective: Objective) -> None:
        self.device, self.dtype, self.loss = objective.device, objective.dtype, objective.loss_kind
        self.splits = {"train": (objective.images, objective.labels)}
        self.model, self.layout = objective.model, objective.layout
        self.layer_sizes = [block.stop - block.start for block in objective.layout.blocks]


class _ImaginedShard(HessianShardTask):
    """A shard of its Hessian, for the plan and the estimate."""

    def __init__(self, objectives: CheckpointObjectives, config: Curvature, device: str) -> None:
        super().__init__("", "", config, device)
        self._objectives = objectives


class _ImaginedGaussNewton(GaussNewtonTask):
    """Its Gauss–Newton matrix."""

    def __init__(self, objectives: CheckpointObjectives, config: Curvature, device: str) -> None:
        super().__init__("", "", config, device)
        self._objectives = objectives


# ---------------------------------------------------------------------------------------------------------------------
# Rates


def _seconds_of(work: Callable[[], Any], device: str, repeats: int = 3) -> float:
    """The usual time of a piece of work: the median, after one that warms up; of few repetitions where it is long."""
    work()
    found: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
        if sum(found) > _MEASURED_SECONDS:
            break
    return float(np.median(found))


def measure_rates(device: str, size: int) -> Rates:
    """What a device of this machine does, on matrices of the experiment's size or of what takes a fraction of a second.

    Args:
        device: `cpu` or `cuda`.
        size: P.

    Returns:
        Bandwidth, and the rates of products.
    """
    # The matrix of a product with a vector: larger than caches only if that of the experiment is.
    products, rows = (8192, 16384) if device == "cuda" else (2048, 6144)
    return _measured_rates(device, min(max(size, 256), products), min(max(size, 256), rows))


@cache
def _measured_rates(device: str, n: int, rows: int) -> Rates:
    """The same on matrices of n×n entries, and of rows × rows for products with a vector; once for each."""
    rates = {}
    for name in ("float32", "float64"):
        matrix = torch.full((n, n), 1.0 / n, dtype=getattr(torch, name), device=device)
        rates[name] = 2 * n**3 / _seconds_of(partial(torch.matmul, matrix, matrix), device)
    matrix, vector = torch.ones(rows, rows, device=device), torch.ones(rows, device=device)
    return Rates(4 * rows**2 / _seconds_of(lambda: matrix @ vector, device, 5), rates["float32"], rates["float64"])


# ---------------------------------------------------------------------------------------------------------------------
# Stages


class _Estimator:
    """Estimates of one experiment on one device."""

    def __init__(self, problem: Problem, device: str, measured: bool) -> None:
        self.problem, self.device, self.measured = problem, device, measured
        # Where nothing can be measured, work is counted on the CPU.
        self.here = device if measured else "cpu"
        self.experiment: Experiment = problem.experiment
        self.targets = Targets(problem)
        self.size, self.count = problem.parameters, problem.data.training
        self.classes = len(problem.data.classes)
        self.objectives = _ImaginedObjectives(problem)
        self.rates = measure_rates(device, self.size) if measured else NOMINAL_RATES[device]
        forward, backward = flops_per_example(self.objective(torch.float32), self.objectives.theta)
        self.forward, self.backward = float(forward), float(backward)
        self._timed: dict[tuple[Any, ...], float] = {}

    def objective(self, dtype: torch.dtype) -> Objective:
        return self.objectives.get(dtype, self.here)

    def rate(self, dtype: torch.dtype) -> float:
        """Operations per second of convolutions where they are not measured."""
        return _CUDA_SHARE * (self.rates.float64 if dtype == torch.float64 else self.rates.float32)

    def once(self, what: tuple[Any, ...], seconds: Callable[[], float]) -> float:
        """A time that is measured when it is first asked for."""
        if what not in self._timed:
            self._timed[what] = seconds()
        return self._timed[what]

    def over_examples(self, work: Callable[[Objective], Any], dtype: torch.dtype) -> float:
        """Seconds of work that goes over all examples, measured on some whole chunks."""
        objective = self.objective(dtype)
        few = min(self.count, objective.chunk)
        while few > 16 and 4 * few * (self.forward + self.backward) > 4e9:
            few //= 2
        part = objective.part(slice(0, few))
        return _seconds_of(lambda: work(part), self.here) * self.count / few

    def product(self, dtype: torch.dtype) -> float:
        """Seconds of one Hessian product over all examples."""
        if not self.measured:
            return 2 * self.count * (self.forward + self.backward) / self.rate(dtype)
        theta, vector = self.objectives.theta, np.ones(self.size)
        return self.once(
            ("product", dtype),
            lambda: self.over_examples(lambda part: part.hessian_product(theta, vector), dtype),
        )

    def evaluation(self, dtype: torch.dtype) -> float:
        """Seconds of the loss over all training examples."""
        if not self.measured:
            return self.count * self.forward / self.rate(dtype)
        return self.once(
            ("evaluation", dtype),
            lambda: self.over_examples(lambda part: part.loss(self.objectives.theta), dtype),
        )

    def training(self, run: Run) -> Need:
        data, dtype = self.problem.data, DTYPES[run.dtype]
        total = data.training + data.validation + data.test
        step = self.step_seconds(run)
        evaluations = -(-run.iterations // run.evaluate_every) + 1
        evaluated = evaluations * self.evaluation(dtype) * total / self.count
        kept = sum(run.is_saved(t) for t in range(run.iterations + 1))
        units = -(-run.iterations // _UNIT_STEPS)
        layers = len({block.layer for block in self.objectives.checkpoint.layout.blocks})
        # Of each step: batch, loss, learning rate, norms by layer, two measures of three splits.
        disk = 8 * self.size * (kept + (1 + len(state_names(run))) * (units + 1)) + 8 * run.iterations * (
            run.batch_of(self.count) + 8 + layers
        )
        memory = 1e6 * self.problem.memory_mb("training", run=run.name)
        seconds = _START + run.iterations * step + evaluated + units * _UNIT_OVERHEAD + disk / _DISK_RATE
        return Need("training", 1, memory, disk, seconds)

    def extract_start(self, run: Run) -> Need:
        """The state of a run from which another goes on: one unit of steps at most, and its vectors written."""
        disk = 8 * self.size * (1 + len(state_names(run)))
        seconds = _START + min(_UNIT_STEPS, run.iterations) * self.step_seconds(run) + disk / _DISK_RATE
        return Need("extract_start", 1, 1e6 * self.problem.memory_mb("training", run=run.name), disk, seconds)

    def step_seconds(self, run: Run) -> float:
        """Seconds of one training step, with what stands between gradient and optimizer."""
        dtype = DTYPES[run.dtype]
        if self.measured:
            # Neither rates nor coefficients change what is computed, but for those that are zero.
            parts = (run.optimizer.method, run.nesterov, *(bool(x) for x in (run.momentum, run.weight_decay)))
            kind = ("step", dtype, run.batch_size, *parts)
            seconds = self.once(kind, lambda: self.step(run, dtype))
        else:
            seconds = _CUDA_LAUNCH + 3 * run.batch_of(self.count) * self.forward / self.rate(dtype)
        # The vectors pass by twice in float64; of a basis that is kept, not read from disk.
        return seconds + (run.step.vectors(self.size) * 16 * self.size / self.rates.bandwidth if run.step else 0.0)

    def step(self, run: Run, dtype: torch.dtype) -> float:
        """Seconds of one training step."""
        trainer = _ImaginedTrainer(self.objective(dtype))
        state = trainer.start_state(torch.from_numpy(self.objectives.theta), state_names(run))
        indices = np.arange(run.batch_of(self.count)) % self.count
        theta = torch.nn.Parameter(state.theta.clone())
        optimizer = make_optimizer(run, theta, state.moments, 0)

        def steps() -> None:
            for _ in range(4):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    if run.batch_size == "full":
                        _, gradient = trainer.full_gradient(state, FULL_CHUNK["cpu"])
                    else:
                        _, gradient = trainer.gradient(state, indices)
                    trainer.layer_norms(gradient)
                    theta.grad = gradient
                    optimizer.step()

        return _seconds_of(steps, self.here, 5) / 4

    def matrix_bytes(self) -> float:
        """Size of a stored lower triangle: of each column of files, the chunks from the diagonal on."""
        spec = matrix_spec(self.size, column_block(self.size), self.experiment.curvature.dtype, "")
        rows, block = spec.chunks
        chunks = sum(-(-self.size // rows) - start // rows for start in range(0, self.size, block))
        return chunks * rows * block * np.dtype(spec.dtype).itemsize

    def shards(self) -> Need:
        config = self.experiment.curvature
        disk = self.matrix_bytes() / config.shards
        if self.measured:
            task = _ImaginedShard(self.objectives, config, self.device)
            plan = task.plan()
            estimate = task.estimate(plan)
            assert estimate.seconds is not None
            units = task.units(plan)
            memory, seconds = estimate.memory_bytes, estimate.seconds
        else:
            dtype = getattr(torch, config.dtype)
            engine = HessianEngine(self.objective(dtype), self.objectives.theta)
            units = 64
            memory = resident_bytes(self.device, self.objectives)
            seconds = engine.flops(0, self.size) / self.rate(dtype) / config.shards
        overhead = units * _UNIT_OVERHEAD + disk / _DISK_RATE
        return Need("hessian_shard", config.shards, memory, disk, seconds + overhead)

    def hessian(self) -> Need:
        itemsize = np.dtype(self.experiment.curvature.dtype).itemsize
        seconds = SIGN_PROBES * (self.product(torch.float64) + self.product(torch.float32))
        # The matrix is read once, and multiplied with the sign vectors in float64 on the CPU.
        seconds += self.size**2 / 2 * (itemsize / _DISK_RATE + 4 * SIGN_PROBES / NOMINAL_RATES["cpu"].float64)
        memory = resident_bytes(self.device, self.objectives) + self.product_bytes() + 24 * self.size * 64
        units = -(-SIGN_PROBES // 4)
        return Need("hessian", 1, memory, 2 * self.size * SIGN_PROBES * 8, seconds + units * _UNIT_OVERHEAD)

    def product_bytes(self) -> int:
        return 0 if self.device == "cuda" else self.objective(torch.float64).product_bytes()

    def gauss_newton(self) -> Need:
        config = self.experiment.curvature
        dtype = getattr(torch, config.dtype)
        entries = self.size**2 / 2
        disk = self.matrix_bytes() + 2 * self.size * SIGN_PROBES * 8
        products = SIGN_PROBES * (self.product(torch.float64) + self.product(torch.float32))
        if self.measured:
            task = _ImaginedGaussNewton(self.objectives, config, self.device)
            plan = task.plan()
            memory = float(task.estimate(plan).memory_bytes)
            bounds = plan["runs"]
            few = self.objective(dtype).part(slice(0, plan["examples"]))
            engine = GaussNewtonEngine(few, self.objectives.theta, plan["examples"])
            one = _seconds_of(lambda: list(engine.columns(bounds[0], bounds[1], plan["block"])), self.here, 2)
            runs = [(2 * self.size - a - b) * (b - a) for a, b in pairwise(bounds)]
            seconds = one * self.count / few.count * sum(runs) / runs[0]
            units = task.units(plan)
        else:
            memory, units = float(resident_bytes(self.device, self.objectives)), 32
            seconds = 2 * self.count * self.classes * entries / self.rates.float32
            seconds += 8 * self.count * (self.forward + self.classes * self.backward) / self.rate(dtype)
        overhead = units * _UNIT_OVERHEAD + 2 * disk / _DISK_RATE
        return Need("gauss_newton", 1, memory, disk, seconds + products + overhead)

    def eigenbasis(self) -> Need:
        dtype = self.experiment.curvature.dtype
        if self.measured:
            plan = plan_solver(self.size, dtype, torch.device(self.device))
        else:
            plan = streamed_plan(self.size, dtype, self.device)
        solver = make_solver(self.size, dtype, {**plan, "device": self.device, "threads": current_threads()}, _no_fill)
        rate = self.rates.float32 if dtype == "float32" else self.rates.float64
        checked = (
            len(sampled_ranks(self.size)) + SIGN_PROBES + len(self.objectives.checkpoint.layout.blocks) + 2 * FORCED
        )
        specs = basis_specs(self.size, dtype, plan["block"])
        disk = disk_bytes([*specs, *solver.scratch]) + 8 * self.size * checked
        units = solver.units + -(-checked // 4)
        seconds = sum(solver.seconds(self.rates)) + checked * self.product(torch.float64) + units * _UNIT_OVERHEAD
        # The check of orthogonality multiplies half of QᵀQ; estimates of all residuals are in float64.
        seconds += self.size**3 / rate + 4 * self.size**2 * SIGN_PROBES / self.rates.float64 + 3 * disk / _DISK_RATE
        memory = host_bytes({**plan, "device": self.device}, solver, self.product_bytes())
        return Need("eigenbasis", 1, memory, disk, seconds)

    def measure(self, name: str) -> Need:
        """What the jobs of one measure take, by its law and the rates of this device."""
        jobs = len(self.targets.results(name))
        # All runs share network and data, so any of them says what one job takes.
        run = self.targets.subjects(name)[0][0]
        cost, options = self.targets.cost(name, run), self.targets.options(name, run)
        dtype = getattr(torch, options.get("dtype", self.experiment.curvature.dtype))
        rate = self.rates.float64 if dtype == torch.float64 else self.rates.float32
        seconds = _START + cost.flops / rate
        # Of a single example: a gradient takes some four evaluations.
        evaluations = cost.evaluations + 4 * cost.gradients
        if evaluations:
            seconds += evaluations / self.count * self.evaluation(dtype)
        if cost.products:
            seconds += cost.products / self.count * self.product(dtype)
        return Need(
            f"measure_{name}", jobs, 1e6 * memory_mb(cost.memory_bytes / 1e6, 1), 1e5 + cost.kept_bytes, seconds
        )

    def trainings(self) -> list[Need]:
        """Runs that are trained each in a job of its own."""
        runs = [run for run in self.experiment.runs if run.path is None and run.name not in self.targets.small_members]
        return [replace(self.training(same[0]), jobs=len(same)) for same in _alike(runs)]

    def trainings_together(self) -> list[Need]:
        """Members of families that are trained many to a job."""
        runs = [run for run in self.experiment.runs if run.name in self.targets.small_members]
        if not runs:
            return []
        needs = [(self.training(same[0]), len(same)) for same in _alike(runs)]
        jobs = len({self.targets.part(run.name) for run in runs})
        seconds, disk = (sum(getattr(n, key) * count for n, count in needs) for key in ("seconds", "disk_bytes"))
        # Only the first of a job waits for the process to start.
        seconds -= _START * (len(runs) - jobs)
        memory = max(need.memory_bytes for need, _ in needs)
        return [Need("train_together", jobs, memory, disk / jobs, seconds / jobs)]

    def all(self) -> tuple[Need, ...]:
        runs = self.experiment.runs
        needs = [*self.trainings(), *self.trainings_together()]
        starts = {(run.start.run, run.start.iteration) for run in runs if run.start is not None}
        for run in runs:
            if count := sum(name == run.name for name, _ in starts):
                needs.append(replace(self.extract_start(run), jobs=count))
        checkpoints = sum(len(run.checkpoints) for run in runs)
        on_subsets = sum(len(iterations) for run in runs for iterations in run.curvature_on.values())
        if checkpoints:
            each = [(need, checkpoints + on_subsets) for need in (self.shards(), self.hessian(), self.eigenbasis())]
            if self.experiment.curvature.gauss_newton:
                each.insert(2, (self.gauss_newton(), checkpoints))  # no measure reads it on a subset
            needs += [
                Need(n.stage, n.jobs * count, n.memory_bytes, n.disk_bytes, n.seconds + _START) for n, count in each
            ]
        return (*needs, *(self.measure(name) for name in MEASURES if self.targets.results(name)))


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that take the same, in groups: listed ones one by one, members of families by all but their seeds."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        kind = run.model_dump_json(exclude={"name", "seed"}) if "/" in run.name else run.name
        groups.setdefault(kind, []).append(run)
    return list(groups.values())


def _no_fill(_: torch.Tensor) -> None:
    raise NotImplementedError  # nothing is computed here


def estimate_experiment(problem: Problem, devices: Sequence[str] = ("cpu", "cuda")) -> list[Estimates]:
    """What every stage of an experiment takes.

    Args:
        problem: Experiment and sizes; neither data nor checkpoints are read.
        devices: `cpu`, `cuda` or both.

    Returns:
        One for each device. A GPU that is not here is estimated from nominal rates.
    """
    apply_numerics(current_threads())
    found = []
    for device in devices:
        measured = device == "cpu" or torch.cuda.is_available()
        needs = [need for part in _by_network(problem) for need in _Estimator(part, device, measured).all()]
        found.append(Estimates(device, measured, tuple(needs)))
    return found


def _by_network(problem: Problem) -> list[Problem]:
    """The problem in parts whose runs share a network, in the order of the runs."""
    experiment = problem.experiment
    return [
        replace(
            problem,
            experiment=experiment.with_runs(runs, model),
            networks={run.name: problem.networks[run.name] for run in runs},
        )
        for model, runs in experiment.networks()
    ]


def format_estimates(estimates: Sequence[Estimates]) -> str:
    """Tables for people, one for each device.

    Args:
        estimates: What `estimate_experiment` returned.

    Returns:
        The tables, without a line break at the end.
    """
    lines = []
    for part in estimates:
        source = "rates measured here" if part.measured else "assumed nominal rates, since there is no GPU here"
        lines.append(f"{part.device} ({source})")
        rows = [["stage", "jobs", "memory", "disk", "time", "all disk", "all time"]]
        rows += [
            [
                need.stage,
                str(need.jobs),
                format_bytes(need.memory_bytes),
                format_bytes(need.disk_bytes),
                format_seconds(need.seconds),
                format_bytes(need.jobs * need.disk_bytes),
                format_seconds(need.jobs * need.seconds),
            ]
            for need in part.needs
        ]
        total = [format_bytes(part.disk_bytes), format_seconds(part.seconds)]
        rows.append(["total", "", format_bytes(part.memory_bytes), "", "", *total])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
