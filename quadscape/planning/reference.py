"""docs/configuration.md, generated from the schema of the experiment file."""

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from quadscape.config.sections import (
    CNN,
    MLP,
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Curvature,
    Custom,
    Data,
    Exponential,
    KeptIterates,
    Linear,
    Posterior,
    Preconditioned,
    Projected,
    RandomSubspace,
    ResNet9,
    RMSProp,
    Run,
    Start,
    Steps,
    Table,
    Training,
)
from quadscape.config.values import Section
from quadscape.planning.experiment import MEASURE_SECTIONS, AllMeasures, Experiment, Figures, MeasureSection

_SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("(top level)", Experiment),
    ("data", Data),
    ("model (factory: resnet9)", ResNet9),
    ("model (factory: cnn)", CNN),
    ("model (factory: mlp)", MLP),
    ("model (factory: linear)", Linear),
    ("model (factory: package.module:function)", Custom),
    ("training", Training),
    ("training.learning_rate (schedule: constant)", Constant),
    ("training.learning_rate (schedule: steps)", Steps),
    ("training.learning_rate (schedule: cosine)", Cosine),
    ("training.learning_rate (schedule: exponential)", Exponential),
    ("training.learning_rate (schedule: table)", Table),
    ("training.optimizer (method: sgd)", SGD),
    ("training.optimizer (method: rmsprop)", RMSProp),
    ("training.optimizer (method: adam)", Adam),
    ("training.optimizer (method: adamw)", AdamW),
    ("training.trajectory", KeptIterates),
    ("runs[…]", Run),
    ("runs[…].start", Start),
    ("runs[…].step (method: projected)", Projected),
    ("runs[…].step (method: random)", RandomSubspace),
    ("runs[…].step (method: preconditioned)", Preconditioned),
    ("runs[…].step (method: posterior)", Posterior),
    ("curvature", Curvature),
    ("measures", AllMeasures),
    ("measures.<any measure>", MeasureSection),
    *((f"measures.{name}", section) for name, section in MEASURE_SECTIONS.items()),
    ("figures", Figures),
)

_HEAD = """\
# Configuration

Generated from the schema (`make docs`); a test keeps this page, the defaults and `config.yaml` equal.

An experiment is one YAML file, `config.yaml` by default, another with `snakemake --configfile FILE`. Every file stands
alone: a missing key takes the default below, never a value of another file. Unknown keys, wrong types and impossible
values stop the workflow before any job, with one sentence that names the key, the value and what is valid.
`quadscape validate FILE` checks a file by itself.
"""


def _type_name(field: FieldInfo) -> str:
    """What may be written, in words."""
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return " \\| ".join(f"`{value}`" for value in get_args(annotation))
    bounds = [
        f"{sign} {getattr(item, name):g}"
        for item in field.metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(item, name, None) is not None
    ]
    names = {float: "number", int: "integer", str: "text", bool: "true or false"}
    parts = [names.get(part, "") for part in (get_args(annotation) or (annotation,))]
    word = next((part for part in parts if part), "list" if get_origin(annotation) is tuple else "mapping")
    if get_origin(annotation) is tuple:
        word = "list"
    return " ".join([word, *([", ".join(bounds)] if bounds else [])])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "see below"
    if isinstance(value, tuple) and value and isinstance(value[0], Section):
        return "three runs, see `config.yaml`"
    return f"`{json.dumps(value if not isinstance(value, tuple) else list(value))}`"


def _rows(section: type[Section]) -> Iterator[str]:
    inherited = Training.model_fields if section is Run else {}
    if issubclass(section, MeasureSection) and section is not MeasureSection:
        inherited = MeasureSection.model_fields
    for key, field in section.model_fields.items():
        if key not in inherited:
            description = " ".join((field.description or "").split()).replace("|", "\\|")
            yield f"| `{key}` | {_type_name(field)} | {_default(field)} | {description} |"


def configuration_reference() -> str:
    """The page as Markdown.

    Returns:
        Text of docs/configuration.md.
    """
    parts = [_HEAD]
    for title, section in _SECTIONS:
        summary = " ".join((section.__doc__ or "").split()).replace("|", "\\|")
        parts.append(f"## {title}\n\n{summary}\n")
        rows = list(_rows(section))
        if rows:
            parts.append("\n".join(["| key | value | default | meaning |\n|---|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)
