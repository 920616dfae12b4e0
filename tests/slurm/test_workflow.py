"""The workflow through SLURM jobs: which jobs there are, what they hold, what one figure needs, and a lost shard."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import Beside

from quadscape.cli import main
from quadscape.cluster.slurm_head import check_slurm
from quadscape.stage.events import read_events
from tests.slurm.cluster import BRIEF_MINUTES, CPU_MINUTES, CPUS, GPUS, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

GROUP = "curvature_compute_eigenbasis_compute_hessian_compute_hessian_shard"


def _rule(job: dict[str, str]) -> str:
    """Name of the rule, without wildcards, or of the group."""
    return re.sub(r"_wildcards_.*", "", job["Comment"].removeprefix("rule_"))


def test_one_figure_submits_its_chain_only(beside: Beside) -> None:
    jobs = beside.whole.result().first
    assert Counter(map(_rule, jobs)) == Counter(
        {"prepare_data": 1, "train": 1, "extract_checkpoint": 2, GROUP: 2, "measure_spectrum": 2, "draw_figure": 1}
    )
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    # The partition gives no more; a job that asked for more would wait for ever.
    assert {job["TimeLimit"] for job in jobs if job["Partition"] == "cpu"} == {f"00:{CPU_MINUTES:02}:00"}
    assert all(job["TimeLimit"] >= "00:10:00" for job in jobs if job["Partition"] == "gpu")


def test_everything_goes_through_slurm(beside: Beside) -> None:
    whole = beside.whole.result()
    assert Counter(map(_rule, whole.rest)) == Counter(
        measure_line_search=2,
        measure_line_forms=2,
        measure_gradients=2,
        measure_overlap=1,
        measure_curves=1,
        measure_final_test=1,
        measure_path=1,
        draw_figure=7,
        draw_page=1,
        write_findings=1,
    )
    assert {job["JobState"] for job in whole.rest} == {"COMPLETED"}
    assert len(list((whole.checkout.path / "results/tiny/figures").glob("*.svg"))) == 8
    code, said = whole.checkout.snakemake("-n", profile="slurm")
    assert code == 0, said
    assert "Nothing to be done" in said


def test_what_is_not_kept_goes_when_all_its_readers_are_done(beside: Beside) -> None:
    whole = beside.whole.result()
    results = whole.checkout.path / "results/tiny"
    assert not whole.purged_after_one_figure
    assert {path.relative_to(results).parts[3:] for path in results.rglob("purged.json")} == {
        (key, *stage, "purged.json") for key in ("0", "40") for stage in (("hessian_shards", "1-of-1"), ("eigenbasis",))
    }
    # Without a job: on the head's machine.
    assert not any("purge" in _rule(job) for job in [*whole.first, *whole.rest])
    code, said = whole.checkout.run(sys.executable, "-m", "quadscape.cli", "verify", "results/tiny")
    assert code == 0, said


def test_hessian_and_eigenbasis_of_a_checkpoint_are_one_job_with_a_gpu(beside: Beside) -> None:
    whole = beside.whole.result()
    jobs = [*whole.first, *whole.rest]
    with_gpu = [job for job in jobs if "gpu" in job.get("TresPerJob", "")]
    assert {job["TresPerJob"] for job in with_gpu} <= {"gres:gpu:1", "gres/gpu:1"}  # by SLURM's version
    assert Counter(map(_rule, with_gpu)) == Counter(
        {
            "train": 1,
            GROUP: 2,
            "measure_line_search": 2,
            "measure_gradients": 2,
            "measure_overlap": 1,
            "measure_path": 1,
        }
    )
    assert all((job["Partition"] == "gpu") == (job in with_gpu) for job in jobs)
    checkpoints = whole.checkout.path / "results/tiny/runs/a/checkpoints"
    at_work = {
        event["job"]
        for checkpoint in checkpoints.iterdir()
        for stage in ("hessian_shards/1-of-1", "hessian", "eigenbasis")
        for event in read_events(checkpoint / stage)
        if "job" in event  # what was purged afterwards was by the head, which is no job
    }
    assert at_work == {job["JobId"] for job in jobs if _rule(job) == GROUP}


def test_the_sites_file_is_made_from_what_slurm_says(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["partitions"]) == 0
    (tmp_path / "partitions.yaml").write_text(capsys.readouterr().out)
    site = check_slurm(tmp_path / "partitions.yaml")
    assert site is not None
    assert {"cpu", "gpu", "brief", cluster.slots[0].lobby} <= set(site.partitions)
    assert site.minutes() == {"cpu": CPU_MINUTES, "brief": BRIEF_MINUTES}
    # Every node has its fake GPUs, whichever partition it is in.
    assert {limits["max_gpu"] for limits in site.partitions.values()} == {GPUS}
    assert {limits["max_threads"] for limits in site.partitions.values()} == {CPUS}


def test_a_shard_is_preempted(beside: Beside) -> None:
    record = beside.shard.result()
    print(record)
    assert record.interruptions == 1
