"""What an experiment will take, before anything of it is made: memory, disk, files and time of every stage.

All of it by the laws of `quadscape.planning.laws`, from which SLURM's resources follow, too. Times are counted work
over speeds, which on a device of this machine are measured (`quadscape.planning.speeds`). A GPU that is not here has
nominal ones, which small networks do not reach.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from quadscape.amounts import format_bytes, format_seconds
from quadscape.config.sections import Run
from quadscape.measures import MEASURES
from quadscape.numerics import apply_numerics, current_threads
from quadscape.planning.laws import Law, Laws, together_law
from quadscape.planning.problem import Problem
from quadscape.planning.speeds import measure_speeds
from quadscape.planning.targets import Targets
from quadscape.planning.work import NOMINAL

PURGED: dict[str, tuple[str, ...]] = {
    "all": (),
    "bases": ("hessian_shard",),
    "tables": ("hessian_shard", "gauss_newton", "eigenbasis"),
}
"""Stages whose matrices the workflow purges, by `keep`."""
_MOST_LINES = 4
"""Of one stage."""


@dataclass(frozen=True)
class Need:
    """What one stage takes.

    Attributes:
        stage: Its name.
        jobs: How often the experiment has it.
        memory_bytes: Of the host, for one of them.
        disk_bytes: Of one of them, while it is at work.
        seconds: Of one of them.
        kept_bytes: Of one of them, when it is finished; None: as much.
        files: Of one of them.
    """

    stage: str
    jobs: int
    memory_bytes: float
    disk_bytes: float
    seconds: float
    kept_bytes: float | None = None
    files: float = 0.0

    @property
    def kept(self) -> float:
        """Bytes of all of them, when they are finished."""
        return self.jobs * (self.disk_bytes if self.kept_bytes is None else self.kept_bytes)


@dataclass(frozen=True)
class Estimates:
    """What an experiment takes on one device.

    Attributes:
        device: `cpu` or `cuda`.
        measured: Whether the speeds were measured here; they are nominal otherwise.
        needs: By stage, in the order in which they run.
        passing_bytes: What is purged on the way, by `keep`, and must be there at one time.
    """

    device: str
    measured: bool
    needs: tuple[Need, ...]
    passing_bytes: float = 0.0

    @property
    def memory_bytes(self) -> float:
        """Of the largest stage."""
        return max(need.memory_bytes for need in self.needs)

    @property
    def disk_bytes(self) -> float:
        """Of all stages together, when they are finished."""
        return sum(need.kept for need in self.needs)

    @property
    def peak_bytes(self) -> float:
        """The most at any time, if one job is at work: what some need on the way comes to what is kept."""
        on_the_way = max(need.disk_bytes - need.kept / need.jobs for need in self.needs)
        return self.disk_bytes + max(on_the_way, self.passing_bytes)

    @property
    def files(self) -> float:
        """Of all stages together."""
        return sum(need.jobs * need.files for need in self.needs)

    @property
    def seconds(self) -> float:
        """Of all stages, one after another."""
        return sum(need.jobs * need.seconds for need in self.needs)


class _Estimator:
    """Estimates of one experiment on one device."""

    def __init__(self, problem: Problem, device: str) -> None:
        self.problem, self.experiment, self.targets = problem, problem.experiment, Targets(problem)
        pinned = problem.experiment.model_copy(update={"device": device})
        self.laws = Laws(replace(problem, experiment=pinned), device)
        self.measured = device == "cpu" or torch.cuda.is_available()
        self._speeds = self._measure(device)
        self.passing_bytes = 0.0

    def _measure(self, device: str) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        """Speeds by run and device; of a GPU that is not here nominal ones."""
        countable = self.problem.countable
        runs = [run for _, runs in self.experiment.networks() for run in runs[:1]]
        devices = [one for one in {"cpu", device} if one == "cpu" or torch.cuda.is_available()]
        found: dict[str, dict[str, Mapping[str, float]]] = {run.name: dict(NOMINAL) for run in self.experiment.runs}
        for one in devices if self.measured else []:
            networks = [(countable[run.name], self.problem.counts(run.name)) for run in runs]
            speeds = measure_speeds(networks, runs[0], self.experiment.curvature.dtype, one)
            for (_, alike), known in zip(self.experiment.networks(), speeds, strict=True):
                for run in alike:
                    found[run.name][one] = known
        return found

    def need(self, stage: str, law: Law, run: str, jobs: int, device: str) -> Need:
        """A line of the table."""
        seconds = law.work.seconds(self._speeds[run][device])
        return Need(stage, jobs, law.memory_bytes, law.disk_bytes, seconds, law.kept_bytes, law.files)

    def of(self, stage: str, run: Run, jobs: int, called: str = "") -> Need:
        """A line for a stage."""
        law = self.laws.of(stage, run.name)
        return self.need(called or stage, law, run.name, jobs, self.laws.device_of(stage))

    def all(self) -> Iterator[Need]:
        """All lines."""
        experiment, runs = self.experiment, self.experiment.runs
        yield self.of("data", runs[0], 1 + len(experiment.subsets), "prepare_data")
        yield from self.trainings()
        starts = {(run.start.run, run.start.iteration) for run in runs if run.start is not None}
        for run in runs:
            if count := sum(name == run.name for name, _ in starts):
                yield self.of("extract_start", run, count)
        for same in self.networks():
            yield from self.curvature(same)
        for name in MEASURES:
            yield from self.measure(name)

    def networks(self) -> list[list[Run]]:
        """Runs by network and number of examples."""
        groups: dict[tuple[int, int], list[Run]] = {}
        for index, (_, runs) in enumerate(self.experiment.networks()):
            for run in runs:
                groups.setdefault((index, self.problem.training_images(run)), []).append(run)
        return list(groups.values())

    def trainings(self) -> Iterator[Need]:
        """Runs that are trained each in a job of its own, then those that share one."""
        small = self.targets.small_members
        for same in _alike([run for run in self.experiment.runs if run.path is None and run.name not in small]):
            yield self.of("training", same[0], len(same))
        if not small:
            return
        jobs = len(set(small.values()))
        law = together_law([self.laws.of("training", run) for run in small], jobs)
        yield self.need("train_together", law, next(iter(small)), jobs, self.laws.device_of("train_together"))

    def curvature(self, runs: list[Run]) -> Iterator[Need]:
        """Stages of the checkpoints of runs with one network."""
        checkpoints = sum(len(run.checkpoints) for run in runs)
        on_subsets = sum(len(iterations) for run in runs for iterations in run.curvature_on.values())
        if not checkpoints:
            return
        dense, shards = checkpoints + on_subsets, self.experiment.curvature.shards
        matrices = {"hessian_shard": dense * shards, "hessian": dense}
        if self.experiment.curvature.gauss_newton:
            matrices["gauss_newton"] = checkpoints  # no measure reads it on a subset
        matrices["eigenbasis"] = dense
        yield self.of("checkpoint", runs[0], checkpoints, "extract_checkpoint")
        needs = {stage: self.of(stage, runs[0], jobs) for stage, jobs in matrices.items()}
        gone = PURGED[self.experiment.keep]
        yield from (replace(need, kept_bytes=0.0) if stage in gone else need for stage, need in needs.items())
        # A Hessian with all its shards, and the bases of all checkpoints that are compared with each other.
        together = max(len(run.checkpoints) + sum(map(len, run.curvature_on.values())) for run in runs)
        times = {"hessian_shard": shards, "gauss_newton": 1, "eigenbasis": together}
        passing = sum(times[stage] * needs[stage].kept / needs[stage].jobs for stage in gone if stage in needs)
        self.passing_bytes = max(self.passing_bytes, passing)

    def measure(self, name: str) -> Iterator[Need]:
        """The jobs of one measure, by network."""
        groups: dict[str, list[str]] = {}
        for subject, _ in self.targets.subjects(name):
            groups.setdefault(self._network_of(subject), []).append(subject)
        for subjects in groups.values():
            law, run = self.targets.law(name, subjects[0], self.laws), self.targets.first_run(subjects[0])
            yield self.need(f"measure_{name}", law, run, len(subjects), self.laws.device_of(name))

    def _network_of(self, subject: str) -> str:
        run = self.experiment.run(self.targets.first_run(subject))
        return subject if self.experiment.grid(subject) else f"{self.experiment.model_of(run)} {run.examples}"


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that take the same, in groups: listed ones one by one, members of families by all but their seeds."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        kind = run.model_dump_json(exclude={"name", "seed"}) if "/" in run.name else run.name
        groups.setdefault(kind, []).append(run)
    return list(groups.values())


def estimate_experiment(problem: Problem, devices: Sequence[str] = ("cpu", "cuda")) -> list[Estimates]:
    """What every stage of an experiment takes.

    Args:
        problem: Experiment and sizes; neither data nor checkpoints are read.
        devices: `cpu`, `cuda` or both.

    Returns:
        One for each device. A GPU that is not here is estimated at nominal speeds.
    """
    apply_numerics(current_threads())
    found = []
    for device in devices:
        estimator = _Estimator(problem, device)
        needs = tuple(estimator.all())
        found.append(Estimates(device, estimator.measured, needs, estimator.passing_bytes))
    return found


def _lines(needs: Sequence[Need]) -> list[list[Need]]:
    """Needs by line: a stage of many networks or families has one for all of them."""
    by_stage: dict[str, list[Need]] = {}
    for need in needs:
        by_stage.setdefault(need.stage, []).append(need)
    return [
        line
        for found in by_stage.values()
        for line in ([found] if len(found) > _MOST_LINES else [[need] for need in found])
    ]


def _range(values: Sequence[float], write: Callable[[float], str]) -> str:
    texts = [write(min(values)), write(max(values))]
    return texts[0] if texts[0] == texts[1] else " … ".join(texts)


def format_estimates(estimates: Sequence[Estimates]) -> str:
    """Tables for people, one for each device.

    Args:
        estimates: What `estimate_experiment` returned.

    Returns:
        The tables, without a line break at the end.
    """
    lines = []
    for part in estimates:
        measured = "one core, speeds measured here" if part.device == "cpu" else "speeds measured here"
        source = measured if part.measured else "assumed nominal speeds, since there is no GPU here"
        lines.append(f"{part.device} ({source})")
        rows = [["stage", "jobs", "memory", "disk", "time", "all disk", "all time"]]
        rows += [
            [
                needs[0].stage,
                str(sum(need.jobs for need in needs)),
                _range([need.memory_bytes for need in needs], format_bytes),
                _range([need.disk_bytes for need in needs], format_bytes),
                _range([need.seconds for need in needs], format_seconds),
                format_bytes(sum(need.kept for need in needs)),
                format_seconds(sum(need.jobs * need.seconds for need in needs)),
            ]
            for needs in _lines(part.needs)
        ]
        total = [format_bytes(part.disk_bytes), format_seconds(part.seconds)]
        rows.append(["total", "", format_bytes(part.memory_bytes), "", "", *total])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  " + "  ".join(cells).rstrip())
        files = f"{round(part.files, -1 if part.files < 1000 else -2):,.0f}"
        peak = f"At most {format_bytes(part.peak_bytes)} of disk, if one checkpoint is at work at a time"
        lines.append(f"  {peak}, and about {files} files.")
    return "\n".join(lines)
