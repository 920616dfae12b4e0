"""How far members of a family spread along the eigenvectors of the checkpoint at which all of them start.

Of every member the last iterates of the plateau of the learning rate in which it ends are looked at, as `evolution`
looks at those before a checkpoint, and compared with the noisy quadratic model; and two members with each other that
differ in how batches are drawn alone.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from quadscape.measures.costs import NOISE_ITERATES
from quadscape.measures.fluctuations import (
    BLOCKS,
    LEAST_BLOCKS,
    BandRatio,
    Model,
    Statistics,
    Window,
    band_ratio,
    by_chunks,
    coordinates,
    expected,
    is_steady,
    joined,
    model_of,
    noise_at,
    noise_half,
    noise_iterates,
    of_directions,
    statistics,
    told,
    why_not,
    window_at,
    window_iterates,
)
from quadscape.measures.intervals import jackknife, student
from quadscape.measures.job import Job
from quadscape.measures.members import MemberRun, columns_of, family_head, read_members
from quadscape.measures.run_losses import RunLosses
from quadscape.measures.sharpness.iterates import plateaus_of
from quadscape.measures.stationary.bands import band_curvatures, bands_of
from quadscape.measures.stationary.declaration import SAMPLING_RATIO, STATIONARY
from quadscape.tables import Table
from quadscape.theory.stationary import stationary_variance

NOISE, CURVATURE = "noise", "curvature"

CONTINUED = 20
"""Relaxation times for which a run must have gone on at its learning rate for a claim about a direction."""

STEEPER = 4
"""How many times steeper than at the start a direction may be on a plateau, for its curvature there to be looked at."""


class Seen(NamedTuple):
    """A member at its end.

    Attributes:
        run: The member.
        model: Of its steps.
        continued: Steps of the plateau in which it ends, also of those that are not looked at.
        steady: Whether its loss has no spikes; see `is_steady`.
        found: Statistics along all P eigenvectors.
        noise: c at several iterates of the window, shape (n, P).
        bends: Mean of qᵀHq over each band there, shape (n, bands); NaN where it was not looked at.
    """

    run: MemberRun
    model: Model
    continued: int
    steady: bool
    found: Statistics
    noise: np.ndarray
    bends: np.ndarray


class Banded(NamedTuple):
    """A member along the directions of a band.

    Attributes:
        row: Values of the columns of `stationary`.
        found: Statistics of the band's n directions.
        expected: Variance of each by the model, shape (n,).
        noise: c at several iterates, shape (iterates, n).
    """

    row: dict[str, Any]
    found: Statistics
    expected: np.ndarray
    noise: np.ndarray


class Work:
    """Iterates of all members at which their noise is taken, as items of a long measure."""

    def __init__(self, job: Job) -> None:
        self._job, self._members = job, read_members(job)

    @cached_property
    def _losses(self) -> RunLosses:
        # Of the first member's network, which is that of the start and so of all.
        return RunLosses(self._job, ("train",))

    @cached_property
    def windows(self) -> dict[int, Window]:
        """The second half of the steps that are looked at, by place; without members of which nothing is."""
        found = {}
        for member in self._members:
            rates = member.course.learning_rate
            why = why_not(self._job.trajectory(member.place), member.examples)
            whole = window_at(rates, len(rates), self._job.options.iterates)
            if member.diverged >= 0:
                why = f"it diverged at iteration {member.diverged:,}"
            elif whole is None:
                why = why or "its learning rate is not constant for long enough at its end"
            if why or whole is None:
                self._job.log(f"nothing is measured of {member.cell}, seed {member.seed}: {why}")
                continue
            found[member.place] = Window(whole.last + 1 - whole.steps, whole.last, begins=False)
        return found

    @cached_property
    def iterates(self) -> list[np.ndarray]:
        """Where the noise is taken of every member that has a window, in order."""
        # Of the second half of a window all is the second half here.
        return [
            noise_iterates(self._job.trajectory(place), Window(2 * window.first - window.last, window.last, False))
            for place, window in self.windows.items()
        ]

    @property
    def items(self) -> int:
        """Number of iterates at which a noise is taken."""
        return sum(map(len, self.iterates))

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Noise along all eigenvectors, and mean curvature of all bands."""
        return {NOISE: (len(self._job.at_start.basis.eigenvalues),), CURVATURE: (len(self._bands),)}

    @cached_property
    def _bands(self) -> list[np.ndarray]:
        start = self._job.at_start
        given = start.basis_head
        return bands_of(start.basis.eigenvalues, float(given["weight_decay"]), float(given["zero_threshold"]))

    def _model(self, place: int) -> Model:
        member, window = self._members[place], self.windows[place]
        rate = float(member.course.learning_rate[-1])
        return model_of(self._job.trajectory(place), member.examples, rate, window.last - window.first + 1)

    def _bends(self, place: int, iterations: np.ndarray) -> np.ndarray:
        """Mean curvature of bands at iterates, NaN of those that are far too flat to say anything."""
        start, model = self._job.at_start, self._model(place)
        steepest = [STEEPER * (float(start.basis.eigenvalues[band[0]]) + model.weight_decay) for band in self._bands]
        near = np.flatnonzero(told(model, np.array(steepest)) | (np.array(steepest) * model.rule.rate >= 1))
        found, chosen = np.full((len(iterations), len(self._bands)), np.nan), [self._bands[band] for band in near]
        for row, iteration in zip(found, iterations.tolist(), strict=True):
            theta = self._job.trajectory(place).theta(iteration)
            objective = self._losses.objective("train", theta)
            row[near] = band_curvatures(objective, theta, start.basis, chosen, iteration)
        return found

    def _parts(self) -> list[slice]:
        """Items of every member that has a window."""
        ends = [0, *accumulate(map(len, self.iterates))]
        return [slice(a, b) for a, b in pairwise(ends)]

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """Noise at some iterates, divided by N, and curvature."""
        basis, device = self._job.at_start.basis, self._job.device
        first, last, _ = part.indices(self.items)
        noise, bends = [np.empty((0, len(basis.eigenvalues)))], [np.empty((0, len(self._bands)))]
        for place, own, iterations in zip(self.windows, self._parts(), self.iterates, strict=True):
            wanted = iterations[max(0, first - own.start) : max(0, last - own.start)]
            if len(wanted):
                noise.append(noise_at(self._job.trajectory(place), wanted, self._losses, basis, device=device))
                bends.append(self._bends(place, wanted))
        return {NOISE: np.concatenate(noise), CURVATURE: np.concatenate(bends)}

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """Both tables from the noise of all iterates, and the iterates of all members, which are looked at here."""
        basis = self._job.at_start.basis
        seen = []
        for place, part in zip(self.windows, self._parts(), strict=True):
            if part.stop > part.start:
                seen.append(self._seen(self._members[place], values[NOISE][part], values[CURVATURE][part]))
        start = self._job.at_start.basis_head
        head = {**family_head(self._job.family, self._members), "zero_threshold": start["zero_threshold"]}
        head |= {
            "start_run": start["run"],
            "start_iteration": start["iteration"],
            "weight_decay": start["weight_decay"],
        }
        return measure(seen, basis.eigenvalues, head)

    def _seen(self, member: MemberRun, noise: np.ndarray, bends: np.ndarray) -> Seen:
        job, window = self._job, self.windows[member.place]
        trajectory, rates = job.trajectory(member.place), member.course.learning_rate
        model = self._model(member.place)
        job.log(f"{member.cell}, seed {member.seed}: taking up iterations {window.first:,} to {window.last:,}")
        every = window_iterates(trajectory, job.path("data", member.place), window)
        x = coordinates(every, model.steps, job.at_start.checkpoint.theta, job.at_start.basis, device=job.device)
        found = joined([statistics(x[:, part]) for part in by_chunks(x.shape[1])])
        first, last = plateaus_of(rates)[-1]
        losses = member.course.loss[window.first : window.last]
        return Seen(member, model, last - first, is_steady(losses, model.sampling.steps), found, noise, bends)


