"""The experiment: every key, its default and its meaning.

This module and `quadscape.config` are the single source of the experiment file's schema: the workflow validates with it
before any job starts, `config.yaml` states the same defaults, and docs/configuration.md is generated from it
(`quadscape reference`). It imports neither torch nor zarr, so that Snakemake's head starts fast.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from quadscape.config.sections import (
    ByEigenbasis,
    Constant,
    Curvature,
    Data,
    Loss,
    Model,
    Projected,
    RandomSubspace,
    ResNet9,
    Run,
    Start,
    Subset,
    Training,
)
from quadscape.config.values import FloatType, Index, Name, NotEmpty, Real, Section, listed
from quadscape.errors import ConfigError
from quadscape.measures import MEASURES
from quadscape.measures.declaration import GROUPS, Measure, Option, Subject, subset_of_key
from quadscape.measures.family import Family, Member


def _option_type(option: Option) -> Any:
    """Type of a measure's option with its bounds."""
    kind: Any = {int: int, float: Real, str: str}[type(option.default)]
    if option.at_least is not None or option.above is not None:
        kind = Annotated[kind, Field(ge=option.at_least, gt=option.above)]
    if not option.odd and option.check is None:
        return kind

    def check(value: Any) -> Any:
        if option.odd and value % 2 == 0:
            raise ValueError(f"{option.name} must be odd, {option.odd}")
        if option.check is not None:
            option.check(value)
        return value

    return Annotated[kind, AfterValidator(check)]


class MeasureSection(Section):
    """What the sections of all measures share."""

    on: bool | None = None
    """Whether it is measured; none: where everything that it reads is computed, or, of a measure that is off unless it
    is asked for, where `runs` names some. `false` or `true` can stand in place of the whole section."""
    runs: Annotated[tuple[Name, ...], NotEmpty] | None = None
    """Names of the runs of which it is measured; none: all of them."""


_MADE_HERE = {"use_attribute_docstrings": False}
"""For classes without a source text: pydantic would look for it in every frame, when every head or job starts."""


def _measure_section(measure: Measure) -> type[MeasureSection]:
    fields: dict[str, Any] = {
        option.name: (_option_type(option), Field(option.default, description=option.description))
        for option in measure.options
    }
    name = "".join(word.title() for word in measure.name.split("_"))
    return create_model(name, __base__=MeasureSection, __doc__=measure.title, __cls_kwargs__=_MADE_HERE, **fields)


MEASURE_SECTIONS: dict[str, type[MeasureSection]] = {
    name: _measure_section(measure) for name, measure in MEASURES.items()
}
"""The section of every measure, made from its declaration."""


class Measures(Section):
    """What is measured, with which options, for which runs; every measure has a section of its own."""

    dtype: FloatType = "float64"
    """Precision of the network in measures that evaluate it."""

    def section(self, measure: str) -> MeasureSection:
        """The section of a measure."""
        return getattr(self, measure)

    def given(self, measure: str) -> dict[str, Any]:
        """The options of a measure that the experiment file gives, and `dtype`."""
        section = self.section(measure)
        chosen = section.model_fields_set - MeasureSection.model_fields.keys()
        return {"dtype": self.dtype, **{name: getattr(section, name) for name in chosen}}


if TYPE_CHECKING:
    AllMeasures = Measures
else:
    AllMeasures = create_model(
        "AllMeasures",
        __base__=Measures,
        __doc__=Measures.__doc__,
        __cls_kwargs__=_MADE_HERE,
        **{
            name: (section, Field(section(), description=MEASURES[name].title))
            for name, section in MEASURE_SECTIONS.items()
        },
    )


MOST_RUNS = 8
"""Runs that one figure shows."""


class Figures(Section):
    """What figures show."""

    runs: Annotated[tuple[Name, ...], NotEmpty, Field(max_length=MOST_RUNS)] | None = None
    """Names of the runs that figures show, at most eight; none: the first eight."""


