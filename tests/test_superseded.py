"""Finished results of other parameters: set aside, found again, and neither lost nor mixed by any kill."""

import errno
import json
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from toy_stage import PATIENT, Toy, Worker, finished, run, stopped_in

from quadscape.errors import StageError
from quadscape.results.purge import find_removable, purge
from quadscape.results.status import find_stages, stage_status
from quadscape.results.verify import verify_results
from quadscape.stage.events import read_events
from quadscape.stage.finished import load_purged, open_stage, verify_stage
from quadscape.stage.lock import Lock
from quadscape.stage.purging import purge_stage
from quadscape.stage.run import run_stage
from quadscape.stage.superseded import changes, superseded_directory

pytestmark = pytest.mark.usefixtures("toy_server", "workers_end")

PIECES = {"manifest.json", "journal", "store.zarr", "events.jsonl"}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """Bytes of undisturbed manifests, by seed."""
    root = tmp_path_factory.mktemp("undisturbed")
    for seed in (1, 2, 3):
        complete(root / str(seed), seed)
    return {seed: (root / str(seed) / "manifest.json").read_bytes() for seed in (1, 2, 3)}


def complete(directory: Path, seed: int, **task: Any) -> list[str]:
    """Runs the toy stage here; its log."""
    log: list[str] = []
    run_stage(Toy(seed=seed, **task), directory, log=log.append, **PATIENT)
    return log


def found(directory: Path, seed: int, **task: Any) -> list[str]:
    """The same, which must not compute anything."""
    toy, log = Toy(seed=seed, **task), list[str]()
    run_stage(toy, directory, log=log.append, **PATIENT)
    assert toy.started == 0
    return log


def aside(directory: Path) -> Path:
    return superseded_directory(directory)


def assert_holds(directory: Path, seed: int | None, manifests: dict[int, bytes]) -> None:
    """Whether a finished result of that seed is there, whole, and nothing else."""
    if seed is None:
        assert not directory.exists()
        return
    assert finished(directory)[1] == manifests[seed]
    assert {path.name for path in directory.iterdir()} - {"lock"} == PIECES


def assert_clean(directory: Path) -> None:
    (owner,) = (directory / "lock").iterdir()
    assert [path.name for path in owner.iterdir()] == ["owner"]


def interrupted(directory: Path, seed: int) -> None:
    """Leaves a stage that was killed in the middle."""
    stopped_in(directory, 3, seed=seed).kill()


# ---------------------------------------------------------------------------------------------------------------------
# What becomes of it


@pytest.mark.parametrize("manifest_removed", [False, True], ids=["", "the workflow removed the manifest"])
def test_there_and_back(place: Path, manifests: dict[int, bytes], manifest_removed: bool) -> None:
    toy = place / "toy"

    def begin() -> None:
        if manifest_removed:
            (toy / "manifest.json").unlink()

    complete(toy, 1)
    events = (toy / "events.jsonl").read_bytes()
    begin()
    log = complete(toy, 2)
    assert log[0] == (
        f"toy: the finished result of other parameters (seed: 1 → 2) is set aside in {aside(toy)}; starting afresh."
    )
    assert_holds(toy, 2, manifests)
    assert_holds(aside(toy), 1, manifests)
    assert (aside(toy) / "events.jsonl").read_bytes().startswith(events)
    begin()
    log = found(toy, 1)
    assert log[0] == (
        f"toy: the result of these parameters, which was set aside in {aside(toy)}, is taken back (seed: 2 → 1); the "
        "one that was here is set aside in its place."
    )
    assert_holds(toy, 1, manifests)
    assert_holds(aside(toy), 2, manifests)
    assert stage_status(toy).attempts == 2
    begin()
    assert "in place of an older one, in" in complete(toy, 3)[0]
    assert_holds(toy, 3, manifests)
    assert_holds(aside(toy), 1, manifests)
    assert_clean(toy)


