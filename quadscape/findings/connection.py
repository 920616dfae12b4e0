"""Findings from the straight line between the ends of two runs."""

from quadscape.findings import reading
from quadscape.findings.numbers import number
from quadscape.findings.reading import Tables
from quadscape.findings.statement import Estimate, Statement, described

MEASURE = "connection"

PRIMARY = ""
"""No published result is tested."""

_EXACT = "rounding floor; exact on this training set, at the points of the grid"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all pairs.

    Args:
        tables: `connection_summary`.

    Returns:
        Statements, by pair.
    """
    found: list[Statement] = []
    for pair in reading.runs_of(tables, "connection_summary"):
        table = pair.tables[0]
        own = table.where(table["split"] == "train")
        if not len(own):
            continue
        barrier, floor = float(own["barrier"][0]), float(own["floor"][0])
        names = " and ".join(table.attributes.get("runs", [pair.run]))
        if barrier > 0:
            place = number(float(own["barrier_at"][0]), 2)
            text = f"Between the ends of {names} the training loss rises by up to {number(barrier)} above the straight "
            text += f"line between its end values, at α = {place}"
        else:
            text = f"Between the ends of {names} the training loss has no barrier"
        estimate = Estimate(barrier, max(0.0, barrier - floor), barrier + floor, _EXACT, "loss")
        found.append(described(text, estimate, measure=MEASURE, run=pair.run))
    return found
