"""Whose curvature? All single-example gradients in the eigenbasis.

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
from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.measures.gradients.declaration import BANDS, DIRECTIONS, QUANTILES
from quadscape.measures.interfaces import BasisLike, ObjectiveLike, merged
from quadscape.measures.job import Job
from quadscape.measures.ranks import RankBands, direction_rows, rank_bands
from quadscape.tables import Table

if TYPE_CHECKING:
    import torch

DECADES = 10
"""|cos| below 10 to the minus this counts as 0 in quantiles."""

BINS_PER_DECADE = 64
"""Bins of the histogram of log|cos|."""

REPLICATES = 200
"""Poisson bootstrap replicates over examples."""

GAUSSIAN_PARTICIPATION = 1 / 3
"""Participation ratio of Gaussian coefficients: (E a²)²/E a⁴."""


def compute(job: Job) -> dict[str, Table]:
    """Single-example gradients of the training loss of one checkpoint.

    Args:
        job: Reads checkpoint, data and eigenbasis.

    Returns:
        The tables of `measure`.
    """
    return measure(job.objective("train"), job.basis, job.checkpoint.theta, job.basis_head, device=job.device)


class _Sums:
    """Sums over examples, for every direction, to which tiles are added."""

    def __init__(self, size: int, count: int, seed: int) -> None:
        # Weights belong to examples, so that no estimate depends on how these are cut into batches.
        self.weights = np.random.default_rng(seed).poisson(1.0, (count, REPLICATES)).astype(np.float64)
        self.histogram = np.zeros((size, DECADES * BINS_PER_DECADE + 1), dtype=np.int32)
        self.plain = {name: np.zeros(size) for name in ("cosine", "linear", "square", "fourth")}
        self.resampled = {name: np.zeros((size, REPLICATES)) for name in ("cosine", "square", "fourth")}
        self.top, self.top_example = np.full(size, -1.0), np.zeros(size, dtype=np.int64)
        self.norms = np.zeros(count)

    def add(self, examples: slice, directions: slice, values: "torch.Tensor") -> None:
        """Adds gₙᵀq of some examples and directions, whose norms are known already."""
        import torch

        length = torch.as_tensor(self.norms[examples]).to(values.device)
        nonzero = length > 0
        inverse = torch.where(nonzero, 1 / length, torch.zeros_like(length))
        weight = torch.as_tensor(self.weights[examples]).to(values.device)
        along = values.double()
        cosine, square = along.abs() * inverse[:, None], along.square()
        terms = {"cosine": cosine, "linear": along, "square": square, "fourth": square.square()}
        for name, term in terms.items():
            self.plain[name][directions] += term.sum(dim=0).cpu().numpy()
            if name in self.resampled:
                self.resampled[name][directions] += (term.T @ weight).cpu().numpy()
        bins = self.histogram.shape[1]
        place = torch.floor((torch.log10(cosine[nonzero]) + DECADES) * BINS_PER_DECADE).clamp(-1, bins - 2).long() + 1
        place += bins * torch.arange(place.shape[1], device=place.device)
        counted = torch.bincount(place.reshape(-1), minlength=bins * place.shape[1])
        self.histogram[directions] += counted.reshape(-1, bins).cpu().numpy()
        best, where = (found.cpu().numpy() for found in square.max(dim=0))
        better = best > self.top[directions]
        self.top[directions] = np.where(better, best, self.top[directions])
        self.top_example[directions] = np.where(better, where + examples.start, self.top_example[directions])

    def shares(self) -> np.ndarray:
        """Bootstrap replicates of each direction's share of the squared norm, shape (P, REPLICATES)."""
        return _ratio(self.resampled["square"], np.square(self.norms) @ self.weights)

    def columns(self, eigenvalues: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of `DIRECTIONS`."""
        count, directed = len(self.norms), self.norms > 0
        squares, fourths = self.plain["square"], self.plain["fourth"]
        linear = self.plain["linear"] / count
        participation = _ratio(np.square(self.resampled["square"]), self.weights.sum(axis=0) * self.resampled["fourth"])
        return {
            **direction_rows(eigenvalues),
            "mean": _ratio(self.plain["cosine"], directed.sum()),
            **_interval("mean", _ratio(self.resampled["cosine"], directed @ self.weights)),
            **histogram_quantiles(self.histogram),
            "share": _ratio(squares, float(np.square(self.norms).sum())),
            **_interval("share", self.shares()),
            "participation": _ratio(np.square(squares), count * fourths),
            **_interval("participation", participation),
            "gradient": linear,
            "variance": np.maximum(squares / count - np.square(linear), 0.0),
            "top_example": self.top_example,
            "top_share": _ratio(self.top, squares),
        }


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
        attributes: Head of the tables; see `quadscape.measures.job.Job.basis_head`.
        bands: Bands of log rank, at least 2.
        memory: Bytes that tiles may take; see `quadscape.curvature.projections.project`.
        seed: Seed of the bootstrap.
        device: Device of the products.

    Returns:
        Tables `gradients` and `gradient_bands`. Attributes: the chance levels of |cos| for an isotropic gradient
        (chance_mean √(2/πP), chance_q05 … chance_q95), gaussian_participation, and zero_gradients, the number of
        examples without a direction, which are left out of |cos|.
    """
    import torch

    from quadscape.curvature.projections import project

    size, count = len(basis.eigenvalues), objective.count
    sums = _Sums(size, count, seed)

    def read(examples: slice) -> Any:
        gradients = torch.as_tensor(objective.example_gradients(theta, examples)).to(device)
        sums.norms[examples] = torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64).cpu().numpy()
        return gradients

    for tile in project(read, count, basis, memory=memory, device=device):
        sums.add(tile.rows, tile.columns, tile.values)
    chance = math.sqrt(1 / size)
    head = merged(
        attributes,
        chance_mean=math.sqrt(2 / math.pi) * chance,
        **{f"chance_{name}": _normal_quantile(q) * chance for name, q in QUANTILES.items()},
        gaussian_participation=GAUSSIAN_PARTICIPATION,
        zero_gradients=int(np.count_nonzero(sums.norms == 0)),
    )
    table = Table(DIRECTIONS, sums.columns(basis.eigenvalues), head)
    parts = rank_bands(basis.eigenvalues, bands)
    return {"gradients": table, "gradient_bands": _banded(table, parts, sums, head)}


def _banded(directions: Table, parts: RankBands, sums: _Sums, head: dict[str, Any]) -> Table:
    quartiles = parts.quartiles(directions["participation"])
    columns = {
        **parts.rows(directions["eigenvalue"]),
        **histogram_quantiles(np.add.reduceat(sums.histogram, parts.starts, axis=0, dtype=np.int64)),
        "share": np.add.reduceat(directions["share"], parts.starts),
        **_interval("share", np.add.reduceat(sums.shares(), parts.starts, axis=0)),
        "participation": quartiles["median"],
        "participation_lower": quartiles["lower"],
        "participation_upper": quartiles["upper"],
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
