"""Variance of SGD over that of the posterior, and how often the ratio crosses 1.

The posterior of the loss NL with prior exp(−Nδ|θ|²/2) has, in a quadratic minimum, variance 1/(Nλ̃) along qᵢ, so that
r = Nλ̃ Var x. With replacement r tends to ηcN/(2B(1 − μ)) as λ̃ → 0 and to infinity at the stability limit; without,
it is in proportion to λ̃ in flat directions. How often it crosses 1 depends on how the noise c grows with λ̃; it is
counted, on c smoothed over bands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quadscape.measures.evolution.declaration import EVOLUTION, EVOLUTION_BANDS
from quadscape.measures.job import Job
from quadscape.measures.members import columns_of
from quadscape.measures.posterior.declaration import CROSSINGS, CURVES, POINTS, POSTERIOR, RATES, REPLICATES
from quadscape.measures.temperature import PRIOR, changes
from quadscape.tables import Table
from quadscape.theory.batches import Sampling
from quadscape.theory.momentum import Momentum
from quadscape.theory.stationary import stationary_variance

_BATCHES = (1, 4, 16, 64, 256)
"""Batch sizes of which crossings are counted, besides the run's own."""

_SEED = 1704


@dataclass(frozen=True)
class Setting:
    """How SGD is run.

    Attributes:
        rule: The step.
        sampling: How batches are drawn.
        own: Whether the run was trained so.
    """

    rule: Momentum
    sampling: Sampling
    own: bool = True

    @property
    def columns(self) -> dict[str, Any]:
        """What tables say of it."""
        return {
            "learning_rate": self.rule.rate,
            "batch_size": self.sampling.batch,
            "sampling": "reshuffled" if self.sampling.reshuffled else "independent",
            "own": self.own,
        }


def compute(job: Job) -> dict[str, Table]:
    """Counts crossings of one checkpoint.

    Args:
        job: Reads the measure evolution.

    Returns:
        The tables of `measure`.
    """
    return measure(job.table("evolution", EVOLUTION), job.table("evolution", EVOLUTION_BANDS))


def measure(ways: Table, bands: Table) -> dict[str, Table]:
    """Counts crossings.

    Args:
        ways: Table `evolution`.
        bands: Table `evolution_bands` of the same checkpoint.

    Returns:
        Tables `posterior`, `posterior_curves` and `posterior_crossings`; empty where there are fewer than two bands.
    """
    head = dict(ways.attributes)
    rows: dict[str, list[dict[str, Any]]] = {"posterior": [], "posterior_curves": [], "posterior_crossings": []}
    if len(bands) > 1:
        own = setting_of(head)
        rows["posterior"] = _band_rows(bands, own, head)
        noise = SmoothNoise(ways, bands)
        for setting in (own, *others(own, float(bands["highest"].max()))):
            curve = noise.curve(setting, head, bands)
            rows["posterior_curves"] += curve.rows()
            rows["posterior_crossings"].append(curve.crossings(rows["posterior"]))
    schemas = (POSTERIOR, CURVES, CROSSINGS)
    return {one.name: Table(one, columns_of(rows[one.name], one.all_columns()), head) for one in schemas}


def setting_of(head: Mapping[str, Any]) -> Setting:
    """The setting that a table of `evolution` says its run was trained in."""
    rule = Momentum(float(head["learning_rate"]), float(head["momentum"]), bool(head["nesterov"]))
    reshuffled = str(head["sampling"]) == "reshuffled"
    return Setting(rule, Sampling(int(head["N"]), int(head["batch_size"]), reshuffled, str(head["remainder"])))


def others(own: Setting, largest: float) -> list[Setting]:
    """Other learning rates, batch sizes and ways of drawing batches.

    Args:
        own: The run's setting.
        largest: Largest λ̃, which must stay stable.

    Returns:
        Settings, by learning rate, batch size and sampling.
    """
    found = []
    sizes = sorted({own.sampling.batch, *(size for size in _BATCHES if size < own.sampling.examples)})
    for factor in RATES:
        rule = replace(own.rule, rate=own.rule.rate * factor)
        if rule.rate * largest >= rule.limit:
            continue
        for size in sizes:
            for reshuffled in (True, False):
                sampling = replace(own.sampling, batch=size, reshuffled=reshuffled)
                if (rule, sampling) != (own.rule, own.sampling):
                    found.append(Setting(rule, sampling, own=False))
    return found


