"""What every long stage is doing: progress, rate and time left, from its manifest, its lock and its events.

Nothing here writes, takes a lock or reads an array, so it can be asked at any time, from any machine that sees the
files. Torn or missing files make the answer poorer, never an error.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quadscape.amounts import format_bytes, format_seconds
from quadscape.errors import StoreError
from quadscape.stage.events import read_events
from quadscape.stage.files import PURGED
from quadscape.stage.finished import finished_manifest
from quadscape.stage.lock import REMIND_SECONDS, STALE_SECONDS, present_owner, process_is_alive
from quadscape.stage.superseded import is_superseded

State = Literal[
    "complete", "purged", "superseded", "running", "suspended", "waiting", "queued", "starting", "stopped", "failed"
]
AT_WORK: frozenset[State] = frozenset({"running", "suspended", "waiting", "queued", "starting"})

_RATE_UNITS = 20
_BAR = 20


@dataclass(frozen=True)
class StageStatus:
    """What is known of a stage from outside.

    Attributes:
        directory: The stage's directory.
        name: Kind of stage, for example `hessian`; the directory's name when it cannot be told.
        state: complete; purged (complete, but its large arrays were removed since); superseded (complete, but set
            aside when other parameters were asked for); running (its owner lives); suspended (it lives, and was
            stopped); waiting (its owner is gone and another process is about to take over); queued and starting (SLURM
            will start its last job again, or has, and it imports yet); failed (the last attempt ended with an error);
            stopped (not begun, killed or interrupted).
        done: Units that are done.
        total: Units in all, None when it cannot be told.
        rate: Units per second over the last units of the last attempt, None when none was done.
        remaining: Expected seconds until all units are done, None unless it is running.
        elapsed: Seconds of work in all attempts, without those in which they were stopped or already dead.
        attempts: How often work has begun since the stage was last started afresh.
        owner: `host:pid` of the present or last owner; empty when there was none.
        last_error: Message of the last attempt that ended with an error; empty when complete or when none did.
        size_bytes: Size on disk.
        job: Number of the SLURM job that was last at work; empty when there was none.
        waiting: Processes that wait for the owner, in words.
    """

    directory: Path
    name: str
    state: State
    done: int
    total: int | None
    rate: float | None
    remaining: float | None
    elapsed: float
    attempts: int
    owner: str
    last_error: str
    size_bytes: int
    job: str = ""
    waiting: tuple[str, ...] = ()


def directory_size(directory: Path) -> int:
    """Bytes of all files in a directory, as far as they can be seen."""
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):  # swept meanwhile
                total += (Path(folder) / name).stat().st_size
    return total


def _number(entry: dict[str, Any], key: str) -> int | None:
    value = entry.get(key)
    return value if isinstance(value, int) and value >= 0 else None


def _events(directory: Path) -> list[dict[str, Any]]:
    """Events since the stage was last started afresh, without damaged ones."""
    events = [
        entry
        for entry in read_events(directory)
        if isinstance(entry["time"], int | float)
        and isinstance(entry["event"], str)
        and entry["event"] not in {"purge", "returned"}
    ]
    afresh = [index for index, entry in enumerate(events) if entry["event"] == "afresh"]
    return events[afresh[-1] :] if afresh else events


def owner_lives(directory: Path) -> bool:
    """Whether a process is at work in a stage, as far as can be told from here."""
    try:
        owner = present_owner(directory)
        alive = owner.is_alive(directory) if owner is not None else False
        if owner is None or alive is not None:
            return bool(alive)
        beat = (directory / "lock" / str(owner.number) / "owner").stat().st_mtime
    except OSError:
        return False
    return time.time() - beat < STALE_SECONDS


def _waits(entry: dict[str, Any]) -> bool:
    """Whether the process that said that it waits may still be there."""
    if entry["event"] != "wait":
        return False
    if entry.get("host") == socket.gethostname():
        return process_is_alive(entry.get("pid"))
    return bool(time.time() - entry["time"] < 2 * REMIND_SECONDS)


def _waiting(events: list[dict[str, Any]]) -> tuple[str, ...]:
    """Who waits, for whom and since when: the last word of such a process is that it does."""
    last = {(entry.get("host"), entry.get("pid")): entry for entry in events}
    found = []
    for key, entry in last.items():
        if _waits(entry):
            first = min(e["time"] for e in events if e["event"] == "wait" and (e.get("host"), e.get("pid")) == key)
            since = time.strftime("%Y-%m-%d %H:%M", time.localtime(first))
            found.append(f"{key[0]}:{key[1]} waits for {entry.get('owner', 'its turn')} since {since}")
    return tuple(found)


def _state(directory: Path, events: list[dict[str, Any]]) -> State:
    with contextlib.suppress(OSError):
        owner = present_owner(directory)
        if owner is not None and owner.is_stopped(directory):
            return "suspended"
    if owner_lives(directory):
        return "running"
    if not events:
        return "stopped"
    last = events[-1]
    if _waits(last):
        return "waiting"
    interrupted = str(last.get("message", "")).startswith(("KeyboardInterrupt", "SystemExit"))
    return "failed" if last["event"] == "error" and not interrupted else "stopped"


def _seconds(entry: dict[str, Any], key: str) -> float:
    value = entry.get(key)
    return float(value) if isinstance(value, int | float) and value > 0 else 0.0


def _attempts(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Events of each attempt from its start on, without what others say; times without those when it was stopped."""
    starts = [index for index, entry in enumerate(events) if entry["event"] == "start"]
    attempts = []
    for start, stop in zip(starts, [*starts[1:], len(events)], strict=False):
        own, paused = [], 0.0
        who = [events[start].get(key) for key in ("host", "pid")]
        for entry in events[start:stop]:
            if [entry.get(key) for key in ("host", "pid")] == who:
                paused += _seconds(entry, "paused")
                own.append({**entry, "time": entry["time"] - paused, "ended": entry["time"]})
        attempts.append(own)
    return attempts


