"""The protocol of long stages under kills, damage, rivals, full disks and copies."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from toy_stage import FLAWS, PATIENT, QUICK, Toy, Worker, compete, finished, run, silent, stopped_in, wait_for

import quadscape
from quadscape.errors import DeviceMemoryError, FencedError, RoundingError, StageError, StoreError, VerificationError
from quadscape.stage import lock as lock_module
from quadscape.stage.events import read_events
from quadscape.stage.finished import open_stage, verify_stage
from quadscape.stage.lock import Lock, present_owner
from quadscape.stage.protocol import Needs
from quadscape.stage.run import run_stage

pytestmark = pytest.mark.usefixtures("toy_server", "workers_end")


def complete(directory: Path, protocol: dict[str, Any] | None = None, **task: Any) -> list[str]:
    """Runs the toy stage here; its log."""
    log: list[str] = []
    run_stage(Toy(**task), directory, log=log.append, **(protocol or PATIENT))
    return log


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], bytes]:
    directory = tmp_path_factory.mktemp("undisturbed") / "toy"
    complete(directory)
    arrays, manifest = finished(directory)
    assert_equal(arrays, Toy().expected())
    return arrays, manifest


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].tobytes() == values.tobytes(), name


def assert_undisturbed(directory: Path, undisturbed: tuple[dict[str, np.ndarray], bytes]) -> None:
    arrays, manifest = finished(directory)
    assert_equal(arrays, undisturbed[0])
    assert manifest == undisturbed[1]
    # Nothing is left behind: no drafts, workspaces or un-journalled files.
    assert sorted(path.name for path in directory.iterdir()) == [
        "events.jsonl",
        "journal",
        "lock",
        "manifest.json",
        "store.zarr",
    ]
    (owner,) = (directory / "lock").iterdir()
    assert [path.name for path in owner.iterdir()] == ["owner"]
    lines = journal_lines(directory)
    (scratch,) = [line["discarded"] for line in lines if "discarded" in line]
    assert scratch == ["resume/state"]
    written = {name for line in lines for name in line.get("files", {})}
    known = {name for name in written if not name.startswith("resume/state/")}
    assert len(known) < len(written)
    there = {
        str(path.relative_to(directory / "store.zarr"))
        for path in (directory / "store.zarr").rglob("*")
        if path.is_file() and path.name != "zarr.json"
    }
    assert there == known


def journal_lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line.partition(" ")[2]) for line in (directory / "journal").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------------------------
# Kills


@pytest.mark.parametrize("most", [120, pytest.param(400, marks=pytest.mark.long)])
def test_random_kills(place: Path, undisturbed: Any, most: int) -> None:
    """SIGKILLs at random moments, from the start of the process to the end of the run."""
    started = time.monotonic()
    worker = run(place / "measured", {"pause": 0.002}, PATIENT)
    worker.receive()
    assert worker.outcome() == ("done", "")
    duration = time.monotonic() - started

    phases: set[tuple[Any, ...]] = set()

    def lane(seed: int) -> int:
        random = np.random.default_rng(seed)
        kills = repetition = 0
        while kills < most // 2:
            directory = place / f"{seed}.{repetition}"
            repetition += 1
            for attempt in range(1000):
                worker = run(directory, {"pause": 0.002}, PATIENT)
                worker.receive()
                # A little longer each time, so that it comes to an end however busy the machine has become.
                time.sleep(float(random.uniform(0, 0.7 * duration * 1.02**attempt)))
                worker.kill()
                outcome = worker.outcome()
                if outcome is not None:
                    assert outcome == ("done", "")
                    break
                kills += 1
                lines = (directory / "journal").read_bytes().count(b"\n") if (directory / "journal").exists() else -1
                phases.add((directory.exists(), (directory / "store.zarr").exists(), lines))
                if (directory / "manifest.json").exists():
                    # The manifest comes last: once it is there, all is.
                    verify_stage(directory)
            assert_undisturbed(directory, undisturbed)
            shutil.rmtree(directory)
        return kills

    with ThreadPoolExecutor(2) as lanes:
        kills = sum(lanes.map(lane, [most, most + 1]))
    assert kills >= most
    # Before the store, before the journal, with none to all of the units, with the results.
    assert len(phases) >= 7


def test_kill_before_each_file_operation(place: Path, undisturbed: Any) -> None:
    """A kill just before the n-th rename, creation or removal, for every fourth n of a run from nothing."""

    def lane(first: int) -> int:
        for operation in range(first, 2000, 8):
            directory = place / str(operation)
            if run(directory, {}, PATIENT, kill_at=operation).outcome() is not None:
                return operation
            if operation % 5 < 2:
                # The resume too is killed, somewhere else.
                run(directory, {}, PATIENT, kill_at=1 + operation * 7 % 60).outcome()
            complete(directory)
            assert_undisturbed(directory, undisturbed)
            shutil.rmtree(directory)
        raise AssertionError("the run never came to its end")

    with ThreadPoolExecutor(2) as lanes:
        operations = min(lanes.map(lane, [1, 5]))
    assert operations > 200


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "truncated": cut,
    "emptied": lambda path: os.truncate(path, 0),
    "missing": Path.unlink,
    "zeroed": zero,
}
SCRATCH = "resume/state/c/2/0"
CHUNKS = ["rows/c/1/0", "triangle/c/4/1", "count/c/3"]


def interrupted(directory: Path, unit: int = 4) -> None:
    """Leaves a stage that was killed while it computed that unit."""
    stopped_in(directory, unit).kill()
    assert not (directory / "manifest.json").exists()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("when", ["in the middle", "after completion"])
def test_damaged_chunks(place: Path, undisturbed: Any, damage: str, when: str) -> None:
    (complete if when == "after completion" else interrupted)(place / "toy")
    for name in CHUNKS if when == "after completion" else [SCRATCH, *CHUNKS]:
        DAMAGE[damage](place / "toy/store.zarr" / name)
        if when == "after completion":
            with pytest.raises(StoreError, match=f"remove {place / 'toy/manifest.json'}"):
                verify_stage(place / "toy")
            if damage in {"truncated", "emptied", "missing"}:
                with pytest.raises(StoreError, match=f"remove {place / 'toy/manifest.json'}"):
                    open_stage(place / "toy")
            else:
                array = name.partition("/c/")[0]
                with pytest.raises(
                    StoreError, match=f"{place / 'toy'}.* is damaged .*remove {place / 'toy/manifest.json'}"
                ):
                    open_stage(place / "toy").read(array)
        log = complete(place / "toy")
        assert any("is computed again" in line for line in log)
        assert_undisturbed(place / "toy", undisturbed)


def test_damage_takes_the_manifest_away_until_it_is_healed(place: Path, undisturbed: Any) -> None:
    complete(place / "toy")
    flip(place / "toy/store.zarr" / CHUNKS[0])
    worker = stopped_in(place / "toy", 1)
    assert not (place / "toy/manifest.json").exists()
    with pytest.raises(StoreError, match="no finished stage"):
        open_stage(place / "toy")
    worker.signal(signal.SIGCONT)
    assert worker.outcome() == ("done", "")
    assert_undisturbed(place / "toy", undisturbed)


def test_lost_journal_line_takes_the_manifest_away_too(place: Path, undisturbed: Any) -> None:
    complete(place / "toy")
    lines = (place / "toy/journal").read_text().splitlines(keepends=True)
    (place / "toy/journal").write_text("".join(lines[:1] + lines[2:]))
    # The file operations up to the first removal of a chunk that nobody knows any more.
    for operation in range(1, 60):
        if run(place / "toy", {}, PATIENT, kill_at=operation).outcome() is not None:
            break
        if (place / "toy/manifest.json").exists() and not (place / "toy/store.zarr/rows/c/1/0").exists():
            raise AssertionError("the manifest stayed beside a store that had lost a unit")
    complete(place / "toy")
    assert_undisturbed(place / "toy", undisturbed)


def test_missing_file_is_noticed_while_reading(place: Path) -> None:
    complete(place / "toy")
    stage = open_stage(place / "toy")
    (place / "toy/store.zarr/rows/c/1/0").unlink()
    assert np.isfinite(stage.read("rows", slice(0, 4))).all()
    with pytest.raises(StoreError, match=rf"rows/c/1/0 of .* is missing; remove {place / 'toy/manifest.json'}"):
        stage.read("rows")
    assert np.isnan(stage.read("triangle")).any()


JOURNAL: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "torn": lambda path: os.truncate(path, path.stat().st_size - 7),
    "torn at the line's end": lambda path: os.truncate(path, path.stat().st_size - 1),
    "first line lost": lambda path: path.write_bytes(path.read_bytes().partition(b"\n")[2]),
    "line flipped": flip,
    "line doubled": lambda path: path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0]),
    "zeroed": zero,
    "garbage": lambda path: path.write_bytes(b"\xff\x00\n\n[]\n" + path.read_bytes() + b"0123456789abcdef {}"),
}


@pytest.mark.parametrize("damage", JOURNAL)
@pytest.mark.parametrize("when", ["in the middle", "after completion"])
def test_damaged_journal(place: Path, undisturbed: Any, damage: str, when: str) -> None:
    (complete if when == "after completion" else interrupted)(place / "toy")
    before = (place / "toy/journal").read_bytes()
    JOURNAL[damage](place / "toy/journal")
    assert (place / "toy/journal").exists() is (damage != "deleted")
    if when == "after completion" and damage in {"deleted", "emptied", "first line lost", "line flipped", "zeroed"}:
        with pytest.raises(StoreError, match=rf"journal .* remove {place / 'toy/manifest.json'}"):
            open_stage(place / "toy")
    complete(place / "toy")
    assert_undisturbed(place / "toy", undisturbed)
    if when == "after completion":
        # Units computed again are added at the end; the lines are the same.
        assert set((place / "toy/journal").read_bytes().splitlines()) == set(before.splitlines())


def test_journal_deleted_while_at_work(place: Path, undisturbed: Any) -> None:
    worker = stopped_in(place / "toy", 3)
    (place / "toy/journal").unlink()
    worker.signal(signal.SIGCONT)
    outcome = worker.outcome()
    assert outcome is not None
    assert outcome[0] == "StoreError"
    assert "run the same command again" in outcome[1]
    assert not (place / "toy/manifest.json").exists()
    complete(place / "toy")
    assert_undisturbed(place / "toy", undisturbed)


def test_chunk_damaged_while_at_work(place: Path, undisturbed: Any) -> None:
    worker = stopped_in(place / "toy", 3)
    zero(place / "toy/store.zarr/triangle/c/1/1")
    worker.signal(signal.SIGCONT)
    outcome = worker.outcome()
    assert outcome is not None
    assert outcome[0] == "StoreError"
    assert not (place / "toy/manifest.json").exists()
    complete(place / "toy")
    assert_undisturbed(place / "toy", undisturbed)


def change_root(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        document = json.loads((store / "zarr.json").read_text())
        change(document)
        (store / "zarr.json").write_text(json.dumps(document))

    return damage


METADATA: dict[str, Callable[[Path], None]] = {
    "root flipped": lambda store: flip(store / "zarr.json"),
    "root emptied": lambda store: os.truncate(store / "zarr.json", 0),
    "root missing": lambda store: (store / "zarr.json").unlink(),
    "root not a mapping": lambda store: (store / "zarr.json").write_text("[1]"),
    "root of another kind": change_root(lambda document: document.update(node_type="array")),
    "root of another format": change_root(lambda document: document.update(zarr_format=2)),
    "plan changed": change_root(lambda document: document["attributes"]["plan"].update(step=2)),
    "array's fill value changed": lambda store: (store / "rows/zarr.json").write_text(
        (store / "rows/zarr.json").read_text().replace('"NaN"', "1.0")
    ),
    "array's missing": lambda store: (store / "triangle/zarr.json").unlink(),
    "array's emptied": lambda store: os.truncate(store / "triangle/zarr.json", 0),
    "group's missing": lambda store: (store / "resume/zarr.json").unlink(),
    "store missing": shutil.rmtree,
}


@pytest.mark.parametrize("damage", METADATA)
def test_damaged_metadata(place: Path, undisturbed: Any, damage: str) -> None:
    complete(place / "done")
    before = {path: path.read_bytes() for path in (place / "done/store.zarr").rglob("zarr.json")}
    METADATA[damage](place / "done/store.zarr")
    assert before != {path: path.read_bytes() for path in (place / "done/store.zarr").rglob("zarr.json")}
    with pytest.raises(StoreError, match=f"remove {place / 'done/manifest.json'}"):
        open_stage(place / "done")
    complete(place / "done")
    assert_undisturbed(place / "done", undisturbed)
    interrupted(place / "begun")
    METADATA[damage](place / "begun/store.zarr")
    complete(place / "begun")
    assert_undisturbed(place / "begun", undisturbed)


def test_stray_files_are_swept(place: Path, undisturbed: Any) -> None:
    interrupted(place / "toy")
    shutil.copy(place / "toy/store.zarr/rows/c/0/0", place / "toy/store.zarr/rows/c/1/7")
    (place / "toy/store.zarr/rows/c/4").mkdir()
    (place / "toy/store.zarr/rows/c/4/0.1234.partial").write_bytes(b"x")
    (place / "toy/lock/new.0123").mkdir()
    (place / "toy/lock/0").mkdir()
    complete(place / "toy")
    assert_undisturbed(place / "toy", undisturbed)


# ---------------------------------------------------------------------------------------------------------------------
# The manifest and its errors


MANIFEST: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "emptied": lambda path: os.truncate(path, 0),
    "flipped": flip,
    "truncated": cut,
    "not a mapping": lambda path: path.write_text("[]"),
    "changed": lambda path: path.write_text(path.read_text().replace('"units": 5', '"units": 4')),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", MANIFEST)
def test_damaged_manifest(place: Path, undisturbed: Any, damage: str) -> None:
    complete(place / "toy")
    MANIFEST[damage](place / "toy/manifest.json")
    for path in (place / "toy", place / "toy/manifest.json"):
        with pytest.raises(StoreError) as caught:
            open_stage(path)
        assert str(place / "toy") in str(caught.value)
        assert "run the workflow" in str(caught.value)
    task = Toy()
    run_stage(task, place / "toy", log=silent)
    assert task.started == 0
    assert_undisturbed(place / "toy", undisturbed)


def test_manifest_of_another_stage(place: Path, undisturbed: Any) -> None:
    complete(place / "toy")
    complete(place / "other", seed=4)
    shutil.copy(place / "other/manifest.json", place / "toy/manifest.json")
    with pytest.raises(
        StoreError, match=f"manifest of {place / 'toy'} is another .* remove .*/manifest.json and run the workflow"
    ):
        open_stage(place / "toy")
    with pytest.raises(StoreError, match="holds the stage 'toy', where 'hessian' was expected"):
        open_stage(place / "other", "hessian")
    complete(place / "toy")
    assert_undisturbed(place / "toy", undisturbed)
    shutil.copytree(place / "other/store.zarr", place / "toy/store.zarr", dirs_exist_ok=True)
    with pytest.raises(StoreError, match=f"remove {place / 'toy/manifest.json'}"):
        open_stage(place / "toy")


HARM: dict[str, tuple[Callable[[Path], Any], int]] = {
    **{
        f"chunk {name}": (lambda path, harm=harm: harm(path / "store.zarr" / CHUNKS[0]), 1)
        for name, harm in DAMAGE.items()
    },
    "journal's line lost": (lambda path: JOURNAL["first line lost"](path / "journal"), 1),
    "manifest flipped": (lambda path: flip(path / "manifest.json"), 0),
    "stray file": (lambda path: shutil.copy(path / "store.zarr/rows/c/0/0", path / "store.zarr/rows/c/1/7"), 0),
    "metadata missing": (lambda path: (path / "store.zarr/zarr.json").unlink(), 5),
    "store missing": (lambda path: shutil.rmtree(path / "store.zarr"), 5),
}


@pytest.mark.parametrize("harm", HARM)
def test_removing_the_named_file_mends_in_place(place: Path, harm: str) -> None:
    """What the remedy says: remove that manifest, run again; only what is damaged is computed again."""
    complete(place / "toy", scratch=False)
    before, events = finished(place / "toy"), len(read_events(place / "toy"))
    damage, units = HARM[harm]
    damage(place / "toy")
    with pytest.raises(StoreError) as caught:
        verify_stage(place / "toy")
    named = str(caught.value).partition("; remove ")[2].partition(" and run the workflow again: ")[0]
    assert named == str(place / "toy/manifest.json")
    Path(named).unlink()
    complete(place / "toy", scratch=False)
    after = finished(place / "toy")
    assert_equal(after[0], before[0])
    assert after[1] == before[1]
    assert [event["event"] for event in read_events(place / "toy")[events:]].count("unit") == units


def test_removing_the_named_directory_heals(place: Path, undisturbed: Any) -> None:
    complete(place / "toy")
    flip(place / "toy/store.zarr" / CHUNKS[0])
    with pytest.raises(StoreError) as caught:
        verify_stage(place / "toy")
    named = str(caught.value).partition("remove the directory ")[2].partition(")")[0]
    shutil.rmtree(named)
    complete(place / "toy")
    assert_undisturbed(place / "toy", undisturbed)


def test_complete_stage_is_checked_and_not_computed(place: Path, undisturbed: Any) -> None:
    complete(place / "toy")
    (place / "toy/manifest.json").unlink()
    task = Toy()
    manifest = run_stage(task, place / "toy", log=silent)
    assert task.started == 0
    assert manifest == json.loads((place / "toy/manifest.json").read_text())
    assert_undisturbed(place / "toy", undisturbed)
    assert open_stage(place / "toy").digest == open_stage(place / "toy/manifest.json").digest


def test_failed_check_leaves_no_manifest_and_is_tried_again(place: Path, undisturbed: Any) -> None:
    for _ in range(2):
        with pytest.raises(VerificationError, match=r"residual 0\.2 exceeds 0\.1"):
            complete(place / "toy", fail="residual 0.2 exceeds 0.1")
        assert not (place / "toy/manifest.json").exists()
        assert read_events(place / "toy")[-1]["message"] == "residual 0.2 exceeds 0.1"
        assert len(journal_lines(place / "toy")) == 5
    task = Toy()
    run_stage(task, place / "toy", log=silent)
    assert task.started == 1
    assert_undisturbed(place / "toy", undisturbed)
    # Where units are computed again, the check is made again, and takes the manifest away when it fails.
    flip(place / "toy/store.zarr" / CHUNKS[0])
    with pytest.raises(VerificationError):
        complete(place / "toy", fail="residual 0.2 exceeds 0.1")
    assert not (place / "toy/manifest.json").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprint and plan


def test_other_fingerprint_starts_afresh(place: Path, undisturbed: Any) -> None:
    complete(place / "toy", seed=8, rows=30)
    log = complete(place / "toy")
    assert any("rows: 30 → 19; seed: 8 → 3" in line and "starting afresh" in line for line in log)
    assert_undisturbed(place / "toy", undisturbed)
    log = complete(place / "toy", version=2)
    assert any("version: 1 → 2" in line for line in log)
    assert open_stage(place / "toy").manifest["version"] == 2
    interrupted(place / "begun")
    complete(place / "begun", seed=4)
    assert_equal(finished(place / "begun")[0], Toy(seed=4).expected())
    complete(place / "begun")
    assert_undisturbed(place / "begun", undisturbed)


def test_kills_while_starting_afresh(place: Path, undisturbed: Any) -> None:
    complete(place / "other", seed=8)
    for operation in range(1, 80, 6):
        shutil.copytree(place / "other", place / "toy")
        killed = run(place / "toy", {}, PATIENT, kill_at=operation).outcome() is None
        with contextlib.suppress(StoreError):
            # Whatever still opens is the old result, whole.
            arrays, _ = finished(place / "toy")
            assert_equal(arrays, Toy(seed=8 if killed else 3).expected())
        complete(place / "toy")
        assert_undisturbed(place / "toy", undisturbed)
        shutil.rmtree(place / "toy")


def test_plan_is_made_once(place: Path, undisturbed: Any) -> None:
    interrupted(place / "toy")
    complete(place / "toy", offered="second")
    assert_undisturbed(place / "toy", undisturbed)
    complete(place / "toy", offered="third")
    assert_undisturbed(place / "toy", undisturbed)


def test_refused_plan_is_not_kept(place: Path) -> None:
    """A machine that is too small must not leave its plan to a larger one."""
    with pytest.raises(StageError):
        complete(place / "toy", offered="small", memory=1 << 60)
    complete(place / "toy", offered="large")
    assert open_stage(place / "toy").manifest["plan"]["offered"] == "large"


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ({"memory": 1 << 60}, r"^toy needs about .* of memory, but only .* are available; [^.]*\.$"),
        ({"disk": 1 << 60}, r"^toy needs .* more disk in .*, but only .* are free; .*, then run it again\.$"),
    ],
)
def test_too_little_memory_or_disk(place: Path, undisturbed: Any, task: dict[str, int], sentence: str) -> None:
    for directory, started in ((place / "new", False), (place / "begun", True)):
        if started:
            interrupted(directory)
        tried = Toy(**task)
        with pytest.raises(StageError, match=sentence):
            run_stage(tried, directory, log=silent)
        assert tried.started == 0
        complete(directory)
        assert_undisturbed(directory, undisturbed)
    # What is complete needs nothing; and a refusal does not remove an older result.
    complete(place / "new", **task)
    with pytest.raises(StageError, match=sentence):
        complete(place / "new", seed=9, **task)
    assert_undisturbed(place / "new", undisturbed)


@pytest.mark.parametrize("flaw", FLAWS)
def test_units_must_write_whole_files_of_their_own(place: Path, undisturbed: Any, flaw: str) -> None:
    with pytest.raises(ValueError, match=r"^Units? (0 and )?1 ") as caught:
        complete(place / "toy", flaw=flaw)
    (array, (selection, _)) = next(iter(FLAWS[flaw].items()))
    assert array in str(caught.value)
    if flaw != "twice":
        assert str(selection) in str(caught.value)
    assert len(journal_lines(place / "toy")) == 1
    complete(place / "toy")
    assert_undisturbed(place / "toy", undisturbed)


# ---------------------------------------------------------------------------------------------------------------------
# Owners


def test_second_process_waits_and_finds_it_complete(place: Path, undisturbed: Any) -> None:
    first = stopped_in(place / "toy", 2)
    second = run(place / "toy", {"mark": str(place / "second")}, PATIENT)
    assert second.receive() == ("ready", "")
    assert "Waiting: " in second.receive()[1]
    first.signal(signal.SIGCONT)
    assert first.outcome() == ("done", "")
    assert second.outcome() == ("done", "")
    assert not list(place.glob("second.*"))
    assert_undisturbed(place / "toy", undisturbed)
    assert "takeover" not in {event["event"] for event in read_events(place / "toy")}


def test_heartbeat_ends_with_its_owner(place: Path) -> None:
    worker = stopped_in(place / "toy", 2, {"heartbeat": 3600.0, "stale_after": 7200.0})
    (beating,) = psutil.Process(worker.process.pid).children()
    worker.kill()
    # At once, not only at its next beat.
    beating.wait(30)


def test_owner_that_holds_the_interpreter_keeps_the_stage(place: Path) -> None:
    """A heartbeat of a thread would stand still during one long call of LAPACK."""
    command = (
        "import ctypes, sys; from pathlib import Path; from quadscape.stage.lock import Lock\n"
        "lock = Lock(Path(sys.argv[1]), 0.05, 0.5); lock.acquire(print, lambda *a, **k: None)\n"
        "print('held', flush=True); ctypes.PyDLL(None).usleep(1_500_000); print(lock.is_mine(), flush=True)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", command, str(place)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(quadscape.__file__).parents[1])},
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    beats = {present_owner(place).beat for _ in range(50) if not time.sleep(0.02)}  # type: ignore[union-attr,func-returns-value]
    assert len(beats) > 5
    assert owner.stdout.readline() == "True\n"
    owner.wait()


def test_stopped_owner_is_fenced(place: Path, undisturbed: Any) -> None:
    first = stopped_in(place / "toy", 2, QUICK)
    second = run(place / "toy", {}, QUICK)
    assert second.outcome() == ("done", "")
    assert any("Took over from" in line for line in second.log)
    before = {path: path.read_bytes() for path in (place / "toy").rglob("*") if path.is_file()}
    first.signal(signal.SIGCONT)
    outcome = first.outcome()
    assert outcome is not None
    assert outcome[0] == "FencedError"
    assert "nothing is lost" in outcome[1]
    after = {path: path.read_bytes() for path in (place / "toy").rglob("*") if path.is_file()}
    del before[place / "toy/events.jsonl"], after[place / "toy/events.jsonl"]
    assert after == before
    assert [event["event"] for event in read_events(place / "toy")][-1] == "fenced"
    assert_undisturbed(place / "toy", undisturbed)


def test_owner_stopped_between_check_and_rename_changes_nothing(place: Path) -> None:
    """The second process computes something else, so that one rename too late would be seen."""
    arrays = Toy(seed=4).expected()

    def lane(first_check: int) -> int:
        for check in range(first_check, 100, 8):
            directory = place / str(check)
            first = run(directory, {}, QUICK, stop_after_check=check)
            while first.process.is_alive() and state_of(first) != "T":
                time.sleep(0.005)
            if not first.process.is_alive():
                return check
            second = run(directory, {"seed": 4}, {"heartbeat": 0.02, "stale_after": 0.1})
            assert second.outcome() == ("done", "")
            before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
            first.signal(signal.SIGCONT)
            outcome = first.outcome()
            assert outcome is not None
            assert outcome[0] == "FencedError", outcome
            after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
            del before[directory / "events.jsonl"], after[directory / "events.jsonl"]
            assert after == before
            assert_equal(finished(directory)[0], arrays)
        raise AssertionError("the run never came to its end")

    with ThreadPoolExecutor(4) as lanes:
        assert max(lanes.map(lane, [1, 2, 3, 5, 7])) > 30


def state_of(worker: Worker) -> str:
    try:
        return Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_stopped_waiter_does_not_take_over_when_it_wakes(place: Path, undisturbed: Any) -> None:
    """It has seen no heartbeat for long, but only since it has not looked; it is on another host, as it believes."""
    mark, protocol = place / "mark", {"heartbeat": 0.05, "stale_after": 1.0}
    first = run(place / "toy", {"pause": 0.6, "mark": str(mark)}, protocol)
    wait_for(Path(f"{mark}.0").exists)
    second = run(place / "toy", {}, protocol, elsewhere=1)
    assert second.receive() == ("ready", "")
    assert "Waiting" in second.receive()[1]
    second.signal(signal.SIGSTOP)
    time.sleep(1.5)
    second.signal(signal.SIGCONT)
    assert first.outcome() == ("done", "")
    assert second.outcome() == ("done", "")
    assert "takeover" not in {event["event"] for event in read_events(place / "toy")}
    assert_undisturbed(place / "toy", undisturbed)


def test_owner_elsewhere_is_judged_by_its_heartbeat_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host: another machine identity, and on NFS another device number for the same directory."""
    first = stopped_in(place / "toy", 2, QUICK)
    monkeypatch.setattr(lock_module, "this_machine", lambda: ["elsewhere", "", ""])
    owner = present_owner(place / "toy")
    assert owner is not None
    assert owner.is_alive(place / "toy") is None
    complete(place / "toy", QUICK)
    first.signal(signal.SIGCONT)
    outcome = first.outcome()
    assert outcome is not None
    assert outcome[0] == "FencedError"


