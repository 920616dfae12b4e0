"""Results that were changed after they were written: `verify` names each, and readers refuse them."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from family_cases import family
from fork_server import call, start_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quadscape.cli import main
from quadscape.curvature.hessian import HessianMatrix
from quadscape.curvature.stored_basis import Eigenbasis
from quadscape.data.sets import prepare
from quadscape.digests import canonical_digest
from quadscape.errors import StoreError
from quadscape.measures import MEASURES, SCHEMAS
from quadscape.measures.declaration import effective_options, fingerprint_digits
from quadscape.measures.made import write_record
from quadscape.measures.members import columns_of
from quadscape.measures.result import Provenance, manifest_name, table_path, write_result
from quadscape.results.status import find_stages
from quadscape.results.verify import Misplaced, verify_results
from quadscape.stage.events import read_events
from quadscape.stage.finished import open_stage
from quadscape.tables import Table, read_table
from results import curvature, measure_spectrum, small_experiment

CHECKPOINT = "runs/a/checkpoints/40"
SHARD = f"{CHECKPOINT}/hessian_shards/1-of-1"
BASIS = f"{CHECKPOINT}/eigenbasis"
TABLE = "tables/spectrum/a/40"
STORES = [SHARD, BASIS, f"{CHECKPOINT}/hessian", f"{CHECKPOINT}/gauss_newton", "runs/a/trajectory", TABLE, "data.zarr"]


@pytest.fixture(scope="module")
def finished(made_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(made_results, tmp_path_factory.mktemp("verify") / "root") / "results/small"


@pytest.fixture
def results(finished: Path, tmp_path: Path) -> Path:
    """A copy for one test to change."""
    return Path(shutil.copytree(finished, tmp_path / "results/small"))


def named(results: Path) -> dict[str, str]:
    """What is wrong, by place below the results."""
    return {str(path.relative_to(results)): text for path, text in verify_results(results) if text is not None}


def reported(results: Path, store: str) -> Path:
    """Where a problem of a stage, a store or a measure's result is reported."""
    return next((results / store).glob("manifest-*.json"), results / store)


