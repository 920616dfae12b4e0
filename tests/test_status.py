"""What `quadscape status` tells of stages in every state, and of damaged ones."""

import errno
import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from toy_stage import Toy, silent, stopped_in

from quadscape.cli import main
from quadscape.errors import StageError, StoreError, VerificationError
from quadscape.results.status import StageStatus, find_stages, format_status, stage_status
from quadscape.stage.events import read_events
from quadscape.stage.lock import REMIND_SECONDS, Lock
from quadscape.stage.run import run_stage

pytestmark = pytest.mark.usefixtures("workers_end")


def write_events(directory: Path, *events: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "events.jsonl").write_text("".join(f"\n{json.dumps(event)}\n" for event in events))


def test_complete(tmp_path: Path) -> None:
    run_stage(Toy(), tmp_path / "toy", log=silent)
    status = stage_status(tmp_path / "toy")
    assert (status.name, status.state, status.done, status.total) == ("toy", "complete", 5, 5)
    assert (status.attempts, status.last_error, status.remaining) == (1, "", None)
    assert status.rate is not None
    assert status.rate > 0
    assert status.elapsed > 0
    assert status.size_bytes == sum(path.stat().st_size for path in (tmp_path / "toy").rglob("*") if path.is_file())
    # A second call, which only checks, does not spoil the rate.
    run_stage(Toy(), tmp_path / "toy", log=silent)
    again = stage_status(tmp_path / "toy")
    assert (again.attempts, again.rate) == (2, status.rate)


def test_finished_without_its_store_is_not_complete(tmp_path: Path) -> None:
    run_stage(Toy(), tmp_path / "toy", log=silent)
    shutil.rmtree(tmp_path / "toy/store.zarr")
    status = stage_status(tmp_path / "toy")
    assert (status.state, status.done, status.total) == ("failed", 0, 5)
    assert "its store is gone" in status.last_error
    assert "0/5" in format_status([status])


def test_running_then_killed_then_resumed(tmp_path: Path) -> None:
    worker = stopped_in(tmp_path / "toy", 3)
    status = stage_status(tmp_path / "toy")
    assert (status.name, status.state, status.done, status.total, status.attempts) == ("toy", "suspended", 3, 5, 1)
    assert status.owner == f"{socket.gethostname()}:{worker.process.pid}"
    assert status.remaining is None
    worker.kill()
    status = stage_status(tmp_path / "toy")
    assert (status.state, status.done, status.total, status.remaining) == ("stopped", 3, 5, None)
    run_stage(Toy(), tmp_path / "toy", log=silent)
    status = stage_status(tmp_path / "toy")
    assert (status.state, status.done, status.attempts) == ("complete", 5, 2)


