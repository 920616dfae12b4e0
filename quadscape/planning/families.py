"""Families: grids of runs, which become plain runs when the experiment file is read.

A level of an axis overrides keys of a run; every combination of levels is a run. Its name is the family's and eight
digits of what determines it, so that neither another label nor a further axis of one level trains anything again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from pydantic import ValidationError

from quadscape.config.sections import OPTIONS_OF_SGD, Run, Training
from quadscape.config.values import Section, listed, resolved
from quadscape.digests import json_digest
from quadscape.errors import ConfigError
from quadscape.measures.family import Family, Member
from quadscape.planning.experiment import Experiment, FamilySection
from quadscape.training.rate_tables import filled

MOST_MEMBERS = 4096
"""Above which a grid is taken for a mistake."""
_OF_A_RUN = ("name", "path")
_SEED = "seed"
_RATE = "learning_rate.value"
_OF_NO_RESULT = frozenset({"checkpoints", "curvature_on"})
"""Keys of a run that its training does not depend on."""

Sentence = Callable[[ValidationError, str], str]


@dataclass(frozen=True)
class Level:
    """One level of an axis.

    Attributes:
        label: Its name.
        overrides: Keys of a run that it gives, with dots for keys within sections.
    """

    label: str
    overrides: Mapping[str, Any]

    @property
    def number(self) -> float | None:
        """The number that it gives to its only key, if that is all that it does."""
        value = next(iter(self.overrides.values())) if len(self.overrides) == 1 else None
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Candidate:
    """One of the cells that a value is chosen from.

    Attributes:
        cell: The cell, as tables call it.
        levels: Its level on each axis that is chosen.
    """

    cell: str
    levels: Mapping[str, Level]


@dataclass(frozen=True)
class Choice:
    """What a run takes from the best cell of a family.

    Attributes:
        family: Name of the family.
        axes: Levels of the axes that are chosen.
        candidates: The cells among which the best is looked for.
        parts: Keys that the run itself gives, later ones over earlier ones.
    """

    family: str
    axes: Mapping[str, tuple[Level, ...]]
    candidates: tuple[Candidate, ...]
    parts: tuple[Mapping[str, Any], ...]

    @property
    def keys(self) -> set[str]:
        """Keys of `training` that are chosen."""
        return {key.split(".")[0] for levels in self.axes.values() for level in levels for key in level.overrides}

    def best(self, losses: Mapping[str, float]) -> Candidate:
        """The cell of the smallest loss.

        Args:
            losses: Validation loss of each cell of the family, infinite where a member diverged.

        Returns:
            The candidate.

        Raises:
            ConfigError: All diverged, or the best lies at the edge of a grid of numbers.
        """
        found = min(self.candidates, key=lambda candidate: losses[candidate.cell])
        if not losses[found.cell] < float("inf"):
            raise ConfigError(f"All members of family '{self.family}' that are chosen from diverged; lower its rates.")
        for axis, levels in self.axes.items():
            numbers = [level.number for level in levels]
            grid = sorted({number for number in numbers if number is not None})
            value = found.levels[axis].number
            if len(grid) < 2 or None in numbers or value not in {grid[0], grid[-1]}:
                continue
            edge, inner = (grid[0], grid[1]) if value == grid[0] else (grid[-1], grid[-2])
            following = edge * edge / inner if edge * inner > 0 else 2 * edge - inner
            raise ConfigError(
                f"The best {axis} of family '{self.family}' is {edge:g}, the {'small' if edge < inner else 'larg'}est "
                f"of its grid ({', '.join(f'{number:g}' for number in grid)}), so that a better one may lie beyond; "
                f"add {following:.3g} to it."
            )
        return found


@dataclass(frozen=True)
class OfLimit:
    """A learning rate that a run takes as a fraction of the limit of its network.

    Attributes:
        family: Name of the family whose range tests count.
        fraction: Learning rate over the limit.
        starts: Run and iteration of each checkpoint with a range test of the same network.
        parts: As those of `Choice`.
    """

    family: str
    fraction: float
    starts: tuple[tuple[str, int], ...]
    parts: tuple[Mapping[str, Any], ...]

    @property
    def keys(self) -> set[str]:
        """Keys of `training` that are chosen."""
        return {"learning_rate"}

    def rate(self, limits: Sequence[float]) -> float:
        """The learning rate.

        Args:
            limits: Limit of each of `starts`.

        Returns:
            `fraction` times the least limit, of three significant digits, so that rounding elsewhere does not tell.

        Raises:
            ConfigError: A range test found no limit.
        """
        for (run, iteration), limit in zip(self.starts, limits, strict=True):
            if not 0 < limit < float("inf"):
                raise ConfigError(
                    f"The range test of run '{run}' at iteration {iteration} found no limit, so that no learning rate "
                    f"can be chosen from family '{self.family}'; give the rate of its network by hand."
                )
        return float(f"{self.fraction * min(limits):.3g}")


def inherited(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a run with those of `training` that it does not override, each whole.

    A run with an optimizer of its own does not inherit the options of SGD either.

    Args:
        shared: The `training` section.
        own: Keys of the run.

    Returns:
        Both.
    """
    return {**{k: v for k, v in shared.items() if "optimizer" not in own or k not in OPTIONS_OF_SGD}, **own}


