"""Members that start at one checkpoint, simulated in bowls."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from family_cases import course, training
from test_measure_evolution import simulated

from quadscape.measures.fluctuations import Model, statistics
from quadscape.measures.members import MemberRun
from quadscape.measures.stationary.bands import bands_of
from quadscape.measures.stationary.compute import Seen, measure
from quadscape.tables import Table
from quadscape.theory.batches import Sampling
from quadscape.theory.momentum import Momentum

RULE = Momentum(0.1, 0.9)
HEAD = {"run": "f", "zero_threshold": 0.0, "weight_decay": 0.0}


def member(place: int, sampling: str, batch: int = 16, **keys: Any) -> MemberRun:
    section = training(sampling=sampling, batch_size=batch, momentum=0.9, **keys)
    losses = np.ones(section.iterations + 1)
    run = course(section, losses, losses, np.ones((section.iterations, 1)))
    return MemberRun(place, f"{sampling} · {batch}", 0, section, run, 9, beside="same")


def seen(place: int, sampling: str, curvature: np.ndarray, steps: int = 4000, batch: int = 16, **keys: Any) -> Seen:
    """A simulated member in the second half of whose steps it is looked at; curvatures in descending order."""
    drawn = Sampling(90, batch, sampling == "reshuffled")
    count = steps // 2 + 1
    x, c = simulated(RULE, drawn, np.clip(np.abs(curvature), 0, 30), steps, start=0.0, seed=7 + place)
    bends = [curvature[band].mean() for band in bands_of(curvature, 0.0, 0.0)]
    given = {"continued": steps, "steady": True, "noise": np.tile(c, (16, 1)), "bends": np.tile(bends, (16, 1))} | keys
    found = statistics(x[len(x) - count :])
    return Seen(member(place, sampling, batch), Model(RULE, drawn, 0.0, count), found=found, **given)


def stationary_tables(
    samplings: Sequence[str] = ("reshuffled", "independent"), batches: Sequence[int] = (16, 4), steady: bool = True
) -> dict[str, Table]:
    """Tables of `stationary` of members in a bowl with some directions that are too flat to be told."""
    curvature = np.repeat(np.geomspace(15.0, 2e-3, 12), 3)
    kinds = [(sampling, batch) for sampling in samplings for batch in batches]
    members = [seen(at, sampling, curvature, 1200, batch, steady=steady) for at, (sampling, batch) in enumerate(kinds)]
    head = {**HEAD, "start_run": "a", "start_iteration": 2000, "N": 90, "P": len(curvature)}
    return measure(members, curvature, head)
