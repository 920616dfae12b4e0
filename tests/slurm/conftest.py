"""The cluster and the undisturbed run that all tests here share."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.slurm.chain", "tests.slurm.events")

from tests.slurm.chain import SHARDED, SHARDED_EXPERIMENT, Prepared, Whole  # ruff: ignore[module-import-not-at-top-of-file]
from tests.slurm.cluster import SLOTS, Cluster, UnavailableError  # ruff: ignore[module-import-not-at-top-of-file]

Clusters = Callable[[bool], Cluster]


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """Starts the cluster, with or without accounting; only one can run at a time."""
    running: list[Cluster] = []
    reasons: list[str] = []

    def start(accounting: bool) -> Cluster:
        if reasons:
            pytest.skip(reasons[0])
        if running and running[0].accounting == accounting:
            return running[0]
        if running:
            running.pop().stop()
        cluster = Cluster(slots=SLOTS + 1, accounting=accounting)
        try:
            cluster.start()
        except UnavailableError as why:
            reasons.append(f"no SLURM can be started here: {why}")
            pytest.skip(reasons[0])
        if cluster.no_cgroups:
            print(f"\nJobs are tracked and limited without cgroups: {cluster.no_cgroups}")
        running.append(cluster)
        return cluster

    yield start
    for cluster in running:
        cluster.stop()


@pytest.fixture(scope="session")
def prepared(request: pytest.FixtureRequest, clusters: Clusters, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The undisturbed run; not made where there will be no cluster."""
    clusters(False)
    if any("beside" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("beside")
    return Prepared(Path(tmp_path_factory.mktemp("undisturbed")) / "checkout")


@dataclass
class Beside:
    """What is at work while the events wait.

    Attributes:
        whole: The whole workflow, on nodes of its own.
        sharded: An undisturbed run of a Hessian in shards.
    """

    whole: Future[Whole]
    sharded: Future[Prepared]


@pytest.fixture(scope="session")
def beside(clusters: Clusters, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """Starts what is at work beside the events, and looked at after them."""
    slot, path = clusters(False).slots[-1], tmp_path_factory.mktemp("beside")
    with ThreadPoolExecutor(1) as thread:
        yield Beside(
            thread.submit(Whole, path / "whole", slot),
            thread.submit(Prepared, path / "sharded", [SHARDED], SHARDED_EXPERIMENT),
        )
