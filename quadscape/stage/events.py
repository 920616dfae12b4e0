"""What a stage tells while it is at work: lines of a log, and events of which nothing follows."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Log = Callable[[str], None]


class Events:
    """Appends to events.jsonl; a full disk must not hide the error that it is told of."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "events.jsonl"

    def __call__(self, event: str, **details: Any) -> None:
        """Adds a line."""
        line = {
            "time": round(time.time(), 3),
            "event": event,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **details,
        }
        if "SLURM_JOB_ID" in os.environ:
            line["job"] = os.environ["SLURM_JOB_ID"]
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            # The line break comes first too, so that a line torn by a kill spoils no other.
            file.write("\n" + json.dumps(line) + "\n")


def read_events(directory: Path) -> list[dict[str, Any]]:
    """The events of a stage, oldest first; torn lines are left out.

    Args:
        directory: The stage's directory.

    Returns:
        One mapping per event, with at least `time` and `event`.
    """
    found = []
    try:
        lines = (directory / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "event" in entry and "time" in entry:
                found.append(entry)
    return found


def seconds_taken(directory: Path) -> float | None:
    """Time that the units of a finished stage took, with their beginning and their end, each when it was last computed.

    Args:
        directory: The stage's directory.

    Returns:
        None where the events do not tell.
    """
    units, before, after = dict[Any, float](), 0.0, 0.0
    last, began = 0.0, False
    for entry in read_events(directory):
        kind, now, seconds = entry["event"], entry["time"], entry.get("seconds")
        if not isinstance(now, int | float):
            continue
        if kind == "afresh":
            units.clear()
        elif kind == "start":
            last, began = now, True
        elif kind == "unit" and isinstance(seconds, int | float):
            before = max(0.0, now - seconds - last) if began else before
            units[entry.get("unit")] = seconds
            last, began = now, False
        elif kind == "finish" and not began:
            # An attempt that found everything done tells nothing.
            after = max(0.0, now - last)
    return sum(units.values()) + before + after if units else None
