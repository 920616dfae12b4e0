"""What an experiment asks for: which measures of which subjects, under which names, and the figures that show them."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from quadscape.config.sections import Run
from quadscape.config.values import resolved
from quadscape.errors import ConfigError
from quadscape.figures import FIGURES
from quadscape.figures.pages import PAGES
from quadscape.figures.specification import FigureSpec
from quadscape.measures import MEASURES, OWNERS
from quadscape.measures.declaration import (
    AT_START,
    GROUPS,
    WHOLE_FAMILY,
    WHOLE_RUN,
    Measure,
    Sizes,
    checkpoint_key,
    effective_options,
    fingerprint_digits,
    subject_iterations,
    subject_key,
    subset_of_key,
)
from quadscape.measures.earlier import earlier_tables, take_over
from quadscape.measures.family import Family
from quadscape.planning.experiment import MOST_RUNS
from quadscape.planning.families import OfLimit
from quadscape.planning.labels import measure_label
from quadscape.planning.laws import Law, Laws, together_law
from quadscape.planning.problem import Problem, memory_mb, runtime_minutes
from quadscape.planning.together import part_of, unknown_members
from quadscape.planning.tuned import LIMITS, TUNING
from quadscape.planning.work import NOMINAL
from quadscape.provenance.versions import STAGE_VERSIONS
from quadscape.results.places import Places
from quadscape.stored import stored_document

_STEP_SECONDS, _EXAMPLE_SECONDS, _STEP_BYTES = 0.03, 2e-5, 1e10
"""Of a step, of each of its examples, and what its rule reads per second, as far as `SMALL_MINUTES` goes: members must
not change their jobs where laws change."""
SMALL_MINUTES = 5
SMALL_PARAMETERS = 20_000
"""Members of families below both are trained many to a job; minutes by the law of time limits, which is generous."""


class Targets:
    """Results that an experiment asks for.

    Attributes:
        experiment: The experiment.
        places: Where results lie.
    """

    def __init__(self, problem: Problem, places: Places | None = None) -> None:
        """Asks for nothing yet.

        Args:
            problem: Experiment and sizes.
            places: Where results lie, if that is known already.
        """
        self.experiment = problem.experiment
        self.places = Places(self.experiment.name, self.experiment.curvature) if places is None else places
        self._problem = problem
        self._options: dict[tuple[str, int], dict[str, Any]] = {}
        self._purged: dict[tuple[str, str, str], bool] = {}

    def options(self, measure: str, run: str) -> Mapping[str, Any]:
        """Options of a measure as they are used of a run.

        Args:
            measure: Name of the measure.
            run: Name of the run, or of a family.

        Returns:
            A value for every option; defaults are clipped to what the network has.
        """
        size = max(map(self._parameters, self._runs(run)))
        if (measure, size) not in self._options:
            given = self.experiment.measures.given(measure)
            self._options[measure, size] = effective_options(MEASURES[measure], given, size)
        return self._options[measure, size]

    def _parameters(self, run: Run) -> int:
        return self._problem.networks[run.name].parameters

    def _runs(self, run: str) -> list[Run]:
        """A run by itself, or all members of a family."""
        grid = self.experiment.grid(run)
        return [self.experiment.run(run)] if grid is None else [self.experiment.run(one.run) for one in grid.members]

    def law(self, measure: str, run: str, laws: Laws | None = None) -> Law:
        """What one job of a measure takes.

        Args:
            measure: Name of the measure.
            run: Name of the run, or of a family.
            laws: Of another device than the experiment's; None: of that.

        Returns:
            Its law.
        """
        laws, runs = self._problem.laws if laws is None else laws, self._runs(run)
        found = [self._problem.sizes(one.name, laws.device_of(measure)) for one in runs]
        largest = {key: max(getattr(one, key) for one in found) for key in vars(found[0])}
        sizes = Sizes(**{**largest, "members": len(found)})
        options = self.options(measure, run)
        dtype = options.get("dtype", self.experiment.curvature.dtype)
        return laws.measure(measure, max(runs, key=self._parameters), MEASURES[measure].cost(sizes, options), dtype)

    def first_run(self, subject: str) -> str:
        """A run, or the first member of a family."""
        return self._runs(subject)[0].name

    def device(self, measure: str) -> str:
        """Where the jobs of a measure compute, `cpu` or `cuda`."""
        return self._problem.laws.device_of(measure)

    def keys(self, measure: Measure, run: str) -> list[str]:
        """Subjects of a measure within a run, as their folders are called.

        Args:
            measure: The measure.
            run: Name of the run, or of the family.

        Returns:
            `run`, `family`, iterations, or pairs of iterations as `<first>-<second>`, whether or not it is measured.
        """
        if measure.of in GROUPS:
            there = not measure.reads_start or self.experiment.start_of(run) is not None
            return [GROUPS[measure.of]] if there else []
        section = self.experiment.run(run)
        if measure.of == "run":
            return [WHOLE_RUN] if section.path is None else []
        if measure.of == "checkpoint":
            compared = [i for i in section.checkpoints if not measure.reads_subsets or section.subsets_at(i)]
            return [str(iteration) for iteration in compared]
        return [subject_key(pair) for pair in combinations(section.checkpoints, 2)]

    def result(self, measure: str, run: str, key: str) -> str:
        """Manifest of one result."""
        digits = fingerprint_digits(self.options(measure, run), measure_label(measure))
        return self.places.result(measure, run, key, digits)

    def results(self, measure: str, runs: list[str] | None = None) -> list[str]:
        """Manifests of all results of a measure.

        Args:
            measure: Name of the measure.
            runs: Which runs; None: all.

        Returns:
            In the order of the experiment file; empty where the measure is off.
        """
        return [
            self.result(measure, run, key)
            for run, key in self.subjects(measure)
            if (runs is None or run in runs) and self.is_wanted(measure, run, key)
        ]

    def subjects(self, measure: str) -> list[tuple[str, str]]:
        """Every subject of which a measure is on.

        Args:
            measure: Name of the measure.

        Returns:
            Run, or family, and key of each.
        """
        of = MEASURES[measure].of
        return [
            (one.name, key)
            for one in (self.experiment.groups(of) if of in GROUPS else self.experiment.runs)
            if self.experiment.is_measured(measure, one.name)
            for key in self.keys(MEASURES[measure], one.name)
        ]

    def is_wanted(self, measure: str, run: str, key: str) -> bool:
        """Whether a result is there, is asked for by name, or can be made without computing again what was purged."""
        if self.experiment.measures.section(measure).on or Path(self.result(measure, run, key)).exists():
            return True
        declared, iterations = MEASURES[measure], subject_iterations(key)
        stages = {"hessian", "gauss_newton", "eigenbasis"}.intersection(declared.stages)
        places = [(stage, run, iteration) for stage in stages for iteration in iterations]
        if "subset_eigenbasis" in declared.reads:
            places += [("eigenbasis", run, place) for place in self.on_subset_keys(run, key)]
        if "start_eigenbasis" in declared.reads:
            places.append(("eigenbasis", *self._start(run)))
        if any(self.is_purged(*place) for place in places):
            return False
        # What reads tables of the same subject alone can be made unless these are left out.
        tables = [name for name in declared.reads if name in MEASURES and MEASURES[name].of == declared.of]
        return all(self.is_wanted(name, run, key) for name in tables)

    def on_subset_keys(self, run: str, key: str) -> list[str]:
        """A checkpoint as it is analysed on subsets of the data, `<iteration>/on-<subset>`, in the order of the run."""
        if subset_of_key(key) is not None:
            return []
        return [checkpoint_key(int(key), subset) for subset in self.experiment.run(run).subsets_at(int(key))]

    def _start(self, family: str) -> tuple[str, str]:
        """Run and iteration of the checkpoint at which all members of a family start."""
        start = self.experiment.start_of(family)
        if start is None:
            raise ConfigError(f"There is no checkpoint at which all members of '{family}' start, and no measure of it.")
        return start[0], str(start[1])

    def group(self, measure: Measure, name: str) -> Family | None:
        """The family, or pair, that a measure is of, with where its members start if that is read; None of a run."""
        grid = self.experiment.grid(name)
        reads = grid is not None and measure.of in GROUPS and measure.reads_start
        return replace(grid, start=self.experiment.start_of(name)) if grid is not None and reads else grid

    def is_purged(self, stage: str, run: str, iteration: str) -> bool:
        """Whether large arrays of a stage of a checkpoint, of a Hessian of its shards, were purged and are not back."""
        subject = (stage, run, iteration)
        if subject not in self._purged:
            found = getattr(self.places, stage)(run, iteration)
            manifests = self.places.hessian_shards(run, iteration) if stage == "hessian" else [found]
            self._purged[subject] = any(
                Path(path).with_name("purged.json").exists() and not Path(path).exists() for path in manifests
            )
        return self._purged[subject]

    def left_out(self) -> list[str]:
        """Sentences on results that are not made, since they need what was purged."""
        found = []
        for measure in MEASURES:
            subjects = self.subjects(measure)
            places = [f"{run}/{key}" for run, key in subjects if not self.is_wanted(measure, run, key)]
            if places:
                found.append(
                    f"{measure} of {', '.join(places)} is left out, since what it reads was purged; with "
                    f"`measures: {{{measure}: true}}` that is computed again."
                )
        return found

    @cached_property
    def _shown(self) -> list[str]:
        """Runs that figures show; of families all."""
        given = self.experiment.figures.runs or [run.name for run in self.experiment.listed_runs]
        groups = [grid.name for of in GROUPS for grid in self.experiment.groups(of)]
        return [*given, *groups]

    def figure_inputs(self, figure: str) -> dict[str, list[str]]:
        """What a figure reads.

        Args:
            figure: Name of the figure.

        Returns:
            Manifests by measure, of at most `MOST_RUNS` runs.
        """
        spec = FIGURES[figure]
        return self._shown_inputs(spec.tables) | self._also_shown(spec)

    def _also_shown(self, spec: FigureSpec) -> dict[str, list[str]]:
        """What a figure shows besides where it is there: of the same runs, and of pairs with the same checkpoints."""
        shown: dict[str, set[str]] = {}
        for name in dict.fromkeys(OWNERS[table].name for table in spec.tables if spec.also):
            for run, key in self._shown_subjects(name):
                shown.setdefault(run, set()).update(subject_iterations(key))
        found = {}
        for name in dict.fromkeys(OWNERS[table].name for table in spec.also):
            found[name] = [
                self.result(name, run, key)
                for run, key in self.subjects(name)
                if not shown.get(run, set()).isdisjoint(subject_iterations(key)) and self.is_wanted(name, run, key)
            ]
        return {name: paths for name, paths in found.items() if paths}

    def page_inputs(self, page: str) -> dict[str, list[str]]:
        """What an interactive page reads.

        Args:
            page: Name of the page.

        Returns:
            Manifests by measure, of the same runs as those of figures.
        """
        return self._shown_inputs(PAGES[page].tables)

    def _shown_inputs(self, tables: tuple[str, ...]) -> dict[str, list[str]]:
        subjects = {OWNERS[table].name: self._shown_subjects(OWNERS[table].name) for table in tables}
        # Of several measures of checkpoints, say, only what all of them have: one may be restricted to some runs.
        found = {}
        for name, own in subjects.items():
            alike = [set(other) for of, other in subjects.items() if MEASURES[of].of == MEASURES[name].of]
            found[name] = [self.result(name, *one) for one in own if all(one in others for others in alike)]
        return found

    def _shown_subjects(self, measure: str) -> list[tuple[str, str]]:
        """Run and key of every result of a measure that figures show."""
        wanted = [(run, key) for run, key in self.subjects(measure) if self.is_wanted(measure, run, key)]
        having = {run for run, _ in wanted}
        runs = [run for run in self._shown if run in having][:MOST_RUNS]
        return [(run, key) for run, key in wanted if run in runs]

    def figures(self) -> list[str]:
        """Files of all figures for which there is anything to show (overlaps need two checkpoints of a run)."""
        drawable = [name for name in FIGURES if all(self.figure_inputs(name).values())]
        return [self.places.figure(name, kind) for name in drawable for kind in ("svg", "png")]

    def pages(self) -> list[str]:
        """Files of all interactive pages for which there is anything to show."""
        return [self.places.page(name) for name in PAGES if all(self.page_inputs(name).values())]

    def take_over_earlier(self) -> list[str]:
        """Takes tables of earlier versions over, where results of now are missing; nothing is measured.

        Returns:
            Sentences on what was taken over, and on what is measured again and why.
        """
        taken, refused = 0, dict[str, list[str]]()
        for name, measure in MEASURES.items():
            for run, key in self.subjects(name):
                earlier = earlier_tables(self.places.root, measure, run, key)
                manifest = self.result(name, run, key)
                if not earlier or Path(manifest).exists():
                    continue
                options, inputs = self.options(name, run), self.inputs(measure, run, key)
                reason = take_over(measure, measure_label(name), options, inputs, earlier, manifest)
                if reason and self.is_wanted(name, run, key):
                    refused.setdefault(f"{name}: {reason}", []).append(f"{run}/{key}")
                elif not reason:
                    taken += 1
        found = [f"{taken} results of an earlier version were taken over; nothing was measured."] if taken else []
        return found + [
            f"Tables of an earlier version are measured again, for {reason}: {', '.join(where)}."
            for reason, where in refused.items()
        ]

    def inputs(self, measure: Measure, run: str, key: str) -> dict[str, list[str]]:
        """Everything that a measure reads, by name.

        Args:
            measure: The measure.
            run: Name of the run, or of the family.
            key: `run`, `family`, an iteration, or a pair of them.

        Returns:
            Manifests or root metadata, of a pair the first, then the second, of a family those of its members.
        """
        iterations, grid = subject_iterations(key), self.experiment.grid(run)
        runs = [run] if grid is None else [member.run for member in grid.members]
        found: dict[str, list[str]] = {}
        for name in measure.reads:
            if name == "data":
                found[name] = [self.data(one, next(iter(iterations), "")) for one in runs]
            elif name == "trajectory":
                found[name] = [self.places.trajectory(one) for one in runs]
            elif name == "subset_data":
                found[name] = [self.data(run, place) for place in self.on_subset_keys(run, key)]
            elif name == "subset_eigenbasis":
                found[name] = [self.places.eigenbasis(run, place) for place in self.on_subset_keys(run, key)]
            elif name in AT_START:
                found[name] = [getattr(self.places, AT_START[name])(*self._start(run))]
            elif name in MEASURES:
                found[name] = [self.result(name, *subject) for subject in self.tables_read(name, measure, run, key)]
            else:
                found[name] = [getattr(self.places, name)(run, iteration) for iteration in iterations]
        return found

    def tables_read(self, name: str, measure: Measure, run: str, key: str) -> list[tuple[str, str]]:
        """Subjects of another measure whose tables a measure reads.

        Args:
            name: The other measure.
            measure: The measure that reads it.
            run: Name of the run, or of the family.
            key: `run`, `family`, an iteration, or a pair of them.

        Returns:
            Run and key of each result.
        """
        if MEASURES[name].of == measure.of:
            return [(run, key)]
        iterations, grid = subject_iterations(key), self.experiment.grid(run)
        runs = [run] if grid is None else [member.run for member in grid.members]
        if grid is not None and MEASURES[name].of == "checkpoint":
            # Also where their learning rates come from: that is of the same networks.
            at = [(one, key) for one in runs for key in self.keys(MEASURES[name], one)]
            limits = [subject for one in runs for subject in self._limit_subjects(one)] if name == LIMITS else []
            return list(dict.fromkeys([*limits, *at]))
        return [(one, subject) for one in runs for subject in iterations or [WHOLE_RUN]]

    def findings_inputs(self, _: Any = None) -> dict[str, list[str]]:
        """Manifests of all results, by measure."""
        found = {name: self.results(name) for name in MEASURES}
        return {name: paths for name, paths in found.items() if paths}

    def settings(self) -> dict[str, dict[str, Any]]:
        """What findings need to know of runs besides their tables; of families what all of their members agree in."""
        experiment, data = self.experiment, self._problem.data
        found: dict[str, dict[str, Any]] = {}
        for run in experiment.runs:
            known: dict[str, Any] = {
                "data": experiment.data.source,
                "classes": len(data.classes),
                "N": self._problem.training_images(run),
                "P": self._problem.networks[run.name].parameters,
                "loss": experiment.loss_of(run),
            }
            if (normalization := getattr(experiment.model_of(run), "normalization", None)) is not None:
                known["normalization"] = normalization
            trained = {
                **({"momentum": run.momentum, "nesterov": run.nesterov} if run.rule()["momentum"] is not None else {}),
                "batch_size": run.batch_of(self._problem.training_images(run)),
                "weight_decay": run.rule()["weight_decay"],
                "sampling": run.sampling,
            }
            found[run.name] = known | (trained if run.path is None else {})
        for grid in experiment.grids:
            first, *others = [found[member.run] for member in grid.members]
            found[grid.name] = {k: v for k, v in first.items() if all(k in one and one[k] == v for one in others)}
        shown = {run.name for run in experiment.listed_runs} | {grid.name for grid in experiment.grids}
        measured = {run for name in MEASURES for run, _ in self.subjects(name)}
        return {name: known for name, known in found.items() if name in shown | measured}

    def data(self, run: str, key: str = "") -> str:
        """The data of a run, or those on which a checkpoint is analysed.

        Args:
            run: Name of the run.
            key: The checkpoint's folder; empty for the training.

        Returns:
            Root metadata of the data store.
        """
        subset = self.experiment.subset_of(run, key)
        return self.places.data if subset is None else self.places.subset(subset)

    def trained_on(self, run: str, key: str) -> list[str]:
        """The data that a run was trained on, where a checkpoint is analysed on a subset."""
        return [] if subset_of_key(key) is None else [self.data(run)]

    def iteration_pattern(self) -> str:
        """A regular expression for a checkpoint: its iteration, and `/on-<subset>` where there are subsets."""
        names = "|".join(re.escape(subset.name) for subset in self.experiment.subsets)
        return rf"\d+(?:/on-(?:{names}))?" if names else r"\d+"

    def on_subsets(self) -> list[str]:
        """Eigenbases that are asked for on subsets of the data, and stay there.

        Returns:
            Not those that were purged, whose tables are made, nor those that the workflow purges once they are.
        """
        comparing = [name for name, measure in MEASURES.items() if measure.reads_subsets]
        return [
            self.places.eigenbasis(run.name, key)
            for run in self.experiment.runs
            if self.experiment.keep != "tables"
            or not any(self.experiment.is_measured(name, run.name) for name in comparing)
            for subset, iterations in run.curvature_on.items()
            for key in (checkpoint_key(iteration, subset) for iteration in iterations)
            if not self.is_purged("eigenbasis", run.name, key)
        ]

    def training(self, run: str) -> dict[str, Any]:
        """What determines a training, as far as it is known before anything is chosen: parameters of its rule."""
        section, experiment = self.experiment.run(run), self.experiment
        chosen = {} if section.chosen is None else {"chosen": resolved(section.chosen)}
        return {
            "version": STAGE_VERSIONS["training"],
            "training": {**resolved(section.training()), **chosen},
            "seed": experiment.run_seed(section),
            "model": resolved(experiment.model_of(section)),
            "model_code": self._problem.networks[run].code,
            "loss": experiment.loss_of(section),
        }

    def training_inputs(self, run: str) -> dict[str, list[str]]:
        """What a training reads, by name."""
        section = self.experiment.run(run)
        start, basis = section.start, section.basis()
        return {
            "data": [self.data(run)],
            "start": [] if start is None else [self.places.start(start.run, start.iteration)],
            "eigenbasis": [] if basis is None else [self.places.eigenbasis(*basis)],
            "chosen": self.tuning(run),
        }

    @cached_property
    def small_members(self) -> dict[str, tuple[str, int]]:
        """Family and part of every member that is trained together with others, by name."""
        found = {}
        for run in self.experiment.runs:
            family, _, digits = run.name.partition("/")
            batch, parameters = run.batch_of(self._problem.training_images(run)), self._parameters(run)
            step = _STEP_SECONDS + _EXAMPLE_SECONDS * batch + self._problem.laws.step_bytes(run) / _STEP_BYTES
            if digits and run.iterations * step < 60 * (SMALL_MINUTES + 1) and parameters <= SMALL_PARAMETERS:
                found[run.name] = (family, part_of(run.name))
        return found

    def part(self, run: str) -> str:
        """Where the manifest of a small member is kept by the job that trains it with others."""
        return self.places.together(*self.small_members[run])

    def part_members(self, family: str, part: int | str) -> list[str]:
        """Small members of a part of a family."""
        return [run for run, place in self.small_members.items() if place == (family, int(part))]

    def part_inputs(self, wildcards: Any) -> dict[str, list[str]]:
        """What the trainings of a part of a family read, by name."""
        each = [self.training_inputs(run) for run in self.part_members(wildcards.family, wildcards.part)]
        return {name: list(dict.fromkeys(path for one in each for path in one[name])) for name in each[0]}

    def part_trainings(self, wildcards: Any) -> dict[str, dict[str, Any]]:
        """Parameters, inputs and manifest of every training of a part of a family, by name of the run."""
        return {
            run: {
                "parameters": self.training(run),
                "inputs": self.training_inputs(run),
                "manifest": self.places.trajectory(run),
            }
            for run in self.part_members(wildcards.family, wildcards.part)
        }

    def outgrown(self) -> list[str]:
        """Results of families that had other members, or were called otherwise, when they were measured."""
        found = []
        for name, measure in MEASURES.items():
            for family, key in self.subjects(name) if measure.of in GROUPS else ():
                manifest, grid = self.result(name, family, key), self.group(measure, family)
                stored = stored_document(manifest)
                if (
                    stored is not None
                    and grid is not None
                    and stored.get("options", {}).get("family") != grid.document()
                ):
                    found.append(manifest)
        return found

    def part_minutes(self, wildcards: Any, attempt: int) -> int:
        """Time limit of the trainings of a part of a family."""
        members = self.part_members(wildcards.family, wildcards.part)
        law = together_law([self._problem.laws.of("training", run) for run in members])
        return runtime_minutes(law.work.seconds(NOMINAL[self._problem.laws.device_of("train_together")]) / 60, attempt)

    def parts_of(self, trajectories: list[str]) -> list[str]:
        """The parts whose members are to be trained again."""
        return list(
            dict.fromkeys(self.part(r) for r in self.small_members if self.places.trajectory(r) in trajectories)
        )

    def grown_parts(self) -> list[str]:
        """Parts of families that were trained before they had all of their present members."""
        parts = {self.part(run): place for run, place in self.small_members.items()}
        return [
            part
            for part, place in parts.items()
            if Path(part).exists()
            and any(
                not Path(self.places.trajectory(run)).exists()
                for run in unknown_members(part, self.part_members(*place))
            )
        ]

    def tuning(self, run: str) -> list[str]:
        """The tables from which a run takes what it chooses; nothing where it chooses nothing."""
        return [self.result(*subject) for subject in self.tuning_subjects(run)]

    def tuning_subjects(self, run: str) -> list[tuple[str, str, str]]:
        """Measure, run or family, and key of each of these tables."""
        choice = self.experiment.choices.get(run)
        if choice is None or isinstance(choice, OfLimit):
            return [(LIMITS, *subject) for subject in self._limit_subjects(run)]
        return [(TUNING, choice.family, WHOLE_FAMILY)]

    def _limit_subjects(self, run: str) -> list[tuple[str, str]]:
        """Of the range tests that give a run its learning rate; none where it is given otherwise."""
        choice = self.experiment.choices.get(run)
        starts = choice.starts if isinstance(choice, OfLimit) else ()
        return [(start, str(iteration)) for start, iteration in starts]

    def everything(self) -> list[str]:
        """All figures and pages, the findings, which read every result, and eigenbases on subsets."""
        findings = [self.places.findings("rst")] if self.findings_inputs() else []
        return [*self.figures(), *self.pages(), *findings, *self.on_subsets()]

    def clipped(self) -> list[str]:
        """Sentences on defaults that were clipped to the size of the network."""
        found = []
        for name, measure in MEASURES.items():
            given = self.experiment.measures.given(name)
            for run in dict(self.subjects(name)):
                options = self.options(name, run)
                found += [
                    f"measures.{name}.{option.name} is {options[option.name]} instead of its default {option.default}, "
                    "since the network has no more parameters."
                    for option in measure.options
                    if option.parameters_at_most and option.name not in given and options[option.name] < option.default
                ]
        return list(dict.fromkeys(found))


class MeasureRule:
    """What the workflow's rule of one measure consists of; every function takes Snakemake's wildcards.

    Attributes:
        name: Name of the rule.
        measure: Name of the measure.
        label: Label of its code.
        output: The manifest that it declares.
        log: Its log.
        on_gpu: Whether it gains from a GPU.
    """

    def __init__(self, measure: Measure, targets: Targets) -> None:
        """Fills in the wildcards of the measure's subject.

        Args:
            measure: The measure.
            targets: Results of the experiment.
        """
        self._declared = measure
        key = self._key({name: f"{{{name}}}" for name in measure.wildcards})
        whole = f"{{{self._wildcard}}}"
        self.name, self.measure = f"measure_{measure.name}", measure.name
        self.label, self.on_gpu = measure_label(measure.name), measure.gpu
        self.output = targets.places.result(measure.name, whole, key, "{digits}")
        self.log = f"logs/{targets.experiment.name}/{self.name}/{whole}/{key}-{{digits}}.log"
        self._targets = targets

    def _key(self, wildcards: Any) -> str:
        if self._declared.of in GROUPS:
            return GROUPS[self._declared.of]
        return subject_key([wildcards[name] for name in self._declared.wildcards])

    @property
    def _wildcard(self) -> str:
        """What Snakemake calls the run, family or pair."""
        return {"family": "family", "run_pair": "pair"}.get(self._declared.of, "run")

    def _subject(self, wildcards: Any) -> str:
        return str(getattr(wildcards, self._wildcard))

    def inputs(self, wildcards: Any) -> dict[str, list[str]]:
        """Everything that the measure reads, by name; of a pair the first, then the second."""
        run, iterations = self._subject(wildcards), [wildcards[name] for name in self._declared.wildcards]
        found = self._targets.inputs(self._declared, run, self._key(wildcards))
        if "hessian" in found:
            # Not named to the job, which finds them; but if one was removed, it must be there again.
            shards = self._targets.places.hessian_shards
            found["shards"] = [shard for iteration in iterations for shard in shards(run, iteration)]
        return found

    def options(self, wildcards: Any) -> dict[str, Any]:
        """The measure's options, and what the family is where it is of one."""
        subject = self._subject(wildcards)
        grid = self._targets.group(self._declared, subject)
        family = {} if grid is None else {"family": grid.document()}
        return {**self._targets.options(self.measure, subject), **family}

    def memory(self, wildcards: Any, attempt: int) -> int:
        """Memory in MB."""
        return memory_mb(self._targets.law(self.measure, self._subject(wildcards)).memory_bytes / 1e6, attempt)

    def runtime(self, wildcards: Any, attempt: int) -> int:
        """Time limit in minutes."""
        work = self._targets.law(self.measure, self._subject(wildcards)).work
        return runtime_minutes(work.seconds(NOMINAL[self._targets.device(self.measure)]) / 60, attempt)


def measure_rules(targets: Targets) -> list[MeasureRule]:
    """The rules of all measures.

    Args:
        targets: Results of the experiment.

    Returns:
        One rule for each measure, in the order of the experiment file.
    """
    return [MeasureRule(measure, targets) for measure in MEASURES.values()]
