"""Purging frees the P×P arrays and nothing else, survives kills, and what was purged can be computed again."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quadscape.amounts import format_bytes
from quadscape.cli import main
from quadscape.cluster.heads import record_head
from quadscape.cluster.plans import planned_reads, record_plan
from quadscape.curvature.stored_basis import Eigenbasis
from quadscape.errors import StageError, StoreError
from quadscape.measures import MEASURES
from quadscape.results.purge import LARGE_ARRAYS, find_removable, purge, purge_checkpoint
from quadscape.results.sizes import Kept, keep_asked, keep_readers
from quadscape.results.status import stage_status
from quadscape.results.verify import verify_results
from quadscape.stage.events import seconds_taken
from quadscape.stage.finished import finished_manifest, open_stage, verify_stage
from quadscape.stage.lock import Lock
from quadscape.stage.purging import array_bytes, purge_stage
from results import curvature, small_experiment

CHECKPOINTS = "results/small/runs/a/checkpoints"
LARGE = [
    f"{CHECKPOINTS}/0/eigenbasis",
    f"{CHECKPOINTS}/0/hessian_shards/1-of-1",
    f"{CHECKPOINTS}/40/eigenbasis",
    f"{CHECKPOINTS}/40/gauss_newton",
    f"{CHECKPOINTS}/40/hessian_shards/1-of-1",
]


@pytest.fixture(scope="module")
def finished(made_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("purge") / "root"
    results = shutil.copytree(made_results, root) / "results/small"
    # What measures would write, as far as purging looks at it.
    for key in ("0", "40", "0-40"):
        for measure in MEASURES.values():
            if measure.of == ("checkpoint_pair" if "-" in key else "checkpoint") and (
                key != "0" or measure.name != "parts"
            ):
                path = results / f"tables/{measure.name}/a/{key}/manifest-00000000.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "root"))


def removable(root: Path) -> dict[str, str]:
    """Why each large stage is kept, by place."""
    return {str(found.directory.relative_to(root)): found.kept_for for found in find_removable(root)}


def purge_all(root: Path) -> None:
    for found in find_removable(root):
        if not found.kept_for:
            purge(found, lambda _: None)


def test_it_is_dry_unless_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert removable(root) == dict.fromkeys(LARGE, "")
    assert main(["purge", str(root)]) == 0
    said = capsys.readouterr().out
    assert said.count("remove ") == len(LARGE)
    size = sum(found.size_bytes for found in find_removable(root))
    assert len(LARGE) * 235**2 * 4 < size < len(LARGE) * 235**2 * 8.2
    assert f"would free {format_bytes(size)}; nothing was removed" in said
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_purged_and_computed_again(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    basis = root / CHECKPOINTS / "40/eigenbasis"
    manifests = {name: (root / name / "manifest.json").read_bytes() for name in LARGE}
    vectors, values = Eigenbasis(basis).vectors(0, 235), Eigenbasis(basis).eigenvalues
    others = {
        path: path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
        and not any(part in {"matrix", "eigenvectors", "lock"} for part in path.parts)
        and path.name not in {"manifest.json", "events.jsonl"}
    }
    assert main(["purge", str(root), "--yes"]) == 0
    assert "freed 2.26 MB; tables" in capsys.readouterr().out
    for name in LARGE:
        assert array_bytes(root / name, ["matrix", "eigenvectors"]) == 0
        assert not (root / name / "manifest.json").exists()
        assert finished_manifest(root / name)["results"]
        assert stage_status(root / name).state == "purged"
    assert {path: path.read_bytes() for path in others} == others
    with pytest.raises(StoreError, match=r"eigenvectors of .* were purged on 20..-..-..; run the workflow"):
        Eigenbasis(basis)
    assert removable(root) == {}
    assert main(["purge", str(root)]) == 0
    assert "nothing to free" in capsys.readouterr().out

    for iteration in (0, 40):
        curvature(root, small_experiment(), iteration)
    assert {name: (root / name / "manifest.json").read_bytes() for name in LARGE} == manifests
    np.testing.assert_array_equal(Eigenbasis(basis).vectors(0, 235), vectors)
    np.testing.assert_array_equal(Eigenbasis(basis).eigenvalues, values)
    assert not list(root.rglob("purged.json"))


def test_verify_checks_what_is_left_of_purged_stages(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "results/small/tables")  # stand-ins
    purge_stage(root / CHECKPOINTS / "40/eigenbasis", ["eigenvectors"], lambda _: None)
    assert main(["verify", str(root)]) == 0
    assert "purged on 20" in capsys.readouterr().out
    path = root / CHECKPOINTS / "40/eigenbasis/store.zarr/eigenvalues/c/0"
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    problems = [str(place.relative_to(root)) for place, text in verify_results(root) if text]
    assert problems == [f"{CHECKPOINTS}/40/eigenbasis"]


def _purge_and_die(directory: str, arrays: list[str], at: int) -> None:
    """Kills itself before its `at`-th change of the file system."""
    count = 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    for name in ("rename", "replace", "unlink", "write_text", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    purge_stage(Path(directory), arrays, lambda _: None)


def test_killed_before_each_change(root: Path, place: Path) -> None:
    original = root / CHECKPOINTS / "40/hessian_shards/1-of-1"
    name, arrays = "results/small/runs/a/checkpoints/40/hessian_shards/1-of-1", LARGE_ARRAYS["hessian_shard"]
    context = multiprocessing.get_context("fork")
    at, partly, whole = 0, 0, open_stage(original).manifest
    while True:
        at += 1
        copy = place / f"killed-{at}"
        for part in ("runs/a/checkpoints/40", "tables"):
            shutil.copytree(root / "results/small" / part, copy / "results/small" / part)
        child = context.Process(target=_purge_and_die, args=(str(copy / name), arrays, at))
        child.start()
        child.join()
        size = array_bytes(copy / name, arrays)
        if (copy / name / "manifest.json").exists():
            # Finished, so whole.
            assert verify_stage(copy / name) == whole
        else:
            with pytest.raises(StoreError, match="purged"):
                open_stage(copy / name)
            assert verify_stage(copy / name) == whole
            partly += size > 0
        purge_all(copy)
        assert array_bytes(copy / name, arrays) == 0
        assert verify_stage(copy / name) == whole
        assert stage_status(copy / name).state == "purged"
        if child.exitcode == 0:
            break
        shutil.rmtree(copy)
    assert at > 5
    assert partly > 2


def test_what_is_still_needed_is_kept(root: Path) -> None:
    tables = root / "results/small/tables"
    shutil.rmtree(tables / "gradients/a/40")
    shutil.rmtree(tables / "overlap/a/0-40")
    (root / CHECKPOINTS / "0/eigenbasis/manifest.json").unlink()
    kept = removable(root)
    assert kept[LARGE[0]] == "it is not finished"
    assert kept[LARGE[1]] == "the eigenbasis of its checkpoint is not finished"
    assert kept[LARGE[2]] == "needed by 2 unfinished measures: gradients, overlap 0-40"
    assert kept[LARGE[3]] == kept[LARGE[4]] == ""
    shutil.rmtree(tables / "parts/a/40")
    kept = removable(root)
    assert kept[LARGE[3]] == kept[LARGE[4]] == "needed by 1 unfinished measure: parts"


def test_a_stage_at_work_is_kept(root: Path) -> None:
    directory = root / LARGE[3]
    lock = Lock(directory, 0.1, 60.0)
    lock.acquire(lambda _: None, lambda event, **details: None)
    try:
        assert removable(root)[LARGE[3]] == "a process is at work in it"
        purge_all(root)
        assert (directory / "manifest.json").exists()
    finally:
        lock.release()
    assert not removable(root)[LARGE[3]]


def test_what_no_measure_asks_for_is_not_kept(root: Path) -> None:
    tables = root / "results/small/tables"
    shutil.rmtree(tables / "gradients/a/40")
    kept = Kept(root / "results/small/sizes.json")
    keep_asked(kept, {"a": ["spectrum", "overlap"]})
    kept.save()
    assert removable(root) == dict.fromkeys(LARGE, "")
    # Of a run that the experiment no longer has, it is not known what is wanted.
    keep_asked(kept, {"b": ["spectrum"]})
    kept.save()
    assert removable(root)[LARGE[2]] == "needed by 1 unfinished measure: gradients"


def test_what_is_computed_on_a_subset_is_kept_until_it_is_compared(root: Path) -> None:
    basis = root / LARGE[2]
    on_half = basis.parent / "on-half/eigenbasis"
    shutil.copytree(basis, on_half)
    place = str(on_half.relative_to(root))
    unfinished = "needed by 2 unfinished measures: noise_crossed, identified"
    # The result that is there was measured before there was a subset.
    assert removable(root) == {**dict.fromkeys(LARGE, ""), LARGE[2]: unfinished, place: unfinished}
    results = [
        root / f"results/small/tables/{measure}/a/40/manifest-00000000.json"
        for measure in ("identified", "noise_crossed")
    ]
    for result in results:
        result.parent.mkdir(exist_ok=True)
        result.write_text(json.dumps({"inputs": {"subset_eigenbasis": ["0"]}}))
    assert removable(root) == dict.fromkeys([*LARGE, place], "")
    for result in results:
        result.unlink()
    assert removable(root) == {**dict.fromkeys(LARGE, ""), LARGE[2]: unfinished, place: unfinished}
    kept = Kept(root / "results/small/sizes.json")
    keep_asked(kept, {"a": ["spectrum"]})
    kept.save()
    asked = "it is asked for by itself, on a subset of the data"
    assert removable(root) == {**dict.fromkeys(LARGE, ""), place: asked}


# ---------------------------------------------------------------------------------------------------------------------
# What the experiment asks for, and what is planned


def know_readers(root: Path, readers: dict[str, list[str]]) -> None:
    """As a head keeps them: of each stage of the run that has no entry, nothing is asked."""
    kept = Kept(root / "results/small/sizes.json")
    keep_readers(kept, ["a"], readers)
    kept.save()


BASIS = "runs/a/checkpoints/40/eigenbasis/manifest.json"


@pytest.mark.parametrize(
    ("readers", "reason"),
    [
        ([], ""),
        (["tables/overlap/a/0-40/manifest-00000000.json"], ""),
        # Of other options than those that are there.
        (["tables/overlap/a/0-40/manifest-11111111.json"], "needed by 1 unfinished measure: overlap 0-40"),
        # Of another run, since a family that compares it has that as a member.
        (
            ["tables/ruggedness/f/0123abcd/0/manifest-00000000.json"],
            "needed by 1 unfinished measure: ruggedness f/0123abcd 0",
        ),
        # Of a family whose members start there.
        (["tables/tuning/both/family/manifest-00000000.json"], "needed by 1 unfinished measure: tuning both"),
        (["runs/stepped/trajectory/manifest.json"], "needed by 1 unfinished run: stepped"),
        (["runs/stepped/starts/10/start.zarr/zarr.json"], "needed by 1 unfinished run: stepped/starts/10/start.zarr"),
        (
            ["tables/spectrum/a/40/manifest-22222222.json", "runs/f/0123abcd/trajectory/manifest.json"],
            "needed by 1 unfinished measure: spectrum; needed by 1 unfinished run: f/0123abcd",
        ),
    ],
)
def test_what_the_experiment_asks_for_is_known_exactly(root: Path, readers: list[str], reason: str) -> None:
    shutil.rmtree(root / "results/small/tables/gradients")
    know_readers(root, {BASIS: readers})
    assert removable(root) == {**dict.fromkeys(LARGE, ""), LARGE[2]: reason}


def test_what_jobs_are_going_to_read_is_kept(root: Path) -> None:
    planned = {root / LARGE[2] / "manifest.json": "2 jobs are going to read it"}
    found = {str(one.directory.relative_to(root)): one.kept_for for one in find_removable(root, planned)}
    assert found == {**dict.fromkeys(LARGE, ""), LARGE[2]: "2 jobs are going to read it"}


def test_the_plan_of_a_head_is_kept_as_long_as_somebody_is_at_work(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    jobs = [_Job("measure_spectrum", "planned"), _Job("measure_spectrum", "done"), _Job("purge", "purge")]
    record_plan(SimpleNamespace(dag=SimpleNamespace(needrun_jobs=lambda: jobs)))
    assert planned_reads(root) == {}
    assert main(["purge", "results"]) == 0
    assert "kept" not in capsys.readouterr().out
    record_head("running", on_slurm=False, logs=[])
    Path("done").write_text("")
    (reason,) = planned_reads(root).values()
    assert reason == "1 job is going to read it, which a head has planned"
    assert main(["purge", "results"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("kept")] == ["planned"]
    Path("planned").write_text("")
    assert planned_reads(root) == {}
    Path(".quadscape/plan.json").unlink()
    assert main(["purge", "results", "--yes"]) == 1
    assert "what they read is not known" in capsys.readouterr().err


class _Job:
    """A job of Snakemake that reads the basis and makes one file."""

    def __init__(self, rule: str, output: str) -> None:
        self.rule, self.output = SimpleNamespace(name=rule), [output]
        self.input = [f"results/small/{BASIS}", "results/small/data.zarr/zarr.json"]


def test_what_it_takes_to_have_it_again_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = root / LARGE[2] / "events.jsonl"
    lines = [
        {"time": 100.0, "event": "start"},
        {"time": 140.0, "event": "unit", "unit": 0, "seconds": 30.0},
        {"time": 150.0, "event": "unit", "unit": 1, "seconds": 10.0},
        # Killed, and computed again without the first.
        {"time": 5000.0, "event": "start"},
        {"time": 5021.0, "event": "unit", "unit": 1, "seconds": 20.0},
        {"time": 5031.0, "event": "finish"},
        {"time": 6000.0, "event": "start"},
        {"time": 6001.0, "event": "finish"},
    ]
    events.write_text("\n".join(map(json.dumps, lines)))
    assert seconds_taken(events.parent) == 30.0 + 20.0 + 1.0 + 10.0
    for other in (LARGE[3], LARGE[4], "results/small/runs/a/checkpoints/40/hessian"):
        (root / other / "events.jsonl").unlink(missing_ok=True)
    for arguments in ([], ["--yes"]):
        assert main(["purge", str(root / CHECKPOINTS / "40"), *arguments]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("again")]
        assert "takes 1 min 01 s or more, as measured when it was computed, and 1.3" in line


# ---------------------------------------------------------------------------------------------------------------------
# The workflow's job


def test_the_job_purges_its_part_and_says_what(root: Path) -> None:
    checkpoint = root / CHECKPOINTS / "40"
    lines: list[str] = []
    for what, stages in {"hessian": {"hessian_shards/1-of-1"}, "basis": {"eigenbasis", "gauss_newton"}}.items():
        for _ in range(2):
            purge_checkpoint(checkpoint / f"purge-{what}.json", lines.append)
            said = json.loads((checkpoint / f"purge-{what}.json").read_text())
            assert (set(said["purged"]), said["kept"]) == (stages, {})
    assert removable(root) == dict.fromkeys(LARGE[:2], "")
    assert sum("was purged, which freed" in line for line in lines) == 3


def test_the_job_removes_nothing_that_is_needed(root: Path) -> None:
    know_readers(root, {BASIS: ["tables/overlap/a/0-40/manifest-11111111.json"]})
    output = root / CHECKPOINTS / "40/purge-basis.json"
    purge_checkpoint(output, lambda _: None)
    said = json.loads(output.read_text())
    assert said["kept"] == {"eigenbasis": "needed by 1 unfinished measure: overlap 0-40"}
    assert set(said["purged"]) == {"gauss_newton"}
    lock = Lock(root / LARGE[2], 0.1, 60.0)
    lock.acquire(lambda _: None, lambda event, **details: None)
    try:
        with pytest.raises(StageError, match="A process is at work in"):
            purge_checkpoint(output, lambda _: None)
    finally:
        lock.release()
