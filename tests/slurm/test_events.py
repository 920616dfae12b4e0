"""Each event of a cluster once, several at a time."""

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from tests.slurm.chain import CURVATURE, TRAINING, Prepared
from tests.slurm.cluster import SLOTS, Cluster
from tests.slurm.events import EVENTS, LONGEST, ImpossibleError, Pool, Record

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1300)]

# Three rules in one job, and not one only.
IN_A_GROUP = {"preemption", "out of memory", "head killed"}
# They go the ways of others: of "preemption", which puts a job back, of "node failure", of which the first half is a
# killed script, of "head killed" and of "controller time limit".
LONG = {"requeue", "script killed", "head interrupted", "controller preemption"}


@pytest.fixture(scope="module")
def scenarios(
    request: pytest.FixtureRequest, cluster: Cluster, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Record]]]:
    """All events that were chosen, at work, and what is at work beside them."""
    if any("colleague" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("colleague")
    pool = Pool(cluster, cluster.slots[:SLOTS], prepared, tmp_path_factory.mktemp("events"))
    chosen = {
        item.callspec.params["event"]
        for item in request.session.items
        if hasattr(item, "callspec") and item.get_closest_marker("skip") is None
    }
    order = sorted(chosen, key=lambda event: (event not in LONGEST, event))
    yield {event: pool.submit(event, CURVATURE if event in IN_A_GROUP else TRAINING, seed=1) for event in order}
    pool.close()


@pytest.mark.parametrize(
    "event", [pytest.param(event, marks=[pytest.mark.long] if event in LONG else []) for event in EVENTS]
)
def test_event(scenarios: dict[str, Future[Record]], event: str) -> None:
    try:
        record = scenarios[event].result()
    except ImpossibleError as why:
        pytest.skip(str(why))
    print(record)
    assert record.lost <= 2 * record.interruptions
