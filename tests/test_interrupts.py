"""Ctrl-C: what is said, what is recorded, and what is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from quadscape import cli
from quadscape.cluster.heads import PLACE, last_head
from tests.checkouts import Checkout

_HEAD = """
import signal, subprocess, sys, time
from pathlib import Path
from quadscape.cluster.interrupts import Interrupts

child = subprocess.Popen(["sleep", "300"], stderr=subprocess.DEVNULL)
Path("child").write_text(str(child.pid))
interrupts = Interrupts()
interrupts.watch(on_slurm=sys.argv[1] == "slurm", logs=[], unlock=lambda: Path("unlocked").touch())
Path("began").touch()
try:
    time.sleep(300)
except KeyboardInterrupt:
    Path("ending").write_text(interrupts.ending())
    time.sleep(300)
"""


def _until(path: Path) -> None:
    end = time.monotonic() + 90
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)


def _listening() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("gap", [0.0, 0.3])
@pytest.mark.parametrize("where", ["slurm", "local"])
def test_twice_is_one_line_and_recorded(tmp_path: Path, where: str, gap: float) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _HEAD, where],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_listening,
    )
    _until(tmp_path / "began")
    child.send_signal(signal.SIGINT)
    _until(tmp_path / "ending")
    time.sleep(gap)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert said.startswith("\nInterrupted twice: this snakemake ends at once; ")
    assert len(said.split("\n")) == 3
    below = int((tmp_path / "child").read_text())
    there = psutil.pid_exists(below) and psutil.Process(below).status() != psutil.STATUS_ZOMBIE
    if where == "slurm":
        # What may run in SLURM is not submitted again beside itself.
        assert "`quadscape status`" in said
        assert not (tmp_path / "unlocked").exists()
        assert there
        os.kill(below, signal.SIGKILL)
    else:
        assert (tmp_path / "unlocked").exists()
        assert not there
    head = last_head(tmp_path)
    assert head is not None
    assert head.state == "interrupted"


@pytest.mark.parametrize("arguments", [["verify"], ["status"], ["purge"], ["estimate"], ["submit", "--", "x"]])
def test_commands_end_in_a_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for name in (
        "results.verify.verify_results",
        "cluster.activity.look",
        "results.purge.find_removable",
        "planning.experiment_file.load_experiment",
        "cluster.submission.submit",
    ):
        monkeypatch.setattr(f"quadscape.{name}", interrupt)
    assert cli.main(arguments) == 130
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("quadscape: interrupted")
    assert ("`quadscape status`" in said[0]) is (arguments[0] == "submit")


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_head_that_is_interrupted_says_so_in_its_record(tmp_path: Path, times: int) -> None:
    checkout = Checkout(tmp_path / "checkout")
    checkout.configure()
    script, record = checkout.path / "workflow_scripts/prepare_data.py", checkout.path / PLACE / "head.json"
    # A job that does not end with its head.
    script.write_text("import signal, time\nsignal.signal(2, signal.SIG_IGN)\nopen('began', 'w')\ntime.sleep(9)\n")
    target = "results/tiny/data.zarr/zarr.json"
    child = subprocess.Popen(
        [sys.executable, "-m", "snakemake", target, "--cores", "1", "--configfile", "tiny.yaml"],
        cwd=checkout.path,
        env=checkout.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_listening,
    )
    _until(checkout.path / "began")
    for _ in range(times):
        os.killpg(child.pid, signal.SIGINT)
        time.sleep(0.5)
    output, _ = child.communicate(timeout=120)
    assert child.returncode == (1 if times == 1 else 130), output
    assert "Traceback" not in output
    assert ("Interrupted twice: " in output) is (times == 2)
    assert json.loads(record.read_text())["state"] == "interrupted"
    assert not list((checkout.path / ".snakemake/locks").glob("*"))
