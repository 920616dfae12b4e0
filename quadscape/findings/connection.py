"""Findings from the straight line between the ends of two runs."""

from quadscape.findings import reading
from quadscape.findings.numbers import number
from quadscape.findings.reading import Tables
from quadscape.findings.statement import Estimate, Statement, described
from quadscape.tables import Table

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
        names = " and ".join(table.attributes.get("runs", [pair.run]))
        own = table.where(table["split"] == "train")
        for aligned in (False, True):
            line = own.where(own["aligned"] == aligned)
            if len(line):
                found.append(_barrier(pair.run, names, line, aligned))
    return found


def _barrier(run: str, names: str, line: Table, aligned: bool) -> Statement:
    barrier, floor = float(line["barrier"][0]), float(line["floor"][0])
    text = f"Between the ends of {names} the training loss "
    if barrier > 0:
        text += f"rises by up to {number(barrier)} above the straight line between its end values, at α = "
        text += number(float(line["barrier_at"][0]), 2)
    else:
        text += "has no barrier"
    attributes = line.attributes
    if aligned:
        text += f" after hidden units are aligned, of which {attributes['moved']:,} of {attributes['units']:,} move"
    elif str(attributes.get("alignment", "")).startswith("not aligned"):
        text += "; hidden units are not aligned"
    estimate = Estimate(barrier, max(0.0, barrier - floor), barrier + floor, _EXACT, "loss")
    return described(text, estimate, measure=MEASURE, run=run)
