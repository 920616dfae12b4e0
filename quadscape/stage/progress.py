"""How far a stage is and how fast: what its events and its log say while units are computed and stored."""

import time
from collections.abc import Sequence
from typing import Any

from quadscape.amounts import format_seconds
from quadscape.stage.lock import Lock
from quadscape.stage.protocol import Needs

_SILENT_SECONDS = 10.0


class Progress:
    """Of one process's work on a stage.

    A unit's time is that from the end of the one before it to its own: since a unit is computed while the one before it
    is stored, that is the longer of the two, and all of them together are the time at work.

    Attributes:
        latency: Seconds from the beginning to the end of the last unit that was stored.
    """

    def __init__(self, name: str, pending: Sequence[int], total: int, estimate: Needs, lock: Lock) -> None:
        """Begins.

        Args:
            name: Of the stage.
            pending: Units to compute.
            total: Number of all units.
            estimate: What they were expected to need.
            lock: Of the stage.
        """
        self._name, self._pending, self._total, self._estimate, self._lock = name, pending, total, estimate, lock
        self._began = self._said = time.monotonic()
        self._beats = lock.beats()
        # One value, which the committing thread replaces: the number of units that are stored, and since when.
        self._stored = 0, self._began
        self.latency = 0.0

    def stored(self, started: float) -> dict[str, Any]:
        """Takes note that one more unit is stored; called by the committing thread.

        Args:
            started: When its computing began.

        Returns:
            Of its event: `seconds`, `done`, `total`, and `paused` where the process was stopped meanwhile.
        """
        count, before = self._stored
        now, beats = time.monotonic(), self._lock.beats()
        # Stopped meanwhile, which is no work.
        lost = self._lock.paused(self._beats, now - before)
        self._beats, self._stored, self.latency = beats, (count + 1, now), now - started
        return {
            "seconds": round(now - before - lost, 3),
            "done": self._total - len(self._pending) + count + 1,
            "total": self._total,
            **({"paused": round(lost, 3)} if lost else {}),
        }

    def line(self) -> str:
        """A line for the log: every few seconds at most, and once all units are stored; otherwise empty."""
        (count, at), now = self._stored, time.monotonic()
        ended = count == len(self._pending)
        if not count or not (ended or now - self._said > _SILENT_SECONDS):
            return ""
        self._said = now
        done = self._total - len(self._pending) + count
        text = f"{self._name}: {done}/{self._total} units ({done / self._total:.0%}), "
        text += f"{format_seconds((at - self._began) / count)} each, "
        if ended:
            return f"{text}{format_seconds(at - self._began)} in all."
        part, rest = (
            self._estimate.share(units, self._total) for units in (self._pending[:count], self._pending[count:])
        )
        left = max(0.0, (at - self._began) / part * rest - (now - at)) if part else 0.0
        return f"{text}about {format_seconds(left)} left."
