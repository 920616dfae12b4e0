"""What SLURM tells of the jobs of a working directory, and the few things asked of it.

Every call has a time limit, and what cannot be read is an error, never "no jobs": whoever unlocks a directory relies on
it. A machine without SLURM is no error; it has no jobs.
"""

import contextlib
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quadscape.errors import ClusterError

JOB_PREFIX = "quadscape_"
"""How the names of jobs of a Snakemake head begin: `slurm-jobname-prefix` in profiles/slurm, and Snakemake's `_`."""
CONTROLLER_NAME = "quadscape-controller"
TIMEOUT_SECONDS = 20.0

_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
# Limits of a job, a partition or an account that waiting does not change; held after failed launches. Not
# JobHeldUser and JobHeldAdmin: a person has done that, and can undo it.
_NEVER = re.compile(
    r"DependencyNeverSatisfied|BadConstraints|Partition(Node|Time)Limit|AccountNotAllowed|Invalid(Account|QOS)"
    r"|QOSNotAllowed|JobHoldMaxRequeue|launch[ _]failed[ _]requeued[ _]held|(QOS|Assoc)Max\w*PerJob\w*"
)

# What a QOS or an account lets its users have at a time.
_SHARED = re.compile(r"(QOS|Assoc)(Max|Grp)\w+")


@dataclass(frozen=True)
class Job:
    """A SLURM job of a working directory.

    Attributes:
        id: As SLURM numbers it.
        name: For jobs of a head: prefix and a random name of that head, the same for all its jobs.
        state: SLURM's word, for example `PENDING`.
        reason: Why it waits, for example `Priority`.
        partition: Where it was submitted to.
        nodes: Where it runs or ran.
        rule: Rule or group, and wildcards, where Snakemake's comment tells; otherwise empty.
        restarts: How often SLURM has put it back into the queue.
        user: Whose it is; empty where it is this user's own.
    """

    id: str
    name: str
    state: str
    reason: str = ""
    partition: str = ""
    nodes: str = ""
    rule: str = ""
    restarts: int = 0
    user: str = ""

    @property
    def active(self) -> bool:
        """Whether it is queued, running, or coming to its end."""
        return self.state not in _ENDED

    @property
    def queued(self) -> bool:
        """Whether it waits for its turn."""
        return self.state in {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}

    @property
    def never_starts(self) -> bool:
        """Whether it waits for what cannot come."""
        return self.queued and _NEVER.fullmatch(self.reason) is not None

    @property
    def waits_for_others(self) -> bool:
        """Whether it waits until other jobs of this user, or of the account, end."""
        return self.queued and _SHARED.fullmatch(self.reason) is not None and not self.never_starts

    @property
    def of_head(self) -> bool:
        """Whether a Snakemake head of this project submitted it."""
        return self.name.startswith(JOB_PREFIX)

    @property
    def rule_name(self) -> str:
        """Rule or group without wildcards."""
        return self.rule.partition(" ")[0]


def is_available() -> bool:
    """Whether this machine has SLURM's commands."""
    return shutil.which("squeue") is not None


def ask(*command: str) -> str:
    """What one of SLURM's commands prints.

    Args:
        command: With its arguments.

    Returns:
        Its output.

    Raises:
        ClusterError: It fails, or does not answer in time.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"SLURM's {command[0]} did not answer within {TIMEOUT_SECONDS:.0f} s.") from None
    except OSError as error:
        raise ClusterError(f"SLURM's {command[0]} cannot be run: {error.strerror}.") from None
    if done.returncode:
        message = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ClusterError(f"SLURM's {command[0]} failed: {message.rstrip('.')}.")
    return done.stdout


def _rule(comment: str) -> str:
    """Snakemake's comment `rule_train_wildcards_a` as `train a`."""
    if not comment.startswith("rule_"):
        return ""
    rule, _, wildcards = comment.removeprefix("rule_").partition("_wildcards_")
    return f"{rule} {wildcards}".rstrip()


def rule_of_log(path: Path) -> str:
    """Rule or group and wildcards of a job, from the path of its log.

    Args:
        path: `…/rule_train/a/17.log`, which is where Snakemake's plugin has SLURM put it.

    Returns:
        As `Job.rule`; empty where the path tells none.
    """
    *_, kind, wildcards, _ = ("", "", "", *path.parts)
    if not kind.startswith(("rule_", "group_")):
        kind, wildcards = wildcards, ""
    if not kind.startswith(("rule_", "group_")):
        return ""
    return f"{kind.removeprefix('rule_')} {wildcards}".rstrip()


