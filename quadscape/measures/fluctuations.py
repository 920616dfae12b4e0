"""A window of a run along eigenvectors: which model of its steps holds, coordinates of every iterate, and statistics.

Statistics are of the second half of a window, about a straight line, beside what the noisy quadratic model
(`quadscape.theory`) expects of the same statistic.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quadscape.config.sections import SGD
from quadscape.measures.costs import NOISE_ITERATES
from quadscape.measures.interfaces import BasisLike
from quadscape.measures.intervals import student
from quadscape.measures.sharpness.iterates import plateaus_of
from quadscape.measures.slope_noise import noise_along
from quadscape.theory.batches import Sampling
from quadscape.theory.momentum import Momentum
from quadscape.theory.stationary import stationary_variance, structure_function, window_variance

if TYPE_CHECKING:
    from quadscape.measures.run_losses import RunLosses
    from quadscape.training.trajectory import Trajectory

BLOCKS = 20
"""Most blocks of time that a variance is taken of for its interval."""

LEAST_BLOCKS = 10
"""With fewer blocks of at least two relaxation times there is no interval."""

LEAST_RELAXATIONS = 10
"""Relaxation times that a window must have for a claim about the stationary state."""

LEAST_STEPS = 10
"""Steps of the shortest window."""

TURNS = 5
"""Radians that a direction must turn within its relaxation for its frequency to be told."""

_LEAST_GROUPS = 8
"""Groups of steps whose mean losses tell whether there are spikes."""

_CHUNK = 4096
"""Directions whose coordinates are taken up at once."""


@dataclass(frozen=True)
class Model:
    """The noisy quadratic model of a window.

    Attributes:
        rule: The step.
        sampling: How batches are drawn.
        weight_decay: δ.
        steps: Iterates of the window's second half, of which statistics are.
    """

    rule: Momentum
    sampling: Sampling
    weight_decay: float
    steps: int


class Window(NamedTuple):
    """Iterates of one learning rate, each a step after the one before.

    Attributes:
        first: Steps taken before the first.
        last: Steps taken before the last, which is included.
        begins: Whether the learning rate, or the run, begins at the first.
    """

    first: int
    last: int
    begins: bool

    @property
    def steps(self) -> int:
        """Iterates in the second half, of which statistics are."""
        return (self.last - self.first) // 2 + 1


def window_at(rates: np.ndarray, iteration: int, most: int) -> Window | None:
    """The steps of one learning rate up to a checkpoint.

    Args:
        rates: η of every step, shape (T,).
        iteration: Steps taken at the checkpoint.
        most: Steps of the longest window.

    Returns:
        The window; None at the start, and where the rate is not constant for `LEAST_STEPS` steps.
    """
    for first, last in plateaus_of(rates):
        if first < iteration <= last:
            begin = max(first, iteration - most)
            return Window(begin, iteration, begins=begin == first) if iteration - begin >= LEAST_STEPS else None
    return None


def why_not(trajectory: "Trajectory", count: int) -> str:
    """Why the noisy quadratic model does not hold of a run's steps; empty if it does.

    Args:
        trajectory: The run.
        count: N.

    Returns:
        A reason in words.
    """
    training = trajectory.training
    if not isinstance(training.optimizer, SGD):
        return f"its optimizer is {training.optimizer.method}, not sgd"
    if training.clip_norm is not None or training.clip_value is not None:
        return "its gradients are clipped"
    if "step" in trajectory.stage.manifest["parameters"]:
        return "its steps are not along the gradient"
    if training.batch_of(count) >= count:
        return "its batches hold all examples, so that there is no noise"
    return ""


def model_of(trajectory: "Trajectory", count: int, rate: float, steps: int) -> Model:
    """The model of a window.

    Args:
        trajectory: The run; see `why_not`.
        count: N.
        rate: η in the window.
        steps: Iterates of which statistics are.

    Returns:
        The model.
    """
    training = trajectory.training
    sampling = Sampling(count, training.batch_of(count), training.sampling == "reshuffled", training.remainder)
    return Model(Momentum(rate, training.momentum, training.nesterov), sampling, training.weight_decay, steps)


def model_head(model: Model) -> dict[str, Any]:
    """What tables say of a window's model."""
    return {
        "learning_rate": model.rule.rate,
        "momentum": model.rule.momentum,
        "nesterov": model.rule.nesterov,
        "batch_size": model.sampling.batch,
        "sampling": "reshuffled" if model.sampling.reshuffled else "independent",
        "remainder": model.sampling.remainder,
        "epoch": model.sampling.steps,
        "window": model.steps,
    }


