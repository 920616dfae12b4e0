"""The files of a result.

A result is a folder with one declared manifest and, beside it, one Parquet file per table. All names carry the same
eight digits of options and code label, so that other options or changed code are other files. Every table names its
origin, a digest of measure, label, options and the digests of all that was read: a job that finds tables of its own
origin measures nothing and writes the manifest, which equal results make equal byte for byte.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quadscape.digests import json_digest
from quadscape.errors import StoreError
from quadscape.measures.declaration import Measure
from quadscape.tables import Table, read_table, table_head

if TYPE_CHECKING:
    from quadscape.stage.finished import FinishedStage


def read_document(path: str | Path) -> dict[str, Any]:
    """A manifest or root metadata as JSON; of a purged stage, the manifest that the record of the purge holds.

    Args:
        path: The file.

    Returns:
        Its content.
    """
    path = Path(path)
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return json.loads(path.with_name("purged.json").read_text(encoding="utf-8"))["manifest"]


def input_digest(path: str | Path) -> str:
    """Digest of the content of a stage, a store, or the tables of another measure.

    Args:
        path: Manifest or root metadata, as rules declare them.

    Returns:
        Hexadecimal digest, the same however the content was cut into shards.

    Raises:
        StoreError: The file is not there or says nothing.
    """
    try:
        found = read_document(path)
        if "tables" in found:
            return json_digest(found["tables"])
        attributes = found.get("attributes", {})
        own = attributes.get("content") or attributes.get("digest") or found.get("results", {}).get("content")
        return own or sha256(f"{found['fingerprint']} {found['digest']}".encode()).hexdigest()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); run the workflow again.") from error


@dataclass(frozen=True)
class Provenance:
    """Everything that a result follows from.

    Attributes:
        measure: The measure.
        label: Label of its code.
        options: Its options.
        inputs: Digests of what it reads, by name.
    """

    measure: Measure
    label: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Sequence[str]]

    @classmethod
    def of(
        cls, measure: Measure, label: str, options: Mapping[str, Any], paths: Mapping[str, Sequence[str | Path]]
    ) -> "Provenance":
        """That of a result whose inputs lie in some places, by name."""
        return cls(
            measure, label, options, {name: [input_digest(path) for path in paths[name]] for name in measure.reads}
        )

    def document(self) -> dict[str, Any]:
        """As JSON values, for the manifest."""
        return {
            "measure": self.measure.name,
            "label": self.label,
            "options": dict(self.options),
            "inputs": {name: list(found) for name, found in self.inputs.items()},
        }

    @property
    def origin(self) -> str:
        """Digest of all of it."""
        return json_digest(list(self.document().values()))


def manifest_name(digits: str) -> str:
    """Name of the declared file of a result."""
    return f"manifest-{digits}.json"


def table_path(manifest: str | Path, table: str) -> Path:
    """File of a table, beside the manifest of its result."""
    manifest = Path(manifest)
    return manifest.with_name(f"{table}-{manifest.stem.removeprefix('manifest-')}.parquet")


def items_directory(manifest: str | Path) -> Path:
    """Where the values of the items of a long measure lie: until its tables are written, or, if it keeps any, on."""
    manifest = Path(manifest)
    return manifest.with_name(manifest.stem.replace("manifest", "items"))


def open_kept(manifest: str | Path) -> "FinishedStage":
    """What a result keeps beside its tables.

    Args:
        manifest: The declared file of the result.

    Returns:
        The stage of its items; what it keeps are arrays of it, with one axis for the items in front.

    Raises:
        StoreError: It is not there, or damaged, or of another origin than the tables.
    """
    from quadscape.stage.finished import open_stage  # here, as reading tables needs no Zarr

    again = f"remove {manifest} and run the workflow again, which measures what is missing"
    try:
        stage = open_stage(items_directory(manifest), "measure")
    except StoreError as error:
        raise StoreError(f"What {manifest} keeps beside its tables cannot be read ({error}); {again}.") from error
    if stage.manifest["parameters"].get("origin") != read_result(manifest)["origin"]:
        raise StoreError(f"What lies in {items_directory(manifest)} is of another origin than {manifest}; {again}.")
    return stage


def has_kept(manifest: Path, measure: Measure, origin: str) -> bool:
    """Whether what a measure keeps beside its tables is there, of this origin, by the sizes of its files."""
    if not measure.keeps:
        return True
    from quadscape.stage.finished import open_stage

    try:
        return open_stage(items_directory(manifest), "measure").manifest["parameters"].get("origin") == origin
    except StoreError:
        return False


def read_result(manifest: str | Path) -> dict[str, Any]:
    """A manifest as JSON.

    Args:
        manifest: The file.

    Returns:
        measure, label, options, inputs, origin, and digests of the tables.

    Raises:
        StoreError: It is missing or damaged.
    """
    try:
        found = json.loads(Path(manifest).read_text(encoding="utf-8"))
        found["tables"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{manifest} is damaged ({error}); remove that file and run the workflow again.") from error
    return found


def write_result(manifest: str | Path, provenance: Provenance, tables: Mapping[str, Table]) -> None:
    """Writes the tables of a result, then its manifest.

    Args:
        manifest: The declared file.
        provenance: What the result follows from.
        tables: By name; all that the measure declares and no others.

    Raises:
        ValueError: The tables are not those that the measure declares.
    """
    measure, origin = provenance.measure, provenance.origin
    if tables.keys() != measure.schemas.keys():
        raise ValueError(f"{measure.name} declares {sorted(measure.schemas)}, but the tables are {sorted(tables)}")
    for name, table in tables.items():
        table.write(table_path(manifest, name), origin)
    write_manifest(manifest, provenance)


def write_manifest(manifest: str | Path, provenance: Provenance) -> None:
    """Writes the manifest of tables that are there.

    Args:
        manifest: The declared file.
        provenance: What the result follows from.
    """
    path = Path(manifest)
    files = {name: table_path(path, name) for name in provenance.measure.schemas}
    document = {
        **provenance.document(),
        "origin": provenance.origin,
        "tables": {name: table_head(file)["digest"] for name, file in files.items()},
        "files": {file.name: sha256(file.read_bytes()).hexdigest() for file in files.values()},
    }
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def has_tables(manifest: Path, measure: Measure, origin: str) -> bool:
    """Whether all tables of a result are there, whole, and of this origin."""
    for name, schema in measure.schemas.items():
        path = table_path(manifest, name)
        try:
            if table_head(path)["origin"] != origin:
                return False
            read_table(path, schema)
        except StoreError:
            return False
    return True
