"""The protocol of long stages: any kill loses at most the current unit, and the same command goes on.

A long rule supplies a `Task`: what determines its result, a numerics plan, arrays, and a pure `compute(unit)`.
`run_stage` does the rest, in one directory:

    manifest.json   written last, byte-identical for equal results: the only output a workflow rule declares
    store.zarr/     the arrays; its root attributes hold parameters, numerics plan and library versions
    journal         one line per finished unit, with size and SHA-256 of every file that the unit wrote
    events.jsonl    what varies between equal runs: times, hosts, attempts, device
    lock            the owner, with a heartbeat

A unit is written beside the store, then renamed into it, then journalled; what is not in the journal does not
count and is swept. The journal is what tells a finished chunk from a missing one, which Zarr would read as NaN.
At each start every file is read back and compared with the journal; a unit whose files are damaged is computed again.

Fencing: the owner of the lock is a random token. A process that was stopped, or whose node was thought dead, finds
another token at its next commit and raises `FencedError` without writing anything. Signals are not relied on.
"""

import contextlib
import errno
import json
import os
import platform
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import zarr

from quadscape.errors import FencedError, QuadscapeError, StageError, StoreError
from quadscape.store import ArraySpec, create_array, open_store
from quadscape.store import read as read_array

Log = Callable[[str], None]
Files = dict[str, list[int | str]]
"""Size and SHA-256 of each file, by its path within the store."""
Arrays = Mapping[str, tuple[tuple[slice | int, ...], np.ndarray]]

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""A lock whose heartbeat has not moved for this long, on the observer's own clock, has no living owner."""


