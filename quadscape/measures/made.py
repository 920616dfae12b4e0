"""What figures, pages and findings were made from, and their checksums: beside them, in `made-<name>.json`."""

import json
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from quadscape.digests import json_digest
from quadscape.errors import StoreError
from quadscape.measures.result import input_digest
from quadscape.stored import stored_document


def record_path(output: str | Path) -> Path:
    """Where that of a figure, a page or the findings lies: one for all formats of the same name."""
    output = Path(output)
    return output.with_name(f"made-{output.stem}.json")


def write_record(outputs: Sequence[str | Path], inputs: Mapping[str, Sequence[str | Path]]) -> None:
    """Records checksums of files that were made, and what from.

    Args:
        outputs: The files, of one name and in one folder.
        inputs: Manifests of results by measure.
    """
    place = record_path(outputs[0])
    # By their places from here, which say options and label: a folder of results may be copied elsewhere.
    made = {name: {_from_here(place, path): input_digest(path) for path in paths} for name, paths in inputs.items()}
    files = {Path(path).name: sha256(Path(path).read_bytes()).hexdigest() for path in outputs}
    record = {"files": files, "inputs": made}
    temporary = place.with_name(f".{place.name}.partial")
    text = json.dumps({**record, "checksum": json_digest(record)}, indent=1, sort_keys=True)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(place)


def _from_here(record: Path, path: str | Path) -> str:
    return Path(os.path.relpath(path, record.parent)).as_posix()


def is_made_from(output: str | Path, inputs: Mapping[str, Sequence[str | Path]]) -> bool:
    """Whether a figure, a page or the findings were made from some results, by their places and what is there.

    Args:
        output: The file.
        inputs: Manifests of results by measure.

    Returns:
        True also where nobody can tell: no record was kept. Of a record that names no places a missing result says that
        others are asked for; of one that does it is not asked what a missing result was.
    """
    place = record_path(output)
    recorded = (stored_document(place) or {}).get("inputs")
    if not isinstance(recorded, dict):
        return True
    if recorded.keys() != {name for name, paths in inputs.items() if paths}:
        return False
    for name, paths in inputs.items():
        made, there = recorded.get(name, {}), [path for path in paths if Path(path).exists()]
        if isinstance(made, list):
            if sorted(made) != sorted(map(digest_there, there)) or len(there) != len(paths):
                return False
        elif made.keys() != {_from_here(place, path) for path in paths} or any(
            made[_from_here(place, path)] != digest_there(path) for path in there
        ):
            return False
    return True


def digest_there(path: str | Path) -> str:
    """Digest of a result's tables; empty where it is not there, or says nothing."""
    try:
        return input_digest(path)
    except StoreError:
        return ""


def recorded_files(record: Path) -> dict[str, str] | None:
    """Checksums of what a record is about, by name; None where it is damaged."""
    document = stored_document(record)
    if document is None or document.pop("checksum", None) != json_digest(document):
        return None
    return {str(name): str(checksum) for name, checksum in document.get("files", {}).items()}
