"""Findings from line searches along eigenvectors: forms, curvatures, best steps.

Training and validation lines only.
"""

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import finite, median_estimate, rank_correlation
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "line_search"

PRIMARY = "best-step-positive"
"""The finding declared beforehand; all others are exploratory."""

LEAST_LINES = 6
"""Lines below which a median has no interval, and nothing is tested."""

LEAST_PAIRS = 30
"""Lines below which no correlation is tested."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `line_fit`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, "line_fit"):
        for fits in run.tables:
            found += [*_forms(run, fits), *_checks(run, fits)]
        if run.last is not None:
            found += [_best_positive(run, run.last), _best_negative(run, run.last)]
    return found


def _forms(run: RunTables, fits: Table) -> list[Statement]:
    resolved = fits.where(fits["form"] != "unresolved")
    if not len(resolved):
        return []
    names, counts = np.unique(resolved["form"], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    words = ", ".join(f"{names[i]} {counts[i]:,}" for i in order)
    text = f"The simplest form within 1 % along {len(resolved):,} eigenvectors: {words}"
    share = float(np.mean(resolved["form"] == "quadratic"))
    estimate = Estimate(share, share, share, "share of quadratic lines, of those searched")
    return [described(text, estimate, **reading.place(MEASURE, run, fits))]


def _checks(run: RunTables, fits: Table) -> list[Statement]:
    """Curvatures from losses alone beside eigenvalues, and validation beside training."""
    found = []
    own = fits.where(~fits["is_zero"])
    ratios = finite(own["curvature_ratio"])
    if len(ratios):
        estimate = median_estimate(ratios, "eigenvectors")
        text = f"Curvatures read from losses alone are {number(estimate.value)} times the eigenvalues, in the median"
        found.append(described(text, estimate, **reading.place(MEASURE, run, fits)))
    above = reading.of_sign(fits, 1)
    ratios = finite(above["validation_curvature"] / above["eigenvalue"])
    if len(ratios):
        estimate = median_estimate(ratios, "eigenvectors")
        text = "Along eigenvectors of positive eigenvalue the validation loss is "
        text += f"{number(estimate.value)} times as curved as the training loss, in the median"
        found.append(described(text, estimate, **reading.place(MEASURE, run, fits)))
    return found


def _best_positive(run: RunTables, fits: Table) -> Statement:
    """λ times the best step: the minimum of the line over that of its quadratic."""
    own = reading.of_sign(fits, 1)
    ratios = finite(own["minimum"] / own["newton"])
    if len(ratios) < LEAST_LINES:
        reason = f"{len(ratios)} lines of positive curvature have a minimum inside; {LEAST_LINES} would do"
        return untestable("best-step-positive", reason, **reading.place(MEASURE, run, fits))
    estimate = median_estimate(ratios, "lines")
    text = f"For λ > 0 the best step along an eigenvector is {number(estimate.value)} times 1/λ, in the median of the "
    text += f"{len(ratios):,} of {len(own):,} lines that have a minimum inside"
    return compared("best-step-positive", text, estimate, run.setting, **reading.place(MEASURE, run, fits))


def _best_negative(run: RunTables, fits: Table) -> Statement:
    own = reading.of_sign(fits, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        step = -own["minimum"] / own["gradient"]
    usable = np.isfinite(step)
    count = int(np.count_nonzero(usable))
    if count < LEAST_PAIRS:
        reason = f"{count} lines of negative curvature have a minimum inside; {LEAST_PAIRS} would do"
        return untestable("best-step-negative", reason, **reading.place(MEASURE, run, fits))
    estimate = rank_correlation(step[usable], 1 / np.abs(own["eigenvalue"][usable]), "lines")
    text = f"For λ < 0 the best step has rank correlation {number(estimate.value)} with 1/|λ|"
    return compared("best-step-negative", text, estimate, run.setting, **reading.place(MEASURE, run, fits))