def _band_rows(bands: Table, own: Setting, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """R as measured in every band, and as expected."""
    count, decay = int(head["N"]), float(head["weight_decay"])
    curvature, noise = bands["curvature"], bands["noise"]
    alone = replace(own.sampling, reshuffled=False)
    expected, independent = (
        count * curvature * stationary_variance(own.rule, sampling, curvature, noise)
        for sampling in (own.sampling, alone)
    )
    told = bands["told"] & (bands["lowest"] >= PRIOR * decay)
    return [
        {
            "curvature": float(curvature[row]),
            "count": int(bands["count"][row]),
            "told": bool(told[row]),
            # Measured over expected is that of a window; what is expected without end is in closed form.
            **{f"ratio{end}": float(bands[f"ratio{end}"][row] * expected[row]) for end in ("", "_low", "_high")},
            "expected": float(expected[row]),
            "independent": float(independent[row]),
        }
        for row in range(len(bands))
    ]


class SmoothNoise:
    """Noise as a function of curvature: means of bands and their neighbours, straight between in both logarithms."""

    def __init__(self, ways: Table, bands: Table) -> None:
        """From the directions of each band.

        Args:
            ways: Table `evolution`.
            bands: Table `evolution_bands`.
        """
        generator = np.random.default_rng(_SEED)
        null = np.abs(ways["eigenvalue"]) <= float(ways.attributes["zero_threshold"])
        sums, numbers = [], []
        for row in range(len(bands)):
            inside = (ways["curvature"] >= bands["lowest"][row]) & (ways["curvature"] <= bands["highest"][row])
            values = ways["noise"][inside & (ways["expected"] > 0) & ~null]
            drawn = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=REPLICATES)
            sums.append(np.concatenate([[values.sum()], drawn @ values]))
            numbers.append(float(len(values)))
        kernel = np.array([0.5, 1.0, 0.5])
        # Without the two ends beyond the bands, however few there are.
        weights = np.convolve(numbers, kernel)[1:-1]
        smooth = [np.convolve(column, kernel)[1:-1] / weights for column in np.array(sums).T]
        logs, values = np.log(bands["curvature"]), np.log(np.maximum(smooth, np.finfo(float).tiny))
        # The outer halves of the first and last band go on as the inner ones do.
        steps = logs[[1, -1]] - logs[[0, -2]]
        ends = values[:, [0, -1]] + np.array([-1, 1]) * (values[:, [1, -1]] - values[:, [0, -2]])
        self._logs = np.concatenate([[logs[0] - steps[0]], logs, [logs[-1] + steps[1]]])
        self._values = np.concatenate([ends[:, :1], values, ends[:, 1:]], axis=1)

    def at(self, curvature: np.ndarray) -> np.ndarray:
        """Noise at some curvatures, of all examples and of every replicate, shape (1 + REPLICATES, n)."""
        return np.exp([np.interp(np.log(curvature), self._logs, values) for values in self._values])

    def curve(self, setting: Setting, head: Mapping[str, Any], bands: Table) -> "Curve":
        """R against curvature within the range of which something may be said.

        Args:
            setting: How SGD is run.
            head: N and weight_decay.
            bands: Table `evolution_bands`; of the run's own setting only those that are told are meant.

        Returns:
            The curve, of no point where nothing may be said.
        """
        shown = bands.where(bands["told"]) if setting.own else bands
        low = max(PRIOR * float(head["weight_decay"]), float(shown["lowest"].min()) if len(shown) else np.inf)
        # At the limit itself r is infinite.
        high = min(float(bands["highest"].max()), 0.999 * setting.rule.limit / setting.rule.rate)
        if not low < high:
            return Curve(setting, np.empty(0), np.empty((1 + REPLICATES, 0)))
        curvature = np.geomspace(low, high, POINTS)
        # The variance is in proportion to the noise.
        unit = stationary_variance(setting.rule, setting.sampling, curvature, np.ones(POINTS))
        return Curve(setting, curvature, int(head["N"]) * curvature * unit * self.at(curvature))


@dataclass(frozen=True)
class Curve:
    """r against curvature.

    Attributes:
        setting: How SGD is run.
        curvature: λ̃, ascending, shape (n,).
        ratios: r of all examples, and of every bootstrap replicate, shape (1 + REPLICATES, n).
    """

    setting: Setting
    curvature: np.ndarray
    ratios: np.ndarray

    def rows(self) -> list[dict[str, Any]]:
        """Rows of `posterior_curves`."""
        if not len(self.curvature):
            return []
        low, high = np.quantile(self.ratios[1:], [0.025, 0.975], axis=0)
        return [
            {
                **self.setting.columns,
                "curvature": float(curvature),
                "ratio": float(self.ratios[0, place]),
                "ratio_low": float(low[place]),
                "ratio_high": float(high[place]),
            }
            for place, curvature in enumerate(self.curvature)
        ]

    def crossings(self, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The row of `posterior_crossings`.

        Args:
            measured: Rows of `posterior`.

        Returns:
            Its columns.
        """
        at = crossings(self.curvature, self.ratios[0])
        counts = [len(crossings(self.curvature, ratio)) for ratio in self.ratios[1:]]
        told = [row for row in measured if row["told"]]
        bands = np.array([[row["ratio"], row["ratio_low"], row["ratio_high"]] for row in told]).reshape(-1, 3)
        sure = bands[(bands[:, 1] > 1) | (bands[:, 2] < 1)]
        ends = self.ratios[0, [0, -1]] if len(self.curvature) else np.full(2, np.nan)
        return {
            **self.setting.columns,
            "lowest": float(self.curvature[0]) if len(self.curvature) else np.nan,
            "highest": float(self.curvature[-1]) if len(self.curvature) else np.nan,
            "predicted": len(at),
            "predicted_least": int(np.quantile(counts, 0.025, method="lower")),
            "predicted_most": int(np.quantile(counts, 0.975, method="higher")),
            "first": float(at[0]) if len(at) else np.nan,
            "last": float(at[-1]) if len(at) else np.nan,
            "measured": changes(bands[:, 0]) if self.setting.own else -1,
            "measured_sure": changes(sure[:, 0]) if self.setting.own else -1,
            "low_side": float(ends[0]),
            "high_side": float(ends[1]),
        }


def crossings(curvature: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Where a curve crosses 1, straight between its points in both logarithms.

    Args:
        curvature: Ascending, shape (n,).
        ratio: Positive, shape (n,).

    Returns:
        Curvatures, ascending.
    """
    if not len(curvature):
        return np.empty(0)
    logs, x = np.log(ratio), np.log(curvature)
    places = np.flatnonzero((logs[:-1] > 0) != (logs[1:] > 0))
    part = logs[places] / (logs[places] - logs[places + 1])
    return np.exp(x[places] + part * (x[places + 1] - x[places]))
