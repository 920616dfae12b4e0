"""Sets a finished result aside, beside the directory of its stage, and takes it back.

A stage whose parameters have changed does not delete what it computed before: `trajectory` becomes
`trajectory.superseded`, with manifest, store, journal and events. The lock stays, so that nobody works in a directory
that is being moved, and since only the lock's owner moves anything, there are never two.

Every step is a rename into or out of the owner's workspace (see Fencing in `quadscape.stage`). What leaves is
gathered in `outgoing`, manifest first, and then renamed to its new place in one step; what comes back is renamed to
`incoming` in one step, and then put in place, manifest last. `Lock` hands both on from a killed owner to the next,
which puts everything where it belongs before it does anything else (`recover`):

    outgoing, incoming      nothing was replaced yet: what was gathered goes back, what was to come is aside again
    outgoing alone          the same
    incoming alone          what was to leave has left: what has not come in yet does
"""

import contextlib
import json
import re
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from quadscape.durable import sync
from quadscape.errors import StageError
from quadscape.stage.lock import INCOMING, OUTGOING, Lock

SUFFIX = ".superseded"
JOURNAL, EVENTS = "journal", "events.jsonl"
PIECES = ("manifest.json", "purged.json", JOURNAL, "store.zarr", EVENTS)
"""What makes up a result, in the order in which it leaves its directory."""

_REMOVED = re.compile(r"\.removed-[0-9a-f]{8}\.superseded$")
_SHOWN_CHANGES = 5
_SHOWN_LETTERS = 32
_DIGEST = re.compile(r'"[0-9a-f]{32,}"')


def superseded_directory(directory: Path) -> Path:
    """Where the result of other parameters is kept: beside the directory of a stage, on the same disk.

    Args:
        directory: The stage's directory.

    Returns:
        The directory, which need not exist.
    """
    place = directory.resolve() if directory.is_symlink() or directory.name in {"", ".."} else directory
    return place.with_name(place.name + SUFFIX)


def stage_directory(superseded: Path) -> Path:
    """The directory of the stage whose earlier result was set aside.

    Args:
        superseded: Where it was set aside.

    Returns:
        The directory, which need not exist.
    """
    return superseded.with_name(_REMOVED.sub("", superseded.name).removesuffix(SUFFIX))


def is_superseded(directory: Path) -> bool:
    """Whether a directory holds a result that was set aside, or what is left of it."""
    if not directory.name.endswith(SUFFIX):
        return False
    return _is_removed(directory) or any((directory / name).exists() for name in PIECES)


def _is_removed(directory: Path) -> bool:
    return _REMOVED.search(directory.name) is not None


# ---------------------------------------------------------------------------------------------------------------------
# Moving


def check_movable(directory: Path) -> None:
    """Checks that a result can be renamed between a stage's directory and the one beside it.

    Args:
        directory: The stage's directory.

    Raises:
        StageError: They are on different file systems.
    """
    beside = superseded_directory(directory)
    place = beside if beside.exists() else beside.parent
    if beside.is_symlink() or place.stat().st_dev != directory.stat().st_dev:
        raise StageError(
            f"{directory} holds, or {beside} does, a finished result of other parameters, and they are on different "
            "file systems, so that it cannot be set aside or taken back; move or remove it, then run it again."
        )


