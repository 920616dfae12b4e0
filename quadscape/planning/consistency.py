"""Whether finished results are those of the experiment that is asked for, whatever Snakemake remembers of them.

Snakemake recognises a changed experiment by the parameters of jobs in `.snakemake`. Where that folder is gone, as in a
fresh clone over copied results, it takes for finished whatever lies in its place. But every result says itself what it
was made from: the workflow's head compares that with the experiment, and has made anew what differs.

What is damaged, unfinished or purged makes no difference here: the stage itself finds out.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from quadscape.config.sections import OPTIONS_OF_SGD, Curvature, Model, Run, Subset, Training
from quadscape.config.values import resolved
from quadscape.data.sources import SPLITS, split_examples
from quadscape.digests import json_digest
from quadscape.errors import QuadscapeError
from quadscape.measures.declaration import checkpoint_key
from quadscape.planning.experiment import Experiment
from quadscape.planning.problem import Problem
from quadscape.provenance.versions import STAGE_VERSIONS
from quadscape.results.places import Places, locate
from quadscape.results.sizes import Kept
from quadscape.stored import stage_digest, stored_attributes, stored_manifest

_MODEL: TypeAdapter[Model] = TypeAdapter(Model)
_TRAINING = TypeAdapter(Training)
_KINDS = ("factory", "schedule", "method")
"""Keys on whose values it depends which keys stand beside them."""
_DEFAULTS = {
    "start": None,
    "step": None,
    "loss": "cross_entropy",
    "model_code": None,
    "tf32": Curvature().tf32,
    "dtype": Curvature().dtype,
}
"""What keys stand for where results do not have them, since they were added later."""
_DIGITS = 64


@dataclass(frozen=True)
class Difference:
    """A finished result of something else than the experiment asks for.

    Attributes:
        path: The output that its rule declares.
        changes: What differs, in words.
    """

    path: str
    changes: tuple[str, ...]

    def __str__(self) -> str:
        kept = ""
        if self.path.endswith("/manifest.json"):
            kept = f"; what is there is kept as {Path(self.path).parent}.superseded"
        return (
            f"{self.path} was made for something else ({'; '.join(self.changes)}) and is made again where it is "
            f"needed, with all that follows from it{kept}."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) == _DIGITS and set(value) <= set("0123456789abcdef"):
        return value[:8]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _changes(key: str, then: Any, now: Any) -> Iterator[str]:
    """Every value that differs, as `training.momentum: 0.9 → 0.8`."""
    if then == now:
        return
    if not (isinstance(then, dict) and isinstance(now, dict)):
        yield f"{key}: {_shown(then)} → {_shown(now)}"
        return
    names = [*then, *(name for name in now if name not in then)]
    if any(then.get(kind) != now.get(kind) for kind in _KINDS):
        names = [name for name in names if name in then and name in now]
    for name in names:
        if name not in then:
            yield f"{key}.{name}: none → {_shown(now[name])}"
        elif name not in now:
            yield f"{key}.{name}: {_shown(then[name])} → none"
        else:
            yield from _changes(f"{key}.{name}", then[name], now[name])


def _completed(adapter: TypeAdapter[Any], then: Any) -> Any:
    """A section as it was stored, with the defaults of keys that were added since; as it is, where that cannot be."""
    try:
        return resolved(adapter.validate_json(json.dumps(then), strict=True))
    except (ValidationError, TypeError, ValueError):
        return then


def _training(then: Any) -> Any:
    completed = _completed(_TRAINING, then)
    return {key: value for key, value in completed.items() if key != "seed"} if isinstance(completed, dict) else then


_SECTIONS: dict[str, Callable[[Any], Any]] = {
    "model": lambda then: _completed(_MODEL, then),
    "training": _training,
    "start": lambda then: (
        {key: then[key] for key in ("optimizer", "batches", "digest") if key in then} if then else then
    ),
}


def _compared(path: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    """Compares what is stored with what is asked for; None where it cannot be known is no difference."""
    changes: list[str] = []
    for key, value in now.items():
        if key in then or key in _DEFAULTS:
            stored = then.get(key, _DEFAULTS.get(key))
            changes += _changes(key, _SECTIONS.get(key, lambda same: same)(stored), value)
    if changes:
        yield Difference(path, tuple(changes))


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without digests of what is not there, or cannot be read."""
    return {key: value for key, value in values.items() if value is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Results


class _Comparison:
    """Compares the results of one experiment."""

    def __init__(self, experiment: Experiment, places: Places, problem: Problem, kept: Kept) -> None:
        self.experiment, self.places, self.problem, self.kept = experiment, places, problem, kept
        self.content: str | None = None
        self.contents: dict[str, str | None] = {}

    def all(self) -> Iterator[Difference]:
        """Everything that differs, in the order in which it is made."""
        yield from self.data()
        for subset in self.experiment.subsets:
            yield from self.subset(subset)
        for run in self.experiment.runs:
            if run.path is None:
                yield from self.trajectory(run)
            for iteration in run.checkpoints:
                yield from self.checkpoint(run, iteration)
            for name, iterations in run.curvature_on.items():
                for iteration in iterations:
                    yield from self.checkpoint(run, iteration, name)

    def data(self) -> Iterator[Difference]:
        path, data = self.places.data, self.problem.data
        stored = stored_attributes(path)
        if stored is None:
            return
        self.content = stored.get("content")
        counts = dict(zip(SPLITS, (data.training, data.validation, data.test), strict=True))
        now = {
            "source": self.experiment.data.source,
            "listing": data.listing,
            "shape": list(data.shape),
            "classes": list(data.classes),
            "counts": counts,
        }
        found = list(_compared(path, stored, now))
        yield from found
        if not found and not self._splits_so(stored):
            section = self.experiment.data
            asked = f"seed {self.experiment.seed}, held_out {section.held_out} and validation {section.validation}"
            yield Difference(path, (f"which examples are in which split: not as of {asked}",))

    def _splits_so(self, stored: dict[str, Any]) -> bool:
        """Whether the examples are split as the seed says, of which nothing is stored."""
        section, data = self.experiment.data, self.problem.data
        if not data.parts or self.content is None:
            return True
        parts = dict(data.parts)
        key = json_digest(
            [self.content, self.experiment.seed, section.held_out, section.validation, list(parts.items())]
        )
        known = self.kept.get("split", key)
        if known is None:
            # Zarr is imported for this, once for every data store.
            from quadscape.store import open_store, read

            try:
                group = open_store(self.places.data)
                labels, split = (read(group[name]) for name in ("labels", "split"))  # type: ignore[arg-type]
                if sum(parts.values()) != len(labels):
                    return True
                now = split_examples(section, self.experiment.seed, labels, len(data.classes), parts)
            except (QuadscapeError, KeyError, ValueError, TypeError, IndexError):
                return True
            known = {"same": bool((split == now).all())}
            self.kept.put("split", key, known)
        return bool(known["same"])

    def subset(self, subset: Subset) -> Iterator[Difference]:
        path = self.places.subset(subset.name)
        stored = stored_attributes(path)
        if stored is not None:
            now = _known({"whole": self.content}) | {"subset": subset.described()}
            yield from _compared(path, stored, now)
            self.contents[subset.name] = stored.get("content")

    def _content(self, subset: str | None) -> str | None:
        return self.content if subset is None else self.contents.get(subset)

    def _network(self, run: Run) -> dict[str, Any]:
        return {
            "model": resolved(self.experiment.model_of(run)),
            "model_code": self.problem.networks[run.name].code,
            "loss": self.experiment.loss_of(run),
        }

    def _start(self, run: Run) -> dict[str, Any] | None:
        """What a run's trajectory should say of its start point, as far as that is there."""
        if run.start is None:
            return None
        there = stored_attributes(self.places.start(run.start.run, run.start.iteration)) or {}
        parameters = (stored_manifest(self.places.trajectory(run.name)) or {}).get("parameters", {})
        taken = parameters.get("start") or {}
        return run.start.kept() | {"digest": there.get("digest", taken.get("digest"))}

    def _trained(self, run: Run, stored: Any) -> Any:
        """The `training` section that a run asks for; what it chooses is as stored, since the stage itself chooses."""
        now, choice = _training(resolved(run.training())), self.experiment.choices.get(run.name)
        if choice is None or not isinstance(stored, dict):
            return now
        then = _training(stored)
        # Which other keys there are depends on an optimizer that is chosen.
        keys = choice.keys | (OPTIONS_OF_SGD if "optimizer" in choice.keys else set())
        return {k: v for k, v in now.items() if k not in keys} | {k: v for k, v in then.items() if k in keys}

    def _step(self, run: Run) -> dict[str, Any] | None:
        """What a run's trajectory should say of its step, as far as the eigenbasis is there."""
        if run.step is None:
            return None
        basis, parameters = run.basis(), (stored_manifest(self.places.trajectory(run.name)) or {}).get("parameters", {})
        if basis is None:
            return run.step.rule()
        there = stored_manifest(self.places.eigenbasis(*basis))
        # Of a basis that was purged, or is not there yet, nothing can be said.
        digest = (parameters.get("step") or {}).get("digest") if there is None else stage_digest(there)
        return run.step.rule() | {"digest": digest}

    def trajectory(self, run: Run) -> Iterator[Difference]:
        stored = (stored_manifest(self.places.trajectory(run.name)) or {}).get("parameters", {})
        now = {
            "training": self._trained(run, stored.get("training")),
            "seed": self.experiment.run_seed(run),
            "start": self._start(run),
            "step": self._step(run),
            **self._network(run),
            **_known({"data": self._content(run.examples)}),
        }
        yield from self._stage(self.places.trajectory(run.name), "training", now)

    def checkpoint(self, run: Run, iteration: int, subset: str | None = None) -> Iterator[Difference]:
        places, options = self.places, self.experiment.curvature
        key, content = checkpoint_key(iteration, subset), self._content(subset or run.examples)
        path = places.checkpoint(run.name, key)
        stored = stored_attributes(path)
        if stored is None:
            return
        trained = run.path is None
        now = {
            "iteration": iteration,
            **self._network(run),
            **({"training": self._trained(run, stored.get("training"))} if trained else {}),
            **({} if run.name in self.experiment.choices else {"weight_decay": run.rule()["weight_decay"]}),
            **_known({"data": content}),
        }
        found = list(_compared(path, stored, now))
        # Training holds the weight decay, too.
        yield from (Difference(one.path, _without_repetition(one.changes)) for one in found)
        origin = _known({"checkpoint": stored.get("digest"), "data": content}) | {"dtype": options.dtype}
        place = (run.name, key)
        shards = {}
        for shard in places.hessian_shards(*place):
            yield from self._stage(shard, "hessian", {**origin, "tf32": options.tf32})
            manifest = stored_manifest(shard)
            if manifest is not None:
                shards[Path(shard).parent.name] = stage_digest(manifest)
        hessian = stored_manifest(places.hessian(*place))
        gathered = hessian["parameters"].get("shards") if hessian is not None else None
        # Those that were purged are not there, and those that are not gathered do not count.
        now = {**gathered, **{name: shards[name] for name in gathered if name in shards}} if gathered else {}
        yield from self._stage(places.hessian(*place), "hessian", origin | ({"shards": now} if gathered else {}))
        if hessian is not None:
            origin |= _known({"hessian": hessian["results"].get("content")})
        yield from self._stage(places.eigenbasis(*place), "eigenbasis", origin)
        origin.pop("hessian", None)
        if options.gauss_newton:
            yield from self._stage(places.gauss_newton(*place), "gauss_newton", origin)

    def _stage(self, path: str, version: str, now: dict[str, Any]) -> Iterator[Difference]:
        manifest = stored_manifest(path)
        if manifest is not None:
            then = {"version": manifest["version"], **manifest["parameters"]}
            yield from _compared(path, then, {"version": STAGE_VERSIONS[version], **now})


def _without_repetition(changes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(change for change in changes if f"training.{change}" not in changes)


def find_differences(
    experiment: Experiment, places: Places, problem: Problem, kept: Kept | None = None
) -> list[Difference]:
    """Compares finished results with the experiment.

    Args:
        experiment: The experiment.
        places: Where its results lie.
        problem: Its sizes, and what is known of its data and network.
        kept: What was found at earlier starts.

    Returns:
        What differs, in the order in which it is made; what only follows from something that differs is left out.
    """
    return list(_Comparison(experiment, places, problem, Kept() if kept is None else kept).all())


def report_differences(experiment: Experiment, places: Places, problem: Problem, kept: Kept) -> list[str]:
    """Says in one line each on standard error what is made again, and why.

    Args:
        experiment: The experiment.
        places: Where its results lie.
        problem: Its sizes, and what is known of its data and network.
        kept: What was found at earlier starts; saved again.

    Returns:
        The outputs that are to be made again.
    """
    found = find_differences(experiment, places, problem, kept)
    kept.save()
    for sentence in [*_of_another_experiment(found, experiment, places), *_told(found, places, experiment)]:
        print(sentence, file=sys.stderr, flush=True)
    return [difference.path for difference in found]


def _of_another_experiment(found: list[Difference], experiment: Experiment, places: Places) -> Iterator[str]:
    """One line, where the data or all runs that are there are of another experiment."""
    trained = {places.trajectory(run.name) for run in experiment.runs if run.path is None}
    there = {path for path in trained if Path(path).exists()}
    differ = {difference.path for difference in found if not _is_scheduled(difference)}
    if places.data in differ or (there and there <= differ):
        yield (
            f"{places.root} holds results of another experiment of the name '{experiment.name}', or of this one before "
            "it was changed: give this one another `name` to keep both. Otherwise finished stages are set aside "
            "(….superseded, one of each), and data, checkpoints and figures are made anew in place of those."
        )


def _told(found: list[Difference], places: Places, experiment: Experiment) -> Iterator[str]:
    """A line for each difference, without those of checkpoints that say the same as their run's."""
    changes = {difference.path: set(difference.changes) for difference in found}
    follows = {
        places.checkpoint(run.name, iteration): changes.get(places.trajectory(run.name), set())
        for run in experiment.runs
        for iteration in run.checkpoints
    }
    for difference in found:
        if not changes[difference.path] <= follows.get(difference.path, set()):
            yield str(difference) + _shared_steps(difference)


def _shared_steps(difference: Difference) -> str:
    """What is not trained again where only the length of a run, or its schedule, differs, and how nothing is."""
    if not _is_scheduled(difference):
        return ""
    run = locate(Path(difference.path).absolute().parent)
    ends = stored_manifest(difference.path) or {}
    start = "" if run is None else f"{{run: {run.run}, iteration: {ends.get('results', {}).get('iterations')}}}"
    return (
        " The steps before the first that has another learning rate are taken from it; its checkpoints, with their "
        f"bases, are made again. To keep these, leave that run as it is, and go on in another one by `start: {start}` "
        "(docs/training.md)."
    )


def _is_scheduled(difference: Difference) -> bool:
    keys = [change.partition(":")[0] for change in difference.changes]
    scheduled = all(key == "training.iterations" or key.startswith("training.learning_rate") for key in keys)
    return scheduled and difference.path.endswith("/trajectory/manifest.json")
