"""Tuning on validation data, as declared."""

from quadscape.measures.columns import DIVERGED, MEMBER, SETTINGS
from quadscape.measures.declaration import TABLE_BYTES, Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

_INTERVAL = "95 %, Student's t, over seeds; NaN with one seed or where a member diverged"

TUNING = TableSchema(
    "tuning",
    "All members of one cell of a family: the settings that they share, and how well they end.",
    (
        Column("cell", "1", "Labels on all axes that do more than change the seed.", "str"),
        *SETTINGS,
        Column("members", "1", "Number of members, one for each seed.", "int"),
        Column("diverged", "1", "Number of members that diverged.", "int"),
        Column(
            "validation_loss",
            "loss",
            "Mean loss over the validation split at the end; infinite where a member diverged.",
            interval=_INTERVAL,
        ),
        Column(
            "training_loss",
            "loss",
            "Mean loss over the training split at the end; infinite where a member diverged.",
            interval=_INTERVAL,
        ),
    ),
)

RUNS = TableSchema(
    "tuning_runs",
    "One member of a family, and how well it ends.",
    (
        *MEMBER,
        Column("learning_rate", "1", "Learning rate η after the warm-up."),
        DIVERGED,
        Column("validation_loss", "loss", "Loss over the validation split at the end; infinite if it diverged."),
        Column("training_loss", "loss", "Loss over the training split at the end; infinite if it diverged."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    return Cost(memory_bytes=TABLE_BYTES)


MEASURE = Measure(
    name="tuning",
    title="Which setting of a family is best on validation data, over its seeds.",
    chapter=8,
    of="family",
    reads=("trajectory",),
    tables=(TUNING, RUNS),
    cost=_cost,
)