@dataclass(frozen=True)
class Estimate:
    """What a stage will need.

    Attributes:
        memory_bytes: Peak memory of the process on the host.
        disk_bytes: Size of the finished store.
        seconds: Expected time, if it can be told.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float | None = None


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
        return read_array(self.array(name), selection, directory=self.directory)


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
        """Values of one unit, by array: a selection that covers whole files, and what it holds."""

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """JSON values for the manifest, once all units are done; raises when a check of the result fails."""


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(value: Any) -> str:
    return sha256(canonical(value).encode()).hexdigest()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_directory(path.parent)


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


def _process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks, None when it is not alive (a zombie is not)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else fields[19]


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


class Lock:
    """Ownership of a stage directory: a file with the owner's token and a heartbeat that it keeps moving.

    The owner writes its heartbeat through the descriptor of the file that it created, so that a lock that was taken
    over (another file under the same name) can never be overwritten by the old owner.
    """

    def __init__(self, directory: Path, heartbeat: float, stale_after: float) -> None:
        self._path = directory / "lock"
        self._directory = directory
        self._heartbeat, self._stale_after = heartbeat, stale_after
        self.token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._descriptor = -1

    def _identity(self) -> dict[str, Any]:
        status = self._directory.stat()
        return {
            "token": self.token,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
            # A copied directory brings its lock along; the copy's inode tells that the owner is at work elsewhere.
            "directory": [status.st_dev, status.st_ino],
        }

    def _read(self) -> tuple[dict[str, Any], bytes] | None:
        """The present owner and its heartbeat; None when there is no lock."""
        try:
            owner, _, beat = self._path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        try:
            return json.loads(owner), beat
        except ValueError:
            return {}, beat

    def _is_dead(self, owner: dict[str, Any]) -> bool:
        """Whether the owner is certainly gone (False: only its heartbeat can tell)."""
        if owner.get("directory") != self._identity()["directory"]:
            return True
        if owner.get("machine") != _machine():
            return False
        return _process_start(int(owner.get("pid", -1))) != owner.get("started")

    def acquire(self, log: Log, event: Callable[..., None]) -> None:
        """Waits while another owner lives, then takes the lock.

        Args:
            log: Where to say that it waits.
            event: Where to record a takeover.
        """
        seen: tuple[str | None, bytes] = (None, b"")
        since, announced = time.monotonic(), False
        while True:
            present = self._read()
            if present is None:
                if self._create():
                    break
                continue
            owner, beat = present
            who = f"{owner.get('host', '?')}:{owner.get('pid', '?')}"
            if (owner.get("token"), beat) != seen:
                seen, since = (owner.get("token"), beat), time.monotonic()
            if self._is_dead(owner) or time.monotonic() - since > self._stale_after:
                self._replace()
                # Two processes may take over at once: the last to replace the file has it, the other waits again.
                time.sleep(min(0.2, self._heartbeat))
                if self.is_mine():
                    log(f"Took over from {who}, which is gone.")
                    event("takeover", previous=who)
                    break
                continue
            if not announced:
                log(f"Waiting: {who} is at work in {self._directory}.")
                event("wait", owner=who)
                announced = True
            time.sleep(min(1.0, self._heartbeat))
        self._thread = threading.Thread(target=self._beat, name="stage-heartbeat", daemon=True)
        self._thread.start()

    def _prepare(self) -> Path:
        temporary = self._path.with_name(f".lock.{self.token}.partial")
        self._descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._head = canonical(self._identity()).encode() + b"\n"
        os.pwrite(self._descriptor, self._head + b"%012d" % 0, 0)
        os.fsync(self._descriptor)
        return temporary

    def _create(self) -> bool:
        temporary = self._prepare()
        try:
            os.link(temporary, self._path)
        except FileExistsError:
            os.close(self._descriptor)
            return False
        finally:
            temporary.unlink()
        return True

    def _replace(self) -> None:
        self._prepare().replace(self._path)

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self._heartbeat):
            count += 1
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, b"%012d" % count, len(self._head))
                os.fsync(self._descriptor)

    def is_mine(self) -> bool:
        """Whether the lock still carries this process's token."""
        present = self._read()
        return present is not None and present[0].get("token") == self.token

    def check(self) -> None:
        """Checks that this process still owns the stage.

        Raises:
            FencedError: Another process has taken over.
        """
        if not self.is_mine():
            raise FencedError(
                f"Another process has taken over {self._directory} while this one was thought dead; this one stops "
                "here, nothing is lost."
            )

    def release(self) -> None:
        """Gives the lock back, if it is still this process's."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            os.close(self._descriptor)
            if self.is_mine():
                self._path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Journal


@dataclass
class Journal:
    """What is done: files (size and SHA-256) of every finished unit, and the results once they were computed."""

    path: Path
    key: str
    units: dict[int, Files]
    results: dict[str, Any] | None = None
    intact: bool = True

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
        journal.intact = lines[-1] == b""
        for line in lines:
            if not line:
                continue
            checksum, _, text = line.partition(b" ")
            if checksum != sha256(text).hexdigest()[:16].encode():
                journal.intact = False
                continue
            entry = json.loads(text)
            if entry["key"] != key:
                journal.intact = False
            elif "results" in entry:
                journal.results = entry["results"]
            else:
                journal.units[entry["unit"]] = entry["files"]
        return journal

    def _line(self, entry: dict[str, Any]) -> str:
        text = canonical({"key": self.key, **entry})
        return f"{sha256(text.encode()).hexdigest()[:16]} {text}\n"

    def _append(self, entry: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(self._line(entry).encode())
            file.flush()
            os.fsync(file.fileno())

    def add_unit(self, unit: int, files: Files) -> None:
        """Records a finished unit."""
        self._append({"unit": unit, "files": files})
        self.units[unit] = files

    def add_results(self, results: dict[str, Any]) -> None:
        """Records the results."""
        self._append({"results": results})
        self.results = results

    def rewrite(self) -> None:
        """Writes the journal anew with what counts."""
        entries: list[dict[str, Any]] = [{"unit": u, "files": self.units[u]} for u in sorted(self.units)]
        if self.results is not None:
            entries.append({"results": self.results})
        _write_atomically(self.path, "".join(self._line(entry) for entry in entries))
        self.intact = True

    def digest(self) -> str:
        """SHA-256 over name, size and SHA-256 of every file."""
        files = {name: check for unit in self.units.values() for name, check in unit.items()}
        return _hash(sorted([name, *check] for name, check in files.items()))

    def damaged(self, store: Path, *, read: bool) -> dict[int, str]:
        """Units whose files are not as journalled.

        Args:
            store: The store's directory.
            read: Whether to read the files, or to look at their sizes only.

        Returns:
            One name of a damaged or missing file for each such unit.
        """
        found: dict[int, str] = {}
        for unit, files in self.units.items():
            for name, check in files.items():
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


def memory_available() -> int:
    """Bytes of memory that this process may still take: the machine's, or its SLURM allocation."""
    available = psutil.virtual_memory().available
    if os.environ.get("SLURM_MEM_PER_NODE", "").isdigit():
        allocated = int(os.environ["SLURM_MEM_PER_NODE"]) << 20
        if allocated:  # 0 means the whole node
            available = min(available, allocated)
    return available


