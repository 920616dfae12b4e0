"""Re-checks finished results, months later too.

Every byte is compared with its checksum, every manifest with its store and with what it was computed from (so that a
manifest, or a whole directory, of another checkpoint is found out), and every recorded check with its threshold.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import zarr

from quadscape.curvature.shards import checkpoint_of, is_shard, shard_directory, shard_name
from quadscape.errors import StoreError
from quadscape.measures import MEASURES
from quadscape.measures.declaration import (
    AT_START,
    GROUPS,
    Measure,
    checkpoint_key,
    fingerprint_digits,
    subject_iterations,
    subject_key,
)
from quadscape.measures.made import record_path, recorded_files
from quadscape.measures.result import (
    Provenance,
    input_digest,
    items_directory,
    manifest_name,
    read_result,
    table_path,
)
from quadscape.refusals import forbidden
from quadscape.results.places import Located, locate, locate_tables
from quadscape.stage.files import ASIDE, PURGED, fingerprint_of, remedy
from quadscape.stage.finished import finished_manifest, verify_stage
from quadscape.stage.superseded import is_superseded, superseded_directory
from quadscape.store import open_store, read_store
from quadscape.stored import stage_digest, stored_attributes
from quadscape.tables import read_table, table_head

_STAGE_OF_DIRECTORY = {
    "trajectory": "training",
    "hessian": "hessian",
    "gauss_newton": "gauss_newton",
    "eigenbasis": "eigenbasis",
}


class Misplaced(str):
    """What is wrong with a result that is whole, but belongs to something else than what lies beside it."""

    __slots__ = ()


class Forbidden(str):
    """Why a result was not checked: this user may not read all of it."""

    __slots__ = ()


class _MisplacedError(StoreError):
    """The same, on its way."""


def verify_results(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Checks every finished stage, every small store, every result and every figure below a directory.

    What was set aside (`<stage>.superseded`) is checked on its own, and not compared with what lies beside it.

    Args:
        root: Where to look.

    Yields:
        Path of the stage or store, and what is wrong with it (None: nothing; `Misplaced`: not that it is damaged;
        `Forbidden`: not known).

    Raises:
        StoreError: There is no such directory.
    """
    if not root.is_dir():
        raise StoreError(f"There is no directory {root}; nothing to verify.")
    hidden: list[OSError] = []
    for folder, subfolders, files in os.walk(root, onerror=hidden.append):
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
            for name in sorted(files):
                if name.startswith("manifest-") and name.endswith(".json"):
                    yield here / name, _problem(_verify_result, here / name)
            yield from _made(here, files)
            continue
        yield here, _problem(check, here)
    for error in hidden:
        here = Path(error.filename)
        yield here, Forbidden(forbidden(here) or f"{here} cannot be read ({error.strerror}).")


def find_unrecorded(root: Path) -> list[Path]:
    """Figures, pages and findings that `verify_results` cannot check: no checksums of them were kept.

    Args:
        root: Where to look.

    Returns:
        Those of versions before there were such checksums; drawn again, they have some.
    """
    found = []
    for folder, _, names in os.walk(root):
        paths = [Path(folder) / name for name in sorted(names) if _is_picture(Path(folder) / name)]
        found += [path for path in paths if path.name not in (recorded_files(record_path(path)) or {})]
    return found