def _parse(output: str, root: Path, command: str) -> list[Job]:
    """Jobs of a working directory from lines `id|state|reason|partition|nodes|name|directory|comment`."""
    found = []
    for line in output.splitlines():
        if not line.strip():
            continue
        fields = line.split("|")
        if len(fields) < 8 or not re.fullmatch(r"\d+\S*", fields[0]) or not re.match(r"[A-Z_]+\b", fields[1]):
            raise ClusterError(f"SLURM's {command} gave a line that is none of its jobs: '{line[:80]}'.")
        number, state, reason, partition, nodes, name = fields[:6]
        directory, comment = "|".join(fields[6:-1]), fields[-1]
        if name != CONTROLLER_NAME and not name.startswith(JOB_PREFIX):
            continue
        if os.path.realpath(directory) == os.path.realpath(root):
            state = state.split()[0]  # sacct: "CANCELLED by 1000"
            found.append(Job(number, name, state, reason, partition, nodes, _rule(comment)))
    return found


def _user_name(number: int) -> str:
    """The name of a user; empty where it is not known, and SLURM would take the number for an error."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return ""


def _users(root: Path) -> str:
    """Whose jobs are asked for: this user's, and those of whoever has left logs or records of heads there."""
    found = set()
    for pattern in (".snakemake/log/*.log", ".quadscape/*", ".quadscape/controller/*.json"):
        for path in root.glob(pattern):
            with contextlib.suppress(OSError):
                found.add(path.stat().st_uid)
    others = sorted(number for number in found - {os.getuid()} if _user_name(number))
    return ",".join(map(str, [os.getuid(), *others]))


def list_jobs(root: Path) -> list[Job]:
    """The jobs of a working directory, also of others who share it, that SLURM still has in its queue's memory.

    Args:
        root: The working directory.

    Returns:
        Controllers and jobs of heads, active and lately ended; none where there is no SLURM.

    Raises:
        ClusterError: It does not answer, or not with jobs.
    """
    if not is_available():
        return []
    common = ("squeue", "--noheader", "--states=all", f"--user={_users(root)}")
    try:
        output = ask(*common, "--format=%i|%T|%r|%P|%N|%j|%Z|%k")
    except ClusterError as error:
        if "configuration source" in str(error):  # the commands are installed, but there is no cluster
            return []
        raise
    jobs = _parse(output, root, "squeue")
    if not jobs:
        return []
    more: dict[str, list[str]] = {}
    for line in ask(*common, "--Format=JobID:30,RestartCnt:12,UserName:40,STDOUT:2000").splitlines():
        number, *words = line.split(maxsplit=3) or [""]
        more[number] = words
    own, found = _user_name(os.getuid()), []
    for job in jobs:
        restarts, user, log = (*more.get(job.id, []), "", "", "")[:3]
        changed = replace(job, restarts=int(restarts) if restarts.isdecimal() else 0, user="" if user == own else user)
        found.append(replace(changed, rule=job.rule or rule_of_log(Path(log.strip()))))
    return found


def list_recorded_jobs(root: Path) -> list[Job]:
    """The jobs of the last seven days that SLURM's accounting has recorded.

    Args:
        root: The working directory.

    Returns:
        Like `list_jobs`, longer remembered; none where accounting does not run or does not answer.
    """
    if shutil.which("sacct") is None:
        return []
    columns = "JobIDRaw,State,Reason,Partition,NodeList,JobName,WorkDir,Comment"
    try:
        output = ask(
            *("sacct", "--allocations", "--noheader", "--parsable2", f"--format={columns}"),
            *("--starttime=now-7days", f"--user={_users(root)}"),
        )
        return _parse(output, root, "sacct")
    except ClusterError:
        return []


def cancel_jobs(jobs: Sequence[Job]) -> None:
    """Cancels jobs."""
    ask("scancel", *(job.id for job in jobs))


def requeue_job(job: Job) -> None:
    """Puts a job, running or ended, back into the queue; its head goes on to wait for it."""
    ask("scontrol", "requeue", job.id)


def partition_minutes() -> dict[str, int]:
    """The longest time that each partition gives a job.

    Returns:
        Whole minutes by name, without partitions that have no limit; nothing where SLURM does not answer.
    """
    try:
        lines = ask("sinfo", "--noheader", "--format=%R|%l").splitlines()
    except ClusterError:
        return {}
    found = {}
    for name, _, text in (line.strip().partition("|") for line in lines):
        minutes = minutes_of(text)
        if name and minutes is not None:
            found[name] = minutes
    return found


def minutes_of(text: str) -> int | None:
    """A time limit as SLURM writes it.

    Args:
        text: `[days-]hours:minutes:seconds`, `minutes:seconds` or `days-hours`.

    Returns:
        Whole minutes; None for no limit.
    """
    days, dash, clock = text.rpartition("-")
    words = clock.split(":")
    if not all(word.isdecimal() for word in words) or len(words) > 3 or (dash and not days.isdecimal()):
        return None
    numbers = [int(word) for word in words]
    if dash:
        hours, minutes = (*numbers, 0)[:2]
    else:
        hours, minutes = (0, *numbers)[-3:-1] if len(numbers) > 1 else (0, numbers[0])
    return (int(days or 0) * 24 + hours) * 60 + minutes
