"""The course of a run, as declared."""

from quadscape.measures.declaration import TABLE_BYTES, Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

CURVES = TableSchema(
    "curves",
    "Batch losses in a running window around one iteration.",
    (
        Column("iteration", "1", "Steps taken before the batch in the middle of the window.", "int"),
        Column("batch_loss", "loss", "Mean of the batch losses in the window (without weight decay)."),
        Column("batch_loss_q05", "loss", "5 % quantile of the batch losses in the window."),
        Column("batch_loss_q95", "loss", "95 % quantile of the batch losses in the window."),
        Column("learning_rate", "1", "Learning rate η of the step."),
    ),
)


EVALUATIONS = TableSchema(
    "evaluations",
    "Loss and accuracy over one whole split at one iteration.",
    (
        Column("iteration", "1", "Steps taken.", "int"),
        Column("split", "1", "`train` or `validation`.", "str"),
        Column("loss", "loss", "Mean loss (without weight decay)."),
        Column("accuracy", "1", "Share of examples classified correctly.", interval="95 %, Wilson, over examples"),
    ),
)


NORMS = TableSchema(
    "layer_gradients",
    "Gradient of the batch loss in one layer, in a running window around one iteration.",
    (
        Column("iteration", "1", "Steps taken before the batch in the middle of the window.", "int"),
        Column("layer", "1", "Name of the layer.", "str"),
        Column("norm", "loss / parameter", "Root mean square of the gradient's Euclidean norm over the window."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    return Cost(memory_bytes=TABLE_BYTES + sizes.course_bytes)


MEASURE = Measure(
    name="curves",
    title="How the training went: batch loss, learning rate, evaluations and gradient norms.",
    chapter=1,
    of="run",
    reads=("trajectory",),
    tables=(CURVES, EVALUATIONS, NORMS),
    cost=_cost,
)
