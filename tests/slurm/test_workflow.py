"""The workflow through SLURM jobs, here with accounting: which there are, what they hold, what one figure needs."""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Clusters

from quadscape.stage import read_events
from tests.slurm.chain import SHARDED, SHARDED_EXPERIMENT, SHARDS, ClusterCheckout, Prepared
from tests.slurm.cluster import GPUS, ask
from tests.slurm.events import Record, Scenario, slowly

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def _run(checkout: ClusterCheckout, *targets: str) -> str:
    """Runs a head to its end; what it said."""
    log = checkout.path / "head.log"
    log.unlink(missing_ok=True)
    command = ["snakemake", *targets, "--profile", "slurm", "--configfile", "tiny.yaml"]
    code = checkout.launch(log, *command).wait(800)
    assert code == 0, log.read_text()
    return log.read_text()


def _jobs(said: str) -> dict[str, dict[str, str]]:
    """What SLURM has recorded of the jobs that a head has submitted, by their ids."""
    numbers = re.findall(r"submitted with SLURM jobid (\d+)", said)
    fields = ("JobID", "Comment", "State", "AllocTRES", "NodeList", "Partition")
    text = ask("sacct", "-X", "-n", "-P", "-j", ",".join(numbers), "-o", ",".join(fields))
    found = [dict(zip(fields, line.split("|"), strict=True)) for line in text.splitlines()]
    assert {job["JobID"] for job in found} == set(numbers)
    return {job["JobID"]: job for job in found}


def _rule(job: dict[str, str]) -> str:
    """Name of the rule, without wildcards, or of the group."""
    return re.sub(r"_wildcards_.*", "", job["Comment"].removeprefix("rule_"))


@pytest.fixture(scope="module")
def sharded(clusters: Clusters, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Prepared]]:
    """An undisturbed run of a Hessian in shards, computed beside the first test."""
    clusters(True)
    path = tmp_path_factory.mktemp("sharded") / "checkout"
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(Prepared, path, [SHARDED], SHARDED_EXPERIMENT)


@pytest.mark.usefixtures("sharded")
def test_every_job_goes_through_slurm_and_a_figure_needs_its_chain_only(clusters: Clusters, tmp_path: Path) -> None:
    clusters(True)
    checkout = ClusterCheckout(tmp_path / "checkout")
    checkout.link()
    checkout.configure(device="cpu")
    checkout.write_profile(None, {}, **{"slurm-status-command": "sacct"})
    group = "curvature_compute_eigenbasis_compute_hessian_compute_hessian_shard"

    jobs = _jobs(_run(checkout, "results/tiny/figures/spectrum.svg"))
    assert Counter(map(_rule, jobs.values())) == Counter(
        {"prepare_data": 1, "train": 1, "extract_checkpoint": 2, group: 2, "measure_spectrum": 2, "draw_figure": 1}
    )
    assert {job["State"] for job in jobs.values()} == {"COMPLETED"}
    on_gpu = {number for number, job in jobs.items() if "gres/gpu=1" in job["AllocTRES"]}
    # Hessian and eigenbasis of one checkpoint: one job, one GPU.
    assert Counter(_rule(jobs[number]) for number in on_gpu) == Counter({"train": 1, group: 2})
    assert {jobs[number]["Partition"] for number in on_gpu} == {"gpu"}
    assert not any("gres/gpu" in job["AllocTRES"] for number, job in jobs.items() if number not in on_gpu)

    jobs = _jobs(_run(checkout))
    assert Counter(map(_rule, jobs.values())) == Counter(
        search_lines=2, project_gradients=2, measure_density=2, measure_overlap=1, measure_curves=1, draw_figure=6
    )
    assert len(list((checkout.path / "results/tiny/figures").glob("*.svg"))) == 7
    code, said = checkout.snakemake("-n", profile="slurm")
    assert code == 0
    assert "Nothing to be done" in said


def test_a_shard_is_preempted(clusters: Clusters, sharded: Future[Prepared], tmp_path: Path) -> None:
    """Three shards as jobs on two nodes; the one that is alone on its node is preempted."""
    cluster, prepared = clusters(True), sharded.result()
    record = Record("a shard is preempted", SHARDED.name, 1, prepared.units[SHARDED.name])
    scenario = Scenario(cluster, cluster.slots[0], prepared, tmp_path, SHARDED, record)
    shards = [scenario.checkout.path / stage for stage in SHARDED.stages[:SHARDS]]
    try:
        head = scenario.start_head()

        def at_work() -> bool:
            return all(any(event["event"] == "unit" for event in read_events(shard)) for shard in shards)

        scenario.wait(at_work, "three shards at work")
        starts = [next(event for event in read_events(shard) if event["event"] == "start") for shard in shards]
        nodes = [scenario.job(start["job"])["NodeList"] for start in starts]
        assert len({start["job"] for start in starts}) == SHARDS
        assert set(nodes) == set(cluster.slots[0].workers)
        alone = next(start for start, node in zip(starts, nodes, strict=True) if nodes.count(node) == 1)
        scenario.happens()
        with slowly(alone["pid"]):
            scenario.preempt(scenario.job(alone["job"])["NodeList"], f"--gres=gpu:{GPUS}")
        scenario.finish(head)
        assert [int(scenario.job(start["job"])["Restarts"]) for start in starts] == [int(s is alone) for s in starts]
        scenario.check()
    except BaseException:
        scenario.tidy()
        raise
    assert record.interruptions == 1
