"""Re-checks finished results, months later too.

Every byte is compared with its checksum, every manifest with its store and with what it was computed from (so that a
manifest, or a whole directory, of another checkpoint is found out), and every recorded check with its threshold.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zarr

from quadscape.errors import StoreError
from quadscape.stage import PURGED, fingerprint_of, finished_manifest, remedy, stage_digest, verify_stage
from quadscape.store import open_store, read_store
from quadscape.superseded import is_superseded, superseded_directory

_STAGE_OF_DIRECTORY = {
    "trajectory": "training",
    "hessian": "hessian",
    "gauss_newton": "gauss_newton",
    "eigenbasis": "eigenbasis",
}


class Misplaced(str):
    """What is wrong with a result that is whole, but belongs to something else than what lies beside it."""

    __slots__ = ()


class _MisplacedError(StoreError):
    """The same, on its way."""


def verify_results(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Checks every finished stage and every small store below a directory.

    What was set aside (`<stage>.superseded`) is checked on its own, and not compared with what lies beside it.

    Args:
        root: Where to look.

    Yields:
        Path of the stage or store, and what is wrong with it (None: nothing; `Misplaced`: not that it is damaged).

    Raises:
        StoreError: There is no such directory.
    """
    if not root.is_dir():
        raise StoreError(f"There is no directory {root}; nothing to verify.")
    for folder, subfolders, files in os.walk(root):
        here = Path(folder)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if {"manifest.json", PURGED, "journal"} & set(files) or is_superseded(here):
            subfolders.clear()
            if not {"manifest.json", PURGED} & set(files):
                continue  # not finished, or about to be removed: its own command will check it
            check: Callable[[Path], None] = _verify_stage
        elif here.suffix == ".zarr":
            subfolders.clear()
            check = _verify_store
        else:
            continue
        try:
            check(here)
        except _MisplacedError as error:
            yield here, Misplaced(error)
        except StoreError as error:
            yield here, str(error)
        else:
            yield here, None


def _refuse(directory: Path, what: str) -> None:
    if directory.suffix == ".zarr":
        raise StoreError(f"{directory} {what}; remove the directory {directory} and run the workflow again.")
    raise StoreError(f"{directory} {what}; {remedy(directory)}.")


def _refuse_origin(directory: Path, other: str, place: Path) -> None:
    """Says that something was computed from something else than what is there."""
    if directory.suffix == ".zarr":
        text = f"remove the directory {directory} and run the workflow again, which makes it from what is there"
    else:
        text = (
            f"remove {directory / 'manifest.json'} and run the workflow again, which computes it from what is there "
            f"and keeps this one as {superseded_directory(directory)}"
        )
    raise _MisplacedError(f"{directory} belongs to {other} than the one in {place}; it is whole: {text}.")


# ---------------------------------------------------------------------------------------------------------------------
# Stages


def _verify_stage(directory: Path) -> None:
    manifest = verify_stage(directory)
    if fingerprint_of(manifest) != manifest["fingerprint"]:
        _refuse(directory, "has a manifest whose parameters are not those of its fingerprint")
    if not is_superseded(directory):
        _check_place(directory.absolute(), manifest)
        _check_origin(directory.absolute(), manifest["parameters"])
    for subject, checks in _recorded_checks(manifest["results"]):
        for name, entry in checks.items():
            if not entry["value"] <= entry["threshold"]:
                _refuse(
                    directory,
                    f"failed its verification{subject}: {name} is {entry['value']:.4g}, allowed is "
                    f"{entry['threshold']:.4g}",
                )


def _check_place(directory: Path, manifest: dict[str, Any]) -> None:
    """Compares a stage with the directory that it lies in."""
    stage, parameters = manifest["stage"], manifest["parameters"]
    expected = _STAGE_OF_DIRECTORY.get(directory.name, stage)
    if directory.parent.name == "hessian_shards":
        expected = "hessian_shard"
        number = f"{parameters.get('shard')}-of-{parameters.get('shards')}"
        if stage == expected and number != directory.name:
            _refuse(directory, f"holds the shard {number}")
    if stage != expected:
        _refuse(directory, f"holds the stage '{stage}', where '{expected}' was expected")


