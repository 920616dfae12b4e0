"""Each event of a cluster once. Most of their time is waiting, so that several scenarios run at a time."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import pytest
from conftest import Clusters

from tests.slurm.chain import CURVATURE, TRAINING, Prepared
from tests.slurm.cluster import Slot
from tests.slurm.events import EVENTS, Record, Skipped, run_event

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

# One job that computes one stage, or, where it matters, three rules in one job.
IN_A_GROUP = {"preemption", "out of memory", "head killed"}


@pytest.fixture(scope="module")
def scenarios(
    request: pytest.FixtureRequest, clusters: Clusters, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Record]]]:
    """All events that were chosen, at work."""
    cluster = clusters(False)
    free: Queue[Slot] = Queue()
    for slot in cluster.slots:
        free.put(slot)
    chosen = [item.callspec.params["event"] for item in request.session.items if hasattr(item, "callspec")]

    def run(event: str, directory: Path) -> Record:
        slot = free.get()
        try:
            chain = CURVATURE if event in IN_A_GROUP else TRAINING
            return run_event(cluster, slot, prepared, directory, event, chain, seed=1)
        finally:
            free.put(slot)

    with ThreadPoolExecutor(len(cluster.slots)) as pool:
        # The longest first, so that none is alone at the end.
        order = sorted(dict.fromkeys(chosen), key=lambda event: event not in LONGEST)
        yield {event: pool.submit(run, event, tmp_path_factory.mktemp("event")) for event in order}
        pool.shutdown(cancel_futures=True)


LONGEST = ("node failure", "controller time limit", "controller preemption", "two controllers", "head killed")


@pytest.mark.parametrize("event", EVENTS)
def test_event(scenarios: dict[str, Future[Record]], event: str) -> None:
    try:
        record = scenarios[event].result()
    except Skipped as why:
        pytest.skip(str(why))
    print(record)
    assert record.lost <= record.interruptions
