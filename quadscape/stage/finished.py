"""Finished stages: manifests, opening, checking, and what differs between two of them."""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quadscape.digests import canonical_digest
from quadscape.errors import StoreError
from quadscape.refusals import forbidden
from quadscape.stage.files import (
    ASIDE,
    PURGED,
    checked_document,
    directory_of,
    document_text,
    remedy,
    root_attributes,
)
from quadscape.stage.journal import Journal, journal_key
from quadscape.stage.protocol import StageStore
from quadscape.stage.superseded import (
    changes,
)
from quadscape.stored import stage_digest


def identity(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What a fingerprint is made of, in one mapping, to tell what differs."""
    return {**attributes["parameters"], "stage": attributes["stage"], "version": attributes["version"]}


def make_manifest(attributes: Mapping[str, Any], total: int, journal: Journal) -> dict[str, Any]:
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


def finished_attributes(directory: Path) -> dict[str, Any] | None:
    """Attributes of the store of a finished stage, None where there is none or it is not finished.

    A workflow removes the manifest before it runs a rule again. So what is whole is finished without it, too.

    Args:
        directory: The stage's directory.

    Returns:
        The attributes.
    """
    attributes = root_attributes(directory)
    if attributes is None or any((directory / name).exists() for name in ("manifest.json", PURGED)):
        return attributes
    return None if _rebuilt_manifest(directory, attributes) is None else attributes


def _rebuilt_manifest(directory: Path, attributes: Mapping[str, Any]) -> str | None:
    """Text of the manifest as it was or would have been, None where the stage is not whole (by the files' sizes)."""
    journal = Journal.load(directory / "journal", journal_key(attributes))
    if journal.results is None or journal.damaged(directory / "store.zarr", read=False):
        return None
    return document_text(make_manifest(attributes, len(journal.units), journal))


def missing_manifest(directory: Path) -> str | None:
    """Text of the manifest of a finished stage, None where the one that is there will do or it cannot be made."""
    attributes = root_attributes(directory)
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
    old, new = root_attributes(before), root_attributes(after)
    return "" if old is None or new is None else changes(identity(old), identity(new))


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
        with _unless_forbidden(self.directory):
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
    manifest = checked_document(directory, "manifest.json")
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


@contextlib.contextmanager
def _unless_forbidden(directory: Path) -> Generator[None]:
    """Says so where what looks like damage is a right that this user does not have."""
    try:
        yield
    except (StoreError, OSError):
        if sentence := forbidden(directory, ASIDE):
            raise StoreError(sentence) from None
        raise


def _check_finished(directory: Path, manifest: dict[str, Any], purged: Sequence[str], *, read: bool) -> Journal:
    """Compares store and journal with a manifest."""
    if not (directory / "store.zarr").exists():
        raise StoreError(f"The manifest of {directory} has no store beside it; {remedy(directory)}.")
    attributes = root_attributes(directory)
    if attributes is None:
        raise StoreError(f"The store's metadata in {directory} are damaged; {remedy(directory)}.")
    if attributes["fingerprint"] != manifest["fingerprint"] or attributes["plan"] != manifest["plan"]:
        raise StoreError(
            f"The manifest of {directory} is another stage's or checkpoint's than the store beside it; "
            f"{remedy(directory)}."
        )
    journal = Journal.load(directory / "journal", journal_key(manifest))
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
    directory = directory_of(path)
    with _unless_forbidden(directory):
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
    directory = directory_of(path)
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
    document = checked_document(directory, PURGED)
    return None if document is None else Purged(**document)
