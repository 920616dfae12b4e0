"""The protocol of long stages: any kill loses at most the current unit, and the same command goes on.

A long rule supplies a `Task`: what determines its result, a numerics plan, arrays, and a pure `compute(unit)`.
`run_stage` does the rest, in one directory:

    manifest.json   written last, byte-identical for equal results: the only output a workflow rule declares
    store.zarr/     the arrays; its root attributes hold parameters, numerics plan and library versions
    journal         one line per finished unit, with size and SHA-256 of every file that the unit wrote
    events.jsonl    what varies between equal runs: times, hosts, attempts, device
    lock/           one numbered directory: the present owner with its heartbeat, and the owner's workspace
    purged.json     in the manifest's place once the large arrays were removed to free disk (`purge_stage`)

What was finished under other parameters is not removed, but set aside in `<directory>.superseded`, and taken back from
there when it is wanted again (`quadscape/superseded.py`).

A unit is written in the workspace, then renamed into the store, then journalled; what is not in the journal does not
count and is swept. The journal is what tells a finished chunk from a missing one, which Zarr would read as NaN.
At each start every file is read back and compared with the journal; a unit whose files are damaged is computed again.

Fencing: whoever takes over creates the next number (only one can) and moves the old workspace away. A process that was
stopped, or whose node was thought dead, notices at its next commit and raises `FencedError`; and since everything that
it changes is a rename out of or into its own workspace, it cannot change anything even between check and rename.
Signals are not relied on.
"""

import contextlib
import errno
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import zarr

from quadscape.amounts import format_bytes, format_seconds
from quadscape.digests import canonical, canonical_digest
from quadscape.durable import FULL, sync, sync_open
from quadscape.errors import DeviceMemoryError, FencedError, QuadscapeError, RoundingError, StageError, StoreError
from quadscape.memory_limits import memory_available, memory_total
from quadscape.store import ArraySpec, create_array, open_store
from quadscape.store import read as read_array
from quadscape.stored import stage_digest
from quadscape.superseded import (
    INCOMING,
    OUTGOING,
    changes,
    check_movable,
    exchange,
    is_superseded,
    recover,
    set_aside,
    superseded_directory,
    take_back,
)

Log = Callable[[str], None]
Files = dict[str, list[int | str]]
"""Size and SHA-256 of each file, by its path within the store."""
Arrays = Mapping[str, tuple[tuple[slice | int, ...], np.ndarray]]

PURGED = "purged.json"
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""A lock whose heartbeat has not moved for this long, on the observer's own clock, has no living owner."""


@dataclass(frozen=True)
class Estimate:
    """What a stage will need.

    Attributes:
        memory_bytes: Peak memory of the process on the host.
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

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._group = open_store(directory / "store.zarr")

    def array(self, name: str) -> zarr.Array:
        """The array of that name."""
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

    def estimate(self, plan: dict[str, Any]) -> Estimate:
        """Memory, disk and time."""

    def start(self, plan: dict[str, Any]) -> None:
        """Called once per process before the first unit: threads, device, data."""

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """Values of one unit, by array: a selection that covers whole files, and what it holds.

        Raises:
            DeviceMemoryError: The device's memory does not hold the work; `smaller` is asked for another plan.
        """

    def smaller(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        """The plan with half of its blocks and the same units and arrays; None where they cannot be halved."""

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """JSON values for the manifest, once all units are done; raises when a check of the result fails."""


_UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EIO, errno.ESTALE}


def _file_checksum(path: Path) -> list[int | str]:
    """Computes size and SHA-256 of a file, in that order.

    No crc32c here: chunks end in their own, and the crc of data followed by its crc is the same for all data.

    Returns:
        Size in bytes, hexadecimal digest.
    """
    with path.open("rb") as file:
        total = file_digest(file, "sha256")
        return [file.tell(), total.hexdigest()]


# ---------------------------------------------------------------------------------------------------------------------
# Lock


def _process_state(pid: int) -> tuple[str, str] | None:
    """State letter and start time in clock ticks of a process, None when it is not alive (a zombie is not)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else (fields[0], fields[19])


def process_is_alive(pid: Any) -> bool:
    """Whether there is a process of that number on this machine."""
    return isinstance(pid, int) and _process_state(pid) is not None


def _machine() -> list[str]:
    """What must be equal for process ids to be comparable: host, boot and pid namespace."""
    found = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: str(Path("/proc/self/ns/pid").readlink()),
    ):
        try:
            found.append(read())
        except OSError:
            found.append("")
    return found


RELEASED = b"released    "
"""Stands where the heartbeat's count was, and is as long."""


@dataclass(frozen=True)
class Owner:
    """The last owner of a stage directory, as its lock tells.

    Attributes:
        number: Of the ownership, growing by one with each.
        record: Token, host, pid and the like; empty when it is damaged.
        beat: The heartbeat's count, or `RELEASED`.
    """

    number: int
    record: dict[str, Any]
    beat: bytes

    @property
    def released(self) -> bool:
        """Whether the owner gave the lock back."""
        return self.beat == RELEASED

    def __str__(self) -> str:
        return f"{self.record.get('host', '?')}:{self.record.get('pid', '?')}"

    def is_alive(self, directory: Path) -> bool | None:
        """Whether the owner is certainly at work here, or certainly not; None when only its heartbeat can tell."""
        # A copied directory brings its lock along; its inode tells that the owner is at work elsewhere. The device
        # number would not do: NFS gives each client its own.
        if self.released or self.record.get("inode") != directory.stat().st_ino:
            return False
        if self.record.get("machine") != _machine() or self.record.get("started") is None:
            return None
        state = _process_state(self.record.get("pid", -1))
        if state is None or state[1] != self.record["started"]:
            return False
        return None if state[0] in {"T", "t"} else True