@pytest.mark.parametrize("there", ["nothing", "empty", "unfinished", "of no parameters"])
def test_taken_back_where_nothing_finished_is(place: Path, manifests: dict[int, bytes], there: str) -> None:
    toy = place / "toy"
    complete(toy, 1)
    complete(toy, 2)
    shutil.rmtree(toy)
    if there == "empty":
        toy.mkdir()
    elif there != "nothing":
        interrupted(toy, 3)
        assert_holds(aside(toy), 1, manifests)
    if there == "of no parameters":
        (toy / "store.zarr/zarr.json").unlink()
    log = found(toy, 1)
    assert ("is taken back (seed: 3 → 1)." if there == "unfinished" else "is taken back.") in " ".join(log)
    assert_holds(toy, 1, manifests)
    assert_holds(aside(toy), None, manifests)
    assert_clean(toy)


def test_what_is_unfinished_is_discarded(place: Path, manifests: dict[int, bytes]) -> None:
    toy = place / "toy"
    complete(toy, 1)
    interrupted(toy, 2)
    assert_holds(aside(toy), 1, manifests)
    log = complete(toy, 3)
    assert "toy: what is here is of other parameters (seed: 2 → 3), and unfinished; starting afresh." in log
    assert_holds(toy, 3, manifests)
    assert_holds(aside(toy), 1, manifests)


def test_a_refusal_sets_nothing_aside(place: Path, manifests: dict[int, bytes]) -> None:
    toy = place / "toy"
    complete(toy, 1)
    for task in ({"memory": 1 << 60}, {"disk": 1 << 60}):
        with pytest.raises(StageError, match="would be kept" if "disk" in task else "of memory"):
            complete(toy, 2, **task)
        assert_holds(toy, 1, manifests)
        assert not aside(toy).exists()


def test_damage_of_what_was_set_aside_is_mended(place: Path, manifests: dict[int, bytes]) -> None:
    toy = place / "toy"
    complete(toy, 1, scratch=False)
    before = (toy / "manifest.json").read_bytes()
    complete(toy, 2)
    (aside(toy) / "store.zarr/rows/c/1/0").unlink()
    (aside(toy) / "manifest.json").write_text("{}")
    complete(toy, 1, scratch=False)
    assert [event["event"] for event in read_events(toy)].count("unit") == 5 + 1
    assert (toy / "manifest.json").read_bytes() == before
    # What cannot be told any more is not taken back, and is replaced.
    (aside(toy) / "store.zarr/zarr.json").unlink()
    assert "in place of an older one" in complete(toy, 2)[0]
    assert (aside(toy) / "manifest.json").read_bytes() == before


def test_a_damaged_manifest_is_written_anew(place: Path, manifests: dict[int, bytes]) -> None:
    toy, other = place / "toy", place / "other"
    for change in ("damaged", "another's"):
        complete(toy, 1)
        complete(other, 3)
        if change == "damaged":
            (toy / "manifest.json").write_text("[]")
        else:
            shutil.copy(other / "manifest.json", toy / "manifest.json")
        complete(toy, 2)
        assert_holds(aside(toy), 1, manifests)


def test_what_was_purged_is_said_in_one_line(place: Path, manifests: dict[int, bytes]) -> None:
    toy = place / "toy"
    complete(toy, 1)
    purge_stage(toy, ["triangle"])
    log = complete(toy, 1)
    assert sum("triangle purged on 20" in line and line.endswith(", computed again.") for line in log) == 1
    assert not any("missing or damaged" in line for line in log)
    assert_holds(toy, 1, manifests)


def test_purged_results_are_set_aside_too(place: Path, manifests: dict[int, bytes]) -> None:
    toy = place / "toy"
    complete(toy, 1)
    purge_stage(toy, ["triangle"])
    complete(toy, 2)
    assert load_purged(aside(toy)) is not None
    assert not (aside(toy) / "manifest.json").exists()
    verify_stage(aside(toy))
    assert not (toy / "purged.json").exists()
    complete(toy, 1)
    assert_holds(toy, 1, manifests)
    assert_holds(aside(toy), 2, manifests)


