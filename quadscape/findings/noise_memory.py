"""Findings on the autocorrelation of gradient noise along training."""

from dataclasses import replace

import numpy as np

from quadscape.findings import reading
from quadscape.findings.numbers import number
from quadscape.findings.reading import Tables
from quadscape.findings.statement import Estimate, Statement, described

MEASURE = "noise_memory"

PRIMARY = ""
"""No published result is tested. The primary finding is the correlation of neighbouring steps on the last plateau."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `noise_memory`.

    Returns:
        Statements, by run; the first is the primary finding.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        table = run.tables[0]
        last = table.where(table["plateau"] == table["plateau"].max())
        row = {name: values[np.argmin(last["lag"])] for name, values in last.columns.items()}
        apart = (table["correlation_low"] > table["predicted"]) | (table["correlation_high"] < table["predicted"])
        outside = int(np.count_nonzero(apart))
        text = f"The noise of steps {int(row['lag']):,} iterations apart is correlated by "
        text += f"{number(float(row['correlation']))} on the last plateau, where the examples that batches share give "
        text += (
            f"{number(float(row['predicted']))}; of {len(table):,} lags and plateaus {outside:,} differ from that by "
        )
        text += "more than their interval"
        estimate = Estimate(
            float(row["correlation"]),
            float(row["correlation_low"]),
            float(row["correlation_high"]),
            "95 %, normal, pairs of steps as if independent",
        )
        found.append(described(text, estimate, measure=MEASURE, run=run.run, iterations=(int(row["last"]),)))
    return [replace(one, primary=place == 0) for place, one in enumerate(found)]
