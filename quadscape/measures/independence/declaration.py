"""Independence of eigendirections, as declared."""

from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

SETS = ("top", "bulk", "bottom", "all", "isotropic")
"""What directions are made of: lines of large positive λ, of small |λ|, of negative λ, all lines, all eigenvectors."""

PAIRS = 3
"""The two largest λ; the largest and a middle one; the largest and the most negative."""

RESOLUTION = 10.0
"""Rounding floors that lie in |actual − quadratic| where a skill is given."""

SKILL = TableSchema(
    "independence",
    "The loss at one point θ + td, against what single lines and the quadratic predict there.",
    (
        Column("set", "1", f"What d is made of: {', '.join(f'`{name}`' for name in SETS)}.", "str"),
        Column("direction", "1", "Number of the random direction within its set, from 0.", "int"),
        Column("lines", "1", "Eigendirections in d; P where it is isotropic.", "int"),
        Column("t", "1", "Multiple of d. Of a set of lines d = Σ ±Tᵢqᵢ with the reach Tᵢ of each; isotropic, |d| = 1."),
        Column("length", "parameter", "|td|."),
        Column(
            "actual",
            "loss",
            "L(θ + td) − L(θ), mean of single examples' differences; NaN where one is not finite.",
            interval="95 %, normal, over examples",
        ),
        Column("rounding", "loss", "Rounding floor of actual − separable: that of `actual`, and those of the lines."),
        Column("separable", "loss", "t gᵀd + Σᵢ [fᵢ(taᵢ) − taᵢgᵢ], from single lines fᵢ."),
        Column("quadratic", "loss", "t gᵀd + ½t² dᵀHd, of one product with the Hessian."),
        Column(
            "skill",
            "1",
            "1 − |actual − separable|/|actual − quadratic|: 1 if lines act independently, 0 if they tell no more than "
            f"the quadratic; NaN where the denominator is less than {RESOLUTION:g} rounding floors.",
        ),
        Column(
            "beyond",
            "1",
            "Whether a measured line's |taᵢ| exceeds its quadratic radius; else agreement is Taylor's theorem.",
            "bool",
        ),
        Column(
            "odd_size",
            "loss",
            "Isotropic: standard deviation, for random signs, of the lines' odd parts, which `separable` leaves out; "
            "NaN for others, which have them.",
        ),
    ),
)

INTERACTION = TableSchema(
    "interaction",
    "The interaction of two eigendirections at one point of their plane.",
    (
        Column("pair", "1", "Number of the pair, from 0.", "int"),
        Column("index_x", "1", "Index of the first eigenvector, in descending order of eigenvalue, from 0.", "int"),
        Column("index_y", "1", "Index of the second.", "int"),
        Column("eigenvalue_x", "loss / parameter²", "Eigenvalue of the first."),
        Column("eigenvalue_y", "loss / parameter²", "Eigenvalue of the second."),
        Column("x", "parameter", "Distance along the first."),
        Column("y", "parameter", "Distance along the second."),
        Column("difference", "loss", "L(x, y) − L(0, 0)."),
        Column(
            "interaction",
            "loss",
            "L(x, y) − L(x, 0) − L(0, y) + L(0, 0), mean of single examples' sums; 0 if they act independently.",
            interval="95 %, normal, over examples",
        ),
        Column("rounding", "loss", "Rounding floor of `interaction`."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    directions = len(SETS) * options["directions"]
    grids = PAIRS * options["resolution"] ** 2
    # Rounding floors take a few more; of a direction there are itself, its components and what the network makes of it.
    losses = directions * options["points"] + grids + 16
    vectors = 8 * sizes.parameters * (4 * options["directions"] + 24)
    examples = 6 * 8 * options["resolution"] * sizes.training
    memory = sizes.torch_bytes + sizes.product_bytes + vectors + examples
    return Cost(
        memory,
        evaluations=losses * sizes.training,
        gradients=sizes.training,
        products=directions * sizes.training,
        flops=2.0 * options["directions"] * sizes.parameters**2,
    )


MEASURE = Measure(
    name="independence",
    title="Do eigendirections act independently beyond the quadratic? The loss off the lines, from single lines.",
    chapter=3,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis", "line_search"),
    tables=(SKILL, INTERACTION),
    cost=_cost,
    options=(
        Option("directions", 4, "Random directions of each set.", at_least=1),
        Option("points", 8, "Points of each direction.", at_least=1),
        Option(
            "resolution",
            9,
            "Points per axis of the plane of two eigendirections; odd.",
            at_least=3,
            odd="so that 0 is one of them",
        ),
    ),
    evaluates=True,
    gpu=True,
)
