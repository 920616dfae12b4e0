"""Two people of a group at one clone: one's head and job are killed in the middle, and the other goes on."""

import os
import pwd
import signal
import subprocess
from pathlib import Path

from tests.slurm.chain import TRAINING, Prepared, environment, require
from tests.slurm.cluster import Cluster, Slot, ask
from tests.slurm.events import ImpossibleError, Record, Scenario
from tests.users import number_of, python_of_all, run_as, share

# SLURM gives jobs the groups that the system's lists know of a user: these two have one in common, on Debian.
ALICE, BOB = "sync", "nobody"
TEAM = pwd.getpwnam(BOB).pw_gid


def owners() -> dict[str, str]:
    """User of each job that SLURM knows."""
    return dict(line.split() for line in ask("squeue", "-h", "-t", "all", "-o", "%i %u").splitlines())


def a_colleague_goes_on(cluster: Cluster, slot: Slot, prepared: Prepared, folder: Path) -> Record:
    """Has one begin a training, kills the head, has the other go on, and kills the job that was left.

    Args:
        cluster: The cluster.
        slot: The nodes.
        prepared: The undisturbed run.
        folder: For the clone; all can come to it.

    Returns:
        What was interrupted and lost.

    Raises:
        ImpossibleError: The two users are not of one group here.
    """
    if pwd.getpwnam(ALICE).pw_gid != TEAM:
        raise ImpossibleError(f"the users {ALICE} and {BOB} have no group in common here")
    python, variables = python_of_all(folder)
    record = Record("a colleague goes on", TRAINING.name, 1, prepared.units[TRAINING.name])
    scenario = Scenario(cluster, slot, prepared, folder, TRAINING, record)
    path = share(scenario.checkout.path, ALICE, TEAM)
    told = {}
    for user in (ALICE, BOB):
        home = share(folder / user, user, TEAM)
        told[user] = {**environment(path), **variables, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}

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
        require(owners()[number] == ALICE, f"job {number} is not of {ALICE}")
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        words = ["submit", "--partition", scenario.slot.lobby, "--", *scenario.arguments]
        code, said = run_as(BOB, 0o002, path, told[BOB], python, "-m", "quadscape.cli", *words)
        require(code == 0, said)
        controller = said.split("SLURM job ")[1].split()[0]
        log = path / f"logs/controller/{controller}.log"
        waits = f"Waiting for 1 orphan: {number} "
        scenario.wait(
            lambda: log.exists() and waits in log.read_text(), "the controller that waits for a colleague's job"
        )
        require(f"(of {ALICE})" in log.read_text(), log.read_text())
        code, said = run_as(BOB, 0o002, path, told[BOB], python, "-m", "quadscape.cli", "status")
        require(code == 3 and "waiting for 1 orphan" in said, said)
        # And that job, too, is killed.
        ask("scancel", "--signal=KILL", "--full", number)
        scenario.happens()
        scenario.finish_controller(controller)
    finally:
        if head.poll() is None:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
    scenario.check()
    later = {str(event.get("job")) for event in scenario.events() if event["event"] == "unit"} - {number}
    require(later and {owners()[job] for job in later} == {BOB}, f"{later} went on")
    # What either has made, the other can change.
    for place in [*path.glob("results/**/*"), *path.glob(".quadscape/**/*"), *path.glob("logs/**/*")]:
        found = place.stat()
        shared = found.st_mode & 0o060 == 0o060 and found.st_gid == TEAM
        require(shared, f"{place} is of group {found.st_gid} with rights {found.st_mode:o}")
    for user in (ALICE, BOB):
        code, said = run_as(user, 0o002, path, told[user], python, "-m", "quadscape.cli", "verify", "results")
        require(code == 0, said)
    return record
