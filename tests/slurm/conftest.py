"""The cluster and the undisturbed run that all tests here share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.slurm.chain", "tests.slurm.events")

from tests.slurm.chain import Prepared  # ruff: ignore[module-import-not-at-top-of-file]
from tests.slurm.cluster import Cluster, UnavailableError  # ruff: ignore[module-import-not-at-top-of-file]

Clusters = Callable[[bool], Cluster]


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """Starts the cluster, with or without accounting; only one can run at a time."""
    running: list[Cluster] = []

    def start(accounting: bool) -> Cluster:
        if running and running[0].accounting == accounting:
            return running[0]
        if running:
            running.pop().stop()
        cluster = Cluster(accounting=accounting)
        try:
            cluster.start()
        except UnavailableError as why:
            pytest.skip(f"no SLURM can be started here: {why}")
        if cluster.no_cgroups:
            print(f"\nJobs are tracked and limited without cgroups: {cluster.no_cgroups}")
        running.append(cluster)
        return cluster

    yield start
    for cluster in running:
        cluster.stop()


@pytest.fixture(scope="session")
def prepared(clusters: Clusters, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The undisturbed run; not made where there will be no cluster."""
    clusters(False)
    return Prepared(Path(tmp_path_factory.mktemp("undisturbed")) / "checkout")