def coordinates(
    iterates: Iterable[np.ndarray], count: int, reference: np.ndarray, basis: BasisLike, *, device: Any = "cpu"
) -> np.ndarray:
    """qᵢᵀ(θ_t − θ_ref) of iterates that pass by once, in one pass over the basis where memory allows.

    Args:
        iterates: θ, float64, shape (P,) each.
        count: How many there are.
        reference: θ_ref, shape (P,).
        basis: The eigenvectors.
        device: Device of the products.

    Returns:
        Float64, shape (count, P).
    """
    from quadscape.curvature.projections import project

    coming = iter(iterates)

    def rows(part: slice) -> np.ndarray:
        found = np.empty((part.stop - part.start, len(reference)))
        for row in found:
            np.subtract(next(coming), reference, out=row)
        return found

    found = np.empty((count, len(basis.eigenvalues)))
    for tile in project(rows, count, basis, device=device):
        found[tile.rows, tile.columns] = tile.values.double().cpu().numpy()
    return found


def window_iterates(trajectory: "Trajectory", data: Any, window: Window) -> Iterable[np.ndarray]:
    """θ of all iterates of a window: as they were kept, or by taking the run's steps again, bit by bit."""
    from quadscape.training.replay import replay

    every = range(window.first, window.last + 1)
    if all(map(trajectory.training.is_saved, every)):
        return trajectory.iterates(window.first, window.last)
    return replay(trajectory.stage.directory, data, window.first, window.last)


def noise_iterates(trajectory: "Trajectory", window: Window) -> np.ndarray:
    """Iterations at which the noise of a window is taken: of those kept in its second half, evenly spaced.

    Args:
        trajectory: The run.
        window: The window.

    Returns:
        At most `NOISE_ITERATES`, ascending, int64.
    """
    start = window.last + 1 - window.steps
    kept = np.array([t for t in range(start, window.last + 1) if trajectory.training.is_saved(t)], dtype=np.int64)
    if len(kept) <= NOISE_ITERATES:
        return kept
    return kept[np.rint(np.linspace(0, len(kept) - 1, NOISE_ITERATES)).astype(int)]


def noise_at(
    trajectory: "Trajectory", iterations: np.ndarray, losses: "RunLosses", basis: BasisLike, *, device: Any = "cpu"
) -> np.ndarray:
    """Noise c along all eigenvectors at kept iterates of a run.

    Args:
        trajectory: The run.
        iterations: Of the iterates, shape (n,).
        losses: Of its network, with the training split.
        basis: The eigenvectors.
        device: Device of the products.

    Returns:
        Variances of slopes over examples, divided by N, float64, shape (n, P).
    """
    found, count = np.empty((len(iterations), len(basis.eigenvalues))), losses.counts["train"]
    for row, iteration in zip(found, iterations.tolist(), strict=True):
        theta = trajectory.theta(iteration)
        row[:] = noise_along(basis, losses.objective("train", theta), theta, device=device) * (count - 1) / count
    return found


