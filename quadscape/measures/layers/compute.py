"""Gradients by layer and depth: norms in windows of a run, and their slope over hidden layers of equal shape.

In a plain network of random weights the squared length of the gradient that reaches a layer is multiplied by χ per
layer, χ = σ_w² E φ'(√q z)² at the fixed point q of the activations' variance (Schoenholz et al., Deep information
propagation, 2017, equations 3 to 5); the norm's logarithm is then linear in depth, of slope ½ log₁₀ χ.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadscape.measures.intervals import student
from quadscape.measures.job import Job
from quadscape.measures.layers.declaration import NORMS, SLOPES
from quadscape.measures.members import MemberRun, columns_of, family_head, read_members
from quadscape.tables import Table

WINDOWS = ("initial", "start", "middle", "end")
BLOCKS = 10
LEAST_LAYERS = 3
"""Fewest hidden layers of equal shape for a slope."""


@dataclass(frozen=True)
class Depth:
    """Layers with weights, as they lie between input and loss.

    Attributes:
        places: Their places among all layers of the run, from the loss to the input.
        names: Their names, in the same order.
        alike: Which of them are hidden layers of equal shape.
    """

    places: tuple[int, ...]
    names: tuple[str, ...]
    alike: tuple[bool, ...]


def depth_of(layers: Sequence[str], layout: Sequence[Mapping[str, Any]]) -> Depth:
    """Which layers have weights, and which of the hidden ones are of equal shape.

    Layers are taken to lie in the order in which the network registers them. The first and the last are left out of
    those of equal shape, which are the largest group that shares the shape of its weights.

    Args:
        layers: Names of all layers, in order.
        layout: Parameters with layer and shape, as in the results of a training.

    Returns:
        The layers with weights.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for block in layout:
        if len(block["shape"]) > 1:
            shapes.setdefault(block["layer"], tuple(block["shape"]))
    own = [name for name in layers if name in shapes][::-1]
    hidden = own[1:-1]
    counts = Counter(shapes[name] for name in hidden)
    shape = counts.most_common(1)[0][0] if counts else ()
    alike = tuple(name in hidden and shapes[name] == shape for name in own)
    return Depth(tuple(list(layers).index(name) for name in own), tuple(own), alike)


def compute(job: Job) -> dict[str, Table]:
    """Gradients by layer of all members.

    Args:
        job: Reads the trajectories.

    Returns:
        The tables of `measure`.
    """
    members = read_members(job)
    layouts = [job.trajectory(member.place).stage.manifest["results"]["layout"] for member in members]
    depths = [depth_of(member.course.layers, layout) for member, layout in zip(members, layouts, strict=True)]
    return measure(members, depths, family_head(job.family, members))


def steps_of(window: str, iterations: int) -> range:
    """Steps of a window.

    Args:
        window: One of `WINDOWS`.
        iterations: Length of the run.

    Returns:
        The steps; at least one.
    """
    width = max(1, iterations // 10)
    first = {"initial": 0, "start": 0, "middle": (iterations - width) // 2, "end": iterations - width}[window]
    return range(first, first + (1 if window == "initial" else width))


def measure(members: Sequence[MemberRun], depths: Sequence[Depth], head: Mapping[str, Any]) -> dict[str, Table]:
    """Norms by layer and window of all members, and slopes of their cells.

    Args:
        members: Members of the family.
        depths: The layers of each.
        head: Attributes of the tables.

    Returns:
        Tables `layer_norms` and `layer_slopes`.
    """
    norms: list[dict[str, Any]] = []
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    counts: dict[str, int] = {}
    for member, depth in zip(members, depths, strict=True):
        counts[member.cell] = max(counts.get(member.cell, 0), sum(depth.alike))
        for window in WINDOWS:
            rows = _window(member, depth, window)
            norms += rows
            values = np.array([row["log_norm"] for row in rows if row["alike"]])
            places = np.array([row["from_loss"] for row in rows if row["alike"]])
            lines.setdefault((member.cell, window), []).append(straight_line(places, values))
    slopes = [_slope(cell, window, counts[cell], found) for (cell, window), found in lines.items()]
    return {
        "layer_norms": Table(NORMS, columns_of(norms, NORMS.all_columns()), head),
        "layer_slopes": Table(SLOPES, columns_of(slopes, SLOPES.all_columns()), head),
    }


def _window(member: MemberRun, depth: Depth, window: str) -> list[dict[str, Any]]:
    """Rows of one member and window, by layer."""
    own = steps_of(window, member.training.iterations)
    # From where a run diverged nothing is left, and one step before its gradients say nothing of the window.
    whole = member.diverged < 0 or own.stop <= member.diverged
    values = np.asarray(member.course.gradient_norm, dtype=np.float64)[own.start : own.stop]
    rows = []
    for position, (place, name, alike) in enumerate(zip(depth.places, depth.names, depth.alike, strict=True)):
        series = values[:, place] if whole else np.empty(0)
        mean, low, high = _log_mean(series)
        vanished = float(np.mean(series == 0)) if len(series) else math.nan
        row = {**member.member, "window": window, "from_loss": position, "layer": name, "alike": alike}
        rows.append(row | {"log_norm": mean, "log_norm_low": low, "log_norm_high": high, "vanished": vanished})
    return rows


def _log_mean(series: np.ndarray) -> tuple[float, float, float]:
    """Mean of log₁₀ of what is positive, with an interval over blocks of time."""
    positive = series[(series > 0) & np.isfinite(series)]
    if not len(positive):
        return (math.nan,) * 3
    logs = np.log10(positive)
    size = len(logs) // BLOCKS
    if not size:
        return float(logs.mean()), math.nan, math.nan
    _, low, high = student(logs[: size * BLOCKS].reshape(BLOCKS, size).mean(axis=1))
    middle, mean = (low + high) / 2, float(logs.mean())
    return mean, low + mean - middle, high + mean - middle


def straight_line(places: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope and R² of a straight line by least squares.

    Args:
        places: Places of the layers, shape (n,).
        values: Logarithms, shape (n,).

    Returns:
        Both NaN below `LEAST_LAYERS` layers or where a value is not finite; R² NaN where all values are equal.
    """
    if len(values) < LEAST_LAYERS or not np.isfinite(values).all():
        return math.nan, math.nan
    x, y = places - places.mean(), values - values.mean()
    slope = float(x @ y / (x @ x))
    total = float(y @ y)
    return slope, 1 - float(np.square(y - slope * x).sum()) / total if total > 0 else math.nan


def _slope(cell: str, window: str, layers: int, lines: Sequence[tuple[float, float]]) -> dict[str, Any]:
    found = np.array([line for line in lines if math.isfinite(line[0])]).reshape(-1, 2)
    row: dict[str, Any] = {"cell": cell, "window": window, "layers": layers}
    row |= {"members": len(found), "without": len(lines) - len(found)}
    for place, name in enumerate(("slope", "linearity")):
        row[name], row[f"{name}_low"], row[f"{name}_high"] = student(found[:, place])
    return row
