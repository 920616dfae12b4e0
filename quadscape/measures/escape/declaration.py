"""Escape from the basins of a planted loss, as declared."""

from quadscape.measures.columns import DIVERGED, MEMBER, SETTINGS
from quadscape.measures.declaration import TABLE_BYTES, Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

ESCAPE = TableSchema(
    "escape",
    "All starts of one cell of a family on a planted loss: how many end in its best basin.",
    (
        Column("cell", "1", "Labels on all axes that do more than change the seed.", "str"),
        *SETTINGS,
        Column("starts", "1", "Number of starts: of members, those that diverged included.", "int"),
        Column("diverged", "1", "How many of them diverged; they end in no basin.", "int"),
        Column("began", "1", "How many began in the best basin.", "int"),
        Column("ended", "1", "How many ended in the best basin.", "int"),
        Column("moved", "1", "How many ended in another basin than they began in.", "int"),
        Column("share", "1", "Share of the starts that ended in the best basin.", interval="95 %, Wilson, over starts"),
    ),
)

RUNS = TableSchema(
    "escape_runs",
    "One start on a planted loss: in which basin it began, and in which it ended.",
    (
        *MEMBER,
        DIVERGED,
        Column("began", "1", "Basin of the start; 0 is the best.", "int"),
        Column("ended", "1", "Basin of the end; −1 if it diverged.", "int"),
        Column("excess", "loss", "Training loss at the end above that of the best well, in closed form."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    return Cost(memory_bytes=TABLE_BYTES)


MEASURE = Measure(
    name="escape",
    title="Share of starts that end in the best basin of a planted loss with several wells.",
    chapter=8,
    of="family",
    reads=("data", "trajectory"),
    tables=(ESCAPE, RUNS),
    cost=_cost,
    # Only planted losses say where their wells are.
    by_default=False,
)
