"""The loss on planes through θ, beside the curvatures of the Hessian in these planes.

A picture of a plane is a sample: in P dimensions a random direction sees the mean of all eigenvalues, weighted by
squared components, and so neither the sharpness nor the negative curvature of the loss (Böttcher & Wheeler, arXiv
2208.13219). Random directions are filter-normalised (Li et al., arXiv 1712.09913; `quadscape.network.filters`), so that
rescaling the layers of a network with ReLU, which changes the sharpness, leaves their picture as it is. As in the
reference implementation they are drawn independently of each other and not made orthogonal, which would not be
invariant: right angles change when layers are rescaled.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from quadscape.measures.interfaces import BasisLike, ObjectiveLike, as_array, merged
from quadscape.measures.job import Job
from quadscape.measures.line_search.analysis import rounding_floor
from quadscape.measures.surface.declaration import NEAR, PLANES, SAMPLES, SURFACE, TILE_BYTES, Plane, planes_of
from quadscape.network.filters import Filters
from quadscape.tables import Table

ROUNDING = 64
"""Errors of a mean loss far from the centre, in units of ε times its size."""

_SEED = 1712


class Directions(NamedTuple):
    """What spans a plane.

    Attributes:
        vectors: d₁ and d₂ as columns, shape (P, 2).
        reach: Largest multiple of each.
        names: What each is, in words.
    """

    vectors: np.ndarray
    reach: tuple[float, float]
    names: tuple[str, str]


def random_pair(filters: Filters, theta: np.ndarray, seed: int) -> np.ndarray:
    """Two independent random directions, filter-normalised.

    Args:
        filters: The filters of the network.
        theta: θ, shape (P,).
        seed: Seed of the plane.

    Returns:
        Columns, shape (P, 2); 0 along parameters that belong to no filter.
    """
    drawn = np.random.default_rng([_SEED, seed]).standard_normal((2, len(theta)))
    return np.stack([filters.normalised(direction, theta) for direction in drawn], axis=1)


def span(eigenvalue: float, loss_rise: float, limit: float) -> float:
    """How far a plane reaches along an eigenvector: as far as a line search does with the same options.

    Args:
        eigenvalue: λ.
        loss_rise: What ½|λ|t² reaches there.
        limit: Largest t, a fraction of |θ|; 0 (θ = 0 has no scale) for no limit.

    Returns:
        t, above 0.
    """
    reach = limit if limit > 0 else math.inf
    if eigenvalue != 0:
        reach = min(reach, math.sqrt(2 * loss_rise / abs(eigenvalue)))
    return reach if math.isfinite(reach) else 1.0


def curvatures(form: np.ndarray, gram: np.ndarray) -> dict[str, float]:
    """Curvatures in a plane, per squared length.

    Args:
        form: Second derivatives in the coordinates of the plane, shape (2, 2).
        gram: Inner products of its directions, shape (2, 2).

    Returns:
        first and second along the directions; largest and smallest along any, NaN where the directions span no plane.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = np.diag(form) / np.diag(gram)
    try:
        root = np.linalg.inv(np.linalg.cholesky(gram))
        smallest, largest = np.linalg.eigvalsh(root @ form @ root.T)
    except np.linalg.LinAlgError:
        smallest = largest = np.nan
    return {"first": float(first), "second": float(second), "largest": float(largest), "smallest": float(smallest)}


def suggested_form(rise: np.ndarray, reach: tuple[float, float]) -> np.ndarray:
    """The quadratic that the middle of a picture looks like.

    Args:
        rise: L − L(θ) on the grid, 0 in the middle; shape (n, n), a in rows.
        reach: Largest a and b.

    Returns:
        Second derivatives in a and b, shape (2, 2): of g·x + ½xᵀMx fitted by least squares to the points within
        `NEAR` steps of the centre along each axis. NaN where one of these is not finite.
    """
    half = len(rise) // 2
    middle = slice(half - NEAR, half + NEAR + 1)
    near = rise[middle, middle].ravel()
    if not np.isfinite(near).all():
        return np.full((2, 2), np.nan)
    i, j = (axis.ravel().astype(np.float64) for axis in np.mgrid[-NEAR : NEAR + 1, -NEAR : NEAR + 1])
    terms = np.stack([i, j, 0.5 * i**2, i * j, 0.5 * j**2], axis=1)
    _, _, first, both, second = np.linalg.lstsq(terms, near, rcond=None)[0]
    steps = np.array(reach) / half
    return np.array([[first, both], [both, second]]) / np.outer(steps, steps)