def test_failed_then_complete(tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        run_stage(Toy(fail="residual 0.2 exceeds 0.1"), tmp_path / "toy", log=silent)
    status = stage_status(tmp_path / "toy")
    assert (status.state, status.done, status.last_error) == ("failed", 5, "residual 0.2 exceeds 0.1")
    run_stage(Toy(), tmp_path / "toy", log=silent)
    assert stage_status(tmp_path / "toy").state == "complete"
    assert stage_status(tmp_path / "toy").last_error == ""
    with pytest.raises(StageError):
        run_stage(Toy(memory=1 << 60), tmp_path / "refused", log=silent)
    status = stage_status(tmp_path / "refused")
    assert (status.state, status.name, status.done, status.total) == ("failed", "refused", 0, None)
    assert "of memory" in status.last_error


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Toy, "results", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_stage(Toy(), tmp_path / "toy", log=silent)
    assert stage_status(tmp_path / "toy").state == "stopped"


def test_started_afresh_counts_anew(tmp_path: Path) -> None:
    for seed in (1, 1, 2):
        run_stage(Toy(seed=seed), tmp_path / "toy", log=silent)
    assert stage_status(tmp_path / "toy").attempts == 1


def test_waiting(tmp_path: Path) -> None:
    start = {"time": 1000.0, "event": "start", "stage": "hessian", "units": 9, "done": 4}
    wait = {"time": 1009.0, "event": "wait", "host": socket.gethostname(), "pid": os.getpid()}
    write_events(tmp_path / "a", start, wait)
    assert stage_status(tmp_path / "a").state == "waiting"
    write_events(tmp_path / "b", start, {**wait, "pid": -1})
    assert stage_status(tmp_path / "b").state == "stopped"
    # Of a process elsewhere only its word tells, and whoever waits says so again and again.
    long_ago = {**wait, "host": "elsewhere", "pid": -1}
    write_events(tmp_path / "c", start, long_ago, {**long_ago, "time": time.time() - REMIND_SECONDS})
    assert stage_status(tmp_path / "c").state == "waiting"
    write_events(tmp_path / "d", start, long_ago)
    assert stage_status(tmp_path / "d").state == "stopped"


def test_who_waits_for_whom(tmp_path: Path) -> None:
    start = {"time": 1000.0, "event": "start", "stage": "hessian", "units": 9, "done": 4, "host": "n1", "pid": 5}
    wait: dict[str, Any] = {"time": time.time() - 700, "event": "wait", "host": "n2", "pid": 7, "owner": "n1:5"}
    unit = {"time": time.time(), "event": "unit", "done": 5, "total": 9, "host": "n1", "pid": 5}
    write_events(tmp_path, start, wait, {**wait, "time": time.time() - 100}, unit)
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(wait["time"]))
    assert stage_status(tmp_path).waiting == (f"n2:7 waits for n1:5 since {since}",)
    assert f"\n    n2:7 waits for n1:5 since {since}" in format_status([stage_status(tmp_path)])
    write_events(tmp_path, start, wait, unit, {**wait, "event": "start"})
    assert stage_status(tmp_path).waiting == ()


def test_only_time_at_work_counts(tmp_path: Path) -> None:
    who = {"host": "n1", "pid": 5}
    write_events(
        tmp_path,
        {"time": 1000.0, "event": "start", "units": 9, "done": 0, **who},
        {"time": 1010.0, "event": "unit", "done": 1, "total": 9, **who},
        # Suspended for an hour, of which its heartbeat has told.
        {"time": 4620.0, "event": "unit", "done": 2, "total": 9, "paused": 3600.0, **who},
        # Killed soon after; the next one comes on the next day.
        {"time": 90000.0, "event": "takeover", "host": "n2", "pid": 7},
        {"time": 90005.0, "event": "damaged", "unit": 1, "host": "n2", "pid": 7},
        {"time": 90010.0, "event": "start", "units": 9, "done": 1, "host": "n2", "pid": 7},
        {"time": 90030.0, "event": "unit", "done": 2, "total": 9, "host": "n2", "pid": 7},
    )
    status = stage_status(tmp_path)
    assert status.elapsed == pytest.approx(20 + 20)
    assert status.rate == pytest.approx(1 / 20)


@pytest.mark.parametrize("seconds", [3.0, 5.0])
def test_a_stopped_process_knows_how_long_it_stood_still(tmp_path: Path, seconds: float) -> None:
    worker = stopped_in(tmp_path / "toy", 2, {"heartbeat": 0.05, "stale_after": 60.0})
    assert stage_status(tmp_path / "toy").state == "suspended"
    time.sleep(seconds)
    worker.signal(signal.SIGCONT)
    outcome = worker.outcome()
    assert outcome is not None
    assert outcome[0] == "done"
    lost = [event.get("paused", 0.0) for event in read_events(tmp_path / "toy") if event["event"] == "unit"]
    assert lost[2] == pytest.approx(seconds, rel=0.3)
    assert stage_status(tmp_path / "toy").elapsed < seconds


