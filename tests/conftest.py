"""Fixtures of several test files."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from exports import KeptExports
from fake_slurm import FakeSlurm
from hypothesis import settings

from tests.checkouts import Checkout

MadeOnce = Callable[[str, Callable[[Path], object]], Path]


# No test is timed: hypothesis' own limit of 0.2 s a case fails wherever something else is at work.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """What is kept for all experiments of a user is kept for all tests of a run, and not in the user's own cache."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="quadscape-cache-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True))


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
def toy_server() -> None:
    """Processes are forked from one that has imported the toy stage."""
    from fork_server import start_server

    start_server("toy_stage")


@pytest.fixture
def workers_end() -> Iterator[None]:
    """No process of the toy stage outlives its test."""
    from toy_stage import Worker

    yield
    Worker.end()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Makes a folder of a name, which all processes of pytest-xdist share: the first makes it, and others wait for it.

    What is in it is only to be read, for others read it at the same time.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, partial = base / name, base / f"{name}.partial"
        with (base / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                shutil.rmtree(partial, ignore_errors=True)
                make(partial)
                partial.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def make_apart() -> Callable[..., None]:
    """`make_results` in a process of its own, in which no test before has a say; keywords are environment variables."""
    tests = Path(__file__).parent

    def make(root: Path, **environment: str) -> None:
        code = "import pathlib, sys, results; results.make_results(pathlib.Path(sys.argv[1]))"
        path = os.pathsep.join([str(tests.parent), str(tests)])
        subprocess.run(
            [sys.executable, "-c", code, str(root)], env={**os.environ, "PYTHONPATH": path, **environment}, check=True
        )

    return make


@pytest.fixture(scope="session")
def made_results(made_once: MadeOnce, make_apart: Callable[..., None]) -> Path:
    """Where `make_results` has put its results; only to be read."""
    return made_once("results", make_apart)


def _finish(path: Path) -> None:
    checkout = Checkout(path)
    checkout.configure()
    code, output = checkout.snakemake()
    assert code == 0, output


@pytest.fixture(scope="session")
def finished(made_once: MadeOnce) -> Checkout:
    """The whole workflow, run once for all tests; only to be read, for others copy it at the same time."""
    return Checkout.at(made_once("workflow", _finish))


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    """A copy of the finished one, with all times as they are, for one test to change."""
    return Checkout.at(Path(shutil.copytree(finished.path, tmp_path / "copy", symlinks=True)))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch: small networks gain nothing from more, and lose much where other tests run beside."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def kept_exports() -> Iterator[None]:
    """In the tests of a module, the same network is exported once for all losses, cuts, shards and restarts."""
    from quadscape.curvature import graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "_export", KeptExports(graph._export))
        yield
