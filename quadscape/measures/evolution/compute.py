"""The way of a run along all eigenvectors of a checkpoint, in the plateau of the learning rate that ends there.

xᵢ(t) = qᵢᵀ(θ_t − θ) of every step; kept iterates are read, others made again by taking the steps again. Its second half
is compared with the noisy quadratic model, with the mean noise of the plateau, which holds all multiplicative noise.
"""

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import stdtrit

from quadscape.measures.costs import NOISE_ITERATES
from quadscape.measures.evolution.declaration import BANDS, EVOLUTION, EVOLUTION_BANDS, EVOLUTION_DROPS
from quadscape.measures.evolution.drops import Side, adjoining, side, table_of
from quadscape.measures.fluctuations import (
    Model,
    Statistics,
    Window,
    band_ratio,
    by_chunks,
    coordinates,
    expected,
    is_steady,
    joined,
    model_head,
    model_of,
    noise_at,
    noise_iterates,
    of_directions,
    settling_times,
    statistics,
    told,
    turning,
    why_not,
    window_at,
    window_iterates,
)
from quadscape.measures.job import Job
from quadscape.measures.members import columns_of
from quadscape.measures.ranks import direction_rows, indices_by_band
from quadscape.measures.run_losses import RunLosses
from quadscape.tables import Table
from quadscape.theory.stationary import stationary_variance

NOISE = "noise"

_OUT = 3.0
"""Standard deviations below which a direction was never out."""

_SEGMENT = 5.0
"""Relaxation times of a window in which a direction may settle."""


