"""Two people of a group at one clone: one's head and job are killed in the middle, and the other goes on."""

import os
import pwd
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.chain import TRAINING, Prepared, environment
from tests.slurm.cluster import Cluster, ask
from tests.slurm.events import Record, Scenario
from tests.users import number_of, python_of_all, run_as, share

# SLURM gives jobs the groups that the system's lists know of a user: these two have one in common, on Debian.
ALICE, BOB = "sync", "nobody"
TEAM = pwd.getpwnam(BOB).pw_gid

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that all can come to."""
    with tempfile.TemporaryDirectory(prefix="quadscape-users-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_colleague_waits_for_what_runs_and_goes_on(cluster: Cluster, prepared: Prepared, open_folder: Path) -> None:
    if pwd.getpwnam(ALICE).pw_gid != TEAM:
        pytest.skip(f"the users {ALICE} and {BOB} have no group in common here")
    python, variables = python_of_all(open_folder)
    record = Record("a colleague goes on", TRAINING.name, 1, prepared.units[TRAINING.name])
    scenario = Scenario(cluster, cluster.slots[0], prepared, open_folder, TRAINING, record)
    path = share(scenario.checkout.path, ALICE, TEAM)
    told = {}
    for user in (ALICE, BOB):
        home = share(open_folder / user, user, TEAM)
        told[user] = {**environment(path), **variables, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}

    def owners() -> dict[str, str]:
        return dict(line.split() for line in ask("squeue", "-h", "-t", "all", "-o", "%i %u").splitlines())

    with scenario.log.open("ab") as output:
        head = subprocess.Popen(
            [python, "-m", "snakemake", *scenario.arguments],
            cwd=path,
            env={**told[ALICE], "USER": ALICE, "LOGNAME": ALICE},
            user=number_of(ALICE),
            group=TEAM,
            extra_groups=[TEAM],
            umask=0o002,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _, number = scenario.moment(0.1, 0.4)
        assert owners()[number] == ALICE
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        words = ["submit", "--partition", scenario.slot.lobby, "--", *scenario.arguments]
        code, said = run_as(BOB, 0o002, path, told[BOB], python, "-m", "quadscape.cli", *words)
        assert code == 0, said
        controller = said.split("SLURM job ")[1].split()[0]
        log = path / f"logs/controller/{controller}.log"
        waits = f"Waiting for 1 orphan: {number} "
        scenario.wait(
            lambda: log.exists() and waits in log.read_text(), "the controller that waits for a colleague's job"
        )
        assert f"(of {ALICE})" in log.read_text()
        code, said = run_as(BOB, 0o002, path, told[BOB], python, "-m", "quadscape.cli", "status")
        assert code == 3, said
        assert "waiting for 1 orphan" in said
        # And that job, too, is killed.
        ask("scancel", "--signal=KILL", "--full", number)
        scenario.happens()
        scenario.finish_controller(controller)
    finally:
        if head.poll() is None:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
    scenario.check()
    print(record)
    assert record.lost <= 1
    later = {str(event.get("job")) for event in scenario.events() if event["event"] == "unit"} - {number}
    assert later
    assert {owners()[job] for job in later} == {BOB}
    # What either has made, the other can change.
    for place in [*path.glob("results/**/*"), *path.glob(".quadscape/**/*"), *path.glob("logs/**/*")]:
        assert place.stat().st_mode & 0o060 == 0o060, place
        assert place.stat().st_gid == TEAM, place
    for user in (ALICE, BOB):
        code, said = run_as(user, 0o002, path, told[user], python, "-m", "quadscape.cli", "verify", "results")
        assert code == 0, said
