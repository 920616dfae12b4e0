"""The noisy quadratic model against simulation, against dense covariances, and against itself by another way."""

import math
from itertools import product

import numpy as np
import pytest

from quadscape.theory.batches import Sampling
from quadscape.theory.momentum import Momentum
from quadscape.theory.stationary import stationary_variance, structure_function, window_variance
from quadscape.theory.transients import Moments, second_moments
from quadscape.training.batches import Batches

RUNS = 300


def _streams(sampling: Sampling, steps: int, seed: int) -> tuple[np.ndarray, float]:
    """Noise of every step of many runs, by the trainer's own batches, and its c; shape (steps, RUNS)."""
    generator = np.random.default_rng(seed)
    values = generator.standard_t(5, sampling.examples)
    values -= values.mean()
    kind = "reshuffled" if sampling.reshuffled else "independent"
    found = np.empty((steps, RUNS))
    for run in range(RUNS):
        batches = Batches(sampling.examples, sampling.batch, sampling.remainder, 1000 * seed + run, kind)
        phase = int(generator.integers(0, 500))
        found[:, run] = [values[batches.batch(phase + step)].mean() for step in range(steps)]
    return found, float(values.var())


def _simulated(rule: Momentum, noise: np.ndarray, curvature: np.ndarray, start: float = 0.0) -> np.ndarray:
    """x after every step, shape (steps, RUNS, n)."""
    x = np.full((noise.shape[1], len(curvature)), start)
    v, found = np.zeros_like(x), np.empty((len(noise), *x.shape))
    for step, xi in enumerate(noise):
        g = curvature * x + xi[:, None]
        v = rule.momentum * v + g
        x = x - rule.rate * (g + rule.momentum * v if rule.nesterov else v)
        found[step] = x
    return found


def _residual(x: np.ndarray, degree: int) -> np.ndarray:
    """Σ(x − p)²/(T − degree − 1) along the first axis."""
    time = np.linspace(-1, 1, len(x))
    basis = np.linalg.qr(np.stack([time**k for k in range(degree + 1)], axis=1))[0]
    flat = x.reshape(len(x), -1)
    return (np.square(flat - basis @ (basis.T @ flat)).sum(axis=0) / (len(x) - degree - 1)).reshape(x.shape[1:])


