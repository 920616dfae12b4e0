"""Whether an output was made from what lies there now, whatever the times of files say.

Copies have other times (`cp -r`), and what was purged and computed again is newer than the tables that were made from
it; where Snakemake's own records do not tell, what results say of themselves does: every one names the digests of what
it was made from.
"""

from pathlib import Path
from typing import Any

from quadscape.digests import json_digest
from quadscape.errors import QuadscapeError
from quadscape.measures.made import record_path
from quadscape.measures.result import input_digest
from quadscape.results.places import locate
from quadscape.stored import stage_digest, stored_attributes, stored_document, stored_manifest


def made_from(output: Path, source: Path) -> bool:
    """Whether an output was made from the present content of an input of its job.

    Args:
        output: A declared output that is there.
        source: A declared input that is there.

    Returns:
        False also where nobody can tell.
    """
    record = output if output.suffix == ".json" and output.stem != "findings" else record_path(output)
    try:
        text = record.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    if any(digest in text for digest in _digests(source)):
        return True
    if source.parents[1].name == "hessian_shards":
        # Who reads a Hessian finds its shards; these are named by what gathered them.
        gathered = source.parents[2] / "hessian" / "manifest.json"
        return output != gathered and made_from(gathered, source)
    if output.name == "zarr.json" and output.parent.name in {"checkpoint.zarr", "start.zarr"}:
        return _is_of_run(output, source)
    return False


def _digests(source: Path) -> set[str]:
    """By which of its digests others may name a stage, a store or a result."""
    found: set[Any] = set()
    if (manifest := stored_manifest(source)) is not None:
        found |= {stage_digest(manifest), manifest["results"].get("content"), input_digest(source)}
    elif (attributes := stored_attributes(source)) is not None:
        found |= {attributes.get("content"), attributes.get("digest")}
    elif (document := stored_document(source)) is not None and "tables" in document:
        found.add(json_digest(document["tables"]))
    return {digest for digest in found if isinstance(digest, str) and len(digest) == 64}


def _is_of_run(output: Path, source: Path) -> bool:
    """Whether a checkpoint or a start point, which names no trajectory, has the parameters that are in one."""
    located = locate(output.absolute())
    trajectory = None if located is None else located.folder / "trajectory" / "manifest.json"
    if located is None or trajectory is None:
        return False
    if source.parent.name == "eigenbasis":
        # A run that steps by it names it, and its start points are of that run.
        return made_from(trajectory, source)
    if source.absolute() != trajectory:
        return False
    # Zarr is imported for this, and only where times differ and Snakemake has no record.
    import numpy as np

    from quadscape.store import read_store
    from quadscape.training.trajectory import Trajectory

    key = located.key or output.parent.parent.name
    try:
        arrays, _ = read_store(output.parent)
        return bool(np.array_equal(Trajectory.open(trajectory).theta(int(key.partition("/")[0])), arrays["theta"]))
    except (QuadscapeError, OSError, KeyError, ValueError):
        return False
