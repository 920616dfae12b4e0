"""Whose curvature? qᵀGₙq and qᵀHₙq of every training example, along eigenvectors.

The curvature along q is the mean of the examples'. The Gauss–Newton part γₙ = qᵀGₙq is never negative, so that each
example has a share of it; the whole hₙ = qᵀHₙq is signed. One item is one direction.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.measures.example_curvature.declaration import CURVATURES, EXAMPLES, FEW, PLACES, SHOWN
from quadscape.measures.interfaces import BasisLike, as_array, merged, unit_vector
from quadscape.measures.job import Job
from quadscape.measures.line_search.compute import choose_directions
from quadscape.measures.members import columns_of
from quadscape.measures.ranks import direction_rows
from quadscape.tables import Table

if TYPE_CHECKING:
    from quadscape.network.objective import Objective

STATISTICS = (
    "gauss_newton",
    "hessian",
    "participation",
    "half",
    "few",
    "participation_hessian",
    "half_hessian",
    "negative",
    "opposed",
)
TOP = ("example", "share", "slope", "hessian")
"""What is stored of a direction: these numbers, and of its largest examples those."""

ROW = "values"


class Curvatures:
    """Directions of one checkpoint, and the curvature of all examples along them.

    Attributes:
        directions: Indices of the eigenvectors, ascending.
    """

    def __init__(self, objective: "Objective", basis: BasisLike, theta: np.ndarray, count: int) -> None:
        """Chooses the directions.

        Args:
            objective: The training loss.
            basis: Eigenbasis of its Hessian at θ.
            theta: θ, float64, shape (P,).
            count: Number of directions.
        """
        self._objective, self._basis, self._theta = objective, basis, theta
        self._values = np.asarray(basis.eigenvalues, dtype=np.float64)
        self.directions = choose_directions(self._values, count)
        self._places = min(PLACES, objective.count)

    @property
    def width(self) -> int:
        """Numbers that are stored of a direction."""
        return len(STATISTICS) + len(TOP) * self._places

    def values(self, part: slice) -> np.ndarray:
        """Numbers of some directions, shape (directions, `width`)."""
        rows = []
        for index in self.directions[part].tolist():
            direction = unit_vector(self._basis, index)
            slopes, hessian, gauss_newton = map(as_array, self._objective.example_curvatures(self._theta, direction))
            first = np.argsort(-gauss_newton, kind="stable")[: self._places]
            numbers = statistics(slopes, hessian, gauss_newton)
            shares = _shares(np.maximum(gauss_newton, 0.0))
            top = [first.astype(np.float64), shares[first], slopes[first], hessian[first]]
            rows.append(np.concatenate([[numbers[name] for name in STATISTICS], *top]))
        return np.array(rows)

    def tables(self, values: np.ndarray, attributes: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Table]:
        """What they say.

        Args:
            values: From `values`, of all directions.
            attributes: Head of the tables; see `quadscape.measures.job.Job.basis_head`.
            classes: Names of the classes.

        Returns:
            Tables `example_curvature` and `curvature_examples`.
        """
        which = direction_rows(self._values, self.directions)
        top = values[:, len(STATISTICS) :].reshape(len(values), len(TOP), self._places)
        columns = {name: values[:, place] for place, name in enumerate(STATISTICS)}
        columns |= which | {"is_zero": np.abs(which["eigenvalue"]) <= float(attributes["zero_threshold"])}
        columns |= {"top_example": top[:, 0, 0].astype(np.int64), "top_share": top[:, 1, 0]}
        rows = self._examples(which, top, classes)
        shape = [int(length) for length in self._objective.images.shape[1:]]
        return {
            "example_curvature": Table(CURVATURES, columns, dict(attributes)),
            "curvature_examples": Table(
                EXAMPLES, columns_of(rows, EXAMPLES.all_columns()), merged(attributes, image_shape=shape)
            ),
        }

    def _examples(
        self, which: Mapping[str, np.ndarray], top: np.ndarray, classes: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Rows of the largest examples of a few directions."""
        outputs = as_array(self._objective.outputs(self._theta))
        labels = as_array(self._objective.labels).astype(np.int64)
        images = self._objective.images
        others = [axis for axis in range(images.ndim) if axis != 1]
        # Normalisation is one shift and one factor for each channel: black and white are the least and the most.
        low, high = images.amin(dim=others, keepdim=True), images.amax(dim=others, keepdim=True)
        rows = []
        for place in shown_directions(which["sign"], which["rank"]):
            direction = {name: values[place].item() for name, values in which.items()}
            for number in range(self._places):
                example, share, slope, hessian = top[place, :, number].tolist()
                scores = outputs[int(example)] - outputs[int(example)].max()
                own = int(labels[int(example)])
                scale = (high - low).clamp_min(1e-12)
                pixels = ((images[int(example)][None] - low) / scale * 255).round().clamp(0, 255)[0]
                row = {"place": number + 1, "example": int(example), "share": share, "slope": slope, "hessian": hessian}
                row |= {"label": classes[own], "prediction": classes[int(scores.argmax())]}
                row["probability"] = float(np.exp(scores[own]) / np.exp(scores).sum())
                encoded = base64.b64encode(as_array(pixels).astype(np.uint8).tobytes()).decode()
                rows.append({**direction, **row, "image": encoded})
        return rows


