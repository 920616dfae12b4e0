"""What a measure declares of itself; reading it loads neither torch nor pydantic.

The head of the workflow and every job on a cluster read all declarations at their start. From them follow the rule of a
measure, the places of its results, its section of the experiment file, memory and time limits, what may be purged, and
its page in the documentation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from quadscape.digests import json_digest
from quadscape.network.counts import CPU_GRAPH_BYTES, PRODUCT_GRAPHS, TORCH_BYTES
from quadscape.tables import TableSchema

Subject = Literal["run", "checkpoint", "checkpoint_pair", "family", "run_pair"]
Options = Mapping[str, Any]
ON_SUBSETS: Options = MappingProxyType({"subset_data": "data", "subset_eigenbasis": "eigenbasis"})
"""What a measure of checkpoints can read of all subsets on which the curvature of one is computed, in their order."""

AT_START: Options = MappingProxyType({"start_checkpoint": "checkpoint", "start_eigenbasis": "eigenbasis"})
"""What a measure of families can read of the one checkpoint at which all members start."""

STAGES = ("data", "trajectory", "checkpoint", "hessian", "gauss_newton", "eigenbasis", *ON_SUBSETS, *AT_START)
"""What a measure can read, besides tables of other measures."""

CHAPTERS = {
    1: "Training",
    2: "Curvature",
    3: "How quadratic",
    4: "Noise",
    5: "Dynamics",
    6: "Overfitting",
    7: "Theory",
    8: "Comparisons",
    9: "Views",
}
"""Titles of the report's sections, in the order of the story."""


@dataclass(frozen=True)
class Option:
    """One key of a measure's section of the experiment file.

    Attributes:
        name: The key.
        default: Its value where none is given; its type is the option's.
        description: What it means.
        at_least: Smallest value.
        above: Value that it must exceed.
        parameters_at_most: Whether it can be no larger than the number of parameters P; the default is then clipped.
        odd: Whether it must be odd, and why.
        check: Raises a ValueError that says what is wrong with a value and what is valid.
        least_parameters: How many parameters P a value needs.
    """

    name: str
    default: int | float | str
    description: str
    at_least: float | None = None
    above: float | None = None
    parameters_at_most: bool = False
    odd: str = ""
    check: Callable[[Any], object] | None = None
    least_parameters: Callable[[Any], int] | None = None


TABLE_BYTES = 250e6
"""Memory of a job that reads tables and trajectories, without torch."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run, which costs follow from.

    Attributes:
        parameters: P.
        training: N, the number of training examples.
        validation: Number of validation examples.
        test: Number of test examples.
        classes: Number of classes.
        example_bytes: Size of one input in float64.
        itemsize: Bytes of one entry of Hessian and eigenbasis.
        members: Number of runs of a family; its other sizes are then the largest of any member.
        subsets: Subsets on which the curvature of one checkpoint is computed, the most of any.
        iterations: Steps of the run.
        tensors: Parameter tensors of the network, of which a layer has at least one.
        graph_bytes: Memory of the graph of a gradient over one chunk of examples in float64.
        device: `cpu` or `cuda`.
    """

    parameters: int
    training: int
    validation: int
    test: int
    classes: int
    example_bytes: int
    itemsize: int
    members: int = 1
    subsets: int = 0
    iterations: int = 0
    tensors: int = 0
    graph_bytes: float = CPU_GRAPH_BYTES
    device: str = "cpu"

    @property
    def course_bytes(self) -> float:
        """Of losses, rates, evaluations and gradient norms by layer of the whole run: as decoded, whole, and cut."""
        return 3 * 8.0 * (self.iterations + 1) * (8 + self.tensors)

    @property
    def torch_bytes(self) -> float:
        """Of a process that has loaded torch and the data, in float64 and float32."""
        return TORCH_BYTES[self.device] + 1.5 * self.images_bytes

    @property
    def evaluation_bytes(self) -> float:
        """Of a loss on its way; on a GPU it takes nothing of the host."""
        return 0.0 if self.device == "cuda" else self.graph_bytes

    @property
    def gradient_bytes(self) -> float:
        """Of a gradient on its way."""
        return 2 * self.evaluation_bytes

    @property
    def product_bytes(self) -> float:
        """Of a Hessian product on its way."""
        return PRODUCT_GRAPHS * self.evaluation_bytes

    @property
    def images_bytes(self) -> int:
        """Of all inputs in float64."""
        return self.example_bytes * (self.training + self.validation + self.test)


@dataclass(frozen=True)
class Cost:
    """What one job of a measure takes.

    Attributes:
        memory_bytes: Of the host, of the whole process.
        evaluations: Losses of single examples, in the precision of the measure.
        single_evaluations: Losses of single examples in float32, whatever that precision.
        gradients: Gradients of single examples.
        products: Hessian products of single examples.
        flops: Operations of products of plain matrices.
        kept_bytes: What is kept on disk beside the tables.
        numbers: That element-wise passes over arrays larger than caches write or add up.
        calls: Passes over something small, whatever it holds.
        vectors: Eigenvectors that are read; None: all of the basis, where it reads one.
    """

    memory_bytes: float
    evaluations: float = 0.0
    single_evaluations: float = 0.0
    gradients: float = 0.0
    products: float = 0.0
    flops: float = 0.0
    kept_bytes: float = 0.0
    numbers: float = 0.0
    calls: float = 0.0
    vectors: float | None = None

    @property
    def nominal_seconds(self) -> float:
        """Time on one current GPU, with a factor of two or more to spare."""
        return (
            2e-5 * (self.evaluations + self.single_evaluations)
            + 4e-5 * (self.gradients + self.products)
            + 1e-11 * self.flops
        )


