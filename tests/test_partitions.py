"""Where jobs go: what is asked of SLURM, the site's file, and what a head says before it submits anything."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from fake_slurm import FakeSlurm

from quadscape.cli import main
from quadscape.cluster import slurm_head
from quadscape.cluster.partitions import (
    PARTITIONS_FILE,
    Partition,
    check_names,
    choose,
    list_partitions,
    read_site,
    sends_by_rule,
)
from quadscape.errors import ClusterError
from tests.checkouts import ROOT, Checkout

SINFO = """\
cpu|1-00:00:00|(null)|64|128000
gpu|12:00:00|gpu:a100:4(S:0-1)|64|512000
gpu|12:00:00|gpu:2|32+|256000+
1|infinite|nvme:1|4|1000
mixed|30:00|nvme:2,gpu:h100:1,gpu:a100:2|8|9000
"""
SITE = {
    "partitions": {"short": {"max_runtime": 60}, "long": {"max_runtime": "7-00:00:00"}, "gpu": {"max_gpu": 4}},
    "account": "lab",
}


def test_partitions_as_slurm_tells(cluster: FakeSlurm) -> None:
    cluster.answer("sinfo", SINFO)
    assert list_partitions() == [
        Partition("cpu", 1440, 0, 64, 128000),
        Partition("gpu", 720, 4, 64, 512000),
        Partition("1", None, 0, 4, 1000),
        Partition("mixed", 30, 3, 8, 9000),
    ]


@pytest.mark.parametrize(("said", "accounts"), [("lab|normal,long\nother|normal\n", "lab, other"), (None, None)])
def test_the_command_writes_what_is_read(
    cluster: FakeSlurm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    said: str | None,
    accounts: str | None,
) -> None:
    cluster.answer("sinfo", SINFO)
    if said is None:
        cluster.fail("sacctmgr", "You are not running a supported accounting_storage plugin")
    else:
        cluster.answer("sacctmgr", said)
    assert main(["partitions"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "partitions.yaml").write_text(text)
    site = read_site(tmp_path / "partitions.yaml")
    assert list(site.partitions) == ["cpu", "gpu", "1", "mixed"]
    assert site.partitions["gpu"] == {"max_runtime": 720, "max_gpu": 4, "max_threads": 64, "max_mem_mb": 512000}
    assert site.minutes() == {"cpu": 1440, "gpu": 720, "mixed": 30}
    assert site.for_controller() == "1"
    assert (site.account, site.qos) == ("", "")
    # Uncommented, they hold.
    (tmp_path / "partitions.yaml").write_text(re.sub(r"^# (?=account|qos)", "", text, flags=re.M))
    site = read_site(tmp_path / "partitions.yaml")
    if accounts is None:
        assert (site.account, site.qos) == ("my_account", "my_qos")
    else:
        assert f"yours: {accounts}\n" in text
        assert (site.account, site.qos) == ("lab", "normal")


def test_without_slurm_or_partitions_the_command_says_so(
    cluster: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["partitions"]) == 1
    assert "lists no partition that you may use" in capsys.readouterr().err
    cluster.fail("sinfo", "Unable to contact slurm controller")
    assert main(["partitions"]) == 1
    assert "sinfo failed: Unable to contact slurm controller." in capsys.readouterr().err


def test_the_example_is_valid_and_the_file_is_not_tracked() -> None:
    example = read_site(ROOT / "profiles/slurm/partitions.example.yaml")
    assert example.minutes() == {"short": 240, "long": 20160, "gpu": 1440}
    assert example.for_controller() == "long"
    assert f"/{PARTITIONS_FILE}" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no partitions"),
        ("partitions: [cpu]", "names no partitions"),
        ("partitions: {1: {}}", '"1"'),
        ("partitions: {cpu: 5}", "'cpu' are 5"),
        ("partitions: {cpu: {max_gpus: 5}}", "'max_gpus'; valid are max_runtime,"),
        ("partitions: {cpu: {max_gpu: many}}", "max_gpu of partition 'cpu' is 'many'"),
        ("partitions: {cpu: {max_runtime: soon}}", "max_runtime of partition 'cpu' is 'soon'"),
        ("partitions: {cpu: {}}\naccounts: x", "'accounts'; valid are partitions, account and qos"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(ClusterError, match=re.escape(words)):
        read_site(tmp_path / "site.yaml")


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"no .*site.yaml.*`quadscape partitions > .*site.yaml`"):
        read_site(tmp_path / "site.yaml")


@pytest.mark.parametrize("names", ["cpu", "cpu,gpu"])
def test_names_of_partitions(names: str) -> None:
    check_names([(names, "x")], ["gpu", "cpu"])
    with pytest.raises(ClusterError, match=r"rule train names the partition 'tpu'.*valid are gpu, cpu"):
        check_names([(f"{names},tpu", "rule train")], ["gpu", "cpu"])


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        # The closest, but never one with GPUs for a job that needs none, however closely it fits.
        ({"runtime": 50}, "short"),
        ({"runtime": 50, "mem_mb": 63000}, "short"),
        ({"runtime": 300}, "long"),
        ({"runtime": 50, "gpu": 1}, "gpu"),
        ({"runtime": 50, "gpu": 0}, "short"),
        # None gives the time: the one that gives most.
        ({"runtime": 30000}, "long"),
        ({"runtime": 900, "gpu": 1}, "gpu"),
        # None without GPUs has the memory.
        ({"runtime": 50, "mem_mb": 300000}, "gpu"),
        ({"runtime": 900, "mem_mb": 300000}, "gpu"),
    ],
)
def test_the_partition_of_a_job(tmp_path: Path, resources: dict[str, Any], expected: str) -> None:
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm.partitions")
    limits = {
        "short": {"max_runtime": 60, "max_mem_mb": 128000},
        "long": {"max_runtime": 20160, "max_mem_mb": 128000},
        "gpu": {"max_runtime": 55, "max_mem_mb": 512000, "max_gpu": 1},
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"partitions": limits}))
    candidates = plugin.read_partition_file(tmp_path / "site.yaml")
    logger = SimpleNamespace(info=print, debug=lambda _: None, warning=print)
    job = SimpleNamespace(name="x", threads=1, resources=resources)
    assert choose(candidates, job, logger, plugin.get_best_partition) == expected


def test_a_job_that_fits_nowhere(tmp_path: Path) -> None:
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm.partitions")
    (tmp_path / "site.yaml").write_text("partitions: {cpu: {max_mem_mb: 4000}, big: {}}")
    candidates = plugin.read_partition_file(tmp_path / "site.yaml")
    job = SimpleNamespace(name="train", threads=1, resources={"gpu": 1, "mem_mb": 9000, "runtime": 5})
    with pytest.raises(ClusterError, match=r"fits train, which asks for gpu=1, mem_mb=9000; .* has cpu, big"):
        choose(candidates, job, None, plugin.get_best_partition)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"train": {"gpu": 1}}, True),
        ({"a": {"slurm_partition": "x"}}, True),
        ({"a": {"mem_mb": 1}}, False),
        ({}, False),
    ],
)
def test_profiles_that_send_jobs_themselves(resources: dict[str, dict[str, Any]], expected: bool) -> None:
    assert sends_by_rule(resources) is expected


# ---------------------------------------------------------------------------------------------------------------------
# The head


@pytest.mark.parametrize(("size", "refused"), [(0, True), (2, True), (3, False), (1001, False)])
def test_a_cluster_without_job_arrays(cluster: FakeSlurm, size: int, refused: bool) -> None:
    cluster.answer("scontrol", f"Configuration data as of today\nMaxArraySize            = {size}\nMaxJobCount = 1\n")
    if refused:
        with pytest.raises(ClusterError, match=f"MaxArraySize of this cluster is {size}, .*at least 3"):
            slurm_head.check_slurm(None)
    else:
        assert slurm_head.check_slurm(None) is None


@pytest.mark.parametrize("variable", [False, True])
def test_partitions_of_the_file_that_are_not_there(
    cluster: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: bool
) -> None:
    cluster.answer("sinfo", SINFO)
    path = tmp_path / "site.yaml"
    if variable:
        monkeypatch.setenv("SNAKEMAKE_SLURM_PARTITIONS", str(path))
    path.write_text("partitions: {cpu: {}, far: {cluster: other}}\naccount: lab")
    site = slurm_head.check_slurm(None if variable else path)
    assert site is not None
    assert site.account == "lab"
    path.write_text("partitions: {cpu: {}, nowhere: {}}")
    with pytest.raises(ClusterError, match=r"site.yaml names the partition 'nowhere'.*valid are cpu, gpu, 1, mixed"):
        slurm_head.check_slurm(None if variable else path)


def test_a_cluster_that_does_not_answer(cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_head, "_SILENCE_SECONDS", 0.01)
    cluster.fail("scontrol", "Unable to contact slurm controller")
    with pytest.raises(ClusterError, match="scontrol failed: Unable to contact slurm controller"):
        slurm_head.check_slurm(None)
    assert len(cluster.calls("scontrol")) == 3
    monkeypatch.setattr(slurm_head.time, "sleep", lambda _: cluster.fail("scontrol", None))
    assert slurm_head.check_slurm(None) is None  # it was silent for a moment
    cluster.fail("scontrol", "fatal: Could not establish a configuration source")
    with pytest.raises(ClusterError, match=r"there is no SLURM on this machine \(its commands know of no cluster\)"):
        slurm_head.check_slurm(None)


@pytest.mark.parametrize("limit", ["QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit", "AssocGrpSubmitJobsLimit"])
def test_a_job_that_is_one_too_many_is_submitted_again(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(slurm_head, "_SUBMIT_SECONDS", 0.01)
    submitted: list[Any] = []
    failed: list[str] = []
    warnings: list[str] = []
    head = SimpleNamespace(
        logger=SimpleNamespace(warning=warnings.append),
        run_job="run",
        _job_submission_executor=SimpleNamespace(submit=lambda *what: submitted.append(what), _shutdown=False),
    )
    report = slurm_head._waiting_for_a_place(lambda _self, _info, msg: failed.append(msg))
    refusal = (
        f"SLURM sbatch failed. The error message was 'sbatch: error: {limit}'.\n    sbatch call:\n        sbatch x"
    )
    for _ in range(2):
        report(head, SimpleNamespace(job="job"), refusal)
    assert submitted == [("run", "job")] * 2
    assert len(warnings) == 1
    assert limit in warnings[0]
    assert failed == []
    # Neither another refusal, nor what merely names such a thing in its command.
    others = ["error message was 'invalid partition'.\n    sbatch call:\n  sbatch -C AssocSubmit", "anything"]
    for msg in others:
        report(head, SimpleNamespace(job="job"), msg)
    assert failed == others
    assert len(submitted) == 2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout(tmp_path_factory.mktemp("head") / "checkout")
    checkout.configure()
    return checkout


def _head(checkout: Checkout) -> tuple[int, str]:
    """Exit code, and what a head says beside its greeting."""
    code, said = checkout.run(
        *(sys.executable, "-m", "snakemake", "results/tiny/data.zarr/zarr.json", "--profile", "profiles/slurm"),
        *("--configfile", "tiny.yaml"),
        timeout=60,
    )
    return code, said


NAMED = {
    "default-resources": {"slurm_partition": "cpu", "mem_mb": 4000},
    "set-resources": {"train": {"slurm_partition": "gpu", "gpu": 1}},
}


@pytest.mark.parametrize(
    ("profile", "site", "words"),
    [
        ({}, None, f"There is no {PARTITIONS_FILE}"),
        # A profile of before, with its lines untouched.
        (NAMED | {"default-resources": {"slurm_partition": "site"}}, None, "names the partition 'site'"),
        # What it asks for can be had: sbatch refuses in the end.
        ({"retries": 0}, {"partitions": {"cpu": {}}, "account": "lab", "qos": "long"}, "Batch job submission failed"),
        # As the one before, and as long: a job that is not taken is submitted again for a while.
        pytest.param(
            {"retries": 0, "set-resources": {"train": {"gpu": 1}}},
            None,
            "Batch job submission failed",
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_a_head_says_at_once(
    prepared: Checkout,
    cluster: FakeSlurm,
    profile: dict[str, Any],
    site: dict[str, Any] | None,
    words: str,
) -> None:
    cluster.answer("sinfo", SINFO)
    cluster.answer("scontrol", "MaxArraySize = 1001\n")
    cluster.fail("sbatch", "sbatch: error: Batch job submission failed")
    shipped = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    (prepared.path / "profiles/slurm/config.yaml").write_text(yaml.safe_dump({**shipped, **profile}))
    file = prepared.path / PARTITIONS_FILE
    file.unlink(missing_ok=True)
    if site is not None:
        file.write_text(yaml.safe_dump(site))
    code, said = _head(prepared)
    assert code == 1
    assert words in said
    assert "Traceback" not in said
    calls = cluster.calls("sbatch")
    assert len(calls) == ("submission failed" in words)
    for call in calls:
        given = " ".join(call)
        assert (" -A lab " in given, " --qos=long" in given) == (site is not None, site is not None)
        assert "--gpus" not in given


def test_a_head_without_slurm_says_so_at_once(
    prepared: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("which", "env", "sh", "bash"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path))
    shipped = (ROOT / "profiles/slurm/config.yaml").read_text()
    (prepared.path / "profiles/slurm/config.yaml").write_text(shipped)
    code, said = _head(prepared)
    assert code == 1
    assert "there is no SLURM on this machine (no sbatch)" in said
    assert "Traceback" not in said
