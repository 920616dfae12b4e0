"""The straight line between the ends of two runs, as declared."""

from dataclasses import replace

from quadscape.measures.declaration import Cost, Measure, Options, Sizes
from quadscape.measures.interpolation.declaration import INTERPOLATION, SUMMARY
from quadscape.measures.interpolation.declaration import MEASURE as INTERPOLATION_MEASURE
from quadscape.tables import Column

_ALPHA = "α: 0 at the end of the first run, 1 at that of the second."
_ALIGNED = Column(
    "aligned",
    "1",
    "Whether the hidden units of the second run are renumbered to match those of the first; its function is the same.",
    "bool",
)

CONNECTION = replace(
    INTERPOLATION,
    name="connection",
    description="Loss and accuracy of one data split at one point of the straight line between the ends of two runs.",
    columns=(
        _ALIGNED,
        *(
            replace(column, description=_ALPHA) if column.name == "alpha" else column
            for column in INTERPOLATION.columns
        ),
    ),
)

CONNECTION_SUMMARY = replace(SUMMARY, name="connection_summary", columns=(_ALIGNED, *SUMMARY.columns))


def _cost(sizes: Sizes, options: Options) -> Cost:
    line = INTERPOLATION_MEASURE.cost(sizes, options)
    # Two lines, and the check that renumbering leaves the loss.
    more = 2 * (sizes.training + sizes.validation)
    return replace(line, evaluations=2 * line.evaluations + more)


MEASURE: Measure = replace(
    INTERPOLATION_MEASURE,
    name="connection",
    title="Loss along the straight line between the ends of two runs, with hidden units as they are and aligned.",
    of="run_pair",
    tables=(CONNECTION, CONNECTION_SUMMARY),
    cost=_cost,
)
