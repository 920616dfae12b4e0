"""Whose curvature? All single-example gradients in the eigenbasis (SCIENCE S9).

With aₙᵢ = gₙᵀqᵢ, per direction: the distribution of |cos| = |aₙᵢ|/|gₙ| over examples, the share of the squared norm
Σₙaₙᵢ²/Σₙ|gₙ|², and the participation ratio (Σₙaₙᵢ²)²/(N Σₙaₙᵢ⁴), which is 1/3 for Gaussian a, 1/N if one example does
it all.

Everything is streamed in batches of examples times tiles of the basis. Means are sums; quantiles come from a
histogram of log|cos| with bins of 1/64 decade, interpolated, so that bands of directions are pooled exactly and no
array of N·P is held.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from quadscape.probes.interfaces import BasisLike, ObjectiveLike, merged
from quadscape.probes.ranks import rank_bands, signed_ranks
from quadscape.tables import Column, Table, TableSchema

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
"""Quantiles of |cos| over examples, by column."""

DECADES = 10
"""|cos| below 10 to the minus this counts as 0 in quantiles."""

BINS_PER_DECADE = 64
"""Bins of the histogram of log|cos|."""

REPLICATES = 200
"""Poisson bootstrap replicates over examples."""

GAUSSIAN_PARTICIPATION = 1 / 3
"""Participation ratio of Gaussian coefficients: (E a²)²/E a⁴."""

_BOOTSTRAP = "95 %, Poisson bootstrap over examples"

DIRECTIONS = TableSchema(
    "gradients",
    "All single-example gradients of the training loss along one eigenvector.",
    (
        Column("index", "1", "Index of the eigenvector, in descending order of eigenvalue, from 0.", "int"),
        Column("sign", "1", "Sign of its eigenvalue.", "int"),
        Column("rank", "1", "Its rank by magnitude within its sign, from 1.", "int"),
        Column("eigenvalue", "loss / parameter²", "Its eigenvalue."),
        Column("mean", "1", "Mean of |cos| over examples.", interval=_BOOTSTRAP),
        *(Column(name, "1", f"{q:.0%} quantile of |cos| over examples.") for name, q in QUANTILES.items()),
        Column("share", "1", "Share of the examples' squared gradient norm.", interval=_BOOTSTRAP),
        Column("participation", "1", "Participation ratio of the examples.", interval=_BOOTSTRAP),
        Column("gradient", "loss / parameter", "Mean of gₙᵀq: the full gradient along q."),
        Column("variance", "loss² / parameter²", "Variance of gₙᵀq over examples, qᵀCq (divided by N)."),
        Column("top_example", "1", "Training example with the largest (gₙᵀq)².", "int"),
        Column("top_share", "1", "Its share of Σₙ(gₙᵀq)²."),
    ),
)

BANDS = TableSchema(
    "gradient_bands",
    "All single-example gradients along the eigenvectors of one band of log rank.",
    (
        Column("sign", "1", "Sign of the band's eigenvalues.", "int"),
        Column("first_rank", "1", "Smallest rank within the sign.", "int"),
        Column("last_rank", "1", "Largest rank within the sign.", "int"),
        Column("count", "1", "Eigenvectors in the band.", "int"),
        Column("eigenvalue", "loss / parameter²", "Median eigenvalue of the band."),
        *(
            Column(name, "1", f"{q:.0%} quantile of |cos| over examples and directions.")
            for name, q in QUANTILES.items()
        ),
        Column("share", "1", "Share of the examples' squared gradient norm in the whole band.", interval=_BOOTSTRAP),
        Column("participation", "1", "Median participation ratio of the band's directions."),
        Column("participation_lower", "1", "25 % quantile of the same over directions."),
        Column("participation_upper", "1", "75 % quantile of the same over directions."),
    ),
)


def measure(
    objective: ObjectiveLike,
    basis: BasisLike,
    theta: np.ndarray,
    attributes: Mapping[str, Any],
    *,
    bands: int = 60,
    memory: int | None = None,
    seed: int = 0,
    device: Any = "cpu",
) -> dict[str, Table]:
    """Single-example gradients against the eigenbasis.

    Args:
        objective: The training loss.
        basis: Eigenbasis of its Hessian at θ.
        theta: θ, float64, shape (P,).
        attributes: Head of the tables; see `checkpoint_attributes`.
        bands: Bands of log rank, at least 2.
        memory: Bytes that tiles may take; see `quadscape.curvature.projections.project`.
        seed: Seed of the bootstrap.
        device: Device of the products.

    Returns:
        Tables `gradients` and `gradient_bands`. Attributes: the chance levels of |cos| for an isotropic gradient
        (chance_mean √(2/πP), chance_q05 … chance_q95), gaussian_participation, and zero_gradients, the number of
        examples without a direction, which are left out of |cos|.
    """
    import torch  # here, so that figures read the schemas above without loading it

    from quadscape.curvature.projections import project

    size, count = len(basis.eigenvalues), objective.count
    # Weights belong to examples, so that no estimate depends on how these are cut into batches.
    weights = np.random.default_rng(seed).poisson(1.0, (count, REPLICATES)).astype(np.float64)
    bins = DECADES * BINS_PER_DECADE + 1
    histogram = np.zeros((size, bins), dtype=np.int32)
    sums = {name: np.zeros(size) for name in ("cosine", "linear", "square", "fourth")}
    resampled = {name: np.zeros((size, REPLICATES)) for name in ("cosine", "square", "fourth")}
    top, top_example = np.full(size, -1.0), np.zeros(size, dtype=np.int64)
    norms = np.zeros(count)

    def read(examples: slice) -> Any:
        gradients = torch.as_tensor(objective.example_gradients(theta, examples)).to(device)
        norms[examples] = torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64).cpu().numpy()
        return gradients

    for tile in project(read, count, basis, memory=memory, device=device):
        examples, directions = tile.rows, tile.columns
        length = torch.as_tensor(norms[examples]).to(device)
        nonzero = length > 0
        inverse = torch.where(nonzero, 1 / length, torch.zeros_like(length))
        weight = torch.as_tensor(weights[examples]).to(device)
        along = tile.values.double()
        cosine, square = along.abs() * inverse[:, None], along.square()
        terms = {"cosine": cosine, "linear": along, "square": square, "fourth": square.square()}
        for name, values in terms.items():
            sums[name][directions] += values.sum(dim=0).cpu().numpy()
            if name in resampled:
                resampled[name][directions] += (values.T @ weight).cpu().numpy()
        place = torch.floor((torch.log10(cosine[nonzero]) + DECADES) * BINS_PER_DECADE).clamp(-1, bins - 2).long() + 1
        place += bins * torch.arange(place.shape[1], device=place.device)
        counted = torch.bincount(place.reshape(-1), minlength=bins * place.shape[1])
        histogram[directions] += counted.reshape(-1, bins).cpu().numpy()
        best, where = (values.cpu().numpy() for values in square.max(dim=0))
        better = best > top[directions]
        top[directions] = np.where(better, best, top[directions])
        top_example[directions] = np.where(better, where + examples.start, top_example[directions])
    directed = norms > 0
    total, totals = float(np.square(norms).sum()), np.square(norms) @ weights
    chance = math.sqrt(1 / size)
    head = merged(
        attributes,
        chance_mean=math.sqrt(2 / math.pi) * chance,
        **{f"chance_{name}": _normal_quantile(q) * chance for name, q in QUANTILES.items()},
        gaussian_participation=GAUSSIAN_PARTICIPATION,
        zero_gradients=int(count - directed.sum()),
    )
    signs, ranks = signed_ranks(basis.eigenvalues)
    squares, fourths = sums["square"], sums["fourth"]
    linear = sums["linear"] / count
    columns = {
        "index": np.arange(size),
        "sign": signs,
        "rank": ranks,
        "eigenvalue": np.asarray(basis.eigenvalues),
        "mean": _ratio(sums["cosine"], directed.sum()),
        **_interval("mean", _ratio(resampled["cosine"], directed @ weights)),
        **histogram_quantiles(histogram),
        "share": _ratio(squares, total),
        **_interval("share", _ratio(resampled["square"], totals)),
        "participation": _ratio(np.square(squares), count * fourths),
        **_interval("participation", _ratio(np.square(resampled["square"]), weights.sum(axis=0) * resampled["fourth"])),
        "gradient": linear,
        "variance": np.maximum(squares / count - np.square(linear), 0.0),
        "top_example": top_example,
        "top_share": _ratio(top, squares),
    }
    table = Table(DIRECTIONS, columns, head)
    parts = rank_bands(basis.eigenvalues, bands)
    return {
        "gradients": table,
        "gradient_bands": _banded(table, parts, histogram, _ratio(resampled["square"], totals), head),
    }


def _banded(directions: Table, parts: Any, histogram: np.ndarray, shares: np.ndarray, head: dict[str, Any]) -> Table:
    slices = [slice(start, stop) for start, stop in zip(parts.starts, parts.stops, strict=True)]
    quartiles = np.array([np.quantile(directions["participation"][part], [0.25, 0.5, 0.75]) for part in slices])
    columns = {
        "sign": parts.signs,
        "first_rank": parts.first_ranks,
        "last_rank": parts.last_ranks,
        "count": parts.stops - parts.starts,
        "eigenvalue": np.array([np.median(directions["eigenvalue"][part]) for part in slices]),
        **histogram_quantiles(np.add.reduceat(histogram, parts.starts, axis=0, dtype=np.int64)),
        "share": np.add.reduceat(directions["share"], parts.starts),
        **_interval("share", np.add.reduceat(shares, parts.starts, axis=0)),
        "participation": quartiles[:, 1],
        "participation_lower": quartiles[:, 0],
        "participation_upper": quartiles[:, 2],
    }
    return Table(BANDS, columns, head)


def histogram_quantiles(histogram: np.ndarray) -> dict[str, np.ndarray]:
    """Quantiles of |cos| from counts per bin of its logarithm.

    Args:
        histogram: Counts, int64, shape (rows, bins); bin 0 is everything below 10^−DECADES, counted as 0.

    Returns:
        For each of `QUANTILES` the quantile per row, linear in the logarithm within a bin; NaN for an empty row.
    """
    cumulative = histogram.cumsum(axis=1, dtype=np.int64)
    rows = np.arange(len(histogram))
    found = {}
    for name, q in QUANTILES.items():
        target = q * cumulative[:, -1]
        place = np.argmax(cumulative >= target[:, None], axis=1)
        # A target of 0 counts lands on bin 0 even when that bin is empty; the first occupied bin is meant.
        place = np.maximum(place, np.argmax(cumulative > 0, axis=1))
        inside = histogram[rows, place]
        before = cumulative[rows, place] - inside
        fraction = np.clip((target - before) / np.maximum(inside, 1), 0, 1)
        value = 10.0 ** ((place - 1 + fraction) / BINS_PER_DECADE - DECADES)
        value = np.where(place == 0, 0.0, value)
        found[name] = np.where(cumulative[:, -1] > 0, value, np.nan)
    return found


def _interval(name: str, replicates: np.ndarray) -> dict[str, np.ndarray]:
    low, high = np.quantile(replicates, [0.025, 0.975], axis=1)
    return {f"{name}_low": low, f"{name}_high": high}


def _ratio(numerator: np.ndarray, denominator: np.ndarray | float) -> np.ndarray:
    """A quotient that is NaN where the denominator is 0 (no example has a component there)."""
    full = np.broadcast_to(denominator, np.shape(numerator))
    return np.divide(numerator, full, out=np.full(np.shape(numerator), np.nan), where=full > 0)


def _normal_quantile(q: float) -> float:
    """Quantile of |z| for standard normal z: the |cos| of an isotropic vector with an axis is |z|/√P, for large P."""
    return NormalDist().inv_cdf((1 + q) / 2)
