"""Several people at one folder of results: what one writes, another goes on with, or is refused in a sentence."""

import contextlib
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_slurm import FakeSlurm
from fork_server import CONTEXT, start_server
from toy_stage import QUICK, Toy, silent, wait_for

from quadscape.cli import main
from quadscape.cluster.controller import Controller
from quadscape.cluster.heads import PLACE, process_record, write_json
from quadscape.cluster.slurm import list_jobs
from quadscape.errors import QuadscapeError
from quadscape.planning.problem import check_writable
from quadscape.results.status import stage_status
from quadscape.stage import lock as stage_lock
from quadscape.stage.finished import open_stage
from quadscape.stage.lock import present_owner, process_is_alive
from quadscape.stage.run import run_stage
from tests.checkouts import Checkout, unpack
from tests.test_finished_results import ARCHIVE
from tests.users import ALICE, BOB, EVE, TEAM, become, call_as, needs_root, number_of, python_of_all, run_as, share

pytestmark = needs_root


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    start_server("toy_stage", "tests.users", "test_people", "quadscape.cli", "quadscape.results.verify")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the team, which all can come to."""
    with tempfile.TemporaryDirectory(prefix="quadscape-people-") as folder:
        Path(folder).chmod(0o755)
        yield share(Path(folder) / "team", ALICE)


class Dying(Toy):
    """Dies in the middle of a unit."""

    def __init__(self, dies_in: int, **options: Any) -> None:
        super().__init__(**options)
        self.dies_in = dies_in

    def compute(self, unit: int, plan: dict[str, Any], store: Any) -> Any:
        if unit == self.dies_in:
            os._exit(9)
        return super().compute(unit, plan, store)


def _no_heartbeat() -> None:
    """This interpreter may lie where another user cannot come to; the heartbeat needs none in particular."""
    if not os.access(sys.executable, os.X_OK):
        sys.executable = "/bin/cat"


def _work(directory: Path, dies_in: int = -1, seed: int = 3) -> tuple[list[str], int]:
    """Log of a run of the toy stage, and how often it began to compute; an error is the last line."""
    _no_heartbeat()
    log: list[str] = []
    task = Dying(dies_in, seed=seed)
    try:
        run_stage(task, directory, log=log.append, **QUICK)
    except QuadscapeError as error:
        log.append(f"{type(error).__name__}: {error}")
    return log, task.started


def _commands(*argv: str) -> tuple[int, str]:
    """What a command returns and says."""
    _no_heartbeat()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(argv)
    return code, said.getvalue()


def _refused(path: Path, sentence: str, owner: str = ALICE) -> None:
    assert str(path) in sentence
    assert "may not be written by this user" in sentence
    assert f"belongs to {owner}" in sentence
    assert stat.filemode(path.stat().st_mode) in sentence
    assert "umask 002" in sentence


def _units_to_compute(log: list[str]) -> int:
    """Of the toy stage's 5; the one before that in which a process dies may not have been stored yet."""
    (found,) = [match for line in log if (match := re.search(r"(\d) of 5 units to compute", line))]
    return int(found[1])


@pytest.mark.parametrize("dies_in", [0, 3])
def test_a_colleague_goes_on_with_what_was_killed(shared: Path, dies_in: int) -> None:
    stage, alone = shared / "results/toy", shared / "alone"
    with pytest.raises(EOFError):
        call_as(ALICE, 0o002, _work, stage, dies_in)
    log, _ = call_as(BOB, 0o002, _work, stage)
    assert any("which is gone" in line for line in log)
    assert _units_to_compute(log) in {5 - dies_in, min(5, 6 - dies_in)}
    run_stage(Toy(), alone, log=silent)
    assert (stage / "manifest.json").read_bytes() == (alone / "manifest.json").read_bytes()
    for name in ("rows", "triangle", "count"):
        assert np.array_equal(open_stage(stage).read(name), open_stage(alone).read(name), equal_nan=True)
    # And the first one goes on with what the second has made: other parameters, and back.
    log, _ = call_as(ALICE, 0o002, _work, stage, -1, 4)
    assert any("is set aside" in line for line in log), log
    log, _ = call_as(BOB, 0o002, _work, stage)
    assert any("is taken back" in line for line in log), log
    assert (stage / "manifest.json").read_bytes() == (alone / "manifest.json").read_bytes()
    for path in stage.rglob("*"):
        found = path.stat()
        assert found.st_gid == TEAM, path
        assert found.st_mode & 0o060 == 0o060, (path, stat.filemode(found.st_mode))
    for command in ("verify", "purge", "status"):
        code, said = call_as(BOB, 0o002, _commands, command, str(stage.parent))
        assert code == 0, said


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_colleague_is_told_at_once_what_may_not_be_written(shared: Path, umask: int) -> None:
    stage = shared / "results/toy"
    with pytest.raises(EOFError):
        call_as(ALICE, umask, _work, stage, 3)
    log, started = call_as(BOB, 0o002, _work, stage)
    assert started == 0
    assert len(log) == 1
    assert "Traceback" not in log[0]
    assert f"it belongs to {ALICE}" in log[0]
    assert str(shared / "results") in log[0]
    for command in ("verify", "status", "repair"):
        code, said = call_as(BOB, 0o002, _commands, command, str(shared / "results"))
        assert code in {0, 1, 4}
        assert "Traceback" not in said
    assert any(line.endswith("in all.") for line in _work(stage)[0])


