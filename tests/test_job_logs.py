"""`quadscape logs`: the newest lines of a rule's logs, whoever keeps them."""

import os
from pathlib import Path

import pytest

from quadscape.cli import main

RULE = "compute_hessian"


def write(path: Path, text: str, age: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1e9 - age, 1e9 - age))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_logs_of_rule_and_slurm(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root / f"logs/x/{RULE}/a/40.log", "".join(f"line {k}\n" for k in range(100)), 1)
    write(root / "logs/slurm/group_curvature/a_40/7.log", f"    rule {RULE}:\nrule compute_eigenbasis:\nkilled\n", 2)
    write(root / "logs/slurm/rule_train/a/6.log", "trained\n", 3)
    write(root / "logs/x/prepare_data.log", "prepared\n", 4)
    write(root / "logs/controller/5.log", "controlled\n", 5)
    assert main(["logs", RULE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "logs/slurm/group_curvature/a_40/7.log"
    assert lines[3] == "    killed"
    assert lines[4] == f"logs/x/{RULE}/a/40.log"
    assert lines[5:] == [f"    line {k}" for k in range(80, 100)]
    for rule, word in {"train": "trained", "prepare_data": "prepared", "controller": "controlled"}.items():
        assert main(["logs", rule]) == 0
        assert word in capsys.readouterr().out


def test_only_the_newest(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(9):
        write(root / f"logs/x/{RULE}/a/{number}.log", "text\n", number)
    assert main(["logs", RULE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "(3 older logs are not shown)"
    assert [line for line in lines if line.startswith("logs")] == [f"logs/x/{RULE}/a/{n}.log" for n in range(5, -1, -1)]


def test_unknown_rule(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "nothing"]) == 1
    assert "there are none at all" in capsys.readouterr().err
    write(root / f"logs/x/{RULE}/a/1.log", "text\n", 0)
    write(root / "logs/slurm/rule_train/a/6.log", "trained\n", 3)
    assert main(["logs", "nothing"]) == 1
    assert capsys.readouterr().err.strip().endswith(f"there are some of {RULE}, train.")
