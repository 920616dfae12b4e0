"""The straight line between the ends of two runs, as declared."""

from dataclasses import replace

from quadscape.measures.declaration import Measure
from quadscape.measures.interpolation.declaration import INTERPOLATION, SUMMARY
from quadscape.measures.interpolation.declaration import MEASURE as INTERPOLATION_MEASURE

_ALPHA = "α: 0 at the end of the first run, 1 at that of the second."

CONNECTION = replace(
    INTERPOLATION,
    name="connection",
    description="Loss and accuracy of one data split at one point of the straight line between the ends of two runs.",
    columns=tuple(
        replace(column, description=_ALPHA) if column.name == "alpha" else column for column in INTERPOLATION.columns
    ),
)

CONNECTION_SUMMARY = replace(SUMMARY, name="connection_summary")

MEASURE: Measure = replace(
    INTERPOLATION_MEASURE,
    name="connection",
    title="Loss along the straight line between the ends of two runs: whether a barrier lies between them.",
    of="run_pair",
    tables=(CONNECTION, CONNECTION_SUMMARY),
)
