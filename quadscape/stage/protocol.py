"""What a long rule supplies to the protocol of stages, and what it is handed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr

from quadscape.stage.files import remedy
from quadscape.store import ArraySpec, open_store
from quadscape.store import read as read_array

Arrays = Mapping[str, tuple[tuple[slice | int, ...], np.ndarray]]
"""What a unit writes. It is stored while the next unit is computed, so whoever hands it over never changes it again: no
view of a buffer that is used once more."""


@dataclass(frozen=True)
class Needs:
    """What a stage will need.

    Attributes:
        memory_bytes: Peak memory of the process on the host: of a unit at work, while the arrays of the one before it
            are stored.
        disk_bytes: Largest size of the store.
        seconds: Expected time of all units, if it can be told.
        costs: Relative work of each unit, where units differ.
        method: How it will be computed, where there is a choice: part of a sentence for the log.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float | None = None
    costs: Sequence[float] | None = None
    method: str = ""

    def share(self, units: Sequence[int], total: int) -> float:
        """Part of all work that some units are.

        Args:
            units: Which.
            total: Number of all units.

        Returns:
            From 0 to 1.
        """
        if self.costs is None or not sum(self.costs):
            return len(units) / max(1, total)
        return sum(self.costs[unit] for unit in units) / sum(self.costs)


class StageStore:
    """The committed arrays of a stage, for reading."""

    def __init__(self, directory: Path, before_reading: Callable[[str], None] | None = None) -> None:
        """Opens a store.

        Args:
            directory: The stage's.
            before_reading: Is given the name of each array before it is looked at: waits until what this process has
                computed of it is there.
        """
        self.directory = directory
        self._group = open_store(directory / "store.zarr")
        self._before_reading = before_reading

    def array(self, name: str) -> zarr.Array:
        """The array of that name, with all that earlier units wrote to it."""
        if self._before_reading is not None:
            self._before_reading(name)
        member = self._group[name]
        assert isinstance(member, zarr.Array)
        return member

    def read(self, name: str, selection: Any = ...) -> np.ndarray:
        """Reads a part of an array; damage is a `StoreError` that names the stage's directory."""
        return read_array(self.array(name), selection, directory=self.directory, remedy=remedy(self.directory))


class Task(Protocol):
    """What a long rule supplies to the protocol."""

    name: str
    version: int

    def parameters(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON values; not the device."""

    def plan(self) -> dict[str, Any]:
        """The numerics plan (threads, block sizes, …), made once, at the first start; reused ever after."""

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """Layout of the arrays."""

    def units(self, plan: dict[str, Any]) -> int:
        """Number of units, each about a minute of work or less, done in order."""

    def estimate(self, plan: dict[str, Any]) -> Needs:
        """Memory, disk and time."""

    def start(self, plan: dict[str, Any]) -> None:
        """Called once per process before the first unit: threads, device, data."""

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """Values of one unit, by array: a selection that covers whole files, and what it holds, never to be changed.

        The unit before may still be being stored; reading an array that it writes to waits for that.

        Raises:
            DeviceMemoryError: The device's memory does not hold the work; `smaller` is asked for another plan.
        """

    def smaller(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        """The plan with half of its blocks and the same units and arrays; None where they cannot be halved."""

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """JSON values for the manifest, once all units are done; raises when a check of the result fails."""
