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