@pytest.mark.parametrize("repetitions", [2, pytest.param(8, marks=pytest.mark.long)])
def test_contenders_one_owner(place: Path, repetitions: int) -> None:
    """Four processes want the lock at once, many times, and some are killed; a lock of the kernel is the witness."""
    random = np.random.default_rng(repetitions)
    protocol = {"heartbeat": 0.001, "stale_after": 60.0}
    for repetition in range(repetitions):
        directory = place / str(repetition)
        directory.mkdir()
        workers = [Worker(compete, str(directory), seed, 25, protocol) for seed in range(4)]
        for victim in workers[:2]:
            time.sleep(float(random.uniform(0.02, 0.2)))
            victim.kill()
        for worker in workers[2:]:
            assert worker.receive() == 0
            worker.process.join()


@pytest.mark.parametrize("repetitions", [3, pytest.param(10, marks=pytest.mark.long)])
def test_contenders_for_a_stopped_owner(place: Path, undisturbed: Any, repetitions: int) -> None:
    for repetition in range(repetitions):
        directory = place / str(repetition)
        stopped = stopped_in(directory, 2, QUICK)
        contenders = [run(directory, {}, {"heartbeat": 0.02, "stale_after": 0.5}) for _ in range(3)]
        assert [contender.outcome() for contender in contenders] == [("done", "")] * 3
        events = [event["event"] for event in read_events(directory)]
        assert events.count("takeover") == 1
        assert events.count("unit") == 2 + 3
        stopped.kill()
        assert_undisturbed(directory, undisturbed)


