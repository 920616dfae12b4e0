"""A run of another length, or with another schedule later on, takes the steps that both have from the earlier result.

That was set aside when the new parameters were asked for. A step follows from the state before it, the learning rate
and the batch alone; so where all else is equal, the units before the first difference are the same bit by bit, and
computing them again would give what is stored.
"""

from pathlib import Path
from typing import Any

import numpy as np

from quadscape.config.sections import Table, Training
from quadscape.errors import QuadscapeError
from quadscape.stage.files import root_attributes
from quadscape.stage.protocol import Arrays, StageStore
from quadscape.stage.superseded import superseded_directory
from quadscape.training.steps import learning_rate
from quadscape.training.trajectory import Trajectory

_SCHEDULED = ("iterations", "learning_rate")
"""Keys of `training` that may differ."""
_STATES = "resume/"
_PACKAGES = ("torch", "numpy")


def first_difference(run: Training, other: Training) -> int:
    """The first step at which two runs of the same parameters part, were they to start alike.

    Args:
        run: The one.
        other: The other.

    Returns:
        Number of steps that have the same learning rate in both; all of the shorter where none has another.
    """
    steps = min(run.iterations, other.iterations)
    if isinstance(run.learning_rate, Table) or isinstance(other.learning_rate, Table):
        return steps if run.learning_rate == other.learning_rate and run.iterations == other.iterations else 0
    for step in range(steps):
        rates = [learning_rate(one.learning_rate, step, one.iterations) for one in (run, other)]
        if rates[0] != rates[1]:
            return step
    return steps


def same_but_schedule(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether parameters of two trainings differ in nothing but length and schedule."""
    trainings = [{k: v for k, v in one["training"].items() if k not in _SCHEDULED} for one in (then, now)]
    others = [{key: value for key, value in one.items() if key != "training"} for one in (then, now)]
    return trainings[0] == trainings[1] and others[0] == others[1]


class Earlier:
    """What lies beside a training, where it was set aside.

    Attributes:
        steps: How many steps of it are those of the present run; 0 where there is none that can be used.
    """

    def __init__(self, directory: Path, run: Training, parameters: dict[str, Any], plan: dict[str, Any]) -> None:
        """Looks what there is.

        Args:
            directory: Of the present stage.
            run: The present run.
            parameters: Its parameters.
            plan: Its numerics plan.
        """
        self.steps, self._run, self._length = 0, run, plan["steps"]
        beside = superseded_directory(directory)
        then, now = root_attributes(beside), root_attributes(directory)
        if then is None or now is None or then["plan"] != plan or not same_but_schedule(then["parameters"], parameters):
            return
        if any(then["versions"].get(name) != now["versions"].get(name) for name in _PACKAGES):
            return
        try:
            self._trajectory = Trajectory.open(beside)
        except QuadscapeError:
            return
        if self._trajectory.diverged is None:
            self.steps = first_difference(run, self._trajectory.training)

    def unit(self, unit: int, store: StageStore) -> Arrays | None:
        """Values of a unit.

        Args:
            unit: Its number.
            store: That of the present run.

        Returns:
            By array, as computing it gives them; None where it must be computed.
        """
        first, stop = unit * self._length, (unit + 1) * self._length
        kept = self._trajectory.training if self.steps else self._run
        # The last row of a run is of no step: it is kept and evaluated in any case.
        if stop > self.steps or stop >= self._run.iterations:
            return None
        if any(self._run.is_saved(step) != kept.is_saved(step) for step in range(first, stop)):
            return None
        found: dict[str, tuple[tuple[slice | int, ...], np.ndarray]] = {}
        states = slice(0 if unit == 0 else unit + 1, unit + 2)
        try:
            for name in _names(store):
                rows = states if name.startswith(_STATES) else slice(first, stop)
                values = np.asarray(self._trajectory.stage.read(name, rows))
                found[name] = ((rows, *(slice(0, length) for length in values.shape[1:])), values)
        except (QuadscapeError, OSError):
            return None
        return found


def _names(store: StageStore) -> list[str]:
    """Arrays of a training."""
    folder = store.directory / "store.zarr"
    found = [path.parent.relative_to(folder).as_posix() for path in folder.rglob("zarr.json")]
    return sorted(name for name in found if name not in {".", _STATES.rstrip("/")})
