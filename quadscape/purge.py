"""Frees the disk of what only unfinished work needs: the P×P arrays of stages whose tables are all made.

A Hessian is needed until its eigenbasis is finished, and all of them until every measure is
that reads them. Verified results, eigenvalues, plans and journals always stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from quadscape.errors import StoreError
from quadscape.measures import MEASURES
from quadscape.measures.declaration import STAGES
from quadscape.stage import Log, array_bytes, finished_manifest, purge_stage
from quadscape.status import find_stages, owner_lives

LARGE_ARRAYS = {"hessian_shard": ["matrix"], "gauss_newton": ["matrix"], "eigenbasis": ["eigenvectors"]}
"""Arrays of P×P entries, by stage."""


@dataclass(frozen=True)
class Removable:
    """A stage with large arrays on disk.

    Attributes:
        directory: The stage's directory.
        stage: Its name.
        size_bytes: What its large arrays take.
        kept_for: Why they are kept; empty when they can be removed.
    """

    directory: Path
    stage: str
    size_bytes: int
    kept_for: str


def find_removable(root: str | Path) -> Iterator[Removable]:
    """Looks for stages with large arrays.

    Args:
        root: Where to look, itself included; results of a workflow.

    Yields:
        The stages in the order of their paths, those that must be kept included.
    """
    for directory in find_stages(root):
        try:
            stage = str(finished_manifest(directory)["stage"])
        except StoreError as error:
            # Not finished: what its own directory is called tells what it is going to be.
            stage, reason = _stage_of(directory), "it is not finished"
            if (directory / "manifest.json").exists():
                reason = f"it is damaged ({error})"
        else:
            reason = ""
        if stage not in LARGE_ARRAYS:
            continue
        size = array_bytes(directory, LARGE_ARRAYS[stage])
        if not size:
            continue
        if owner_lives(directory):
            reason = "a process is at work in it"
        elif not reason and (directory / "manifest.json").exists():
            reason = _needed_by(directory.absolute(), stage)
        yield Removable(directory, stage, size, reason)


def _stage_of(directory: Path) -> str:
    return "hessian_shard" if directory.parent.name == "hessian_shards" else directory.name


def _is_finished(directory: Path) -> bool:
    try:
        finished_manifest(directory)
    except StoreError:
        return False
    return True


def _needed_by(directory: Path, stage: str) -> str:
    """What is not finished yet and will read the stage; empty when nothing is."""
    checkpoint = directory.parents[1] if stage == "hessian_shard" else directory.parent
    run = checkpoint.parents[1]
    if checkpoint.parent.name != "checkpoints" or run.parent.name != "runs":
        return "it lies in no runs/<run>/checkpoints/<iteration>, so that what needs it cannot be told"
    if stage == "hessian_shard" and not _is_finished(checkpoint / "eigenbasis"):
        return "the eigenbasis of its checkpoint is not finished"
    missing = _unfinished(checkpoint, "hessian" if stage == "hessian_shard" else stage)
    if not missing:
        return ""
    return f"needed by {len(missing)} unfinished measure{'s' if len(missing) > 1 else ''}: {', '.join(missing)}"


def _unfinished(checkpoint: Path, stage: str) -> list[str]:
    """Measures that read a stage of a checkpoint, of it and of each pair with another one, and have no result yet."""
    run = checkpoint.parents[1]
    tables = run.parents[1] / "tables"
    iterations = sorted((path.name for path in checkpoint.parent.iterdir() if path.name.isdecimal()), key=int)
    pairs = [f"{a}-{b}" for a, b in combinations(iterations, 2) if checkpoint.name in {a, b}]
    there = {name for name in STAGES if (checkpoint / name).exists()} | {"data", "checkpoint", "trajectory"}
    missing = []
    for measure in MEASURES.values():
        # What reads a stage that was never asked for is not asked for either.
        if stage not in measure.reads or not measure.by_default or not there.issuperset(measure.stages):
            continue
        for key in pairs if measure.of == "checkpoint_pair" else [checkpoint.name]:
            if not any((tables / measure.name / run.name / key).glob("manifest-*.json")):
                missing.append(measure.name if key == checkpoint.name else f"{measure.name} {key}")
    return missing


def purge(found: Removable, log: Log) -> None:
    """Removes the large arrays of a stage; killed in the middle, the same call goes on.

    Args:
        found: One that need not be kept.
        log: Receives a line where it must wait for another process.
    """
    purge_stage(found.directory, LARGE_ARRAYS[found.stage], log)