class FamilySection(Section):
    """A grid of runs: every combination of the levels of its axes is trained."""

    name: Name
    """Name of the family; the folder of its members' results, unless an equal run is there already."""
    vary: Annotated[dict[str, dict[str, dict[str, Any]] | list[Any]], Field(min_length=1)]
    """Axes by name. Each is a mapping from labels to keys that such a level gives, or a list of values of the key that
    the axis is called after; `learning_rate.value` is a key within a section."""
    set: dict[str, Any] = {}  # ruff: ignore[mutable-class-default]: pydantic copies it
    """Keys that all members share, as in a run."""


class Experiment(Section):
    """One experiment: the whole content of an experiment file.

    Members of families are runs like others, after those that the file lists.
    """

    name: Name = "cifar10"
    """Name of the experiment; everything lands in `results/<name>/`."""
    seed: Index = 0
    """Seed of the data split, and of initial parameters and batch order unless a run has its own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live. `auto`: CUDA where there is one; inside a job that was given a GPU, no CUDA is an error."""
    data: Data = Data()
    """The data set."""
    model: Model = ResNet9()
    """The network."""
    loss: Loss = "cross_entropy"
    """Loss of one example: cross-entropy, or ½|f(x) − onehot(y)|²."""
    training: Training = Training()
    """Training parameters that all runs share."""
    runs: Annotated[tuple[Run, ...], NotEmpty] = (
        Run(name="drops", checkpoints=(0, 2000, 20000, 48800)),
        Run(name="constant-0.01", learning_rate=Constant(schedule="constant", value=0.01)),
        Run(name="constant-0.001", learning_rate=Constant(schedule="constant", value=0.001)),
    )
    """The training runs."""
    subsets: tuple[Subset, ...] = ()
    """Parts or orders of the data, for runs that are trained on them and curvature that is computed on them."""
    families: tuple[FamilySection, ...] = ()
    """Grids of training runs."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of runs, for measures that compare two; each two names of runs."""
    curvature: Curvature = Curvature()
    """Hessian and eigenbasis."""
    measures: AllMeasures = AllMeasures()
    """What is measured."""
    figures: Figures = Figures()
    """What figures show."""
    keep: Literal["all", "bases", "tables"] = "all"
    """What stays on disk of each checkpoint. `all`: everything. `bases`: Hessians go as soon as their eigenbasis, and
    all that reads them, is finished. `tables`: eigenbases and Gauss–Newton matrices go, too, in a last job, once all
    that reads them is."""

    @field_validator("runs")
    @classmethod
    def _unique(cls, value: tuple[Run, ...]) -> tuple[Run, ...]:
        names = [run.name for run in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two runs are called '{name}'; names must differ")
        return value

    @field_validator("families", "subsets")
    @classmethod
    def _names_differ(cls, value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        names = [one.name for one in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two {info.field_name} are called '{name}'; names must differ")
        return value

    _grids: tuple[Family, ...] = PrivateAttr(())
    _members: Mapping[str, frozenset[str]] = PrivateAttr({})
    _only_members: frozenset[str] = PrivateAttr(frozenset())
    _choices: Mapping[str, Any] = PrivateAttr({})

    @property
    def grids(self) -> tuple[Family, ...]:
        """The families with their members, in the order of the file."""
        return self._grids

    @property
    def choices(self) -> Mapping[str, Any]:
        """What runs take from the best cell of a family (`quadscape.planning.families.Choice`), by name of the run."""
        return self._choices

    def enter_families(self, grids: tuple[Family, ...], choices: Mapping[str, Any]) -> None:
        """Completes an experiment whose runs hold the members of all families, and checks it."""
        self._grids, self._choices = grids, choices
        self._members = {grid.name: frozenset(member.run for member in grid.members) for grid in grids}
        self._only_members = frozenset(run for runs in self._members.values() for run in runs if "/" in run)
        try:
            self.check_runs()
        except ValueError as error:
            raise ConfigError(f"{error}.") from None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # Where there are families, their members may be named: then it is checked once these are known.
        if not self.families:
            self.check_runs()
        return self

    def check_runs(self) -> None:
        """Checks what runs, families and measures say of each other; a `ValueError` names what is wrong."""
        names, families = [run.name for run in self.runs], [grid.name for grid in self.grids]
        for name in families:
            if name in names:
                raise ValueError(f"families has the name '{name}', which is that of a run; names must differ")
        for where, chosen, valid in self._chosen_runs(names, families):
            for name in chosen:
                if name not in valid:
                    kind, kinds = ("family", "families") if set(valid) <= set(families) else ("run", "runs")
                    known = [one for one in valid if one not in self._only_members]
                    raise ValueError(f"{where} names the {kind} '{name}'; the {kinds} are {listed(known)}")
        for index, pair in enumerate(self.pairs):
            for name in pair:
                if name not in names:
                    known = [run.name for run in self.listed_runs]
                    raise ValueError(f"pairs[{index}] names the run '{name}'; the runs are {listed(known)}")
            if pair[0] == pair[1]:
                raise ValueError(f"pairs[{index}] names the run '{pair[0]}' twice; valid are two runs")
        for run in self.runs:
            if run.start is not None:
                self._check_start(run, run.start)
            self._check_subsets(run)
        for run in self.runs:
            if isinstance(run.step, ByEigenbasis):
                self._check_step(run, run.step)
        for name, measure in MEASURES.items():
            if self.measures.section(name).on and "gauss_newton" in measure.reads and not self.curvature.gauss_newton:
                raise ValueError(f"measures.{name} is on, and needs curvature.gauss_newton to be true")
            if measure.reads_start:
                self._check_common_start(measure)

    def _check_subsets(self, run: Run) -> None:
        names = [subset.name for subset in self.subsets]
        for key, name in [
            *([("examples", run.examples)] if run.examples else []),
            *(("curvature_on", name) for name in run.curvature_on),
        ]:
            if name not in names:
                raise ValueError(f"{self.where(run)}: {key} names the subset '{name}'; the subsets are {listed(names)}")
        for name, iterations in run.curvature_on.items():
            for iteration in iterations:
                if iteration not in run.checkpoints:
                    there = listed([str(number) for number in run.checkpoints])
                    raise ValueError(
                        f"{self.where(run)}: curvature_on.{name} names iteration {iteration}, which is no checkpoint "
                        f"of the run; its checkpoints are {there}"
                    )

    def subset(self, name: str) -> Subset:
        """The subset of that name."""
        return next(subset for subset in self.subsets if subset.name == name)

    def subset_of(self, run: str, key: str = "") -> str | None:
        """The subset that a run is trained on, or that a checkpoint `<iteration>/on-<subset>` is analysed on.

        Args:
            run: Name of the run.
            key: The checkpoint; empty for the training.

        Returns:
            Its name; None for all data.
        """
        return subset_of_key(key) or self.run(run).examples

    def _check_start(self, run: Run, start: Start) -> None:
        where, by_name = f"start of run '{run.name}'", {other.name: other for other in self.runs}
        chain, following = [run.name], run.start
        while following is not None and following.run in by_name and following.run not in chain:
            chain.append(following.run)
            following = by_name[following.run].start
        if following is not None and following.run in chain:
            raise ValueError(f"{where}: these runs start from each other, {' from '.join([*chain, following.run])}")
        if start.run not in by_name:
            raise ValueError(f"{where} names the run '{start.run}'; the runs are {listed(list(by_name))}")
        parent = by_name[start.run]
        if parent.path is not None:
            raise ValueError(f"{where} names the run '{parent.name}', which has a path and is not trained")
        if start.iteration > parent.iterations:
            raise ValueError(
                f"{where} names iteration {start.iteration} of run '{parent.name}', which ends at iteration "
                f"{parent.iterations}"
            )
        if self.model_of(run) != self.model_of(parent):
            raise ValueError(f"{where} names the run '{parent.name}', which has another model")
        if start.optimizer == "kept" and run.optimizer.method != parent.optimizer.method:
            raise ValueError(
                f"{where} keeps the state of optimizer {parent.optimizer.method}, but the run's is "
                f"{run.optimizer.method}; valid is optimizer: fresh"
            )
        for key in ("batch_size", "remainder", "sampling") if start.batches == "kept" else ():
            if getattr(run, key) != getattr(parent, key):
                raise ValueError(
                    f"{where} goes on in the batches of run '{parent.name}', whose {key} is {getattr(parent, key)}, "
                    f"but the run's is {getattr(run, key)}; valid is batches: fresh"
                )

    def _check_step(self, run: Run, step: ByEigenbasis) -> None:
        where, by_name = f"step of run '{run.name}'", {other.name: other for other in self.runs}
        if step.run not in by_name:
            raise ValueError(f"{where} names the run '{step.run}'; the runs are {listed(list(by_name))}")
        parent = by_name[step.run]
        chain = self._chain(parent.name, run.name)
        if chain:
            raise ValueError(f"{where}: these runs need each other, {' needs '.join([run.name, *chain])}")
        if step.iteration not in parent.checkpoints:
            raise ValueError(
                f"{where} names iteration {step.iteration} of run '{parent.name}', whose checkpoints are "
                f"{listed(list(map(str, parent.checkpoints)))}"
            )
        if self.model_of(run) != self.model_of(parent):
            raise ValueError(f"{where} names the run '{parent.name}', which has another model")

    def _check_common_start(self, measure: Measure) -> None:
        """Checks the families for which a measure that reads their start is asked for by name."""
        section, groups, kind = self.measures.section(measure.name), self.groups(measure.of), GROUPS[measure.of]
        if section.on is False or (section.on is None and section.runs is None):
            return
        asked = f".runs names the {kind}" if section.runs is not None else f".on is true, also for the {kind}"
        for grid in groups:
            problem = "" if section.runs is not None and grid.name not in section.runs else self._start_problem(grid)
            if problem:
                valid = listed([one.name for one in groups if not self._start_problem(one)])
                raise ValueError(
                    f"measures.{measure.name}{asked} '{grid.name}', {problem}; valid as runs are those whose members "
                    f"all start from one of the checkpoints of one run, with its loss and examples: {valid}"
                )

    def start_of(self, name: str) -> tuple[str, int] | None:
        """Where all members of a family start.

        Args:
            name: Name of the family, or of a pair.

        Returns:
            Run and iteration of one of that run's checkpoints; None where there is none that they share, with its loss
            and examples.
        """
        grid = self.grid(name)
        start = None if grid is None or self._start_problem(grid) else self.run(grid.members[0].run).start
        return None if start is None else (start.run, start.iteration)

    def _start_problem(self, grid: Family) -> str:
        """Why there is no one checkpoint at which all members start; empty where there is."""
        by_name = {run.name: run for run in self.runs}
        members = [(_called(member), by_name[member.run]) for member in grid.members]
        places: dict[tuple[str, int], str] = {}
        for called, run in members:
            if run.start is None:
                return f"whose {called} starts by itself"
            places.setdefault((run.start.run, run.start.iteration), called)
        (name, iteration), *others = places
        parent, where = by_name[name], f"at iteration {iteration} of run '{name}'"
        if others:
            return f"whose {places[others[0]]} starts at iteration {others[0][1]} of run '{others[0][0]}', not {where}"
        if iteration not in parent.checkpoints:
            return f"whose members start {where}, whose checkpoints are {listed(list(map(str, parent.checkpoints)))}"
        for called, run in members:
            for key, own, theirs in [
                ("loss", self.loss_of(run), self.loss_of(parent)),
                ("examples", run.examples or "all", parent.examples or "all"),
            ]:
                if own != theirs:
                    return f"whose {called} has {key} {own}, but starts {where}, which has {theirs}"
        return ""

    def _chain(self, name: str, last: str) -> list[str]:
        """Runs from one to another, each of which starts from the next or steps by its basis; none if it is not so."""
        by_name, chains, seen = {run.name: run for run in self.runs}, [[name]], {name}
        while chains:
            chain = chains.pop(0)
            if chain[-1] == last:
                return chain
            run = by_name[chain[-1]]
            needed = [run.start.run if run.start else "", (run.basis() or [""])[0]]
            chains += [[*chain, one] for one in needed if one in by_name and one not in seen]
            seen.update(needed)
        return []

    def _chosen_runs(
        self, names: list[str], families: list[str]
    ) -> Iterator[tuple[str, tuple[str, ...], Sequence[str]]]:
        yield "figures.runs", self.figures.runs or (), names
        for name, measure in MEASURES.items():
            of_groups = [grid.name for grid in self.groups(measure.of)]
            valid = of_groups if measure.of in GROUPS else [*names, *families]
            yield f"measures.{name}.runs", self.measures.section(name).runs or (), valid

    def is_measured(self, measure: str, run: str) -> bool:
        """Whether a measure is on for a run, or for a family; for members of one only where `runs` names it."""
        section = self.measures.section(measure)
        computed = self.curvature.gauss_newton or "gauss_newton" not in MEASURES[measure].reads
        asked = MEASURES[measure].by_default or section.runs is not None
        on = computed and asked if section.on is None else section.on
        if section.runs is None:
            return on and run not in self._only_members
        return on and (run in section.runs or any(run in self._members.get(name, ()) for name in section.runs))

    def is_member(self, run: str) -> bool:
        """Whether a run belongs to a family."""
        return any(run in runs for runs in self._members.values())

    def groups(self, of: Subject) -> tuple[Family, ...]:
        """What measures of several runs are of: families, or pairs, `pairs/<first>/<second>`, as families of two."""
        if of == "family":
            return self.grids
        pairs = self.pairs if of == "run_pair" else ()
        return tuple(
            Family(f"pairs/{first}/{second}", {"run": pair}, (), tuple(Member(run, {"run": run}) for run in pair))
            for pair in pairs
            for first, second in [pair]
        )

    def grid(self, name: str) -> Family | None:
        """The family, or pair, of that name; None where there is none."""
        return next((grid for grid in (*self.grids, *self.groups("run_pair")) if grid.name == name), None)

    @property
    def listed_runs(self) -> tuple[Run, ...]:
        """The runs that the experiment file lists, without those that only families have."""
        return tuple(run for run in self.runs if run.name not in self._only_members)

    def run(self, name: str) -> Run:
        """The run of that name.

        Args:
            name: A run's name.

        Returns:
            Its parameters, with the shared ones filled in.

        Raises:
            ConfigError: There is no such run.
        """
        for run in self.runs:
            if run.name == name:
                return run
        raise ConfigError(f"runs: there is no run '{name}'; the runs are {listed([r.name for r in self.listed_runs])}.")

    def where(self, run: Run) -> str:
        """How the experiment file calls a run: `runs[2]`, or a member by its family and labels."""
        for index, one in enumerate(self.listed_runs):
            if one.name == run.name:
                return f"runs[{index}]"
        for grid in self.grids:
            for member in grid.members:
                if member.run == run.name:
                    return "".join(
                        [f"family '{grid.name}'", *(f", {axis} {text}" for axis, text in member.labels.items())]
                    )
        return f"run '{run.name}'"

    def model_of(self, run: Run) -> Model:
        """The network of a run: its own, or the experiment's."""
        return self.model if run.model is None else run.model

    def loss_of(self, run: Run) -> Loss:
        """The loss of a run: its own, or the experiment's."""
        return self.loss if run.loss is None else run.loss

    def networks(self) -> list[tuple[Model, tuple[Run, ...]]]:
        """Every network and loss once, with the runs that share them, in the order of the runs."""
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(f"{self.loss_of(run)} {self.model_of(run).model_dump_json()}", []).append(run)
        return [(self.model_of(runs[0]), tuple(runs)) for runs in groups.values()]

    def with_runs(self, runs: tuple[Run, ...], model: Model) -> "Experiment":
        """A part of the experiment: some runs, and what of the families is left of them.

        Args:
            runs: The runs.
            model: The network of all of them, which share their loss, too.

        Returns:
            The part, which is not checked again.
        """
        names = {run.name for run in runs}
        grids = [replace(grid, members=tuple(one for one in grid.members if one.run in names)) for grid in self.grids]
        part = self.model_copy(update={"runs": runs, "model": model, "loss": self.loss_of(runs[0])})
        part._grids = tuple(grid for grid in grids if grid.members)
        return part

    def run_seed(self, run: Run) -> int:
        """Seed of a run: its own, or the experiment's."""
        return self.seed if run.seed is None else run.seed


def _called(member: Member) -> str:
    labels = ", ".join(f"{axis} {label}" for axis, label in member.labels.items())
    return f"member ({labels})" if labels else "member"


def _key_of(experiment: Experiment, run: Run) -> str:
    where = experiment.where(run)
    return f"{where}." if where.startswith("runs[") else f"{where}: "


def check_problem(experiment: Experiment, parameters: Mapping[str, int], images: Mapping[str, int]) -> None:
    """Checks what depends on the sizes of networks and data set.

    Args:
        experiment: The experiment.
        parameters: P, the number of parameters, by name of the run.
        images: N, the number of training images, by name of the run.

    Raises:
        ConfigError: More directions, ranks, shards or bands than parameters, or a batch larger than the training set.
    """
    for name, size in parameters.items():
        of_run = f" of run '{name}'" if len(set(parameters.values())) > 1 else ""
        for measure in MEASURES.values():
            given = experiment.measures.given(measure.name) if experiment.is_measured(measure.name, name) else {}
            for option in measure.options:
                if option.name not in given:
                    continue
                key, value = f"measures.{measure.name}.{option.name}", given[option.name]
                if option.parameters_at_most and value > size:
                    raise ConfigError(
                        f"{key} is {value}, but the network{of_run} has only {size} parameters and so as many "
                        f"eigenvectors; valid are {option.at_least:g} to {size}."
                    )
                least = 0 if option.least_parameters is None else option.least_parameters(value)
                if least > size:
                    raise ConfigError(
                        f"{key} is '{value}', which takes {least} eigenvectors, but the network{of_run} has only "
                        f"{size} parameters and so as many eigenvectors; valid are ranks that add up to no more."
                    )
        if experiment.curvature.shards > size:
            raise ConfigError(
                f"curvature.shards is {experiment.curvature.shards}, but the Hessian{of_run} has only {size} columns; "
                f"valid are 1 to the number of its column strips, which is at most {size}."
            )
    for run in experiment.runs:
        training_images = images[run.name]
        normalization = getattr(experiment.model_of(run), "normalization", "")
        if run.path is None and run.batch_size == "full" and normalization == "batch":
            raise ConfigError(
                f"{_key_of(experiment, run)}batch_size is full, whose gradient is summed over chunks of examples, but "
                "model.normalization is batch, whose statistics are those of a whole batch; valid are a number of "
                f"examples from 1 to {training_images}, or another normalization."
            )
        _check_step_size(experiment, run, parameters[run.name])
        if run.path is None and run.batch_of(training_images) > training_images:
            raise ConfigError(
                f"{_key_of(experiment, run)}batch_size is {run.batch_size}, but there are only {training_images} "
                f"training images; valid are 1 to {training_images}."
            )


def _check_step_size(experiment: Experiment, run: Run, size: int) -> None:
    """Checks that a step asks for no more vectors than there are parameters."""
    named = {"last": run.step.last} if isinstance(run.step, Projected) else {}
    named = {"dimension": run.step.dimension} if isinstance(run.step, RandomSubspace) else named
    for name, value in named.items():
        if value > size:
            raise ConfigError(
                f"{_key_of(experiment, run)}step.{name} is {value}, but the network of run '{run.name}' has only "
                f"{size} parameters; valid are 1 to {size}."
            )
