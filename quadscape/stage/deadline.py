"""When SLURM ends this process's job, and how the job goes back into the queue before that.

Only a job that Snakemake's plugin submitted is asked to: another's script may do what must not be done twice.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from functools import cache
from math import inf

from quadscape.errors import StageError

SUBMITTED_JOB = "QUADSCAPE_SLURM_JOB"
"""Environment variable: the number of the SLURM job, in jobs that a head of this workflow has submitted."""

MARGIN_SECONDS = 10.0
UNITS = 1.5
"""Time left for one more unit, in units as long as the longest so far; a file system may be slower than before."""

_TIMEOUT_SECONDS = 20.0
_OVERDUE_SECONDS = 300.0


def submitted_job() -> str:
    """The number of this process's SLURM job, where a head of this workflow has submitted it; otherwise empty."""
    number = os.environ.get(SUBMITTED_JOB, "")
    return number if number and number == os.environ.get("SLURM_JOB_ID") else ""


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Raises an OSError or a SubprocessError where SLURM does not answer."""
    # Times as SLURM's manuals have them, whatever the user prefers.
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT_SECONDS,
        env=environment,
    )


def _end_in_queue(job: str) -> float | None:
    """When a job ends as the queue has it, which an administrator may have changed; None: it does not say."""
    try:
        return time.mktime(
            time.strptime(_ask("squeue", "-h", "-j", job, "-o", "%e").stdout.strip(), "%Y-%m-%dT%H:%M:%S")
        )
    except (OSError, subprocess.SubprocessError, ValueError, OverflowError):
        return None


@cache
def _end_at_start(job: str, given: str) -> float:
    """When a job ends as far as is known when it begins; asked once in a process, whatever stages it has."""
    if given.isdecimal() and int(given):
        return float(given)
    found = _end_in_queue(job)
    return inf if found is None else found


@contextlib.contextmanager
def _deaf_to_sigterm() -> Generator[None, None, None]:
    """SLURM may send SIGTERM while what is held is not yet given away; SIGKILL comes `KillWait` later."""
    try:
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Deadline:
    """The end of this process's job, as a stage that computes unit after unit sees it."""

    def __init__(self) -> None:
        """Looks when that is."""
        self._job = submitted_job()
        self._end = _end_at_start(self._job, os.environ.get("SLURM_JOB_END_TIME", "")) if self._job else inf
        self._longest = 0.0

    def comes_before(self, seconds: float) -> bool:
        """Whether what is left may not be enough for one more unit.

        Args:
            seconds: How long the last unit took.

        Returns:
            Whether the job had better go back into the queue now.
        """
        self._longest = max(self._longest, seconds)
        if time.time() < self._latest():
            return False
        found = _end_in_queue(self._job)
        self._end = self._end if found is None else found
        return time.time() >= self._latest()

    def _latest(self) -> float:
        """Until when one more unit may begin."""
        return self._end - UNITS * self._longest - MARGIN_SECONDS

    def describe(self) -> str:
        """What is left, in words."""
        return (
            f"{max(0.0, self._end - time.time()):.0f} s are left of SLURM job {self._job}, and a unit takes up to "
            f"{self._longest:.0f} s"
        )

    def requeue(self, release: Callable[[], None]) -> str:
        """Asks SLURM to put the job back into its queue, once.

        Args:
            release: Gives away what this process holds, called where SLURM does so and will end it in a moment.

        Returns:
            Why it does not; empty where it does.
        """
        with _deaf_to_sigterm():
            try:
                done = _ask("scontrol", "requeue", self._job)
                refused = (" ".join(done.stderr.split()) or f"exit code {done.returncode}") if done.returncode else ""
            except (OSError, subprocess.SubprocessError) as error:
                refused = " ".join(str(error).split())
            if refused:
                self._end = inf
            else:
                release()
        return refused

    def wait(self) -> None:
        """Waits for SLURM to end this process: if it ended by itself, Snakemake would take the job for a failed one.

        Raises:
            StageError: SLURM has put the job back into its queue and lets it run all the same.
        """
        time.sleep(max(0.0, self._end - time.time()) + _OVERDUE_SECONDS)
        raise StageError(
            f"SLURM has taken the request to put job {self._job} back into its queue, and has not ended it since; run "
            "the same command again."
        )
