"""Findings from line searches along eigenvectors: forms, quadratic radius, growth beyond it, best steps.

Training and validation lines only.
"""

import math

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import finite, growth_exponent, median_estimate, rank_correlation
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.tables import Table

MEASURE = "line_search"

PRIMARY = "growth-sub-quadratic"
"""The finding declared beforehand; all others are exploratory."""

LEAST_LINES = 6
"""Lines below which a median has no interval, and nothing is tested."""

LEAST_PAIRS = 30
"""Lines below which no correlation is tested."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `line_search` and `line_fit`.

    Returns:
        Statements, by run.
    """
    points = {
        (run.run, reading.iteration_of(table)): table
        for run in reading.runs_of(tables, MEASURE)
        for table in run.tables
    }
    found: list[Statement] = []
    for run in reading.runs_of(tables, "line_fit"):
        for fits in run.tables:
            found += [*_forms(run, fits), *_radius(run, fits), *_checks(run, fits)]
        if run.last is not None:
            lines = points.get((run.run, reading.iteration_of(run.last)))
            found += [_growth(run, run.last, lines), _best_positive(run, run.last), _best_negative(run, run.last)]
    return found


def _of_sign(fits: Table, sign: int) -> Table:
    """Lines along eigenvalues of one sign, beyond numerical zero."""
    return fits.where((fits["sign"] == sign) & ~fits["is_zero"] & (fits["eigenvalue"] * sign > 0))


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


def _radius(run: RunTables, fits: Table) -> list[Statement]:
    """Radius on the side where the quadratic ends first, in units of the displacement that raises the loss by 1."""
    found = []
    for sign, word in ((1, "positive"), (-1, "negative")):
        own = _of_sign(fits, sign)
        status = np.stack([own[f"radius_{side}_status"] for side in ("positive", "negative")])
        radius = np.stack([own[f"radius_{side}"] for side in ("positive", "negative")])
        known = np.isfinite(radius) & np.isin(status, ("measured", "censored"))
        either = known.all(axis=0) & (status == "measured").any(axis=0)
        if not either.any():
            continue
        # The smaller one is measured unless a censored side ended even before it.
        shortest = np.min(np.where(status == "measured", radius, math.inf), axis=0)[either]
        rise = 0.5 * np.abs(own["eigenvalue"][either]) * shortest**2
        estimate = median_estimate(rise, "eigenvectors", "loss")
        text = f"Along eigenvectors of {word} eigenvalue the quadratic holds up to ½|λ|t² of {number(estimate.value)}, "
        text += f"in the median of {int(either.sum()):,} of {len(own):,} lines (the others do not show its end)"
        found.append(described(text, estimate, **reading.place(MEASURE, run, fits)))
    return found


def _checks(run: RunTables, fits: Table) -> list[Statement]:
    """Curvatures from losses alone beside eigenvalues, and validation beside training."""
    found = []
    own = fits.where(~fits["is_zero"])
    ratios = finite(own["curvature_ratio"])
    if len(ratios):
        estimate = median_estimate(ratios, "eigenvectors")
        text = f"Curvatures read from losses alone are {number(estimate.value)} times the eigenvalues, in the median"
        found.append(described(text, estimate, **reading.place(MEASURE, run, fits)))
    above = _of_sign(fits, 1)
    ratios = finite(above["validation_curvature"] / above["eigenvalue"])
    if len(ratios):
        estimate = median_estimate(ratios, "eigenvectors")
        text = "Along eigenvectors of positive eigenvalue the validation loss is "
        text += f"{number(estimate.value)} times as curved as the training loss, in the median"
        found.append(described(text, estimate, **reading.place(MEASURE, run, fits)))
    return found


def growth_exponents(fits: Table, lines: Table) -> np.ndarray:
    """Exponent p of ΔL ∝ |t|ᵖ beyond the quadratic radius, for each line of positive curvature.

    The even part ½(ΔL(t) + ΔL(−t)) is taken, which no slope enters, from the larger of the two radii to where
    forms are compared (`form_reach`): beyond, the loss is larger than the rise that the line was made for.

    Args:
        fits: `line_fit`.
        lines: `line_search` of the same checkpoint.

    Returns:
        Exponents; NaN where the line ends before its radius, or has fewer than 3 points beyond it.
    """
    own, found = _of_sign(fits, 1), []
    training = lines.where(lines["split"] == "train")
    for row in range(len(own)):
        line = training.where(training["index"] == own["index"][row])
        line = line.where(np.argsort(line["t"]))
        half = len(line) // 2
        ends = [own[f"radius_{side}"][row] for side in ("positive", "negative")]
        measured = all(own[f"radius_{side}_status"][row] == "measured" for side in ("positive", "negative"))
        if not measured or half < 1:
            found.append(math.nan)
            continue
        t = line["t"][half + 1 :]
        even = 0.5 * (line["difference"][half + 1 :] + line["difference"][:half][::-1])
        beyond = (t >= max(ends)) & (t <= own["form_reach"][row])
        found.append(growth_exponent(t[beyond], even[beyond]))
    return np.array(found)


def _growth(run: RunTables, fits: Table, lines: Table | None) -> Statement:
    place = reading.place(MEASURE, run, fits)
    if lines is None:
        return untestable(PRIMARY, "the table line_search of this checkpoint is missing; it would do", **place)
    exponents = finite(growth_exponents(fits, lines))
    if len(exponents) < LEAST_LINES:
        reason = (
            f"{len(exponents)} lines of positive curvature reach beyond their quadratic radius; {LEAST_LINES} would do"
        )
        return untestable(PRIMARY, reason, **place)
    estimate = median_estimate(exponents, "lines")
    text = f"Beyond the quadratic radius the loss grows as |t| to the power {number(estimate.value)}, in the median"
    return compared(PRIMARY, text, estimate, run.setting, **place)


def _best_positive(run: RunTables, fits: Table) -> Statement:
    """λ times the best step: the minimum of the line over that of its quadratic."""
    own = _of_sign(fits, 1)
    ratios = finite(own["minimum"] / own["newton"])
    if len(ratios) < LEAST_LINES:
        reason = f"{len(ratios)} lines of positive curvature have a minimum inside; {LEAST_LINES} would do"
        return untestable("best-step-positive", reason, **reading.place(MEASURE, run, fits))
    estimate = median_estimate(ratios, "lines")
    text = f"For λ > 0 the best step along an eigenvector is {number(estimate.value)} times 1/λ, in the median of the "
    text += f"{len(ratios):,} of {len(own):,} lines that have a minimum inside"
    return compared("best-step-positive", text, estimate, run.setting, **reading.place(MEASURE, run, fits))


def _best_negative(run: RunTables, fits: Table) -> Statement:
    own = _of_sign(fits, -1)
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
