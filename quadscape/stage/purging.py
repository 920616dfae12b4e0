"""Removal of the large arrays of a finished stage, which leaves all that is needed to compute them again."""

import time
from collections.abc import Sequence
from pathlib import Path

from quadscape.digests import canonical_digest
from quadscape.durable import sync
from quadscape.errors import StageError
from quadscape.refusals import first_unwritable
from quadscape.stage.events import Events, Log
from quadscape.stage.files import PURGED, document_text
from quadscape.stage.finished import finished_manifest
from quadscape.stage.lock import HEARTBEAT_SECONDS, STALE_SECONDS, Lock
from quadscape.stage.superseded import recover


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

    Raises:
        StageError: This user may not remove them; nothing was begun then.
    """
    folders = {directory, *(path.parent for path in _array_files(directory, arrays))}
    if sentence := first_unwritable(sorted(folders)):
        raise StageError(sentence)
    events = Events(directory)
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
            prepared.write_text(document_text({**record, "checksum": canonical_digest(record)}))
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
