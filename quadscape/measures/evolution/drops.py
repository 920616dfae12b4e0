"""What the fluctuations about the minimum add to the loss, before and after a decrease of the learning rate.

In a quadratic minimum a variance Var xᵢ costs ½λ̃ᵢ Var xᵢ of the loss with weight decay. The noisy quadratic model says
how much less that is at the lower rate; the same coordinates that it is compared with elsewhere say how much it was.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from quadscape.measures.costs import NOISE_ITERATES
from quadscape.measures.evolution.declaration import EVOLUTION_DROPS
from quadscape.measures.fluctuations import (
    BLOCKS,
    LEAST_BLOCKS,
    LEAST_STEPS,
    Model,
    Statistics,
    Window,
    by_chunks,
    expected,
    joined,
    noise_half,
    of_directions,
    statistics,
)
from quadscape.measures.intervals import student
from quadscape.measures.members import columns_of
from quadscape.measures.sharpness.iterates import plateaus_of
from quadscape.tables import Table


class Side(NamedTuple):
    """A window on one side of a decrease.

    Attributes:
        window: Its steps.
        model: Of these.
        found: Statistics of its second half along all P eigenvectors.
        noise: c at several iterates of the second half, shape (n, P).
        losses: Loss of the batch of every step of the second half, with weight decay, shape (T,).
        steady: Whether their loss has no spikes.
    """

    window: Window
    model: Model
    found: Statistics
    noise: np.ndarray
    losses: np.ndarray
    steady: bool


class _Energy(NamedTuple):
    """What fluctuations add to the loss, measured and expected, with halves of 95 % intervals."""

    measured: float
    measured_half: float
    expected: float
    expected_half: float
    independent: float
    blocks: int


def adjoining(rates: np.ndarray, own: Window, most: int) -> list[tuple[Window, Window]]:
    """Windows on both sides of the decreases of the learning rate at which a checkpoint's own window begins or ends.

    Of a window that does not reach back to the beginning of its plateau only the end is looked at: farther away from
    the checkpoint its eigenvectors need not be those of the Hessian.

    Args:
        rates: η of every step, shape (T,).
        own: The checkpoint's window.
        most: Steps of the longest window.

    Returns:
        Windows before and after, one of which is `own`; those of the run's plateaus that are nearest to the decrease.
    """
    found = []
    plateaus = [(first, last) for first, last in plateaus_of(rates) if last - first >= LEAST_STEPS]
    for first, last in plateaus:
        if last == own.first and own.begins and rates[first] > rates[own.first]:
            found.append((Window(max(first, last - most), last, begins=last - first <= most), own))
        if first == own.last and rates[own.first] > rates[first]:
            found.append((own, Window(first, min(last, first + most), begins=True)))
    return found


def side(x: np.ndarray, window: Window, model: Model, noise: np.ndarray, losses: np.ndarray, *, steady: bool) -> Side:
    """One side of a decrease.

    Args:
        x: Coordinates of all iterates of the window, shape (steps + 1, P).
        window: The window.
        model: Of its steps.
        noise: c at several iterates of its second half, shape (n, P).
        losses: Loss of the batch of every step of its second half, with weight decay.
        steady: Whether their loss has no spikes.

    Returns:
        The side.
    """
    parts = [statistics(x[len(x) - model.steps :, part]) for part in by_chunks(x.shape[1])]
    return Side(window, model, joined(parts), noise, losses, steady)


def table_of(pairs: Sequence[tuple[Side, Side]], eigenvalues: np.ndarray, attributes: Mapping[str, Any]) -> Table:
    """One row for each decrease.

    Args:
        pairs: Both sides of each.
        eigenvalues: λ, descending, shape (P,).
        attributes: Head of the table; zero_threshold is used.

    Returns:
        The table `evolution_drops`.
    """
    zero = float(attributes["zero_threshold"])
    rows = [drop(before, after, np.asarray(eigenvalues, dtype=np.float64), zero) for before, after in pairs]
    return Table(EVOLUTION_DROPS, columns_of(rows, EVOLUTION_DROPS.all_columns()), dict(attributes))


def drop(before: Side, after: Side, eigenvalues: np.ndarray, zero: float) -> dict[str, Any]:
    """By how much less fluctuations add to the loss after a decrease than before.

    Of the directions both of whose windows have `LEAST_BLOCKS` blocks of two relaxation times: each then has come to
    rest on either side, and an interval.

    Args:
        before: The window that ends at the decrease.
        after: The one that begins there.
        eigenvalues: λ, shape (P,).
        zero: Numerical zero of λ.

    Returns:
        Values of the columns of `evolution_drops`.
    """
    curvature = eigenvalues + before.model.weight_decay
    shown = np.abs(eigenvalues) > zero
    for one in (before, after):
        rule = one.model.rule
        enough = 2 * LEAST_BLOCKS * rule.relaxation(curvature) <= one.model.steps
        shown &= rule.is_stable(curvature) & enough & (one.model.steps >= BLOCKS)
    which = np.flatnonzero(shown)
    told = len(which) > 0 and all(one.steady and len(one.noise) >= NOISE_ITERATES for one in (before, after))
    high, low = (_energy(one, curvature, which) for one in (before, after))
    loss, loss_half = _difference(*(_mean(one, curvature[which]) for one in (before, after)))
    measured, half = high.measured - low.measured, math.hypot(high.measured_half, low.measured_half)
    model, model_half = high.expected - low.expected, math.hypot(high.expected_half, low.expected_half)
    return {
        "decrease": before.window.last,
        "rate_before": before.model.rule.rate,
        "rate_after": after.model.rule.rate,
        "window_before": before.model.steps,
        "window_after": after.model.steps,
        "told": told,
        "count": len(which),
        "lowest": float(curvature[which].min()) if len(which) else math.nan,
        "blocks": min(high.blocks, low.blocks),
        "energy": high.measured,
        **_interval("drop", measured, half),
        **_interval("expected", model, model_half),
        "independent": high.independent - low.independent,
        **_interval("loss", loss, loss_half),
    }


def _interval(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def _blocks(one: Side, curvature: np.ndarray, least: float = 0.0) -> int:
    """Blocks of time of at least two relaxation times, and of some steps."""
    longest = max(2 * float(one.model.rule.relaxation(curvature).max(initial=0)), least)
    return min(BLOCKS, math.floor(one.model.steps / longest) if longest > 0 else BLOCKS)


def _energy(one: Side, curvature: np.ndarray, which: np.ndarray) -> _Energy:
    """½Σλ̃ Var x over some directions."""
    if not len(which):
        return _Energy(*(math.nan,) * 5, 0)
    own, found, noise = curvature[which], of_directions(one.found, which), one.noise[:, which]
    drawn, alone = (own * values / 2 for values in expected(one.model, own, noise.mean(axis=0)))
    count = _blocks(one, own)
    groups = np.array_split(own @ found.blocks / 2, count)
    middle, _, high = student(np.array([group.mean() for group in groups]))
    model = float(drawn.sum())
    return _Energy(
        float(own @ found.variance) / 2,
        high - middle,
        model,
        model * noise_half(drawn, noise) if len(noise) > 1 else math.nan,
        float(alone.sum()),
        count,
    )


def _mean(one: Side, curvature: np.ndarray) -> tuple[float, float]:
    """Mean loss of batches, and half its interval; NaN where there are fewer than `LEAST_BLOCKS` epochs."""
    count = _blocks(one, curvature, one.model.sampling.steps)
    value = float(one.losses.mean())
    if count < LEAST_BLOCKS:
        return value, math.nan
    middle, _, high = student(np.array([group.mean() for group in np.array_split(one.losses, count)]))
    return value, high - middle


def _difference(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return first[0] - second[0], math.hypot(first[1], second[1])