def compute(job: Job) -> dict[str, Table]:
    """The spread of all members of a family, in one piece.

    Args:
        job: Reads data, trajectories, and checkpoint and eigenbasis of the start.

    Returns:
        The tables of `measure`.
    """
    work = Work(job)
    return work.tables(work.measure(slice(None)))


def measure(seen: Sequence[Seen], eigenvalues: np.ndarray, attributes: Mapping[str, Any]) -> dict[str, Table]:
    """The spread of members along bands of eigenvectors.

    Args:
        seen: Members to which the model applies.
        eigenvalues: λ at the start, descending, shape (P,).
        attributes: Head of the tables; `zero_threshold` and `weight_decay`, of the start, are used.

    Returns:
        Tables `stationary` and `sampling_ratio`.
    """
    bands = bands_of(eigenvalues, float(attributes["weight_decay"]), float(attributes["zero_threshold"]))
    banded = {member.run.place: _banded(member, eigenvalues, bands) for member in seen}
    rows = [band.row for own in banded.values() for band in own]
    pairs = [
        _pair_row(one, other)
        for first, second in pairs_of([member.run for member in seen])
        for one, other in zip(banded[first], banded[second], strict=True)
    ]
    return {
        "stationary": Table(STATIONARY, columns_of(rows, STATIONARY.all_columns()), dict(attributes)),
        "sampling_ratio": Table(SAMPLING_RATIO, columns_of(pairs, SAMPLING_RATIO.all_columns()), dict(attributes)),
    }


