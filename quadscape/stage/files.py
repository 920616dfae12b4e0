"""Files of a stage: their checksums, the root attributes of its store, and what helps when they are damaged."""

import json
import os
import pwd
import stat
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


def forbidden(path: Path) -> str:
    """What this user may not read below a place: that is no damage.

    Args:
        path: A file or a directory.

    Returns:
        One sentence that names the first of them, its owner and its rights; empty where everything may be read.
    """
    for folder, subfolders, files in os.walk(path):
        subfolders.sort()
        for name in (*subfolders, *sorted(files)):
            if sentence := _forbidden(Path(folder) / name):
                return sentence
    return _forbidden(path)


def _forbidden(path: Path) -> str:
    if os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)) or not os.path.lexists(path):
        return ""
    try:
        found = path.stat()
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})."
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = str(found.st_uid)
    return (
        f"{path} may not be read by this user: it belongs to {owner} and has the rights "
        f"{stat.filemode(found.st_mode)}; nothing is known to be damaged. Ask the owner for the right to read it."
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