_BEAT = """
import os, select, sys
descriptor, offset, parent, seconds = (*map(int, sys.argv[1:4]), float(sys.argv[4]))
count = 0
while not select.select([0], [], [], seconds)[0] and os.getppid() == parent:
    try:
        state = open(f"/proc/{parent}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        state = "?"
    if state not in {"T", "t"}:
        count += 1
        try:
            os.pwrite(descriptor, b"%012d" % count, offset)
            os.fsync(descriptor)
        except OSError:
            pass
"""
"""The heartbeat, in a process of its own: a thread stands still while, for example, SciPy's `eigh` holds the
interpreter for an hour. It ends with its parent (end of file on its input), and pauses while the parent is stopped."""


def present_owner(directory: Path) -> Owner | None:
    """The last owner of a stage directory.

    Args:
        directory: The stage's directory.

    Returns:
        The owner, alive or not; None when there was never one.
    """
    root = directory / "lock"
    try:
        numbers = [int(path.name) for path in root.iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return None
    if not numbers:
        return None
    try:
        head, _, beat = (root / str(max(numbers)) / "owner").read_bytes().partition(b"\n")
        record = json.loads(head)
    except (FileNotFoundError, ValueError):
        record, beat = {}, b""
    return Owner(max(numbers), record if isinstance(record, dict) else {}, beat)


class Lock:
    """Ownership of a stage directory: a numbered directory `lock/<n>`; the highest number owns.

    Only one process can create a number (renaming a directory onto one that is not empty fails, on NFS too), and the
    highest number is never removed, only followed by the next. So two that take over at once cannot both succeed,
    however long either was stopped in between. The owner's record and its heartbeat are in the file `owner`; beside it
    the owner prepares what it will rename into the stage. The next owner moves that workspace away first of all.

    Attributes:
        token: Random name of this owner.
        workspace: Directory of this owner, on the stage's file system.
    """

    def __init__(self, directory: Path, heartbeat: float, stale_after: float) -> None:
        self._directory, self._root = directory, directory / "lock"
        self._heartbeat, self._stale_after = heartbeat, stale_after
        self.token = uuid.uuid4().hex
        self.workspace = self._root
        self._number = 0
        self._descriptor = -1
        self._beating: subprocess.Popen[bytes] | None = None

    def acquire(self, log: Log, event: Callable[..., None]) -> None:
        """Waits while another owner lives, then takes the lock.

        Args:
            log: Where to say that it waits.
            event: Where to record a takeover.
        """
        poll = min(1.0, self._heartbeat)
        seen: tuple[int, bytes] | None = None
        quiet, announced = 0.0, False
        while True:
            owner = present_owner(self._directory)
            if owner is None:
                if self._claim(1):
                    break
                continue
            alive = owner.is_alive(self._directory)
            if alive or (owner.number, owner.beat) != seen:
                # What counts is how often this process looked: a clock goes on while the observer itself is stopped.
                seen, quiet = (owner.number, owner.beat), 0.0
            if alive is False or quiet > self._stale_after:
                if self._claim(owner.number + 1):
                    if not owner.released:
                        log(f"Took over from {owner}, which is gone.")
                        event("takeover", previous=str(owner))
                    break
                continue
            if not announced:
                log(f"Waiting: {owner} is at work in {self._directory}.")
                event("wait", owner=str(owner))
                announced = True
            time.sleep(poll)
            quiet += poll
        self._fence()
        command = [sys.executable, "-I", "-S", "-c", _BEAT, self._descriptor, self._head, os.getpid(), self._heartbeat]
        self._beating = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(self._descriptor,),
        )

    def _claim(self, number: int) -> bool:
        """Tries to create a number; False when another process was faster."""
        record = {
            "token": self.token,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": (_process_state(os.getpid()) or (None, None))[1],
            "inode": self._directory.stat().st_ino,
        }
        head = canonical(record).encode() + b"\n"
        draft = self._root / f"new.{self.token}"
        mine = False
        try:
            draft.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(draft / "owner", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            _write_whole(self._descriptor, head + b"%012d" % 0)
            draft.rename(self._root / str(number))
        except OSError as error:
            # ENOENT: the owner has just swept this draft away.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                raise
        finally:
            self._number, self._head, self.workspace = number, len(head), self._root / str(number)
            # A number that was created too late, below the highest, is void.
            mine = self.is_mine()
            if not mine:
                if self._descriptor >= 0:
                    os.close(self._descriptor)
                    self._descriptor = -1
                shutil.rmtree(draft, ignore_errors=True)
                if _token_in(self.workspace) == self.token:
                    shutil.rmtree(self.workspace, ignore_errors=True)
                self._number = 0
        return mine

    def _fence(self) -> None:
        """Takes the workspaces of former owners away from them, and sweeps drafts of killed contenders."""
        for path in list(self._root.iterdir()):
            if path.name.startswith("new.") or (path.name.isdecimal() and int(path.name) < self._number):
                fenced = self.workspace / f"fenced.{path.name}"
                # Renamed first: removing takes a while, and a draft may be about to become a lock.
                with contextlib.suppress(FileNotFoundError):
                    path.rename(fenced)
                self._inherit(fenced)
                shutil.rmtree(fenced, ignore_errors=True)

    def _inherit(self, fenced: Path) -> None:
        """Keeps the finished results that a former owner was moving; it may have had them from another one."""
        for name in (OUTGOING, INCOMING):
            with contextlib.suppress(FileNotFoundError):
                (fenced / name).rename(self.workspace / name)
        for path in fenced.glob("fenced.*"):
            self._inherit(path)

    def is_mine(self) -> bool:
        """Whether this process still owns the stage."""
        owner = present_owner(self._directory)
        return owner is not None and owner.number == self._number and owner.record.get("token") == self.token

    def check(self) -> None:
        """Checks that this process still owns the stage.

        Raises:
            FencedError: Another process has taken over.
        """
        if not self.is_mine():
            raise FencedError(
                f"Another process has taken over {self._directory} while this one was thought dead, or the directory "
                "was moved; this one stops here, nothing is lost."
            )

    def publish(self, prepared: Path, target: Path) -> None:
        """Renames something from the workspace into place, or back; the target's directory is left to be synced."""
        self.check()
        prepared.replace(target)

    def discard(self, path: Path) -> None:
        """Removes a file or directory if it is there: at once, and not if this process was taken over."""
        self.check()
        discarded = self.workspace / f"discarded.{uuid.uuid4().hex}"
        try:
            path.rename(discarded)
        except FileNotFoundError:
            self.check()
            return
        if discarded.is_dir():
            shutil.rmtree(discarded, ignore_errors=True)
        else:
            discarded.unlink(missing_ok=True)

    def release(self) -> None:
        """Gives the lock back, if it is still this process's."""
        if self._beating is not None:
            assert self._beating.stdin is not None
            self._beating.stdin.close()
            self._beating.wait()
            self._beating = None
        if self._descriptor < 0:
            return
        owner = present_owner(self._directory)
        if self.is_mine():
            for path in self.workspace.iterdir():
                if path.name in {OUTGOING, INCOMING}:
                    continue  # the next owner brings it to where it belongs
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != "owner":
                    path.unlink(missing_ok=True)
        elif owner is not None and owner.number > self._number:
            # What zarr has put into a workspace that had been moved away.
            shutil.rmtree(self.workspace, ignore_errors=True)
        # In place, which needs no space on a full disk, and in this owner's own file, whatever its path is by now.
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, RELEASED, self._head)
            os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1


