"""The spectrum, as declared."""

from quadscape.measures.columns import DIRECTION, IS_ZERO
from quadscape.measures.declaration import TABLE_BYTES, Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

SCHEMA = TableSchema(
    "spectrum",
    "One eigenvalue of the Hessian of the training loss (without weight decay).",
    (
        *DIRECTION,
        IS_ZERO,
        Column("scale_overlap", "1", "Part of the eigenvector's squared length in the span of scale generators."),
        Column("shift_overlap", "1", "Part of the eigenvector's squared length in the span of shift generators."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    # Eigenvalues, overlaps with generators, and what is sorted and chosen of them; no eigenvector.
    return Cost(memory_bytes=TABLE_BYTES + 16 * 8 * sizes.parameters, vectors=0)


MEASURE = Measure(
    name="spectrum",
    title="All eigenvalues of the Hessian by rank, with counts and masses at several cuts.",
    chapter=2,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis"),
    tables=(SCHEMA,),
    cost=_cost,
)
