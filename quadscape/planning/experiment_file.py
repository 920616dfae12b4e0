"""From an experiment file to an experiment, or to one sentence on each thing that is wrong with it."""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from quadscape.config.sections import (
    BUILT_IN,
    METHODS,
    SCHEDULES,
    SGD,
    STEP_METHODS,
    Chosen,
    Curvature,
    Custom,
    Data,
    KeptIterates,
    Run,
    Start,
    Steps,
    Subset,
    Training,
)
from quadscape.config.values import Section, listed
from quadscape.config.yaml_files import read_yaml
from quadscape.errors import ConfigError
from quadscape.measures import MEASURES
from quadscape.planning.experiment import MEASURE_SECTIONS, AllMeasures, Experiment, FamilySection, Figures
from quadscape.planning.families import expand, inherited
from quadscape.planning.rate_tables import with_rates

_DEEPEST = 40
"""Levels of mappings and lists; the deepest key has four, and the arguments of a user's network may have more."""


MOST_LISTED = 20
"""Known keys that are all listed beside one that was mistyped."""


def _inherit(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Gives every run the keys of `training` that it does not override (each whole: a run's schedule replaces it).

    Args:
        raw: The experiment file's content.

    Returns:
        The same, with whole runs.
    """
    shared = raw.get("training")
    runs = raw.get(
        "runs", [run.model_dump(mode="json", exclude_unset=True) for run in Experiment.model_fields["runs"].default]
    )
    if isinstance(shared, dict) and isinstance(runs, list):
        runs = [inherited(shared, run) if isinstance(run, dict) else run for run in runs]
    return {**raw, "runs": runs}


def _renamed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`probes`, as the section of measures was called, as `measures`; `true` and `false` as sections."""
    raw = dict(raw)
    if "probes" in raw:
        if "measures" in raw:
            raise ConfigError("probes is the earlier name of measures, and both are given; keep measures alone.")
        raw["measures"] = raw.pop("probes")
    measures = raw.get("measures")
    if isinstance(measures, dict):
        raw["measures"] = {
            name: {"on": value} if name in MEASURES and isinstance(value, bool) else value
            for name, value in measures.items()
        }
    return raw


def _switches(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The key `on` of a measure as it is written: YAML 1.1 reads it as true."""
    measures = raw.get("measures")
    if not isinstance(measures, Mapping):
        return dict(raw)
    sections = {
        name: {"on" if key is True else key: value for key, value in section.items()}
        if isinstance(section, Mapping)
        else section
        for name, section in measures.items()
    }
    return {**raw, "measures": sections}


def earlier_names(raw: Mapping[str, Any]) -> list[str]:
    """Sentences on keys that are read under another name than the one given.

    Args:
        raw: The content of an experiment file.

    Returns:
        One sentence for each.
    """
    return ["The key 'probes' is now called 'measures'; it is read as that."] if "probes" in raw else []


_TAGS: dict[str, Any] = {
    "model": {*BUILT_IN, "custom"},
    "learning_rate": SCHEDULES,
    "optimizer": METHODS,
    "step": STEP_METHODS,
}
"""What pydantic puts into a location behind keys whose sections are told apart by a tag."""


def _key(location: tuple[int | str, ...]) -> str:
    """`runs[0].learning_rate.value` from pydantic's location, without the tags of unions."""
    text = ""
    for previous, part in zip(("", *location), location, strict=False):
        if isinstance(part, int):
            text += f"[{part}]"
        elif part in _TAGS.get(str(previous), ()):
            continue
        else:
            text += f".{part}" if text else str(part)
    return text or "the experiment file"


def _section_at(location: tuple[int | str, ...]) -> type[Section]:
    """The section class in which the last key of a location was looked for."""
    if not location[:-1]:
        return Experiment
    head = location[0]
    if "model" in location:
        return BUILT_IN.get(str(location[list(location).index("model") + 1]), Custom)
    if "learning_rate" in location:
        return SCHEDULES.get(str(location[list(location).index("learning_rate") + 1]), Steps)
    if "optimizer" in location:
        return METHODS.get(str(location[list(location).index("optimizer") + 1]), SGD)
    if head == "measures":
        return MEASURE_SECTIONS.get(str(location[-2]), AllMeasures)
    if location[-2] == "trajectory":
        return KeptIterates
    if location[-2] in {"start", "chosen"}:
        return Start if location[-2] == "start" else Chosen
    if "step" in location[:-1]:
        return STEP_METHODS[str(location[list(location).index("step") + 1])]
    sections: dict[str, type[Section]] = {
        "data": Data,
        "training": Training,
        "runs": Run,
        "families": FamilySection,
        "subsets": Subset,
        "curvature": Curvature,
        "figures": Figures,
    }
    return sections[str(head)]


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def sentence_of(error: ValidationError, run: str = "") -> str:
    """The first problem as one sentence: key, value, what is valid.

    Args:
        error: What pydantic found, of the whole file or of one run.
        run: How that run is called; empty for the whole file.

    Returns:
        The sentence.
    """
    problems = error.errors()
    if run:
        problems = [{**problem, "loc": ("runs", 0, *problem["loc"])} for problem in problems]
        return _first(problems).replace("runs[0].", f"{run}: ", 1).replace("runs[0]", run, 1)
    return _first(problems)


def _first(problems: list[Any]) -> str:
    inherited = {(e["loc"][1:], e["type"]) for e in problems if e["loc"][:1] == ("training",)}
    problems = [e for e in problems if e["loc"][:1] != ("runs",) or (e["loc"][2:], e["type"]) not in inherited]
    first = min(problems, key=lambda e: (e["type"] != "extra_forbidden", len(e["loc"])))
    where, kind, context = _key(first["loc"]), first["type"], first.get("ctx", {})
    value = first.get("input")
    if kind == "extra_forbidden":
        known = sorted(_section_at(first["loc"]).model_fields)
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        # Where one is meant, the names of all measures would be no help.
        few = not close or len(known) <= MOST_LISTED
        others = f"known here are {listed(known)}" if few else f"docs/configuration.md has all {len(known)} known here"
        sentence = f"{where} is not a known key{hint}; {others}"
    elif kind == "missing":
        sentence = f"{where} is missing and has no default"
    elif kind == "value_error":
        sentence = (
            f"{where} is {_shown(value)}: {context['error']}"
            if not isinstance(value, dict)
            else (f"{where}: {context['error']}")
        )
    elif kind in {"union_tag_invalid", "union_tag_not_found"}:
        last = where.rpartition(".")[2]
        key, valid = {"optimizer": ("method", METHODS), "step": ("method", STEP_METHODS)}.get(
            last, ("schedule", SCHEDULES)
        )
        tag = f"is {_shown(value[key])}" if isinstance(value, dict) and key in value else "is missing"
        sentence = f"{where}.{key} {tag}; valid are {listed(sorted(valid))}"
    elif kind == "literal_error":
        close = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", context["expected"]), n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        sentence = f"{where} is {_shown(value)}{hint}; valid are {context['expected']}"
    elif kind == "string_pattern_mismatch" and where.endswith("model.factory"):
        sentence = (
            f"{where} is {_shown(value)}; valid are {listed(sorted(BUILT_IN))}, or a factory of your own as "
            "package.module:function"
        )
    elif kind == "string_pattern_mismatch":
        sentence = (
            f"{where} is {_shown(value)}; valid are letters, digits, dots, '-' and '_', starting with a letter or digit"
        )
    else:
        message = first["msg"].removeprefix("Input ")
        sentence = f"{where} is {_shown(value)}, but it {message}"
    more = len(problems) - 1
    return sentence + (f" (and {more} more problem{'s' * (more > 1)})" if more else "") + "."


def _check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Checks that a value is what JSON has too.

    Args:
        value: The value.
        where: Its key, for the message.
        depth: How many mappings and lists it stands in.

    Raises:
        ConfigError: It, or a value in it, is a date, a set or the like, or is nested too deep.
    """
    named = where or "the experiment file"
    if depth > _DEEPEST:
        raise ConfigError(f"{where[:60]}… is nested more than {_DEEPEST} levels deep, which no key allows.")
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                kind = type(key).__name__
                raise ConfigError(f"{key!r} in {named} is not a known key, but a {kind}; keys are text, so quote it.")
            _check_plain(entry, f"{where}.{key}" if where else key, depth + 1)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check_plain(entry, f"{where}[{index}]", depth + 1)
    elif isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value) or "\0" in value:
            raise ConfigError(f"{named} is {value!a}, which holds a character that no text may hold.")
    elif isinstance(value, int) and abs(value) >= 2**63 and not where.endswith("seed"):
        raise ConfigError(f"{named} is a number of {value.bit_length()} bits; valid are numbers below 2⁶³.")
    elif value is not None and not isinstance(value, float | int):
        raise ConfigError(
            f"{named} is {value}, in YAML a {type(value).__name__} and so neither number, text, list nor mapping; "
            "quote it if it is text."
        )


def parse_experiment(raw: Mapping[str, Any]) -> Experiment:
    """Validates the content of an experiment file.

    Args:
        raw: The file's content, as a mapping; every missing key takes its default.

    Returns:
        The resolved experiment.

    Raises:
        ConfigError: A key is unknown or a value impossible; the message is one sentence.
    """
    raw = _switches(raw)
    _check_plain(raw, "")
    text = json.dumps(_inherit(_renamed(raw)), allow_nan=True)
    try:
        # Through JSON, so that strict types take a YAML list for a tuple but never "3" for 3.
        experiment = Experiment.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(sentence_of(error)) from None
    return expand(with_rates(experiment), raw, sentence_of)


def load_experiment(path: str | Path) -> Experiment:
    """Reads and validates an experiment file.

    Args:
        path: A YAML file.

    Returns:
        The resolved experiment.

    Raises:
        ConfigError: The file is missing, no YAML mapping, or invalid.
    """
    raw = read_yaml(path, "The experiment file")
    if not isinstance(raw, dict):
        raise ConfigError(f"The experiment file {path} holds no mapping of keys to values.")
    return parse_experiment(raw)
