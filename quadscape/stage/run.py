"""Running a stage: resuming, computing unit by unit, committing, and writing the manifest."""

import contextlib
import errno
import json
import platform
import shutil
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr

from quadscape.amounts import format_bytes, format_seconds
from quadscape.digests import canonical
from quadscape.durable import sync
from quadscape.errors import DeviceMemoryError, FencedError, QuadscapeError, RoundingError, StageError, StoreError
from quadscape.memory_limits import memory_available, memory_total
from quadscape.refusals import REFUSED, first_unwritable, folders_below, in_words
from quadscape.stage.committing import Committing
from quadscape.stage.deadline import Deadline
from quadscape.stage.events import Events, Log
from quadscape.stage.files import (
    PURGED,
    Files,
    document_text,
    file_checksum,
    fingerprint_of,
    metadata_files,
    root_attributes,
    root_checksum,
)
from quadscape.stage.finished import finished_attributes, identity, load_purged, make_manifest, missing_manifest
from quadscape.stage.journal import Journal, journal_key
from quadscape.stage.lock import HEARTBEAT_SECONDS, STALE_SECONDS, Lock
from quadscape.stage.progress import Progress
from quadscape.stage.protocol import Arrays, Needs, StageStore, Task
from quadscape.stage.superseded import (
    EVENTS,
    changes,
    check_movable,
    exchange,
    recover,
    set_aside,
    superseded_directory,
    take_back,
)
from quadscape.store import create_array

_UNUSABLE = {errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EIO, errno.ESTALE}


def _versions() -> dict[str, str]:
    names = ("quadscape", "torch", "numpy", "scipy", "zarr")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(Exception):
            found[name] = installed_version(name)
    return found


def _described(task: Task) -> dict[str, Any]:
    """What a task's fingerprint is made of."""
    return {"stage": task.name, "version": task.version, "parameters": task.parameters()}


