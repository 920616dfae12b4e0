"""Two people of a group at one clone."""

from concurrent.futures import Future

import pytest

from tests.slurm.events import ImpossibleError, Record

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_a_colleague_waits_for_what_runs_and_goes_on(colleague: Future[Record]) -> None:
    try:
        record = colleague.result()
    except ImpossibleError as why:
        pytest.skip(str(why))
    print(record)
    assert record.lost <= 2
