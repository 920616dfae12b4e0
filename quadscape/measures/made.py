"""What figures, pages and findings were made from, and their checksums: beside them, in `made-<name>.json`."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from quadscape.digests import json_digest
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
    files = {Path(path).name: sha256(Path(path).read_bytes()).hexdigest() for path in outputs}
    made = {name: [input_digest(path) for path in paths] for name, paths in inputs.items()}
    record = {"files": files, "inputs": made}
    temporary = place.with_name(f".{place.name}.partial")
    text = json.dumps({**record, "checksum": json_digest(record)}, indent=1, sort_keys=True)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(place)


def recorded_files(record: Path) -> dict[str, str] | None:
    """Checksums of what a record is about, by name; None where it is damaged."""
    document = stored_document(record)
    if document is None or document.pop("checksum", None) != json_digest(document):
        return None
    return {str(name): str(checksum) for name, checksum in document.get("files", {}).items()}