def content_files(results: Path, store: str) -> list[Path]:
    """Everything in a stage or store whose bytes were checksummed when they were written."""
    if store.endswith(".zarr") or store == TABLE:
        return sorted(path for path in (results / store).rglob("*") if path.is_file())
    return sorted(path for path in (results / store / "store.zarr").rglob("*") if path.is_file())


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_everything_is_well(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert named(results) == {}
    assert main(["verify", str(results)]) == 0
    said = capsys.readouterr().out
    assert said.count("ok ") == 13
    assert "everything is as it was written" in said


@pytest.mark.parametrize("store", STORES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_is_named(finished: Path, store: str, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(content_files(finished, store)))
    before = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    try:
        flip(path, bit)
        # Only what is in the same directory, since the search goes over all results otherwise.
        problems = dict(verify_results(finished / store))
        assert list(problems) == [reported(finished, store)]
        assert problems[reported(finished, store)]
    finally:
        path.write_bytes(before)
    assert dict(verify_results(finished / store)) == {reported(finished, store): None}


@pytest.mark.parametrize(("part", "store"), [("eigenvectors", BASIS), ("matrix", SHARD)])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_noticed_as_it_is_read(finished: Path, part: str, store: str, data: st.DataObject) -> None:
    path = data.draw(
        st.sampled_from(sorted(p for p in (finished / store / f"store.zarr/{part}/c").rglob("*") if p.is_file()))
    )
    before = path.read_bytes()
    try:
        flip(path, data.draw(st.integers(0, 8 * len(before) - 1)))
        with pytest.raises(StoreError, match=store):
            open_stage(finished / store).read(part)
    finally:
        path.write_bytes(before)


def test_a_table_asked_for_from_a_damaged_basis_fails_clearly(results: Path) -> None:
    experiment, root = small_experiment(), results.parents[1]
    path = next(p for p in (results / BASIS / "store.zarr/eigenvectors/c").rglob("*") if p.is_file())
    flip(path, 12_345)
    basis = Eigenbasis(results / BASIS)
    with pytest.raises(
        StoreError, match=r"eigenbasis is damaged.*remove .*eigenbasis/manifest.json and run the workflow"
    ):
        basis.vectors(0, basis.size)
    flip(results / BASIS / "store.zarr/eigenvalues/c/0", 1234)
    shutil.rmtree(results / TABLE)  # what is there would not be measured again
    with pytest.raises(
        StoreError, match=r"eigenbasis is damaged.*remove .*eigenbasis/manifest.json and run the workflow"
    ):
        measure_spectrum(root, experiment, 40)


def test_a_figure_asked_for_from_a_damaged_table_fails_clearly(results: Path) -> None:
    path = table_path(reported(results, TABLE), "spectrum")
    flip(path, 7777)
    with pytest.raises(StoreError, match=r"spectrum-\w+\.parquet is damaged.*remove that file and run the workflow"):
        read_table(path, SCHEMAS["spectrum"])


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("harm", ["missing", "truncated", "extra"])
def test_missing_truncated_and_extra_files_are_named(results: Path, store: str, harm: str) -> None:
    if store == TABLE and harm == "extra":
        pytest.skip("results of other options may lie beside each other")
    files = [path for path in content_files(results, store) if path.suffix != ".json"]
    path = max(files, key=lambda file: file.stat().st_size)
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        shutil.copy(path, path.with_name("97"))
    assert list(named(results)) == [str(reported(results, store).relative_to(results))]


@pytest.mark.parametrize("stage", ["hessian_shards/1-of-1", "hessian", "eigenbasis"])
@pytest.mark.parametrize("what", ["manifest", "directory"])
def test_what_belongs_to_another_checkpoint_is_named(results: Path, stage: str, what: str) -> None:
    there, here = results / "runs/a/checkpoints/0" / stage, results / CHECKPOINT / stage
    if what == "manifest":
        shutil.copy(there / "manifest.json", here / "manifest.json")
    else:
        shutil.rmtree(here)
        shutil.copytree(there, here)
    problems = named(results)
    assert f"{CHECKPOINT}/{stage}" in problems
    words = "another stage's or checkpoint's" if what == "manifest" else "belongs to another checkpoint than"
    assert words in problems[f"{CHECKPOINT}/{stage}"]
    assert isinstance(problems[f"{CHECKPOINT}/{stage}"], Misplaced) == (what == "directory")


def test_an_eigenbasis_of_another_hessian_is_named(results: Path) -> None:
    # Manifests that are whole, of the same checkpoint, and made to disagree in one digest only.
    path = results / CHECKPOINT / "hessian/manifest.json"
    _change_manifest(path, lambda manifest: manifest["results"].update(content="0" * 64))
    problems = named(results)
    assert list(problems) == [BASIS]
    assert "belongs to another Hessian than the one in" in problems[BASIS]
    assert isinstance(problems[BASIS], Misplaced)


def test_a_hessian_of_another_shard_is_named(results: Path) -> None:
    listed = results / CHECKPOINT / "hessian/manifest.json"
    _change_manifest(listed, lambda manifest: manifest["parameters"]["shards"].update({"1-of-1": "0" * 64}))
    # A changed parameter shows in the fingerprint first; a forged one is then found by the digest.
    assert "fingerprint" in named(results)[f"{CHECKPOINT}/hessian"]
    with pytest.raises(StoreError, match="not the shard"):
        HessianMatrix(results / CHECKPOINT / "hessian")


def _change_manifest(path: Path, change: object) -> None:
    manifest = json.loads(path.read_text())
    change(manifest)  # type: ignore[operator]
    del manifest["checksum"]
    path.write_text(json.dumps({**manifest, "checksum": canonical_digest(manifest)}))


def test_a_recorded_check_above_its_threshold_is_named(results: Path) -> None:
    def spoil(manifest: dict) -> None:
        checks = manifest["results"]["verification"]["checks"]
        checks["largest entry of |QᵀQ − I|"]["value"] = 0.5

    _change_manifest(results / BASIS / "manifest.json", spoil)
    assert "largest entry of |QᵀQ − I| is 0.5" in named(results)[BASIS]


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("tables/spectrum/a/0", TABLE, "iteration 0"),
        ("runs/a/checkpoints/0/checkpoint.zarr", f"{CHECKPOINT}/checkpoint.zarr", "holds the checkpoint 0 of run 'a'"),
        (f"{CHECKPOINT}/hessian", BASIS, "holds the stage 'hessian'"),
    ],
)
def test_what_lies_in_the_wrong_place_is_named(results: Path, source: str, target: str, words: str) -> None:
    shutil.rmtree(results / target)
    shutil.copytree(results / source, results / target)
    assert words in named(results)[str(reported(results, target).relative_to(results))]


