"""Fixtures of several test files."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from exports import KeptExports
from fake_slurm import FakeSlurm


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that none of them runs alone at the end; long ones run where asked for."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if os.environ.get("QUADSCAPE_LONG") != "1":
        skipped = pytest.mark.skip(reason="long: only in `make test-long`, which sets QUADSCAPE_LONG=1")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skipped)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """SLURM's commands in front of PATH, that tell what the test puts down."""
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one, since hundreds of runs wait for nothing but the disk's fsync."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="quadscape-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def kept_exports() -> Iterator[None]:
    """In the tests of a module, the same network is exported once for all losses, cuts, shards and restarts."""
    from quadscape.curvature import graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "_export", KeptExports(graph._export))
        yield
