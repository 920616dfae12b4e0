"""Findings on the covariance of gradients against the Hessian: whether they share their eigenvectors."""

from dataclasses import replace

from quadscape.findings import reading
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import Tables
from quadscape.findings.statement import Estimate, Statement, described

MEASURE = "noise_curvature"

PRIMARY = ""
"""No published result is tested. The primary finding is the commutator at the end of training."""

_PROBES = "95 %, jackknife over random probes, on this training set"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `noise_curvature`.

    Returns:
        Statements, by run and checkpoint.
    """
    found: list[Statement] = []
    marked = False
    for run in reading.runs_of(tables, MEASURE):
        for table in run.tables:
            row = {name: float(values[0]) for name, values in table.columns.items()}
            place = reading.place(MEASURE, run, table)
            if not row["noise_norm"] > 0 or not row["curvature_norm"] > 0:
                continue
            interval = _PROBES if reading.attribute(table, "probes") else "exact"
            of = {
                name: Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], interval)
                for name in ("relative_commutator", "off_diagonal")
            }
            text = "The commutator of noise and curvature has a norm of "
            text += f"{number(row['relative_commutator'])}·√2‖CH‖ (0 if they share their eigenvectors; of a rotated "
            text += f"noise {number(row['relative_commutator_rotated'])})"
            primary = not marked and table is run.last
            marked |= primary
            found.append(replace(described(text, of["relative_commutator"], **place), primary=primary))
            text = f"Off its diagonal in the eigenbasis the noise has {percent(row['off_diagonal'])} of ‖C‖² (rotated: "
            text += f"{percent(row['off_diagonal_rotated'])})"
            found.append(described(text, of["off_diagonal"], **place))
    return found