def shown_directions(signs: np.ndarray, ranks: np.ndarray) -> list[int]:
    """The directions whose largest examples are shown.

    Args:
        signs: +1 or −1 for each direction.
        ranks: Rank within the sign.

    Returns:
        Places of up to `SHOWN`: those of the first positive ranks, and of the first negative one.
    """
    order = np.argsort(ranks, kind="stable")
    positive, negative = (order[signs[order] == sign].tolist() for sign in (1, -1))
    return [*positive[: SHOWN - min(1, len(negative))], *negative[:1]]


def statistics(slopes: np.ndarray, hessian: np.ndarray, gauss_newton: np.ndarray) -> dict[str, float]:
    """How one direction's curvature is spread over examples.

    Args:
        slopes: gₙᵀq, shape (N,).
        hessian: qᵀHₙq, shape (N,).
        gauss_newton: qᵀGₙq, shape (N,); what rounding makes negative counts as 0.

    Returns:
        Values of `STATISTICS`; NaN where there is nothing to share.
    """
    count = len(slopes)
    positive, size = np.maximum(gauss_newton, 0.0), np.abs(hessian)
    few = max(1, math.ceil(FEW * count))
    total = float(size.sum())
    leading = slopes[np.argsort(-np.abs(slopes), kind="stable")[: max(2, few)]]
    pushed = float(np.abs(leading).sum())
    return {
        "gauss_newton": float(gauss_newton.mean()),
        "hessian": float(hessian.mean()),
        "participation": participation(positive),
        "half": half_share(positive),
        "few": float(np.sort(_shares(positive))[::-1][:few].sum()) if positive.any() else math.nan,
        "participation_hessian": participation(size),
        "half_hessian": half_share(size),
        "negative": float(size[hessian < 0].sum()) / total if total else math.nan,
        "opposed": 1 - abs(float(leading.sum())) / pushed if pushed else math.nan,
    }


def _shares(values: np.ndarray) -> np.ndarray:
    total = float(values.sum())
    return values / total if total else np.zeros(len(values))


def participation(values: np.ndarray) -> float:
    """(Σv)²/(NΣv²) of values that are not negative: 1 if all are equal, 1/N if one is all; NaN if all are 0."""
    shares = _shares(values)
    square = float(np.square(shares).sum())
    return 1 / (len(values) * square) if square else math.nan


def half_share(values: np.ndarray) -> float:
    """Smallest share of all values that has half of their sum, between two interpolated; NaN if all are 0."""
    ordered = np.sort(_shares(values))[::-1]
    if not ordered.any():
        return math.nan
    reached = np.concatenate([[0.0], np.cumsum(ordered)])
    return float(np.interp(0.5, reached, np.arange(len(reached)))) / len(values)


class Work:
    """The directions of a checkpoint as items of a long measure."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @cached_property
    def _curvatures(self) -> Curvatures:
        job = self._job
        return Curvatures(job.objective("train"), job.basis, job.checkpoint.theta, job.options.directions)

    @property
    def items(self) -> int:
        """Number of directions."""
        return len(self._curvatures.directions)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """All that is known of a direction, in one row."""
        return {ROW: (self._curvatures.width,)}

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """Numbers of some directions."""
        return {ROW: self._curvatures.values(part)}

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """What all of them say."""
        return self._curvatures.tables(values[ROW], self._job.basis_head, self._job.checkpoint.classes)


def compute(job: Job) -> dict[str, Table]:
    """Curvature of single examples at one checkpoint, in one piece.

    Args:
        job: Reads checkpoint, data and eigenbasis.

    Returns:
        Tables `example_curvature` and `curvature_examples`.
    """
    work = Work(job)
    return work.tables(work.measure(slice(None)))
