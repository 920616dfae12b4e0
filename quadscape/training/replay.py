"""What a run did not keep, trained again from its resume points: iterates, and states that other runs start from."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from quadscape.config.sections import Model
from quadscape.data.info import data_info
from quadscape.errors import ConfigError, StoreError
from quadscape.network.models import factory_code
from quadscape.store import ArraySpec, write_store
from quadscape.training.start import StartPoint
from quadscape.training.step_rules import StepRule, step_of
from quadscape.training.steps import flat_state
from quadscape.training.task import TrainingTask
from quadscape.training.trajectory import Trajectory

_MODEL: TypeAdapter[Model] = TypeAdapter(Model)


def opened_run(
    trajectory: str | Path, data: str | Path, first: int, stop: int, eigenbasis: str | Path | None = None
) -> tuple[Trajectory, TrainingTask]:
    """A finished run, and the task that takes its steps again.

    Args:
        trajectory: Directory or manifest of the run's training stage.
        data: The data store.
        first: First number of steps that is wanted.
        stop: Last number of steps.
        eigenbasis: Directory or manifest of the eigenbasis by which the run steps, if it does.

    Returns:
        Both.

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
    start = None
    if "start" in parameters:  # its arrays stand in the run's own first resume point
        start = StartPoint(parameters["start"], np.zeros(0), {}, np.zeros(0))
    device, step = run.stage.manifest["plan"]["device"], _step(run, data, eigenbasis)
    task = TrainingTask(run.training, parameters["seed"], model, parameters["loss"], data, device, start, step)
    return run, task


def _step(run: Trajectory, data: str | Path, eigenbasis: str | Path | None) -> StepRule | None:
    """The step that a run was trained with."""
    then = run.stage.manifest["parameters"].get("step")
    rule = None if then is None else {key: value for key, value in then.items() if key != "digest"}
    step = step_of(run.training, rule, eigenbasis, data)
    if step is not None and dict(step.parameters) != then:
        raise StoreError(
            f"The run in {run.stage.directory} was trained with another eigenbasis than {eigenbasis}; only with that "
            "it can be replayed."
        )
    return step


def replay(
    trajectory: str | Path, data: str | Path, first: int, stop: int, eigenbasis: str | Path | None = None
) -> Iterator[np.ndarray]:
    """θ after every number of steps in a range, bitwise as the run had it.

    At most one unit's steps are taken before the range. Nothing is written; a window of stride 1 costs its steps, where
    a run kept with stride 1 costs 8 P bytes for every step of the whole run.

    Args:
        trajectory: Directory or manifest of the run's training stage.
        data: The data store.
        first: First number of steps.
        stop: Last number of steps.
        eigenbasis: Directory or manifest of the eigenbasis by which the run steps, if it does.

    Yields:
        θ, float64, shape (P,), after first, first + 1, …, stop steps.
    """
    run, task = opened_run(trajectory, data, first, stop, eigenbasis)
    # A batch is what the experiment says: training has no smaller plan, so that the plan is that of the start.
    for state in task.states(first, stop, run.stage.manifest["plan"], run.stage):
        yield state.theta.cpu().numpy().copy()


def write_start(
    trajectory: str | Path, data: str | Path, iteration: int, out: str | Path, eigenbasis: str | Path | None = None
) -> None:
    """Writes the state of a run after some steps, trained again from the resume point before them.

    Arrays: `theta`, what the optimizer keeps (`momentum`, …) and `buffers`, float64. Attributes: what the continuation
    must know of the run (`batch_seed`, `batch_position`, `steps`, `method`, `model`, `model_code`, `loss`, `data`), not
    its name or length: another length of the run leaves the start point as it is, bit by bit.

    Args:
        trajectory: Directory or manifest of the run's training stage.
        data: The data store.
        iteration: Number of steps.
        out: Directory of the start point; what was there is replaced.
        eigenbasis: Directory or manifest of the eigenbasis by which the run steps, if it does.
    """
    run, task = opened_run(trajectory, data, iteration, iteration, eigenbasis)
    parameters = run.stage.manifest["parameters"]
    (state,) = task.states(iteration, iteration, run.stage.manifest["plan"], run.stage)
    stream = task.stream
    attributes = {
        "batch_seed": stream.seed,
        "batch_position": stream.position + iteration,
        "steps": stream.steps + iteration,
        "method": run.training.optimizer.method,
        **{key: parameters[key] for key in ("model", "model_code", "loss", "data")},
    }
    arrays = [
        (ArraySpec(name, values.shape, "float64", (f"{name}_element",), values.shape), values)
        for name, values in flat_state(state).items()
    ]
    write_store(out, arrays, attributes)
