"""What a cluster does to a workflow, one function per event; each checks afterwards that nothing was lost.

A scenario has a checkout and nodes of its own. It starts a head or a controller, waits for a random moment in the
chain's work, lets the event happen, and waits until the same command has completed. Then it holds, every time:
manifests and decoded arrays are those of an undisturbed run; at most two units per interruption are computed again;
no former owner of a stage commits anything after the next one began; no job and no process is left.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

from quadscape.stage.events import read_events
from quadscape.stage.lock import STALE_SECONDS, present_owner, process_is_alive
from tests.slurm.chain import SHARDED, SHARDS, BrokenPromiseError, Chain, Prepared, environment, require
from tests.slurm.cluster import BRIEF_MINUTES, GPUS, NODE_TIMEOUT, Cluster, Slot, ask, show_job, until

PATIENCE = 400.0
"""Seconds that anything may take at most, on a machine that is busy with other scenarios."""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"}
CONTROLLER = "quadscape-controller"


class ImpossibleError(Exception):
    """This event cannot be caused here; says why."""


@dataclass(frozen=True)
class Job:
    """A job as squeue tells it.

    Attributes:
        number: Its id.
        name: Its name.
        state: Its state.
        node: Where it runs or ran.
        comment: The rule.
    """

    number: str
    name: str
    state: str
    node: str
    comment: str


@dataclass
class Record:
    """What an event cost.

    Attributes:
        event: Its name.
        chain: What was being computed.
        seed: Of the moment.
        units: Of the whole chain.
        at: Units that were done when it happened.
        interruptions: How often work on a stage was cut off.
        lost: Units of which work was thrown away.
        resume: Seconds from the event until work went on; None where it never stopped.
        seconds: From the first command until all was done.
    """

    event: str
    chain: str
    seed: int
    units: int
    at: int = 0
    interruptions: int = 0
    lost: int = 0
    resume: float | None = None
    seconds: float = 0.0


@dataclass
class Scenario:
    """One checkout, one chain and three nodes, to be disturbed.

    Attributes:
        cluster: The cluster.
        slot: The nodes.
        prepared: The undisturbed run.
        directory: For the checkout.
        chain: What is computed.
        record: What is found.
        resources: What jobs ask for beside what the profile says, by rule.
        profile: Further keys of the profile.
    """

    cluster: Cluster
    slot: Slot
    prepared: Prepared
    directory: Path
    chain: Chain
    record: Record
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.checkout = self.prepared.copy(self.directory / "checkout", self.chain)
        self.checkout.write_profile(self.slot, self.resources, **self.profile)
        self.chance = random.Random(f"{self.record.event} {self.record.seed}")
        self.total = self.prepared.units[self.chain.name]
        self.log = self.directory / "commands.log"
        self.children: list[subprocess.Popen[bytes]] = []
        self.caused = 0.0
        self.began = time.monotonic()
        self.arguments = [self.chain.target, "--profile", "slurm", "--configfile", "tiny.yaml"]

    # -----------------------------------------------------------------------------------------------------------------
    # Commands

    def start_head(self) -> subprocess.Popen[bytes]:
        """`snakemake --profile slurm` for the chain."""
        child = self.checkout.launch(self.log, "snakemake", *self.arguments)
        self.children.append(child)
        return child

    def finish(self, head: subprocess.Popen[bytes]) -> None:
        """Waits for a head to end well."""
        try:
            code = head.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise BrokenPromiseError(f"the head has not ended after {PATIENCE:.0f} s\n{self.describe()}") from None
        require(code == 0, f"the head ended with exit code {code}\n{self.describe()}")

    def submit(self, *options: str) -> subprocess.CompletedProcess[str]:
        """`quadscape submit` for the chain; its exit code is not looked at."""
        done = subprocess.run(
            [sys.executable, "-m", "quadscape.cli", "submit", *options, "--", *self.arguments],
            cwd=self.checkout.path,
            env=environment(self.checkout.path),
            capture_output=True,
            text=True,
            timeout=120,
        )
        with self.log.open("a") as log:
            log.write(f"$ quadscape submit: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start_controller(self, *options: str) -> str:
        """Submits a controller to the scenario's third node, and tells its job's id."""
        done = self.submit("--partition", self.slot.lobby, *options)
        found = re.search(r"controller: SLURM job (\d+)", done.stdout)
        require(done.returncode == 0 and found, f"quadscape submit failed\n{self.describe()}")
        assert found is not None
        return found[1]

    def finish_controller(self, number: str) -> None:
        """Waits for a controller's job to end well."""
        self.wait(lambda: self.state(number) in ENDED, "the end of the controller")
        require(
            self.state(number) == "COMPLETED",
            f"the controller's job {number} is {self.state(number)}\n{self.describe()}",
        )

    # -----------------------------------------------------------------------------------------------------------------
    # Looking

    def wait(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        """Waits for a condition."""
        try:
            until(condition, seconds, what)
        except TimeoutError as error:
            raise BrokenPromiseError(f"{error}\n{self.describe()}") from None

    def jobs(self, ended: bool = False) -> list[Job]:
        """SLURM's jobs of this checkout."""
        found = []
        for line in ask("squeue", "-h", "-t", "all", "-o", "%i|%j|%T|%N|%k|%Z").splitlines():
            number, name, state, node, comment, directory = line.split("|", 5)
            if Path(directory) == self.checkout.path and (ended or state not in ENDED):
                found.append(Job(number, name, state, node, comment))
        return found

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` tells of a job."""
        return show_job(number)

    def state(self, number: str) -> str:
        """State of a job."""
        return self.job(number)["JobState"]

    def events(self) -> list[dict[str, Any]]:
        """Events of all stages of the chain."""
        return self.checkout.events(self.chain)

    def done(self) -> int:
        """Units that were committed."""
        return sum(event["event"] == "unit" for event in self.events())

    def at_work(self) -> tuple[int, str]:
        """Process and job that work on a stage now.

        Raises:
            BrokenPromiseError: There is none.
        """
        for directory in self.chain.stages:
            owner = present_owner(self.checkout.path / directory)
            if owner is not None and not owner.released and process_is_alive(owner.record.get("pid")):
                process = int(owner.record["pid"])
                starts = [e for e in self.checkout.stage_events(directory) if e["pid"] == process and "job" in e]
                if starts:
                    return process, str(starts[-1]["job"])
        raise BrokenPromiseError(f"nothing is at work where something should be\n{self.describe()}")

    def moment(self, earliest: float = 0.0, latest: float = 0.85) -> tuple[int, str]:
        """Waits for a random moment, between two shares of the chain's units.

        Returns:
            Process and job at work then.
        """
        units = self.chance.randint(max(1, int(earliest * self.total)), int(latest * self.total))
        self.wait(lambda: self.done() >= units, f"unit {units} of {self.total}")
        time.sleep(self.chance.uniform(0.0, 0.3))
        found: list[tuple[int, str]] = []

        def looks() -> bool:
            # Between two stages of a group nobody is at work for a while.
            with contextlib.suppress(BrokenPromiseError):
                found.append(self.at_work())
            return bool(found)

        self.wait(looks, "a stage at work")
        self.record.at = self.done()
        return found[0]

    def happens(self) -> None:
        """Remembers when the event was caused."""
        self.caused = time.time()

    def describe(self) -> str:
        """What helps to understand a failure."""
        logs = [self.log, *sorted((self.checkout.path / "logs").rglob("*.log"))]
        parts = [
            f"--- {path.name} of {path.parent.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:])
            for path in logs
            if path.exists()
        ]
        with contextlib.suppress(Exception):
            parts.append("--- jobs\n" + "\n".join(map(str, self.jobs(ended=True))))
        parts.append("--- events\n" + "\n".join(_short(event) for event in self.events() if event["event"] != "unit"))
        return "\n".join(parts)

    # -----------------------------------------------------------------------------------------------------------------
    # Disturbing

    def ends(self, process: int) -> None:
        """Waits for a script's end."""
        self.wait(lambda: not process_is_alive(process), "the end of the script", 120)

    def returns(self, number: str) -> None:
        """Waits until a requeued controller runs again, and remembers for how long."""
        began = time.time()
        self.wait(lambda: self.state(number) in {"RUNNING", "COMPLETED"}, "the controller's return")
        self.record.resume = time.time() - began

    def preempt(self, node: str, *request: str) -> None:
        """An urgent job takes a node, and is gone after a second."""
        number = ask(
            *("sbatch", "--parsable", "-p", "urgent", "-w", node, "--mem=10", "-D", "/", "-o", "/dev/null"),
            *(*request, "--wrap", "sleep 1"),
        ).strip()
        self.wait(lambda: self.state(number) == "COMPLETED", "the urgent job", 120)

    # -----------------------------------------------------------------------------------------------------------------
    # Checking

    def check(self) -> None:
        """Checks what must hold after every event, and completes the record."""
        self.record.seconds = time.monotonic() - self.began
        self.prepared.compare(self.checkout, self.chain)
        events = self.events()
        self._check_writers(events)
        self._count_lost()
        if self.caused and self.record.resume is None:
            known = {event["pid"] for event in events if event["time"] < self.caused}
            later = [e["time"] for e in events if e["event"] == "start" and e["pid"] not in known]
            if later:
                self.record.resume = min(later) - self.caused
        self.wait(lambda: not self.jobs(), "the end of all jobs", 60)
        self.wait(lambda: not self.processes(), "the end of all processes", 30)

    def _check_writers(self, events: list[dict[str, Any]]) -> None:
        """After one owner's first event in a stage, no former owner commits a unit."""
        for directory in self.chain.stages:
            owners: list[int] = []
            for event in events:
                if event["directory"] == directory and event["event"] == "unit":
                    if event["pid"] in owners[:-1]:
                        raise BrokenPromiseError(
                            f"two processes wrote {directory} in turns: {owners}\n{self.describe()}"
                        )
                    if event["pid"] not in owners:
                        owners.append(event["pid"])

    def _count_lost(self) -> None:
        """Compares what each attempt found done with what the one before had committed."""
        for directory in self.chain.stages:
            reached, total, working, left = 0, 0, False, False
            for event in self.checkout.stage_events(directory):
                if event["event"] == "start":
                    if working:
                        self.record.interruptions += 1
                        # One that was stored and one that was computed, and what was committed and not found again.
                        at_work = 0 if left else min(2, total - reached)
                        self.record.lost += max(0, reached + at_work - event["done"])
                    reached, total, working, left = event["done"], event["units"], True, False
                elif event["event"] == "unit":
                    reached = event["done"]
                elif event["event"] == "requeue":
                    left = True  # between two units
                elif event["event"] == "finish":
                    working = False
        require(
            self.record.lost <= 2 * self.record.interruptions,
            f"{self.record.lost} units were lost in {self.record.interruptions} interruptions\n{self.describe()}",
        )

    def processes(self) -> list[int]:
        """Processes whose working directory is the checkout."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and (entry / "cwd").readlink() == self.checkout.path:
                    found.append(int(entry.name))
        return found

    def tidy(self) -> None:
        """After a failure: ends everything of this scenario."""
        for job in self.jobs():
            with contextlib.suppress(Exception):
                ask("scancel", job.number)
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        states = self.cluster.node_states()
        for name in self.slot.workers:
            if states.get(name, "").startswith("down"):
                with contextlib.suppress(Exception):
                    self.cluster.start_node(name)


def _short(event: dict[str, Any]) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    rest = {key: value for key, value in event.items() if key not in {"time", "event", "host"}}
    return f"{when} {event['event']} {rest}"


# ---------------------------------------------------------------------------------------------------------------------
# Events of a job


@contextlib.contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Generator[None]:
    """Has a thread do something until the block is over, which its event says, or the process has ended."""
    over = threading.Event()

    def until_over() -> None:
        with contextlib.suppress(ProcessLookupError):
            work(over)

    thread = threading.Thread(target=until_over)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def hold(process: int, seconds: float, over: threading.Event) -> None:
    """Stops a process for so long."""
    os.kill(process, signal.SIGSTOP)
    over.wait(seconds)
    os.kill(process, signal.SIGCONT)


def slowly(process: int) -> contextlib.AbstractContextManager[None]:
    """Lets a script work a fiftieth of the time, so that it is not done before it is killed.

    SLURM looks at limits every 30 s, and only KillWait after SIGTERM, which the script does not get, comes SIGKILL.
    """

    def work(over: threading.Event) -> None:
        while not over.is_set():
            hold(process, 0.98, over)
            over.wait(0.02)

    return meanwhile(work)


def preemption(scenario: Scenario) -> None:
    """An urgent job takes the GPUs of the node; the job goes back to the queue."""
    head = scenario.start_head()
    process, number = scenario.moment(latest=0.3)  # early in a stage, which the grace time must not see done
    scenario.happens()
    with slowly(process):
        scenario.preempt(scenario.job(number)["NodeList"], f"--gres=gpu:{GPUS}")
    scenario.finish(head)
    require(int(scenario.job(number)["Restarts"]) >= 1, f"job {number} was not requeued\n{scenario.describe()}")


def requeue(scenario: Scenario) -> None:
    """`scontrol requeue`."""
    head = scenario.start_head()
    process, number = scenario.moment(latest=0.55)
    scenario.happens()
    with slowly(process):
        ask("scontrol", "requeue", number)
        scenario.ends(process)
    scenario.finish(head)
    require(int(scenario.job(number)["Restarts"]) >= 1, f"job {number} was not requeued\n{scenario.describe()}")


def node_failure(scenario: Scenario) -> None:
    """The node's daemon dies, the job is requeued; the old script, stopped for a while, wakes beside the new one."""
    head = scenario.start_head()
    process, number = scenario.moment(latest=0.5)
    node = scenario.job(number)["NodeList"]
    scenario.happens()
    scenario.cluster.kill_node(node)
    os.kill(process, signal.SIGSTOP)  # as a machine that hangs; else the new one waits until this one is done
    try:

        def taken_over() -> bool:
            starts = [event for event in scenario.events() if event["event"] == "start"]
            return any(event["pid"] != process and event["time"] > scenario.caused for event in starts)

        scenario.wait(taken_over, "the takeover", 3 * NODE_TIMEOUT + STALE_SECONDS + 120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
    scenario.ends(process)
    scenario.cluster.start_node(node)
    scenario.finish(head)
    last = [event["event"] for event in scenario.events() if event["pid"] == process][-1]
    require(last == "fenced", f"the old script ended with the event '{last}', not fenced\n{scenario.describe()}")


def time_limit(scenario: Scenario) -> None:
    """The job's time is over."""
    head = scenario.start_head()
    process, number = scenario.moment(latest=0.5)
    scenario.happens()
    # A moment ahead: SLURM refuses a time that has passed when it reads it.
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 5))
    ask("scontrol", "update", f"JobId={number}", f"EndTime={end}")
    with slowly(process):
        scenario.wait(lambda: scenario.state(number) in ENDED, "the time limit", 120)
    require(scenario.state(number) == "TIMEOUT", f"job {number} is {scenario.state(number)}\n{scenario.describe()}")
    scenario.finish(head)
    _check_next_asks_more(scenario, number, "TimeLimit")


def paced(scenario: Scenario, seconds: float, requeues: int) -> contextlib.AbstractContextManager[None]:
    """Has every unit of the chain take so much longer, whichever process computes it, until it has gone back."""

    def work(over: threading.Event) -> None:
        seen = 0
        while not over.wait(0.1):
            events = scenario.events()
            units = [event for event in events if event["event"] == "unit"]
            if sum(event["event"] == "requeue" for event in events) >= requeues:
                return
            if len(units) > seen and process_is_alive(units[-1]["pid"]):
                with contextlib.suppress(ProcessLookupError):
                    hold(units[-1]["pid"], seconds, over)
            seen = len(units)

    return meanwhile(work)


def time_runs_out(scenario: Scenario) -> None:
    """The partition gives a minute, and the stage takes more: it goes back into the queue, and no retry goes."""
    with paced(scenario, 5.0, requeues=2):
        scenario.finish(scenario.start_head())
    (job,) = scenario.jobs(ended=True)
    limit, restarts = scenario.job(job.number)["TimeLimit"], int(scenario.job(job.number)["Restarts"])
    require(limit == f"00:{BRIEF_MINUTES:02}:00", f"the job's limit was {limit}, not the partition's")
    requeued = [event for event in scenario.events() if event["event"] == "requeue"]
    require(
        restarts == len(requeued) >= 1,
        f"the stage went back {len(requeued)} times by itself, of {restarts}\n{scenario.describe()}",
    )


def cancelled(scenario: Scenario) -> None:
    """`scancel` of the job."""
    began, head = time.monotonic(), scenario.start_head()
    process, number = scenario.moment(latest=0.55)
    scenario.happens()
    with slowly(process):
        ask("scancel", number)
        scenario.ends(process)
        ended = time.monotonic()
        scenario.wait(lambda: len(scenario.jobs(ended=True)) > 1, "the next attempt")
    waited, interval = time.monotonic() - ended, _status_interval(ended - began)
    require(waited < 2 * interval, f"the head noticed after {waited:.0f} s, where it looks every {interval} s")
    scenario.finish(head)


def _status_interval(elapsed: float) -> int:
    """Seconds between two looks of a head at a moment of its life: it waits for 2, 12, 22, …"""
    interval = passed = 2
    while passed < elapsed:
        interval += 10
        passed += interval
    return interval


def script_killed(scenario: Scenario) -> None:
    """SIGKILL of the script, as by an administrator or the machine's own out-of-memory killer."""
    head = scenario.start_head()
    process, _ = scenario.moment()
    scenario.happens()
    os.kill(process, signal.SIGKILL)
    scenario.finish(head)


_GREEDY = """
import pathlib, sys, time
pathlib.Path(sys.argv[1], "cgroup.procs").write_text("0")
held = []
while True:
    held.append(bytearray(b"x") * (1 << 22))
    time.sleep(0.005)
"""


def out_of_memory(scenario: Scenario) -> None:
    """The job's memory is used up, and the kernel kills the script."""
    if scenario.cluster.no_cgroups:
        raise ImpossibleError(f"SLURM does not limit memory here: {scenario.cluster.no_cgroups}")
    head = scenario.start_head()
    process, number = scenario.moment(latest=0.5)
    os.kill(process, signal.SIGSTOP)  # or it is done before the kernel acts
    lines = Path(f"/proc/{process}/cgroup").read_text().splitlines()
    inner = next(line.split(":", 2)[2] for line in lines if line.split(":")[1] == "memory")
    group = Path(f"/sys/fs/cgroup/memory{inner}")
    job = next(path for path in [group, *group.parents] if path.name == f"job_{number}")
    # Not gigabytes of this machine: the limit comes to what is used, another process takes the rest, and the kernel
    # chooses the script.
    used = int((job / "memory.usage_in_bytes").read_text())
    (job / "memory.limit_in_bytes").write_text(str(used + (64 << 20)))
    Path(f"/proc/{process}/oom_score_adj").write_text("1000")
    scenario.happens()
    greedy = subprocess.Popen([sys.executable, "-c", _GREEDY, str(group)])
    try:
        until(lambda: not process_is_alive(process), 60, "the kernel's kill", poll=0.01)
    finally:
        greedy.kill()
        greedy.wait()
    scenario.wait(lambda: scenario.state(number) in ENDED, "the end of the job", 60)
    # The state is FAILED, and not OUT_OF_MEMORY, where the kernel's victim was in a step and not in the batch script.
    output = Path(scenario.job(number)["StdOut"]).read_text()
    require("oom-kill event" in output, f"SLURM did not notice that job {number} used up its memory\n{output}")
    scenario.finish(head)
    _check_next_asks_more(scenario, number, "MinMemoryNode")


def _check_next_asks_more(scenario: Scenario, number: str, key: str) -> None:
    later = [job.number for job in scenario.jobs(ended=True) if int(job.number) > int(number)]
    require(later, f"nothing was submitted after job {number}\n{scenario.describe()}")
    before, after = scenario.job(number)[key], scenario.job(later[0])[key]
    require(_amount(after) > _amount(before), f"the job asked for {key} {before}, its retry for {after}")


def _amount(text: str) -> float:
    """Minutes of a time, or megabytes of a size."""
    if ":" in text:
        days, _, clock = text.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60
    return float(text[:-1]) * {"M": 1, "G": 1024, "T": 1024**2}[text[-1]]


def finish_within_grace(scenario: Scenario) -> None:
    """The last units are done while an urgent job waits for the grace time to end."""
    head = scenario.start_head()
    process, number = scenario.moment(earliest=0.85, latest=0.9)
    scenario.happens()
    node = scenario.job(number)["NodeList"]
    scenario.preempt(node, f"--gres=gpu:{GPUS}")
    scenario.finish(head)
    own = [event["event"] for event in scenario.events() if event["pid"] == process]
    require(own[-1] == "finish", f"the script did not finish within the grace time\n{scenario.describe()}")


# ---------------------------------------------------------------------------------------------------------------------
# Events of the head and the controller


def head_killed(scenario: Scenario) -> None:
    """SIGKILL of the head; its job goes on, and `quadscape submit` waits for it."""
    head = scenario.start_head()
    scenario.moment(latest=0.5)
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()
    scenario.finish_controller(scenario.start_controller())


def head_interrupted(scenario: Scenario) -> None:
    """Control-C at the head, which cancels its job; then the same command."""
    head = scenario.start_head()
    process, _ = scenario.moment(latest=0.55)
    scenario.happens()
    with slowly(process):
        os.kill(head.pid, signal.SIGINT)
        scenario.ends(process)
    code = head.wait(PATIENCE)
    require(code != 0, f"an interrupted head ended with exit code 0\n{scenario.describe()}")
    scenario.wait(lambda: not scenario.jobs(), "the end of the head's jobs", 60)
    scenario.finish(scenario.start_head())


def controller_time_limit(scenario: Scenario) -> None:
    """The controller's time is over; it requeues itself, and the chain's job goes on."""
    number = scenario.start_controller("--minutes", "1")
    process, _ = scenario.moment(latest=0.5)
    restarts = _restarts(scenario, number)
    with slowly(process):
        scenario.wait(lambda: _restarts(scenario, number) > restarts, "the controller's time limit")
        scenario.returns(number)
    scenario.finish_controller(number)


def controller_preemption(scenario: Scenario) -> None:
    """An urgent job takes the controller's node; SLURM requeues the controller, and the chain's job goes on."""
    number = scenario.start_controller()
    process, _ = scenario.moment(latest=0.5)
    with slowly(process):
        scenario.preempt(scenario.slot.host, "--exclusive")
        require(_restarts(scenario, number), f"the controller was not requeued\n{scenario.describe()}")
        scenario.returns(number)
    scenario.finish_controller(number)


def _restarts(scenario: Scenario, number: str) -> int:
    job = scenario.job(number)
    require(job["JobState"] not in ENDED, f"the controller's job is {job['JobState']}\n{scenario.describe()}")
    return int(job["Restarts"])


def two_controllers(scenario: Scenario) -> None:
    """Two `quadscape submit` at the same moment, and a third while the work goes on."""
    command = ["quadscape.cli", "submit", "--partition", scenario.slot.lobby, "--", *scenario.arguments]
    twins = [scenario.checkout.launch(scenario.log, *command) for _ in range(2)]
    scenario.children += twins
    codes = sorted(twin.wait(PATIENCE) for twin in twins)
    require(codes[0] == 0, f"of two controllers submitted at once neither was taken: {codes}\n{scenario.describe()}")
    scenario.moment(latest=0.5)
    third = scenario.submit("--partition", scenario.slot.lobby)
    require(third.returncode == 1, f"a further controller was not refused\n{scenario.describe()}")
    controllers = [job for job in scenario.jobs(ended=True) if job.name == CONTROLLER]
    require(controllers, f"there is no controller\n{scenario.describe()}")
    for job in controllers:
        scenario.finish_controller(job.number)
    at_once = {event["job"] for event in scenario.events() if event["event"] in {"wait", "takeover"}}
    require(not at_once, f"two jobs met in a stage: {at_once}\n{scenario.describe()}")


def preempt_a_shard(cluster: Cluster, slot: Slot, prepared: Prepared, directory: Path) -> Record:
    """Three shards on two nodes, looked after by `sacct`; the one that is alone on its node is preempted.

    Args:
        cluster: The cluster, with accounting.
        slot: The nodes, this scenario's alone.
        prepared: The undisturbed run.
        directory: An empty one.

    Returns:
        What it cost.
    """
    record = Record("a shard is preempted", SHARDED.name, 1, prepared.units[SHARDED.name])
    status = {"slurm-status-command": "sacct"}
    scenario = Scenario(cluster, slot, prepared, directory, SHARDED, record, profile=status)
    shards = [scenario.checkout.path / stage for stage in SHARDED.stages[:SHARDS]]

    def at_work() -> bool:
        return all(any(event["event"] == "unit" for event in read_events(shard)) for shard in shards)

    try:
        head = scenario.start_head()
        scenario.wait(at_work, "three shards at work")
        starts = [next(event for event in read_events(shard) if event["event"] == "start") for shard in shards]
        nodes = [scenario.job(start["job"])["NodeList"] for start in starts]
        require(len({start["job"] for start in starts}) == SHARDS, f"shards share jobs: {starts}")
        require(set(nodes) == set(slot.workers), f"shards are on {nodes}, not on {slot.workers}")
        alone = next(start for start, node in zip(starts, nodes, strict=True) if nodes.count(node) == 1)
        scenario.happens()
        with slowly(alone["pid"]):
            scenario.preempt(scenario.job(alone["job"])["NodeList"], f"--gres=gpu:{GPUS}")
        scenario.finish(head)
        restarts = [int(scenario.job(start["job"])["Restarts"]) for start in starts]
        require(restarts == [int(start is alone) for start in starts], f"shards were restarted {restarts} times")
        scenario.check()
        states = ask("sacct", "-X", "-D", "-n", "-P", "-j", alone["job"], "-o", "State").split()
        known = len(states) == 2 and states[0] in {"PREEMPTED", "REQUEUED"} and states[1] == "COMPLETED"
        require(known, f"sacct tells of the preempted job: {states}")
    except BaseException:
        scenario.tidy()
        raise
    return record


EVENTS: dict[str, Callable[[Scenario], None]] = {
    "preemption": preemption,
    "requeue": requeue,
    "node failure": node_failure,
    "time limit": time_limit,
    "time runs out": time_runs_out,
    "scancel": cancelled,
    "script killed": script_killed,
    "out of memory": out_of_memory,
    "finish within grace": finish_within_grace,
    "head killed": head_killed,
    "head interrupted": head_interrupted,
    "controller time limit": controller_time_limit,
    "controller preemption": controller_preemption,
    "two controllers": two_controllers,
}
CUTS = {
    "preemption",
    "requeue",
    "node failure",
    "time limit",
    "time runs out",
    "scancel",
    "script killed",
    "out of memory",
    "head interrupted",
}
"""Events that cut a stage off; in the others it is done, or goes on."""
LONGEST = (
    "node failure",
    "time runs out",
    "finish within grace",
    "time limit",
    "controller time limit",
    "controller preemption",
    "two controllers",
    "head killed",
)
"""To be begun first, so that none of them is alone at the end."""
RESOURCES: dict[str, dict[str, Any]] = {
    "finish within grace": {"slurm_partition": "gpupatient"},
    "time runs out": {"slurm_partition": "brief"},
}
"""What an event's jobs ask for beside what the profile says."""
PROFILE: dict[str, dict[str, Any]] = {
    # sacct says otherwise than squeue that a job was cancelled.
    "scancel": {"slurm-status-command": "sacct"},
    "time runs out": {"retries": 0},
}
"""Further keys of the profile."""


def run_event(
    cluster: Cluster, slot: Slot, prepared: Prepared, directory: Path, event: str, chain: Chain, seed: int
) -> Record:
    """Runs one scenario.

    Args:
        cluster: The cluster.
        slot: The nodes, this scenario's alone.
        prepared: The undisturbed run.
        directory: An empty one.
        event: Name of the event.
        chain: What is computed.
        seed: Of the moment of interruption.

    Returns:
        What it cost.
    """
    record = Record(event, chain.name, seed, prepared.units[chain.name])
    resources = {chain.rule: RESOURCES[event]} if event in RESOURCES else {}
    profile = dict(PROFILE.get(event, {}))
    if not cluster.accounting:
        profile.pop("slurm-status-command", None)
    scenario = Scenario(cluster, slot, prepared, directory, chain, record, resources, profile)
    try:
        EVENTS[event](scenario)
        scenario.check()
        cut = record.interruptions > 0 or event not in CUTS
        require(cut, f"nothing was interrupted, so this showed nothing\n{scenario.describe()}")
        return record
    except BaseException:
        scenario.tidy()
        raise


class Pool:
    """Runs scenarios, as many at a time as there are nodes for: most of their time is waiting."""

    def __init__(self, cluster: Cluster, slots: Sequence[Slot], prepared: Prepared, directory: Path) -> None:
        self._cluster, self._prepared, self._directory = cluster, prepared, directory
        self._free: Queue[Slot] = Queue()
        for slot in slots:
            self._free.put(slot)
        self._threads = ThreadPoolExecutor(len(slots))

    def submit(self, event: str, chain: Chain, seed: int) -> Future[Record]:
        """Queues a scenario."""
        return self._threads.submit(self._run, event, chain, seed)

    def _run(self, event: str, chain: Chain, seed: int) -> Record:
        directory = self._directory / f"{event} {chain.name} {seed}".replace(" ", "-")
        directory.mkdir()
        slot = self._free.get()
        try:
            return run_event(self._cluster, slot, self._prepared, directory, event, chain, seed)
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """Waits for what runs; what has not begun is left."""
        self._threads.shutdown(cancel_futures=True)