def _check_origin(directory: Path, parameters: dict[str, Any]) -> None:
    """Compares digests of what a stage was computed from with what lies beside it, as far as that is there."""
    in_shards = directory.parent.name == "hessian_shards"
    checkpoint = directory.parents[1] if in_shards else directory.parent
    _check_digest(directory, parameters, "checkpoint", checkpoint / "checkpoint.zarr", "digest")
    # results/<name>/runs/<run>/trajectory, and two levels more for what belongs to a checkpoint.
    for level in (2, 4, 5):
        if len(directory.parents) > level and directory.parents[level - 1].name == "runs":
            _check_digest(directory, parameters, "data", directory.parents[level] / "data.zarr", "content")
    if "hessian" in parameters:
        hessian = _manifest_beside(checkpoint / "hessian")
        if hessian is not None and hessian["results"].get("content") != parameters["hessian"]:
            _refuse_origin(directory, "another Hessian", checkpoint / "hessian")
    for name, digest in parameters["shards"].items() if isinstance(parameters.get("shards"), dict) else ():
        shard = checkpoint / "hessian_shards" / name
        manifest = _manifest_beside(shard)
        if manifest is not None and stage_digest(manifest) != digest:
            _refuse_origin(directory, "another shard", shard)


def _manifest_beside(directory: Path) -> dict[str, Any] | None:
    """The manifest of another stage, None when there is none that is whole: it is named on its own."""
    try:
        return finished_manifest(directory)
    except StoreError:
        return None


def _check_digest(directory: Path, parameters: dict[str, Any], key: str, store: Path, attribute: str) -> None:
    if key not in parameters:
        return
    try:
        found = dict(open_store(store).attrs).get(attribute)
    except StoreError:
        return  # not there, or named on its own
    if found != parameters[key]:
        _refuse_origin(directory, f"another {key}" if key != "data" else "another data set", store)


def _recorded_checks(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Every mapping of checks in the results of a stage, with the name of the section that it is in."""
    for name, section in results.items():
        if not isinstance(section, dict):
            continue
        checks = section.get("checks")
        if isinstance(checks, dict):
            yield "" if name == "verification" else f" ({name})", checks
        yield from _recorded_checks({key: value for key, value in section.items() if key != "checks"})


# ---------------------------------------------------------------------------------------------------------------------
# Small stores


def _verify_store(path: Path) -> None:
    _, attributes = read_store(path)
    group = open_store(path)
    expected = {"zarr.json"}
    for name, member in group.members(max_depth=None):
        expected.add(f"{name}/zarr.json")
        if isinstance(member, zarr.Array):
            files = member.shards or member.chunks
            counts = [range(-(-length // width)) for length, width in zip(member.shape, files, strict=True)]
            expected |= {"/".join([name, "c", *map(str, index)]) for index in itertools.product(*counts)}
    extra = sorted({str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - expected)
    if extra:
        _refuse(path, f"has a file that was never written into it, {extra[0]}")
    _check_store_place(path.absolute(), attributes)


def _check_store_place(path: Path, attributes: dict[str, Any]) -> None:
    """Compares a checkpoint or a table with the directory that it lies in."""
    if path.name == "checkpoint.zarr" and path.parents[1].name == "checkpoints":
        run, key = path.parents[2].name, path.parent.name
        found = (attributes.get("run"), str(attributes.get("iteration")))
        if found != (run, key):
            _refuse(path, f"holds the checkpoint {found[1]} of run '{found[0]}'")
        for_data = {"data": attributes.get("data")}
        _check_digest(path, for_data, "data", path.parents[4] / "data.zarr", "content")
    elif "table" in attributes and path.parents[2].name == "tables":
        head = attributes.get("table_attributes", {})
        run, key = path.parents[1].name, path.parent.name
        if attributes["table"] != path.stem:
            _refuse(path, f"holds the table '{attributes['table']}'")
        if head.get("run", run) != run or (key.isdecimal() and str(head.get("iteration", key)) != key):
            _refuse(path, f"holds a table of run '{head.get('run')}', iteration {head.get('iteration')}")