def test_a_full_disk_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Toy, "compute", full)
    with pytest.raises(StageError, match="is full"):
        run_stage(Toy(), tmp_path / "toy", log=silent)
    said = stage_status(tmp_path / "toy").last_error
    assert said.startswith(f"The disk of {tmp_path / 'toy'} is full (No space left")


def test_owner_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock(tmp_path, 60.0, 60.0)
    lock.acquire(silent, lambda event, **details: None)
    monkeypatch.setattr("quadscape.stage.lock.this_machine", lambda: ["elsewhere", "", ""])
    assert stage_status(tmp_path).state == "running"
    beat = tmp_path / "lock/1/owner"
    os.utime(beat, (time.time() - 300, time.time() - 300))
    assert stage_status(tmp_path).state == "stopped"
    lock.release()


def test_rate_and_remaining_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock(tmp_path, 60.0, 60.0)
    lock.acquire(silent, lambda event, **details: None)
    # An attempt of 10 s with three units, a night, an attempt of 30 s with two units and 5 s into its third.
    units: list[dict[str, Any]] = [
        {"time": 1000.0, "event": "start", "stage": "hessian", "units": 20, "done": 0},
        *({"time": 1000.0 + 3 * k, "event": "unit", "done": k, "total": 20} for k in (1, 2, 3)),
        {"time": 1010.0, "event": "error", "message": "RuntimeError('x')"},
        {"time": 9000.0, "event": "start", "stage": "hessian", "units": 20, "done": 3},
        {"time": 9015.0, "event": "unit", "done": 4, "total": 20},
        {"time": 9030.0, "event": "unit", "done": 5, "total": 20},
    ]
    write_events(tmp_path, *units)
    monkeypatch.setattr("quadscape.results.status.time.time", lambda: 9035.0)
    status = stage_status(tmp_path)
    assert (status.state, status.name, status.done, status.total, status.attempts) == ("running", "hessian", 5, 20, 2)
    assert status.rate == pytest.approx(1 / 15)
    assert status.remaining == pytest.approx(15 * 15 - 5)
    assert status.elapsed == pytest.approx(10 + 30 + 5)
    assert status.last_error == "RuntimeError('x')"
    assert "15 s/unit" in format_status([status])
    assert "3 min 40 s" in format_status([status])
    lock.release()


@pytest.mark.parametrize(
    "damage",
    [
        lambda stage: (stage / "events.jsonl").unlink(),
        lambda stage: (stage / "events.jsonl").write_bytes(b'\xff{"event": "unit", "time": 3}\n[]\n{"time": 1}\n{"eve'),
        lambda stage: (stage / "events.jsonl").write_text(
            '{"event": "start", "time": "noon", "units": 5}\n{"event": "start", "time": 3, "units": "x", "done": -1}\n'
            '{"event": "unit", "time": 3, "done": null, "total": []}\n{"event": ["unit"], "time": 4}\n'
        ),
        lambda stage: (stage / "manifest.json").write_text("[]"),
        lambda stage: (stage / "manifest.json").unlink(),
        lambda stage: (stage / "lock/1/owner").write_bytes(b"\x00" * 20),
        lambda stage: (stage / "lock/1/owner").write_bytes(b'{"inode": 1, "pid": [], "started": 3}\n'),
        lambda stage: (stage / "lock/1/owner").unlink(),
        lambda stage: (stage / "journal").unlink(),
        lambda stage: (stage / "store.zarr/zarr.json").unlink(),
    ],
)
def test_damaged_files(tmp_path: Path, damage: Any) -> None:
    run_stage(Toy(), tmp_path / "toy", log=silent)
    damage(tmp_path / "toy")
    status = stage_status(tmp_path / "toy")
    assert status.state in {"complete", "stopped"}
    assert "toy" in format_status([status])


def test_empty_directory(tmp_path: Path) -> None:
    status = stage_status(tmp_path)
    assert (status.state, status.done, status.total, status.attempts, status.owner) == ("stopped", 0, None, 0, "")