def _rate(attempt: list[dict[str, Any]]) -> float | None:
    """Units per second over the last units of an attempt, whose first event is its start."""
    times = [attempt[0]["time"], *(entry["time"] for entry in attempt if entry["event"] == "unit")][-_RATE_UNITS - 1 :]
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None


def stage_status(directory: str | Path) -> StageStatus:
    """What a stage is doing.

    Args:
        directory: The stage's directory.

    Returns:
        Its status.
    """
    directory = Path(directory)
    events = _events(directory)
    attempts = _attempts(events)
    state: State = "complete" if (directory / "manifest.json").exists() else "purged"
    try:
        manifest = finished_manifest(directory)
    except StoreError:
        manifest, state = None, _state(directory, events)
    lost = ""
    if manifest is not None and not (directory / "store.zarr").exists():
        manifest, lost = None, "It was finished, but its store is gone: `quadscape repair --yes`."
        state = "running" if owner_lives(directory) else "failed"
    if is_superseded(directory):
        state = "superseded"
    now = time.time()

    name, done, total = directory.name, 0, None
    for entry in events:
        if entry["event"] in {"start", "unit"}:
            name = str(entry.get("stage", name))
            total = _number(entry, "units" if entry["event"] == "start" else "total") or total
            done = _number(entry, "done") or 0
    if manifest is not None:
        name, done, total = manifest["stage"], manifest["units"], manifest["units"]

    elapsed = sum(attempt[-1]["time"] - attempt[0]["time"] for attempt in attempts)
    rates = [rate for attempt in attempts if (rate := _rate(attempt)) is not None]
    rate = rates[-1] if rates else None
    remaining = None
    if state == "running" and attempts:
        since = max(0.0, now - attempts[-1][-1]["ended"])
        elapsed += since
        if rate is not None and total is not None:
            remaining = max(0.0, (total - done) / rate - since)

    errors = [str(entry.get("message", "")) for entry in events if entry["event"] in {"error", "fenced"}]
    if lost:
        errors, done = [lost], 0
    owner = None
    with contextlib.suppress(OSError):
        owner = present_owner(directory)
    return StageStatus(
        directory=directory,
        name=name,
        state=state,
        done=done,
        total=total,
        rate=rate,
        remaining=remaining,
        elapsed=max(0.0, elapsed),
        attempts=len(attempts),
        owner="" if owner is None else str(owner),
        last_error=errors[-1] if errors and manifest is None else "",
        size_bytes=directory_size(directory),
        job=next((str(entry["job"]) for entry in reversed(events) if "job" in entry and not _waits(entry)), ""),
        waiting=() if manifest is not None else _waiting(events),
    )


def find_stages(root: str | Path, hidden: Callable[[OSError], object] | None = None) -> list[Path]:
    """Directories of long stages, in the order of their paths.

    Args:
        root: Where to look, itself included.
        hidden: Takes the error of every folder that cannot be looked into; None: they are passed over.

    Returns:
        The directories of all stages that have begun, and of results that were set aside.

    Raises:
        StoreError: There is no such directory.
    """
    root = Path(root)
    if not root.is_dir():
        raise StoreError(f"There is no directory {root}; nothing has begun there.")
    found = []
    for folder, subfolders, files in os.walk(root, onerror=hidden):
        if {"manifest.json", PURGED, "journal", "events.jsonl"} & set(files):
            found.append(Path(folder))
            subfolders.clear()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and not name.endswith(".zarr"))
    return found


def _row(status: StageStatus, label: str) -> list[str]:
    share = 0.0 if not status.total else min(1.0, status.done / status.total)
    filled = int(share * _BAR)
    return [
        label,
        status.state,
        "█" * filled + "░" * (_BAR - filled),
        f"{status.done}/{'?' if status.total is None else status.total}",
        "" if status.rate is None else f"{format_seconds(1 / status.rate)}/unit",
        "" if not status.attempts else format_seconds(status.elapsed),
        "" if status.remaining is None else format_seconds(status.remaining),
        format_bytes(status.size_bytes),
        str(status.attempts),
        status.owner if status.state in {"running", "suspended"} else "",
    ]


def format_status(statuses: Sequence[StageStatus]) -> str:
    """A table for people, one line per stage; what went wrong stands below its line.

    Args:
        statuses: The stages.

    Returns:
        The table, without a line break at its end.
    """
    if not statuses:
        return "No long stage has begun here."
    directories = [status.directory for status in statuses]
    parent = Path(os.path.commonpath([directory.parent for directory in directories]))
    labels = [directory.relative_to(parent).as_posix() for directory in directories]
    header = ["stage", "state", "progress", "units", "rate", "worked", "left", "size", "attempts", "owner"]
    rows = [header, *(_row(status, label) for status, label in zip(statuses, labels, strict=True))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            # Numbers to the right, words to the left.
            cell.rjust(width) if 3 <= column <= 8 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        if number:
            lines += [f"    {text}" for text in statuses[number - 1].waiting]
        error = statuses[number - 1].last_error if number else ""
        if error and statuses[number - 1].state in {"failed", "stopped"}:
            lines.append(f"    {' '.join(error.split())}")
    return "\n".join(lines)