def expand(experiment: Experiment, raw: Mapping[str, Any], sentence: Sentence) -> Experiment:
    """Adds the members of all families to the runs; a `ConfigError` where a family, or a member of one, is impossible.

    Args:
        experiment: The experiment as it stands in its file.
        raw: The file's content.
        sentence: Makes one sentence of what is wrong with a run, which it calls as it is told.

    Returns:
        The experiment with all runs.
    """
    if not experiment.families and all(run.chosen is None for run in experiment.runs):
        return experiment
    return _Expansion(experiment, raw, sentence).whole()


def _overridden(experiment: Experiment, raw: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Keys of a run: later parts over earlier ones and over the shared ones."""
    shared = raw.get("training") or {}
    own: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            first, *rest = key.split(".")
            if not rest:
                own[first] = value
                continue
            inner = own[first] = _whole(experiment, shared, own, first)
            for name in rest[:-1]:
                inner[name] = dict(inner[name]) if isinstance(inner.get(name), dict) else {}
                inner = inner[name]
            inner[rest[-1]] = value
    return inherited(shared, own)


def _whole(experiment: Experiment, shared: Mapping[str, Any], own: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A copy of a section of a run as far as it is given, of which a key is to be changed."""
    given = own.get(key, shared.get(key))
    if isinstance(given, dict):
        return dict(given)
    if key == "optimizer" and isinstance(given, str):
        return {"method": given}
    # Nothing of it is given.
    default = getattr(experiment if key == "model" else experiment.training, key, None)
    return json.loads(default.model_dump_json()) if isinstance(default, Section) else {}


class _Expansion:
    """One experiment's families on their way to runs."""

    def __init__(self, experiment: Experiment, raw: Mapping[str, Any], sentence: Sentence) -> None:
        self._experiment, self._raw, self._sentence = experiment, raw, sentence
        self._axes = {family.name: _axes(family) for family in experiment.families}
        self._runs = {run.name: run for run in experiment.runs}
        self._owners = {
            self._digits(run, None, {}): run.name for run in experiment.runs if run.path is None and not run.chosen
        }
        self._grids: list[Family] = []
        self._choices: dict[str, Choice | OfLimit] = {}
        self._entered: set[str] = set()
        self._by_limit: list[tuple[Run, tuple[Mapping[str, Any], ...], str]] = []

    def whole(self) -> Experiment:
        for index, run in enumerate(self._experiment.runs):
            if run.chosen is not None:
                self._enter(run, (self._raw["runs"][index],), {}, f"run '{run.name}'")
        for family in self._experiment.families:
            self._grids.append(self._family(family))
        found = self._experiment.model_copy(update={"runs": tuple(self._runs.values())})
        for run, parts, where in self._by_limit:
            self._choices[run.name] = self._limits(run, parts, where)
        grids = tuple(replace(grid, members=tuple(map(self._with_limits, grid.members))) for grid in self._grids)
        found.enter_families(grids, self._choices)
        return found

    def _enter(self, run: Run, parts: tuple[Mapping[str, Any], ...], labels: Mapping[str, str], where: str) -> None:
        """Notes what a run chooses; limits only when all members are known."""
        assert run.chosen is not None
        if run.chosen.by == "limit":
            self._by_limit.append((run, parts, where))
        else:
            self._choices[run.name] = self._choice(run, parts, labels, where)

    def _with_limits(self, member: Member) -> Member:
        choice = self._choices.get(member.run)
        starts = choice.starts if isinstance(choice, OfLimit) else ()
        return replace(member, limits=tuple(dict.fromkeys(run for run, _ in starts)))

    def _family(self, family: FamilySection) -> Family:
        axes = self._axes[family.name]
        varied = {axis: levels for axis, levels in axes.items() if len(levels) > 1}
        members = []
        for levels in product(*axes.values()):
            # Those of axes of one level say among which cells something is chosen.
            labels = {axis: level.label for axis, level in zip(axes, levels, strict=True)}
            shown = {axis: label for axis, label in labels.items() if axis in varied}
            members.append(Member(self._member(family, levels, labels), shown))
        return Family(
            family.name,
            {axis: tuple(level.label for level in levels) for axis, levels in varied.items()},
            tuple(axis for axis, levels in varied.items() if _is_repeat(levels)),
            tuple(members),
        )

    def _member(self, family: FamilySection, levels: Sequence[Level], labels: Mapping[str, str]) -> str:
        where = f"family '{family.name}'" + "".join(f", {axis} {label}" for axis, label in labels.items())
        parts = (family.set, *(level.overrides for level in levels))
        run = _validated(_overridden(self._experiment, self._raw, parts), family.name, where, self._sentence)
        run = filled(run, f"{where}: learning_rate")
        digits = self._digits(run, family.name, labels)
        name = self._owners.setdefault(digits, f"{family.name}/{digits[:8]}")
        before = self._runs.get(name, run)
        # A run that stands for several has the checkpoints of all of them.
        both = {
            "checkpoints": tuple(sorted({*before.checkpoints, *run.checkpoints})),
            "curvature_on": {**before.curvature_on, **run.curvature_on},
        }
        run = self._runs[name] = run.model_copy(update={"name": name, **both})
        if run.chosen is not None and name not in self._entered:
            self._entered.add(name)
            self._enter(run, parts, labels, where)
        return name

    def _digits(self, run: Run, family: str | None, labels: Mapping[str, str]) -> str:
        """Digest of all that determines a run."""
        experiment = self._experiment
        training = {key: value for key, value in resolved(run.training()).items() if key != _SEED}
        determined: dict[str, Any] = {
            "training": training,
            "seed": experiment.run_seed(run),
            "model": resolved(experiment.model_of(run)),
            "loss": experiment.loss_of(run),
        }
        if run.examples is not None:
            # An unknown name is refused later, with all that is wrong with names.
            named = [subset.described() for subset in experiment.subsets if subset.name == run.examples]
            determined["examples"] = named
        if run.step is not None:
            determined["step"] = resolved(run.step)
        if run.start is not None:
            determined["start"] = resolved(run.start)
        if run.chosen is not None and family is not None:
            # What will be chosen is not known yet; the labels say among which cells.
            axes = self._axes.get(run.chosen.family, {}) if run.chosen.by != "limit" else {}
            shared = {axis: label for axis, label in labels.items() if len(axes.get(axis, ())) > 1}
            determined["chosen"] = resolved(run.chosen) | {"labels": shared}
        return json_digest(determined)

    def _source(self, run: Run, where: str) -> FamilySection:
        """The family that a run chooses from."""
        assert run.chosen is not None
        name = run.chosen.family
        if name not in self._axes:
            raise ConfigError(
                f"{where}: chosen names the family '{name}'; the families are {listed(list(self._axes))}."
            )
        section = next(family for family in self._experiment.families if family.name == name)
        if "chosen" in section.set:
            raise ConfigError(f"{where}: chosen names the family '{name}', whose own members are chosen from another.")
        return section

    def _limits(self, run: Run, parts: tuple[Mapping[str, Any], ...], where: str) -> OfLimit:
        assert run.chosen is not None
        assert run.chosen.fraction is not None
        name, experiment = self._source(run, where).name, self._experiment
        # Before anything is trained: a schedule without a value is no schedule to give a limit to.
        _validated(_overridden(experiment, self._raw, [*parts, {_RATE: 1.0}]), name, where, self._sentence)
        grid = next(grid for grid in self._grids if grid.name == name)
        members = [self._runs[name] for name in dict.fromkeys(member.run for member in grid.members)]
        alike = [
            one
            for one in members
            if experiment.model_of(one) == experiment.model_of(run)
            and experiment.loss_of(one) == experiment.loss_of(run)
            and one.examples == run.examples
        ]
        if not alike:
            raise ConfigError(
                f"{where}: chosen takes the limit of its network from family '{name}', none of whose members has the "
                "same model, loss and examples."
            )
        starts = tuple((one.name, iteration) for one in alike for iteration in one.checkpoints)
        if not starts:
            raise ConfigError(
                f"{where}: chosen takes a limit from family '{name}', whose members have no checkpoints; valid is "
                "checkpoints: [0] in its set."
            )
        return OfLimit(name, run.chosen.fraction, starts, parts)

    def _choice(self, run: Run, parts: tuple[Mapping[str, Any], ...], labels: Mapping[str, str], where: str) -> Choice:
        name = self._source(run, where).name
        axes = self._axes[name]
        varied = {axis: levels for axis, levels in axes.items() if len(levels) > 1}
        open_axes = {a: levels for a, levels in varied.items() if a not in labels and not _is_repeat(levels)}
        for axis, label in labels.items():
            if axis in varied and not _is_repeat(varied[axis]) and label not in {x.label for x in varied[axis]}:
                raise ConfigError(
                    f"{where}: chosen names the family '{name}', whose {axis} is never {label}; valid are "
                    f"{listed([level.label for level in varied[axis]])}."
                )
        if not open_axes:
            raise ConfigError(
                f"{where}: chosen names the family '{name}', which varies nothing else than the run does."
            )
        trained = {key for levels in open_axes.values() for level in levels for key in level.overrides}
        wrong = sorted(key for key in trained if key.split(".")[0] not in Training.model_fields)
        if wrong:
            raise ConfigError(
                f"{where}: chosen would take {wrong[0]} from family '{name}', where only keys of training can be."
            )
        kept = [axis for axis in varied if not _is_repeat(varied[axis])]
        candidates = []
        for levels in product(*open_axes.values()):
            chosen = dict(zip(open_axes, levels, strict=True))
            texts = [chosen[axis].label if axis in chosen else labels[axis] for axis in kept]
            candidates.append(Candidate(" · ".join(texts) or name, chosen))
        return Choice(name, open_axes, tuple(candidates), parts)


def _axes(family: FamilySection) -> dict[str, tuple[Level, ...]]:
    """The levels of every axis, checked."""
    where = f"family '{family.name}'"
    found: dict[str, tuple[Level, ...]] = {}
    for axis, given in family.vary.items():
        pairs = given.items() if isinstance(given, dict) else [(_label(value), {axis: value}) for value in given]
        found[axis] = tuple(Level(label, overrides) for label, overrides in pairs)
        labels = [level.label for level in found[axis]]
        if not labels:
            raise ConfigError(f"{where}: vary.{axis} is empty; at least one level is needed.")
        for label in labels:
            if labels.count(label) > 1:
                raise ConfigError(f"{where}: vary.{axis} has the level {label} twice.")
    count = 1
    for levels in found.values():
        count *= len(levels)
    if count > MOST_MEMBERS:
        raise ConfigError(f"{where} has {count} members; valid are at most {MOST_MEMBERS}.")
    keys = [("set", key) for key in family.set]
    keys += [(f"vary.{axis}", key) for axis, levels in found.items() for level in levels for key in level.overrides]
    owners: dict[str, str] = {}
    for place, key in keys:
        if key in _OF_A_RUN or (key == "chosen" and place != "set"):
            raise ConfigError(f"{where}: {place} gives {key}, which no member of a family can have there.")
        if place != "set" and owners.setdefault(key, place) != place:
            raise ConfigError(f"{where}: {owners[key]} and {place} both give {key}; valid is one of them.")
    return found


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_repeat(levels: Sequence[Level]) -> bool:
    """Whether an axis only changes the seed, and perhaps at which iterations each is analysed."""
    return all(set(level.overrides) - _OF_NO_RESULT == {_SEED} for level in levels)


def _validated(raw: Mapping[str, Any], name: str, where: str, sentence: Sentence) -> Run:
    try:
        return Run.model_validate_json(json.dumps({**raw, "name": name}), strict=True)
    except ValidationError as error:
        raise ConfigError(sentence(error, where)) from None


def chosen_run(
    experiment: Experiment, raw: Mapping[str, Any], name: str, losses: Mapping[str, float]
) -> tuple[Run, Mapping[str, Level]]:
    """A run with what is chosen filled in; a `ConfigError` says why nothing can be.

    Args:
        experiment: The experiment.
        raw: The file's content.
        name: The run's.
        losses: Validation loss of each cell of the family that it chooses from, infinite where a member diverged.

    Returns:
        The run, and the level of each axis that was chosen.
    """
    choice: Choice = experiment.choices[name]
    best = choice.best(losses)
    found = _with(experiment, raw, name, choice, [level.overrides for level in best.levels.values()])
    return found, best.levels


def run_at_limit(experiment: Experiment, raw: Mapping[str, Any], name: str, limits: Sequence[float]) -> Run:
    """A run whose learning rate is a fraction of a limit; a `ConfigError` says why it cannot be.

    Args:
        experiment: The experiment.
        raw: The file's content.
        name: The run's.
        limits: What range tests found, in the order of `OfLimit.starts`.

    Returns:
        The run.
    """
    choice: OfLimit = experiment.choices[name]
    return _with(experiment, raw, name, choice, [{_RATE: choice.rate(limits)}])


def _with(
    experiment: Experiment,
    raw: Mapping[str, Any],
    name: str,
    choice: Choice | OfLimit,
    chosen: Sequence[Mapping[str, Any]],
) -> Run:
    """A run with what is chosen over its own keys."""
    overridden = _overridden(experiment, raw, [*choice.parts, *chosen])
    return _validated(overridden, choice.family, name, lambda error, _: str(error)).model_copy(update={"name": name})
