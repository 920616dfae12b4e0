"""Snakemake heads: the processes that decide which job comes next, and what the last one left.

A head is found by its process, on its own machine. For every other one there is its record `.quadscape/head.json`,
which the workflow writes when a head starts and when it ends: a record that says `running` and has no living process
belongs to a head that was killed.
"""

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import psutil

PLACE = Path(".quadscape")
MARK = "QUADSCAPE_HEAD"
"""Environment variable that a controller gives its head, and every process below it: the working directory."""

HeadState = Literal["running", "finished", "failed", "interrupted", "killed", "unknown"]


@dataclass(frozen=True)
class Head:
    """A Snakemake head.

    Attributes:
        host: Machine.
        pid: Process.
        since: Time of its start, in seconds since 1970.
        state: running; finished; failed; interrupted (by Ctrl-C); killed (it left no word); unknown (on another
            machine: running or killed).
        updated: When that state was recorded, in seconds since 1970.
        on_slurm: Whether it sends jobs away; otherwise they run below it.
        controlled: Whether a controller has started it.
        log: Snakemake's log of it; empty when that is not known.
    """

    host: str
    pid: int
    since: float
    state: HeadState
    updated: float
    on_slurm: bool = False
    controlled: bool = False
    log: str = ""

    @property
    def run_name(self) -> str:
        """What all its SLURM jobs are called; empty when that is not known."""
        with contextlib.suppress(OSError):
            found = re.search(r"^SLURM run ID: (\S+)", Path(self.log).read_text(errors="replace"), re.MULTILINE)
            return found[1] if found else ""
        return ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def process_record(place: Path, pid: int) -> dict[str, Any]:
    """What tells a process of this machine from all others.

    Args:
        place: An existing directory that the record belongs to; a copy of it is not deceived.
        pid: The process.

    Returns:
        JSON values that `is_alive` understands.
    """
    # Here and below, since importing the stages loads Zarr, and the workflow's head reads this module at every start.
    from quadscape.stage.lock import process_state, this_machine

    started = (process_state(pid) or ("", None))[1]
    host, inode = socket.gethostname(), place.stat().st_ino
    return {"host": host, "machine": this_machine(), "pid": pid, "started": started, "inode": inode}


def is_alive(record: dict[str, Any], place: Path) -> bool | None:
    """Whether the process of a `process_record` lives; None when this machine cannot tell.

    Args:
        record: The record.
        place: The directory that it was made for.

    Returns:
        Yes, no, or unknown.
    """
    from quadscape.stage.lock import Owner

    try:
        return Owner(0, record, b"").is_alive(place)
    except OSError:
        return False


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a small file; who reads it meanwhile sees the old or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    draft.write_text(json.dumps(value), encoding="utf-8")
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A small file that `write_json` wrote; empty when it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def record_head(state: str, *, on_slurm: bool, logs: Sequence[str]) -> None:
    """Records the start or the end of the head that this process is, in the working directory.

    Args:
        state: `running`, `finished`, `failed` or `interrupted`.
        on_slurm: Whether it sends jobs away.
        logs: Snakemake's logs of it.
    """
    record = {
        "state": state,
        "since": psutil.Process().create_time(),
        "updated": time.time(),
        "on_slurm": on_slurm,
        "controlled": MARK in os.environ,
        "log": str(logs[0]) if logs else "",
    }
    # A head must not fail for want of its record.
    with contextlib.suppress(OSError):
        PLACE.mkdir(exist_ok=True)
        write_json(PLACE / "head.json", record | process_record(PLACE, os.getpid()))


def _nothing_was_left_to_do(root: Path, since: float) -> bool:
    """Whether a head has looked after that time, and found everything done; such a head records nothing."""
    logs = [path for path in (root / ".snakemake/log").glob("*.log") if path.stat().st_mtime > since]
    newest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
    return newest is not None and "\nNothing to be done" in f"\n{newest.read_text(errors='replace')}"


def last_head(root: Path) -> Head | None:
    """The head that last began to run jobs in a working directory.

    Args:
        root: The working directory.

    Returns:
        What is known of it; None when there was none.
    """
    record = read_json(root / PLACE / "head.json")
    pid, since, updated = (record.get(key) for key in ("pid", "since", "updated"))
    if record.get("state") not in {"running", "finished", "failed", "interrupted"} or not isinstance(pid, int):
        return None
    if not isinstance(since, int | float) or not isinstance(updated, int | float):
        return None
    state: HeadState = record["state"]
    if state == "running":
        alive = is_alive(record, root / PLACE)
        state = "running" if alive else "unknown" if alive is None else "killed"
    if state in {"killed", "failed", "interrupted"} and _nothing_was_left_to_do(root, updated):
        state = "finished"
    on_slurm, controlled = record.get("on_slurm") is True, record.get("controlled") is True
    log, host = str(record.get("log", "")), str(record.get("host", "?"))
    return Head(host, pid, float(since), state, float(updated), on_slurm, controlled, log)


def _is_head(words: list[str]) -> bool:
    """Whether a command line is Snakemake's, and neither a job's nor one that runs no jobs."""
    names = [Path(word).name for word in words[:5]]
    if names[:1] != ["snakemake"]:
        if not names or not names[0].startswith("python"):
            return False
        if names[1:2] != ["snakemake"] and ("-m", "snakemake") not in pairwise(names):
            return False
    return not {"--mode", "-n", "--dry-run", "--dryrun", "--unlock"} & set(words)


def find_heads(root: Path) -> list[Head]:
    """Living heads of a working directory on this machine, without the controller's and without this process.

    Args:
        root: The working directory.

    Returns:
        The heads, in the order of their process numbers.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if not _is_head(process.cmdline()) or os.path.realpath(process.cwd()) != os.path.realpath(root):
                continue
            if process.environ().get(MARK) is None:
                since = process.create_time()
                found.append(Head(socket.gethostname(), process.pid, since, "running", since))
        except (psutil.Error, OSError):
            continue
    return found


def kill_leftovers(root: Path) -> int:
    """Kills what a killed controller's head has left on this machine: itself, and jobs that ran below it.

    Jobs in SLURM are not touched: they inherit the mark, but know their own number.

    Args:
        root: The working directory.

    Returns:
        How many processes were killed.
    """
    count = 0
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get(MARK) == str(root) and "SLURM_JOB_ID" not in environment:
                process.kill()
                count += 1
        except (psutil.Error, OSError):
            continue
    return count