@pytest.mark.parametrize("part", ["store.zarr/rows/c", "lock", "events.jsonl"])
def test_before_any_unit_it_is_known_what_may_not_be_written(shared: Path, part: str) -> None:
    stage = shared / "toy"
    with pytest.raises(EOFError):
        call_as(ALICE, 0o002, _work, stage, 3)
    place = stage / part
    place.chmod(place.stat().st_mode & ~0o020)
    log, started = call_as(BOB, 0o002, _work, stage)
    assert started == 0
    _refused(place, log[-1])
    # For its owner it is as it was.
    log, _ = call_as(ALICE, 0o002, _work, stage)
    assert _units_to_compute(log) in {2, 3}


def _stay(directory: Path, user: str, go: Any) -> None:
    become(user, 0o002)
    _no_heartbeat()
    lock = stage_lock.Lock(directory, 60.0, 60.0)
    lock.acquire(silent, lambda *_, **__: None)
    go.wait()


def _looked(directory: Path, hidden: bool) -> tuple[bool | None, bool, str]:
    """Whether the owner is alive, by all that can be seen, or where /proc shows only one's own processes."""
    if hidden:
        seen = stage_lock.process_state
        stage_lock.process_state = lambda pid: seen(pid) if pid == os.getpid() else None
        access = os.access

        def visible(path: Any, mode: int, **options: Any) -> bool:
            return not str(path).startswith("/proc/") and access(path, mode, **options)

        os.access = visible
    owner = present_owner(directory)
    assert owner is not None
    return owner.is_alive(directory), process_is_alive(owner.record["pid"]), stage_status(directory).state


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("user", [BOB, EVE])
def test_a_living_process_of_another_user_is_alive(shared: Path, user: str, hidden: bool) -> None:
    stage = share(shared / "toy", ALICE)
    go = CONTEXT.Event()
    owner = CONTEXT.Process(target=_stay, args=(stage, ALICE, go))
    owner.start()
    try:
        wait_for((stage / "lock/1/owner").exists)
        alive, process, state = call_as(user, 0o002, _looked, stage, hidden)
        # What is hidden is judged by its heartbeat alone.
        assert (alive, process, state) == (None if hidden else True, True, "running")
    finally:
        owner.kill()
        owner.join()
    assert call_as(user, 0o002, _looked, stage, hidden) == (False, False, "stopped")


def test_what_is_only_read_needs_no_right_to_write(shared: Path) -> None:
    stage = shared / "toy"
    call_as(ALICE, 0o022, _work, stage)
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*")}
    for command in ("verify", "status", "purge"):
        code, said = call_as(EVE, 0o077, _commands, command, str(shared))
        assert code == 0, said
    assert call_as(EVE, 0o077, _read, stage) == open_stage(stage).read("rows").tolist()
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*")} == before


@pytest.mark.parametrize(("part", "needed"), [("manifest.json", True), ("events.jsonl", False), ("lock", False)])
def test_what_may_not_be_read_is_named_where_it_is_needed(shared: Path, part: str, needed: bool) -> None:
    stage = shared / "toy"
    call_as(ALICE, 0o022, _work, stage)
    (stage / part).chmod(0o700)
    code, said = call_as(EVE, 0o022, _commands, "verify", str(shared))
    assert (code == 1) is needed
    assert (f"UNREAD  {stage}: {stage / part} may not be read by this user: it belongs to {ALICE}" in said) is needed
    code, said = call_as(EVE, 0o022, _commands, "status", str(shared))
    assert code == 1
    assert f"not looked at: {stage / part} may not be read by this user: it belongs to {ALICE}" in said


def _read(stage: Path) -> Any:
    return open_stage(stage).read("rows").tolist()


def _written(*paths: Path) -> str:
    try:
        check_writable(paths)
    except QuadscapeError as error:
        return str(error)
    return ""


def test_files_to_be_made_are_looked_at_before_any_job(shared: Path) -> None:
    (shared / "mine").mkdir()
    os.chown(shared / "mine", number_of(BOB), TEAM)
    theirs = shared / "theirs"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, number_of(ALICE), TEAM)
    (shared / "linked").symlink_to(theirs)
    assert call_as(BOB, 0o002, _written, shared / "mine/a/b.svg", shared / "c/d/e") == ""
    _refused(theirs, call_as(BOB, 0o002, _written, shared / "mine/a", theirs / "a/b.svg"))
    said = call_as(BOB, 0o002, _written, shared / "linked/a.svg")
    _refused(theirs, said)
    assert f"{shared / 'linked'} (that is {theirs})" in said
    log = shared / "a.log"
    log.touch(0o644)
    os.chown(log, number_of(ALICE), TEAM)
    log.chmod(0o644)
    _refused(log, call_as(BOB, 0o002, _written, log))


