"""The loss on test data at the end of a run, as declared."""

from quadscape.measures.declaration import TABLE_BYTES, Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

FINAL_TEST = TableSchema(
    "final_test",
    "Loss and accuracy over the whole test split at the last iteration of a run.",
    (
        Column("iteration", "1", "Steps taken.", "int"),
        Column("loss", "loss", "Mean test loss (without weight decay)."),
        Column("accuracy", "1", "Share of test examples classified correctly.", interval="95 %, Wilson, over examples"),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    return Cost(memory_bytes=TABLE_BYTES + sizes.course_bytes)


MEASURE = Measure(
    name="final_test",
    title="Loss and accuracy on test data at the end of a run: the one measure that reads them.",
    chapter=1,
    of="run",
    reads=("trajectory",),
    tables=(FINAL_TEST,),
    cost=_cost,
)