def _z(values: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return (values.mean(axis=0) - expected) / (values.std(axis=0, ddof=1) / math.sqrt(len(values)))


SAMPLINGS = [
    Sampling(60, 3),
    Sampling(43, 4),
    Sampling(43, 4, remainder="keep"),
    Sampling(43, 4, remainder="drop"),
    Sampling(11, 6),
    Sampling(10, 7, remainder="keep"),
    Sampling(40, 5, reshuffled=False),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_simulation(sampling: Sampling) -> None:
    """Variance, and the variance about a line of a window, over momentum, Nesterov's and curvature."""
    noise, c = _streams(sampling, 520, seed=3)
    worst = []
    for momentum, nesterov in product((0.0, 0.8), (False, True)):
        rule = Momentum(0.1, momentum, nesterov)
        curvature = rule.limit / rule.rate * np.array([0.02, 0.1, 0.4, 0.85])
        x = _simulated(rule, noise, curvature)[-100:]
        plain = stationary_variance(rule, sampling, curvature, np.full(4, c))
        worst.append(_z(np.square(x).mean(axis=0), plain))
        for steps, degree in ((25, 1), (60, 0)):
            window = window_variance(rule, sampling, curvature, np.full(4, c), steps, degree)
            worst.append(_z(_residual(x[:steps], degree), window))
    assert np.abs(worst).max() < 4.5  # of 48 numbers, not independent


def test_known_numbers() -> None:
    """0.2167 of the variance with replacement at h = 0.01, μ = 0.9, K = 20; and what one direction has by hand."""
    with_replacement = 0.01 * (1.9) / (0.1 * (3.8 - 0.01)) / 10 * 200 / 199  # S²/B for c = 1
    found = stationary_variance(Momentum(0.01, 0.9), Sampling(200, 10), np.array([1.0]), np.ones(1))
    assert found[0] / with_replacement == pytest.approx(0.2167, abs=5e-5)
    # One step of an epoch of two, no momentum, h = 1: x is the noise of the last step alone, of variance S²(1/B − 1/N).
    found = stationary_variance(Momentum(1.0), Sampling(10, 5), np.array([1.0]), np.full(1, 0.9))
    assert found[0] == pytest.approx(0.1, rel=1e-12)
    # Full batches have no noise.
    assert stationary_variance(Momentum(0.1, 0.9), Sampling(10, 10), np.array([1.0]), np.ones(1))[0] == 0.0


def test_remainders_in_flat_directions() -> None:
    """Under `drop` and `keep` an epoch's noise does not sum to zero, and flat directions see what is left."""
    rule, flat = Momentum(0.1, 0.9), np.array([1e-9])
    drop, keep, wrap = (Sampling(43, 4, remainder=rest) for rest in ("drop", "keep", "wrap"))
    alone = stationary_variance(rule, Sampling(43, 4, reshuffled=False), flat, np.ones(1))[0]
    spread = 43 / 42
    for one, left in ((drop, 1 / 4 - 10 / 43), (keep, (10 / 4 + 1 / 3) / 11 - 11 / 43)):
        expected = spread * left / one.variance * alone * (one.variance / (spread * (1 / 4 - 1 / 43)))
        assert stationary_variance(rule, one, flat, np.ones(1))[0] == pytest.approx(expected, rel=1e-5)
    assert stationary_variance(rule, wrap, flat, np.ones(1))[0] < 1e-6 * alone


def _dense(rule: Momentum, sampling: Sampling, curvature: float, steps: int) -> np.ndarray:
    """Covariance of `steps` iterates by the responses to each step of a long past, averaged over all phases."""
    past = 700
    matrix, vector = rule.transition(np.array([curvature]))[0], rule.response
    response = []
    for _ in range(past + steps):
        response.append(vector[0])
        vector = matrix @ vector
    total = past + steps
    rows = np.array([[response[t - j] if j <= t else 0.0 for j in range(total)] for t in range(past, total)])
    period = sampling.examples // math.gcd(sampling.examples, sampling.batch)
    phases = range(period if sampling.remainder == "wrap" else len(sampling.sizes))
    found = np.zeros((steps, steps))
    for phase in phases:
        if sampling.remainder == "wrap":
            sizes = np.full(total, sampling.batch)
            begins = (phase + np.arange(total)) * sampling.batch
        else:
            sizes = np.resize(np.roll(sampling.sizes, -phase), total)
            used = len(sampling.sizes)
            begins = (np.arange(total) + phase) % used * sampling.batch
            begins = begins + (np.arange(total) + phase) // used * sampling.examples
        epochs = np.arange(begins[0] // sampling.examples, (begins[-1] + sampling.batch) // sampling.examples + 1)
        lower, upper = epochs * sampling.examples, (epochs + 1) * sampling.examples
        inside = np.minimum((begins + sizes)[:, None], upper) - np.maximum(begins[:, None], lower)
        shares = np.maximum(inside, 0) / sizes[:, None]
        noise = sampling.spread * (np.diag(1 / sizes) - shares @ shares.T / sampling.examples)
        found += rows @ noise @ rows.T
    return found / len(phases)


@pytest.mark.parametrize("rest", ["wrap", "keep", "drop"])
@pytest.mark.parametrize("rule", [Momentum(0.1, 0.8), Momentum(0.1, 0.8, nesterov=True)], ids=["heavy", "nesterov"])
def test_dense_covariances(rule: Momentum, rest: str) -> None:
    sampling, steps = Sampling(23, 5, remainder=rest), 40
    for curvature in (1.0, 6.0):
        dense, c = _dense(rule, sampling, curvature, steps), np.ones(1)
        at = np.array([curvature])
        assert stationary_variance(rule, sampling, at, c)[0] == pytest.approx(np.trace(dense) / steps, rel=1e-9)
        by_lag = np.array([np.trace(dense, k) / (steps - k) for k in range(steps)])
        found = structure_function(rule, sampling, at, c, steps)[0]
        # Averaged over all phases the covariance depends on the distance of two iterates alone.
        np.testing.assert_allclose(found, by_lag[0] - by_lag, atol=1e-9 * by_lag[0])
        time = np.arange(steps)
        for degree in (0, 1):
            basis = np.linalg.qr(np.stack([time**k for k in range(degree + 1)], axis=1).astype(float))[0]
            expected = (np.trace(dense) - np.trace(basis.T @ dense @ basis)) / (steps - degree - 1)
            assert window_variance(rule, sampling, at, c, steps, degree)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("nesterov", [False, True])
def test_moments_come_to_the_stationary_ones(sampling: Sampling, nesterov: bool) -> None:
    rule, curvature = Momentum(0.1, 0.7, nesterov), np.array([0.5, 3.0, 9.0])
    zero = Moments(np.zeros((3, 2)), np.zeros((3, 2, 2)))
    period = sampling.examples // math.gcd(sampling.examples, sampling.batch)
    period = len(sampling.sizes) if sampling.remainder != "wrap" else period
    steps = 1500 // period * period
    moments = [one.square for one in second_moments([rule] * steps, sampling, curvature, np.ones(3), zero)]
    expected = stationary_variance(rule, sampling, curvature, np.ones(3))
    np.testing.assert_allclose(np.mean(moments[-period:], axis=0), expected, rtol=1e-9)


@pytest.mark.parametrize("sampling", [Sampling(43, 4), Sampling(43, 4, reshuffled=False)], ids=str)
def test_transients(sampling: Sampling) -> None:
    """From a point, over a drop of the rate, step by step."""
    generator = np.random.default_rng(5)
    values = generator.standard_normal(sampling.examples)
    values -= values.mean()
    curvature, runs = np.array([0.5, 4.0]), 4000
    rules = [Momentum(0.2, 0.8)] * 13 + [Momentum(0.02, 0.8)] * 12
    x, v = np.full((runs, 2), 0.3), np.zeros((runs, 2))
    streams = [
        Batches(sampling.examples, sampling.batch, "wrap", run, "reshuffled" if sampling.reshuffled else "independent")
        for run in range(runs)
    ]
    start = Moments(np.array([[0.3, 0.0]] * 2), np.zeros((2, 2, 2)))
    found = second_moments(rules, sampling, curvature, np.full(2, values.var()), start)
    worst = []
    for step, (rule, moments) in enumerate(zip(rules, found, strict=True)):
        xi = np.array([values[stream.batch(step)].mean() for stream in streams])[:, None]
        v = rule.momentum * v + curvature * x + xi
        x = x - rule.rate * v
        worst += [_z(x, moments.mean[:, 0]), _z((x - moments.mean[:, 0]) ** 2, moments.covariance[:, 0, 0])]
    assert np.abs(worst).max() < 4.5


def test_multiplicative_noise() -> None:
    generator = np.random.default_rng(2)
    slopes, curvatures = generator.standard_normal((2, 40))
    slopes -= slopes.mean()
    curvatures += 3 - curvatures.mean()
    sampling, rule = Sampling(40, 2, reshuffled=False), Momentum(0.05, 0.6)
    slopes -= (slopes @ (curvatures - 3)) / np.square(curvatures - 3).sum() * (curvatures - 3)
    x, v = np.zeros(20_000), np.zeros(20_000)
    squares = []
    for step in range(200):
        batch = np.argsort(generator.random((len(x), 40)), axis=1)[:, :2]
        v = rule.momentum * v + curvatures[batch].mean(axis=1) * x + slopes[batch].mean(axis=1)
        x = x - rule.rate * v
        if step >= 100 and step % 20 == 0:
            squares.append(x**2)
    plain = (np.array([3.0]), np.array([slopes.var()]), np.array([curvatures.var()]))
    expected = stationary_variance(rule, sampling, *plain)
    found = np.mean(squares, axis=0)
    assert abs(found.mean() - expected[0]) < 4.5 * found.std() / math.sqrt(len(found))
    assert expected[0] > 1.01 * stationary_variance(rule, sampling, *plain[:2])[0]
    zero = Moments(np.zeros((1, 2)), np.zeros((1, 2, 2)))
    *_, last = second_moments([rule] * 500, sampling, *plain[:2], zero, curvature_variance=plain[2])
    assert last.square[0] == pytest.approx(expected[0], rel=1e-9)
    # More than the pull back to the minimum: the variance grows without end.
    assert math.isinf(stationary_variance(rule, sampling, *plain[:2], np.array([1e4]))[0])
    with pytest.raises(ValueError, match="plateau"):
        stationary_variance(rule, Sampling(40, 2), *plain)
    with pytest.raises(ValueError, match="plateau"):
        next(second_moments([rule], Sampling(40, 2), *plain[:2], zero, curvature_variance=plain[2]))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.97])
def test_roots(momentum: float, nesterov: bool) -> None:
    rule = Momentum(0.05, momentum, nesterov)
    curvature = np.concatenate([[-3.0, 0.0], np.geomspace(1e-9, 1.2 * rule.limit / rule.rate, 200)])
    values = np.linalg.eigvals(rule.transition(curvature))
    largest = np.abs(values).max(axis=1)
    np.testing.assert_allclose(np.abs(rule.roots(curvature)).max(axis=1), largest, rtol=1e-6)
    np.testing.assert_allclose(rule.roots(curvature).sum(axis=1), values.sum(axis=1), atol=1e-6)
    stable = (largest < 1) & (curvature > 0)
    clear = np.abs(largest - 1) > 1e-9
    assert np.array_equal(rule.is_stable(curvature)[clear], stable[clear])
    told = rule.is_stable(curvature) & (largest < 1 - 1e-5)
    np.testing.assert_allclose(rule.relaxation(curvature)[told], -1 / np.log(largest[told]), rtol=1e-4)
    # Flat directions move by η/(1 − μ) times the slope.
    assert rule.relaxation(np.array([1e-9]))[0] == pytest.approx((1 - momentum) / (0.05 * 1e-9), rel=1e-5)
    assert math.isinf(rule.relaxation(np.array([-1.0]))[0])
    if momentum and not nesterov:
        h = 0.05 * curvature
        oscillating = (h > (1 - math.sqrt(momentum)) ** 2 + 1e-9) & (h < (1 + math.sqrt(momentum)) ** 2 - 1e-9)
        expected = np.arccos((1 + momentum - h[oscillating]) / (2 * math.sqrt(momentum)))
        np.testing.assert_allclose(rule.frequency(curvature)[oscillating], expected, rtol=1e-6)
    assert np.all(rule.frequency(curvature)[:20] == 0)


def test_refusals_and_ends() -> None:
    for arguments in ((0.0,), (0.1, 1.0), (0.1, -0.1)):
        with pytest.raises(ValueError, match="must be"):
            Momentum(*arguments)
    for arguments in ((1, 1), (10, 0), (10, 11), (10, 2, True, "crop")):
        with pytest.raises(ValueError, match=r"valid|needed"):
            Sampling(*arguments)
    rule, sampling = Momentum(0.1, 0.9), Sampling(40, 4)
    with pytest.raises(ValueError, match="window of 2"):
        window_variance(rule, sampling, np.ones(1), np.ones(1), 2)
    outside = np.array([-1.0, 0.0, 1.000001 * rule.limit / rule.rate, np.nan])
    assert np.isnan(stationary_variance(rule, sampling, outside, np.ones(4))).all()
    assert np.isnan(window_variance(rule, sampling, outside, np.ones(4), 10)).all()
    assert stationary_variance(rule, sampling, np.empty(0), np.empty(0)).shape == (0,)


def test_flat_directions_keep_their_digits() -> None:
    """A reshuffled flat direction, where all but 1e-6 cancels, in exact arithmetic of fractions."""
    from fractions import Fraction

    rate, mu, curvature, steps = Fraction(1, 100), Fraction(9, 10), Fraction(1, 10**7), 8
    h = rate * curvature
    unit = rate * (1 + mu) / (curvature * (1 - mu) * (2 * (1 + mu) - h))
    lags = [Fraction(0), h / (1 + mu) * unit]
    while len(lags) < steps:
        lags.append((1 + mu - h) * lags[-1] - mu * lags[-2] + h * unit)
    exact = Fraction(80, 79) * Fraction(2, 80) * sum((1 - Fraction(k, steps)) * lags[k] for k in range(1, steps))
    found = stationary_variance(Momentum(0.01, 0.9), Sampling(80, 10), np.array([1e-7]), np.ones(1))
    assert found[0] == pytest.approx(float(exact), rel=1e-10)
