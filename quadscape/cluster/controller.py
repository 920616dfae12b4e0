"""The controller: keeps a Snakemake head at work for days, as a small SLURM job or as a process of this machine.

At every start, the first and each after a time limit, a preemption or a lost node, it does the same: it takes the
directory's controller lock, waits until the jobs that a killed head has left behind are done, unlocks the directory and
runs the head with `--rerun-incomplete`. So it may be killed at any moment. submitit submits it and requeues it at its
time limit; after preemption and node failure SLURM itself does.

    .quadscape/controller/          state.json, the lock, and what submitit keeps
    logs/controller/<job>.log       what it and the head say
"""

import contextlib
import ctypes
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from submitit.helpers import DelayedSubmission

from quadscape.amounts import format_seconds
from quadscape.cluster.heads import MARK, PLACE, find_heads, is_alive, kill_leftovers, last_head, read_json, write_json
from quadscape.cluster.slurm import CONTROLLER_NAME, Job, cancel_jobs, list_jobs, requeue_job
from quadscape.durable import create
from quadscape.errors import ClusterError, FencedError
from quadscape.results.status import owner_lives
from quadscape.stage.lock import HEARTBEAT_SECONDS, REMIND_SECONDS, STALE_SECONDS, Lock, process_is_alive

Phase = Literal["at work", "finished", "failed", "stopped"]

TOLD_TO_END = "told to end"
"""How what a controller does is called once SLURM is about to end it."""

_LOOK_SECONDS = 15.0
"""How often the running head's jobs are looked through for what the head itself would not notice."""
_END_SECONDS = 3600.0
_TAIL = 15


def directory_of(root: Path) -> Path:
    """Where the controller of a working directory keeps its state."""
    return root / PLACE / "controller"


def log_of(root: Path, job: str) -> Path:
    """The log of a controller, and of its head."""
    return root / "logs/controller" / f"{job}.log"


# ---------------------------------------------------------------------------------------------------------------------
# State


@dataclass(frozen=True)
class State:
    """What a controller last wrote about itself.

    Attributes:
        label: For people: `SLURM job 17` or `process 4711 on node3`.
        log: What it and its head say, relative to the working directory.
        host: Where it runs.
        since: First start, in seconds since 1970.
        starts: How often it has started.
        phase: at work; finished; failed; stopped by a person.
        activity: What it does or how it ended, in words.
        updated: When that was written, in seconds since 1970.
        arguments: Snakemake's.
        tail: Last lines of the log when the head failed.
    """

    label: str
    log: str
    host: str
    since: float
    starts: int
    phase: Phase
    activity: str
    updated: float
    arguments: tuple[str, ...]
    tail: tuple[str, ...] = ()


def read_state(root: Path) -> State | None:
    """What the last controller of a working directory wrote about itself; None when there was none."""
    record = read_json(directory_of(root) / "state.json")
    if not {field.name for field in fields(State)} <= record.keys():
        return None
    record = {field.name: record[field.name] for field in fields(State)}
    return State(**(record | {"arguments": tuple(record["arguments"]), "tail": tuple(record["tail"])}))


def find_controller(root: Path) -> str:
    """The controller that is queued or at work in a working directory.

    Args:
        root: The working directory.

    Returns:
        Its name for people, empty when there is none; a `ClusterError` when SLURM does not answer.
    """
    found = find_process(root)
    if found:
        return found
    controllers = [job for job in list_jobs(root) if job.name == CONTROLLER_NAME and job.active]
    return f"SLURM job {controllers[0].id}" if controllers else ""


def find_process(root: Path) -> str:
    """The controller that is at work in a working directory, as far as files and processes tell.

    Args:
        root: The working directory.

    Returns:
        Its name for people, empty when there is none.
    """
    directory = directory_of(root)
    if owner_lives(directory):
        state = read_state(root)
        return state.label if state is not None and state.phase == "at work" else "a process"
    started = read_json(directory / "started.json")
    if started and is_alive(started, directory):
        return f"process {started['pid']} on {started['host']}"
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# At work


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Leaves out what tells a process that it is a job: a job submitted from there would inherit limits and numbers.

    Args:
        environment: Environment variables.

    Returns:
        The others; `SLURM_CONF` stays, which tells where the cluster is.
    """
    prefixes = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SUBMITIT_")
    return {name: value for name, value in environment.items() if name == "SLURM_CONF" or not name.startswith(prefixes)}


def _signal_at_parents_death(number: int) -> None:
    """Asks Linux to send this process a signal when its parent dies, however it dies."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, number)


