"""Iterates that a run did not keep, trained again from its resume points."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from quadscape.config.sections import Model
from quadscape.data.sets import data_info
from quadscape.errors import ConfigError, StoreError
from quadscape.network.models import factory_code
from quadscape.training.task import TrainingTask
from quadscape.training.trajectory import Trajectory

_MODEL: TypeAdapter[Model] = TypeAdapter(Model)


def replay(trajectory: str | Path, data: str | Path, first: int, stop: int) -> Iterator[np.ndarray]:
    """θ after every number of steps in a range, bitwise as the run had it.

    At most one unit's steps are taken before the range. Nothing is written; a window of stride 1 costs its steps, where
    a run kept with stride 1 costs 8 P bytes for every step of the whole run.

    Args:
        trajectory: Directory or manifest of the run's training stage.
        data: The data store.
        first: First number of steps.
        stop: Last number of steps.

    Yields:
        θ, float64, shape (P,), after first, first + 1, …, stop steps.

    Raises:
        ConfigError: The run has no such iterations.
        StoreError: The run was trained on another data set, or its factory now builds another network.
    """
    run = Trajectory.open(trajectory)
    parameters = run.stage.manifest["parameters"]
    if not 0 <= first <= stop <= run.training.iterations:
        raise ConfigError(
            f"Iterations {first} to {stop} were asked for, but the run in {run.stage.directory} goes from 0 to "
            f"{run.training.iterations}."
        )
    model = _MODEL.validate_json(json.dumps(parameters["model"]), strict=True)
    for what, now, then in (
        ("data set", data_info(data).digest, parameters["data"]),
        ("network", factory_code(model), parameters["model_code"]),
    ):
        if now != then:
            raise StoreError(
                f"The run in {run.stage.directory} was trained with another {what}; only with that it can be replayed."
            )
    # Until units are computed under a smaller plan, which training has none of, the plan is that of the start.
    plan = run.stage.manifest["plan"]
    task = TrainingTask(run.training, parameters["seed"], model, parameters["loss"], data, plan["device"])
    yield from task.iterates(first, stop, plan, run.stage)