def test_a_linked_stage_keeps_its_disk(tmp_path: Path, place: Path, manifests: dict[int, bytes]) -> None:
    real = place / "disk/real"
    real.mkdir(parents=True)
    (tmp_path / "toy").symlink_to(real)
    for seed in (1, 2):
        complete(tmp_path / "toy", seed)
    found(tmp_path / "toy", 1)
    assert_holds(place / "disk/real.superseded", 2, manifests)
    # Where it was moved to another disk, nothing is lost.
    (place / "disk/real.superseded").rename(place / "moved")
    (place / "disk/real.superseded").symlink_to(place / "moved")
    for seed in (2, 3):
        with pytest.raises(StageError, match="different file systems"):
            complete(tmp_path / "toy", seed)
    assert_holds(real, 1, manifests)
    assert_holds(place / "moved", 2, manifests)


def test_one_who_waits_gets_its_result_back(place: Path, manifests: dict[int, bytes]) -> None:
    toy = place / "toy"
    complete(toy, 1)
    first = stopped_in(toy, 3, seed=2)
    second = run(toy, {"seed": 1}, PATIENT)
    assert second.receive() == ("ready", "")
    assert "Waiting" in second.receive()[1]
    first.signal(signal.SIGCONT)
    assert [first.outcome(), second.outcome()] == [("done", "")] * 2
    assert not any("units to compute" in line for line in second.log)
    assert_holds(toy, 1, manifests)
    assert_holds(aside(toy), 2, manifests)


# ---------------------------------------------------------------------------------------------------------------------
# Kills


def prepared(toy: Path, case: str) -> None:
    complete(toy, 1)
    if case == "exchanged":
        complete(toy, 2)
    elif case == "taken back":
        complete(toy, 2)
        shutil.rmtree(toy)
    if case != "taken back":
        (toy / "manifest.json").unlink()


# What a run for the first seed finds, and what both must be in the end when the second seed is asked for.
CASES = {"set aside": 2, "exchanged": 1, "taken back": 1}


# Every third operation, or each of them.
STEPS = [3, pytest.param(1, marks=pytest.mark.long)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("case", CASES)
def test_kill_before_each_file_operation(place: Path, manifests: dict[int, bytes], case: str, step: int) -> None:
    """Also the run after it is killed; then each of both parameter sets may be the one that is wanted."""
    wanted, template = CASES[case], place / "template"
    prepared(template / "toy", case)
    reached = set()

    def lane(first: int) -> int:
        # What comes later, a run from nothing, is killed elsewhere.
        for operation in range(first, 110, 2 * step):
            toy = place / str(operation) / "toy"
            shutil.copytree(template, toy.parent)
            outcome = run(toy, {"seed": wanted}, PATIENT, kill_at=operation).outcome()
            reached.add((holds(toy), holds(aside(toy))))
            if operation % 3:
                run(toy, {"seed": 1 + operation % 2}, PATIENT, kill_at=1 + operation * 7 % 60).outcome()
            last = 1 + operation // 2 % 2
            if case == "taken back" or last == 1:
                found(toy, 1)
                assert_holds(toy, 1, manifests)
                if case == "exchanged":
                    found(toy, 2)
            else:
                complete(toy, 2)
                assert_holds(aside(toy), 1, manifests)
            assert_clean(toy)
            shutil.rmtree(toy.parent)
            if outcome is not None:
                break
        return operation

    with ThreadPoolExecutor(2) as lanes:
        assert min(lanes.map(lane, [1, 2])) > 20
    # Somewhere in between neither of them was in its place, and the next owner put it there.
    assert step > 1 or (None, None) in reached


def holds(directory: Path) -> int | None:
    """Seed of the finished result in a directory, by its manifest only."""
    try:
        return int(json.loads((directory / "manifest.json").read_text())["parameters"]["seed"])
    except OSError:
        return None


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("case", CASES)
def test_who_was_stopped_in_between_changes_nothing(
    place: Path, manifests: dict[int, bytes], case: str, step: int
) -> None:
    """Stopped after each look at the lock; another one takes over, and wants something else."""
    wanted, template = CASES[case], place / "template"
    prepared(template / "toy", case)
    quick = {"heartbeat": 0.02, "stale_after": 0.1}

    def lane(start: int) -> int:
        for check in range(start, 60, 3 * step):
            toy = place / str(check) / "toy"
            shutil.copytree(template, toy.parent)
            first = run(toy, {"seed": wanted}, quick, stop_after_check=check)
            while first.process.is_alive() and state_of(first) != "T":
                time.sleep(0.005)
            if not first.process.is_alive():
                return check
            assert run(toy, {"seed": 3}, quick).outcome() == ("done", "")
            before = contents(toy.parent)
            first.signal(signal.SIGCONT)
            outcome = first.outcome()
            assert outcome is not None
            assert outcome[0] == "FencedError", outcome
            assert contents(toy.parent) == before
            assert_holds(toy, 3, manifests)
            assert holds(aside(toy)) in {1, 2}
            assert_holds(aside(toy), holds(aside(toy)), manifests)
            shutil.rmtree(toy.parent)
        return 60

    with ThreadPoolExecutor(3) as lanes:
        assert max(lanes.map(lane, [1, 2, 3])) > 15


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != "events.jsonl"}