def _tail(log: Path, offset: int) -> tuple[str, ...]:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(offset)
        lines = file.read()[-20000:].decode(errors="replace").splitlines()
        return tuple(line.rstrip() for line in lines if line.strip())[-_TAIL:]
    return ()


def _told(job: Job) -> str:
    """State of a job, and of another user's whose it is: only that one can cancel it."""
    if not job.user:
        return job.state.lower()
    never = f", can never start ({job.reason}), and only {job.user} can cancel it" if job.never_starts else ""
    return f"{job.state.lower()} (of {job.user}{never})"


class Controller:
    """What submitit runs. Pickled, so all that it has before it is called are plain values.

    Attributes:
        root: The workflow's working directory.
        arguments: Snakemake's.
        kind: Whether it is a SLURM job, or a process of this machine.
        needs_slurm: Whether the head sends its jobs to SLURM; then silence of SLURM is no reason to go on.
        devices: CUDA_VISIBLE_DEVICES for the head, None for none.
    """

    # The time limit may come before the first line of __call__.
    _head: subprocess.Popen[bytes] | None = None
    _lock: Lock | None = None
    _told_to_end = False

    def __init__(
        self,
        root: str,
        arguments: Sequence[str],
        kind: Literal["slurm", "local"],
        needs_slurm: bool,
        devices: str | None,
    ) -> None:
        self.root, self.arguments, self.kind = root, tuple(arguments), kind
        self.needs_slurm, self.devices = needs_slurm, devices

    def __call__(self) -> None:
        """Works until the head has finished.

        Raises:
            SystemExit: The head has failed, or this controller was told to stop or has lost its directory.
        """
        os.chdir(self.root)
        self._root = Path(self.root)
        directory = directory_of(self._root)
        directory.mkdir(parents=True, exist_ok=True)
        lock = self._lock = Lock(directory, HEARTBEAT_SECONDS, STALE_SECONDS)
        self._begin()
        code = 1
        try:
            lock.acquire(self._say, lambda _, **__: None)
            code = self._work()
        except FencedError:
            self._say("Another controller has taken over this directory; this one ends.")
        finally:
            self._kill_head()
            lock.release()
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit calls at the time limit: ends the head, not its jobs, and is queued again.

        Returns:
            The same controller.
        """
        # SIGKILL: on SIGTERM a head waits for its jobs, on SIGINT it cancels them.
        self._kill_head()
        if self._lock is not None:
            if self._lock.is_mine():
                self._report("at work", "queued again after its time limit")
            self._lock.release()
        self._say("The time limit has come: the head is killed, its jobs go on, and this controller is queued again.")
        return DelayedSubmission(Controller(self.root, self.arguments, self.kind, self.needs_slurm, self.devices))

    # Beginning

    def _begin(self) -> None:
        host = socket.gethostname()
        if self.kind == "slurm":
            number = os.environ["SLURM_JOB_ID"]
            label, self._log = f"SLURM job {number}", log_of(self._root, number)
            # SLURM decides what follows: preempted, it requeues this job only if that has not ended by itself.
            signal.signal(signal.SIGTERM, self._note)
        else:
            number = os.environ["SUBMITIT_LOCAL_JOB_ID"]
            label, self._log = f"process {number} on {host}", log_of(self._root, f"{host}-{number}")
            self._log.parent.mkdir(parents=True, exist_ok=True)
            descriptor = create(self._log, os.O_WRONLY | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            signal.signal(signal.SIGTERM, self._stop)
            # The process whose number the user was told is submitit's, the parent of this one.
            _signal_at_parents_death(signal.SIGTERM)
        # A kill while submitit wrote its pickle would otherwise be an error at the next time limit.
        for leftover in directory_of(self._root).glob(f"{number}*.save_tmp"):
            leftover.unlink(missing_ok=True)
        last, now, log = read_state(self._root), time.time(), str(self._log.relative_to(self._root))
        since, starts = now, 1
        if last is not None and last.label == label and last.phase == "at work":
            since, starts = last.since, last.starts + 1
        self._state = State(label, log, host, since, starts, "at work", "starting", now, self.arguments)
        command = shlex.join(["snakemake", *self.arguments])
        self._say(f"The controller of {self.root} starts on {host} as {label}, for: {command}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told_to_end = True
        self._say("Told to end (preempted or cancelled); SLURM queues this controller again if it was preempted.")
        if self._lock is not None and self._lock.is_mine():
            self._report("at work", f"{TOLD_TO_END} (preempted or cancelled)")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._kill_head()
        self._say("Told to stop: the head is ended. `quadscape submit` goes on from here.")
        if self._lock is not None and self._lock.is_mine():
            self._report("stopped", "stopped by SIGTERM")
        raise SystemExit(128 + signal.SIGTERM)

    def _say(self, message: str) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} [controller] {message}", flush=True)

    def _report(self, phase: Phase, activity: str, **more: Any) -> None:
        self._state = replace(self._state, phase=phase, activity=activity, updated=time.time(), **more)
        with contextlib.suppress(OSError):
            write_json(directory_of(self._root) / "state.json", asdict(self._state))

    def _check_lock(self) -> None:
        """Ends this controller when another has taken over; a file system that stutters is no reason."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock.check()

    # Working

    def _work(self) -> int:
        """Runs heads until one has come to its end; its exit code."""
        while True:
            killed = kill_leftovers(self._root)
            if killed:
                self._say(f"Killed {killed} processes on this machine that a killed head had left.")
            self._wait_for("head started by hand", self._heads)
            self._wait_for("orphan", self._orphans)
            self._report("at work", "unlocking the directory")
            offset = self._log.stat().st_size
            unlock = [*self._command(), "--unlock"]
            code = subprocess.run(unlock, env=self._environment(), stdin=subprocess.DEVNULL).returncode
            if code:
                return self._failed("snakemake --unlock", code, offset)
            names = {job.name for job in self._jobs()}
            offset = self._log.stat().st_size
            ended = self._run_head(names)
            if ended is None:
                continue
            if ended:
                return self._failed("snakemake", ended, offset)
            self._report("finished", "finished: snakemake ended with code 0")
            self._say("snakemake ended with code 0.")
            return 0

    def _failed(self, what: str, code: int, offset: int) -> int:
        if self._told_to_end:
            # A head that was itself told to end is no failure: this job is about to be killed, and perhaps requeued.
            most = format_seconds(_END_SECONDS)
            self._say(f"{what} has ended; waiting for SLURM to end this job, for {most} at most.")
            time.sleep(_END_SECONDS)
        tail = _tail(self._log, offset)
        end = f"ended with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
        self._report("failed", f"failed: {what} {end}", tail=tail)
        self._say(f"{what} {end}; nothing is repeated, since the next one may end alike.")
        return code if 0 < code < 128 else 1

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "snakemake", *self.arguments]

    def _environment(self) -> dict[str, str]:
        environment = clean_environment(os.environ)
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        if self.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices
        return environment | {MARK: self.root}

    def _jobs(self) -> list[Job]:
        """This directory's jobs; waits until SLURM answers, unless the head has nothing to do with it."""
        said = -math.inf
        while True:
            try:
                return list_jobs(self._root)
            except ClusterError as error:
                if not self.needs_slurm:
                    return []
                if time.monotonic() - said > REMIND_SECONDS:
                    self._report("at work", f"waiting for SLURM: {error}")
                    self._say(f"Waiting for SLURM: {error}")
                    said = time.monotonic()
                self._check_lock()
                time.sleep(_LOOK_SECONDS)

    def _heads(self) -> list[str]:
        """Heads started by hand, on this machine; of another user's process only its own record tells."""
        found = {head.pid: str(head) for head in find_heads(self._root)}
        last = last_head(self._root)
        if last is not None and last.state == "running" and not last.controlled:
            found.setdefault(last.pid, str(last))
        return list(found.values())

    def _orphans(self) -> list[str]:
        orphans = [job for job in self._jobs() if job.of_head and job.active]
        self._cancel_what_never_starts([job for job in orphans if not job.user])
        return [f"{job.id} {job.rule} {_told(job)}" for job in orphans]

    def _cancel_what_never_starts(self, jobs: Sequence[Job]) -> None:
        """A head waits for such jobs for ever; of one that was cancelled it says that it failed."""
        never = [job for job in jobs if job.never_starts]
        if never:
            self._say("Cancelling what can never start: " + ", ".join(f"{job.id} ({job.reason})" for job in never))
            with contextlib.suppress(ClusterError):
                cancel_jobs(never)

    def _wait_for(self, what: str, find: Callable[[], list[str]]) -> None:
        """Waits until nothing is found any more."""
        pause, began, at = 1.0, time.monotonic(), -math.inf
        said: list[str] = []
        while found := find():
            if found != said or time.monotonic() - at > REMIND_SECONDS:
                at = time.monotonic()
                activity = f"waiting for {len(found)} {what}{'' if len(found) == 1 else 's'}"
                self._report("at work", activity)
                since = f", for {format_seconds(at - began)}" if found == said else ""
                self._say(f"{activity.capitalize()}{since}: {', '.join(found)}")
                said = found
            self._check_lock()
            time.sleep(pause)
            pause = min(30.0, 1.5 * pause)

    def _run_head(self, former: set[str]) -> int | None:
        """Runs the head.

        Args:
            former: Names of jobs of former heads.

        Returns:
            Its exit code, or None when it had to be ended since it would wait for ever.
        """
        self._head = subprocess.Popen(
            [*self._command(), "--rerun-incomplete"],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _signal_at_parents_death(signal.SIGKILL),
        )
        self._report("at work", self._at_work())
        looked = time.monotonic()
        # Polled: Popen.wait would hold a lock that the handler of the time limit needs.
        while (code := self._head.poll()) is None:
            time.sleep(0.5)
            self._check_lock()
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                if self.needs_slurm and not self._revive(former):
                    self._kill_head()
                    return None
        # What it has left on this machine, if it was killed.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._head.pid, signal.SIGKILL)
        return code

    def _revive(self, former: set[str]) -> bool:
        """Looks after jobs that the head would wait for for ever, and says what all of them wait for.

        Preempted for good, they are put back into the queue: their head takes them for running. What can never start is
        cancelled.

        Args:
            former: Names of jobs of former heads.

        Returns:
            False when that cannot be done, and the head would wait for ever.
        """
        try:
            jobs = [job for job in list_jobs(self._root) if job.of_head and job.name not in former]
        except ClusterError:
            return True
        self._cancel_what_never_starts(jobs)
        self._tell_shared_limit([job for job in jobs if job.active])
        for job in jobs:
            if job.state == "PREEMPTED":
                try:
                    requeue_job(job)
                except ClusterError as error:
                    self._say(f"{error} Job {job.id} ({job.rule}) was preempted for good: starting the head again.")
                    return False
                self._say(f"Job {job.id} ({job.rule}) was preempted for good: it is put back into the queue.")
        return True

    def _at_work(self) -> str:
        return "head running" if self._head is None else f"head running (process {self._head.pid})"

    def _tell_shared_limit(self, active: Sequence[Job]) -> None:
        """Says it where every job waits for a share of its QOS or account: this controller may hold all of that."""
        activity = self._at_work()
        if self.kind == "slurm" and active and all(job.waits_for_others for job in active):
            reasons = ", ".join(sorted({job.reason for job in active}))
            activity += f"; its jobs wait ({reasons})"
            if self._state.activity != activity:
                self._say(
                    f"All jobs wait ({reasons}). If the limit is on jobs at a time, this controller's own job may hold "
                    "the last that you may have: cancel it, and submit it with --qos to another QOS, or with --local "
                    "on a machine where processes may stay."
                )
        if self._state.activity != activity:
            self._report("at work", activity)

    def _kill_head(self) -> None:
        """Ends the head and what runs below it on this machine; safe in a signal handler."""
        head = self._head
        if head is None or head.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(head.pid, signal.SIGKILL)
        end = time.monotonic() + 10
        while process_is_alive(head.pid) and time.monotonic() < end:
            time.sleep(0.05)
