"""Findings from the path of a run: how much of it a plane holds, beside a random walk."""

from typing import Any

from quadscape.findings import reading
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described
from quadscape.tables import Table

MEASURE = "path"

PRIMARY = "trajectory-pca-random-walk"
"""The finding declared beforehand; all others are exploratory."""

_WALKS = "95 % of random walks of equal length"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `path_components` and `path_points`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, "path_components"):
        found += _shares(run, run.tables[0])
    for run in reading.runs_of(tables, "path_points"):
        found += _distances(run, run.tables[0])
    return found


def _shares(run: RunTables, table: Table) -> list[Statement]:
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    setting = dict(run.setting) | {
        name: table.attributes[name] for name in ("P", "iterates") if name in table.attributes
    }
    found = []
    for row, word in enumerate(("first", "second")[: len(table)]):
        share, walk, low, high = (float(table[name][row]) for name in ("share", "walk", "walk_low", "walk_high"))
        text = (
            f"The {word} principal component of the path explains {percent(share)} of its variance, that of a random "
        )
        text += f"walk {percent(walk)}"
        # Over the closed form, and over the ends of what walks of this length do.
        estimate = Estimate(share / walk, min(share / walk, share / high), max(share / walk, share / low), _WALKS)
        found.append(compared(PRIMARY, text, estimate, setting, **at) if row == 0 else described(text, estimate, **at))
    return found


def _distances(run: RunTables, table: Table) -> list[Statement]:
    radius, distance = float(table["radius"].max()), float(table["distance"].max())
    if not radius > 0 or not table.attributes.get("rank", 2) > 1:
        return []
    far = int(table["distance"].argmax())
    text = f"The path leaves the plane of its first two principal components by up to {number(distance)}, "
    text += f"{percent(distance / radius)} of its largest distance from the mean"
    estimate = Estimate.exact(distance / radius)
    iteration = int(table["iteration"][far])
    return [described(text, estimate, measure=MEASURE, run=run.run, iterations=(iteration,))]