def state_of(worker: Worker) -> str:
    try:
        return Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


State = tuple[int | None, int | None]


def after(state: State, wanted: int) -> State:
    """What must be finished in the directory and beside it once a run has come to its end."""
    here, beside = state
    if here == wanted:
        return state
    return wanted, here if here is not None or beside == wanted else beside


def killed(state: State, wanted: int) -> set[State]:
    """The same for a run that was killed at any time."""
    here, beside = state
    if wanted in {here, beside}:
        return {state, after(state, wanted)} | ({(None, beside)} if here is None else set())
    return {state, (None, beside if here is None else here), after(state, wanted)}


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 6))])
def test_random_sequences(place: Path, manifests: dict[int, bytes], seed: int) -> None:
    """Parameter sets in any order, with kills anywhere: what can be known of a result is that it is there, whole."""
    chance, toy = random.Random(seed), place / "toy"
    possible: set[State] = {(None, None)}
    for _ in range(25):
        wanted = chance.choice([1, 2, 3])
        if chance.random() < 0.3 and (toy / "manifest.json").exists():
            (toy / "manifest.json").unlink()
        if chance.random() < 0.6:
            outcome = run(toy, {"seed": wanted}, PATIENT, kill_at=chance.randint(1, 160)).outcome()
            possible = {new for state in possible for new in killed(state, wanted)}
            if outcome is None:
                continue
        task = Toy(seed=wanted)
        run_stage(task, toy, log=lambda _: None, **PATIENT)
        expected = {after(state, wanted) for state in possible}
        state = (holds(toy), holds(aside(toy)))
        assert state in expected, (possible, wanted)
        assert state[0] == wanted
        if all(wanted in state for state in possible):
            assert task.started == 0
        assert_holds(toy, wanted, manifests)
        assert_holds(aside(toy), state[1], manifests)
        assert_clean(toy)
        possible = {state}


def test_others_who_take_the_lock_keep_what_is_being_moved(place: Path, manifests: dict[int, bytes]) -> None:
    template = place / "template/toy"
    prepared(template, "exchanged")
    seen = 0
    for operation in range(8, 60, 2):
        toy = place / str(operation) / "toy"
        shutil.copytree(template.parent, toy.parent)
        run(toy, {"seed": 1}, PATIENT, kill_at=operation).outcome()
        seen += bool(list((toy / "lock").glob("*/outgoing")) + list((toy / "lock").glob("*/incoming")))
        for _ in range(2):
            lock = Lock(toy, 0.05, 60.0)
            lock.acquire(lambda _: None, lambda event, **details: None)
            lock.release()
        found(toy, 2)
        found(toy, 1)
        assert_holds(toy, 1, manifests)
        assert_holds(aside(toy), 2, manifests)
    assert seen > 5