def _made(folder: Path, names: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """Compares figures, pages and findings with the checksums beside them."""
    for place in sorted({record_path(folder / name) for name in names if _is_picture(folder / name)}):
        files = recorded_files(place) if place.exists() else {}
        if files is None:
            yield (
                place,
                f"{place} is damaged; remove it, and what is called like it beside it, and run the workflow again.",
            )
        for name in sorted(set(files or {}).intersection(names)):
            yield folder / name, _problem(partial(_verify_file, (files or {})[name]), folder / name)


def _is_picture(path: Path) -> bool:
    if path.name.startswith(("made-", ".")):
        return False
    return path.stem == "findings" or path.parent.name in {"figures", "pages"}


def _verify_file(checksum: str, path: Path) -> None:
    if sha256(path.read_bytes()).hexdigest() != checksum:
        _refuse_file(path, "is not as it was written")


def _problem(check: Callable[[Path], None], path: Path) -> str | None:
    if sentence := forbidden(path, ASIDE):
        return Forbidden(sentence)
    try:
        check(path)
    except _MisplacedError as error:
        return Misplaced(error)
    except (StoreError, PermissionError) as error:
        # Of a result the path is that of its manifest, and tables lie beside it.
        if path.is_file() and (sentence := forbidden(path.parent)):
            return Forbidden(sentence)
        return str(error)
    return None


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


def _check_data(directory: Path, parameters: dict[str, Any]) -> None:
    """Compares the digest of the data with the stores of all data and of subsets, where there is any."""
    located = locate(directory)
    stores = [] if located is None else [store for store in located.data() if (store / "zarr.json").exists()]
    known = [(stored_attributes(store / "zarr.json") or {}).get("content") for store in stores]
    if stores and parameters.get("data") not in known:
        _check_digest(directory, parameters, "data", stores[0], "content")


def _check_place(directory: Path, manifest: dict[str, Any]) -> None:
    """Compares a stage with the directory that it lies in."""
    stage, parameters = manifest["stage"], manifest["parameters"]
    expected = _STAGE_OF_DIRECTORY.get(directory.name, stage)
    if is_shard(directory):
        expected = "hessian_shard"
        number = shard_name(parameters.get("shard", "?"), parameters.get("shards", "?"))
        if stage == expected and number != directory.name:
            _refuse(directory, f"holds the shard {number}")
    if stage != expected:
        _refuse(directory, f"holds the stage '{stage}', where '{expected}' was expected")


def _check_origin(directory: Path, parameters: dict[str, Any]) -> None:
    """Compares digests of what a stage was computed from with what lies beside it, as far as that is there."""
    checkpoint = checkpoint_of(directory)
    _check_digest(directory, parameters, "checkpoint", checkpoint / "checkpoint.zarr", "digest")
    _check_data(directory, parameters)
    if "hessian" in parameters:
        hessian = _manifest_beside(checkpoint / "hessian")
        if hessian is not None and hessian["results"].get("content") != parameters["hessian"]:
            _refuse_origin(directory, "another Hessian", checkpoint / "hessian")
    for name, digest in parameters["shards"].items() if isinstance(parameters.get("shards"), dict) else ():
        shard = shard_directory(checkpoint / "hessian", name)
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
# Results of measures


def _verify_result(manifest: Path) -> None:
    """Compares a result with its manifest, with its place, and with what it was measured from."""
    found = read_result(manifest)
    measure, folder = MEASURES.get(str(found.get("measure"))), manifest.absolute().parent
    if measure is None:
        _refuse_file(manifest, f"is of a measure '{found.get('measure')}', which does not exist")
    try:
        origin = Provenance(measure, found["label"], found["options"], found["inputs"]).origin
        options = {key: value for key, value in found["options"].items() if key != "family" or measure.of not in GROUPS}
        name = manifest_name(fingerprint_digits(options, found["label"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{manifest} is damaged ({error}); remove that file and run the workflow again.") from error
    # A measure may have been given a further table since; but one that is there belongs to the result.
    there = {table for table in measure.schemas if table in found["tables"] or table_path(manifest, table).exists()}
    if (origin, name) != (found.get("origin"), manifest.name) or not there or found["tables"].keys() != there:
        _refuse_file(manifest, "does not agree with itself")
    located = locate_tables(folder)
    if located is not None and not folder.is_relative_to(located.root / "tables" / measure.name):
        _refuse_file(manifest, f"is of the measure '{measure.name}'")
    for table in found["tables"]:
        path = table_path(manifest, table)
        content = read_table(path, measure.schemas[table])
        checksum = sha256(path.read_bytes()).hexdigest()
        if (content.digest(), checksum) != (found["tables"][table], found.get("files", {}).get(path.name)):
            _refuse_file(path, "differs from what its manifest says")
        if table_head(path)["origin"] != origin:
            _refuse_file(path, "is of another origin than its manifest")
        if located is not None:
            _check_subject(path, content.attributes, located)
    if measure.keeps:
        _check_kept(manifest, origin)
    if located is not None:
        _check_sources(manifest, measure, found, located)


def _check_kept(manifest: Path, origin: str) -> None:
    """Looks whether what a result keeps is there, or was purged, and is of its origin; it is read as a stage itself."""
    directory = items_directory(manifest)
    try:
        kept = finished_manifest(directory)
    except StoreError as error:
        _refuse_file(manifest, f"has not beside it what its measure keeps ({error})")
    if kept["parameters"].get("origin") != origin:
        _refuse_file(manifest, f"is of another origin than what lies in {directory}")


def _refuse_file(path: Path, what: str) -> NoReturn:
    raise StoreError(f"{path} {what}; remove that file and run the workflow again.")


def _check_subject(path: Path, head: Mapping[str, Any], located: Located) -> None:
    """Compares run and iterations of a table with its folder."""
    run, key = located.run, located.key.partition("/")[0]
    iterations = [head[name] for name in ("iteration_a", "iteration_b", "iteration") if name in head]
    wrong_key = bool(iterations) and subject_key(iterations) != key
    if head.get("run", run) != run or wrong_key:
        _refuse_file(path, f"holds a table of run '{head.get('run')}', iteration {'-'.join(map(str, iterations))}")


def _check_sources(manifest: Path, measure: Measure, found: Mapping[str, Any], located: Located) -> None:
    """Compares digests of what was read with what lies there now, as far as it does."""
    inputs: Mapping[str, list[str]] = found["inputs"]
    family = found["options"].get("family", {}) if measure.of in GROUPS else {}
    runs = [member["run"] for member in family.get("members", [])] or [located.run]
    own = [located.folder / "checkpoints" / key for key in subject_iterations(located.key)]
    started = [family["start"]] if "start" in family else []
    starts = [located.root / "runs" / run / "checkpoints" / str(iteration) for run, iteration in started]
    if measure.reads_subsets:
        _check_subsets(manifest, inputs.get("subset_eigenbasis", []), own)
    for name in measure.stages:
        stage, checkpoints = (AT_START[name], starts) if name in AT_START else (name, own)
        places = {
            # Which data a run has is not known here, where there are several.
            "data": [] if located.data()[1:] else [located.root / "data.zarr/zarr.json"],
            "trajectory": [located.root / "runs" / run / "trajectory/manifest.json" for run in runs],
            "checkpoint": [place / "checkpoint.zarr/zarr.json" for place in checkpoints],
        }.get(stage, [place / stage / "manifest.json" for place in checkpoints])
        for path, digest in zip(places, inputs.get(name, []), strict=False):
            try:
                now = input_digest(path)
            except StoreError:
                continue  # not there, or named on its own
            if now != digest:
                _refuse_source(manifest, f"another {stage} than the one in {path.parent}")


def _refuse_source(manifest: Path, source: str) -> None:
    raise _MisplacedError(
        f"{manifest} was measured from {source}; it is whole: remove that file and run the workflow again, which "
        "measures what is there."
    )


def _check_subsets(manifest: Path, digests: list[str], checkpoints: list[Path]) -> None:
    """Compares digests of eigenbases on subsets with those that lie below the checkpoint, whatever they are called."""
    there = []
    for path in [path for place in checkpoints for path in sorted(place.glob("on-*/eigenbasis/"))]:
        try:
            there.append(input_digest(path / "manifest.json"))
        except StoreError:
            continue  # not finished, or named on its own
    # One that is missing here may have been removed; where there are as many, each should be among them.
    if len(there) >= len(digests) and not set(digests) <= set(there):
        _refuse_source(manifest, f"other eigenbases on subsets than those in {checkpoints[0]}")


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
    located = locate(path)
    if path.name == "checkpoint.zarr" and located is not None:
        found = (attributes.get("run"), checkpoint_key(attributes.get("iteration", -1), attributes.get("subset")))
        if found != (located.run, located.key):
            _refuse(path, f"holds the checkpoint {found[1]} of run '{found[0]}'")
        _check_data(path, {"data": attributes.get("data")})
    elif "table" in attributes and path.parents[2].name == "tables":
        head = attributes.get("table_attributes", {})
        run, key = path.parents[1].name, path.parent.name
        if attributes["table"] != path.stem:
            _refuse(path, f"holds the table '{attributes['table']}'")
        if head.get("run", run) != run or (key.isdecimal() and str(head.get("iteration", key)) != key):
            _refuse(path, f"holds a table of run '{head.get('run')}', iteration {head.get('iteration')}")
