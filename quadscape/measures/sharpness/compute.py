"""The largest eigenvalue at many iterates of a run, beside the limit of stability and what single batches see.

One item is a chain of `CHAIN` consecutive iterates. The first of a chain begins at random vectors whose seed is its
iteration, each other one at the eigenvectors of the one before: no number depends on any other chain, so that the work
can be cut and taken up again anywhere.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.measures.curves.compute import find_drops
from quadscape.measures.job import Job
from quadscape.measures.members import columns_of
from quadscape.measures.run_losses import RunLosses, run_head
from quadscape.measures.sharpness.batches import batch_curvatures, batch_sharpness, drawn_batches
from quadscape.measures.sharpness.declaration import BUDGET, CHAIN, PLATEAUS, SHARPNESS, STATES
from quadscape.measures.sharpness.iterates import chosen_iterates, plateaus_of
from quadscape.measures.sharpness.plateaus import plateau_row
from quadscape.tables import Table
from quadscape.theory.momentum import Momentum

if TYPE_CHECKING:
    from quadscape.config.sections import Training
    from quadscape.network.objective import Objective

NUMBERS = (
    "state",
    "largest",
    "residual",
    "second",
    "smallest",
    "products",
    "loss",
    "batch_sharpness",
    "batch_sharpness_low",
    "batch_sharpness_high",
    "mean_ratio",
    "mean_ratio_low",
    "mean_ratio_high",
    "norm",
)
"""What is stored of an iterate: `state`, its place in `STATES`; `norm`, the squared norm of scale-invariant weights."""

_SEED = 0x5A49

_FLOAT_TOLERANCE = 100
"""Smallest residual, in units of the network's rounding times the largest |λ|, that is asked for."""


class Work:
    """Chains of iterates as items of a long measure."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._trajectory = job.trajectory()

    @cached_property
    def _losses(self) -> RunLosses:
        return RunLosses(self._job, ("train",))

    @cached_property
    def _iterations(self) -> np.ndarray:
        """Iterates of the run up to where it diverged."""
        kept, diverged = self._trajectory.saved, self._trajectory.diverged
        kept = kept if diverged is None else kept[kept < diverged]
        drops = find_drops(self._job.course.learning_rate).tolist()
        return chosen_iterates(kept, drops, self._job.options.iterates)

    @cached_property
    def _invariant(self) -> np.ndarray:
        """Whether each entry of θ belongs to a group of weights whose scale changes nothing, shape (P,)."""
        start = self._trajectory.theta(int(self._iterations[0]))
        return scale_invariant(self._losses.objective("train", start), start)

    @property
    def items(self) -> int:
        """Number of chains."""
        return -(-len(self._iterations) // CHAIN)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Shape of the numbers of each chain."""
        return {"values": (CHAIN, len(NUMBERS))}

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """Some of the chains; NaN where the last one is shorter."""
        found = np.full((part.stop - part.start, CHAIN, len(NUMBERS)), np.nan)
        for place, item in enumerate(range(part.start, part.stop)):
            near = None
            for row, iteration in enumerate(self._iterations[item * CHAIN : (item + 1) * CHAIN].tolist()):
                theta = self._trajectory.theta(iteration)
                values, near = iterate_values(
                    self._losses.objective("train", theta),
                    theta,
                    self._trajectory.training,
                    self._job.options.batches,
                    iteration,
                    near,
                    self._job.epsilon,
                )
                values["norm"] = float(np.square(theta[self._invariant]).sum())
                found[place, row] = [values[name] for name in NUMBERS]
        return {"values": found}

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """The tables from all chains."""
        job, trajectory, iterations = self._job, self._trajectory, self._iterations
        head = run_head(job, trajectory, self._losses.counts["train"], self._losses.batch_norm)
        head |= _setting(trajectory.training, head["N"], {**trajectory.stage.manifest["parameters"]})
        head |= {"batches": 1 if head["batch_size"] >= head["N"] else job.options.batches}
        rows = values["values"].reshape(-1, len(NUMBERS))[: len(iterations)]
        return tabulate(iterations, dict(zip(NUMBERS, rows.T, strict=True)), job.course.learning_rate, head)


def compute(job: Job) -> dict[str, Table]:
    """The largest eigenvalues of one run, in one piece.

    Args:
        job: Reads data and trajectory.

    Returns:
        The tables of `tabulate`.
    """
    work = Work(job)
    return work.tables(work.measure(slice(0, work.items)))