@pytest.mark.parametrize("case", CASES)
def test_no_space_for_a_rename_undoes_it(
    place: Path, manifests: dict[int, bytes], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    original, failures, template = os.replace, 0, place / "template"
    prepared(template / "toy", case)
    for call in range(1, 40):
        toy = place / str(call) / "toy"
        shutil.copytree(template, toy.parent)
        calls = 0

        def replace(self: Path, target: Any, call: int = call) -> Path:
            nonlocal calls
            calls += 1
            if calls == call:
                raise OSError(errno.ENOSPC, "No space left on device")
            original(self, target)
            return Path(target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", replace)
            sentence = attempt(toy, CASES[case])
        assert "is full" in sentence or not sentence
        if not sentence:
            break
        failures += 1
        # At once, not only at the next start.
        assert not list((toy / "lock").glob("*/*going")) + list((toy / "lock").glob("*/incoming"))
        if case == "set aside":
            assert 1 in {holds(toy), holds(aside(toy))} or load(toy) == 1
        found(toy, 1)
        assert_holds(toy, 1, manifests)
    assert failures >= 5


def attempt(directory: Path, seed: int) -> str:
    """What the stage says when it cannot go on; nothing when it came to its end."""
    try:
        complete(directory, seed)
    except StageError as error:
        return str(error)
    return ""


def load(directory: Path) -> int:
    """Seed of the store in a directory."""
    document = json.loads((directory / "store.zarr/zarr.json").read_text())
    return int(document["attributes"]["parameters"]["seed"])


# ---------------------------------------------------------------------------------------------------------------------
# What is said of it


def test_it_is_verified_on_its_own(place: Path) -> None:
    toy = place / "trajectory"  # which should hold a training
    complete(toy, 1)
    complete(toy, 2)
    problems = dict(verify_results(place))
    assert "holds the stage 'toy', where 'training' was expected" in str(problems[toy])
    assert problems[aside(toy)] is None
    chunk = aside(toy) / "store.zarr/rows/c/1/0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    said = str(dict(verify_results(place))[aside(toy)])
    assert said.endswith(f"remove the directory {aside(toy)}, which was set aside, or leave it: nothing uses it.")


def test_status_shows_it_as_what_it_is(place: Path) -> None:
    toy = place / "toy"
    complete(toy, 1)
    complete(toy, 2)
    assert {path: stage_status(path).state for path in find_stages(place)} == {
        toy: "complete",
        aside(toy): "superseded",
    }
    assert stage_status(toy).attempts == 1


def test_purge_removes_it_first_and_whole(place: Path) -> None:
    for name in ("z", "a"):
        complete(place / name, 1)
        complete(place / name, 2, rows=30)
    removable = list(find_removable(place))
    assert [item.directory for item in removable] == [place / "a.superseded", place / "z.superseded"]
    assert all(
        item.superseded == "set aside when other parameters were asked for (rows: 19 → 30; seed: 1 → 2)"
        for item in removable
    )
    assert removable[0].size_bytes == sum(
        path.stat().st_size for path in (place / "a.superseded").rglob("*") if path.is_file()
    )
    # While another process is at work in the stage, too.
    worker = stopped_in(place / "a", 3, seed=3)
    for item in find_removable(place):
        purge(item, lambda _: None)
    worker.signal(signal.SIGCONT)
    assert worker.outcome() == ("done", "")
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) == ["a", "z"]
    assert open_stage(place / "a").manifest["parameters"]["seed"] == 3


def test_a_killed_purge_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = place / "toy"
    complete(toy, 1)
    complete(toy, 2)
    original = shutil.rmtree

    def stop(path: Path) -> None:
        original(path / "store.zarr/rows")
        (path / "manifest.json").unlink()
        raise KeyboardInterrupt

    (item,) = find_removable(place)
    with monkeypatch.context() as patched:
        patched.setattr("quadscape.stage.superseded.shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            purge(item, lambda _: None)
    assert not aside(toy).exists()
    assert all(problem is None for path, problem in verify_results(place) if path != toy)
    complete(toy, 1)
    for item in find_removable(place):
        purge(item, lambda _: None)
    assert [path.name for path in place.iterdir()] == ["toy"]


def test_changes_are_told_briefly() -> None:
    digest = "0123456789abcdef" * 4
    before: dict[str, Any] = {"data": digest, "training": {"seed": 0, "schedule": {"value": 0.1}}, "old": None, "x": {}}
    now: dict[str, Any] = {"data": digest[::-1], "training": {"seed": 1, "schedule": {"value": 0.1}}, "x": {}}
    assert changes(before, now) == "old: null → none; training.seed: 0 → 1; data: 01234567… → fedcba98…"
    assert changes(now, now) == ""
    many = changes({}, {f"key{i}": "v" * 100 for i in range(9)})
    assert many.endswith("; and 4 more")
    assert len(many) < 300
