"""Findings from single-example gradients in the eigenbasis: where they point, their noise, how few examples matter."""

import math
from collections.abc import Sequence

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import median_estimate, power_law
from quadscape.findings.known import known_rows
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.measures.ranks import even_bands
from quadscape.tables import Table

MEASURE = "gradients"

PRIMARY = "noise-power-law"
"""The finding declared beforehand; all others are exploratory."""

BANDS = 30
"""Bands, even in log λ, of the means that show how the noise grows with λ."""

LEAST_BANDS = 6
"""Bands with directions below which no exponent is given."""

DECADE = 10.0
"""Least ratio between the largest and the smallest λ of an exponent."""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `gradients`.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        for table in run.tables:
            found += _checkpoint(run, table)
        if run.last is not None:
            found += [*_noise(run, run.last), *_examples(run, run.last), _subspace(run)]
        found += _noise_scale(run)
    return found


def _checkpoint(run: RunTables, table: Table) -> list[Statement]:
    """The direction in which single examples' gradients point most."""
    first = table.where((table["sign"] > 0) & (table["rank"] == 1))
    if not len(first) or not math.isfinite(float(first["mean"][0])):
        return []
    value, chance = float(first["mean"][0]), reading.attribute(table, "chance_mean")
    estimate = Estimate(value, float(first["mean_low"][0]), float(first["mean_high"][0]), _BOOTSTRAP)
    text = f"Single examples' gradients have a mean |cos| of {number(value)} with the first eigenvector, where chance "
    text += f"has {number(chance)}; one example has {percent(float(first['top_share'][0]))} of their square there"
    return [described(text, estimate, **reading.place(MEASURE, run, table))]


_BOOTSTRAP = "95 %, bootstrap over examples of the population"


def band_means(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Means of eigenvalue and noise over bands of the eigenvalue.

    Args:
        table: `gradients` with the attributes zero_threshold and weight_decay.

    Returns:
        Mean λ and mean qᵀCq of the bands that have directions; λ above numerical zero and weight decay only.
    """
    cut = np.nanmax([reading.attribute(table, name) for name in ("zero_threshold", "weight_decay")] + [0.0])
    keep = (table["eigenvalue"] > cut) & np.isfinite(table["variance"])
    values, noise = table["eigenvalue"][keep], table["variance"][keep]
    if not len(values) or values.max() == values.min():
        return values[:1], noise[:1]
    band = even_bands(values, BANDS)
    counts = np.bincount(band, minlength=BANDS)
    used = counts > 0
    sums = (np.bincount(band, weights=weights, minlength=BANDS) for weights in (values, noise))
    means = [total[used] / counts[used] for total in sums]
    return means[0], means[1]


def _noise(run: RunTables, table: Table) -> list[Statement]:
    # On this training set, whose noise SGD has. It is not the population's exponent: basis and noise are of the same
    # examples, which couples them.
    rows = (PRIMARY, "original-noise-exponent")
    values, noise = band_means(table)
    if len(values) < LEAST_BANDS or values.max() < DECADE * values.min():
        reason = (
            f"{len(values)} bands of positive eigenvalues above numerical zero and weight decay; {LEAST_BANDS} over a "
        )
        return [untestable(row, f"{reason}decade would do", **reading.place(MEASURE, run, table)) for row in rows]
    estimate = power_law(values, noise, f"the {len(values)} bands' range of λ")
    text = f"The noise of single gradients along an eigenvector grows as λ to the power {number(estimate.value)}"
    return [compared(row, text, estimate, run.setting, **reading.place(MEASURE, run, table)) for row in rows]


def _examples(run: RunTables, table: Table) -> list[Statement]:
    classes, row = reading.classes_of(run.setting), "few-examples-rule"
    if not classes:
        return [
            untestable(row, "the tables do not say how many classes there are", **reading.place(MEASURE, run, table))
        ]
    top = table.where((table["sign"] > 0) & (table["rank"] <= classes) & np.isfinite(table["participation"]))
    if len(top) < 6:
        reason = f"{len(top)} directions with gradients among the first {classes}; 6 would do"
        return [untestable(row, reason, **reading.place(MEASURE, run, table))]
    estimate = median_estimate(top["participation"], "directions")
    text = f"Along the first {classes} eigenvectors effectively {percent(estimate.value)} of the examples take part, "
    text += "in the median (Gaussian gradients: 33.3 %)"
    return [compared(row, text, estimate, run.setting, **reading.place(MEASURE, run, table))]


def _squares(table: Table, first: int | None = None) -> float:
    """Squared norm of the training gradient, in the first eigenvectors or in all."""
    keep = np.isfinite(table["gradient"])
    if first is not None:
        keep &= table["index"] < first
    return float(np.square(table["gradient"][keep]).sum())


def _subspace(run: RunTables) -> Statement:
    classes, row = reading.classes_of(run.setting), "top-subspace-gradient"
    tables: Sequence[Table] = [table for table in run.after_start if _squares(table) > 0]
    if not classes or not tables:
        reason = "the tables do not say how many classes there are" if tables else "the gradients are 0"
        return untestable(row, reason, measure=MEASURE, run=run.run)
    shares = [_squares(table, classes) / _squares(table) for table in tables]
    least = min(shares)
    text = f"The first {classes} eigenvectors hold {percent(least)} or more of the training gradient's square"
    text += f" (chance {percent(classes / len(tables[0]))})"
    iterations = [reading.iteration_of(table) for table in tables]
    return compared(row, text, Estimate.exact(least), run.setting, measure=MEASURE, run=run.run, iterations=iterations)


def _noise_scale(run: RunTables) -> list[Statement]:
    """Noise scale tr C/|g|² at the last checkpoint over the first (McCandlish et al., arXiv 1812.06162)."""
    row = "noise-scale-grows"
    scales = [
        (reading.iteration_of(table), float(np.nansum(table["variance"])) / _squares(table))
        for table in run.tables
        if _squares(table) > 0
    ]
    if len(scales) < 2 or not scales[0][1] > 0:
        reason = f"{len(scales)} checkpoints with a gradient; {known_rows()[row].would_do} would do"
        return [untestable(row, reason, measure=MEASURE, run=run.run)]
    (first, before), (last, after) = scales[0], scales[-1]
    text = f"The noise scale tr C/|g|² goes from {number(before)} to {number(after)} examples"
    estimate = Estimate.exact(after / before)
    return [compared(row, text, estimate, run.setting, measure=MEASURE, run=run.run, iterations=(first, last))]
