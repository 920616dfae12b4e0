"""What jobs inherit from the workflow's head, and what the head is told of them."""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quadscape.cluster.snakemake_shell import tell_cancelled_jobs

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
