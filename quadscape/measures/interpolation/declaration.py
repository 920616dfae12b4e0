"""The straight line from start to end, as declared."""

from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

REFINED = 8
"""Points that are added within each interval beside the foot and the top of a bump, and the top of a barrier."""

INTERPOLATION = TableSchema(
    "interpolation",
    "Loss and accuracy of one data split at one point (1 − α)θ₀ + αθ_T of the line from start to end.",
    (
        Column("split", "1", "`train` or `validation`.", "str"),
        Column("alpha", "1", "α: 0 at the start of the run, 1 at its end."),
        Column("loss", "loss", "Mean loss of the split (without weight decay)."),
        Column("accuracy", "1", "Share of examples classified correctly.", interval="95 %, Wilson, over examples"),
    ),
)

SUMMARY = TableSchema(
    "interpolation_summary",
    "What the line of one data split says; numbers of the points of the grid.",
    (
        Column("split", "1", "`train` or `validation`.", "str"),
        Column("monotone", "1", "Whether the loss never rises along α by more than the rounding floor.", "bool"),
        Column("bump", "loss", "Largest rise max L(β) − L(α) over α < β; 0 if no larger than the rounding floor."),
        Column("foot", "1", "α from which it rises; NaN without a bump."),
        Column("top", "1", "β to which it rises; NaN without a bump."),
        Column("barrier", "loss", "max L(α) − [(1 − α)L(0) + αL(1)]; 0 if no larger than the rounding floor."),
        Column("barrier_at", "1", "α of that; NaN without a barrier."),
        Column("start", "loss", "L(0)."),
        Column("end", "loss", "L(1)."),
        Column(
            "floor", "loss", "Rounding floor: 64ε times the largest mean of |ℓ| + max |scores| on the line, a bound."
        ),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    # Up to three places are refined, of each split; as a rule one of one.
    points = options["points"] + 2 * REFINED
    memory = sizes.torch_bytes + sizes.evaluation_bytes + 16 * 8 * sizes.parameters
    return Cost(memory, evaluations=points * (sizes.training + sizes.validation))


MEASURE = Measure(
    name="interpolation",
    title="Loss along the straight line from the start of a run to its end: bumps and barriers.",
    chapter=9,
    of="run",
    reads=("data", "trajectory"),
    tables=(INTERPOLATION, SUMMARY),
    cost=_cost,
    options=(
        Option(
            "points",
            41,
            "Points of the line, evenly spaced from start to end, more are added at a bump; odd.",
            at_least=5,
            odd="so that the middle is one of them",
        ),
    ),
    evaluates=True,
    gpu=True,
)
