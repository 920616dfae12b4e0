"""Who is at work: what `quadscape status` says and returns, and what a locked directory is explained by."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm
from toy_stage import Toy

from quadscape.cli import main
from quadscape.cluster import slurm
from quadscape.cluster.activity import explain_lock, format_activity, known_to_slurm, look
from quadscape.cluster.controller import State, directory_of
from quadscape.cluster.heads import PLACE, find_heads, last_head, process_record, record_head, write_json
from quadscape.results.status import stage_status
from quadscape.stage.lock import Lock
from quadscape.stage.run import run_stage

STATE = State(
    "SLURM job 5", "logs/controller/5.log", "n1", 1000.0, 3, "at work", "head running (process 9)", 2000.0, ("-n",)
)

DEAD = 2**22 + 1
"""No process has this number."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "work"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["snakemake", "--profile", "slurm"])
    return root


@pytest.fixture
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def sleeper() -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield child.pid
    child.kill()
    child.wait()


def put_state(root: Path, **changes: Any) -> None:
    write_json(directory_of(root) / "state.json", asdict(replace(STATE, **changes)))


def put_head(root: Path, pid: int, state: str = "running", **changes: Any) -> None:
    place = root / PLACE
    place.mkdir(exist_ok=True)
    record = {"state": state, "since": 1500.0, "updated": 1600.0, "on_slurm": True, "controlled": False, "log": ""}
    write_json(place / "head.json", record | process_record(place, pid) | changes)


@pytest.fixture
def controller_at_work(root: Path) -> Iterator[None]:
    directory_of(root).mkdir(parents=True)
    lock = Lock(directory_of(root), 60.0, 60.0)
    lock.acquire(lambda _: None, lambda _, **__: None)
    yield
    lock.release()


def status(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["status"])
    output = capsys.readouterr()
    return code, output.out + output.err