class _Run:
    """One process's work on a stage whose lock it holds."""

    def __init__(self, task: Task, directory: Path, lock: Lock, events: Events, log: Log) -> None:
        self.task, self.directory, self.lock, self.events, self.log = task, directory, lock, events, log
        self.store_path = directory / "store.zarr"
        self.staging_path = lock.workspace / "staging.zarr"
        self.fingerprint = fingerprint_of(_described(task))
        self._purged: list[str] = []

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
        self._purged = self._purged_arrays()
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
            if estimate is not None:
                if pending:
                    self._announce(total, pending, estimate)
                self.task.start(plan)
                if pending:
                    plan = self._compute(
                        pending, plan, journal, Progress(self.task.name, pending, total, estimate, self.lock)
                    )
            if journal.results is None:
                self.log(f"{self.task.name}: all {total} units are done; checking the result.")
                # Through JSON, so that this process and a later one see the very same results.
                results = json.loads(canonical(self.task.results(plan, StageStore(self.directory))))
                self.lock.check()
                journal.add_results(results)
            self._discard_scratch(plan, journal)
            self._check_again(journal, read=bool(pending))
            return self._write_manifest(first, total, journal)

    def _purged_arrays(self) -> list[str]:
        """Arrays that were purged and are computed again, which is said in one line."""
        with contextlib.suppress(StoreError):
            if not (self.directory / "manifest.json").exists() and (purged := load_purged(self.directory)) is not None:
                names = " and ".join(purged.arrays)
                self.log(f"{self.task.name}: {names} purged on {purged.date}, computed again.")
                self.events("again", arrays=purged.arrays, purged=purged.date)
                return purged.arrays
        return []

    def _key(self, plan: dict[str, Any]) -> str:
        return journal_key({"fingerprint": self.fingerprint, "plan": plan})

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
        attributes = root_attributes(self.directory)
        if attributes is not None and attributes["fingerprint"] == self.fingerprint:
            return attributes
        earlier = finished_attributes(superseded_directory(self.directory))
        if earlier is not None and earlier["fingerprint"] == self.fingerprint:
            self._take_back(attributes)
            return root_attributes(self.directory)
        return None

    def _take_back(self, attributes: dict[str, Any] | None) -> None:
        """Exchanges what is here, of other parameters or nothing, for what was set aside."""
        aside = superseded_directory(self.directory)
        check_movable(self.directory)
        text = f"{self.task.name}: the result of these parameters, which was set aside in {aside}, is taken back"
        if attributes is not None:
            text += f" ({self._changes(attributes)})"
        if finished_attributes(self.directory) is None:
            take_back(self.lock, self.directory)
        else:
            exchange(self.lock, self.directory, missing_manifest(self.directory))
            text += "; the one that was here is set aside in its place"
        self.log(text + ".")
        self.events("returned")

    def _changes(self, attributes: dict[str, Any]) -> str:
        return changes(identity(attributes), identity(_described(self.task)))

    def _make_room(self) -> None:
        """Sets aside what is finished here, under other parameters, and removes what is not."""
        aside, attributes = superseded_directory(self.directory), root_attributes(self.directory)
        changed = "" if attributes is None else self._changes(attributes)
        if finished_attributes(self.directory) is not None:
            replacing = ", in place of an older one," if aside.exists() else ""
            set_aside(self.lock, self.directory, missing_manifest(self.directory))
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
            **json.loads(canonical(_described(self.task))),
            "fingerprint": self.fingerprint,
            "plan": plan,
            "versions": _versions(),
        }
        self._check_resources(plan, None)
        if finished_attributes(self.directory) is not None:
            check_movable(self.directory)
        prepared = self.lock.workspace / "store.zarr"
        group = zarr.open_group(prepared, mode="w", zarr_format=3)
        for spec in self.task.arrays(plan):
            create_array(group, spec)
        attributes["metadata"] = metadata_files(prepared)
        document = json.loads((prepared / "zarr.json").read_text())
        group.update_attributes({**attributes, "checksum": root_checksum(document, attributes)})
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
            if name.partition("/")[0] in self._purged and not (self.store_path / name).exists():
                continue
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

    def _check_resources(self, plan: dict[str, Any], journal: Journal | None) -> Needs:
        """Refuses what cannot be done here; without a journal, what is there will be removed or set aside."""
        estimate = self.task.estimate(plan)
        kept, replaced = "", self.store_path
        if journal is None and finished_attributes(self.directory) is not None:
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

    def _announce(self, total: int, pending: list[int], estimate: Needs) -> None:
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
        self, pending: list[int], plan: dict[str, Any], journal: Journal, progress: Progress
    ) -> dict[str, Any]:
        """Computes units and has them stored; the plan that it ends with may be a smaller one than it began with."""
        staging, deadline = self._create_staging(), Deadline()
        with Committing() as committing:
            store = StageStore(self.directory, committing.finish_array)

            def commit(unit: int, started: float, arrays: Arrays) -> None:
                self._commit(unit, arrays, staging, journal, committing)
                self.events("unit", unit=unit, **progress.stored(started))

            for unit in pending:
                # Also here, so that nothing long is begun for a stage that another process has.
                self.lock.check()
                started = time.monotonic()
                plan = self._hand_over(unit, plan, journal, store, committing, partial(commit, unit, started))
                if line := progress.line():
                    self.log(line)
                # What is left must be enough for computing and storing one more, as it was for the last that is stored.
                if unit != pending[-1] and deadline.comes_before(max(time.monotonic() - started, progress.latency)):
                    committing.finish()
                    self._requeue(deadline)
            committing.finish()
        if line := progress.line():
            self.log(line)
        return plan

    def _requeue(self, deadline: Deadline) -> None:
        """Has SLURM begin this job again, with all its time, and ends with it; returns where SLURM refuses."""
        self.log(f"{self.task.name}: {deadline.describe()}: the job goes back into the queue, and on from here.")
        self.events("requeue", left=deadline.describe())
        refused = deadline.requeue(self.lock.release)
        if refused:
            self.log(f"{self.task.name}: SLURM does not put it back ({refused.rstrip('.')}); going on while it lasts.")
            return
        deadline.wait()

    def _hand_over(
        self,
        unit: int,
        plan: dict[str, Any],
        journal: Journal,
        store: StageStore,
        committing: Committing,
        commit: Callable[[Arrays], None],
    ) -> dict[str, Any]:
        """Computes one unit and has it stored; what it has computed is then held by the committing thread alone."""
        arrays, plan = self._arrays(unit, plan, journal, store, committing)
        committing.hand_over(partial(commit, arrays), arrays)
        return plan

    def _arrays(
        self, unit: int, plan: dict[str, Any], journal: Journal, store: StageStore, committing: Committing
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
            committing.hand_over(partial(self._replan, unit, smaller, journal))
            committing.finish()
            self.task.start(smaller)
            plan = smaller

    def _replan(self, unit: int, plan: dict[str, Any], journal: Journal) -> None:
        self.lock.check()
        journal.add_plan(unit, plan)

    def _create_staging(self) -> zarr.Group:
        """An empty store with the same arrays, into which a unit is written before it is renamed into place."""
        for path in self.store_path.rglob("zarr.json"):
            target = self.staging_path / path.relative_to(self.store_path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return zarr.open_group(self.staging_path, mode="r+", zarr_format=3)

    def _commit(self, unit: int, arrays: Arrays, staging: zarr.Group, journal: Journal, committing: Committing) -> None:
        """Writes one unit, in the committing thread: whole in the store and in the journal, or it does not count."""
        self.lock.check()
        for name, (selection, values) in arrays.items():
            committing.check()
            member = staging[name]
            assert isinstance(member, zarr.Array)
            _check_selection(unit, member, selection, values)
            member[selection] = values
        files: Files = {}
        for path in sorted(self.staging_path.rglob("*")):
            if path.is_file() and path.name != "zarr.json":
                committing.check()
                name = str(path.relative_to(self.staging_path))
                if self._writers.setdefault(name, unit) != unit:
                    raise ValueError(f"Units {self._writers[name]} and {unit} both write the file {name}.")
                files[name] = file_checksum(path)
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
        manifest = make_manifest(
            {
                **json.loads(canonical(_described(self.task))),
                "fingerprint": self.fingerprint,
                "plan": plan,
            },
            total,
            journal,
        )
        prepared = self.lock.workspace / "manifest.json"
        prepared.write_text(document_text(manifest), encoding="utf-8")
        sync(prepared)
        self.lock.publish(prepared, self.directory / "manifest.json")
        sync(self.directory)
        return manifest


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


def _explained(error: BaseException, directory: Path) -> BaseException:
    """What the operating system says of a stage's directory, as an error that is a sentence; others as they are."""
    if not isinstance(error, OSError):
        return error
    sentence = in_words(error, directory)
    if not sentence and error.errno in _UNUSABLE | REFUSED and str(error.filename or "").startswith(str(directory)):
        sentence = (
            f"The stage's directory {directory} cannot be used: {error.filename}: {error.strerror}; make it a folder "
            "that can be written to."
        )
    return StageError(sentence) if sentence else error


def _check_writable(directory: Path) -> None:
    """Refuses at once what would fail at the first unit: folders of another user that this one may not write to."""
    folders = [path for path in folders_below(directory) if path.parent.name != "lock"]
    if sentence := first_unwritable([*folders, directory / EVENTS]):
        raise StageError(sentence)


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
    events, lock = Events(directory), Lock(directory, heartbeat, stale_after)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _check_writable(directory)
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
        told = _explained(error, directory)
        kind = "fenced" if isinstance(told, FencedError) else "error"
        events(kind, message=str(told) if isinstance(told, QuadscapeError) else repr(told))
        if told is error:
            raise
        raise told from error
    finally:
        lock.release()
