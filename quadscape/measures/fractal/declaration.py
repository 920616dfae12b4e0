"""Nested line searches and the roughness that they leave, as declared."""

from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

LINES = ("top", "bulk", "random")
"""Directions: q₁, the eigenvector in the middle of the spectrum, and a random filter-normalised one."""

PRECISIONS = ("float64", "float32")
"""Precisions of the network, in the order in which values are stored."""

NARROWER = 10.0
"""By how much each window is narrower than the one before."""

DEGREE = 5
"""Degree of the polynomial that is taken as the smooth part of a window."""

SAMPLES = 16
"""Points of a window at which rounding is measured."""

STENCIL = 4
"""Further losses at each of them."""

FACTOR = 10.0
"""An exponent is claimed where the structure function is this many times the rounding floor, or more."""

DIFFERENTIABLE = 1.9
"""Exponents whose interval lies below are those of no differentiable function, whose own is 2."""

NOTHING, SMOOTH, ROUGH, WHITE, NOT_FINITE = "none above the floor", "smooth", "rough", "white", "not finite"

_WINDOW = (
    Column("line", "1", f"Direction of the line: {', '.join(LINES)}.", "str"),
    Column("window", "1", "Number of the window, from 0, the widest.", "int"),
    Column("precision", "1", f"Of the network: {', '.join(PRECISIONS)}.", "str"),
)

FRACTAL = TableSchema(
    "fractal",
    "One window of one line through θ, in one precision: what a polynomial leaves of the training loss.",
    (
        *_WINDOW,
        Column("index", "1", "Index of the eigenvector, −1 of the random direction.", "int"),
        Column("eigenvalue", "loss / parameter²", "Its eigenvalue, NaN of the random direction."),
        Column("half_width", "parameter", "Largest |t| of the window, on θ + t d with |d| = 1."),
        Column("residual", "loss", f"Root mean square of what the polynomial of degree {DEGREE} leaves."),
        Column(
            "floor",
            "loss",
            "Standard deviation σ of the rounding error of one loss, measured in the window.",
            interval=f"95 %, χ², over {SAMPLES} points",
        ),
        Column("excess", "1", "Smallest S₂(h)/2σ² of the lags that are fitted: 1 is rounding alone."),
        Column(
            "exponent",
            "1",
            f"ζ of S₂(h) ∝ h^ζ, less the floor, where the excess is at least {FACTOR:g}; NaN elsewhere.",
            interval="95 %, jackknife over blocks of the window, on this training set",
        ),
        Column(
            "state",
            "1",
            f"`{NOTHING}`; `{ROUGH}`: the interval of the exponent lies between 0 and {DIFFERENTIABLE}; `{SMOOTH}`: it "
            f"ends above; `{WHITE}`: it begins at 0 or below, as of rounding; `{NOT_FINITE}`: some loss is not.",
            "str",
        ),
    ),
)

STRUCTURE = TableSchema(
    "fractal_structure",
    "The structure function of one window at one lag.",
    (
        *_WINDOW,
        Column("lag", "parameter", "Distance h of two points."),
        Column(
            "structure",
            "loss²",
            "S₂(h), the mean square of r(t + h) − r(t), r being what the polynomial leaves.",
            interval="95 %, jackknife over blocks of the window, on this training set",
        ),
        Column("floor", "loss²", "2σ², what S₂ is of rounding errors alone that are independent."),
        Column("fitted", "1", "Whether the lag is among those whose exponent is read.", "bool"),
    ),
)

POINTS = TableSchema(
    "fractal_lines",
    "The training loss at one point of one window.",
    (
        *_WINDOW,
        Column("t", "parameter", "Place: θ + t d with |d| = 1."),
        Column("rise", "loss", "L(θ + t d) − L(θ): mean of single examples' differences, in float64."),
        Column("residual", "loss", f"The same less its polynomial of degree {DEGREE}."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    losses = len(LINES) * options["windows"] * (options["points"] + STENCIL * SAMPLES)
    memory = sizes.torch_bytes + sizes.evaluation_bytes + 24 * 8 * sizes.parameters
    return Cost(memory, evaluations=len(PRECISIONS) * losses * min(options["examples"], sizes.training))


MEASURE = Measure(
    name="fractal",
    title="Is the loss fractal at small scales? Nested line searches against the measured rounding floor.",
    chapter=3,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis"),
    tables=(FRACTAL, STRUCTURE, POINTS),
    cost=_cost,
    options=(
        Option("windows", 8, f"Nested windows of a line, each {NARROWER:g} times narrower than the last.", at_least=2),
        Option(
            "points",
            1025,
            "Points of a window, evenly spaced; odd. From 641 on the scales of neighbouring windows meet.",
            at_least=129,
            odd="so that t = 0 is one of them",
        ),
        Option("reach", 0.1, "The largest |t| of the widest window, as a fraction of |θ|.", above=0),
        Option("examples", 4096, "Examples of the loss: the first so many of the training data.", at_least=1),
    ),
    gpu=True,
    items=True,
)
