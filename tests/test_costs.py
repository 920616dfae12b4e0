"""`quadscape costs`: what jobs took, added up from their logs."""

import subprocess
import sys
from pathlib import Path

import pytest

from quadscape.cli import main
from quadscape.results.costs import costs

JOB = """
from types import SimpleNamespace
from quadscape.planning.jobs import open_log
log = open_log(SimpleNamespace(log=["logs/x/{rule}/a/4.log"], rule="{rule}", wildcards=["a", 4]))
log("working")
while __import__("time").process_time() < {seconds}: pass
{end}
"""


def run_job(rule: str, seconds: float, end: str = "") -> None:
    code = JOB.format(rule=rule, seconds=seconds, end=end)
    subprocess.run([sys.executable, "-c", code], check=not end, capture_output=True)


def test_every_job_says_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_job("train", 0.5)
    run_job("measure_line_search", 1.5)
    run_job("measure_line_search", 0.5, "raise SystemExit(1)")  # tried again
    run_job("compute_hessian", 0.5, "__import__('os').kill(__import__('os').getpid(), 9)")
    run_job("draw_figure", 0.5)
    found = costs(Path("logs/x"))
    assert list(found) == ["1 Training", "3 How quadratic", "Figures and findings"]
    assert [spent.jobs for spent in found.values()] == [1, 1, 1]
    assert 0.4 < found["1 Training"].cpu_seconds < 1.4
    assert 1.9 < found["3 How quadratic"].cpu_seconds < 3.5
    lines = Path("logs/x/measure_line_search/a/4.log").read_text().splitlines()
    assert "working" in lines[0]
    assert " MB of memory" in lines[1]


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rule, times in {"prepare_data": [1.0], "train": [100.0, 2.5], "measure_gradients": [4.0]}.items():
        path = tmp_path / "x" / rule / "a.log"
        path.parent.mkdir(parents=True)
        lines = [
            f"2026-01-01 00:00:00 [{rule}] took 1 h 02 min, {t:.1f} CPU-s and at most 9.1 MB of memory" for t in times
        ]
        path.write_text("\n".join(["started", *lines, "12 CPU-s and at most", ""]))
    assert main(["costs", str(tmp_path / "x")]) == 0
    table = [line.rsplit(maxsplit=3) for line in capsys.readouterr().out.splitlines()[1:]]
    assert table == [
        ["1 Training", "2", "103.5", "51.75"],
        ["4 Noise", "1", "4.0", "4.00"],
        ["all", "3", "107.5", "35.83"],
    ]


def test_no_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["costs", str(tmp_path)]) == 1
    assert f"no logs of finished jobs in {tmp_path}" in capsys.readouterr().err