def count_minima(rise: np.ndarray, floor: np.ndarray) -> int:
    """Points inside a grid that are lower than all of their eight neighbours by more than rounding.

    Args:
        rise: Shape (n, n); what is not finite counts as high.
        floor: Rounding floor at each point, of the same shape.

    Returns:
        Their number.
    """
    height = np.where(np.isfinite(rise), rise, np.inf)
    inner, count = height[1:-1, 1:-1], len(rise)
    low = np.isfinite(inner)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if down or right:
                part = slice(1 + down, count - 1 + down), slice(1 + right, count - 1 + right)
                low &= inner + floor[1:-1, 1:-1] < height[part]
    return int(np.count_nonzero(low))


class Surfaces:
    """The planes of one checkpoint: what they share, the values on the rows of their grids, and what they say.

    Attributes:
        planes: Those that the network has enough parameters for.
    """

    def __init__(
        self,
        objective: ObjectiveLike,
        basis: BasisLike,
        theta: np.ndarray,
        filters: Filters,
        options: Any,
        device: Any = "cpu",
    ) -> None:
        """Chooses the planes.

        Args:
            objective: The training loss L.
            basis: Eigenbasis of the Hessian of L at θ.
            theta: θ, float64, shape (P,).
            filters: The filters of the network.
            options: planes, resolution, reach, loss_rise, limit and samples.
            device: Where random directions are multiplied with the basis.
        """
        self._objective, self._basis, self._filters, self._options = objective, basis, filters, options
        self._device = device
        self._theta = as_array(theta)
        self._eigenvalues = np.asarray(basis.eigenvalues, dtype=np.float64)
        size = len(self._theta)
        self.planes = tuple(plane for plane in planes_of(options.planes) if plane.least_parameters <= size)
        self._directions: dict[str, Directions] = {}

    @cached_property
    def _centre(self) -> np.ndarray:
        return as_array(self._objective.example_losses(self._theta))

    def directions(self, plane: Plane) -> Directions:
        """What spans a plane.

        Args:
            plane: One of `planes`.

        Returns:
            Its directions.
        """
        if plane.name not in self._directions:
            self._directions[plane.name] = self._span(plane)
        return self._directions[plane.name]

    def _span(self, plane: Plane) -> Directions:
        if plane.ranks is None:
            reach = float(self._options.reach)
            names = (f"random, seed {plane.seed}, first", f"random, seed {plane.seed}, second")
            return Directions(random_pair(self._filters, self._theta, plane.seed), (reach, reach), names)
        size = len(self._theta)
        places = [rank - 1 if rank > 0 else size + rank for rank in plane.ranks]
        vectors = np.stack([as_array(self._basis.vectors(place, place + 1))[:, 0] for place in places], axis=1)
        # A stored float32 vector is a unit vector to 1e-7 only.
        vectors /= np.linalg.norm(vectors, axis=0)
        limit = self._options.limit * float(np.linalg.norm(self._theta))
        first, second = (span(float(self._eigenvalues[place]), self._options.loss_rise, limit) for place in places)
        names = (f"eigenvector {places[0] + 1} of {size}", f"eigenvector {places[1] + 1} of {size}")
        return Directions(vectors, (first, second), names)

    def axis(self, reach: float) -> np.ndarray:
        """Coordinates of a grid, exactly 0 in the middle, shape (resolution,)."""
        half = self._options.resolution // 2
        return reach * np.arange(-half, half + 1) / half

    @property
    def rows(self) -> int:
        """Number of rows of all grids."""
        return len(self.planes) * self._options.resolution

    def values(self, part: slice) -> dict[str, np.ndarray]:
        """The loss on some rows of the grids, at one a and all b each.

        Args:
            part: Which of all rows.

        Returns:
            difference from the centre, shape (rows, resolution); NaN where it is not finite.
        """
        return {"difference": np.array([self._row(row) for row in range(*part.indices(self.rows))])}

    def _row(self, row: int) -> np.ndarray:
        plane, place = divmod(row, self._options.resolution)
        spanned = self.directions(self.planes[plane])
        a, found = self.axis(spanned.reach[0])[place], np.zeros(self._options.resolution)
        for column, b in enumerate(self.axis(spanned.reach[1])):
            if a or b:
                losses = as_array(self._objective.example_losses(self._theta + spanned.vectors @ np.array([a, b])))
                with np.errstate(invalid="ignore", over="ignore"):
                    found[column] = (losses - self._centre).mean()
        return np.where(np.isfinite(found), found, np.nan)

    def tables(
        self, values: Mapping[str, np.ndarray], attributes: Mapping[str, Any], epsilon: float
    ) -> dict[str, Table]:
        """What the pictures say, beside the Hessian.

        Args:
            values: From `values`, of all rows.
            attributes: Head of the tables; see `quadscape.measures.job.Job.basis_head`.
            epsilon: Machine epsilon of the objective's dtype.

        Returns:
            Tables `surface`, `surface_planes` and `surface_samples`. Attributes: loss at the centre, sharpness and
            smallest_eigenvalue, the largest and the smallest eigenvalue of the Hessian, resolution, and near, the
            steps of the fit.
        """
        resolution, loss = self._options.resolution, float(self._centre.mean())
        gradient = as_array(self._objective.gradient(self._theta))
        floor = rounding_floor(self._objective, self._theta, gradient, epsilon, _SEED)
        ends = (float(self._eigenvalues[0]), float(self._eigenvalues[-1]))
        head = merged(
            attributes, loss=loss, sharpness=ends[0], smallest_eigenvalue=ends[1], resolution=resolution, near=NEAR
        )
        points: dict[str, list[np.ndarray]] = {name: [] for name in SURFACE.all_columns()}
        rows: list[dict[str, Any]] = []
        for place, plane in enumerate(self.planes):
            spanned = self.directions(plane)
            rise = values["difference"][place * resolution : (place + 1) * resolution]
            a, b = np.meshgrid(*(self.axis(reach) for reach in spanned.reach), indexing="ij")
            columns = (np.full(rise.size, plane.name), a, b, loss + rise, rise)
            for name, column in zip(points, columns, strict=True):
                points[name].append(column.ravel())
            rows.append(
                self._describe(plane, rise, floor + ROUNDING * epsilon * np.abs(loss + rise)) | {"floor": floor}
            )
        return {
            "surface": Table(SURFACE, {name: _joined(parts) for name, parts in points.items()}, head),
            "surface_planes": Table(PLANES, {name: _column(rows, name) for name in PLANES.all_columns()}, head),
            "surface_samples": Table(SAMPLES, self._samples(), head),
        }

    def _describe(self, plane: Plane, rise: np.ndarray, floor: np.ndarray) -> dict[str, Any]:
        spanned = self.directions(plane)
        gram = spanned.vectors.T @ spanned.vectors
        lengths = np.sqrt(np.diag(gram))
        lower = rise < -floor
        row: dict[str, Any] = {"plane": plane.name, "minima": count_minima(rise, floor)}
        row |= dict(zip(("first", "second"), spanned.names, strict=True))
        row |= dict(zip(("length_first", "length_second"), lengths, strict=True))
        row |= dict(zip(("reach_first", "reach_second"), spanned.reach, strict=True))
        with np.errstate(invalid="ignore"):
            row["cosine"] = float(gram[0, 1] / (lengths[0] * lengths[1]))
        found = {"suggested": suggested_form(rise, spanned.reach), "measured": self._form(spanned.vectors)}
        for which, form in found.items():
            row |= {f"{which}_{name}": value for name, value in curvatures(form, gram).items()}
        return row | {"lower": float(lower.mean()), "lowest": float(rise[lower].min()) if lower.any() else 0.0}

    def _form(self, vectors: np.ndarray) -> np.ndarray:
        """The Hessian in a plane, shape (2, 2)."""
        products = [as_array(self._objective.hessian_product(self._theta, vector.copy())) for vector in vectors.T]
        form = vectors.T @ np.stack(products, axis=1)
        return 0.5 * (form + form.T)

    def _samples(self) -> dict[str, np.ndarray]:
        """The Hessian in planes without a picture: Σ λᵢ(dᵀqᵢ)(qᵢᵀd′), since a product with it for each takes longer."""
        from quadscape.curvature.projections import project

        count = self._options.samples
        if not count:
            return {name: np.empty(0, dtype=np.int64) for name in SAMPLES.all_columns()}
        pairs = [random_pair(self._filters, self._theta, seed).T for seed in range(count)]
        directions, forms = np.concatenate(pairs), np.zeros((count, 2, 2))
        tiles = project(directions.__getitem__, len(directions), self._basis, memory=TILE_BYTES, device=self._device)
        for tile in tiles:
            # Rows begin at multiples of 16, so that no pair is cut in two.
            part = slice(tile.rows.start // 2, tile.rows.stop // 2)
            components = as_array(tile.values).reshape(-1, 2, tile.columns.stop - tile.columns.start)
            forms[part] += (components * self._eigenvalues[tile.columns]) @ components.swapaxes(1, 2)
        rows = [{"seed": seed} | curvatures(forms[seed], pairs[seed] @ pairs[seed].T) for seed in range(count)]
        return {name: _column(rows, name) for name in SAMPLES.all_columns()}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0)


