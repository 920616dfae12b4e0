"""What jobs inherit from the workflow's head, and what the head is told of them."""

import asyncio
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from quadscape.cluster.snakemake_shell import cap_time_limits, tell_cancelled_jobs

SNAKEFILE = """
configfile: "config.yaml"
include: "{root}/rules/common.smk"

rule tell:
    output: "told.txt"
    log: "tell.log"
    script: "tell.py"
"""
SCRIPT = """
import os
from pathlib import Path
Path(snakemake.output[0]).write_text(os.environ.get("OMP_WAIT_POLICY", "nothing"))
"""


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_jobs_sleep_while_they_wait(tmp_path: Path, given: str | None, expected: str) -> None:
    root = Path(__file__).resolve().parents[1]
    (tmp_path / "Snakefile").write_text(SNAKEFILE.format(root=root))
    (tmp_path / "tell.py").write_text(SCRIPT)
    (tmp_path / "config.yaml").write_text("{name: x, data: {source: digits}, runs: [{name: a}]}")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"PYTHONPATH": str(root)} | ({} if given is None else {"OMP_WAIT_POLICY": given})
    command = [sys.executable, "-m", "snakemake", "told.txt", "--cores", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "told.txt").read_text() == expected


def test_a_job_that_sacct_calls_cancelled_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")
    monkeypatch.setattr(plugin, "query_job_status", plugin.query_job_status)  # put back afterwards
    tell_cancelled_jobs()
    tell_cancelled_jobs()
    said = "1|CANCELLED by 1000\n2|RUNNING\n3|CANCELLED\n4|OUT_OF_MEMORY\n"
    (tmp_path / "sacct").write_text(f"#!/bin/sh\nprintf '{said}'\n")
    (tmp_path / "sacct").chmod(0o755)
    (tmp_path / "broken").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "broken").chmod(0o755)

    def states(command: str) -> dict[str, str] | None:
        return asyncio.run(plugin.query_job_status(str(tmp_path / command), logging.getLogger()))[0]

    assert states("sacct") == {"1": "CANCELLED", "2": "RUNNING", "3": "CANCELLED", "4": "OUT_OF_MEMORY"}
    assert states("broken") is None


@pytest.mark.parametrize(
    ("partition", "minutes", "expected"),
    [
        ("gpu", 20, "20"),
        ("gpu", 25, "25"),
        ("gpu", 45, "25"),
        ("gpu,long", 45, "45"),
        ("gpu,long", 90, "60"),
        ("gpu,cpu", 90, "90"),
        ("cpu", 900, "900"),
        ("unknown", 900, "900"),
        ("", 900, "900"),
    ],
)
def test_no_job_asks_for_more_time_than_its_partition_gives(
    cluster: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    partition: str,
    minutes: int,
    expected: str,
) -> None:
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")

    def submitted(partition: str, minutes: int) -> str:
        return f"sbatch --parsable --comment 'rule x' {f' -p {partition!r}' if partition else ''} -t {minutes} -C 'a|b'"

    monkeypatch.setattr(plugin, "get_submit_command", submitted)
    cluster.answer("sinfo", "gpu|25:00\ncpu|infinite\nlong|1:00:00\n")
    cap_time_limits()
    cap_time_limits()
    for _ in range(2):
        words = shlex.split(plugin.get_submit_command(partition, minutes))
        assert words == shlex.split(submitted(partition, int(expected)))
    said = capsys.readouterr().err
    assert said.count(f"'{partition}' get {expected} minutes at most, and one asks for {minutes}") == (
        expected != str(minutes)
    )
    assert len(cluster.calls("sinfo")) == 1


def test_a_limit_that_the_user_has_set_counts_too(
    cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")
    monkeypatch.setattr(plugin, "get_submit_command", lambda partition, minutes: f"sbatch  -p {partition} -t {minutes}")
    cluster.answer("sinfo", "gpu|25:00\ncpu|infinite\n")
    cap_time_limits({"gpu": 240, "cpu": 60})
    given = {name: plugin.get_submit_command(name, 90).split()[-1] for name in ("gpu", "cpu", "other")}
    assert given == {"gpu": "25", "cpu": "60", "other": "90"}
