"""Gradients by layer and depth, as declared."""

from quadscape.measures.columns import MEMBER
from quadscape.measures.declaration import TABLE_BYTES, Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

_WINDOW = Column(
    "window",
    "1",
    "`initial` (the first step alone), or `start`, `middle` or `end`: first, middle and last tenth of the run.",
    "str",
)

NORMS = TableSchema(
    "layer_norms",
    "Gradient of the batch loss in one layer with weights of one member of a family, over one window of its run.",
    (
        *MEMBER,
        _WINDOW,
        Column("from_loss", "1", "Place of the layer among those with weights, from 0 at the loss.", "int"),
        Column("layer", "1", "Name of the layer.", "str"),
        Column(
            "alike", "1", "Whether it is among the hidden layers of equal shape that slopes are taken over.", "bool"
        ),
        Column(
            "log_norm",
            "log10(loss / parameter)",
            "Mean over the window's steps of the decimal logarithm of the Euclidean norm of the layer's gradient, "
            "steps without any left out; NaN where none is left.",
            interval="95 %, Student's t, over 10 blocks of time; NaN for single steps",
        ),
        Column("vanished", "1", "Share of the window's steps whose gradient is exactly 0 in the layer; NaN for none."),
    ),
)

_SEEDS = "95 %, Student's t, over seeds; NaN with one"

SLOPES = TableSchema(
    "layer_slopes",
    "How the gradient grows or shrinks from layer to layer, over the members of one cell and one window.",
    (
        Column("cell", "1", "Labels on all axes that do more than change the seed.", "str"),
        _WINDOW,
        Column("layers", "1", "Hidden layers of equal shape, first and last layer of the network left out.", "int"),
        Column("members", "1", "Members of the cell with a slope in this window.", "int"),
        Column("without", "1", "Members without one: diverged before, or a gradient is 0 in some layer.", "int"),
        Column(
            "slope",
            "log10 per layer",
            "Slope of the decimal logarithm of the gradient's norm against the place of the layer, counted from the "
            "loss: below 0 gradients vanish towards the input, above 0 they explode. Mean over seeds.",
            interval=_SEEDS,
        ),
        Column(
            "linearity",
            "1",
            "R² of the straight line of this slope, mean over seeds: whether growth is exponential in depth.",
            interval=_SEEDS,
        ),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    return Cost(memory_bytes=TABLE_BYTES)


MEASURE = Measure(
    name="layers",
    title="Vanishing and exploding gradients: their norm by layer through training, and its slope with depth.",
    chapter=1,
    of="family",
    reads=("trajectory",),
    tables=(NORMS, SLOPES),
    cost=_cost,
)
