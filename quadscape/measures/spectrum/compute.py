"""The spectrum of the Hessian: eigenvalues by rank, counts and masses at several cuts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quadscape.measures.interfaces import merged
from quadscape.measures.job import Job
from quadscape.measures.ranks import direction_rows, log_indices
from quadscape.measures.spectrum.declaration import SCHEMA
from quadscape.tables import Table

ROWS_PER_SIGN = 1000
"""Rows kept of each sign; longer spectra are thinned to log-spaced ranks, the attributes stay exact."""

RELATIVE_CUTS = (1e-2, 1e-4, 1e-6)
"""Cuts in units of the largest |λ|, beside ε_λ and 0."""


def count_at(eigenvalues: np.ndarray, cut: float) -> dict[str, float]:
    """Numbers and masses of the eigenvalues beyond a cut.

    Args:
        eigenvalues: Shape (P,).
        cut: Magnitude up to which an eigenvalue counts as zero.

    Returns:
        The cut, the counts `positive`, `negative` and `zero`, the sums of |λ| `positive_mass` and `negative_mass`, and
        `negative_share`, the negative mass over both.
    """
    above, below = eigenvalues[eigenvalues > cut], eigenvalues[eigenvalues < -cut]
    gained, lost = float(above.sum()), float(-below.sum())
    return {
        "cut": float(cut),
        "positive": len(above),
        "negative": len(below),
        "zero": len(eigenvalues) - len(above) - len(below),
        "positive_mass": gained,
        "negative_mass": lost,
        "negative_share": lost / (gained + lost) if gained + lost > 0 else 0.0,
    }


def summarise(eigenvalues: np.ndarray, zero_threshold: float) -> dict[str, Any]:
    """Exact sums over a whole spectrum.

    Args:
        eigenvalues: Shape (P,).
        zero_threshold: Numerical zero ε_λ.

    Returns:
        trace, frobenius_squared, largest, smallest, effective_rank (exponential of the entropy of |λ| / Σ|λ|),
        participation_rank ((Σ|λ|)² / Σλ²) and cuts, a list with one `count_at` per cut.
    """
    eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
    magnitudes = np.abs(eigenvalues)
    mass, squares, scale = float(magnitudes.sum()), float(np.square(eigenvalues).sum()), float(magnitudes.max())
    shares = magnitudes[magnitudes > 0] / mass if mass > 0 else np.empty(0)
    cuts = [0.0, float(zero_threshold), *(relative * scale for relative in RELATIVE_CUTS)]
    return {
        "trace": float(eigenvalues.sum()),
        "frobenius_squared": squares,
        "largest": float(eigenvalues.max()),
        "smallest": float(eigenvalues.min()),
        "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0,
        "participation_rank": mass**2 / squares if squares > 0 else 0.0,
        "cuts": [count_at(eigenvalues, cut) for cut in cuts],
    }


def compute(job: Job) -> dict[str, Table]:
    """The spectrum of one checkpoint.

    Args:
        job: Reads the eigenvalues, and what is known of the directions along which the network does not change.

    Returns:
        The table of `measure`.
    """
    basis = job.basis
    head = merged(job.basis_head, invariances=basis.invariances)
    return {"spectrum": measure(basis.eigenvalues, basis.zero_threshold, basis.generator_overlaps, head)}


def measure(
    eigenvalues: np.ndarray, zero_threshold: float, generator_overlaps: np.ndarray, attributes: Mapping[str, Any]
) -> Table:
    """The spectrum of one checkpoint.

    Args:
        eigenvalues: In descending order, float64, shape (P,).
        zero_threshold: Numerical zero ε_λ.
        generator_overlaps: `Eigenbasis.generator_overlaps`, shape (P, 2).
        attributes: Head of the table; see `checkpoint_attributes`.

    Returns:
        A table under `SCHEMA`; its attributes hold the sums of `summarise`.
    """
    eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
    rows = log_indices(eigenvalues, ROWS_PER_SIGN)
    columns = {
        **direction_rows(eigenvalues, rows),
        "is_zero": np.abs(eigenvalues[rows]) <= zero_threshold,
        "scale_overlap": generator_overlaps[rows, 0],
        "shift_overlap": generator_overlaps[rows, 1],
    }
    return Table(SCHEMA, columns, merged(attributes, **summarise(eigenvalues, zero_threshold)))