# ---------------------------------------------------------------------------------------------------------------------
# A colleague's clone


@pytest.fixture(scope="module")
def python() -> Iterator[tuple[str, dict[str, str]]]:
    with tempfile.TemporaryDirectory(prefix="quadscape-python-") as folder:
        Path(folder).chmod(0o755)
        yield python_of_all(Path(folder))


@pytest.fixture
def clone(shared: Path) -> Path:
    """A clone of Bob's, in which the results of Alice, which only she may write, are linked."""
    theirs = shared / "theirs"
    unpack(ARCHIVE, theirs)
    checkout = Checkout(shared / "clone")
    shutil.copy(theirs / "theirs.yaml", checkout.path / "tiny.yaml")
    for path in theirs.iterdir():
        if path.suffix == ".py":
            shutil.copy(path, checkout.path)
    for path in [theirs, *theirs.rglob("*")]:
        os.chown(path, number_of(ALICE), TEAM)
        path.chmod(0o755 if path.is_dir() else 0o644)
    (checkout.path / "results").symlink_to(theirs / "results")
    subprocess.run(["chown", "-R", "-h", BOB, checkout.path], check=True)
    return checkout.path


@pytest.mark.slow
def test_results_of_a_colleague_are_read_and_not_written(clone: Path, python: tuple[str, dict[str, str]]) -> None:
    interpreter, environment = python
    results, data = clone / "results/theirs", "results/theirs/data.zarr/zarr.json"

    def snakemake(*arguments: str) -> tuple[int, str]:
        command = [interpreter, "-m", "snakemake", "--configfile", "tiny.yaml", "--cores", "1", *arguments]
        command += ["--rerun-triggers", "mtime", "params", "input", "--", data]
        return run_as(BOB, 0o022, clone, {**environment, "PYTHONPATH": str(clone)}, *command)

    code, said = snakemake()
    assert code == 0, said
    assert "Nothing to be done" in said
    # One sentence before any job, and nothing has changed.
    code, said = snakemake("--forcerun", "prepare_data")
    assert code == 1, said
    assert "Traceback" not in said
    store = "data.zarr/zarr.json"
    assert f"{clone / 'results/theirs' / store} (that is {results.resolve() / store})" in said
    assert "may not be written by this user" in said
    assert "rule prepare_data:" not in said
    # Records that are another's.
    for folder in (clone / ".snakemake", *(clone / ".snakemake").glob("*/")):
        os.chown(folder, number_of(ALICE), TEAM)
        folder.chmod(0o755)
    code, said = snakemake("-n")
    assert code == 1
    assert "Traceback" not in said
    assert f"{clone / '.snakemake'}" in said
    assert "a clone of your own, in which what is only read is linked" in said


# ---------------------------------------------------------------------------------------------------------------------
# Heads and jobs


def test_jobs_and_heads_of_a_colleague_are_seen(
    shared: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shared)
    (shared / ".snakemake/log").mkdir(parents=True)
    assert list_jobs(shared) == []
    for user in (BOB, ALICE):
        log = shared / f".snakemake/log/{user}.snakemake.log"
        log.touch()
        os.chown(log, number_of(user), TEAM)
    stuck = "6 PENDING quadscape_ab PartitionTimeLimit rule_train_wildcards_a 0"
    cluster.queue(shared, stuck, "7 RUNNING quadscape_ab None rule_train_wildcards_b 0")
    numbers = (cluster.folder / "restarts.answer").read_text().splitlines()
    own = Path("/").owner()
    cluster.answer("restarts", "".join(f"{line} {user}\n" for line, user in zip(numbers, (ALICE, own), strict=True)))
    assert [job.user for job in list_jobs(shared)] == [ALICE, ""]
    asked = next(word for word in cluster.calls("squeue")[-1] if word.startswith("--user="))
    assert set(asked.removeprefix("--user=").split(",")) == {"0", str(number_of(ALICE)), str(number_of(BOB))}

    controller = Controller(str(shared), [], "slurm", True, None)
    controller._root = shared
    assert controller._orphans() == [
        f"6 train a pending (of {ALICE}, can never start (PartitionTimeLimit), and only {ALICE} can cancel it)",
        "7 train b running",
    ]
    assert cluster.calls("scancel") == []
    # Of another user's process neither folder nor environment can be seen, but it has left its record.
    child = subprocess.Popen(["sleep", "300"], user=ALICE)
    try:
        (shared / PLACE).mkdir()
        record = {"state": "running", "since": 1.0, "updated": 1.0, "on_slurm": True, "controlled": False, "log": ""}
        write_json(shared / PLACE / "head.json", record | process_record(shared / PLACE, child.pid))
        assert len(controller._heads()) == 1
    finally:
        child.kill()
        child.wait()
    assert controller._heads() == []
