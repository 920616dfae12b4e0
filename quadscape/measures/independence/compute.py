"""Do eigendirections act independently? The loss off the lines that were searched, against what these predict there.

Along d = Σ aᵢqᵢ the separable prediction is L(θ + td) − L(θ) ≈ t gᵀd + Σᵢ [fᵢ(taᵢ) − taᵢgᵢ], where fᵢ is the line along
qᵢ; the quadratic one is t gᵀd + ½t² dᵀHd. Both are of L. Weight decay adds (δ/2)(|θ + td|² − |θ|²), which is exactly
quadratic and, in any orthonormal basis, separable: to `actual` and to both predictions of L̃ it adds the same, so that
their differences, and the skill, are those of L̃ too.

In an isotropic d all P eigendirections take part, most of which were not searched. Their lines are interpolated
between those that were (`quadscape.measures.independence.lines.Between`), without odd parts: as the sign of qᵢ is
arbitrary they add up to nothing on average, and to about `odd_size` in one direction.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadscape.measures.independence.declaration import INTERACTION, RESOLUTION, SETS, SKILL
from quadscape.measures.independence.lines import Between, Line, fractions, lines_of, pairs_of, sets_of
from quadscape.measures.interfaces import BasisLike, ObjectiveLike, as_array, merged, unit_vector
from quadscape.measures.job import Job
from quadscape.measures.line_search.declaration import FITS, LINES
from quadscape.measures.line_search.losses import SplitLosses
from quadscape.measures.members import columns_of
from quadscape.tables import Table

SMALLEST = 0.05
"""The first point of a direction over the last."""

NORMAL = 1.96
"""95 % of a normal distribution."""


def compute(job: Job) -> dict[str, Table]:
    """Independence of eigendirections at one checkpoint.

    Args:
        job: Reads data, checkpoint, eigenbasis and line searches.

    Returns:
        The tables of `measure`.
    """
    points, fits = job.table("line_search", LINES), job.table("line_search", FITS)
    losses = SplitLosses(job.objective("train"), job.checkpoint.theta, job.epsilon, 0)
    around = Around(losses, job.checkpoint.theta, job.epsilon)
    return measure(around, job.basis, points, fits, job.options, job.basis_head, device=job.device)


class Around:
    """The training loss at displacements from θ."""

    def __init__(self, losses: SplitLosses, theta: np.ndarray, epsilon: float) -> None:
        """Evaluates the losses of all examples at θ.

        Args:
            losses: The training loss.
            theta: θ, float64, shape (P,).
            epsilon: Machine epsilon of the network.
        """
        self._losses, self._theta, self._epsilon = losses, theta, epsilon
        self._centre = as_array(losses.exact.example_losses(theta))

    @property
    def objective(self) -> ObjectiveLike:
        """The loss itself."""
        return self._losses.exact

    @property
    def gradient(self) -> np.ndarray:
        """∇L(θ), shape (P,)."""
        return self._losses.gradient

    def examples(self, step: np.ndarray) -> np.ndarray:
        """ℓₙ(θ + step) − ℓₙ(θ), shape (N,)."""
        return as_array(self.objective.example_losses(self._theta + step)) - self._centre

    def floor(self, *rises: float) -> float:
        """Rounding floor of a sum of differences of the loss of these sizes; large losses round in proportion."""
        return self._losses.floor + self._epsilon * sum(abs(rise) for rise in rises if math.isfinite(rise))

    def curvature(self, step: np.ndarray) -> float:
        """dᵀHd from one product."""
        return self._losses.curvature(step)


def measure(
    around: Around,
    basis: BasisLike,
    points: Table,
    fits: Table,
    options: Any,
    attributes: Mapping[str, Any],
    *,
    seed: int = 0,
    device: Any = "cpu",
) -> dict[str, Table]:
    """Independence of eigendirections.

    Args:
        around: The training loss around θ.
        basis: Eigenbasis of its Hessian at θ.
        points: `line_search`.
        fits: `line_fit` of the same checkpoint; its attribute `reach_limit` is used.
        options: directions, points and resolution.
        attributes: Head of the tables; see `quadscape.measures.job.Job.basis_head`.
        seed: Of the random directions.
        device: Device of products with the whole basis.

    Returns:
        Tables `independence` and `interaction`. Attribute reach_limit: the largest |td|, as of a line.
    """
    lines = lines_of(points, fits)
    limit = float(fits.attributes["reach_limit"])
    rows = list(_along_sets(around, basis, lines, options, limit, seed))
    rows += _along_isotropic(around, basis, lines, options, limit, seed, device)
    planes = [
        row
        for number, pair in enumerate(pairs_of(lines))
        for row in _plane(around, basis, pair, options.resolution, {"pair": number})
    ]
    head = merged(attributes, reach_limit=limit)
    return {
        "independence": Table(SKILL, columns_of(rows, SKILL.all_columns()), head),
        "interaction": Table(INTERACTION, columns_of(planes, INTERACTION.all_columns()), head),
    }


@dataclass(frozen=True)
class _OfLines:
    """What single lines say of a direction in their span.

    Attributes:
        shares: The lines, with the component aᵢ of d along each.
    """

    shares: Sequence[tuple[Line, float]]

    def separable(self, t: float, linear: float, quadratic: float) -> tuple[float, float, float]:
        """The separable prediction, its rounding floor, and the size of what it leaves out.

        Args:
            t: Multiple of d.
            linear: t gᵀd.
            quadratic: t gᵀd + ½t² dᵀHd.

        Returns:
            The three numbers, in units of the loss.
        """
        at = [(line, t * share) for line, share in self.shares]
        rounding = math.sqrt(sum(line.floor(x) ** 2 for line, x in at))
        return linear + sum(line.beyond_slope(x) for line, x in at), rounding, math.nan

    def beyond(self, t: float) -> bool:
        """Whether any line is left by its quadratic."""
        return any(line.left(t * share) for line, share in self.shares)


@dataclass(frozen=True)
class _OfAll(_OfLines):
    """The same of a direction with components along all eigenvectors; `shares` are those of lines that were searched.

    Attributes:
        between: All lines, by interpolation.
        eigenvalues: λ, shape (P,).
        along: aᵢ = qᵢᵀd, shape (P,).
        told: Whether λ is more than numerically zero.
    """

    between: Between
    eigenvalues: np.ndarray
    along: np.ndarray
    told: np.ndarray

    def separable(self, t: float, linear: float, quadratic: float) -> tuple[float, float, float]:
        """What even parts add to the quadratic, and the size of the odd parts."""
        even, odd, rounding = self.between.parts(self.eigenvalues, t * self.along, self.told)
        return quadratic + even, rounding, odd


def _rows(around: Around, vector: np.ndarray, t: np.ndarray, said: _OfLines) -> Iterator[dict[str, Any]]:
    """Rows of the points of a direction d."""
    slope, curvature = float(around.gradient @ vector), around.curvature(vector)
    length = float(np.linalg.norm(vector))
    for at in t.tolist():
        actual, error = _mean(around.examples(at * vector))
        linear = at * slope
        quadratic = linear + 0.5 * at**2 * curvature
        separable, rounding, odd = said.separable(at, linear, quadratic)
        rounding += around.floor(actual, linear)
        missed = abs(actual - quadratic)
        skill = 1 - abs(actual - separable) / missed if missed >= RESOLUTION * rounding else math.nan
        yield {
            "t": at,
            "length": at * length,
            **_interval("actual", actual, error),
            "rounding": rounding,
            "separable": separable,
            "quadratic": quadratic,
            "skill": skill,
            "beyond": said.beyond(at),
            "odd_size": odd,
        }


def _mean(examples: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; NaN where an example is not finite."""
    if not np.isfinite(examples).all():
        return math.nan, math.nan
    count = len(examples)
    return float(examples.mean()), float(examples.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan


def _interval(name: str, value: float, error: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - NORMAL * error, f"{name}_high": value + NORMAL * error}


def _along_sets(
    around: Around, basis: BasisLike, lines: Sequence[Line], options: Any, limit: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of random directions in the spans of lines."""
    for name, chosen in sets_of(lines).items():
        if not chosen:
            continue
        length = math.sqrt(sum(line.reach**2 for line in chosen))
        # No farther away than the lines themselves go.
        most = min(1.0, limit / length) if limit > 0 else 1.0
        t = fractions(chosen[0], most, options.points, SMALLEST)
        reaches = np.array([line.reach for line in chosen])
        generators = [np.random.default_rng((seed, SETS.index(name), number)) for number in range(options.directions)]
        shares = np.array([generator.choice([-1.0, 1.0], len(chosen)) for generator in generators]) * reaches
        vectors = np.zeros((options.directions, len(basis.eigenvalues)))
        # Each eigenvector is read once, for all directions.
        for place, line in enumerate(chosen):
            vectors += shares[:, place, None] * unit_vector(basis, line.index)
        for number, (vector, own) in enumerate(zip(vectors, shares, strict=True)):
            said = _OfLines(list(zip(chosen, own.tolist(), strict=True)))
            for row in _rows(around, vector, t, said):
                yield {"set": name, "direction": number, "lines": len(chosen), **row}


def _along_isotropic(
    around: Around,
    basis: BasisLike,
    lines: Sequence[Line],
    options: Any,
    limit: float,
    seed: int,
    device: Any,
) -> Iterator[dict[str, Any]]:
    """Rows of random directions in all of parameter space."""
    told = [line for line in lines if not line.is_zero]
    if not told:
        return
    eigenvalues = np.asarray(basis.eigenvalues, dtype=np.float64)
    size = len(eigenvalues)
    drawn = np.empty((options.directions, size))
    for number in range(options.directions):
        vector = np.random.default_rng((seed, SETS.index("isotropic"), number)).standard_normal(size)
        drawn[number] = vector / np.linalg.norm(vector)
    components = _components(basis, drawn, device)
    between, is_told = Between(told), np.abs(eigenvalues) > float(basis.zero_threshold)
    # To where the component along the largest eigenvector is, on average, as large as its line is long.
    most = told[0].reach * math.sqrt(size)
    t = np.geomspace(SMALLEST, 1, options.points) * (min(most, limit) if limit > 0 else most)
    for number, (vector, along) in enumerate(zip(drawn, components, strict=True)):
        shares = [(line, float(along[line.index])) for line in told]
        said = _OfAll(shares, between, eigenvalues, along, is_told)
        for row in _rows(around, vector, t, said):
            yield {"set": "isotropic", "direction": number, "lines": size, **row}


def _components(basis: BasisLike, vectors: np.ndarray, device: Any) -> np.ndarray:
    """Components of vectors (rows) along all eigenvectors, with some columns of Q at a time."""
    import torch

    from quadscape.curvature.projections import project

    found = np.empty(vectors.shape)
    for tile in project(lambda part: torch.as_tensor(vectors[part], device=device), len(vectors), basis, device=device):
        found[tile.rows, tile.columns] = tile.values.double().cpu().numpy()
    return found


def _plane(
    around: Around, basis: BasisLike, pair: tuple[Line, Line], resolution: int, head: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Rows of a grid in the plane of two eigendirections."""
    first, second = pair
    along = [np.linspace(-line.reach, line.reach, resolution) for line in pair]
    vectors = [unit_vector(basis, line.index) for line in pair]
    alone = [
        [around.examples(at * vector) if at else np.zeros(around.objective.count) for at in places.tolist()]
        for places, vector in zip(along, vectors, strict=True)
    ]
    for x, of_x in zip(along[0].tolist(), alone[0], strict=True):
        for y, of_y in zip(along[1].tolist(), alone[1], strict=True):
            both = around.examples(x * vectors[0] + y * vectors[1]) if x and y else of_x + of_y
            with np.errstate(invalid="ignore", over="ignore"):  # what overflows is seen to be not finite
                value, error = _mean(both - of_x - of_y)
                sizes = [float(part.mean()) for part in (both, of_x, of_y)]
            yield {
                **head,
                "index_x": first.index,
                "index_y": second.index,
                "eigenvalue_x": first.eigenvalue,
                "eigenvalue_y": second.eigenvalue,
                "x": x,
                "y": y,
                "difference": sizes[0],
                **_interval("interaction", value, error),
                "rounding": around.floor(*sizes),
            }
