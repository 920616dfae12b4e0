"""Files of a stage: their checksums, the root attributes of its store, and what helps when they are damaged."""

import json
from collections.abc import Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

from quadscape.digests import canonical_digest
from quadscape.errors import StoreError
from quadscape.stage.superseded import is_superseded

Files = dict[str, list[int | str]]
"""Size and SHA-256 of each file, by its path within the store."""

PURGED = "purged.json"
ASIDE = ("lock", "events.jsonl")
"""What of a stage's directory is no part of its result."""


def file_checksum(path: Path) -> list[int | str]:
    """Computes size and SHA-256 of a file, in that order.

    No crc32c here: chunks end in their own, and the crc of data followed by its crc is the same for all data.

    Returns:
        Size in bytes, hexadecimal digest.
    """
    with path.open("rb") as file:
        total = file_digest(file, "sha256")
        return [file.tell(), total.hexdigest()]


def metadata_files(store: Path) -> Files:
    """Size and checksum of every array's and inner group's metadata (the root's attributes hold this table)."""
    return {
        str(path.relative_to(store)): file_checksum(path)
        for path in sorted(store.rglob("zarr.json"))
        if path.parent != store
    }


def root_checksum(document: dict[str, Any], attributes: dict[str, Any]) -> str:
    """Hash of everything in a root `zarr.json` but the checksum itself."""
    return canonical_digest({**document, "attributes": attributes})


def root_attributes(directory: Path) -> dict[str, Any] | None:
    """Root attributes of a stage's store, None when they are missing or damaged, or the arrays' metadata are."""
    store = directory / "store.zarr"
    try:
        document = json.loads((store / "zarr.json").read_text())
        attributes = document["attributes"]
        checksum = attributes.pop("checksum")
        if checksum != root_checksum(document, attributes) or attributes["metadata"] != metadata_files(store):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return attributes


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """Hash of everything that determines a stage's result: of its name, version and parameters."""
    return canonical_digest({key: manifest[key] for key in ("stage", "version", "parameters")})


def document_text(document: dict[str, Any]) -> str:
    """Text of a JSON document as a stage writes it: the same for equal content."""
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def directory_of(path: str | Path) -> Path:
    """The directory of a stage, of which its manifest may be given, too."""
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


def checked_document(directory: Path, name: str) -> dict[str, Any] | None:
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
