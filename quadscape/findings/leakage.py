"""Findings on what is seen of a window along the eigenvectors of another checkpoint."""

from dataclasses import replace

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import median_estimate
from quadscape.findings.numbers import percent
from quadscape.findings.reading import Tables
from quadscape.findings.statement import Statement, described
from quadscape.measures.leakage.declaration import WINDOWS

MEASURE = "leakage"

PRIMARY = ""
"""No published result is tested. The primary finding is the leakage of the first pair."""

HIGHEST = 10
"""Eigenvectors of largest eigenvalue that are told apart from the others."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all pairs of checkpoints.

    Args:
        tables: `leakage`.

    Returns:
        Statements, by run and pair.
    """
    found = []
    for run in reading.runs_of(tables, MEASURE):
        for table in run.tables:
            pair = [int(table.attributes[f"iteration_{end}"]) for end in "ab"]
            moving = np.isfinite(table["share"]) & (table["eigenvalue"] > float(table.attributes["zero_threshold"]))
            for window, (seen_in, basis_of) in zip(WINDOWS, (pair, pair[::-1]), strict=True):
                rows = table.where((table["window"] == window) & moving)
                if not len(rows):
                    continue
                share = median_estimate(rows["share"], "eigenvectors of positive eigenvalue")
                text = (
                    f"Of what is seen along the eigenvectors of iteration {basis_of:,} in the window that ends at "
                    f"iteration {seen_in:,}, {percent(share.value)} in the median would be the fluctuation of "
                    "directions of other rank"
                )
                top = rows.where(rows["rank"] <= HIGHEST)
                if len(rows) > len(top) > 0:
                    text += f", {percent(float(np.median(top['share'])))} along the {len(top):,} highest"
                elsewhere = percent(float(np.median(rows["unmatched"])))
                text += f"; {elsewhere} is not that of the one direction that is most alike"
                found.append(described(text, share, measure=MEASURE, run=run.run, iterations=pair))
    return [replace(one, primary=place == 0) for place, one in enumerate(found)]
