"""Variance of SGD over that of the posterior: planted noise with none, one or two crossings, found and measured."""

import math

import numpy as np
import pytest

from quadscape.measures.evolution.compute import empty
from quadscape.measures.evolution.compute import measure as evolution
from quadscape.measures.fluctuations import Model
from quadscape.measures.posterior.compute import crossings, measure, others, setting_of
from quadscape.tables import Table
from quadscape.theory.batches import Sampling
from quadscape.theory.momentum import Momentum
from quadscape.theory.stationary import stationary_variance

RULE, SAMPLING, DECAY = Momentum(0.05, 0.9), Sampling(1000, 10, reshuffled=False), 1e-3
LIMIT = RULE.limit / RULE.rate


def planted(noise: "np.ndarray", curvature: "np.ndarray", steps: int = 6000, seed: int = 0) -> dict[str, Table]:
    """Tables `evolution` of coordinates with the stationary variance of that noise, and about its relaxation time."""
    generator = np.random.default_rng(seed)
    variance = stationary_variance(RULE, SAMPLING, curvature, noise)
    x, v = np.sqrt(variance) * generator.standard_normal(len(curvature)), np.zeros(len(curvature))
    scale, rows = np.sqrt(SAMPLING.variance * noise), []
    for step in range(steps + 600):
        v = RULE.momentum * v + curvature * x + scale * generator.standard_normal(len(curvature))
        x = x - RULE.rate * v
        if step >= 600:
            rows.append(x)
    head = {"run": "a", "iteration": steps, "N": 1000, "P": len(curvature), "weight_decay": DECAY}
    head |= {"zero_threshold": 1e-12, "begins": False, "steady": True}
    model = Model(RULE, SAMPLING, DECAY, steps // 2)
    return evolution(np.array(rows), curvature - DECAY, np.tile(noise, (16, 1)), model, head)


def curvatures() -> np.ndarray:
    return np.geomspace(0.4 * LIMIT, 0.02, 400)


def ratio_of(noise: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    return 1000 * curvature * stationary_variance(RULE, SAMPLING, curvature, noise)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_planted_crossings(number: int) -> None:
    """c such that r, which is c times a known function, crosses 1 so often."""
    curvature = curvatures()
    place = np.linspace(1, -1, 400)  # in log λ̃, from the top
    wanted = {0: np.full(400, 0.3), 1: np.exp(1.5 * place), 2: np.exp(1.5 * (0.4 - np.abs(place)))}[number]
    noise = wanted / ratio_of(np.ones(400), curvature)
    true = crossings(curvature[::-1], wanted[::-1])
    assert len(true) == number
    tables = measure(**dict(zip(("ways", "bands"), planted(noise, curvature).values(), strict=True)))
    rows = tables["posterior_crossings"]
    own = rows.where(rows["own"])
    assert len(own) == 1
    assert (own["predicted"][0], own["predicted_least"][0], own["predicted_most"][0]) == (number,) * 3
    assert own["measured_sure"][0] == number
    assert own["measured"][0] >= number
    if number:
        assert own["first"][0] == pytest.approx(true[0], rel=0.1)
        assert own["last"][0] == pytest.approx(true[-1], rel=0.1)
    assert own["low_side"][0] == pytest.approx(wanted[-1], rel=0.15)
    assert own["lowest"][0] >= 10 * DECAY
    bands = tables["posterior"]
    assert bands["told"].any()
    covered = (bands["ratio_low"] <= bands["expected"]) & (bands["expected"] <= bands["ratio_high"])
    exact = np.isfinite(bands["ratio_low"])
    assert covered[exact].mean() > 0.7
    curve = tables["posterior_curves"]
    curve = curve.where(curve["own"])
    expected = np.interp(np.log(curve["curvature"]), np.log(curvature[::-1]), wanted[::-1])
    np.testing.assert_allclose(curve["ratio"], expected, rtol=0.25)
    assert (curve["ratio_low"] <= curve["ratio"]).all()


def test_limits_of_small_and_large_curvature() -> None:
    """With constant noise and replacement: ηcN/(2B(1 − μ)) and infinity; one crossing if the first is below 1."""
    head = {"N": 1000, "learning_rate": 0.05, "momentum": 0.9, "nesterov": False, "batch_size": 10}
    head |= {"sampling": "independent", "remainder": "wrap"}
    own = setting_of(head)
    assert (own.rule, own.sampling) == (RULE, SAMPLING)
    small = np.array([1e-7])
    plain = 0.05 * 1000 / (2 * 10 * 0.1) * 1000 / 999 * (1 - 10 / 1000)
    assert ratio_of(np.ones(1), small)[0] == pytest.approx(plain, rel=1e-4)
    near = np.array([0.999999 * LIMIT])
    assert ratio_of(np.ones(1), near)[0] > 1e4 * plain
    grid = np.geomspace(1e-6, 0.9999 * LIMIT, 4000)
    for level, number in ((0.5, 1), (2.0, 0)):
        assert len(crossings(grid, ratio_of(np.full(4000, level / plain), grid))) == number
    found = others(own, LIMIT / 5)
    assert len({(one.rule.rate, one.sampling) for one in found}) == len(found)
    # Ten times the rate would diverge.
    assert sorted({one.rule.rate for one in found}) == pytest.approx([0.005, 0.05])
    assert {one.sampling.batch for one in found} == {1, 4, 10, 16, 64, 256}
    assert not any(one.own for one in found)


def test_crossings_of_points() -> None:
    x = np.array([1.0, 10.0, 100.0, 1000.0])
    np.testing.assert_allclose(crossings(x, np.array([0.1, 10.0, 0.1, 0.1])), [10**0.5, 10**1.5])
    assert not len(crossings(x, np.full(4, 2.0)))
    assert not len(crossings(x[:0], x[:0]))


def test_nothing_to_tell() -> None:
    tables = empty({"run": "a", "iteration": 0, "N": 10, "P": 3, "weight_decay": 0.1, "zero_threshold": 0.0})
    assert all(not len(table) for table in measure(tables["evolution"], tables["evolution_bands"]).values())
    # Too slow for a claim: other settings are still told.
    curvature = curvatures()
    slow = planted(np.full(400, 1e-2), curvature, steps=40)
    rows = measure(*slow.values())["posterior_crossings"]
    own = rows.where(rows["own"])
    assert own["predicted"][0] == 0
    assert math.isnan(own["lowest"][0])
    assert np.isfinite(rows["lowest"][~rows["own"]]).all()