@dataclass(frozen=True)
class Measure:
    """One measure: `quadscape.measures.<name>.compute:compute` turns a `Job` into its tables.

    Attributes:
        name: One word for rule, log, section of the experiment file and folder of the tables.
        title: What it measures, as one sentence.
        chapter: Number of the report's section that it belongs to: see `CHAPTERS`.
        of: What there is one result of.
        reads: Stages, and tables of other measures, that it opens.
        tables: What it returns.
        cost: The law of its cost.
        options: Its section of the experiment file.
        evaluates: Whether it evaluates the network, in the precision `measures.dtype`.
        gpu: Whether it gains from a GPU; its rule then asks for one, unless the experiment's `device` is `cpu`.
        items: Whether it takes more than a few minutes at full size: its module then also has a class `Work`, which
            cuts the work into items, and the protocol of long stages keeps what is done
            (`quadscape.measures.items`).
        keeps: Of a measure with items, what stays beside the tables once these are written: names of its layout, large,
            float32, and read by `quadscape.measures.job.Job.kept_values`.
        by_default: Whether it is measured where nothing is said, and everything that it reads is computed.
    """

    name: str
    title: str
    chapter: int
    of: Subject
    reads: tuple[str, ...]
    tables: tuple[TableSchema, ...]
    cost: Callable[[Sizes, Options], Cost]
    options: tuple[Option, ...] = ()
    evaluates: bool = False
    gpu: bool = False
    items: bool = False
    keeps: tuple[str, ...] = ()
    by_default: bool = True

    @property
    def module(self) -> str:
        """The module whose `compute` makes the tables."""
        return f"quadscape.measures.{self.name}.compute"

    @property
    def wildcards(self) -> tuple[str, ...]:
        """What names the iterations of its subject in rules."""
        return {"checkpoint": ("iteration",), "checkpoint_pair": ("first", "second")}.get(self.of, ())

    @property
    def schemas(self) -> dict[str, TableSchema]:
        """Its tables by name."""
        return {schema.name: schema for schema in self.tables}

    @property
    def reads_subsets(self) -> bool:
        """Whether it compares a checkpoint on subsets of the data, and so exists only where there are any."""
        return any(name in self.reads for name in ON_SUBSETS)

    @property
    def reads_start(self) -> bool:
        """Whether it exists only for families whose members all start at one checkpoint with an eigenbasis."""
        return any(name in self.reads for name in AT_START)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it reads, not the tables."""
        return tuple(name for name in self.reads if name in STAGES)


WHOLE_RUN = "run"
WHOLE_FAMILY = "family"
WHOLE_PAIR = "pair"
GROUPS: Mapping[Subject, str] = MappingProxyType({"family": WHOLE_FAMILY, "run_pair": WHOLE_PAIR})
"""Subjects that are several runs, which a job gets as a family, and the folder of their results."""


def stage_of(name: str) -> str:
    """The stage that a measure reads under a name: `eigenbasis` of `subset_eigenbasis` and `start_eigenbasis`, too."""
    return {**ON_SUBSETS, **AT_START}.get(name, name)


_ON = "/on-"


def checkpoint_key(iteration: int, subset: str | None = None) -> str:
    """The folder of a checkpoint, below its run's `checkpoints/` or a measure's results: `2000`, `2000/on-<subset>`."""
    return str(iteration) if subset is None else f"{iteration}{_ON}{subset}"


def iteration_of_key(key: str) -> int:
    """The iteration of a checkpoint from its folder."""
    return int(key.partition(_ON)[0])


def subset_of_key(key: str) -> str | None:
    """The subset on which a checkpoint is analysed, from its folder; None for the data of its run."""
    return key.partition(_ON)[2] or None


def subject_key(iterations: Sequence[Any]) -> str:
    """The folder of a subject's results: its iterations, joined, or `run` for a whole run."""
    return "-".join(map(str, iterations)) or WHOLE_RUN


def subject_iterations(key: str) -> list[str]:
    """The iterations of a subject from its folder."""
    if key in {WHOLE_RUN, *GROUPS.values()}:
        return []
    return [key] if _ON in key else key.split("-")


def effective_options(measure: Measure, given: Options, parameters: int) -> dict[str, Any]:
    """Options as they are used: defaults that exceed the number of parameters are clipped to it.

    Args:
        measure: The measure.
        given: Values of its options that the experiment gives, and `dtype`.
        parameters: P.

    Returns:
        A value for every option, and `dtype` where the network is evaluated.
    """
    found: dict[str, Any] = {"dtype": given["dtype"]} if measure.evaluates else {}
    for option in measure.options:
        value = given.get(option.name, option.default)
        if option.parameters_at_most and option.name not in given:
            value = min(int(value), parameters)
        found[option.name] = value
    return found


def fingerprint_digits(options: Options, label: str) -> str:
    """Eight hexadecimal digits of options and code label: the part of the name of every file of a result.

    Args:
        options: From `effective_options`.
        label: Label of the code; see `quadscape.planning.labels`.

    Returns:
        The digits.
    """
    return json_digest([options, label])[:8]