def test_nothing_has_begun(root: Path, no_cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = status(capsys)
    assert code == 1
    assert "nothing has begun" in text
    assert look(root).is_empty


def test_complete(root: Path, no_cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(Toy(), root / "results/toy", log=lambda _: None)
    assert status(capsys)[0] == 0
    put_head(root, os.getpid(), "finished")
    code, text = status(capsys)
    assert code == 0
    assert f"head        none at work; the last one, process {os.getpid()} on {socket.gethostname()}, finished" in text


def test_controller_at_work(
    root: Path, cluster: FakeSlurm, controller_at_work: None, capsys: pytest.CaptureFixture[str]
) -> None:
    put_state(root)
    cluster.queue(
        root,
        "5 RUNNING quadscape-controller None (null) 2",
        "6 COMPLETED quadscape_ab None rule_train_wildcards_a 1",
        "7 RUNNING quadscape_ab None rule_compute_hessian_wildcards_a_0 3",
        "8 PENDING quadscape_ab Priority rule_compute_hessian_wildcards_a_40 0",
        "9 OUT_OF_MEMORY quadscape_ab None rule_compute_hessian_wildcards_a_40 0",
    )
    code, text = status(capsys)
    assert code == 3
    lines = text.splitlines()
    assert lines[0].startswith("controller  SLURM job 5 on n1, since 1970-01-01")
    assert lines[0].endswith(", queued again 2 times: head running (process 9)")
    assert lines[1].split() == ["log:", "logs/controller/5.log"]
    assert lines[2].split() == ["jobs", "queued", "running", "finished", "failed", "requeues"]
    assert lines[3].split() == ["train", "1", "1"]
    assert lines[4].split() == ["compute_hessian", "1", "1", "1", "3"]
    assert lines[5].strip() == "compute_hessian a_40 waits (Priority): 1 job 8"
    assert "orphan" not in text
    assert "No long stage has begun here." in text


def test_queued_controller(root: Path, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.queue(root, "5 PENDING quadscape-controller Resources (null) 1")
    code, text = status(capsys)
    assert code == 3
    assert text.startswith("controller  SLURM job 5: queued (Resources), queued again once\n")


def test_orphans_of_a_killed_head(root: Path, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    put_head(root, DEAD, started="1")
    cluster.queue(root, "7 RUNNING quadscape_ab None rule_train_wildcards_a 0")
    code, text = status(capsys)
    assert code == 3
    assert "was killed" in text
    assert "orphans     1 job at work though no head lives: 7 train a\n" in text
    assert "`quadscape submit -- <snakemake arguments>` waits for them and goes on" in text
    cluster.queue(root, "7 COMPLETED quadscape_ab None rule_train_wildcards_a 0")
    code, text = status(capsys)
    assert code == 4
    assert "orphan" not in text


def test_orphans_that_a_controller_waits_for(
    root: Path, cluster: FakeSlurm, controller_at_work: None, capsys: pytest.CaptureFixture[str]
) -> None:
    put_state(root, activity="waiting for 1 orphan")
    put_head(root, DEAD, started="1", controlled=True)
    cluster.queue(root, "7 RUNNING quadscape_ab None rule_train_wildcards_a 0")
    code, text = status(capsys)
    assert code == 3
    assert "no head lives: 7 train a\n            the controller waits for them" in text


@pytest.mark.parametrize(
    ("activity", "waits"),
    [
        ("waiting for 1 orphan", True),
        ("told to end (preempted)", False),
        ("unlocking the directory", True),
    ],
)
def test_a_controller_that_is_ending_waits_for_nothing(
    root: Path,
    cluster: FakeSlurm,
    controller_at_work: None,
    capsys: pytest.CaptureFixture[str],
    activity: str,
    waits: bool,
) -> None:
    put_state(root, activity=activity)
    put_head(root, DEAD, started="1", controlled=True)
    orphan = "7 RUNNING quadscape_ab None rule_train_wildcards_a 0"
    cluster.queue(root, orphan, "5 RUNNING quadscape-controller None (null) 0")
    assert ("the controller waits for them" in status(capsys)[1]) is waits
    # Queued again, it will.
    cluster.queue(root, orphan, "6 PENDING quadscape-controller None (null) 0")
    assert look(root).controller_goes_on
    put_state(root, phase="failed")
    cluster.queue(root, orphan, "5 COMPLETING quadscape-controller None (null) 0")
    assert not look(root).controller_goes_on


@pytest.mark.parametrize("reason", ["PartitionTimeLimit", "QOSMaxCpuPerJobLimit"])
def test_a_job_that_can_never_start_is_not_at_work(
    root: Path, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    put_head(root, DEAD, started="1")
    cluster.queue(root, f"7 PENDING quadscape_ab {reason} rule_train_wildcards_a 0")
    code, text = status(capsys)
    assert code == 4
    assert f"7 can never start ({reason}): `scancel 7`" in text
    assert f"and 1 job of it that can never start ({reason}); `quadscape submit" in explain_lock()
    assert "still at work" not in explain_lock()
    cluster.queue(
        root,
        f"7 PENDING quadscape_ab {reason} rule_train_wildcards_a 0",
        "8 RUNNING quadscape_ab None rule_train_wildcards_b 0",
    )
    assert status(capsys)[0] == 3
    assert "1 job of it is still at work" in explain_lock()


@pytest.mark.parametrize(("folder", "rule"), [("rule_train/a", "train"), ("group_curvature", "group_curvature")])
def test_rules_without_comments_come_from_logs(
    root: Path, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str], folder: str, rule: str
) -> None:
    cluster.queue(root, "7 PENDING quadscape_ab Priority - 0", "8 RUNNING quadscape_ab None - 0")
    cluster.answer("restarts", f"7 0 {Path('/').owner()} {root}/logs/slurm/{folder}/7.log\n8 0 {Path('/').owner()}\n")
    log = root / "logs/slurm" / folder / "8.log"
    log.parent.mkdir(parents=True)
    log.touch()
    text = status(capsys)[1]
    assert f"{rule} waits (Priority)" in text.replace(" a waits", " waits")
    assert "?" not in text


@pytest.mark.parametrize(
    ("state", "expected"),
    [("SUSPENDED", "suspended"), ("RUNNING", "starting"), ("PENDING", "queued"), ("COMPLETED", "stopped")],
)
def test_slurm_knows_better_what_a_stage_does(root: Path, cluster: FakeSlurm, state: str, expected: str) -> None:
    stage = root / "results/toy"
    stage.mkdir(parents=True)
    event = {"time": 1000.0, "event": "start", "units": 9, "done": 0, "host": "n1", "pid": 5, "job": "7"}
    (stage / "events.jsonl").write_text(json.dumps(event))
    cluster.queue(root, f"7 {state} quadscape_ab None rule_train 0", "8 RUNNING quadscape_ab None rule_train 0")
    (found,) = known_to_slurm([stage_status(stage)], look(root).jobs)
    assert found.state == expected
    assert look(root).exit_code([found]) == 3


@pytest.mark.parametrize(
    ("phase", "activity", "words"),
    [
        ("failed", "failed: snakemake ended with code 1", "failed: snakemake ended with code 1"),
        ("stopped", "stopped by SIGTERM", "stopped by SIGTERM"),
        ("at work", "waiting for 2 orphans", "killed while waiting for 2 orphans"),
    ],
)
def test_controller_that_did_not_end_well(
    root: Path, no_cluster: None, capsys: pytest.CaptureFixture[str], phase: str, activity: str, words: str
) -> None:
    run_stage(Toy(), root / "results/toy", log=lambda _: None)
    put_state(root, phase=phase, activity=activity, tail=("MissingInputException: none.txt",))
    code, text = status(capsys)
    assert code == 4
    assert words in text
    assert "MissingInputException: none.txt" in text
    # What was run by hand since then counts.
    put_head(root, 1, "finished", updated=3000.0)
    assert status(capsys)[0] == 0
    put_head(root, 1, "failed", updated=3001.0)
    assert status(capsys)[0] == 4
    log = root / ".snakemake/log/1.snakemake.log"
    log.parent.mkdir(parents=True)
    log.write_text("Building DAG of jobs...\nNothing to be done (all requested files are present and up to date).\n")
    assert status(capsys)[0] == 0


def test_head_by_hand(root: Path, no_cluster: None, sleeper: int, capsys: pytest.CaptureFixture[str]) -> None:
    put_head(root, sleeper)
    code, text = status(capsys)
    assert code == 3
    assert f"head        process {sleeper} on {socket.gethostname()}" in text
    assert text.splitlines()[0].endswith("started by hand")


def test_head_on_another_machine(
    root: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_head(root, 1, machine=["login2", "", ""], host="login2")
    code, text = status(capsys)
    assert code == 4
    assert "whether it runs can be seen on login2 only" in text
    cluster.queue(root, "7 RUNNING quadscape_ab None rule_train_wildcards_a 0")
    code, text = status(capsys)
    assert code == 3
    assert "orphan" not in text
    assert "started on another machine (process 1 on login2)" in explain_lock()


def test_job_preempted_for_good(
    root: Path, cluster: FakeSlurm, sleeper: int, capsys: pytest.CaptureFixture[str]
) -> None:
    log = root / "snakemake.log"
    log.write_text("Building DAG of jobs...\nSLURM run ID: quadscape_ab\n")
    put_head(root, sleeper, log=str(log))
    cluster.queue(root, "6 PREEMPTED quadscape_old None rule_train 0", "7 PREEMPTED quadscape_ab None rule_train 0")
    text = status(capsys)[1]
    assert "preempted   1 job cancelled by preemption: 7\n" in text
    assert "`scontrol requeue 7`" in text


@pytest.mark.parametrize("used", [True, False])
def test_silent_slurm(
    root: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], used: bool
) -> None:
    monkeypatch.setattr(slurm, "TIMEOUT_SECONDS", 0.5)
    cluster.hang()
    run_stage(Toy(), root / "results/toy", log=lambda _: None)
    put_head(root, 1, "finished", on_slurm=used)
    began = time.monotonic()
    code, text = status(capsys)
    assert time.monotonic() - began < 20
    assert code == (1 if used else 0)
    assert ("squeue did not answer" in text) is used


def test_lock_of_a_killed_head(root: Path, cluster: FakeSlurm) -> None:
    put_head(root, DEAD, started="1")
    assert explain_lock() == (
        f"The last snakemake in this directory (process {DEAD} on {socket.gethostname()}) was killed and has left "
        "its lock, but no jobs; `quadscape submit -- --profile slurm` unlocks the directory and goes on."
    )
    cluster.queue(root, *(f"{k} RUNNING quadscape_ab None rule_train_wildcards_a 0" for k in (7, 8)))
    assert " left its lock, and 2 jobs of it are still at work (`quadscape status` shows them); " in explain_lock()
    assert "`quadscape submit -- --profile slurm` waits for them, unlocks" in explain_lock()
    cluster.fail("squeue", "Unable to contact slurm controller")
    assert "SLURM does not tell of its jobs" in explain_lock()
    put_head(root, DEAD, started="1", on_slurm=False)
    assert "`quadscape submit --local -- --profile slurm`" in explain_lock()


def test_lock_of_a_living_controller(root: Path, no_cluster: None, controller_at_work: None) -> None:
    put_state(root)
    assert explain_lock() == (
        "The controller of this directory (SLURM job 5) is at work in it; `quadscape status` shows what it does."
    )


def test_lock_of_another_head(root: Path, no_cluster: None) -> None:
    (root / "snakemake.py").write_text("import time; print(flush=True); time.sleep(300)")
    words = [sys.executable, "-m", "snakemake"]
    # A job, a dry run and an unlock are no heads; nor is one in another directory.
    commands = [[*words], [*words, "--mode", "subprocess"], [*words, "-n"], [*words, "--unlock"]]
    children = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) for command in commands]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        assert [head.pid for head in find_heads(root)] == [children[0].pid]
        assert find_heads(root.parent) == []
        assert f"Another snakemake (process {children[0].pid} on " in explain_lock()
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert find_heads(root) == []


def test_record_of_this_process(root: Path, no_cluster: None) -> None:
    record_head("running", on_slurm=True, logs=["a.log"])
    head = last_head(root)
    assert head is not None
    assert (head.pid, head.state, head.on_slurm, head.controlled, head.log) == (
        os.getpid(),
        "running",
        True,
        False,
        "a.log",
    )
    # A copy of the directory has no head.
    subprocess.run(["/bin/cp", "-r", root, root.parent / "copy"], check=True)
    copied = last_head(root.parent / "copy")
    assert copied is not None
    assert copied.state == "killed"


@pytest.mark.parametrize("text", ["", "[]", '{"state": "running"}', '{"label": 3}', "\x00" * 50])
def test_damaged_records(root: Path, no_cluster: None, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    directory_of(root).mkdir(parents=True)
    for path in (root / PLACE / "head.json", directory_of(root) / "state.json", directory_of(root) / "started.json"):
        path.write_text(text)
    assert look(root).is_empty
    assert format_activity(look(root)) == ""
