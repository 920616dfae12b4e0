"""The cluster and the undisturbed run that all tests here share."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.slurm.chain", "tests.slurm.events")

from tests.slurm.chain import SHARDED, SHARDED_EXPERIMENT, Prepared, Whole  # ruff: ignore[module-import-not-at-top-of-file]
from tests.slurm.cluster import SLOTS, Cluster, UnavailableError  # ruff: ignore[module-import-not-at-top-of-file]
from tests.slurm.events import Record, preempt_a_shard  # ruff: ignore[module-import-not-at-top-of-file]
from tests.slurm.people import a_colleague_goes_on  # ruff: ignore[module-import-not-at-top-of-file]

COLLEAGUE_SLOT, SHARDED_SLOT, WHOLE_SLOT = -3, -2, -1
"""The slots of what is at work beside the events."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, with accounting, which the profile's `squeue` does without."""
    found = Cluster(slots=SLOTS + 3, accounting=True)
    try:
        found.start()
    except UnavailableError as why:
        pytest.skip(f"no SLURM can be started here: {why}")
    if found.no_cgroups:
        print(f"\nJobs are tracked and limited without cgroups: {found.no_cgroups}")
    yield found
    found.stop()


@pytest.fixture(scope="session")
def prepared(request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The undisturbed run; not made where there will be no cluster."""
    if any("beside" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("beside")
    return Prepared(Path(tmp_path_factory.mktemp("undisturbed")) / "checkout")


@dataclass
class Beside:
    """What is at work while the events wait, each on nodes of its own.

    Attributes:
        whole: The whole workflow.
        shard: A Hessian in shards, one of which is preempted.
    """

    whole: Future[Whole]
    shard: Future[Record]


@pytest.fixture(scope="session")
def beside(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """Starts what is at work beside the events, and looked at after them."""
    path = tmp_path_factory.mktemp("beside")

    def shard() -> Record:
        prepared = Prepared(path / "sharded", [SHARDED], SHARDED_EXPERIMENT)
        (path / "shard").mkdir()
        return preempt_a_shard(cluster, cluster.slots[SHARDED_SLOT], prepared, path / "shard")

    with ThreadPoolExecutor(2) as threads:
        yield Beside(threads.submit(Whole, path / "whole", cluster.slots[WHOLE_SLOT]), threads.submit(shard))


@pytest.fixture(scope="session")
def colleague(cluster: Cluster, prepared: Prepared) -> Iterator[Future[Record]]:
    """Two people at one clone, at work beside the events, in a folder that both can come to."""
    with tempfile.TemporaryDirectory(prefix="quadscape-users-") as folder, ThreadPoolExecutor(1) as thread:
        Path(folder).chmod(0o755)
        yield thread.submit(a_colleague_goes_on, cluster, cluster.slots[COLLEAGUE_SLOT], prepared, Path(folder))