def iterate_values(
    objective: "Objective",
    theta: np.ndarray,
    training: "Training",
    batches: int,
    iteration: int,
    near: np.ndarray | None,
    epsilon: float,
) -> tuple[dict[str, float], np.ndarray | None]:
    """What is computed with the network at one iterate.

    Args:
        objective: The training loss.
        theta: θ, float64, shape (P,).
        training: The run's section.
        batches: How many batches are drawn.
        iteration: Steps taken, from which seeds follow.
        near: What the eigenvalue before left to begin with; None: nothing.
        epsilon: Machine epsilon of the network's precision.

    Returns:
        `NUMBERS` but for the norm, and what the next eigenvalue may begin with.
    """
    from quadscape.curvature.block_lanczos import TOLERANCE, leading_eigenpair
    from quadscape.curvature.matrix_free import CurvatureOperator

    tolerance = max(TOLERANCE, _FLOAT_TOLERANCE * epsilon)
    seed = [_SEED, iteration]
    found = leading_eigenpair(
        CurvatureOperator(objective, theta), budget=BUDGET, near=near, seed=seed, tolerance=tolerance
    )
    decay = training.rule()["weight_decay"]
    drawn = drawn_batches(training, objective.count, batches, iteration)
    seen = batch_sharpness(batch_curvatures(objective, theta, decay, drawn))
    values = {
        "state": float(STATES.index(found.state)),
        "largest": found.eigenvalue,
        "residual": found.residual,
        "second": found.second,
        "smallest": found.smallest,
        "products": float(found.products),
        "loss": objective.loss(theta),
    }
    for name, numbers in (("batch_sharpness", seen.ratio), ("mean_ratio", seen.mean)):
        values |= dict(zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True))
    return values, found.near


def scale_invariant(objective: "Objective", theta: np.ndarray) -> np.ndarray:
    """Which weights belong to a group u of which L(su) = L(u) for all s > 0.

    Args:
        objective: The loss.
        theta: θ, shape (P,).

    Returns:
        Shape (P,), bool. Rescalings of one layer against another, as around a ReLU, leave no norm invariant and do not
        count.
    """
    from quadscape.curvature.invariances import find_generators

    exponents = find_generators(objective, theta)[0].exponents
    alone = np.flatnonzero(np.asarray(exponents.min(axis=0).todense()).ravel() >= 0)
    return np.asarray((exponents[:, alone] > 0).sum(axis=1)).ravel() > 0


def _setting(training: "Training", count: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """What of the rule of a step the limits follow from, and why there is none."""
    rule = training.rule()
    found: dict[str, Any] = {
        "weight_decay": rule["weight_decay"],
        "batch_size": training.batch_of(count),
        "sampling": training.sampling,
        "remainder": training.remainder,
    }
    if rule["momentum"] is not None:
        found |= {"momentum": rule["momentum"], "nesterov": training.nesterov}
    why = ""
    if rule["momentum"] is None:
        why = f"{training.optimizer.method} scales every parameter's step by itself"
    elif "step" in given:
        why = "steps are not along the gradient"
    elif training.clip_norm is not None or training.clip_value is not None:
        why = "gradients are clipped"
    return found | {"no_limit": why}


def limits(rates: np.ndarray, head: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Curvatures that stability allows.

    Args:
        rates: η, shape (n,).
        head: momentum and nesterov where the method has them, and no_limit, why none applies.

    Returns:
        limit, plain_limit and noisy_limit, as `sharpness` has them.
    """
    nothing = np.full(len(rates), np.nan)
    with np.errstate(divide="ignore"):
        found = {"limit": nothing, "plain_limit": 2 / rates, "noisy_limit": nothing}
        if head["no_limit"]:
            return found
        momentum, nesterov = float(head["momentum"]), bool(head["nesterov"])
        found["limit"] = Momentum(1.0, momentum, nesterov).limit / rates
        if not nesterov:
            found["noisy_limit"] = 2 * (1 - momentum) / rates
    return found


def tabulate(
    iterations: np.ndarray, numbers: Mapping[str, np.ndarray], learning_rate: np.ndarray, head: Mapping[str, Any]
) -> dict[str, Table]:
    """The tables of one run.

    Args:
        iterations: Steps taken, ascending, shape (n,).
        numbers: `NUMBERS` at these, shape (n,) each.
        learning_rate: η of every step of the run; not finite where it had diverged.
        head: Attributes.

    Returns:
        Tables `sharpness` and `sharpness_plateaus`. Attributes besides those of the run: no_limit, why no stability
        limit applies (empty: one does), and batches.
    """
    steps = np.asarray(iterations, dtype=np.int64)
    rates = np.asarray(learning_rate, dtype=np.float64)
    rates = rates[np.isfinite(rates)]
    before = rates[np.clip(steps - 1, 0, len(rates) - 1)] if len(rates) else np.full(len(steps), math.nan)
    norm = np.asarray(numbers["norm"])
    columns: dict[str, Any] = {
        **{name: np.asarray(numbers[name], dtype=np.float64) for name in NUMBERS if name not in {"state", "norm"}},
        "iteration": steps,
        "state": np.array([STATES[int(state)] for state in numbers["state"]], dtype=np.str_),
        "products": np.asarray(numbers["products"]).astype(np.int64),
        "learning_rate": before,
        **limits(before, head),
        "scaled": np.where(norm > 0, norm * numbers["largest"], math.nan),
    }
    table = Table(SHARPNESS, {name: columns[name] for name in SHARPNESS.all_columns()}, head)
    ratio = (columns["largest"] + float(head["weight_decay"])) / columns["limit"]
    rows = [
        plateau_row(columns | {"limit_ratio": ratio}, first, last, float(rates[first]))
        for first, last in plateaus_of(rates)
        if np.count_nonzero((steps > first) & (steps <= last)) > 1
    ]
    return {
        "sharpness": table,
        "sharpness_plateaus": Table(PLATEAUS, columns_of(rows, PLATEAUS.all_columns()), head),
    }