def lock(directory: Path) -> Lock:
    return Lock(directory, 0.05, 60.0)


def take(directory: Path) -> Lock:
    taken = lock(directory)
    taken.acquire(silent, lambda event, **details: None)
    return taken


def test_late_contender_has_no_claim(place: Path) -> None:
    """One that found the owner dead, then slept while two others took over one after the other."""
    first, late = take(place), lock(place)
    number = present_owner(place).number  # type: ignore[union-attr]
    first.release()
    take(place).release()
    third = take(place)
    for behind in (number, number + 1, number + 2):
        assert not late._claim(behind)
    third.check()
    assert not late.is_mine()
    assert sorted(path.name for path in (place / "lock").iterdir()) == [str(number + 2)]
    third.release()


def test_sweeping_does_not_disturb_contenders(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner sweeps leftovers; the draft of a contender that is about to claim may go with them."""
    late = lock(place)
    original = lock_module.write_whole

    def write(descriptor: int, text: bytes) -> None:
        original(descriptor, text)
        monkeypatch.setattr(lock_module, "write_whole", original)
        take(place).release()

    monkeypatch.setattr(lock_module, "write_whole", write)
    late.acquire(silent, lambda event, **details: None)
    late.check()
    late.release()


@pytest.mark.parametrize("damage", [*DAMAGE, "directory missing"])
def test_damaged_lock(place: Path, undisturbed: Any, damage: str) -> None:
    interrupted(place / "toy")
    if damage == "directory missing":
        shutil.rmtree(place / "toy/lock")
    else:
        DAMAGE[damage](place / "toy/lock/1/owner")
    complete(place / "toy", QUICK)
    assert_undisturbed(place / "toy", undisturbed)


def test_interrupt_gives_the_lock_back(place: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Any) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for method in ("start", "compute", "results"):
        with monkeypatch.context() as patched:
            patched.setattr(Toy, method, interrupt)
            with pytest.raises(KeyboardInterrupt):
                complete(place / "toy")
        assert present_owner(place / "toy").released  # type: ignore[union-attr]
    complete(place / "toy")
    assert_undisturbed(place / "toy", undisturbed)


# ---------------------------------------------------------------------------------------------------------------------
# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("there is no mount command")
    tried = subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"mounting a small tmpfs is not permitted here: {tried.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk(small_disk: Path, undisturbed: Any) -> None:
    ballast = small_disk / "ballast"
    refused = 0
    for pages in [*range(0, 24, 2), *range(24, 80, 8)]:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        for leftover in small_disk.glob("toy*"):
            shutil.rmtree(leftover)
        free = shutil.disk_usage(small_disk).free
        os.truncate(ballast, max(0, ballast.stat().st_size + free - pages * 4096) // 4096 * 4096)
        sentence = attempt(small_disk / "toy")
        assert re.search(
            r"^(The disk of .* is full|toy needs .* more disk).*run (it|the same command) again|^$", sentence
        )
        refused += bool(sentence)
        assert not (small_disk / "toy/manifest.json").exists() or verify_stage(small_disk / "toy")
        ballast.unlink()
        complete(small_disk / "toy")
        assert_undisturbed(small_disk / "toy", undisturbed)
    assert refused >= 8


@pytest.mark.parametrize("function", ["fsync", "write", "open", "mkdir"])
def test_no_space_at_each_call(place: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """The same through a fault from the n-th call on; quotas say EDQUOT."""
    original = getattr(os, function)
    left = 0

    def fail(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        if function == "open" and not arguments[1] & os.O_CREAT:
            return original(*arguments, **keywords)
        left -= 1
        if left < 0:
            raise OSError(errno.EDQUOT if left % 2 else errno.ENOSPC, "No space left on device")
        return original(*arguments, **keywords)

    for calls in [*range(0, 10, 2), *range(10, 1000, 9)]:
        directory = place / str(calls)
        directory.mkdir()
        left = calls
        with monkeypatch.context() as patched:
            patched.setattr(os, function, fail)
            sentence = attempt(directory)
        assert re.search(
            r"^The disk of .* is full \(.*\); free some space and run the same command again: |^$", sentence
        )
        complete(directory)
        assert_undisturbed(directory, undisturbed)
        shutil.rmtree(directory)
        if not sentence:
            break
    assert calls >= 2


def attempt(directory: Path) -> str:
    """What the stage says when it cannot go on; nothing when it came to its end."""
    try:
        complete(directory)
    except StageError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Copies and moves


def test_copied_directory(place: Path, undisturbed: Any) -> None:
    """Also while the original is at work: the lock comes along, and its owner is alive, but not at work in the copy."""
    complete(place / "done")
    subprocess.run(["cp", "-r", str(place / "done"), str(place / "done copy")], check=True)
    shutil.rmtree(place / "done")
    complete(place / "done copy")
    assert_undisturbed(place / "done copy", undisturbed)
    original = stopped_in(place / "toy", 2)
    subprocess.run(["cp", "-a", str(place / "toy"), str(place / "copy")], check=True)
    complete(place / "copy")
    original.signal(signal.SIGCONT)
    assert original.outcome() == ("done", "")
    assert_undisturbed(place / "toy", undisturbed)
    assert_undisturbed(place / "copy", undisturbed)


def test_copies_at_random_moments(place: Path, undisturbed: Any) -> None:
    random = np.random.default_rng(6)
    original = run(place / "toy", {"pause": 0.1}, PATIENT)
    original.receive()
    for copy in range(6):
        time.sleep(float(random.uniform(0, 0.1)))
        # What vanishes while it is copied is reported by cp and missing in the copy.
        subprocess.run(["cp", "-r", str(place / "toy"), str(place / str(copy))], capture_output=True)
    assert original.outcome() == ("done", "")
    assert_undisturbed(place / "toy", undisturbed)
    for copy in range(6):
        complete(place / str(copy))
        assert_undisturbed(place / str(copy), undisturbed)


def test_moved_directory(place: Path, undisturbed: Any) -> None:
    complete(place / "done")
    (place / "done").rename(place / "done moved")
    complete(place / "done moved")
    assert_undisturbed(place / "done moved", undisturbed)
    owner = stopped_in(place / "toy", 2, QUICK)
    (place / "toy").rename(place / "moved")
    owner.signal(signal.SIGCONT)
    outcome = owner.outcome()
    assert outcome is not None
    assert outcome[0] == "FencedError"
    assert "was moved" in outcome[1]
    complete(place / "moved")
    assert_undisturbed(place / "moved", undisturbed)
    complete(place / "toy")
    assert_undisturbed(place / "toy", undisturbed)


# ---------------------------------------------------------------------------------------------------------------------
# Events


def test_torn_events(place: Path, undisturbed: Any) -> None:
    interrupted(place / "toy")
    path = place / "toy/events.jsonl"
    os.truncate(path, path.stat().st_size - 5)
    with path.open("ab") as file:
        file.write(b'\xff\x00{"event": "unit"\n[1]\n{"time": 3}\n{"event": "un')
    complete(place / "toy")
    events = [event["event"] for event in read_events(place / "toy")]
    assert events.count("start") == 2
    assert events[-1] == "finish"
    # The interrupted unit's predecessor lost its line, and nothing else.
    assert events.count("unit") == 3 + 1
    assert_undisturbed(place / "toy", undisturbed)
    path.unlink()
    assert read_events(place / "toy") == []
    complete(place / "toy")


def test_fenced_error_is_a_stage_error() -> None:
    assert issubclass(FencedError, StageError)


def test_work_is_shared_by_cost():
    assert Needs(0, 0).share([1], 4) == 0.25
    assert Needs(0, 0, costs=[6.0, 3.0, 1.0]).share([1, 2], 3) == pytest.approx(0.4)
    assert Needs(0, 0, costs=[0.0, 0.0]).share([1], 2) == 0.5
    assert Needs(0, 0, costs=[]).share([], 0) == 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Too little memory on the device


def test_out_of_device_memory_goes_on_with_smaller_blocks(place: Path, undisturbed: Any) -> None:
    log = complete(place / "toy", fits={2: 2})
    arrays, text = finished(place / "toy")
    assert_equal(arrays, undisturbed[0])
    manifest = json.loads(text)
    assert manifest["plan"]["block"] == 8
    assert [(entry["unit"], entry["plan"]["block"]) for entry in manifest["replanned"]] == [(2, 4), (2, 2)]
    assert [line for line in log if "smaller blocks" in line] == [
        f"toy: The device's memory does not hold {rows} rows; going on with smaller blocks (block {rows} → {half})."
        for rows, half in ((8, 4), (4, 2))
    ]
    assert [event["event"] for event in read_events(place / "toy")].count("smaller") == 2
    complete(place / "toy")
    assert (place / "toy/manifest.json").read_bytes() == text


def test_the_smaller_plan_outlives_a_kill(place: Path, undisturbed: Any) -> None:
    worker = run(place / "toy", {"fits": {1: 4}, "stop_in": 3}, PATIENT)
    wait_for(lambda: any(event.get("done") == 3 for event in read_events(place / "toy")))
    worker.kill()
    log = complete(place / "toy", fits={3: 4, 4: 2})
    assert [line for line in log if "smaller blocks" in line] == [
        "toy: The device's memory does not hold 4 rows; going on with smaller blocks (block 4 → 2)."
    ]
    arrays, text = finished(place / "toy")
    assert_equal(arrays, undisturbed[0])
    assert [(e["unit"], e["plan"]["block"]) for e in json.loads(text)["replanned"]] == [(1, 4), (4, 2)]


def test_what_does_not_fit_in_the_smallest_blocks_is_an_error_and_loses_nothing(place: Path, undisturbed: Any) -> None:
    with pytest.raises(DeviceMemoryError, match="does not hold 1 rows; use a larger one"):
        complete(place / "toy", fits={3: 0})
    assert [event["done"] for event in read_events(place / "toy") if event["event"] == "unit"] == [1, 2, 3]
    complete(place / "toy")
    assert_equal(finished(place / "toy")[0], undisturbed[0])


def test_a_forgotten_plan_is_noticed(place: Path) -> None:
    complete(place / "toy", fits={2: 4})
    journal = place / "toy/journal"
    journal.write_text("".join(line for line in journal.read_text().splitlines(True) if "replanned" not in line))
    with pytest.raises(StoreError, match="does not match its manifest"):
        verify_stage(place / "toy")


def test_units_of_another_processor_are_computed_afresh(
    tmp_path: Path, undisturbed: tuple[dict[str, np.ndarray], bytes]
) -> None:
    class Stopped(Toy):
        def compute(self, unit: int, *arguments: Any) -> Any:
            if unit == 2:
                raise ZeroDivisionError
            return super().compute(unit, *arguments)

    class Elsewhere(Toy):
        begun: int | None = None

        def compute(self, unit: int, *arguments: Any) -> Any:
            if self.begun is None:
                self.begun = unit
                raise RoundingError("It was begun on a machine that rounds differently; remove it.")
            return super().compute(unit, *arguments)

    with pytest.raises(ZeroDivisionError):
        run_stage(Stopped(), tmp_path / "toy", log=silent, **PATIENT)
    log: list[str] = []
    task = Elsewhere()
    run_stage(task, tmp_path / "toy", log=log.append, **PATIENT)
    assert task.begun == 2
    assert any("rounds differently; starting afresh here" in line for line in log)
    arrays, manifest = finished(tmp_path / "toy")
    assert_equal(arrays, undisturbed[0])
    assert manifest == undisturbed[1]
