"""Findings from the scores of ruggedness: what the spectrum, random lines, noise and the range test say."""

import math
from typing import Any

from quadscape.findings import reading
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, described
from quadscape.tables import Table

MEASURE = "ruggedness"

PRIMARY = ""
"""No published result is tested: whether a score tells how hard training will be takes many networks."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `ruggedness`.

    Returns:
        Statements, by run and checkpoint.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        for table in run.tables:
            found += _checkpoint(run, table)
    return found


def _checkpoint(run: RunTables, table: Table) -> list[Statement]:
    scores = {str(name): row for row, name in enumerate(table["score"].tolist())}
    at = reading.place(MEASURE, run, table)

    def estimate(name: str) -> Estimate:
        row = scores[name]
        value, low, high = (float(table[column][row]) for column in ("value", "value_low", "value_high"))
        return Estimate(value, low, high, str(table["over"][row]), str(table["unit"][row]))

    texts = {name: text for name, text in _texts(table, estimate).items() if math.isfinite(estimate(name).value)}
    return [described(text, estimate(name), **at) for name, text in texts.items()]


def _texts(table: Table, estimate: Any) -> dict[str, str]:
    value = {str(name): estimate(str(name)).value for name in table["score"].tolist()}
    wells = value["excess_variation"]
    reach = number(2 * float(table.attributes["reach"]))
    single = "as in a single well" if wells < 1.01 else f"{number(wells)} times that of a single well"
    ranked = dict(zip(table["score"].tolist(), table["ranked"].tolist(), strict=True))["noise_scale_decayed"]
    noise = f"The gradient noise scale, with weight decay, is {number(value['noise_scale_decayed'])} examples"
    if not ranked:
        noise += ", but the gradient is no longer than its own error"
    return {
        "negative_mass": f"Negative eigenvalues make up {percent(value['negative_mass'])} of the sum of all |λ|",
        "excess_variation": f"On random lines of {reach} filter lengths the loss rises and falls {single}",
        "flat_width": f"A random line stays within 0.1 of its centre for {number(value['flat_width'])} filter lengths",
        "noise_scale_decayed": noise,
        "limit_ratio": "Full-batch gradient descent becomes unstable along the top eigenvector at "
        f"{number(value['limit_ratio'])} times 2/(λ₁ + δ)",
    }