class Work:
    """Iterates of the window at which the noise is taken, as items of a long measure."""

    def __init__(self, job: Job) -> None:
        self._job, self._trajectory = job, job.trajectory()

    @cached_property
    def _losses(self) -> RunLosses:
        return RunLosses(self._job, ("train",))

    @cached_property
    def _count(self) -> int:
        """N."""
        return self._losses.counts["train"]

    @cached_property
    def window(self) -> Window | None:
        """Where the run is looked at; nowhere where the model does not hold of its steps."""
        diverged = self._trajectory.diverged
        rates = self._job.course.learning_rate[:diverged]
        why = why_not(self._trajectory, self._count)
        found = window_at(rates, self._job.iterations[0], self._job.options.iterates)
        if why or found is None:
            self._job.log(f"nothing is measured: {why or 'the learning rate is not constant for long enough'}")
            return None
        return found

    @cached_property
    def drops(self) -> list[tuple[Window, Window]]:
        """Windows before and after the decreases of the learning rate at which the window begins or ends."""
        rates = self._job.course.learning_rate[: self._trajectory.diverged]
        return [] if self.window is None else adjoining(rates, self.window, self._job.options.iterates)

    @cached_property
    def windows(self) -> list[Window]:
        """All windows that are looked at, the checkpoint's own first."""
        others = [one for pair in self.drops for one in pair if one != self.window]
        return [] if self.window is None else [self.window, *others]

    @cached_property
    def _noises(self) -> list[np.ndarray]:
        """Where the noise is taken, by window."""
        return [noise_iterates(self._trajectory, window) for window in self.windows]

    @cached_property
    def iterates(self) -> np.ndarray:
        """The same, of one window after another."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self._noises])

    @property
    def items(self) -> int:
        """Number of iterates at which the noise is taken."""
        return len(self.iterates)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Noise along all eigenvectors."""
        return {NOISE: (len(self._job.basis.eigenvalues),)}

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """Noise at some iterates, divided by N."""
        found = noise_at(self._trajectory, self.iterates[part], self._losses, self._job.basis, device=self._job.device)
        return {NOISE: found}

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """All tables from the noise of all iterates, and the way of the run, which is looked at here."""
        job, own = self._job, self.window
        edges = np.cumsum([0, *map(len, self._noises)])
        if own is None or not edges[1]:
            return empty(job.basis_head)
        head = {**job.basis_head, "first": own.first, "last": own.last, "begins": own.begins}
        sides: dict[Window, Side] = {}
        found: dict[str, Table] = {}
        for place, window in enumerate(self.windows):
            x, penalties = self._coordinates(window)
            model = self._model(window)
            losses = job.course.loss[window.last + 1 - window.steps : window.last]
            noise = values[NOISE][edges[place] : edges[place + 1]]
            steady = is_steady(losses, model.sampling.steps)
            if window == own:
                head["steady"] = steady
                found = measure(x, job.basis.eigenvalues, noise, model, head)
            if self.drops and len(noise):
                sides[window] = side(x, window, model, noise, losses + penalties[-window.steps : -1], steady=steady)
            del x  # before those of the next window
        pairs = [(sides[a], sides[b]) for a, b in self.drops if a in sides and b in sides]
        return found | {"evolution_drops": table_of(pairs, job.basis.eigenvalues, found["evolution"].attributes)}

    def _model(self, window: Window) -> Model:
        rate = float(self._job.course.learning_rate[window.first])
        return model_of(self._trajectory, self._count, rate, window.steps)

    def _coordinates(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of all iterates of a window, shape (steps + 1, P), and what weight decay adds to their loss."""
        job, penalties = self._job, []
        job.log(
            f"taking up iterations {window.first:,} to {window.last:,} along {len(job.basis.eigenvalues):,} vectors"
        )
        decay = self._trajectory.training.weight_decay

        def passing() -> Iterator[np.ndarray]:
            for theta in window_iterates(self._trajectory, job.path("data"), window):
                penalties.append(decay / 2 * float(theta @ theta))
                yield theta

        count = window.last - window.first + 1
        x = coordinates(passing(), count, job.checkpoint.theta, job.basis, device=job.device)
        return x, np.array(penalties)


def empty(attributes: Mapping[str, Any]) -> dict[str, Table]:
    """All tables of a checkpoint of which nothing can be said."""
    return {
        schema.name: Table(schema, columns_of([], schema.all_columns()), dict(attributes))
        for schema in (EVOLUTION, EVOLUTION_BANDS, EVOLUTION_DROPS)
    }


def compute(job: Job) -> dict[str, Table]:
    """The way of a run up to one checkpoint, in one piece.

    Args:
        job: Reads trajectory, data, checkpoint and eigenbasis.

    Returns:
        The tables of `measure`.
    """
    work = Work(job)
    return work.tables(work.measure(slice(None)) if work.items else {NOISE: np.empty((0, 0))})


def measure(
    x: np.ndarray, eigenvalues: np.ndarray, noise: np.ndarray, model: Model, attributes: Mapping[str, Any]
) -> dict[str, Table]:
    """The way of a run along all eigenvectors.

    Args:
        x: Coordinates of every iterate of the window, shape (T, P).
        eigenvalues: λ, descending, shape (P,).
        noise: c at several iterates of the second half, shape (n, P).
        model: Of the window's steps; its `steps` are those of the second half.
        attributes: Head of the tables; `begins` and `steady` are used: whether the learning rate begins at the first
            iterate, and whether the loss of batches has no spikes.

    Returns:
        Tables `evolution` and `evolution_bands`. Attributes: the model's; noise_iterates; energy and energy_expected,
        ½Σλ̃ Var x over directions that are told.
    """
    eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
    curvature, size = eigenvalues + model.weight_decay, len(eigenvalues)
    columns = {name: np.full(size, np.nan) for name in ("distance", "settling", "turns", "damping", "variance")}
    columns |= dict(zip(("noise", "noise_low", "noise_high"), _noise_interval(noise), strict=True))
    columns["expected"], columns["independent"] = expected(model, curvature, columns["noise"])
    columns["stationary"] = stationary_variance(model.rule, model.sampling, curvature, columns["noise"])
    state, parts = np.full(size, "no minimum", dtype="U16"), []
    for part in by_chunks(size):
        found = statistics(x[len(x) - model.steps :, part])
        parts.append(found)
        columns["variance"][part] = found.variance
        columns["turns"][part], columns["damping"][part] = turning(
            model, curvature[part], columns["noise"][part], found.lags
        )
        columns["distance"][part] = x[0, part] - found.centre
        state[part], columns["settling"][part] = _settled(
            model, curvature[part], x[:, part] - found.centre, np.sqrt(found.variance), bool(attributes["begins"])
        )
    columns["state"] = state
    quiet = ~np.isin(state, ["no minimum", "unstable"]) & ~(columns["settling"] > len(x) - model.steps)
    enough = bool(attributes["steady"]) and len(noise) >= NOISE_ITERATES
    columns["told"] = told(model, curvature) & quiet & enough
    columns |= {"curvature": curvature, "relaxation": model.rule.relaxation(curvature)}
    columns["frequency"] = model.rule.frequency(curvature)
    head = {**attributes, **model_head(model), "noise_iterates": len(noise)}
    shown = columns["told"]
    for name, of in (("energy", "variance"), ("energy_expected", "expected")):
        head[name] = float((curvature[shown] * columns[of][shown]).sum() / 2)
    table = Table(EVOLUTION, {**direction_rows(eigenvalues), **columns}, head)
    return {"evolution": table, "evolution_bands": _banded(table, joined(parts), noise, model)}


def _noise_interval(noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over iterates and its interval, shape (P,) each."""
    mean = noise.mean(axis=0)
    if len(noise) < 2:
        return mean, np.full(len(mean), np.nan), np.full(len(mean), np.nan)
    width = float(stdtrit(len(noise) - 1, 0.975)) * noise.std(axis=0, ddof=1) / math.sqrt(len(noise))
    return mean, mean - width, mean + width


def _settled(
    model: Model, curvature: np.ndarray, x: np.ndarray, spread: np.ndarray, begins: bool
) -> tuple[np.ndarray, np.ndarray]:
    """State and settling time of directions, from coordinates about where they come to rest."""
    state, settling = np.full(len(curvature), "no minimum", dtype="U16"), np.full(len(curvature), np.nan)
    stable = model.rule.is_stable(curvature)
    state[(curvature > 0) & ~stable] = "unstable"
    if not begins:
        state[stable] = "not seen"
        return state, settling
    steps = len(x) - 1
    slow = stable & (_SEGMENT * model.rule.relaxation(curvature) > steps)
    state[slow] = "not settled"
    rest = stable & ~slow
    near = rest & (np.abs(x[0]) < _OUT * spread)
    state[near] = "never out"
    far = rest & ~near
    if far.any():
        _, times = settling_times(model.rule, curvature[far], x[:, far], spread[far])
        inside = times <= steps
        state[far] = np.where(inside, "settled", "not settled")
        settling[far] = np.where(inside, times, np.nan)
    return state, settling


def _banded(table: Table, found: Statistics, noise: np.ndarray, model: Model) -> Table:
    """Bands of positive curvature; without null directions, along which nothing but rounding moves."""
    null = np.abs(table["eigenvalue"]) <= float(table.attributes["zero_threshold"])
    rows: list[dict[str, Any]] = []
    for inside in indices_by_band(table["curvature"], (table["expected"] > 0) & ~null, BANDS):
        shown = inside[table["told"][inside]]
        own = shown if len(shown) else inside
        relaxation, curvature = table["relaxation"][own], table["curvature"][own]
        ratio = band_ratio(of_directions(found, own), table["expected"][own], relaxation, model.steps, noise[:, own])
        means = ("noise", "variance", "expected", "independent")
        rows.append(
            {
                "curvature": float(np.exp(np.log(curvature).mean())),
                "lowest": float(curvature.min()),
                "highest": float(curvature.max()),
                "count": len(own),
                "told": len(shown) > 0,
                "relaxation": float(relaxation.max()),
                "blocks": ratio.blocks,
                "ratio": ratio.value,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                **{name: float(table[name][own].mean()) for name in means},
            }
        )
    return Table(EVOLUTION_BANDS, columns_of(rows, EVOLUTION_BANDS.all_columns()), dict(table.attributes))