def test_a_result_of_another_eigenbasis_is_named(results: Path) -> None:
    _change_manifest(results / BASIS / "manifest.json", lambda manifest: manifest.update(digest="0" * 64))
    problems = named(results)
    assert "measured from another eigenbasis" in problems[str(reported(results, TABLE).relative_to(results))]


def test_a_result_of_another_basis_at_the_start_of_a_family_is_named(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = ("start_checkpoint", "start_eigenbasis")
    measure = replace(MEASURES["tuning"], reads=reads)
    monkeypatch.setitem(MEASURES, "tuning", measure)
    options = effective_options(measure, {"dtype": "float64"}, 235)
    made = replace(family({"seed": ("0", "1")}), start=("a", 40))
    stores = (f"{CHECKPOINT}/checkpoint.zarr/zarr.json", f"{BASIS}/manifest.json")
    inputs = {name: [results / path] for name, path in zip(reads, stores, strict=True)}
    provenance = Provenance.of(measure, "1", {**options, "family": made.document()}, inputs)
    tables = {name: Table(schema, columns_of([], schema.all_columns()), {}) for name, schema in measure.schemas.items()}
    place = f"tables/tuning/family/family/{manifest_name(fingerprint_digits(options, '1'))}"
    (results / place).parent.mkdir(parents=True)
    write_result(results / place, provenance, tables)
    assert named(results) == {}
    for path, words in zip(stores, ("another checkpoint", "another eigenbasis"), strict=True):
        before = (results / path).read_bytes()
        shutil.copy(results / path.replace("/40/", "/0/"), results / path)
        assert f"measured from {words} than the one in" in named(results)[place]
        # What is not there says nothing.
        (results / path).unlink()
        assert place not in named(results)
        (results / path).write_bytes(before)


def test_a_manifest_with_changed_text_is_named(results: Path) -> None:
    path = results / BASIS / "manifest.json"
    path.write_text(path.read_text().replace('"size": 235', '"size": 236'))
    assert "changed after it was written" in named(results)[BASIS]


def test_results_of_another_seed_are_whole_and_are_named_so(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = results.parents[1]
    shutil.rmtree(results / "data.zarr")
    prepare(small_experiment().data, 1, results / "data.zarr")
    assert main(["verify", str(root)]) == 1
    said = capsys.readouterr().out
    assert "DAMAGED" not in said
    assert f"OTHER   {results / 'runs/a/trajectory'}: " in said
    assert f"belongs to another data set than the one in {(results / 'data.zarr').absolute()}; it is whole" in said
    assert "whole, but not of what lies beside it" in said


# Of 15 units of the shard, one; an eigenbasis this small has two, and needs for either what the first did not keep.
@pytest.mark.parametrize(("stage", "part", "units"), [(SHARD, "matrix", 1), (BASIS, "eigenvectors", 2)])
def test_removing_the_manifest_mends_in_place(results: Path, stage: str, part: str, units: int) -> None:
    directory = results / stage
    before = (directory / "manifest.json").read_bytes()
    chunk = max((p for p in (directory / f"store.zarr/{part}/c").rglob("*") if p.is_file()), key=str)
    content = chunk.read_bytes()
    flip(chunk, 12_345)
    assert f"remove {directory / 'manifest.json'} and run the workflow again" in named(results)[stage]
    (directory / "manifest.json").unlink()
    events = len(read_events(directory))
    curvature(results.parents[1], small_experiment(), 40)
    assert chunk.read_bytes() == content
    assert (directory / "manifest.json").read_bytes() == before
    assert [event["event"] for event in read_events(directory)[events:]].count("unit") == units
    assert not named(results)


# ---------------------------------------------------------------------------------------------------------------------
# What belongs to somebody else


@pytest.fixture(scope="module")
def readers() -> None:
    """Processes of another user, who may not import anything either, are forked from one that has."""
    start_server("torch", "quadscape.results.verify", "quadscape.results.status", "quadscape.curvature.stored_basis")


@pytest.fixture
def readable(finished: Path, readers: None) -> Iterator[Path]:
    """A copy that any user can come to."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copytree(finished, Path(folder) / "results/small"))


def _as_nobody(results: Path, stage: str) -> tuple[dict[str, tuple[str, str]], str, list[str]]:
    """Problems that another user is told of, what the reader of a stage says, and folders that status passes over."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    found = {
        str(path.relative_to(results)): (type(text).__name__, str(text))
        for path, text in verify_results(results)
        if text is not None
    }
    said = ""
    try:
        opened = open_stage(results / stage)
        for name in ("eigenvalues", "eigenvectors"):
            opened.read(name)
    except StoreError as error:
        said = str(error)
    hidden: list[OSError] = []
    find_stages(results, hidden.append)
    return found, said, [str(Path(error.filename).relative_to(results)) for error in hidden]


@pytest.mark.parametrize("part", ["a chunk", "the journal", "the manifest", "metadata", "the folder"])
def test_what_another_user_may_not_read_is_not_called_damaged(readable: Path, part: str) -> None:
    stage = readable / BASIS
    path = {
        "a chunk": next(
            path
            for path in sorted(stage.glob("store.zarr/eigenvectors/**/*"))
            if path.name != "zarr.json" and path.is_file()
        ),
        "the journal": stage / "journal",
        "the manifest": stage / "manifest.json",
        "metadata": stage / "store.zarr/zarr.json",
        "the folder": stage,
    }[part]
    before = path.stat().st_mode
    path.chmod(0)
    try:
        found, said, hidden = call(_as_nobody, readable, BASIS)
    finally:
        path.chmod(before)
    assert list(found) == [BASIS]
    kind, text = found[BASIS]
    assert kind == "Forbidden"
    for sentence in (text, said):
        assert str(path) in sentence
        assert "may not be read by this user" in sentence
        assert "rights" in sentence
        assert "remove" not in sentence
    assert hidden == ([BASIS] if part == "the folder" else [])


def test_how_much_was_checked_is_said(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(results / TABLE)]) == 0
    assert "1 result checked: everything is as it was written" in capsys.readouterr().out
    assert main(["verify", str(results / "runs/a/checkpoints")]) == 0
    assert "9 results checked: everything is as it was written" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Repair


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("store", STORES)
def test_repair_gives_up_what_is_damaged_and_nothing_else(
    results: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repair", str(results)]) == 0
    assert "nothing is damaged" in capsys.readouterr().out
    harmed = content_files(results, store)[-1]
    flip(harmed, 100)
    before = _files(results)
    assert main(["repair", str(results)]) == 1
    assert _files(results) == before, "it only lists what it would remove"
    said = capsys.readouterr().out
    assert "DAMAGED" in said
    assert "--yes" in said
    assert main(["repair", str(results), "--yes"]) == 0
    gone = before.keys() - _files(results).keys()
    if store.endswith(".zarr"):
        assert gone == {name for name in before if name.startswith(f"{store}/")}
    else:
        (name,) = gone
        assert Path(name).parent == Path(store)
        assert Path(name).name.startswith("manifest")
    assert main(["repair", str(results)]) == 0
    assert main(["verify", str(results)]) == 0


def test_repair_leaves_what_was_set_aside(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aside = (results / BASIS).rename(results / f"{BASIS}.superseded")
    flip(sorted(path for path in aside.glob("store.zarr/eigenvectors/c/**/*") if path.is_file())[0], 5)
    before = _files(results)
    assert main(["repair", str(results), "--yes"]) == 1
    assert _files(results) == before
    assert "nothing uses it" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Figures, pages and findings


@pytest.mark.parametrize("name", ["figures/spectrum.svg", "figures/spectrum.png", "pages/surface.html", "findings.rst"])
def test_what_was_drawn_is_covered(results: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tables = {"spectrum": [next((results / TABLE).glob("manifest-*.json"))]}
    for names in (
        ("figures/spectrum.svg", "figures/spectrum.png"),
        ("pages/surface.html",),
        ("findings.rst", "findings.json"),
    ):
        paths = [results / one for one in names]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"drawn" * 100)
        write_record(paths, tables)
    assert named(results) == {}
    flip(results / name, 1234)
    assert set(named(results)) == {name}
    assert main(["verify", str(results)]) == 1
    assert main(["repair", str(results), "--yes"]) == 0
    assert "the workflow makes it again from its tables" in capsys.readouterr().out
    assert not (results / name).exists()
    assert main(["verify", str(results)]) == 0
    assert "not checked" not in capsys.readouterr().out


def test_what_was_drawn_before_is_said_not_to_be_covered(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "figures").mkdir()
    (results / "figures/spectrum.svg").write_text("<svg/>")
    assert main(["verify", str(results)]) == 0
    assert "not checked: 1 figures, pages or findings of an earlier version" in capsys.readouterr().out
    record = results / "figures/made-spectrum.json"
    record.write_text("{}")
    assert named(results).keys() == {"figures/made-spectrum.json"}
