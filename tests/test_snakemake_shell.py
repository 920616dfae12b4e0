"""What jobs inherit from the workflow's head."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
