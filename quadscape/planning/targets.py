"""What an experiment asks for: which measures of which subjects, under which names, and the figures that show them."""

from collections.abc import Mapping
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from quadscape.figures import FIGURES
from quadscape.measures import MEASURES, OWNERS
from quadscape.measures.declaration import (
    WHOLE_RUN,
    Cost,
    Measure,
    effective_options,
    fingerprint_digits,
    subject_iterations,
    subject_key,
)
from quadscape.measures.earlier import earlier_tables, take_over
from quadscape.planning.experiment import MOST_RUNS
from quadscape.planning.labels import measure_label
from quadscape.planning.problem import Problem, memory_mb, runtime_minutes
from quadscape.results.places import Places


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
            run: Name of the run.

        Returns:
            A value for every option; defaults are clipped to what the network has.
        """
        size = self._problem.sizes(run).parameters
        if (measure, size) not in self._options:
            given = self.experiment.measures.given(measure)
            self._options[measure, size] = effective_options(MEASURES[measure], given, size)
        return self._options[measure, size]

    def cost(self, measure: str, run: str) -> Cost:
        """What one job of a measure takes."""
        return MEASURES[measure].cost(self._problem.sizes(run), self.options(measure, run))

    def keys(self, measure: Measure, run: str) -> list[str]:
        """Subjects of a measure within a run, as their folders are called.

        Args:
            measure: The measure.
            run: Name of the run.

        Returns:
            `run`, iterations, or pairs of iterations as `<first>-<second>`, whether or not it is measured.
        """
        section = self.experiment.run(run)
        if measure.of == "run":
            return [WHOLE_RUN] if section.path is None else []
        if measure.of == "checkpoint":
            return [str(iteration) for iteration in section.checkpoints]
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
            for run, key in self._subjects(measure)
            if (runs is None or run in runs) and self._is_wanted(measure, run, key)
        ]

    def _subjects(self, measure: str) -> list[tuple[str, str]]:
        """Run and key of every subject of which a measure is on."""
        return [
            (run.name, key)
            for run in self.experiment.runs
            if self.experiment.is_measured(measure, run.name)
            for key in self.keys(MEASURES[measure], run.name)
        ]

    def _is_wanted(self, measure: str, run: str, key: str) -> bool:
        """Whether a result is there, is asked for by name, or can be made without computing again what was purged."""
        if self.experiment.measures.section(measure).on:
            return True
        iterations = subject_iterations(key)
        stages = {"hessian", "gauss_newton", "eigenbasis"}.intersection(MEASURES[measure].stages)
        purged = any(self._is_purged(stage, run, iteration) for stage in stages for iteration in iterations)
        return not purged or Path(self.result(measure, run, key)).exists()

    def _is_purged(self, stage: str, run: str, iteration: str) -> bool:
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
            subjects = self._subjects(measure)
            places = [f"{run}/{key}" for run, key in subjects if not self._is_wanted(measure, run, key)]
            if places:
                found.append(
                    f"{measure} of {', '.join(places)} is left out, since what it reads was purged; with "
                    f"`measures: {{{measure}: true}}` that is computed again."
                )
        return found

    @cached_property
    def _shown(self) -> list[str]:
        given = self.experiment.figures.runs
        return list(given) if given else [run.name for run in self.experiment.runs]

    def figure_inputs(self, figure: str) -> dict[str, list[str]]:
        """What a figure reads.

        Args:
            figure: Name of the figure.

        Returns:
            Manifests by measure, of at most `MOST_RUNS` runs.
        """
        found = {}
        for name in dict.fromkeys(OWNERS[table].name for table in FIGURES[figure].tables):
            having = {run for run, key in self._subjects(name) if self._is_wanted(name, run, key)}
            found[name] = self.results(name, [run for run in self._shown if run in having][:MOST_RUNS])
        return found

    def figures(self) -> list[str]:
        """Files of all figures for which there is anything to show (overlaps need two checkpoints of a run)."""
        drawable = [name for name in FIGURES if all(self.figure_inputs(name).values())]
        return [self.places.figure(name, kind) for name in drawable for kind in ("svg", "png")]

    def take_over_earlier(self) -> list[str]:
        """Takes tables of earlier versions over, where results of now are missing; nothing is measured.

        Returns:
            Sentences on what was taken over, and on what is measured again and why.
        """
        taken, refused = 0, dict[str, list[str]]()
        for name, measure in MEASURES.items():
            for run, key in self._subjects(name):
                earlier = earlier_tables(self.places.root, measure, run, key)
                manifest = self.result(name, run, key)
                if not earlier or Path(manifest).exists():
                    continue
                options, inputs = self.options(name, run), self.inputs(measure, run, key)
                reason = take_over(measure, measure_label(name), options, inputs, earlier, manifest)
                if reason:
                    refused.setdefault(f"{name}: {reason}", []).append(f"{run}/{key}")
                else:
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
            run: Name of the run.
            key: `run`, an iteration, or a pair of them.

        Returns:
            Manifests or root metadata, of a pair the first, then the second.
        """
        iterations = subject_iterations(key)
        found: dict[str, list[str]] = {}
        for name in measure.reads:
            if name == "data":
                found[name] = [self.places.data]
            elif name == "trajectory":
                found[name] = [self.places.trajectory(run)]
            elif name in MEASURES:
                subjects = [key] if MEASURES[name].of == measure.of else iterations or [WHOLE_RUN]
                found[name] = [self.result(name, run, subject) for subject in subjects]
            else:
                found[name] = [getattr(self.places, name)(run, iteration) for iteration in iterations]
        return found

    def findings_inputs(self, _: Any = None) -> dict[str, list[str]]:
        """Manifests of all results, by measure."""
        found = {name: self.results(name) for name in MEASURES}
        return {name: paths for name, paths in found.items() if paths}

    def settings(self) -> dict[str, dict[str, Any]]:
        """What findings need to know of each run besides its tables; of a run from elsewhere only what is certain."""
        experiment, data = self.experiment, self._problem.data
        found = {}
        for run in experiment.runs:
            known: dict[str, Any] = {
                "data": experiment.data.source,
                "classes": len(data.classes),
                "N": data.training,
                "P": self._problem.networks[run.name].parameters,
                "loss": experiment.loss,
            }
            if (normalization := getattr(experiment.model_of(run), "normalization", None)) is not None:
                known["normalization"] = normalization
            trained = {
                **({"momentum": run.momentum, "nesterov": run.nesterov} if run.rule()["momentum"] is not None else {}),
                "batch_size": run.batch_of(data.training),
                "weight_decay": run.rule()["weight_decay"],
                "sampling": run.sampling,
            }
            found[run.name] = known | (trained if run.path is None else {})
        return found

    def everything(self) -> list[str]:
        """All figures, and the findings, which read every result."""
        return [*self.figures(), self.places.findings("rst")] if self.findings_inputs() else self.figures()

    def clipped(self) -> list[str]:
        """Sentences on defaults that were clipped to the size of the network."""
        found = []
        for name, measure in MEASURES.items():
            given = self.experiment.measures.given(name)
            for run in dict(self._subjects(name)):
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
    """

    def __init__(self, measure: Measure, targets: Targets) -> None:
        """Fills in the wildcards of the measure's subject.

        Args:
            measure: The measure.
            targets: Results of the experiment.
        """
        key = subject_key([f"{{{name}}}" for name in measure.wildcards])
        self.name, self.measure = f"measure_{measure.name}", measure.name
        self.label = measure_label(measure.name)
        self.output = targets.places.result(measure.name, "{run}", key, "{digits}")
        self.log = f"logs/{targets.experiment.name}/{self.name}/{{run}}/{key}-{{digits}}.log"
        self._declared, self._targets = measure, targets

    def inputs(self, wildcards: Any) -> dict[str, list[str]]:
        """Everything that the measure reads, by name; of a pair the first, then the second."""
        run, iterations = wildcards.run, [wildcards[name] for name in self._declared.wildcards]
        found = self._targets.inputs(self._declared, run, subject_key(iterations))
        if "hessian" in found:
            # Not named to the job, which finds them; but if one was removed, it must be there again.
            shards = self._targets.places.hessian_shards
            found["shards"] = [shard for iteration in iterations for shard in shards(run, iteration)]
        return found

    def options(self, wildcards: Any) -> dict[str, Any]:
        """The measure's options."""
        return dict(self._targets.options(self.measure, wildcards.run))

    def memory(self, wildcards: Any, attempt: int) -> int:
        """Memory in MB."""
        return memory_mb(self._targets.cost(self.measure, wildcards.run).memory_bytes / 1e6, attempt)

    def runtime(self, wildcards: Any, attempt: int) -> int:
        """Time limit in minutes."""
        return runtime_minutes(self._targets.cost(self.measure, wildcards.run).nominal_seconds / 60, attempt)


def measure_rules(targets: Targets) -> list[MeasureRule]:
    """The rules of all measures.

    Args:
        targets: Results of the experiment.

    Returns:
        One rule for each measure, in the order of the experiment file.
    """
    return [MeasureRule(measure, targets) for measure in MEASURES.values()]
