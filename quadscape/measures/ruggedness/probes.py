"""What is computed with the network: losses on lines and in balls, batch gradients, growth of displacements.

Every probe is an item of its own, whose values are a row of numbers that no other item changes: the work can be cut
anywhere, and no random number depends on how it is.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quadscape.measures.interfaces import as_array
from quadscape.measures.line_search.analysis import rounding_floor, scan
from quadscape.measures.ruggedness.declaration import ASCENTS, BATCHES, KINDS, RAMP, RANGE, RATES, STEPS
from quadscape.network.filters import Filters

if TYPE_CHECKING:
    from quadscape.network.objective import Objective

_LINE, _RISE, _WORST, _BATCH, _FLOOR = range(5)  # seeds of what is random
NOISE_HEAD = 4
"""Numbers in front of those of the batches: |g|², |g̃|², gᵀHg and g̃ᵀ(H + δ)g̃."""
OF_BATCH = 4
"""Numbers of each batch: |d|², dᵀHd, |g_b| and |g_b + δθ|, d = g_b − g."""


class Item(NamedTuple):
    """One probe.

    Attributes:
        kind: `line`, `mean`, `worst`, `noise`, `rate` or `ramp`.
        which: Number of the line, of the kind of displacement, or of the rate.
    """

    kind: str
    which: int


class Probes:
    """Probes of one loss around θ.

    Attributes:
        items: All of them, in the order of their rows.
        width: Length of a row.
        batch_size: Examples of the batches whose gradients are compared.
        batches: Number of these.
    """

    def __init__(
        self,
        objective: "Objective",
        theta: np.ndarray,
        leading: np.ndarray,
        largest: float,
        decay: float,
        options: Any,
        epsilon: float,
    ) -> None:
        """Plans the probes.

        Args:
            objective: The training loss.
            theta: θ, shape (P,).
            leading: q₁, the eigenvector of the largest eigenvalue, shape (P,).
            largest: λ₁.
            decay: δ of the training.
            options: directions, points, reach, radius, noise and batch_size.
            epsilon: Machine epsilon of the network's precision.
        """
        self._objective, self._theta, self._options, self._epsilon = objective, as_array(theta), options, epsilon
        self._leading, self._largest, self._decay = as_array(leading), float(largest), decay
        self.batch_size = max(1, min(options.batch_size, objective.count // 4))
        self.batches = min(BATCHES, objective.count // self.batch_size)
        self.items = (
            *(Item("line", number) for number in range(options.directions)),
            *(Item(kind, which) for kind in ("mean", "worst") for which in range(len(KINDS))),
            Item("noise", 0),
            *(Item("rate", number) for number in range(RATES)),
            Item("ramp", 0),
        )
        noise = NOISE_HEAD + self.batches * (OF_BATCH + self.batches)
        self.width = max(options.points + 1, options.directions, noise, 2 * RAMP, 2)

    def values(self, item: Item) -> np.ndarray:
        """The numbers of one probe, NaN behind them; shape (width,)."""
        probes: dict[str, Callable[[int], np.ndarray]] = {
            "line": self._line,
            "mean": self._mean_rises,
            "worst": self._worst_rises,
            "noise": self._noise,
            "rate": self._rate,
            "ramp": self._ramp,
        }
        row = np.full(self.width, np.nan)
        # What overflows far out is no error: it is an infinite rise.
        with np.errstate(over="ignore", invalid="ignore"):
            found = probes[item.kind](item.which)
        row[: len(found)] = found
        return row

    @property
    def places(self) -> np.ndarray:
        """Places t of a line, shape (points,)."""
        side = np.linspace(0.0, self._options.reach, self._options.points // 2 + 1)
        return np.concatenate([-side[:0:-1], side])

    @property
    def rates(self) -> np.ndarray:
        """Learning rates of the range test; without upward curvature there are none to try, and all are NaN."""
        return self._unit_rate * np.geomspace(*RANGE, RATES)

    @property
    def _unit_rate(self) -> float:
        curvature = self._largest + self._decay
        return 2.0 / curvature if curvature > 0 else math.nan

    @cached_property
    def _filters(self) -> Filters:
        return Filters.of(self._objective.layout)

    @cached_property
    def _scales(self) -> dict[str, np.ndarray]:
        """Size of a unit displacement at every index of θ, by kind."""
        filters = self._filters
        return {
            "raw": np.ones(len(self._theta)),
            "filter": filters.spread(filters.norms(self._theta)),
            "element": np.abs(self._theta),
        }

    @cached_property
    def _centre(self) -> np.ndarray:
        return as_array(self._objective.example_losses(self._theta))

    @cached_property
    def _gradient(self) -> np.ndarray:
        return as_array(self._objective.gradient(self._theta))

    @cached_property
    def _floor(self) -> float:
        return rounding_floor(self._objective, self._theta, self._gradient, self._epsilon, _FLOOR)

    def _losses(self, theta: np.ndarray) -> np.ndarray:
        return as_array(self._objective.example_losses(theta))

    def _rise_at(self, displacement: np.ndarray) -> float:
        return float((self._losses(self._theta + displacement) - self._centre).mean())

    def _normal(self, seed: int, number: int) -> np.ndarray:
        return np.random.default_rng([seed, number]).standard_normal(len(self._theta))

    def _line(self, number: int) -> np.ndarray:
        """Rises at all places, then the rounding floor."""
        direction = self._filters.normalised(self._normal(_LINE, number), self._theta)
        rises = scan(self._losses, self._theta, direction, self.places, self._centre)[0]
        return np.append(rises, self._floor)

    def _mean_rises(self, which: int) -> np.ndarray:
        """For every pair of random displacements the mean rise of both."""
        found = []
        for number in range(self._options.directions):
            normal = self._normal(_RISE, number)
            if KINDS[which] == "raw":
                step = normal * float(np.linalg.norm(self._theta) / np.linalg.norm(normal))
            elif KINDS[which] == "filter":
                step = self._filters.normalised(normal, self._theta)
            else:
                step = normal * self._scales["element"]
            step = self._options.noise * step
            found.append((self._rise_at(step) + self._rise_at(-step)) / 2)
        return np.array(found)

    def _worst_rises(self, which: int) -> np.ndarray:
        """The largest rise found in the ball, from the gradient on and from a random direction on."""
        # With d = S u the largest gᵀSu on |u| ≤ ρ is at ρ Sg/|Sg|; going there repeatedly never lowers a convex loss.
        # In u neither start depends on how a network of ReLUs is scaled, as q₁ would.
        scale, radius, found = self._scales[KINDS[which]], self._options.radius, []
        random = np.where(scale > 0, self._normal(_WORST, which), 0.0)
        for start in (scale * self._gradient, random):
            best, slope = -math.inf, start
            for step in range(ASCENTS):
                length = float(np.linalg.norm(slope))
                if not length > 0:
                    break
                displacement = scale * (slope * (radius / length))
                best = max(best, self._rise_at(displacement))
                if step + 1 < ASCENTS:
                    slope = scale * as_array(self._objective.gradient(self._theta + displacement))
            found.append(best if math.isfinite(best) or best > 0 else math.nan)
        return np.array(found)

    def _noise(self, _: int) -> np.ndarray:
        """`NOISE_HEAD` numbers of the whole gradient, `OF_BATCH` of each batch, and the cosines of all pairs."""
        import torch

        objective, theta = self._objective, self._theta
        gradient, count, size = self._gradient, self.batches, self.batch_size
        decayed = gradient + self._decay * theta

        def product(vector: np.ndarray) -> np.ndarray:
            return as_array(objective.hessian_product(theta, vector))

        head = [
            gradient @ gradient,
            decayed @ decayed,
            gradient @ product(gradient),
            decayed @ product(decayed) + self._decay * (decayed @ decayed),
        ]
        order = torch.from_numpy(np.random.default_rng([_BATCH, objective.count]).permutation(objective.count))
        rows, gradients = [], np.empty((count, len(theta)))
        for number in range(count):
            own = as_array(objective.part(order[number * size : (number + 1) * size]).gradient(theta))
            off = own - gradient
            rows += [off @ off, off @ product(off), np.linalg.norm(own), np.linalg.norm(own + self._decay * theta)]
            gradients[number] = own
        lengths = np.linalg.norm(gradients, axis=1)
        with np.errstate(divide="ignore"):
            cosines = (gradients @ gradients.T) / np.outer(lengths, lengths)
        return np.concatenate([head, rows, cosines.ravel()])

    @cached_property
    def _nudge(self) -> float:
        return math.sqrt(self._epsilon) * max(float(np.linalg.norm(self._theta)), 1.0)

    def _slope(self, theta: np.ndarray) -> np.ndarray:
        return as_array(self._objective.gradient(theta)) + self._decay * theta

    def _rate(self, number: int) -> np.ndarray:
        """The rate, and the factor by which a displacement along q₁ grows in one of some steps at that rate."""
        # The difference of two runs, from θ and from θ + s q₁, is free of where both go.
        rate = float(self.rates[number])
        if math.isnan(rate):
            return np.array([rate, math.nan])
        here, beside = self._theta, self._theta + self._nudge * self._leading
        slopes = self._slope(here), self._slope(beside)
        before = abs(float(self._leading @ (slopes[1] - slopes[0])))
        for _ in range(STEPS):
            here, beside = here - rate * slopes[0], beside - rate * slopes[1]
            slopes = self._slope(here), self._slope(beside)
        after = abs(float(self._leading @ (slopes[1] - slopes[0])))
        if not math.isfinite(after):
            return np.array([rate, math.inf])
        return np.array([rate, (after / before) ** (1 / STEPS) if before > 0 else math.nan])

    def _ramp(self, _: int) -> np.ndarray:
        """Rates of a ramp, then the factors by which its steps change a displacement along q₁; NaN once it diverged."""
        # The displacement is taken anew at every step. Followed as one run, the component along q₁ first decays by tens
        # of decades, and is seen again only far beyond the limit.
        rates = self._unit_rate * np.geomspace(0.1, 10.0, RAMP)
        growth, here = np.full(RAMP, np.nan), self._theta
        for step, rate in enumerate(rates):
            slope = self._slope(here)
            beside = self._slope(here + self._nudge * self._leading)
            curvature = float(self._leading @ (beside - slope)) / self._nudge
            if not math.isfinite(rate * curvature):
                break
            growth[step] = abs(1 - rate * curvature)
            here = here - rate * slope
        return np.concatenate([rates, growth])