def _column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    # Whole numbers, where there is none: they become any kind of column.
    return np.array([row[name] for row in rows]) if rows else np.empty(0, dtype=np.int64)


def measure(
    objective: ObjectiveLike,
    basis: BasisLike,
    theta: np.ndarray,
    filters: Filters,
    options: Any,
    attributes: Mapping[str, Any],
    *,
    epsilon: float = float(np.finfo(np.float64).eps),
    device: Any = "cpu",
) -> dict[str, Table]:
    """Surfaces of one checkpoint, over all training examples.

    Args:
        objective: The training loss L.
        basis: Eigenbasis of the Hessian of L at θ.
        theta: θ, float64, shape (P,).
        filters: The filters of the network.
        options: planes, resolution, reach, loss_rise, limit and samples.
        attributes: Head of the tables; see `Surfaces.tables`.
        epsilon: Machine epsilon of the objective's dtype.
        device: Where random directions are multiplied with the basis.

    Returns:
        Tables `surface`, `surface_planes` and `surface_samples`.
    """
    surfaces = Surfaces(objective, basis, theta, filters, options, device)
    return surfaces.tables(surfaces.values(slice(None)), attributes, epsilon)


class Work:
    """The rows of the grids of a checkpoint as items of a long measure."""

    def __init__(self, job: Job) -> None:
        self._job = job
        objective = job.objective("train")
        filters = Filters.of(objective.layout)
        self._surfaces = Surfaces(objective, job.basis, job.checkpoint.theta, filters, job.options, job.device)

    @property
    def items(self) -> int:
        """Number of rows."""
        return self._surfaces.rows

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is stored of each row."""
        return {"difference": (self._job.options.resolution,)}

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """Losses on some of the rows."""
        return self._surfaces.values(part)

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """What all of them say."""
        return self._surfaces.tables(values, self._job.basis_head, self._job.epsilon)


def compute(job: Job) -> dict[str, Table]:
    """Surfaces of one checkpoint, in one piece.

    Args:
        job: Reads checkpoint, data and eigenbasis.

    Returns:
        The tables of `measure`.
    """
    work = Work(job)
    return work.tables(work.measure(slice(0, work.items)))
