"""What is read from SLURM's commands, and that what cannot be read is never taken for an empty queue."""

import time
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from quadscape.cluster import slurm
from quadscape.cluster.slurm import Job, cancel_jobs, list_jobs, list_recorded_jobs, requeue_job
from quadscape.errors import ClusterError


def test_jobs_of_a_directory(cluster: FakeSlurm, tmp_path: Path) -> None:
    cluster.queue(
        tmp_path,
        "7 RUNNING quadscape_ab None rule_train_wildcards_a 2",
        "8 PENDING quadscape_ab Priority rule_compute_hessian_wildcards_a_40 0",
        "9 COMPLETED quadscape-controller None (null) 11",
        "10 RUNNING another_job None rule_train_wildcards_a 0",
    )
    with (cluster.folder / "squeue.answer").open("a") as file:
        file.write("11|RUNNING|None|gpu|n1|quadscape_ab|/elsewhere|rule_train_wildcards_b\n\n")
        file.write(f"12|PENDING|ReqNodeNotAvail, UnavailableNodes:n1|gpu||quadscape_ab|{tmp_path}|\n")
    assert list_jobs(tmp_path) == [
        Job("7", "quadscape_ab", "RUNNING", "None", "gpu", "n1", "train a", 2),
        Job("8", "quadscape_ab", "PENDING", "Priority", "gpu", "n1", "compute_hessian a_40", 0),
        Job("9", "quadscape-controller", "COMPLETED", "None", "gpu", "n1", "", 11),
        Job("12", "quadscape_ab", "PENDING", "ReqNodeNotAvail, UnavailableNodes:n1", "gpu", "", "", 0),
    ]
    (tmp_path / "link").symlink_to(tmp_path)
    assert len(list_jobs(tmp_path / "link")) == 4


@pytest.mark.parametrize(
    ("state", "active", "queued"),
    [
        ("PENDING", True, True),
        ("REQUEUE_HOLD", True, True),
        ("RUNNING", True, False),
        ("COMPLETING", True, False),
        ("SUSPENDED", True, False),
        ("PREEMPTED", False, False),
        ("TIMEOUT", False, False),
        ("OUT_OF_MEMORY", False, False),
    ],
)
def test_states(state: str, active: bool, queued: bool) -> None:
    job = Job("1", "quadscape_ab", state)
    assert (job.active, job.queued) == (active, queued)


@pytest.mark.parametrize(
    ("reason", "never"),
    [
        ("DependencyNeverSatisfied", True),
        ("BadConstraints", True),
        ("PartitionTimeLimit", True),
        ("QOSMaxWallDurationPerJobLimit", True),
        ("launch failed requeued held", True),
        ("Priority", False),
        ("Resources", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("JobHeldUser", False),
        ("ReqNodeNotAvail, UnavailableNodes:n1", False),
    ],
)
def test_what_can_never_start(reason: str, never: bool) -> None:
    assert Job("1", "quadscape_ab", "PENDING", reason).never_starts is never
    assert not Job("1", "quadscape_ab", "RUNNING", reason).never_starts


@pytest.mark.parametrize(
    ("reason", "shared"),
    [
        ("QOSMaxJobsPerUserLimit", True),
        ("AssocGrpJobsLimit", True),
        ("AssocMaxJobsLimit", True),
        ("QOSMaxGRESPerUser", True),
        ("QOSMaxWallDurationPerJobLimit", False),
        ("Resources", False),
        ("Priority", False),
    ],
)
def test_what_waits_for_a_share(reason: str, shared: bool) -> None:
    assert Job("1", "quadscape_ab", "PENDING", reason).waits_for_others is shared
    assert not Job("1", "quadscape_ab", "RUNNING", reason).waits_for_others


def test_without_slurm_there_are_no_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_jobs(tmp_path) == list_recorded_jobs(tmp_path) == []


def test_commands_without_a_cluster_have_no_jobs(cluster: FakeSlurm, tmp_path: Path) -> None:
    cluster.fail("squeue", "squeue: fatal: Could not establish a configuration source.")
    assert list_jobs(tmp_path) == []


@pytest.mark.parametrize("garbage", ["Welcome to the cluster!\n", "7|RUNNING|None\n", "x|RUNNING|a|b|c|d|e|f\n"])
def test_garbage_is_no_empty_queue(cluster: FakeSlurm, tmp_path: Path, garbage: str) -> None:
    cluster.answer("squeue", garbage)
    with pytest.raises(ClusterError, match=r"squeue gave a line that is none of its jobs: '"):
        list_jobs(tmp_path)


def test_failure_is_no_empty_queue(cluster: FakeSlurm, tmp_path: Path) -> None:
    cluster.fail("squeue", "slurm_load_jobs error:\nUnable to contact slurm controller")
    with pytest.raises(
        ClusterError, match=r"squeue failed: slurm_load_jobs error: Unable to contact slurm controller\."
    ):
        list_jobs(tmp_path)


def test_silence_is_no_empty_queue(cluster: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "TIMEOUT_SECONDS", 0.5)
    cluster.hang()
    began = time.monotonic()
    with pytest.raises(ClusterError, match="squeue did not answer within"):
        list_jobs(tmp_path)
    assert list_recorded_jobs(tmp_path) == []
    assert time.monotonic() - began < 10


def test_accounting(cluster: FakeSlurm, tmp_path: Path) -> None:
    assert list_recorded_jobs(tmp_path) == []
    cluster.fail("sacct", None)
    cluster.answer("sacct", f"7|CANCELLED by 0|None|gpu|n1|quadscape_ab|{tmp_path}|rule_train_wildcards_a\n")
    assert list_recorded_jobs(tmp_path) == [Job("7", "quadscape_ab", "CANCELLED", "None", "gpu", "n1", "train a")]


def test_what_is_asked_of_slurm(cluster: FakeSlurm) -> None:
    jobs = [Job("7", "quadscape_ab", "PENDING"), Job("8", "quadscape_ab", "PREEMPTED")]
    cancel_jobs(jobs)
    requeue_job(jobs[1])
    assert cluster.calls("scancel") == [["7", "8"]]
    assert cluster.calls("scontrol") == [["requeue", "8"]]
    cluster.fail("scontrol", "Requested operation is presently disabled for job 8")
    with pytest.raises(ClusterError, match="presently disabled"):
        requeue_job(jobs[1])


def test_the_longest_time_of_partitions(cluster: FakeSlurm) -> None:
    cluster.answer(
        "sinfo",
        "gpu|25:00\ncpu|infinite\nlong|7-00:00:00\nday|1-00:00:00\nshort|4:30:59\nodd|n/a\nbare|90\nweek|2-12\n",
    )
    minutes = {"gpu": 25, "long": 7 * 24 * 60, "day": 24 * 60, "short": 270, "bare": 90, "week": 60 * 60}
    assert slurm.partition_minutes() == minutes
    cluster.fail("sinfo", "Unable to contact slurm controller")
    assert slurm.partition_minutes() == {}