def _token_in(workspace: Path) -> str | None:
    try:
        return str(json.loads((workspace / "owner").read_bytes().partition(b"\n")[0])["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_whole(descriptor: int, text: bytes) -> None:
    while text:
        text = text[os.write(descriptor, text) :]


# ---------------------------------------------------------------------------------------------------------------------
# Journal


@dataclass
class Journal:
    """What is done.

    That is: files (size and SHA-256) of every finished unit, the plans that took the place of the first one, with the
    unit from which on they did, the results once they were computed, and the arrays that were removed then, since they
    were needed only on the way.
    """

    path: Path
    key: str
    units: dict[int, Files]
    replanned: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] | None = None
    discarded: list[str] = field(default_factory=list)
    descriptor: int = -1

    @classmethod
    def load(cls, path: Path, key: str) -> "Journal":
        """Reads a journal; lines that are torn, damaged or of another plan do not count.

        Args:
            path: The journal's file.
            key: Hash of fingerprint and plan that the lines must carry.

        Returns:
            The journal.
        """
        journal = cls(path, key, {})
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return journal
        for line in lines:
            checksum, _, text = line.partition(b" ")
            if checksum != sha256(text).hexdigest()[:16].encode():
                continue
            entry = json.loads(text)
            if entry["key"] != key:
                continue
            if "results" in entry:
                journal.results = entry["results"]
            elif "discarded" in entry:
                journal.discarded = entry["discarded"]
            elif "replanned" in entry:
                journal.replanned.append(entry["replanned"])
            else:
                journal.units[entry["unit"]] = entry["files"]
        return journal

    def _line(self, entry: dict[str, Any]) -> bytes:
        text = canonical({"key": self.key, **entry})
        return f"{sha256(text.encode()).hexdigest()[:16]} {text}\n".encode()

    def _append(self, entry: dict[str, Any]) -> None:
        _write_whole(self.descriptor, self._line(entry))
        sync_open(self.descriptor, self.path)

    def add_unit(self, unit: int, files: Files) -> None:
        """Records a finished unit."""
        self._append({"unit": unit, "files": files})
        self.units[unit] = files

    def add_plan(self, unit: int, plan: dict[str, Any]) -> None:
        """Records that another plan is in use from a unit on."""
        self._append({"replanned": {"unit": unit, "plan": plan}})
        self.replanned.append({"unit": unit, "plan": plan})

    def add_results(self, results: dict[str, Any]) -> None:
        """Records the results."""
        self._append({"results": results})
        self.results = results

    def add_discarded(self, arrays: list[str]) -> None:
        """Records that the files of these arrays no longer count."""
        self._append({"discarded": arrays})
        self.discarded = arrays

    def rewrite(self, lock: Lock) -> None:
        """Writes the journal anew with what counts, into a file that a former owner does not have open."""
        entries: list[dict[str, Any]] = [{"unit": u, "files": self.units[u]} for u in sorted(self.units)]
        entries += [{"replanned": entry} for entry in self.replanned]
        if self.results is not None:
            entries.append({"results": self.results})
        if self.discarded:
            entries.append({"discarded": self.discarded})
        prepared = lock.workspace / "journal"
        self.close()
        self.descriptor = os.open(prepared, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        _write_whole(self.descriptor, b"".join(map(self._line, entries)))
        sync_open(self.descriptor, prepared)
        lock.publish(prepared, self.path)
        sync(self.path.parent)

    def close(self) -> None:
        """Closes the file, if it is open."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def digest(self) -> str:
        """SHA-256 over name, size and SHA-256 of every file."""
        files = {name: check for unit in self.units.values() for name, check in unit.items()}
        return canonical_digest(sorted([name, *check] for name, check in files.items()))

    def is_discarded(self, name: str) -> bool:
        """Whether a file belongs to an array that was removed."""
        return any(name.startswith(f"{array}/") for array in self.discarded)

    def damaged(self, store: Path, *, read: bool, within: str = "") -> dict[int, str]:
        """Units whose files are not as journalled.

        Args:
            store: The store's directory.
            read: Whether to read the files, or to look at their sizes only.
            within: What the names of the files to look at begin with.

        Returns:
            One name of a damaged or missing file for each such unit.
        """
        found: dict[int, str] = {}
        for unit, files in self.units.items():
            for name, check in files.items():
                if not name.startswith(within) or self.is_discarded(name):
                    continue
                try:
                    path = store / name
                    same = _file_checksum(path) == check if read else path.stat().st_size == check[0]
                except OSError:
                    same = False
                if not same:
                    found[unit] = name
                    break
        return found


# ---------------------------------------------------------------------------------------------------------------------
# Running


def _versions() -> dict[str, str]:
    names = ("quadscape", "torch", "numpy", "scipy", "zarr")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(Exception):
            found[name] = installed_version(name)
    return found


def _metadata_files(store: Path) -> Files:
    """Size and checksum of every array's and inner group's metadata (the root's attributes hold this table)."""
    return {
        str(path.relative_to(store)): _file_checksum(path)
        for path in sorted(store.rglob("zarr.json"))
        if path.parent != store
    }


def _root_checksum(document: dict[str, Any], attributes: dict[str, Any]) -> str:
    """Hash of everything in a root `zarr.json` but the checksum itself."""
    return canonical_digest({**document, "attributes": attributes})


def _root_attributes(directory: Path) -> dict[str, Any] | None:
    """Root attributes of a stage's store, None when they are missing or damaged, or the arrays' metadata are."""
    store = directory / "store.zarr"
    try:
        document = json.loads((store / "zarr.json").read_text())
        attributes = document["attributes"]
        checksum = attributes.pop("checksum")
        if checksum != _root_checksum(document, attributes) or attributes["metadata"] != _metadata_files(store):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return attributes


def _fingerprint(task: Task) -> str:
    return fingerprint_of({"stage": task.name, "version": task.version, "parameters": task.parameters()})


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """Hash of everything that determines a stage's result: of its name, version and parameters."""
    return canonical_digest({key: manifest[key] for key in ("stage", "version", "parameters")})


class _Events:
    """Appends to events.jsonl; a full disk must not hide the error that it is told of."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "events.jsonl"

    def __call__(self, event: str, **details: Any) -> None:
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


class _Run:
    """One process's work on a stage whose lock it holds."""

    def __init__(self, task: Task, directory: Path, lock: Lock, events: _Events, log: Log) -> None:
        self.task, self.directory, self.lock, self.events, self.log = task, directory, lock, events, log
        self.store_path = directory / "store.zarr"
        self.staging_path = lock.workspace / "staging.zarr"
        self.fingerprint = _fingerprint(task)

    def run(self) -> dict[str, Any]:
        try:
            return self._work(self._resume() or self._begin())
        except RoundingError as error:
            # Another kind of processor than that of the attempt before: units of both would not fit together.
            reason = str(error).partition(";")[0]
        self.log(f"{self.task.name}: {reason}; starting afresh here.")
        self.events("afresh", reason=reason)
        self.lock.discard(self.directory / "journal")
        return self._work(self._begin())

    def _work(self, attributes: dict[str, Any]) -> dict[str, Any]:
        # What was purged is computed anew from here on; a purge that comes later must not go on with this one.
        self.lock.discard(self.directory / PURGED)
        plan = first = attributes["plan"]
        total = self.task.units(plan)
        with contextlib.closing(Journal.load(self.directory / "journal", self._key(plan))) as journal:
            self._repair(journal, total)
            if journal.replanned:
                plan = journal.replanned[-1]["plan"]
            pending = [unit for unit in range(total) if unit not in journal.units]
            estimate = self._check_resources(plan, journal) if pending or journal.results is None else None
            self.events(
                "start", stage=self.task.name, units=total, done=total - len(pending), device=plan.get("device", "")
            )
            store = StageStore(self.directory)
            if estimate is not None:
                if pending:
                    self._announce(total, pending, estimate)
                self.task.start(plan)
                plan = self._compute(pending, total, plan, journal, store, estimate)
            if journal.results is None:
                self.log(f"{self.task.name}: all {total} units are done; checking the result.")
                # Through JSON, so that this process and a later one see the very same results.
                results = json.loads(canonical(self.task.results(plan, store)))
                self.lock.check()
                journal.add_results(results)
            self._discard_scratch(plan, journal)
            self._check_again(journal, read=bool(pending))
            return self._write_manifest(first, total, journal)

    def _key(self, plan: dict[str, Any]) -> str:
        return _journal_key({"fingerprint": self.fingerprint, "plan": plan})

    def _check_again(self, journal: Journal, *, read: bool) -> None:
        damaged = {
            unit: f"{name} in {self.store_path}" for unit, name in journal.damaged(self.store_path, read=read).items()
        }
        stored = Journal.load(journal.path, journal.key)
        parts = ("units", "replanned", "results", "discarded")
        if any(getattr(stored, name) != getattr(journal, name) for name in parts):
            damaged[-1] = str(journal.path)
        if damaged:
            raise StoreError(
                f"{next(iter(damaged.values()))} was damaged while the stage was at work; run the same command again."
            )

    def _resume(self) -> dict[str, Any] | None:
        """Attributes of a store that this task can go on with, None when it must start afresh."""
        attributes = _root_attributes(self.directory)
        if attributes is not None and attributes["fingerprint"] == self.fingerprint:
            return attributes
        earlier = _finished_attributes(superseded_directory(self.directory))
        if earlier is not None and earlier["fingerprint"] == self.fingerprint:
            self._take_back(attributes)
            return _root_attributes(self.directory)
        return None

    def _take_back(self, attributes: dict[str, Any] | None) -> None:
        """Exchanges what is here, of other parameters or nothing, for what was set aside."""
        aside = superseded_directory(self.directory)
        check_movable(self.directory)
        text = f"{self.task.name}: the result of these parameters, which was set aside in {aside}, is taken back"
        if attributes is not None:
            text += f" ({self._changes(attributes)})"
        if _finished_attributes(self.directory) is None:
            take_back(self.lock, self.directory)
        else:
            exchange(self.lock, self.directory, _missing_manifest(self.directory))
            text += "; the one that was here is set aside in its place"
        self.log(text + ".")
        self.events("returned")

    def _changes(self, attributes: dict[str, Any]) -> str:
        return changes(_identity(attributes), {**self.task.parameters(), **_kind(self.task.name, self.task.version)})

    def _make_room(self) -> None:
        """Sets aside what is finished here, under other parameters, and removes what is not."""
        aside, attributes = superseded_directory(self.directory), _root_attributes(self.directory)
        changed = "" if attributes is None else self._changes(attributes)
        if _finished_attributes(self.directory) is not None:
            replacing = ", in place of an older one," if aside.exists() else ""
            set_aside(self.lock, self.directory, _missing_manifest(self.directory))
            self.log(
                f"{self.task.name}: the finished result of other parameters ({changed}) is set aside{replacing} in "
                f"{aside}; starting afresh."
            )
            self.events("afresh", reason=changed, superseded=str(aside))
            return
        if attributes is not None:
            reason = f"what is here is of other parameters ({changed}), and unfinished"
        elif self.store_path.exists():
            reason = changed = "the store's metadata are damaged"
        for name in ("manifest.json", PURGED, "journal", "store.zarr"):
            self.lock.discard(self.directory / name)
        if changed:
            self.log(f"{self.task.name}: {reason}; starting afresh.")
            self.events("afresh", reason=changed)

    def _begin(self) -> dict[str, Any]:
        """Makes the plan and an empty store, which takes the place of what was there."""
        # Through JSON, so that the first start and a resume see the very same plan.
        plan = json.loads(canonical(self.task.plan()))
        attributes = {
            "stage": self.task.name,
            "version": self.task.version,
            "fingerprint": self.fingerprint,
            "parameters": json.loads(canonical(self.task.parameters())),
            "plan": plan,
            "versions": _versions(),
        }
        self._check_resources(plan, None)
        if _finished_attributes(self.directory) is not None:
            check_movable(self.directory)
        prepared = self.lock.workspace / "store.zarr"
        group = zarr.open_group(prepared, mode="w", zarr_format=3)
        for spec in self.task.arrays(plan):
            create_array(group, spec)
        attributes["metadata"] = _metadata_files(prepared)
        document = json.loads((prepared / "zarr.json").read_text())
        group.update_attributes({**attributes, "checksum": _root_checksum(document, attributes)})
        for path in [prepared, *prepared.rglob("*")]:
            sync(path)
        self._make_room()
        self.lock.publish(prepared, self.store_path)
        sync(self.directory)
        return attributes

    def _repair(self, journal: Journal, total: int) -> None:
        """Drops damaged units from the journal and un-journalled files from the store."""
        damaged = journal.damaged(self.store_path, read=True)
        if len(journal.units) < total or damaged:
            # Recomputed units are equal, but the result must be checked on what is there then.
            journal.results = None
        removed: set[int] = set()
        if journal.results is None and journal.discarded:
            self.log(f"{self.task.name}: what was needed on the way is no longer there and is computed again, too.")
            journal.discarded = []
            removed = set(journal.damaged(self.store_path, read=False)) - set(damaged)
        if journal.results is None:
            # First, so that nobody takes for whole what is about to change.
            self.lock.discard(self.directory / "manifest.json")
        for unit in removed:
            del journal.units[unit]
        for unit, name in sorted(damaged.items()):
            del journal.units[unit]
            self.log(f"{self.task.name}: unit {unit} is computed again, since {name} is missing or damaged.")
            self.events("damaged", unit=unit, file=name)
        journal.rewrite(self.lock)
        self._writers = {
            name: unit for unit, files in journal.units.items() for name in files if not journal.is_discarded(name)
        }
        for path in list(self.store_path.rglob("*")):
            if (
                path.is_file()
                and path.name != "zarr.json"
                and str(path.relative_to(self.store_path)) not in self._writers
            ):
                self.lock.discard(path)

    def _discard_scratch(self, plan: dict[str, Any], journal: Journal) -> None:
        """Removes the files of arrays that were needed only on the way; journalled first, so that none is missed."""
        scratch = [spec.name for spec in self.task.arrays(plan) if spec.scratch]
        if scratch and not journal.discarded:
            self.lock.check()
            journal.add_discarded(scratch)
        for name in journal.discarded:
            for path in (self.store_path / name).iterdir():
                if path.name != "zarr.json":
                    self.lock.discard(path)

    def _check_resources(self, plan: dict[str, Any], journal: Journal | None) -> Estimate:
        """Refuses what cannot be done here; without a journal, what is there will be removed or set aside."""
        estimate = self.task.estimate(plan)
        kept, replaced = "", self.store_path
        if journal is None and _finished_attributes(self.directory) is not None:
            replaced = superseded_directory(self.directory)
            kept = " (the finished result there, of other parameters, would be kept)"
        there = replaced.rglob("*") if journal is None else (self.store_path / name for name in self._writers)
        written = sum(path.stat().st_size for path in there if path.is_file())
        missing = estimate.disk_bytes - written
        free = shutil.disk_usage(self.directory).free
        if missing > free:
            raise StageError(
                f"{self.task.name} needs {format_bytes(missing)} more disk in {self.directory}, but only "
                f"{format_bytes(free)} are free; free some{kept} or link results/ to a larger disk, then run it again."
            )
        # The peak is that of the whole process, which has a part of it already.
        available = min(memory_total(), memory_available() + psutil.Process().memory_info().rss)
        if estimate.memory_bytes > available:
            raise StageError(
                f"{self.task.name} needs about {format_bytes(estimate.memory_bytes)} of memory, but only "
                f"{format_bytes(available)} are available; use a larger machine or ask for more (resource mem_mb)."
            )
        return estimate

    def _announce(self, total: int, pending: list[int], estimate: Estimate) -> None:
        text = (
            f"{self.task.name}: {len(pending)} of {total} units to compute; about "
            f"{format_bytes(estimate.memory_bytes)} of memory, {format_bytes(estimate.disk_bytes)} of disk"
        )
        if estimate.seconds is not None:
            text += f", {format_seconds(estimate.seconds * estimate.share(pending, total))}"
        if estimate.method:
            text += f"; by {estimate.method}"
        self.log(text + ".")

    def _compute(
        self,
        pending: list[int],
        total: int,
        plan: dict[str, Any],
        journal: Journal,
        store: StageStore,
        estimate: Estimate,
    ) -> dict[str, Any]:
        """Computes units; the plan that it ends with may be a smaller one than it began with."""
        if not pending:
            return plan
        staging = self._create_staging()
        began = said = time.monotonic()
        for count, unit in enumerate(pending, start=1):
            started = time.monotonic()
            arrays, plan = self._arrays(unit, plan, journal, store)
            self._commit(unit, arrays, staging, journal)
            now = time.monotonic()
            self.events("unit", unit=unit, seconds=round(now - started, 3), done=len(journal.units), total=total)
            if now - said > 10 or count == len(pending):
                said = now
                done, todo = (estimate.share(part, total) for part in (pending[:count], pending[count:]))
                left = (now - began) / done * todo if done else 0.0
                self.log(
                    f"{self.task.name}: {len(journal.units)}/{total} units ({len(journal.units) / total:.0%}), "
                    f"{format_seconds((now - began) / count)} each, "
                    + (
                        f"about {format_seconds(left)} left."
                        if count < len(pending)
                        else f"{format_seconds(now - began)} in all."
                    )
                )

        return plan

    def _arrays(
        self, unit: int, plan: dict[str, Any], journal: Journal, store: StageStore
    ) -> tuple[Arrays, dict[str, Any]]:
        """One unit, with smaller blocks from here on where the device's memory does not hold those of the plan."""
        while True:
            try:
                return self.task.compute(unit, plan, store), plan
            except DeviceMemoryError as error:
                smaller = self.task.smaller(plan)
                if smaller is None:
                    raise
                reason = str(error)
            smaller = json.loads(canonical(smaller))
            changed = ", ".join(
                f"{key} {canonical(plan[key])} → {canonical(smaller[key])}" for key in plan if smaller[key] != plan[key]
            )
            self.log(f"{self.task.name}: {reason.partition(';')[0]}; going on with smaller blocks ({changed}).")
            self.events("smaller", unit=unit, changed=changed)
            self.lock.check()
            journal.add_plan(unit, smaller)
            self.task.start(smaller)
            plan = smaller

    def _create_staging(self) -> zarr.Group:
        """An empty store with the same arrays, into which a unit is written before it is renamed into place."""
        for path in self.store_path.rglob("zarr.json"):
            target = self.staging_path / path.relative_to(self.store_path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return zarr.open_group(self.staging_path, mode="r+", zarr_format=3)

    def _commit(self, unit: int, arrays: Arrays, staging: zarr.Group, journal: Journal) -> None:
        for name, (selection, values) in arrays.items():
            member = staging[name]
            assert isinstance(member, zarr.Array)
            _check_selection(unit, member, selection, values)
            member[selection] = values
        files: Files = {}
        for path in sorted(self.staging_path.rglob("*")):
            if path.is_file() and path.name != "zarr.json":
                name = str(path.relative_to(self.staging_path))
                if self._writers.setdefault(name, unit) != unit:
                    raise ValueError(f"Units {self._writers[name]} and {unit} both write the file {name}.")
                files[name] = _file_checksum(path)
                sync(path)
        folders = {folder for name in files for folder in Path(name).parents}
        for folder in sorted(folders - {Path()}):
            (self.store_path / folder).mkdir(exist_ok=True)
        for name in files:
            self.lock.publish(self.staging_path / name, self.store_path / name)
        for folder in folders:
            sync(self.store_path / folder)
        self.lock.check()
        journal.add_unit(unit, files)

    def _write_manifest(self, plan: dict[str, Any], total: int, journal: Journal) -> dict[str, Any]:
        manifest = _manifest(
            {
                **_kind(self.task.name, self.task.version),
                "fingerprint": self.fingerprint,
                "parameters": json.loads(canonical(self.task.parameters())),
                "plan": plan,
            },
            total,
            journal,
        )
        prepared = self.lock.workspace / "manifest.json"
        prepared.write_text(_text(manifest), encoding="utf-8")
        sync(prepared)
        self.lock.publish(prepared, self.directory / "manifest.json")
        sync(self.directory)
        return manifest


def _kind(stage: str, version: int) -> dict[str, Any]:
    return {"stage": stage, "version": version}


def _identity(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What a fingerprint is made of, in one mapping, to tell what differs."""
    return {**attributes["parameters"], **_kind(attributes["stage"], attributes["version"])}


def _manifest(attributes: Mapping[str, Any], total: int, journal: Journal) -> dict[str, Any]:
    """The manifest, with its checksum, of a stage whose units and results are in the journal."""
    manifest = {
        **{key: attributes[key] for key in ("stage", "version", "fingerprint", "parameters", "plan")},
        "units": total,
        "digest": journal.digest(),
        "results": journal.results,
    }
    if journal.replanned:
        manifest["replanned"] = journal.replanned
    manifest["checksum"] = canonical_digest(manifest)
    return manifest


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _journal_key(attributes: Mapping[str, Any]) -> str:
    return canonical_digest({"fingerprint": attributes["fingerprint"], "plan": attributes["plan"]})[:16]


def _finished_attributes(directory: Path) -> dict[str, Any] | None:
    """Attributes of the store of a finished stage, None where there is none or it is not finished.

    A workflow removes the manifest before it runs a rule again. So what is whole is finished without it, too.

    Args:
        directory: The stage's directory.

    Returns:
        The attributes.
    """
    attributes = _root_attributes(directory)
    if attributes is None or any((directory / name).exists() for name in ("manifest.json", PURGED)):
        return attributes
    return None if _rebuilt_manifest(directory, attributes) is None else attributes


def _rebuilt_manifest(directory: Path, attributes: Mapping[str, Any]) -> str | None:
    """Text of the manifest as it was or would have been, None where the stage is not whole (by the files' sizes)."""
    journal = Journal.load(directory / "journal", _journal_key(attributes))
    if journal.results is None or journal.damaged(directory / "store.zarr", read=False):
        return None
    return _text(_manifest(attributes, len(journal.units), journal))


def _missing_manifest(directory: Path) -> str | None:
    """Text of the manifest of a finished stage, None where the one that is there will do or it cannot be made."""
    attributes = _root_attributes(directory)
    assert attributes is not None
    with contextlib.suppress(StoreError):
        if finished_manifest(directory)["fingerprint"] == attributes["fingerprint"]:
            return None
    return _rebuilt_manifest(directory, attributes)


def changed_parameters(before: Path, after: Path) -> str:
    """What differs between the parameters of two stages, for a sentence.

    Args:
        before: Directory of the one.
        after: Directory of the other.

    Returns:
        A handful of keys with both values; empty where the parameters of one cannot be read, or nothing differs.
    """
    old, new = _root_attributes(before), _root_attributes(after)
    return "" if old is None or new is None else changes(_identity(old), _identity(new))


def _check_selection(unit: int, array: zarr.Array, selection: Any, values: np.ndarray) -> None:
    """Checks that a selection covers whole files: of a file written in two parts, the second would erase the first.

    Raises:
        ValueError: It does not, or the values have another shape.
    """
    parts = selection if isinstance(selection, tuple) else (selection,)
    where = f"Unit {unit} writes {selection} of array '{array.name}' of shape {array.shape}"
    files = array.shards or array.chunks
    shape = []
    if len(parts) != array.ndim:
        raise ValueError(f"{where}, which has {array.ndim} dimensions.")
    for part, length, file in zip(parts, array.shape, files, strict=True):
        if isinstance(part, slice):
            start, stop, step = part.indices(length)
            shape.append(max(0, stop - start))
        else:
            start, step = int(part), 1
            stop = start + 1
        whole = step == 1 and start >= 0 and start % file == 0 and (stop % file == 0 or stop == length)
        if stop > length or not (whole or stop <= start):
            raise ValueError(f"{where}, which does not cover whole files, of shape {files}.")
    if np.shape(values) != tuple(shape):
        raise ValueError(f"{where} with values of shape {np.shape(values)}, where {tuple(shape)} is needed.")


@contextlib.contextmanager
def _disk_explained(directory: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        if error.errno in _UNUSABLE and str(error.filename or "").startswith(str(directory)):
            raise StageError(
                f"The stage's directory {directory} cannot be used: {error.filename}: {error.strerror}; make it a "
                "folder that can be written to."
            ) from error
        if error.errno not in FULL:
            raise
        raise StageError(
            f"The disk of {directory} is full ({error.strerror}); free some space and run the same command again: what "
            "was finished is kept."
        ) from error


def run_stage(
    task: Task,
    directory: str | Path,
    *,
    log: Log = print,
    heartbeat: float = HEARTBEAT_SECONDS,
    stale_after: float = STALE_SECONDS,
) -> dict[str, Any]:
    """Computes a stage, or what of it is missing, and writes its manifest.

    A finished result of other parameters, where there is one, is set aside in `<directory>.superseded`; what was set
    aside there is taken back when it is what the task would compute.

    Args:
        task: What to compute.
        directory: The stage's directory.
        log: Receives progress, a line at a time.
        heartbeat: Seconds between two heartbeats of the lock.
        stale_after: Seconds without a heartbeat after which another process may take over.

    Returns:
        The manifest.
    """
    directory = Path(directory)
    with _disk_explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        events = _Events(directory)
        lock = Lock(directory, heartbeat, stale_after)
        try:
            lock.acquire(log, events)
            try:
                recover(lock, directory)
                manifest = _Run(task, directory, lock, events, log).run()
            except Exception:
                # Whatever goes wrong in a process that was taken over goes wrong because of that.
                lock.check()
                raise
            events("finish")
            return manifest
        except BaseException as error:
            kind = "fenced" if isinstance(error, FencedError) else "error"
            events(kind, message=str(error) if isinstance(error, QuadscapeError) else repr(error))
            raise
        finally:
            lock.release()


# ---------------------------------------------------------------------------------------------------------------------
# Reading


class FinishedStage(StageStore):
    """A finished stage: its manifest and its arrays.

    Attributes:
        directory: The stage's directory.
        manifest: The manifest.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any], journal: Journal) -> None:
        super().__init__(directory)
        self.manifest = manifest
        self._journal = journal

    def read(self, name: str, selection: Any = ...) -> np.ndarray:
        """Reads a part of an array.

        Args:
            name: Name of the array.
            selection: NumPy-style basic selection.

        Returns:
            The values.

        Raises:
            StoreError: A chunk is damaged, or a file is missing, which Zarr alone would read as fill values.
        """
        array = self.array(name)
        values = super().read(name, selection)
        fill = array.fill_value
        empty = np.isnan(values) if isinstance(fill, float) and np.isnan(fill) else values == fill
        if np.any(empty):
            damaged = self._journal.damaged(self.directory / "store.zarr", read=False, within=f"{name}/")
            if damaged:
                raise StoreError(f"{min(damaged.values())} of {self.directory} is missing; {remedy(self.directory)}.")
        return values

    @property
    def digest(self) -> str:
        """Digest of everything that the stage wrote, under its fingerprint."""
        return stage_digest(self.manifest)


def _directory_of(path: str | Path) -> Path:
    path = Path(path)
    return path.parent if path.name == "manifest.json" else path


def remedy(directory: Path, name: str = "manifest.json") -> str:
    """What helps a damaged stage, for the end of a sentence.

    Args:
        directory: The stage's directory.
        name: Its manifest, or what is in the manifest's place.

    Returns:
        Half a sentence.
    """
    if is_superseded(directory):
        return f"remove the directory {directory}, which was set aside, or leave it: nothing uses it"
    return (
        f"remove {directory / name} and run the workflow again: only what is damaged, and what that needs, is computed "
        f"again, once something needs it (if it does not help, remove the directory {directory})"
    )


def _checked(directory: Path, name: str) -> dict[str, Any] | None:
    """A JSON document that carries its own checksum; None when there is none."""
    try:
        document = json.loads((directory / name).read_text(encoding="utf-8"))
        checksum = document.pop("checksum")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{name} of {directory} is damaged ({error}); {remedy(directory, name)}.") from error
    if checksum != canonical_digest(document):
        raise StoreError(f"{name} of {directory} was changed after it was written; {remedy(directory, name)}.")
    return document


def load_manifest(directory: Path, name: str | None = None) -> dict[str, Any]:
    """Reads a manifest and checks it against its own checksum, not against the store.

    Args:
        directory: The stage's directory.
        name: Name that the stage must have.

    Returns:
        The manifest, without its checksum.

    Raises:
        StoreError: It is missing, damaged or another stage's.
    """
    manifest = _checked(directory, "manifest.json")
    if manifest is None:
        purged = load_purged(directory)
        if purged is not None:
            raise StoreError(
                f"{' and '.join(purged.arrays)} of {directory} were purged on {purged.date}; run the workflow, which "
                "computes them again for whatever needs them."
            )
        raise StoreError(f"There is no finished stage in {directory}: it has no manifest.json; run the workflow.")
    if name is not None and manifest["stage"] != name:
        raise StoreError(f"{directory} holds the stage '{manifest['stage']}', where '{name}' was expected.")
    return manifest


def _check_finished(directory: Path, manifest: dict[str, Any], purged: Sequence[str], *, read: bool) -> Journal:
    """Compares store and journal with a manifest."""
    if not (directory / "store.zarr").exists():
        raise StoreError(f"The manifest of {directory} has no store beside it; {remedy(directory)}.")
    attributes = _root_attributes(directory)
    if attributes is None:
        raise StoreError(f"The store's metadata in {directory} are damaged; {remedy(directory)}.")
    if attributes["fingerprint"] != manifest["fingerprint"] or attributes["plan"] != manifest["plan"]:
        raise StoreError(
            f"The manifest of {directory} is another stage's or checkpoint's than the store beside it; "
            f"{remedy(directory)}."
        )
    journal = Journal.load(directory / "journal", _journal_key(manifest))
    expected = (manifest["units"], manifest["digest"], manifest.get("replanned", []))
    if (len(journal.units), journal.digest(), journal.replanned) != expected:
        raise StoreError(f"The journal of {directory} does not match its manifest; {remedy(directory)}.")
    journal.discarded = [*journal.discarded, *purged]
    damaged = journal.damaged(directory / "store.zarr", read=read)
    if damaged:
        names = ", ".join(sorted(damaged.values())[:3])
        raise StoreError(f"{len(damaged)} units of {directory} are missing or damaged ({names}); {remedy(directory)}.")
    return journal


def open_stage(path: str | Path, name: str | None = None) -> FinishedStage:
    """Opens a finished stage; sizes and metadata are checked here, contents by their checksums as they are read.

    Args:
        path: The stage's directory, or the manifest in it.
        name: Name that the stage must have.

    Returns:
        The stage.
    """
    directory = _directory_of(path)
    manifest = load_manifest(directory, name)
    return FinishedStage(directory, manifest, _check_finished(directory, manifest, [], read=False))


def finished_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a stage that was finished, also where its large arrays were purged since.

    Args:
        directory: The stage's directory.

    Returns:
        The manifest, without its checksum.
    """
    purged = None if (directory / "manifest.json").exists() else load_purged(directory)
    return load_manifest(directory) if purged is None else purged.manifest


def verify_stage(path: str | Path) -> dict[str, Any]:
    """Reads everything that a finished stage wrote and compares it with the journal and the manifest.

    What was purged need not be there; all the rest must.

    Args:
        path: The stage's directory, or the manifest in it.

    Returns:
        The manifest.

    Raises:
        StoreError: Something is missing, damaged, or there and was never written.
    """
    directory = _directory_of(path)
    manifest = finished_manifest(directory)
    purged = None if (directory / "manifest.json").exists() else load_purged(directory)
    journal = _check_finished(directory, manifest, [] if purged is None else purged.arrays, read=True)
    store = directory / "store.zarr"
    known = {name for files in journal.units.values() for name in files}
    found = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file() and path.name != "zarr.json"}
    extra = sorted(name for name in found - known if purged is None or not journal.is_discarded(name))
    if extra:
        raise StoreError(f"{extra[0]} in the store of {directory} was never written by it; {remedy(directory)}.")
    return manifest


# ---------------------------------------------------------------------------------------------------------------------
# Purging


@dataclass(frozen=True)
class Purged:
    """What is left in place of the manifest of a purged stage.

    Attributes:
        manifest: The manifest, with the results of the verification.
        arrays: Which arrays were removed.
        date: When, in UTC.
        freed_bytes: What their files took on disk.
    """

    manifest: dict[str, Any]
    arrays: list[str]
    date: str
    freed_bytes: int


def load_purged(directory: Path) -> Purged | None:
    """Reads the record of a purge.

    Args:
        directory: The stage's directory.

    Returns:
        The record, None when nothing was purged.
    """
    document = _checked(directory, PURGED)
    return None if document is None else Purged(**document)


def array_bytes(directory: Path, arrays: Sequence[str]) -> int:
    """Bytes on disk of the files of some arrays of a stage, without their metadata."""
    return sum(path.stat().st_size for path in _array_files(directory, arrays))


def _array_files(directory: Path, arrays: Sequence[str]) -> list[Path]:
    folders = [directory / "store.zarr" / name for name in arrays]
    return [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json"]


def purge_stage(directory: Path, arrays: Sequence[str], log: Log = print) -> None:
    """Removes arrays of a finished stage, or what a killed purge has left of them; the rest stays.

    The manifest goes first, so that at no moment what is damaged looks finished: to the workflow the stage is one that
    is yet to be computed, if anything needs it. Store, plan and journal stay, so that it is computed again under the
    same plan, and its digest is the same.

    Args:
        directory: The stage's directory.
        arrays: Names of the arrays.
        log: Receives a line where it must wait for another process.
    """
    events = _Events(directory)
    lock = Lock(directory, HEARTBEAT_SECONDS, STALE_SECONDS)
    lock.acquire(log, events)
    try:
        recover(lock, directory)
        # The manifest may have gone while this process waited; then the record of a purge must be there.
        manifest = finished_manifest(directory)
        if (directory / "manifest.json").exists():
            size = array_bytes(directory, arrays)
            record = {
                "manifest": manifest,
                "arrays": list(arrays),
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "freed_bytes": size,
            }
            prepared = lock.workspace / PURGED
            prepared.write_text(_text({**record, "checksum": canonical_digest(record)}))
            sync(prepared)
            lock.publish(prepared, directory / PURGED)
            sync(directory)
            lock.discard(directory / "manifest.json")
            sync(directory)
            events("purge", arrays=list(arrays), bytes=size)
        for path in _array_files(directory, arrays):
            lock.discard(path)
    finally:
        lock.release()
