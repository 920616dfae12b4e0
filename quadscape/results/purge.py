"""Frees the disk of what nothing needs: results that were set aside, and large arrays whose tables are made.

A Hessian is needed until its eigenbasis is finished, and all P×P arrays until every measure is that reads them; what a
measure keeps beside its tables, until those are that read this measure. Verified
results, eigenvalues, plans and journals always stay, except those of other parameters, which were set aside
(`<stage>.superseded`) and are removed whole.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from quadscape.amounts import format_bytes, format_seconds
from quadscape.curvature.shards import checkpoint_of, is_shard
from quadscape.errors import StageError, StoreError
from quadscape.measures import MEASURES
from quadscape.measures.declaration import ON_SUBSETS, STAGES, Measure
from quadscape.results.places import Located, locate, locate_tables, measure_of
from quadscape.results.sizes import Kept, asked_measures, basis_steps, kept_readers
from quadscape.results.status import directory_size, find_stages, owner_lives
from quadscape.stage.events import Log, seconds_taken
from quadscape.stage.finished import changed_parameters, finished_manifest, load_purged
from quadscape.stage.purging import array_bytes, purge_stage
from quadscape.stage.superseded import is_superseded, remove, stage_directory
from quadscape.stored import stored_document

LARGE_ARRAYS = {"hessian_shard": ["matrix"], "gauss_newton": ["matrix"], "eigenbasis": ["eigenvectors"]}
"""Arrays of P×P entries, by stage."""

PARTS = {"hessian": ("hessian_shard",), "basis": ("gauss_newton", "eigenbasis")}
"""Stages that the workflow purges at once, by the name of that."""

ITEMS = "measure"
"""Stage of the items of a long measure, some of which are kept."""


@dataclass(frozen=True)
class Removable:
    """A stage with large arrays on disk, or a result that was set aside.

    Attributes:
        directory: The stage's directory.
        stage: Its name.
        size_bytes: What its large arrays take, or all of it where it was set aside.
        kept_for: Why they are kept; empty when they can be removed.
        superseded: Why all of it can go; empty where it was not set aside.
        what: Which part goes, where that is not what the stage is called.
    """

    directory: Path
    stage: str
    size_bytes: int
    kept_for: str
    superseded: str = ""
    what: str = ""


def find_removable(root: str | Path, planned: Mapping[Path, str] | None = None) -> Iterator[Removable]:
    """Looks for results that were set aside, and for stages with large arrays.

    Args:
        root: Where to look, itself included; results of a workflow.
        planned: Manifests, by their absolute paths, that jobs will read which are planned or at work, with the reason
            why they are kept.

    Yields:
        First what was set aside, then the stages, those that must be kept included; in the order of their paths.
    """
    stages = [directory for directory in find_stages(root) if not is_superseded(directory)]
    yield from _find_superseded(Path(root))
    for directory in stages:
        try:
            stage = str(finished_manifest(directory)["stage"])
        except StoreError as error:
            # Not finished: what its own directory is called tells what it is going to be.
            stage, reason = _stage_of(directory), "it is not finished"
            if (directory / "manifest.json").exists():
                reason = f"it is damaged ({error})"
        else:
            reason = ""
        arrays = large_arrays(directory, stage)
        size = array_bytes(directory, arrays) if arrays else 0
        if not size:
            continue
        if owner_lives(directory):
            reason = "a process is at work in it"
        elif not reason and (directory / "manifest.json").exists():
            needed = _items_needed_by if stage == ITEMS else _needed_by
            reason = needed(directory.absolute(), stage) or _planned_for(directory.absolute(), stage, planned or {})
        what = " and ".join(arrays) + ", of single examples; its tables stay" if stage == ITEMS else ""
        yield Removable(directory, stage, size, reason, what=what)


def _find_superseded(root: Path) -> Iterator[Removable]:
    for folder, subfolders, _ in os.walk(root):
        here = Path(folder)
        if is_superseded(here):
            subfolders.clear()
            changed = changed_parameters(here, stage_directory(here))
            reason = "set aside when other parameters were asked for" + (f" ({changed})" if changed else "")
            yield Removable(here, _stage_of(stage_directory(here)), directory_size(here), "", reason)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and not name.endswith(".zarr"))


def _stage_of(directory: Path) -> str:
    if directory.name.startswith("items-"):
        return ITEMS
    return "hessian_shard" if is_shard(directory) else directory.name


def large_arrays(directory: Path, stage: str) -> list[str]:
    """Names of the arrays of a stage that are large and can be computed again.

    Args:
        directory: The stage's directory.
        stage: Its name.

    Returns:
        Of the items of a measure what it keeps; empty where nothing is large.
    """
    if stage != ITEMS:
        return LARGE_ARRAYS.get(stage, [])
    located = locate_tables(directory.absolute().parent)
    measure = None if located is None else MEASURES.get(measure_of(directory.absolute().parent, located))
    return [] if measure is None else list(measure.keeps)


def _is_finished(directory: Path) -> bool:
    try:
        finished_manifest(directory)
    except StoreError:
        return False
    return True


def _needed_by(directory: Path, stage: str) -> str:
    """What is not finished yet and will read the stage; empty when nothing is."""
    checkpoint = checkpoint_of(directory)
    located = locate(checkpoint)
    if located is None or not located.key:
        return "it lies in no runs/<run>/checkpoints/<iteration>, so that what needs it cannot be told"
    if stage == "hessian_shard" and not _is_finished(checkpoint / "eigenbasis"):
        return "the eigenbasis of its checkpoint is not finished"
    kept = Kept(located.root / "sizes.json")
    name = "hessian" if stage == "hessian_shard" else stage
    readers = kept_readers(kept, located.run, _below_root(checkpoint / name / "manifest.json", located))
    if readers is not None:
        if not checkpoint.name.isdecimal() and stage != "hessian_shard" and not readers:
            return "it is asked for by itself, on a subset of the data"
        return _needed([path for path in readers if not _is_made(located, path)], located)
    missing = _unfinished(checkpoint, located, name)
    if stage == "eigenbasis" and checkpoint.name.isdecimal():
        runs = basis_steps(kept, located.run, int(checkpoint.name))
        stepping = [name for name in runs if not _is_finished(located.root / "runs" / name / "trajectory")]
        if stepping:
            return _sentence("run", stepping)
    if not checkpoint.name.isdecimal() and stage != "hessian_shard" and not _is_compared(located, stage):
        return "it is asked for by itself, on a subset of the data"
    return _sentence("measure", missing)


def _below_root(path: Path, located: Located) -> str:
    return path.relative_to(located.root).as_posix()


def _is_made(located: Located, output: str) -> bool:
    """Whether an output that is made from a stage is there; a comparison, of all subsets that there are now."""
    path = located.root / output
    if not path.exists():
        return False
    found = locate_tables(path.parent)
    measure = None if found is None else MEASURES.get(measure_of(path.parent, found))
    if found is None or measure is None:
        return True
    checkpoint = found.folder / "checkpoints" / found.key
    return _reads_all(path, measure, len([*checkpoint.glob("on-*/eigenbasis")]))


def _needed(missing: Sequence[str], located: Located) -> str:
    """Why a stage is kept for outputs that are made from it; empty where there are none."""
    measures, runs = [], []
    for path in [located.root / output for output in missing]:
        found = locate_tables(path.parent)
        if found is None:
            runs.append("/".join(path.relative_to(located.root / "runs").parent.parts).removesuffix("/trajectory"))
            continue
        words = [measure_of(path.parent, found)]
        words += [] if found.run == located.run else [found.run]
        words += [] if found.key in {located.key.partition("/")[0], "run", "family", "pair"} else [found.key]
        measures.append(" ".join(words))
    return "; ".join(filter(None, [_sentence("measure", measures), _sentence("run", runs)]))


def _planned_for(directory: Path, stage: str, planned: Mapping[Path, str]) -> str:
    """Why a stage is kept for jobs that are planned or at work; empty where it is not."""
    if stage == ITEMS:
        return planned.get(directory.with_name(directory.name.replace("items", "manifest") + ".json"), "")
    return planned.get(directory / "manifest.json", "")


def _items_needed_by(directory: Path, _: str) -> str:
    """What is not finished yet and may read what a measure keeps; empty when nothing is."""
    if not directory.with_name(directory.name.replace("items", "manifest") + ".json").exists():
        return "its tables are not written yet"
    located = locate_tables(directory.parent)
    assert located is not None
    name = measure_of(directory.parent, located)
    manifest = directory.with_name(directory.name.replace("items", "manifest") + ".json")
    readers = kept_readers(Kept(located.root / "sizes.json"), located.run, _below_root(manifest, located))
    if readers is not None:
        return _needed([path for path in readers if not _is_made(located, path)], located)
    missing = [
        reader.name
        for reader in _asked(located)
        if name in reader.reads
        and not any((located.root / "tables" / reader.name / located.run / located.key).glob("manifest-*.json"))
    ]
    return _sentence("measure", missing)


def _sentence(noun: str, missing: Sequence[str]) -> str:
    """Why something is kept; empty where nothing is missing."""
    if not missing:
        return ""
    return f"needed by {len(missing)} unfinished {noun}{'s' if len(missing) > 1 else ''}: {', '.join(missing)}"


def _unfinished(checkpoint: Path, located: Located, stage: str) -> list[str]:
    """Measures that read a stage of a checkpoint, of it and of each pair with another one, and have no result yet."""
    if not checkpoint.name.isdecimal():
        # On a subset it is read by what compares the whole checkpoint.
        checkpoint, stage = checkpoint.parent, f"subset_{stage}"
    iterations = sorted((path.name for path in checkpoint.parent.iterdir() if path.name.isdecimal()), key=int)
    pairs = [f"{a}-{b}" for a, b in combinations(iterations, 2) if checkpoint.name in {a, b}]
    there = {name for name in STAGES if (checkpoint / name).exists()} | {"data", "checkpoint", "trajectory"}
    subsets = len([*checkpoint.glob("on-*/eigenbasis")])
    there |= set(ON_SUBSETS) if subsets else set()
    missing = []
    for measure in _asked(located):
        # What reads a stage that was never asked for is not asked for either.
        if stage not in measure.reads or not there.issuperset(measure.stages):
            continue
        for key in pairs if measure.of == "checkpoint_pair" else [checkpoint.name]:
            folder = located.root / "tables" / measure.name / located.run / key
            if not any(_reads_all(path, measure, subsets) for path in folder.glob("manifest-*.json")):
                missing.append(measure.name if key == checkpoint.name else f"{measure.name} {key}")
    return missing


def _asked(located: Located) -> list[Measure]:
    """Measures that are asked for of a run, as far as that is known."""
    asked = asked_measures(Kept(located.root / "sizes.json"), located.run)
    return [one for one in MEASURES.values() if (one.by_default if asked is None else one.name in asked)]


def _is_compared(located: Located, stage: str) -> bool:
    """Whether a measure reads a stage on subsets of the data: it is then asked for by that."""
    return any(f"subset_{stage}" in measure.reads for measure in _asked(located))


def _reads_all(manifest: Path, measure: Measure, subsets: int) -> bool:
    """Whether a result was measured of all subsets of its checkpoint, where it compares them."""
    if not measure.reads_subsets:
        return True
    inputs = (stored_document(manifest) or {}).get("inputs", {})
    return len(inputs.get("subset_eigenbasis", ())) >= subsets


def purge(found: Removable, log: Log) -> None:
    """Removes the large arrays of a stage, or all of what was set aside; killed in the middle, the same call goes on.

    Args:
        found: One that need not be kept.
        log: Receives a line where it must wait for another process.
    """
    if found.superseded:
        remove(found.directory)
        return
    purge_stage(found.directory, large_arrays(found.directory, found.stage), log)


def purge_checkpoint(output: str | Path, log: Log) -> None:
    """Purges a part of one checkpoint, as far as nothing needs it; the workflow's job for that.

    What jobs of the same workflow are going to read is no matter here: the job comes after all of these.

    Args:
        output: The file that says what was purged and what not; its name tells the part, its folder the checkpoint.
        log: Receives a line for each stage.

    Raises:
        StageError: Another process is at work in one of the stages.
    """
    output = Path(output)
    checkpoint, stages = output.parent, PARTS[output.stem.removeprefix("purge-")]
    kept: dict[str, str] = {}
    for found in find_removable(checkpoint):
        if found.superseded or found.stage not in stages or checkpoint_of(found.directory) != checkpoint:
            continue
        if owner_lives(found.directory):
            raise StageError(f"A process is at work in {found.directory}, which cannot be purged now; run it again.")
        if found.kept_for:
            kept[found.directory.relative_to(checkpoint).as_posix()] = found.kept_for
            log(f"{found.directory} is kept: {found.kept_for}.")
            continue
        purge(found, log)
        log(f"{found.directory} was purged, which freed {format_bytes(found.size_bytes)}.")
    freed = {
        directory.relative_to(checkpoint).as_posix(): {"date": purged.date, "bytes": purged.freed_bytes}
        for directory in find_stages(checkpoint)
        if checkpoint_of(directory) == checkpoint and not is_superseded(directory)
        if _stage_of(directory) in stages and (purged := load_purged(directory)) is not None
    }
    if freed:
        log(f"{checkpoint}: {cost_again(checkpoint)}.")
    temporary = output.with_name(f".{output.name}.partial")
    temporary.write_text(json.dumps({"purged": freed, "kept": kept}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(output)


# ---------------------------------------------------------------------------------------------------------------------
# What it takes to have it again


def place_of(found: Removable) -> Path:
    """The checkpoint that a stage belongs to; of what a measure keeps, the folder of its tables."""
    return found.directory.parent if found.stage == ITEMS else checkpoint_of(found.directory)


def cost_again(place: Path, removable: Sequence[Removable] = ()) -> str:
    """What it would take to have again what was purged of a checkpoint, or of what a measure keeps, in words.

    Args:
        place: From `place_of`.
        removable: What of it is going to be purged.

    Returns:
        Time, as it was measured when it was last computed, and size on disk.
    """
    sizes = {found.directory: found.size_bytes for found in removable}
    for directory in find_stages(place):
        own = checkpoint_of(directory) == place or directory.parent == place
        if own and not is_superseded(directory) and not (directory / "manifest.json").exists():
            with contextlib.suppress(StoreError):
                if (purged := load_purged(directory)) is not None:
                    sizes[directory] = purged.freed_bytes
    times = [seconds_taken(directory) for directory in sizes]
    known = [time for time in times if time is not None]
    text = format_seconds(sum(known)) if known else "an unknown time"
    text += " or more" if known and len(known) < len(times) else ""
    size = format_bytes(sum(sizes.values()))
    return f"to have it again takes {text}, as measured when it was computed, and {size}"