def set_aside(lock: Lock, directory: Path, manifest: str | None) -> None:
    """Moves a finished result beside its directory, in place of what may have been set aside there before.

    Args:
        lock: The stage's, held.
        directory: The stage's directory.
        manifest: Text of its manifest, where the one that is there is missing or damaged.
    """
    beside, replaced = superseded_directory(directory), lock.workspace / "replaced"
    with _undone(lock, directory):
        _gather(lock, directory, manifest)
        with contextlib.suppress(FileNotFoundError):
            lock.publish(beside, replaced)
        lock.publish(lock.workspace / OUTGOING, beside)
    sync(beside.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def take_back(lock: Lock, directory: Path) -> None:
    """Moves what was set aside into the stage's directory; what is there, which is not finished, is removed.

    Args:
        lock: The stage's, held.
        directory: The stage's directory.
    """
    beside = superseded_directory(directory)
    with _undone(lock, directory):
        for name in PIECES:
            lock.discard(directory / name)
        lock.publish(beside, lock.workspace / INCOMING)
        sync(beside.parent)
        _put_in_place(lock, lock.workspace / INCOMING, directory)


def exchange(lock: Lock, directory: Path, manifest: str | None) -> None:
    """Moves what was set aside into the stage's directory, and the finished result there into its place.

    Args:
        lock: The stage's, held.
        directory: The stage's directory.
        manifest: Text of the manifest of what is in the stage's directory, where it is missing or damaged.
    """
    beside = superseded_directory(directory)
    with _undone(lock, directory):
        _gather(lock, directory, manifest)
        lock.publish(beside, lock.workspace / INCOMING)
        lock.publish(lock.workspace / OUTGOING, beside)
        sync(beside.parent)
        _put_in_place(lock, lock.workspace / INCOMING, directory)


def recover(lock: Lock, directory: Path) -> None:
    """Brings what an owner was moving when it was killed to where it belongs.

    Args:
        lock: The stage's, held.
        directory: The stage's directory.
    """
    outgoing, incoming = lock.workspace / OUTGOING, lock.workspace / INCOMING
    if outgoing.is_dir():
        if incoming.is_dir():
            lock.publish(incoming, superseded_directory(directory))
        _put_in_place(lock, outgoing, directory)
    elif incoming.is_dir():
        _put_in_place(lock, incoming, directory)


@contextlib.contextmanager
def _undone(lock: Lock, directory: Path) -> Generator[None, None, None]:
    """Undoes at once what a full disk or a missing permission has stopped."""
    try:
        yield
    except OSError:
        recover(lock, directory)
        raise


def _gather(lock: Lock, directory: Path, manifest: str | None) -> None:
    outgoing = lock.workspace / OUTGOING
    lock.check()
    outgoing.mkdir()
    for name in PIECES:
        with contextlib.suppress(FileNotFoundError):
            if name == JOURNAL:
                # A former owner, which does not know yet that it is, may have the file open.
                _write(lock, (directory / name).read_bytes(), outgoing / name)
                lock.discard(directory / name)
            else:
                lock.publish(directory / name, outgoing / name)
    lock.check()  # nothing was missing only because the workspace has gone
    if manifest is not None:
        _write(lock, manifest.encode(), outgoing / "manifest.json")
    sync(outgoing)


def _write(lock: Lock, content: bytes, place: Path) -> None:
    draft = lock.workspace / f"draft.{place.name}"
    draft.write_bytes(content)
    sync(draft)
    lock.publish(draft, place)


def _put_in_place(lock: Lock, bundle: Path, directory: Path) -> None:
    for name in reversed(PIECES):
        piece, place = bundle / name, directory / name
        if not piece.exists():
            continue
        if name == EVENTS and place.exists():
            # Of a process that waits, meanwhile.
            _write(lock, piece.read_bytes() + place.read_bytes(), piece)
        elif place.is_dir():
            lock.discard(place)
        lock.publish(piece, place)
    sync(directory)
    lock.check()
    shutil.rmtree(bundle)


def remove(superseded: Path) -> None:
    """Removes a result that was set aside, whole; killed in the middle, the same call on what is left goes on.

    No lock is needed, and so nobody need be waited for: one rename takes it from the stage, or finds it gone.

    Args:
        superseded: Where it was set aside.
    """
    removed = superseded
    if not _is_removed(superseded):
        removed = superseded.with_name(f"{superseded.name.removesuffix(SUFFIX)}.removed-{uuid4().hex[:8]}{SUFFIX}")
        try:
            superseded.rename(removed)
        except FileNotFoundError:
            return
    shutil.rmtree(removed)


# ---------------------------------------------------------------------------------------------------------------------
# Telling


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What differs between two sets of parameters, for a sentence: `seed: 0 → 1; training.decay: 0 → 0.1`.

    Args:
        before: Values that JSON holds, nested or not.
        after: The same.

    Returns:
        A handful of keys with their values, shortened, digests last.
    """
    old, new = _flat(before), _flat(after)
    changed = [key for key in {*old, *new} if old.get(key) != new.get(key)]
    told = {key: f"{key}: {_short(old.get(key))} → {_short(new.get(key))}" for key in changed}
    changed.sort(key=lambda key: (_DIGEST.fullmatch(new.get(key) or old[key]) is not None, key))
    shown = [told[key] for key in changed[:_SHOWN_CHANGES]]
    if len(changed) > len(shown):
        shown.append(f"and {len(changed) - len(shown)} more")
    return "; ".join(shown)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """JSON texts of all values that are no mappings, by their path."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return found


def _short(text: str | None) -> str:
    if text is None:
        return "none"
    if _DIGEST.fullmatch(text):
        return text[1:9] + "…"
    return text if len(text) <= _SHOWN_LETTERS else text[: _SHOWN_LETTERS - 1] + "…"
