"""The experiment file: its schema, defaults, validation and resolved form.

This module is the single source of every key, its default and its meaning: the workflow validates with
it before any job starts, `config.yaml` states the same defaults, and docs/configuration.md is generated
from it (`quadscape reference`). It imports neither torch nor zarr, so that Snakemake's head starts fast.
"""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from quadscape.errors import ConfigError
from quadscape.measures import MEASURES
from quadscape.measures.declaration import Measure, Option
from quadscape.yaml_files import read_yaml

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _scientific(value: Any) -> Any:
    # YAML 1.1 reads `1e-3` as a string (it wants `1.0e-3`): a trap that no user should fall into.
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return value


Real = Annotated[float, BeforeValidator(_scientific), Field(allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("at least one entry is needed")
    return value


NotEmpty = AfterValidator(_not_empty)
_DEEPEST = 40
"""Levels of mappings and lists; the deepest key has four, and the arguments of a user's network may have more."""
FloatType = Literal["float32", "float64"]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, types are not coerced, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Data(Section):
    """The data set and its split into training, validation and test images."""

    source: Literal["cifar10", "image_folder", "digits"] = "cifar10"
    """`cifar10` (through torchvision), `image_folder` (a folder of one sub-folder per class, or one with `train/` and
    `test/` of that kind), or `digits` (1,797 images of 8×8 that scikit-learn ships)."""
    path: str = "data"
    """Folder of the image folder, or the place to which torchvision downloads CIFAR-10; unused for digits."""
    held_out: Annotated[Real, Field(gt=0, lt=1)] = 0.3
    """Fraction of each class that is held out from training, for a source without test images of its own."""
    validation: Annotated[Real, Field(gt=0, lt=1)] = 0.5
    """Fraction of each class's held-out images that becomes the validation set; the rest is the test set."""


class Normalized(Section):
    """What every network with normalisation layers shares."""

    normalization: Literal["group", "none", "batch"] = "group"
    """`group`: the loss that is trained is the loss that is analysed; `none`; `batch`: trained with batch statistics,
    analysed with statistics recomputed over the whole training set and frozen."""
    channels_per_group: Count = 4
    """Channels of one group under `group` (the number of groups is channels divided by this)."""
    activation: Literal["gelu", "relu", "tanh"] = "gelu"
    """Element-wise non-linearity. With `relu` the Hessian is the almost-everywhere one, and the stores say so."""


class ResNet9(Normalized):
    """The reference network: ResNet9 with widths 4w, 8w, 16w, 32w (w=1: 26,490 parameters, w=2: 104,234)."""

    factory: Literal["resnet9"] = "resnet9"
    """The built-in factory."""
    width: Count = 2
    """The multiplier w."""


class Linear(Section):
    """One affine map from pixels to class scores: every quantity has a closed form."""

    factory: Literal["linear"]
    """The built-in factory."""
    bias: bool = True
    """Whether the map has a bias."""


class MLP(Section):
    """Fully connected layers."""

    factory: Literal["mlp"]
    """The built-in factory."""
    hidden: Annotated[tuple[Count, ...], NotEmpty] = (32,)
    """Widths of the hidden layers."""
    activation: Literal["gelu", "relu", "tanh"] = "gelu"
    """Element-wise non-linearity."""


class CNN(Normalized):
    """3×3 convolutions, each followed by normalisation, activation and 2×2 average pooling, then a linear layer."""

    factory: Literal["cnn"]
    """The built-in factory."""
    channels: Annotated[tuple[Count, ...], NotEmpty] = (8, 16)
    """Output channels of the convolutions."""


class Custom(Section):
    """A network of the user's own."""

    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`package.module:function`; called as `function(input_shape, classes, **arguments)`, returns a
    `torch.nn.Module`."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the factory."""


_BUILT_IN: dict[str, type[Section]] = {"resnet9": ResNet9, "linear": Linear, "mlp": MLP, "cnn": CNN}


def _model_tag(value: Any) -> str | None:
    name = value.get("factory", "resnet9") if isinstance(value, dict) else getattr(value, "factory", None)
    return name if isinstance(name, str) and name in _BUILT_IN else "custom"


Model = Annotated[
    Annotated[ResNet9, Tag("resnet9")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[MLP, Tag("mlp")]
    | Annotated[CNN, Tag("cnn")]
    | Annotated[Custom, Tag("custom")],
    Discriminator(_model_tag),
]


class Schedule(Section):
    """What every learning-rate schedule shares."""

    value: Positive = 0.1
    """Learning rate η at the start (after the warm-up)."""
    warmup: Index = 0
    """Iterations over which η rises linearly from `value / warmup`; 0 for none."""


class Constant(Schedule):
    """The same learning rate throughout."""

    schedule: Literal["constant"]
    """The kind of schedule."""


class Steps(Schedule):
    """A learning rate multiplied by a factor at given iterations."""

    schedule: Literal["steps"] = "steps"
    """The kind of schedule."""
    milestones: tuple[Count, ...] = (10000, 20000, 30000, 40000)
    """Iterations from which the next, lower learning rate holds; strictly increasing."""
    factor: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    """What the learning rate is multiplied by at each milestone."""

    @field_validator("milestones")
    @classmethod
    def _increasing(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(b <= a for a, b in pairwise(value)):
            raise ValueError("milestones must be strictly increasing")
        return value


class Cosine(Schedule):
    """A half cosine from the initial to the final learning rate."""

    schedule: Literal["cosine"]
    """The kind of schedule."""
    final: NonNegative = 0.0
    """Learning rate at the last iteration."""


_SCHEDULES: dict[str, type[Section]] = {"constant": Constant, "steps": Steps, "cosine": Cosine}
LearningRate = Annotated[Constant | Steps | Cosine, Field(discriminator="schedule")]


class Trajectory(Section):
    """Which iterations' parameters are kept."""

    stride: Count = 4
    """Every how many iterations θ is kept; 1 is needed to see oscillations. The last iterate is always kept."""
    dense: Index = 200
    """Iterations on each side of every learning-rate drop that are kept with stride 1."""


class Training(Section):
    """SGD with momentum, in PyTorch's convention: v ← μv + g + δθ, θ ← θ − ηv (Nesterov: θ ← θ − η(g + δθ + μv))."""

    iterations: Count = 48800
    """Number of steps."""
    batch_size: Count = 512
    """Examples of one step, B."""
    remainder: Literal["wrap", "keep", "drop"] = "wrap"
    """What happens to the N mod B examples left at an epoch's end: the batch is filled from the next epoch's shuffle,
    kept as a smaller batch, or dropped."""
    learning_rate: LearningRate = Steps()
    """The schedule of η."""
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    """Momentum μ."""
    nesterov: bool = False
    """Nesterov's momentum instead of heavy-ball."""
    weight_decay: NonNegative = 1e-3
    """Weight decay δ: what is minimised is L + (δ/2)|θ|² over all parameters."""
    dtype: FloatType = "float32"
    """Precision of the forward and backward pass; θ and the momentum are float64 always, so that late small steps
    survive."""
    seed: Index | None = None
    """Seed of initial parameters and batch order; none: the experiment's, so that runs share both."""
    trajectory: Trajectory = Trajectory()
    """Which iterates are kept."""
    evaluate_every: Count = 200
    """Every how many iterations full loss and accuracy on all three splits are computed (and at the last one)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        if self.learning_rate.warmup > self.iterations:
            raise ValueError(
                f"learning_rate.warmup is {self.learning_rate.warmup}, more than the {self.iterations} iterations"
            )
        return self

    def dense_windows(self) -> list[range]:
        """The ranges of iterations kept with stride 1: around every milestone within the run."""
        if not isinstance(self.learning_rate, Steps):
            return []
        width = self.trajectory.dense
        return [
            range(max(0, m - width), min(self.iterations, m + width) + 1)
            for m in self.learning_rate.milestones
            if m <= self.iterations
        ]

    def is_saved(self, iteration: int) -> bool:
        """Whether θ of this iteration is kept.

        Args:
            iteration: Number of steps taken, 0 for the initial parameters.

        Returns:
            True for multiples of the stride, dense windows, and the last iterate.
        """
        if not 0 <= iteration <= self.iterations:
            return False
        on_stride = iteration % self.trajectory.stride == 0 or iteration == self.iterations
        return on_stride or any(iteration in window for window in self.dense_windows())


class Run(Training):
    """One training run, or parameters from elsewhere. Any key of `training` can be given, to override it here."""

    name: Name
    """Name of the run; the folder of its results."""
    checkpoints: tuple[Index, ...] = ()
    """Iterations at which Hessian, eigenbasis and measures are computed."""
    path: str | None = None
    """Parameters trained elsewhere: a file saved with `torch.save(model.state_dict(), …)`, with `{iteration}` in the
    path where there are several checkpoints. Such a run is not trained."""

    @field_validator("checkpoints")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("an iteration is listed twice")
        return tuple(sorted(value))

    @model_validator(mode="after")
    def _checkpoints_exist(self) -> Self:
        if self.path is not None:
            if len(self.checkpoints) > 1 and "{iteration}" not in self.path:
                raise ValueError("path needs {iteration} in it where there are several checkpoints")
            if not self.checkpoints:
                raise ValueError("a run with a path needs at least one entry in checkpoints")
            return self
        for iteration in self.checkpoints:
            if iteration > self.iterations:
                raise ValueError(f"checkpoint {iteration} is beyond the run, which ends at iteration {self.iterations}")
            if not self.is_saved(iteration):
                below = next(i for i in range(iteration, -1, -1) if self.is_saved(i))
                above = next(i for i in range(iteration, self.iterations + 1) if self.is_saved(i))
                raise ValueError(
                    f"checkpoint {iteration} is never saved; the nearest saved iterations are {below} and {above}"
                )
        return self

    def training(self) -> Training:
        """The training parameters alone: what the trajectory depends on, without name and checkpoint list."""
        return Training.model_construct(**{key: getattr(self, key) for key in Training.model_fields})


class Curvature(Section):
    """The exact Hessian, its eigenbasis and its parts."""

    dtype: FloatType = "float32"
    """Precision in which curvature is computed and stored; sums over data chunks are float64 always."""
    tf32: bool = False
    """Whether the products of a float32 Hessian may round their factors to TF32 (10 bits) on a GPU that can: several
    times faster, and a thousand times less exact. The Hessian is held to the same verification all the same."""
    shards: Count = 1
    """Jobs over which the columns of one Hessian are spread, of about equal cost. The result is the same; on a cluster
    each is a job of its own, with its own GPU, unless there is only one."""
    gauss_newton: bool = False
    """Whether to compute also the Gauss–Newton part G of every Hessian, with spectra of G and of R = H − G and the
    figure that shows which of the two makes the outliers and the negative eigenvalues."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tf32 and self.dtype != "float32":
            raise ValueError(f"tf32 needs dtype float32, which is {self.dtype}")
        return self


def _option_type(option: Option) -> Any:
    """Type of a measure's option with its bounds."""
    kind: Any = {int: int, float: Real, str: str}[type(option.default)]
    if option.at_least is not None or option.above is not None:
        kind = Annotated[kind, Field(ge=option.at_least, gt=option.above)]
    if not option.odd:
        return kind

    def check(value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"{option.name} must be odd, {option.odd}")
        return value

    return Annotated[kind, AfterValidator(check)]


class MeasureSection(Section):
    """What the sections of all measures share."""

    on: bool | None = None
    """Whether it is measured; none: where everything that it reads is computed. `false` or `true` can stand in place of
    the whole section."""
    runs: Annotated[tuple[Name, ...], NotEmpty] | None = None
    """Names of the runs of which it is measured; none: all of them."""


def _measure_section(measure: Measure) -> type[MeasureSection]:
    fields: dict[str, Any] = {
        option.name: (_option_type(option), Field(option.default, description=option.description))
        for option in measure.options
    }
    name = "".join(word.title() for word in measure.name.split("_"))
    return create_model(name, __base__=MeasureSection, __doc__=measure.title, **fields)


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


class Experiment(Section):
    """One experiment: the whole content of an experiment file."""

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
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    """Loss of one example: cross-entropy, or ½|f(x) − onehot(y)|²."""
    training: Training = Training()
    """Training parameters that all runs share."""
    runs: Annotated[tuple[Run, ...], NotEmpty] = (
        Run(name="drops", checkpoints=(0, 2000, 20000, 48800)),
        Run(name="constant-0.01", learning_rate=Constant(schedule="constant", value=0.01)),
        Run(name="constant-0.001", learning_rate=Constant(schedule="constant", value=0.001)),
    )
    """The training runs."""
    curvature: Curvature = Curvature()
    """Hessian and eigenbasis."""
    measures: AllMeasures = AllMeasures()
    """What is measured."""
    figures: Figures = Figures()
    """What figures show."""

    @field_validator("runs")
    @classmethod
    def _unique(cls, value: tuple[Run, ...]) -> tuple[Run, ...]:
        names = [run.name for run in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two runs are called '{name}'; names must differ")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [run.name for run in self.runs]
        for where, chosen in self._chosen_runs():
            for name in chosen:
                if name not in names:
                    raise ValueError(f"{where} names the run '{name}'; the runs are {_listed(names)}")
        for name, measure in MEASURES.items():
            if self.measures.section(name).on and "gauss_newton" in measure.reads and not self.curvature.gauss_newton:
                raise ValueError(f"measures.{name} is on, and needs curvature.gauss_newton to be true")
        return self

    def _chosen_runs(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield "figures.runs", self.figures.runs or ()
        for name in MEASURES:
            yield f"measures.{name}.runs", self.measures.section(name).runs or ()

    def is_measured(self, measure: str, run: str) -> bool:
        """Whether a measure is on for a run."""
        section = self.measures.section(measure)
        computed = self.curvature.gauss_newton or "gauss_newton" not in MEASURES[measure].reads
        on = computed and MEASURES[measure].by_default if section.on is None else section.on
        return on and (section.runs is None or run in section.runs)

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
        raise ConfigError(f"runs: there is no run '{name}'; the runs are {_listed([r.name for r in self.runs])}.")

    def run_seed(self, run: Run) -> int:
        """Seed of a run: its own, or the experiment's."""
        return self.seed if run.seed is None else run.seed


def _inherit(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Gives every run the keys of `training` that it does not override (each whole: a run's schedule replaces it)."""
    shared = raw.get("training")
    runs = raw.get(
        "runs", [run.model_dump(mode="json", exclude_unset=True) for run in Experiment.model_fields["runs"].default]
    )
    if isinstance(shared, dict) and isinstance(runs, list):
        runs = [{**shared, **run} if isinstance(run, dict) else run for run in runs]
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


def earlier_names(raw: Mapping[str, Any]) -> list[str]:
    """Sentences on keys that are read under another name than the one given.

    Args:
        raw: The content of an experiment file.

    Returns:
        One sentence for each.
    """
    return ["The key 'probes' is now called 'measures'; it is read as that."] if "probes" in raw else []


def _listed(values: list[str]) -> str:
    return ", ".join(values) if values else "none"


def _key(location: tuple[int | str, ...]) -> str:
    """`runs[0].learning_rate.value` from pydantic's location, without the tags of unions."""
    text = ""
    for previous, part in zip(("", *location), location, strict=False):
        if isinstance(part, int):
            text += f"[{part}]"
        elif (previous == "model" and part in {*_BUILT_IN, "custom"}) or (
            previous == "learning_rate" and part in _SCHEDULES
        ):
            continue
        else:
            text += f".{part}" if text else str(part)
    return text or "the experiment file"


def _section_at(location: tuple[int | str, ...]) -> type[Section]:
    """The section class in which the last key of a location was looked for."""
    if not location[:-1]:
        return Experiment
    head = location[0]
    if head == "model":
        return _BUILT_IN.get(str(location[1]), Custom)
    if "learning_rate" in location:
        return _SCHEDULES.get(str(location[list(location).index("learning_rate") + 1]), Steps)
    if head == "measures":
        return MEASURE_SECTIONS.get(str(location[-2]), AllMeasures)
    if location[-2] == "trajectory":
        return Trajectory
    sections: dict[str, type[Section]] = {
        "data": Data,
        "training": Training,
        "runs": Run,
        "curvature": Curvature,
        "figures": Figures,
    }
    return sections[str(head)]


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _sentence(error: ValidationError) -> str:
    """The first problem as one sentence: key, value, what is valid."""
    problems = error.errors()
    inherited = {(e["loc"][1:], e["type"]) for e in problems if e["loc"][:1] == ("training",)}
    problems = [e for e in problems if e["loc"][:1] != ("runs",) or (e["loc"][2:], e["type"]) not in inherited]
    first = min(problems, key=lambda e: (e["type"] != "extra_forbidden", len(e["loc"])))
    where, kind, context = _key(first["loc"]), first["type"], first.get("ctx", {})
    value = first.get("input")
    if kind == "extra_forbidden":
        known = sorted(_section_at(first["loc"]).model_fields)
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        sentence = f"{where} is not a known key{hint}; known here are {_listed(known)}"
    elif kind == "missing":
        sentence = f"{where} is missing and has no default"
    elif kind == "value_error":
        sentence = (
            f"{where} is {_shown(value)}: {context['error']}"
            if not isinstance(value, dict)
            else (f"{where}: {context['error']}")
        )
    elif kind in {"union_tag_invalid", "union_tag_not_found"}:
        tag = f"is {_shown(value['schedule'])}" if isinstance(value, dict) and "schedule" in value else "is missing"
        sentence = f"{where}.schedule {tag}; valid are {_listed(sorted(_SCHEDULES))}"
    elif kind == "literal_error":
        close = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", context["expected"]), n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        sentence = f"{where} is {_shown(value)}{hint}; valid are {context['expected']}"
    elif kind == "string_pattern_mismatch" and where == "model.factory":
        sentence = (
            f"model.factory is {_shown(value)}; valid are {_listed(sorted(_BUILT_IN))}, or a factory of your own as "
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
    _check_plain(raw, "")
    text = json.dumps(_inherit(_renamed(raw)), allow_nan=True)
    try:
        # Through JSON, so that strict types take a YAML list for a tuple but never "3" for 3.
        return Experiment.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None


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


def resolved(section: Section) -> dict[str, Any]:
    """A section as plain JSON values: what fingerprints and Snakemake's params are made of."""
    return json.loads(section.model_dump_json())


def check_problem(experiment: Experiment, parameters: int, training_images: int) -> None:
    """Checks what depends on the sizes of network and data set.

    Args:
        experiment: The experiment.
        parameters: P, the number of parameters.
        training_images: N, the number of training images.

    Raises:
        ConfigError: More directions, shards or bands than parameters, or a batch larger than the training set.
    """
    for measure in MEASURES.values():
        given = experiment.measures.given(measure.name)
        for option in measure.options:
            if option.parameters_at_most and given.get(option.name, 0) > parameters:
                raise ConfigError(
                    f"measures.{measure.name}.{option.name} is {given[option.name]}, but the network has only "
                    f"{parameters} parameters and so as many eigenvectors; valid are {option.at_least:g} to "
                    f"{parameters}."
                )
    if experiment.curvature.shards > parameters:
        raise ConfigError(
            f"curvature.shards is {experiment.curvature.shards}, but the Hessian has only {parameters} columns; valid "
            f"are 1 to the number of its column strips, which is at most {parameters}."
        )
    for index, run in enumerate(experiment.runs):
        if run.path is None and run.batch_size > training_images:
            raise ConfigError(
                f"runs[{index}].batch_size is {run.batch_size}, but there are only {training_images} training images; "
                f"valid are 1 to {training_images}."
            )


def finite(value: float) -> float | None:
    """A float for JSON: None instead of NaN or infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