def is_steady(losses: np.ndarray, epoch: float) -> bool:
    """Whether losses on a plateau have no spikes: means over epochs vary by half their mean or less.

    Losses of single batches would not do: after training, few examples carry most of the loss, and which of them a
    small batch holds says nothing of the run.

    Args:
        losses: Of the batch of every step, shape (T,).
        epoch: Steps of an epoch; shorter groups are taken where there are not `_LEAST_GROUPS` epochs.

    Returns:
        Whether it is steady.
    """
    length = max(1, min(round(epoch), len(losses) // _LEAST_GROUPS))
    groups = losses[len(losses) % length :].reshape(-1, length).mean(axis=1)
    return bool(groups.std() <= groups.mean() / 2)


def by_chunks(size: int) -> list[slice]:
    """Directions some at a time, so that no statistic holds more than a few times their coordinates."""
    return [slice(start, min(size, start + _CHUNK)) for start in range(0, size, _CHUNK)]


class Statistics(NamedTuple):
    """Of coordinates about a straight line.

    Attributes:
        centre: Mean, shape (n,).
        variance: Σ(x − line)²/(T − 2), shape (n,).
        blocks: The same sum over each of `BLOCKS` blocks of time, over their length and scaled alike; NaN columns where
            there are fewer iterates than that. Shape (n, BLOCKS).
        lags: Σ_t r_t r_{t+k}/T of the residuals r for k = 0, 1, 2, shape (3, n).
    """

    centre: np.ndarray
    variance: np.ndarray
    blocks: np.ndarray
    lags: np.ndarray


def joined(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of all directions from those of some after others."""
    centre, variance, blocks = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("centre", "variance", "blocks")
    )
    return Statistics(centre, variance, blocks, np.concatenate([part.lags for part in parts], axis=1))


def of_directions(found: Statistics, which: np.ndarray) -> Statistics:
    """Statistics of some directions."""
    return Statistics(found.centre[which], found.variance[which], found.blocks[which], found.lags[:, which])


def statistics(x: np.ndarray) -> Statistics:
    """Statistics of coordinates.

    Args:
        x: Shape (T, n), T at least 3.

    Returns:
        Float64.
    """
    steps = len(x)
    time = np.arange(steps) - (steps - 1) / 2
    centre = x.mean(axis=0)
    rest = x - centre
    rest -= np.outer(time, time @ rest / (time @ time))
    squares = np.square(rest)
    blocks = np.full((x.shape[1], BLOCKS), np.nan)
    if steps >= BLOCKS:
        edges = np.linspace(0, steps, BLOCKS + 1).astype(int)
        blocks = (np.add.reduceat(squares, edges[:-1], axis=0) / np.diff(edges)[:, None]).T * steps / (steps - 2)
    lags = [(rest[: steps - lag] * rest[lag:]).sum(axis=0) / steps for lag in range(3)]
    return Statistics(centre, squares.sum(axis=0) / (steps - 2), blocks, np.array(lags))


def told(model: Model, curvature: np.ndarray) -> np.ndarray:
    """Where a window says something of the stationary state: ten relaxation times or more.

    Args:
        model: Of the window.
        curvature: λ̃, shape (n,).

    Returns:
        Booleans, shape (n,).
    """
    return model.steps >= LEAST_RELAXATIONS * model.rule.relaxation(curvature)


def expected(model: Model, curvature: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the model expects of `Statistics.variance`.

    Args:
        model: Of the window.
        curvature: λ̃, shape (n,).
        noise: c, mean over the plateau, shape (n,).

    Returns:
        As batches are drawn, and had they been drawn independently; shape (n,) each, NaN where there is no stationary
        state.
    """
    drawn = model.sampling
    alone = Sampling(drawn.examples, drawn.batch, reshuffled=False)
    found = [np.full(len(curvature), np.nan) for _ in range(2)]
    if model.steps > 2:
        for values, sampling in zip(found, (drawn, alone), strict=True):
            values[:] = window_variance(model.rule, sampling, curvature, noise, model.steps)
    return found[0], found[1]


def turning(model: Model, curvature: np.ndarray, noise: np.ndarray, lags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequency and damping of fluctuations, from their autocovariances of lags 0, 1 and 2.

    x_{t+1} = ax_t + bx_{t−1} + e_t, of which products with x_t and x_{t−1} give a and b (Yule and Walker). What e_t,
    the noise of several steps, has in common with these is what the model says of reshuffled batches and of Nesterov's
    momentum; of heavy-ball with independent batches it is nothing.

    Args:
        model: Of the window.
        curvature: λ̃, shape (n,).
        noise: c, shape (n,).
        lags: See `Statistics`.

    Returns:
        ω in radians a step, and |z| of the slower root, shape (n,) each; NaN where the direction does not turn by
        `TURNS` within its relaxation, or the window is too short.
    """
    rule = model.rule
    with np.errstate(invalid="ignore", over="ignore"):
        clear = told(model, curvature) & (rule.frequency(curvature) * rule.relaxation(curvature) >= TURNS)
    found = [np.full(len(curvature), np.nan) for _ in range(2)]
    if clear.any():
        at, c = curvature[clear], noise[clear]
        plain = stationary_variance(rule, model.sampling, at, c) - structure_function(rule, model.sampling, at, c, 3).T
        trace, determinant = rule.trace(at), rule.determinant(at)
        r0, r1, r2 = lags[:, clear]
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = r0 / plain[0]
            y0 = r1 - scale * (plain[1] - trace * plain[0] + determinant * plain[1])
            y1 = r2 - scale * (plain[2] - trace * plain[1] + determinant * plain[0])
            below = r0**2 - r1**2
            a, b = (y0 * r0 - r1 * y1) / below, (r0 * y1 - y0 * r1) / below
            root = a / 2 + np.where(a >= 0, 1, -1) * np.sqrt((a / 2) ** 2 + b + 0j)
        found[0][clear], found[1][clear] = np.abs(np.angle(root)), np.abs(root)
    return found[0], found[1]


class BandRatio(NamedTuple):
    """Measured over expected variance in a band of directions.

    Attributes:
        value: Mean over directions and time.
        low: Lower end of its 95 % interval: over blocks of time and iterates of the noise; NaN without enough blocks.
        high: Upper end.
        blocks: Blocks of time, each of two relaxation times or more.
    """

    value: float
    low: float
    high: float
    blocks: int


def band_ratio(
    found: Statistics, reference: np.ndarray, relaxation: np.ndarray, steps: int, noise: np.ndarray
) -> BandRatio:
    """Measured over expected variance of a band: of sums, as a direction without noise has only rounding.

    Args:
        found: Of the band's n directions.
        reference: Expected variances, shape (n,).
        relaxation: τ, shape (n,).
        steps: Iterates of the window.
        noise: c at several iterates, shape (iterates, n).

    Returns:
        The ratio.
    """
    value = float(found.variance.sum() / reference.sum())
    relative = found.blocks.sum(axis=0) / reference.sum()
    longest = 2 * float(relaxation.max())
    count = min(BLOCKS, math.floor(steps / longest) if longest > 0 else BLOCKS)
    if count < LEAST_BLOCKS or not np.isfinite(relative).all():
        return BandRatio(value, math.nan, math.nan, count)
    # Neighbouring blocks are put together until each is long enough.
    middle, _, high = student(np.array([group.mean() for group in np.array_split(relative, count)]))
    half = math.hypot(high - middle, value * noise_half(reference, noise))
    return BandRatio(value, value - half, value + half, count)


def noise_half(reference: np.ndarray, noise: np.ndarray) -> float:
    """How uncertain what is expected of a band is, as it is in proportion to a mean over iterates.

    Args:
        reference: Expected variances, shape (n,).
        noise: c at several iterates, shape (iterates, n).

    Returns:
        Half the 95 % interval of the sum of the expected variances, over that sum; 0 for one iterate.
    """
    if len(noise) < 2:
        return 0.0
    mean = noise.mean(axis=0)
    weights = np.divide(reference, mean, out=np.zeros_like(mean), where=mean > 0)
    middle, _, high = student(noise @ weights)
    return (high - middle) / middle


def settling_times(
    rule: Momentum, curvature: np.ndarray, x: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """When the envelope |A||z|ᵗ of the way into the minimum has fallen to one stationary standard deviation.

    The noiseless course is fitted by least squares to the first 3τ steps.

    Args:
        rule: The step.
        curvature: λ̃ of stable directions, shape (n,).
        x: Coordinates from the minimum, shape (T + 1, n).
        spread: σ, shape (n,).

    Returns:
        |A| and the settling time in steps, shape (n,) each; the time is 0 where |A| is less than σ.
    """
    trace, determinant = rule.trace(curvature), rule.determinant(curvature)
    relaxation, roots = rule.relaxation(curvature), rule.roots(curvature)
    reach = np.minimum(len(x), np.ceil(3 * relaxation) + 3)
    # Two courses that obey the recursion: one from (1, tr/2), one from (0, 1).
    now = np.stack([np.ones_like(trace), np.zeros_like(trace)])
    coming = np.stack([trace / 2, np.ones_like(trace)])
    square, product = np.zeros((2, 2, len(trace))), np.zeros((2, len(trace)))
    for step in range(int(min(len(x), reach.max(initial=0)))):
        inside = step < reach
        square += now[:, None] * now[None] * inside
        product += now * x[step] * inside
        now, coming = coming, trace * coming - determinant * now
    below = square[0, 0] * square[1, 1] - square[0, 1] ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        first = (product[0] * square[1, 1] - square[0, 1] * product[1]) / below
        second = (square[0, 0] * product[1] - product[0] * square[0, 1]) / below
        # Courses as sums of powers of the roots: (z₁ᵗ + z₂ᵗ)/2 and (z₁ᵗ − z₂ᵗ)/(z₁ − z₂).
        slow = first / 2 + second / (roots[:, 0] - roots[:, 1])
        oscillates = np.abs(roots[:, 0].imag) > 0
        amplitude = np.where(oscillates, 2, 1) * np.abs(slow)
        # Where one step ends it there is one course only.
        amplitude = np.where(np.isfinite(amplitude), amplitude, np.abs(x[0]))
        # A course that the model does not describe leaves nothing of |A|: then its first point tells.
        amplitude = np.where(amplitude > spread, amplitude, np.abs(x[0]))
        settling = np.where(amplitude > spread, relaxation * np.log(amplitude / spread), 0.0)
    return amplitude, settling
