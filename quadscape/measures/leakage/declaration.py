"""Leakage between directions from one checkpoint's eigenbasis to another's, as declared."""

from quadscape.measures.columns import DIRECTION
from quadscape.measures.costs import overlap_cost
from quadscape.measures.declaration import Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

WINDOWS = ("first", "second")
"""Of which of the two checkpoints the window is; the eigenvectors are those of the other."""

_UNIT = "parameter²"

LEAKAGE = TableSchema(
    "leakage",
    "One eigenvector qᵢ of one checkpoint, seen in the window that ends at the other, whose own eigenvectors have the "
    "variances Var xⱼ of the table `evolution` there.",
    (
        *DIRECTION,
        Column("window", "1", f"Of which checkpoint the window is: {', '.join(WINDOWS)}.", "str"),
        Column("variance", _UNIT, "Var xᵢ along the eigenvector of the same index of the window's own checkpoint."),
        Column(
            "seen",
            _UNIT,
            "Σⱼ O²ᵢⱼ Var xⱼ, what is seen along qᵢ where the window's own directions do not know of each other.",
        ),
        Column("leakage", _UNIT, "The part of it with j ≠ i."),
        Column("share", "1", "leakage / seen; NaN where nothing moves."),
        Column("unmatched", "1", "The share without the eigenvector that is most like qᵢ, whatever its index."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    return overlap_cost(sizes)


MEASURE = Measure(
    name="leakage",
    title="How much of what is seen along an eigenvector of one checkpoint in the window of another is that of other "
    "directions?",
    chapter=5,
    of="checkpoint_pair",
    reads=("eigenbasis", "evolution"),
    tables=(LEAKAGE,),
    cost=_cost,
    gpu=True,
    # Another pass over both bases for each pair, of which evolution itself needs nothing: it looks at each window in
    # the basis of the checkpoint at its end.
    by_default=False,
)
