"""What a head has planned, and jobs in SLURM are going to read, is kept from `quadscape purge`."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_slurm import FakeSlurm

from quadscape.cli import main
from quadscape.cluster.heads import PLACE, process_record, write_json
from quadscape.cluster.plans import planned_reads, record_plan
from quadscape.errors import ClusterError

BASIS = "results/x/runs/a/checkpoints/40/eigenbasis/manifest.json"
SHARD = "results/x/runs/a/checkpoints/40/hessian_shards/1-of-2/manifest.json"
DEAD = 2**22 + 1
"""No process has this number."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "work"
    (root / "results").mkdir(parents=True)
    monkeypatch.chdir(root)
    return root


def job(rule: str, output: str, *inputs: str) -> Any:
    return SimpleNamespace(rule=SimpleNamespace(name=rule), output=[output], input=inputs)


def put_plan(*jobs: Any) -> None:
    record_plan(SimpleNamespace(dag=SimpleNamespace(needrun_jobs=lambda: jobs)))


def put_head(root: Path, **changes: Any) -> None:
    (root / PLACE).mkdir(exist_ok=True)
    record = {"state": "running", "since": 1500.0, "updated": 1600.0, "on_slurm": True, "controlled": True, "log": ""}
    write_json(root / PLACE / "head.json", record | process_record(root / PLACE, DEAD) | changes)


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "SUSPENDED", "COMPLETED"])
def test_of_a_killed_head_what_its_jobs_read(root: Path, cluster: FakeSlurm, state: str) -> None:
    put_head(root)
    put_plan(
        job("measure_parts", "parts", BASIS, SHARD, "results/x/data.zarr/zarr.json"),
        job("measure_spectrum", "spectrum", BASIS),
        job("purge", "purged", BASIS),
    )
    cluster.queue(root, f"8 {state} quadscape_aaaa - rule_measure_parts_wildcards_a 0")
    if state == "COMPLETED":
        assert planned_reads(root) == {}
        return
    said = "going to read it, which a head has planned"
    assert planned_reads(root) == {root / BASIS: f"2 jobs are {said}", root / SHARD: f"1 job is {said}"}
    # Snakemake touches what a job has made.
    Path("parts").touch()
    assert planned_reads(root) == {root / BASIS: f"1 job is {said}"}
    Path("spectrum").touch()
    os.utime("spectrum", (time.time() - 100,) * 2)
    assert planned_reads(root) == {root / BASIS: f"1 job is {said}"}, "that is of before, and about to be made again"
    Path("spectrum").touch()
    assert planned_reads(root) == {}


def test_where_nobody_knows_nothing_is_removed(
    root: Path, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    put_head(root)
    put_plan(job("measure_spectrum", "spectrum", BASIS))
    cluster.fail("squeue", "Unable to contact slurm controller")
    with pytest.raises(ClusterError, match="so that what its jobs read is not known; purge later"):
        planned_reads(root)
    assert main(["purge", "results", "--yes"]) == 1
    assert "Unable to contact slurm controller" in capsys.readouterr().err
    cluster.fail("squeue", None)
    assert main(["purge", "results", "--yes"]) == 0
    # A head of an earlier version, which records no plan.
    (root / PLACE / "plan.json").unlink()
    cluster.queue(root, "8 RUNNING quadscape_aaaa - rule_train_wildcards_a 0")
    with pytest.raises(ClusterError, match="what they read is not known"):
        planned_reads(root)


def test_a_head_on_another_machine_may_live(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    put_head(root, controlled=False, host="login2", machine="another")
    put_plan(job("measure_spectrum", "spectrum", BASIS))
    assert list(planned_reads(root)) == [root / BASIS]
    put_head(root, controlled=False, host="login2", machine="another", state="finished")
    assert planned_reads(root) == {}