def pairs_of(members: Sequence[MemberRun]) -> list[tuple[int, int]]:
    """Places of members that differ in how batches are drawn alone, the one with reshuffled batches first."""

    def alike(member: MemberRun) -> str:
        section = json.loads(member.training.model_dump_json(exclude={"sampling", "remainder"}))
        # Who is drawn independently has no remainder.
        return json.dumps([section, member.seed, member.beside], sort_keys=True)

    independent = {alike(member): member.place for member in members if member.training.sampling == "independent"}
    return [
        (member.place, independent[alike(member)])
        for member in members
        if member.training.sampling == "reshuffled" and alike(member) in independent
    ]


def _banded(member: Seen, eigenvalues: np.ndarray, bands: Sequence[np.ndarray]) -> list[Banded]:
    model, noise = member.model, member.noise.mean(axis=0)
    start, factors = eigenvalues + model.weight_decay, member.bends + model.weight_decay
    curvature = start.copy()
    for inside, bent in zip(bands, factors.mean(axis=0), strict=True):
        if math.isfinite(bent):
            curvature[inside] *= bent / start[inside].mean()
    relaxation = model.rule.relaxation(curvature)
    drawn, alone = expected(model, curvature, noise)
    stationary = stationary_variance(model.rule, model.sampling, curvature, noise)
    clear = told(model, curvature) & (member.continued >= CONTINUED * relaxation)
    enough = member.steady and len(member.noise) >= NOISE_ITERATES
    rows = []
    for number, inside in enumerate(bands):
        found, own = of_directions(member.found, inside), member.noise[:, inside]
        longest, ratio = float(relaxation[inside].max()), BandRatio(math.nan, math.nan, math.nan, 0)
        if math.isfinite(longest):
            ratio = band_ratio(found, drawn[inside], relaxation[inside], model.steps, own)
        factor, bent = member.run.examples * curvature[inside], student(factors[:, number])
        row = {
            **member.run.member,
            "sampling": "reshuffled" if model.sampling.reshuffled else "independent",
            "batch_size": model.sampling.batch,
            "learning_rate": model.rule.rate,
            "window": model.steps,
            "band": number,
            **_curvatures(start[inside]),
            "relaxation": longest,
            **dict(zip(("plateau_curvature", "plateau_curvature_low", "plateau_curvature_high"), bent, strict=True)),
            "told": bool(enough and math.isfinite(bent[0]) and clear[inside].all()),
            "blocks": ratio.blocks,
            "ratio": ratio.value,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "noise": float(noise[inside].mean()),
            "variance": float(found.variance.mean()),
            "expected": float(drawn[inside].mean()),
            "independent": float(alone[inside].mean()),
            "temperature": float((factor * found.variance).mean()),
            "temperature_expected": float((factor * stationary[inside]).mean()),
        }
        rows.append(Banded(row, found, drawn[inside], own))
    return rows


def _curvatures(curvature: np.ndarray) -> dict[str, Any]:
    """What identifies a band; with another weight decay than that of the start some λ̃ of it may not be positive."""
    positive = curvature[curvature > 0]
    return {
        "curvature": float(np.exp(np.log(positive).mean())) if len(positive) else math.nan,
        "lowest": float(curvature.min()),
        "highest": float(curvature.max()),
        "count": len(curvature),
    }


def _pair_row(first: Banded, second: Banded) -> dict[str, Any]:
    """A row of `sampling_ratio`, of the member with reshuffled batches and the other."""
    rows = first.row, second.row
    shared = ("batch_size", "learning_rate", "seed", "band", "curvature", "lowest", "highest", "count")
    blocks = min(row["blocks"] for row in rows)
    value, low, high = variance_ratio(first, second, blocks)
    return {
        "reshuffled": rows[0]["run"],
        "independent": rows[1]["run"],
        **{name: rows[0][name] for name in shared},
        "relaxation": max(row["relaxation"] for row in rows),
        "told": rows[0]["told"] and rows[1]["told"],
        "blocks": blocks,
        "ratio": value,
        "ratio_low": low,
        "ratio_high": high,
        "expected": float(first.expected.sum() / second.expected.sum()),
    }


def variance_ratio(first: Banded, second: Banded, blocks: int) -> tuple[float, float, float]:
    """Ratio of two variances of a band.

    Args:
        first: The one above.
        second: The one below.
        blocks: Into how many blocks of time a window can be cut, `BLOCKS` at most.

    Returns:
        The ratio and its interval, which is of its logarithm; NaN ends below `LEAST_BLOCKS` blocks.
    """
    value = float(first.found.variance.sum() / second.found.variance.sum())
    series = [band.found.blocks.sum(axis=0) for band in (first, second)]
    if blocks < LEAST_BLOCKS or not (value > 0 and np.isfinite(series).all()):
        return value, math.nan, math.nan
    # As in `band_ratio`, neighbouring blocks are put together until each is long enough.
    groups = np.array_split(np.arange(BLOCKS), blocks)
    without = np.array([[np.delete(values, group).mean() for group in groups] for values in series])
    half = jackknife(0.0, np.log(without[0] / without[1]))[1]
    for band in (first, second):
        half = math.hypot(half, noise_half(band.expected, band.noise))
    return value, value * math.exp(-half), value * math.exp(half)
