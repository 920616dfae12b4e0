"""Fixtures of several test files."""

from pathlib import Path

import pytest
from fake_slurm import FakeSlurm


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """SLURM's commands in front of PATH, that tell what the test puts down."""
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", fake.path)
    return fake
