"""Surfaces of the loss on planes, as declared."""

import re
from dataclasses import dataclass

from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

NEAR = 1
"""Steps of the grid, to each side of the centre, of the points to which the quadratic of a picture is fitted."""

TILE_BYTES = 2 << 30
"""Taken while random directions are multiplied with the basis."""

VALID = "random, random:SEED, extreme, or two ranks such as 1:2 and 1:-1, where −1 is the smallest eigenvalue"
_RANDOM, _RANKS = re.compile(r"random(?::(\d{1,9}))?"), re.compile(r"(-?[1-9]\d{0,8}):(-?[1-9]\d{0,8})")


@dataclass(frozen=True)
class Plane:
    """A plane through θ, as it is named in the experiment file.

    Attributes:
        name: As named.
        seed: Of its two directions, where these are random.
        ranks: Places of its two eigenvectors in descending order of eigenvalue, from 1; negative ones from the end.
    """

    name: str
    seed: int = 0
    ranks: tuple[int, int] | None = None

    @property
    def least_parameters(self) -> int:
        """Number of parameters with which both directions exist and differ."""
        first, second = self.ranks or (1, 1)
        return max(abs(first), abs(second)) if first * second > 0 else abs(first) + abs(second)


def planes_of(text: str) -> tuple[Plane, ...]:
    """The planes that an experiment file names.

    Args:
        text: Their names, separated by commas.

    Returns:
        The planes in their order.

    Raises:
        ValueError: A name is none, or two name the same plane.
    """
    found: dict[object, Plane] = {}
    for name in (part.strip() for part in text.split(",")):
        plane = _plane(name)
        same = plane.seed if plane.ranks is None else frozenset(plane.ranks)
        if same in found:
            raise ValueError(f"'{found[same].name}' and '{name}' are one plane; name it once")
        found[same] = plane
    return tuple(found.values())


def _plane(name: str) -> Plane:
    if name == "extreme":
        return Plane(name, ranks=(1, -1))
    if match := _RANDOM.fullmatch(name):
        return Plane(name, seed=int(match.group(1) or 0))
    if match := _RANKS.fullmatch(name):
        first, second = (int(rank) for rank in match.groups())
        if first == second:
            raise ValueError(f"'{name}' has one eigenvector, and a plane takes two; valid are {VALID}")
        return Plane(name, ranks=(first, second))
    raise ValueError(f"'{name}' is no plane; valid are, separated by commas, {VALID}")


def _least_parameters(text: str) -> int:
    return max(plane.least_parameters for plane in planes_of(text))


SURFACE = TableSchema(
    "surface",
    "The training loss at one point θ + a·d₁ + b·d₂ of a plane.",
    (
        Column("plane", "1", "Name of the plane.", "str"),
        Column("a", "1", "Multiple of the first direction d₁; for an eigenvector, which has length 1, a distance."),
        Column("b", "1", "Multiple of the second direction d₂."),
        Column("loss", "loss", "Mean training loss (without weight decay); NaN where it is not finite."),
        Column("difference", "loss", "L(θ + a·d₁ + b·d₂) − L(θ): mean of single examples' differences, in float64."),
    ),
)


def _curvatures(which: str, text: str) -> tuple[Column, ...]:
    unit = "loss / parameter²"
    return (
        Column(f"{which}_first", unit, f"Curvature along d₁, per squared length, {text}."),
        Column(f"{which}_second", unit, f"Curvature along d₂, per squared length, {text}."),
        Column(f"{which}_largest", unit, f"Largest curvature along any direction of the plane, {text}."),
        Column(f"{which}_smallest", unit, f"Smallest curvature along any direction of the plane, {text}."),
    )


PLANES = TableSchema(
    "surface_planes",
    "One plane: its directions, the curvature that its picture suggests, and that of the Hessian.",
    (
        Column("plane", "1", "Name of the plane.", "str"),
        Column("first", "1", "What d₁ is, in words.", "str"),
        Column("second", "1", "What d₂ is, in words.", "str"),
        Column("length_first", "parameter", "Length |d₁|."),
        Column("length_second", "parameter", "Length |d₂|."),
        Column("cosine", "1", "Cosine of the angle between d₁ and d₂."),
        Column("reach_first", "1", "Largest a of the grid."),
        Column("reach_second", "1", "Largest b of the grid."),
        *_curvatures(
            "suggested",
            "of the quadratic fitted to the nine points of the grid about the centre",
        ),
        *_curvatures("measured", "of the Hessian, by its products with d₁ and d₂"),
        Column("lower", "1", "Share of the grid's points whose loss is below that of the centre, beyond rounding."),
        Column("lowest", "loss", "Smallest difference from the centre on the grid; 0 where none is below it."),
        Column("minima", "1", "Points inside the grid lower than all eight neighbours, beyond rounding.", "int"),
        Column("floor", "loss", "Rounding floor of a difference of training losses, measured at the centre."),
    ),
)

SAMPLES = TableSchema(
    "surface_samples",
    "A random plane of filter-normalised directions, of which there is no picture: its curvatures by the eigenbasis.",
    (
        Column("seed", "1", "Of the directions: the plane `random:<seed>`.", "int"),
        Column("largest", "loss / parameter²", "Largest curvature along any direction of the plane."),
        Column("smallest", "loss / parameter²", "Smallest curvature along any direction of the plane."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    planes = options["planes"].count(",") + 1
    vectors = (2 * planes + 16) * 8 * sizes.parameters
    points = planes * options["resolution"] ** 2 + 9  # nine for the rounding floor
    directions = 2 * options["samples"]
    # Samples are multiplied with the basis when the last product of a plane has returned what it took.
    samples = 8 * directions * sizes.parameters + min(TILE_BYTES, 4 * 8 * sizes.parameters**2)
    memory = sizes.torch_bytes + vectors + max(sizes.product_bytes, samples)
    flops = 2 * directions * sizes.parameters**2
    return Cost(memory, evaluations=points * sizes.training, products=2 * planes * sizes.training, flops=flops)


MEASURE = Measure(
    name="surface",
    title="The training loss on planes through a checkpoint, and the curvature that such a picture suggests.",
    chapter=9,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis"),
    tables=(SURFACE, PLANES, SAMPLES),
    cost=_cost,
    options=(
        Option(
            "planes",
            "random, extreme",
            "Planes, separated by commas: `random` or `random:SEED`, two random directions, filter-normalised; "
            "`extreme`, the eigenvectors of largest and smallest eigenvalue; `1:2` or `1:-1`, any two ranks, from the "
            "end where negative.",
            check=planes_of,
            least_parameters=_least_parameters,
        ),
        Option(
            "resolution",
            15,
            "Points of a plane along each direction; odd.",
            at_least=2 * NEAR + 3,
            odd="so that the checkpoint is one of them",
        ),
        Option("reach", 1.0, "How far planes of random directions reach, in lengths of the filters.", above=0),
        Option("loss_rise", 0.1, "Along an eigenvector a plane reaches to where ½|λᵢ|t² is this …", above=0),
        Option("limit", 0.5, "… or t this fraction of |θ|, whichever is smaller.", above=0),
        Option("samples", 100, "Further random planes, of which only the curvatures are computed.", at_least=0),
    ),
    evaluates=True,
    gpu=True,
    items=True,
)
