"""Forms of lines and their growth, as declared."""

from quadscape.measures.columns import DIRECTION, IS_ZERO
from quadscape.measures.declaration import TABLE_BYTES, Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

LEAST_BEYOND = 4
"""Fewest points beyond the quadratic radius for an exponent and those of its halves."""

RESOLUTION = 10.0
"""A change of the loss counts where it is so many rounding floors."""

FORMS = TableSchema(
    "line_forms",
    "One line searched: its best form, its radius as a rise of the loss, and its growth beyond.",
    (
        *DIRECTION,
        IS_ZERO,
        Column("form", "1", "As in `line_fit`: the simplest form within 1 %; `none`, `unresolved`.", "str"),
        Column("best_form", "1", "That form, or where there is none the one of least held-out error.", "str"),
        Column("best_error", "1", "Its held-out error: rms over standard deviation; NaN where it is unresolved."),
        Column(
            "rise",
            "loss",
            "½|λ|r² at the quadratic radius r on the side where the quadratic ends first; NaN where neither side is "
            "measured, or the other ends before it.",
        ),
        Column(
            "growth",
            "1",
            "p of |ΔL| ∝ |t|ᵖ beyond the quadratic radius, of the even part of ΔL and as far as forms are compared; 2 "
            "is that of a wider or narrower quadratic, less is sub-quadratic. NaN where it does not grow throughout.",
            interval="smallest and largest of the exponents of the inner and the outer half, and of both",
        ),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    return Cost(memory_bytes=TABLE_BYTES)


MEASURE = Measure(
    name="line_forms",
    title="Best form of every line searched, and the exponent of growth beyond its quadratic radius.",
    chapter=3,
    of="checkpoint",
    reads=("line_search",),
    tables=(FORMS,),
    cost=_cost,
)
