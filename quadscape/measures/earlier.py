"""Tables as they were before measures were declared, one Zarr store each, are taken over where their mathematics is so.

They lie in `tables/<run>/<key>/<table>.zarr`. Taking them over measures nothing, so that a purged eigenbasis is not
computed again for a change of format. The stores themselves stay until `quadscape purge` removes them.
"""

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quadscape.errors import StoreError
from quadscape.measures.catalogue import MEASURES
from quadscape.measures.declaration import Measure
from quadscape.measures.result import Provenance, read_document, write_result
from quadscape.tables import Table

LABEL = "1"
"""Label of the code that wrote them, of every measure."""

_NAMES = ("curves", "spectrum", "parts", "density", "line_search", "gradients", "overlap")


def earlier_tables(root: str | Path, measure: Measure, run: str, key: str) -> dict[str, Path]:
    """Where earlier versions put the tables of a measure.

    Args:
        root: `results/<name>`.
        measure: The measure.
        run: Name of the run.
        key: `run`, an iteration, or a pair of them.

    Returns:
        Directories of the stores by table; empty where one is missing.
    """
    found = {name: Path(root) / "tables" / run / key / f"{name}.zarr" for name in measure.schemas}
    whole = measure.name in _NAMES and all((path / "zarr.json").is_file() for path in found.values())
    return found if whole else {}


def take_over(
    measure: Measure,
    label: str,
    options: Mapping[str, Any],
    inputs: Mapping[str, list[str]],
    earlier: Mapping[str, Path],
    manifest: str | Path,
) -> str:
    """Writes a result from tables of an earlier version.

    Args:
        measure: The measure.
        label: Label of its code now.
        options: Its options now.
        inputs: What it reads, by name: manifests or root metadata.
        earlier: From `earlier_tables`.
        manifest: Manifest to write.

    Returns:
        Why they cannot be taken over; empty where they were.
    """
    reason = _obstacle(label, options, inputs, earlier)
    if reason:
        return reason
    from quadscape.store import read_store  # here, as it loads Zarr at every start of the workflow otherwise

    try:
        tables = {}
        for name, path in earlier.items():
            arrays, attributes = read_store(path)
            tables[name] = _as_now(Table(measure.schemas[name], arrays, attributes["table_attributes"]))
        write_result(manifest, Provenance.of(measure, label, options, inputs), tables)
    except (StoreError, ValueError, KeyError) as error:
        return str(error)
    except OSError as error:
        return f"{error.filename} cannot be written ({error.strerror})"
    return ""


def _as_now(table: Table) -> Table:
    """Without what is no longer in it: test data are for `final_test` alone."""
    return table.where(table["split"] != "test") if table.schema.name == "evaluations" else table


def _obstacle(
    label: str, options: Mapping[str, Any], inputs: Mapping[str, list[str]], earlier: Mapping[str, Path]
) -> str:
    """Why tables do not say what would be measured now; empty where they do."""
    if label != LABEL:
        return "the code of the measure has changed"
    heads = {name: _attributes(path) for name, path in earlier.items()}
    differing = [f"{name} was {was}" for name, was in _options_of(earlier, heads).items() if options.get(name) != was]
    if differing:
        return f"the options differ ({', '.join(differing)})"
    written = min((path / "zarr.json").stat().st_mtime for path in earlier.values())
    for paths in inputs.values():
        for path in [Path(name) for name in paths]:
            if path.exists():
                if path.stat().st_mtime > written:
                    return f"{path} is newer"
            elif not path.with_name("purged.json").exists():
                return f"{path} is not there"
    for manifest in inputs.get("eigenbasis", ()):
        zero = _zero_threshold(Path(manifest))
        if any(head.get("zero_threshold", zero) != zero for head in heads.values()):
            return f"they are not from {Path(manifest).parent}"
    return ""


def _attributes(path: Path) -> dict[str, Any]:
    """Head of an earlier table, without loading Zarr."""
    try:
        return json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]["table_attributes"]
    except (OSError, ValueError, KeyError):
        return {}


def _zero_threshold(manifest: Path) -> Any:
    """ε_λ of an eigenbasis, from its manifest or from the record of its purge."""
    try:
        return read_document(manifest)["results"]["verification"]["zero_threshold"]
    except (OSError, ValueError, KeyError):
        return None


def _options_of(earlier: Mapping[str, Path], heads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The options under which tables were made, as far as they or Snakemake's records tell."""
    found = {name: head[name] for head in heads.values() for name in ("vectors", "steps", "loss_rise") if name in head}
    if "line_fit" in earlier:
        lines, points = _rows(earlier["line_fit"]), _rows(earlier["line_search"])
        found |= {"directions": lines, "points": points // (2 * lines) if lines else 0}
    if "overlap_maxima" in earlier:
        found["bands"] = _rows(earlier["overlap_maxima"])
    for parameter in _recorded(next(iter(earlier.values())) / "zarr.json"):
        if parameter in {"'float32'", "'float64'"}:
            found["dtype"] = parameter.strip("'")
        elif parameter.startswith("{'directions'"):
            # The one option of which a table says nothing.
            found["reach"] = json.loads(parameter.replace("'", '"'))["reach"]
    return found


def _rows(path: Path) -> int:
    """Number of rows of an earlier table, from the metadata of its arrays."""
    try:
        first = next(path.glob("*/zarr.json"))
        return int(json.loads(first.read_text(encoding="utf-8"))["shape"][0])
    except (OSError, ValueError, KeyError, IndexError, StopIteration):
        return -1


def _recorded(output: Path) -> list[str]:
    """Parameters that Snakemake recorded of an output, as texts; empty where there is no record."""
    record = Path(".snakemake/metadata") / urlsafe_b64encode(str(output).encode()).decode()
    try:
        return list(json.loads(record.read_text(encoding="utf-8"))["params"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def replaced_tables(root: str | Path) -> Iterator[Path]:
    """Tables of earlier versions in place of which there is a result of now.

    Args:
        root: Results of one experiment, or a folder of such.

    Yields:
        Directories of Zarr stores.
    """
    # Not by walking through everything: stores of matrices have very many files.
    folders = [path for pattern in ("tables", "*/tables", "*/*/tables") for path in sorted(Path(root).glob(pattern))]
    for tables in folders:
        for name in _NAMES:
            for table in MEASURES[name].schemas:
                for path in sorted(tables.glob(f"*/*/{table}.zarr")):
                    run, key = path.parts[-3], path.parts[-2]
                    if any((tables / name / run / key).glob("manifest-*.json")):
                        yield path
