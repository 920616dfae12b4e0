"""A stage that comes to the end of its SLURM job: it goes back into the queue in time, and only then."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm
from toy_stage import Toy

from quadscape.errors import StageError
from quadscape.stage import deadline
from quadscape.stage.events import read_events
from quadscape.stage.finished import open_stage
from quadscape.stage.lock import present_owner
from quadscape.stage.run import run_stage

Begin = Callable[..., list[str]]


class Endless(Toy):
    """Its first unit takes longer than the job lasts."""

    def compute(self, *_: Any) -> Any:
        raise KeyboardInterrupt


class EndedBySlurmError(Exception):
    """In the place of SIGKILL."""


@pytest.fixture
def begin(place: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Runs the toy stage as SLURM job 7, until SLURM ends it or it is done, and tells what it logged."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("QUADSCAPE_SLURM_JOB", "7")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    deadline._end_at_start.cache_clear()

    def ended(self: deadline.Deadline) -> None:
        raise EndedBySlurmError

    def run(task: Toy | None = None) -> list[str]:
        said: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(deadline.Deadline, "wait", ended)
            with contextlib.suppress(EndedBySlurmError):
                run_stage(task or Toy(), place / "stage", log=said.append)
                said.append("done")
        deadline._end_at_start.cache_clear()
        return said

    yield run
    deadline._end_at_start.cache_clear()


def in_queue(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds)) + "\n"


def kinds(place: Path) -> list[str]:
    return [event["event"] for event in read_events(place / "stage")]


@pytest.mark.parametrize("source", ["variable", "queue"])
@pytest.mark.parametrize("left", [5, 9])
def test_the_job_goes_back_into_the_queue(
    begin: Begin, place: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, source: str, left: int
) -> None:
    if source == "variable":
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + left))
    cluster.answer("squeue", in_queue(left))
    said = begin()
    assert "s are left of SLURM job 7" in said[-1]
    assert cluster.calls("scontrol") == [["requeue", "7"]]
    # One unit was committed, and nobody has to wait for the lock.
    assert kinds(place) == ["start", "unit", "requeue", "error"]
    owner = present_owner(place / "stage")
    assert owner is not None
    assert owner.released
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    # SLURM begins the job again, now with time enough.
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    before = len(kinds(place))
    assert begin()[-1] == "done"
    events = read_events(place / "stage")[before:]
    assert events[0]["event"] == "start"
    assert events[0]["done"] == 1
    assert events[-1]["event"] == "finish"
    assert open_stage(place / "stage").manifest["units"] == events[0]["units"]
    assert len(cluster.calls("scontrol")) == 1
    # The manifest has the checksums of all units: they are those of a run that was left alone.
    run_stage(Toy(), place / "alone", log=lambda _: None)
    assert (place / "stage/manifest.json").read_bytes() == (place / "alone/manifest.json").read_bytes()


@pytest.mark.parametrize("unit", [0.0, 1.0, 8.0])
def test_what_is_left_is_held_against_the_longest_unit(
    begin: Begin, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, unit: float
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 17))
    cluster.answer("squeue", in_queue(17))
    found = deadline.Deadline()
    assert found.comes_before(unit) == (unit == 8.0)
    # A short unit after a long one makes nothing shorter.
    assert found.comes_before(0.0) == (unit == 8.0)


@pytest.mark.parametrize("answer", ["NONE\n", "N/A\n", "", "Unknown\n"])
def test_without_a_limit_nothing_is_asked(begin: Begin, place: Path, cluster: FakeSlurm, answer: str) -> None:
    cluster.answer("squeue", answer)
    begin()
    assert kinds(place)[-1] == "finish"
    assert cluster.calls("scontrol") == []
    assert cluster.calls("squeue") == [["-h", "-j", "7", "-o", "%e"]]


def test_a_longer_limit_that_was_given_meanwhile_counts(
    begin: Begin, place: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 5))
    cluster.answer("squeue", in_queue(7200))
    begin()
    assert kinds(place)[-1] == "finish"
    assert len(cluster.calls("squeue")) == 1
    assert cluster.calls("scontrol") == []


@pytest.mark.parametrize("reason", ["Requested operation is presently disabled", "Access/permission denied."])
def test_refused_it_goes_on(begin: Begin, place: Path, cluster: FakeSlurm, reason: str) -> None:
    cluster.answer("squeue", in_queue(5))
    cluster.fail("scontrol", reason)
    said = begin()
    assert kinds(place)[-1] == "finish"
    assert kinds(place).count("requeue") == 1
    assert len(cluster.calls("scontrol")) == 1
    assert [line for line in said if f"does not put it back ({reason.rstrip('.')})" in line]


def test_without_progress_nothing_is_requeued(begin: Begin, place: Path, cluster: FakeSlurm) -> None:
    cluster.answer("squeue", in_queue(-20))
    with pytest.raises(KeyboardInterrupt):
        begin(Endless())
    assert "requeue" not in kinds(place)
    assert cluster.calls("scontrol") == []


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "QUADSCAPE_SLURM_JOB"])
def test_only_a_job_of_the_workflow_is_requeued(
    begin: Begin, place: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Another's batch script, or a shell in an allocation, in which a local head runs."""
    monkeypatch.delenv(variable)
    cluster.answer("squeue", in_queue(5))
    begin()
    assert kinds(place)[-1] == "finish"
    assert cluster.calls("scontrol") == cluster.calls("squeue") == []


def test_silent_slurm(begin: Begin, place: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 5))
    cluster.hang()
    said = begin()
    assert kinds(place)[-1] == "finish"
    assert [line for line in said if "does not put it back" in line]


def test_a_job_that_is_not_ended_says_so(begin: Begin, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline.time, "sleep", lambda seconds: None)
    with pytest.raises(StageError, match="put job 7 back into its queue, and has not ended it"):
        deadline.Deadline().wait()