def test_find_stages(tmp_path: Path) -> None:
    for name in (
        "results/x/runs/b/trajectory",
        "results/x/runs/a/trajectory",
        "results/x/runs/a/checkpoints/3/hessian",
    ):
        write_events(tmp_path / name, {"time": 1.0, "event": "start"})
    (tmp_path / "results/x/data.zarr").mkdir()
    (tmp_path / "results/x/data.zarr/journal").touch()
    (tmp_path / "results/.hidden").mkdir()
    (tmp_path / "results/.hidden/journal").touch()
    run_stage(Toy(), tmp_path / "results/x/toy", log=silent)
    (tmp_path / "results/x/toy/store.zarr/events.jsonl").touch()
    found = find_stages(tmp_path / "results")
    assert [path.relative_to(tmp_path / "results").as_posix() for path in found] == [
        "x/runs/a/checkpoints/3/hessian",
        "x/runs/a/trajectory",
        "x/runs/b/trajectory",
        "x/toy",
    ]
    assert find_stages(tmp_path / "results/x/toy") == [tmp_path / "results/x/toy"]
    with pytest.raises(StoreError, match=r"no directory .*nowhere"):
        find_stages(tmp_path / "nowhere")


def status_of(path: str, **changes: Any) -> StageStatus:
    usual: dict[str, Any] = {
        "directory": Path(path),
        "name": "hessian",
        "state": "complete",
        "done": 12,
        "total": 12,
        "rate": 1 / 30,
        "remaining": None,
        "elapsed": 360.0,
        "attempts": 1,
        "owner": "node7:123",
        "last_error": "",
        "size_bytes": 43_500_000_000,
    }
    return StageStatus(**(usual | changes))


def test_table() -> None:
    table = format_status(
        [
            status_of("results/x/a/hessian"),
            status_of("results/x/a/eigenbasis", state="running", done=3, remaining=7500.0, attempts=11),
            status_of("results/x/b/hessian", state="failed", done=5, last_error="The disk is full;\nfree some."),
            status_of(
                "results/x/b/trajectory", state="stopped", done=0, total=None, rate=None, elapsed=0.0, attempts=0
            ),
        ]
    )
    lines = table.splitlines()
    assert lines[0] == (
        "stage         state     progress              units       rate      worked        left"
        "     size  attempts  owner"
    )
    assert lines[2] == (
        "a/eigenbasis  running   █████░░░░░░░░░░░░░░░   3/12  30 s/unit  6 min 00 s  2 h 05 min"
        "  43.5 GB        11  node7:123"
    )
    assert " ".join(lines[1].split()) == f"a/hessian complete {'█' * 20} 12/12 30 s/unit 6 min 00 s 43.5 GB 1"
    assert lines[3].split()[:4] == ["b/hessian", "failed", "████████░░░░░░░░░░░░", "5/12"]
    assert lines[4] == "    The disk is full; free some."
    assert lines[5].split() == ["b/trajectory", "stopped", "░" * 20, "0/?", "43.5", "GB", "0"]
    # Columns stand below each other.
    assert len({line.index("43.5 GB") for line in lines if "43.5 GB" in line}) == 1
    assert format_status([]) == "No long stage has begun here."
    assert "\nhessian  " in format_status([status_of("results/x/a/hessian")])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    worker = stopped_in(tmp_path / "running", 2)
    run_stage(Toy(), tmp_path / "done", log=silent)
    assert main(["status", str(tmp_path)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["done", "complete"], ["running", "suspended"]]
    assert main(["status", str(tmp_path / "done")]) == 0
    worker.kill()
    assert main(["status", str(tmp_path)]) == 4
    capsys.readouterr()
    assert main(["status", str(tmp_path / "nowhere")]) == 1
    assert "no directory" in capsys.readouterr().err
