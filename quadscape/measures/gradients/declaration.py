"""Single-example gradients, as declared."""

from quadscape.measures.columns import BAND_SIZE, DIRECTION, band_columns
from quadscape.measures.costs import tiled_bytes
from quadscape.measures.declaration import Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
"""Quantiles of |cos| over examples, by column."""

_BOOTSTRAP = "95 %, Poisson bootstrap over examples"


DIRECTIONS = TableSchema(
    "gradients",
    "All single-example gradients of the training loss along one eigenvector.",
    (
        *DIRECTION,
        Column("mean", "1", "Mean of |cos| over examples.", interval=_BOOTSTRAP),
        *(Column(name, "1", f"{q:.0%} quantile of |cos| over examples.") for name, q in QUANTILES.items()),
        Column("share", "1", "Share of the examples' squared gradient norm.", interval=_BOOTSTRAP),
        Column("participation", "1", "Participation ratio of the examples.", interval=_BOOTSTRAP),
        Column("gradient", "loss / parameter", "Mean of gₙᵀq: the full gradient along q."),
        Column("variance", "loss² / parameter²", "Variance of gₙᵀq over examples, qᵀCq (divided by N)."),
        Column("top_example", "1", "Training example with the largest (gₙᵀq)².", "int"),
        Column("top_share", "1", "Its share of Σₙ(gₙᵀq)²."),
    ),
)


BANDS = TableSchema(
    "gradient_bands",
    "All single-example gradients along the eigenvectors of one band of log rank.",
    (
        *band_columns(),
        *BAND_SIZE,
        *(
            Column(name, "1", f"{q:.0%} quantile of |cos| over examples and directions.")
            for name, q in QUANTILES.items()
        ),
        Column("share", "1", "Share of the examples' squared gradient norm in the whole band.", interval=_BOOTSTRAP),
        Column("participation", "1", "Median participation ratio of the band's directions."),
        Column("participation_lower", "1", "25 % quantile of the same over directions."),
        Column("participation_upper", "1", "75 % quantile of the same over directions."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    size, count = sizes.parameters, sizes.training
    # And streamed sums.
    memory = sizes.torch_bytes + sizes.gradient_bytes + 1000 * 8 * size + tiled_bytes(size, count)
    return Cost(memory, gradients=count, flops=2 * count * size**2)


MEASURE = Measure(
    name="gradients",
    title="All single-example gradients in the eigenbasis: whose curvature is it?",
    chapter=4,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis"),
    tables=(DIRECTIONS, BANDS),
    cost=_cost,
    evaluates=True,
    gpu=True,
)