def format_bytes(size: float) -> str:
    """A size for people: `43.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_seconds(seconds: float) -> str:
    """A duration for people: `2 h 05 min`, `3 min 20 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"


def _metadata_files(store: Path) -> Files:
    """Size and checksum of every array's and inner group's metadata (the root's attributes hold this table)."""
    return {
        str(path.relative_to(store)): _file_checksum(path)
        for path in sorted(store.rglob("zarr.json"))
        if path.parent != store
    }


def _root_attributes(directory: Path) -> dict[str, Any] | None:
    """Root attributes of a stage's store, None when they are missing or damaged, or the arrays' metadata are."""
    store = directory / "store.zarr"
    try:
        attributes = json.loads((store / "zarr.json").read_text())["attributes"]
        checksum = attributes.pop("checksum")
        if checksum != _hash(attributes) or attributes["metadata"] != _metadata_files(store):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return attributes


def _fingerprint(task: Task) -> str:
    return _hash({"stage": task.name, "version": task.version, "parameters": task.parameters()})


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
        self.staging_path = directory / f"staging.{lock.token}.zarr"
        self.fingerprint = _fingerprint(task)

    def run(self) -> dict[str, Any]:
        self._sweep_temporaries()
        attributes = self._resume() or self._begin()
        plan = attributes["plan"]
        total = self.task.units(plan)
        journal = Journal.load(self.directory / "journal", self._key(plan))
        self._repair(journal, total)
        pending = [unit for unit in range(total) if unit not in journal.units]
        estimate = self._check_resources(plan, journal) if pending else None
        self.events("start", units=total, done=total - len(pending), device=plan.get("device", ""))
        if pending:
            self._announce(total, pending, estimate)
        store = StageStore(self.directory)
        if pending or journal.results is None:
            self.task.start(plan)
        self._compute(pending, total, plan, journal, store)
        if journal.results is None:
            self.log(f"{self.task.name}: all {total} units are done; checking the result.")
            results = self.task.results(plan, store)
            self.lock.check()
            journal.add_results(results)
        damaged = journal.damaged(self.store_path, read=bool(pending))
        if damaged:
            unit, name = next(iter(damaged.items()))
            raise StoreError(
                f"{name} in {self.store_path} (unit {unit}) was damaged meanwhile; run the same command again."
            )
        return self._write_manifest(plan, total, journal)

    def _key(self, plan: dict[str, Any]) -> str:
        return _hash({"fingerprint": self.fingerprint, "plan": plan})[:16]

    def _sweep_temporaries(self) -> None:
        """Leftovers of killed writes."""
        for path in [*self.directory.glob("staging.*.zarr"), *self.directory.glob("*.partial.zarr")]:
            shutil.rmtree(path, ignore_errors=True)
        for path in self.directory.glob(".*.partial"):
            path.unlink(missing_ok=True)

    def _resume(self) -> dict[str, Any] | None:
        """Attributes of a store that this task can go on with, None when it must start afresh."""
        attributes = _root_attributes(self.directory)
        if attributes is None:
            if self.store_path.exists():
                self.log(f"{self.task.name}: the store's metadata are damaged; starting afresh.")
                self.events("afresh", reason="damaged metadata")
            return None
        if attributes["fingerprint"] == self.fingerprint:
            return attributes
        mine = {"stage": self.task.name, "version": self.task.version, **self.task.parameters()}
        theirs = {"stage": attributes["stage"], "version": attributes["version"], **attributes["parameters"]}
        changed = [
            f"{key}: {canonical(theirs.get(key))} → {canonical(mine.get(key))}"
            for key in sorted({*mine, *theirs})
            if mine.get(key) != theirs.get(key)
        ]
        self.log(
            f"{self.task.name}: what is here was computed from something else; starting afresh ({'; '.join(changed)})."
        )
        self.events("afresh", reason="; ".join(changed))
        return None

    def _begin(self) -> dict[str, Any]:
        """Makes the plan and an empty store."""
        for name in ("manifest.json", "journal"):
            (self.directory / name).unlink(missing_ok=True)
        shutil.rmtree(self.store_path, ignore_errors=True)
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
        temporary = self.directory / f"{self.lock.token}.partial.zarr"
        group = zarr.open_group(temporary, mode="w", zarr_format=3)
        for spec in self.task.arrays(plan):
            create_array(group, spec)
        attributes["metadata"] = _metadata_files(temporary)
        group.update_attributes({**attributes, "checksum": _hash(attributes)})
        temporary.rename(self.store_path)
        _sync_directory(self.directory)
        return attributes

    def _repair(self, journal: Journal, total: int) -> None:
        """Drops damaged units from the journal and un-journalled files from the store."""
        damaged = journal.damaged(self.store_path, read=True)
        for unit in [*damaged, *(u for u in journal.units if u >= total)]:
            journal.units.pop(unit, None)
        for unit, name in sorted(damaged.items()):
            self.log(f"{self.task.name}: unit {unit} is computed again, since {name} is missing or damaged.")
            self.events("damaged", unit=unit, file=name)
        if len(journal.units) < total and journal.results is not None:
            # Recomputed units are equal, but their check must be made on what is there then.
            journal.results, journal.intact = None, False
        if damaged or not journal.intact:
            journal.rewrite()
        known = {name for files in journal.units.values() for name in files}
        for path in self.store_path.rglob("*"):
            if path.is_file() and path.name != "zarr.json" and str(path.relative_to(self.store_path)) not in known:
                path.unlink()

    def _check_resources(self, plan: dict[str, Any], journal: Journal) -> Estimate:
        estimate = self.task.estimate(plan)
        written = sum(int(check[0]) for files in journal.units.values() for check in files.values())
        missing = estimate.disk_bytes - written
        free = shutil.disk_usage(self.directory).free
        if missing > free:
            raise StageError(
                f"{self.task.name} needs {format_bytes(missing)} more disk in {self.directory}, but only "
                f"{format_bytes(free)} are free; free some or link results/ to a larger disk, then run it again."
            )
        available = memory_available()
        if estimate.memory_bytes > available:
            raise StageError(
                f"{self.task.name} needs about {format_bytes(estimate.memory_bytes)} of memory, but only "
                f"{format_bytes(available)} are available; use a larger machine or ask for more (resource mem_mb)."
            )
        return estimate

    def _announce(self, total: int, pending: list[int], estimate: Estimate | None) -> None:
        text = f"{self.task.name}: {len(pending)} of {total} units to compute"
        if estimate is not None:
            text += (
                f"; about {format_bytes(estimate.memory_bytes)} of memory, {format_bytes(estimate.disk_bytes)} of disk"
            )
            if estimate.seconds is not None:
                text += f", {format_seconds(estimate.seconds * len(pending) / max(1, total))}"
        self.log(text + ".")

    def _compute(
        self, pending: list[int], total: int, plan: dict[str, Any], journal: Journal, store: StageStore
    ) -> None:
        if not pending:
            return
        staging = self._create_staging()
        began = said = time.monotonic()
        for count, unit in enumerate(pending, start=1):
            started = time.monotonic()
            arrays = self.task.compute(unit, plan, store)
            self._commit(unit, arrays, staging, journal)
            now = time.monotonic()
            self.events("unit", unit=unit, seconds=round(now - started, 3), done=len(journal.units), total=total)
            if now - said > 10 or count == len(pending):
                said = now
                left = (now - began) / count * (len(pending) - count)
                self.log(
                    f"{self.task.name}: {len(journal.units)}/{total} units ({len(journal.units) / total:.0%}), "
                    f"{format_seconds((now - began) / count)} each, "
                    + (
                        f"about {format_seconds(left)} left."
                        if count < len(pending)
                        else f"{format_seconds(now - began)} in all."
                    )
                )
        shutil.rmtree(self.staging_path, ignore_errors=True)

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
            member[selection] = values
        files: Files = {}
        for path in sorted(self.staging_path.rglob("*")):
            if path.is_file() and path.name != "zarr.json":
                files[str(path.relative_to(self.staging_path))] = _file_checksum(path)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        self.lock.check()
        touched = set()
        for name in files:
            target = self.store_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.staging_path / name).replace(target)
            touched.add(target.parent)
        for folder in touched:
            _sync_directory(folder)
        self.lock.check()
        journal.add_unit(unit, files)

    def _write_manifest(self, plan: dict[str, Any], total: int, journal: Journal) -> dict[str, Any]:
        manifest = {
            "stage": self.task.name,
            "version": self.task.version,
            "fingerprint": self.fingerprint,
            "parameters": json.loads(canonical(self.task.parameters())),
            "plan": plan,
            "units": total,
            "digest": journal.digest(),
            "results": journal.results,
        }
        manifest["checksum"] = _hash(manifest)
        self.lock.check()
        _write_atomically(self.directory / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        return manifest


@contextlib.contextmanager
def _full_disk_explained(directory: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
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
    with _full_disk_explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        events = _Events(directory)
        lock = Lock(directory, heartbeat, stale_after)
        lock.acquire(log, events)
        try:
            manifest = _Run(task, directory, lock, events, log).run()
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

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        super().__init__(directory)
        self.manifest = manifest

    @property
    def digest(self) -> str:
        """Digest of everything that the stage wrote, under its fingerprint."""
        return _hash([self.manifest["fingerprint"], self.manifest["digest"]])


def _directory_of(path: str | Path) -> Path:
    path = Path(path)
    return path.parent if path.name == "manifest.json" else path


def _remedy(directory: Path) -> str:
    return f"remove the directory {directory} and run the workflow again (only what is missing is computed)"


def _load_manifest(directory: Path, name: str | None) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        checksum = manifest.pop("checksum")
    except FileNotFoundError:
        raise StoreError(
            f"There is no finished stage in {directory}: it has no manifest.json; run the workflow."
        ) from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise StoreError(f"The manifest of {directory} is damaged ({error}); {_remedy(directory)}.") from error
    if checksum != _hash(manifest):
        raise StoreError(f"The manifest of {directory} was changed after it was written; {_remedy(directory)}.")
    if name is not None and manifest["stage"] != name:
        raise StoreError(f"{directory} holds the stage '{manifest['stage']}', where '{name}' was expected.")
    return manifest


def _check_finished(directory: Path, name: str | None, *, read: bool) -> dict[str, Any]:
    manifest = _load_manifest(directory, name)
    if not (directory / "store.zarr").exists():
        raise StoreError(f"The manifest of {directory} has no store beside it; {_remedy(directory)}.")
    attributes = _root_attributes(directory)
    if (
        attributes is None
        or attributes["fingerprint"] != manifest["fingerprint"]
        or attributes["plan"] != manifest["plan"]
    ):
        raise StoreError(f"The store's metadata in {directory} are damaged or another's; {_remedy(directory)}.")
    key = _hash({"fingerprint": manifest["fingerprint"], "plan": manifest["plan"]})[:16]
    journal = Journal.load(directory / "journal", key)
    if len(journal.units) != manifest["units"] or journal.digest() != manifest["digest"]:
        raise StoreError(f"The journal of {directory} does not match its manifest; {_remedy(directory)}.")
    damaged = journal.damaged(directory / "store.zarr", read=read)
    if damaged:
        names = ", ".join(sorted(damaged.values())[:3])
        raise StoreError(f"{len(damaged)} units of {directory} are missing or damaged ({names}); {_remedy(directory)}.")
    return manifest


def open_stage(path: str | Path, name: str | None = None) -> FinishedStage:
    """Opens a finished stage; sizes and metadata are checked here, contents by their checksums as they are read.

    Args:
        path: The stage's directory, or the manifest in it.
        name: Name that the stage must have.

    Returns:
        The stage.
    """
    directory = _directory_of(path)
    return FinishedStage(directory, _check_finished(directory, name, read=False))


def verify_stage(path: str | Path) -> dict[str, Any]:
    """Reads everything that a finished stage wrote and compares it with the journal and the manifest.

    Args:
        path: The stage's directory, or the manifest in it.

    Returns:
        The manifest.
    """
    return _check_finished(_directory_of(path), None, read=True)
