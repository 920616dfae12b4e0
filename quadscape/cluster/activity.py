"""Who is at work in a working directory: its controller, its Snakemake head, and their jobs in SLURM."""

import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quadscape.cluster.controller import TOLD_TO_END, State, find_process, read_state
from quadscape.cluster.heads import Head, find_heads, last_head
from quadscape.cluster.job_logs import rule_of_job
from quadscape.cluster.slurm import CONTROLLER_NAME, Job, is_available, list_jobs, list_recorded_jobs
from quadscape.errors import ClusterError
from quadscape.results.status import AT_WORK, StageStatus
from quadscape.results.status import State as StageState


@dataclass(frozen=True)
class Activity:
    """What can be told from this machine.

    Attributes:
        process: The controller that has begun its work and lives; empty when there is none.
        state: What the last controller wrote about itself.
        controllers: Controllers' jobs that SLURM has queued or running.
        heads: Living heads on this machine that were started by hand.
        last: The head that last began to run jobs.
        jobs: Jobs of heads that SLURM knows, active and ended.
        silence: Why SLURM did not answer; empty when it did, or when it has no part in this directory's work.
    """

    process: str
    state: State | None
    controllers: tuple[Job, ...]
    heads: tuple[Head, ...]
    last: Head | None
    jobs: tuple[Job, ...]
    silence: str

    @property
    def active(self) -> list[Job]:
        """Jobs of heads that are queued or running."""
        return [job for job in self.jobs if job.active]

    @property
    def head_lives(self) -> bool:
        """Whether a head waits for its jobs, as far as this machine can tell."""
        controlled = self.process and self.state is not None and self.state.activity.startswith("head running")
        return bool(controlled or self.heads or (self.last is not None and self.last.state == "running"))

    @property
    def head_is_out_of_sight(self) -> bool:
        """Whether the last head was started by hand on another machine, and has left no word of its end."""
        return self.last is not None and self.last.state == "unknown" and not self.last.controlled

    @property
    def orphans(self) -> list[Job]:
        """Active jobs that no head waits for."""
        return [] if self.head_lives or self.head_is_out_of_sight else self.active

    @property
    def preempted(self) -> list[Job]:
        """Jobs that SLURM preempted for good, while their head takes them for running."""
        name = self.last.run_name if self.last is not None and self.head_lives else ""
        return [job for job in self.jobs if job.state == "PREEMPTED" and job.name == name]

    @property
    def controller_goes_on(self) -> bool:
        """Whether a controller is queued, or at work and not about to end."""
        labels = {f"SLURM job {job.id}" for job in self.controllers if job.state == "COMPLETING"}
        state = self.state
        if state is not None and (state.phase != "at work" or state.activity.startswith(TOLD_TO_END)):
            labels |= {state.label, self.process}
        return any(name not in labels for name in filter(None, [self.process, *map(_label, self.controllers)]))

    @property
    def at_work(self) -> bool:
        """Whether a controller, a head or a job is queued or running; not one that can never start."""
        living = [job for job in self.active if not job.never_starts]
        return bool(self.process or self.controllers or self.head_lives or living)

    @property
    def ended_badly(self) -> bool:
        """Whether the last controller or head, whichever came later, failed, was killed or was stopped."""
        ends = []
        if self.state is not None:
            ends.append((self.state.updated, self.state.phase != "finished"))
        if self.last is not None:
            ends.append((self.last.updated, self.last.state != "finished"))
        return max(ends)[1] if ends else False

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever begun here, as far as is known."""
        return not (self.at_work or self.state or self.last or self.jobs)

    def exit_code(self, stages: Sequence[StageStatus]) -> int:
        """What `quadscape status` returns to scripts.

        Args:
            stages: All long stages that have begun.

        Returns:
            0 when all that has begun is complete, 3 while something is queued or running, 4 when nothing is at work and
            something is unfinished or the last head did not end well, 1 when SLURM does not answer.
        """
        states = {stage.state for stage in stages}
        if self.at_work or states & AT_WORK:
            return 3
        if self.silence:
            return 1
        return 4 if self.ended_badly or not states <= {"complete", "purged", "superseded"} else 0


def known_to_slurm(stages: Sequence[StageStatus], jobs: Sequence[Job]) -> list[StageStatus]:
    """What SLURM knows better of stages than their files: that a job is suspended, or begins again.

    Args:
        stages: As their files tell.
        jobs: Jobs of the working directory.

    Returns:
        The same stages, in the same order.
    """
    active = {job.id: job for job in jobs if job.active}
    found = []
    for stage in stages:
        job, state = active.get(stage.job), stage.state
        if job is not None and state in {"running", "suspended", "stopped", "failed"}:
            began: StageState = "queued" if job.queued else "starting" if job.state == "RUNNING" else state
            state = "suspended" if job.state == "SUSPENDED" else state if state in AT_WORK else began
        remaining = stage.remaining if state == "running" else None
        found.append(stage if state == stage.state else replace(stage, state=state, remaining=remaining))
    return found


def look(root: Path) -> Activity:
    """Looks who is at work in a working directory.

    Args:
        root: The working directory.

    Returns:
        What can be told from here; within a minute, even where SLURM does not answer.
    """
    process, state, last = find_process(root), read_state(root), last_head(root)
    jobs: dict[str, Job] = {}
    silence = ""
    try:
        present = list_jobs(root)
        if is_available():
            jobs = {job.id: job for job in list_recorded_jobs(root)}
        # The queue knows better than the records.
        jobs |= {job.id: job for job in present}
        # Where SLURM keeps no comments, the log of a job lies in a folder that tells its rule.
        jobs |= {job.id: replace(job, rule=rule_of_job(root, job.id)) for job in jobs.values() if not job.rule}
    except ClusterError as error:
        if (state is not None and state.label.startswith("SLURM")) or (last is not None and last.on_slurm):
            silence = str(error)
    return Activity(
        process=process,
        state=state,
        controllers=tuple(job for job in jobs.values() if job.name == CONTROLLER_NAME and job.active),
        heads=tuple(find_heads(root)),
        last=last,
        jobs=tuple(sorted((job for job in jobs.values() if job.of_head), key=lambda job: int(job.id.split("_")[0]))),
        silence=silence,
    )


# ---------------------------------------------------------------------------------------------------------------------
# For people


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _label(job: Job) -> str:
    return f"SLURM job {job.id}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _times(number: int) -> str:
    return "" if not number else ", queued again once" if number == 1 else f", queued again {number} times"


def _controller_lines(activity: Activity) -> list[str]:
    lines = []
    state, labels = activity.state, set()
    if activity.process and state is not None:
        labels.add(state.label)
        where = f"{state.label} on {state.host}" if state.label.startswith("SLURM") else state.label
        lines.append(f"{where}, since {_date(state.since)}{_times(state.starts - 1)}: {state.activity}")
        lines.append(f"  log: {state.log}")
    elif activity.process:
        lines.append(f"{activity.process}: starting")
    for job in activity.controllers:
        if f"SLURM job {job.id}" not in labels:
            labels.add(f"SLURM job {job.id}")
            doing = f"queued ({job.reason})" if job.queued else f"{job.state.lower()} on {job.nodes}"
            doing += ", waits for its turn" if job.state == "RUNNING" else ""
            lines.append(f"SLURM job {job.id}: {doing}{_times(job.restarts)}")
    newer = state is not None and (
        activity.last is None or activity.last.controlled or state.updated > activity.last.updated
    )
    if state is not None and newer and not activity.process and state.label not in labels:
        end = "killed while " + state.activity if state.phase == "at work" else state.activity
        lines.append(f"none at work; the last one, {state.label}, {_date(state.updated)}: {end}")
        lines += [f"  {line}" for line in state.tail]
        lines.append(f"  log: {state.log}")
    return lines


def _head_lines(activity: Activity) -> list[str]:
    lines = [f"{head}, since {_date(head.since)}, started by hand" for head in activity.heads]
    last = activity.last
    if lines or last is None or last.controlled:
        return lines
    if last.state == "running":
        return [f"{last}, since {_date(last.since)}, started by hand"]
    if activity.head_is_out_of_sight:
        return [f"{last}, since {_date(last.since)}, started by hand; whether it runs can be seen on {last.host} only"]
    ends = {"finished": "finished", "failed": "failed", "interrupted": "was interrupted"}
    return [f"none at work; the last one, {last}, {ends.get(last.state, 'was killed')}"] if not activity.process else []


def _job_table(jobs: Sequence[Job]) -> list[str]:
    rules = list(dict.fromkeys(job.rule_name or "?" for job in jobs))
    counts: Counter[tuple[str, str]] = Counter()
    for job in jobs:
        kind = (
            "queued"
            if job.queued
            else "running"
            if job.active
            else "finished"
            if job.state == "COMPLETED"
            else "failed"
        )
        counts[job.rule_name or "?", kind] += 1
        counts[job.rule_name or "?", "requeues"] += job.restarts
    columns = ("queued", "running", "finished", "failed", "requeues")
    width = max(len(rule) for rule in rules)
    lines = ["  ".join([" " * width, *columns])]
    lines += [
        "  ".join([rule.ljust(width), *(str(counts[rule, c] or "").rjust(len(c)) for c in columns)]) for rule in rules
    ]
    return [line.rstrip() for line in lines]


def format_activity(activity: Activity) -> str:
    """What is at work, for people.

    Args:
        activity: What was seen.

    Returns:
        Some lines, without a line break at their end; empty when nothing was ever begun.
    """
    blocks: list[tuple[str, list[str]]] = [("controller", _controller_lines(activity)), ("head", _head_lines(activity))]
    jobs = _job_table(activity.jobs) if activity.jobs else []
    waiting: dict[tuple[str, str], list[str]] = {}
    for job in activity.active:
        if job.queued:
            waiting.setdefault((job.rule or "?", job.reason), []).append(job.id)
    for (rule, reason), ids in waiting.items():
        jobs.append(f"{rule} waits ({reason}): {_count(len(ids), 'job')} {', '.join(ids[:5])}")
    if activity.silence:
        jobs.append(f"unknown: {activity.silence}")
    blocks.append(("jobs", jobs))
    orphans = activity.orphans
    if orphans:
        found = ", ".join(f"{job.id} {job.rule}".rstrip() for job in orphans[:8]) + ", …" * (len(orphans) > 8)
        remedy = (
            "the controller waits for them"
            if activity.controller_goes_on
            else "`quadscape submit -- <snakemake arguments>` waits for them and goes on"
        )
        blocks.append(("orphans", [f"{_count(len(orphans), 'job')} at work though no head lives: {found}", remedy]))
    if activity.preempted:
        numbers = " ".join(job.id for job in activity.preempted)
        remedy = (
            "the controller puts them back into the queue"
            if activity.process
            else f"the head waits for them for ever: `scontrol requeue {numbers}`, or kill it and `quadscape submit`"
        )
        found = f"{_count(len(activity.preempted), 'job')} cancelled by preemption: {numbers}"
        blocks.append(("preempted", [found, remedy]))
    for job in activity.active:
        if job.never_starts and not activity.controller_goes_on:
            jobs.append(f"{job.id} can never start ({job.reason}): `scancel {job.id}`, or mend what it asks for")
    width = max(len(title) for title, _ in blocks) + 2
    return "\n".join(
        f"{'' if number else title:{width}}{line}" for title, lines in blocks for number, line in enumerate(lines)
    )


def explain_lock() -> str:
    """Why the working directory of this Snakemake process is locked, and what to do: one sentence.

    Returns:
        The sentence.
    """
    root = Path.cwd()
    activity = look(root)
    others = [head for head in activity.heads if head.pid != os.getpid()]
    if activity.last is not None and activity.last.state == "running":
        others.append(activity.last)
    controllers = [activity.process, *(f"SLURM job {job.id}" for job in activity.controllers)]
    if any(controllers):
        who = next(filter(None, controllers))
        return f"The controller of this directory ({who}) is at work in it; `quadscape status` shows what it does."
    if others:
        return f"Another snakemake ({others[0]}) is at work in this directory; wait for it, or end it."
    last = activity.last
    local = "" if activity.last is None or activity.last.on_slurm else "--local "
    again = f"`quadscape submit {local}-- {shlex.join(sys.argv[1:])}`"
    if activity.head_is_out_of_sight and last is not None:
        return (
            f"This directory is locked by a snakemake that was started on another machine ({last}); if it no longer "
            f"runs there, {again} waits for its jobs, unlocks the directory and goes on."
        )
    who = "A snakemake" if last is None else f"The last snakemake in this directory ({last})"
    end = "interrupted twice" if last is not None and last.state == "interrupted" else "killed"
    killed = f"{who} was {end} and has left its lock"
    if activity.silence:
        return f"{killed}, and SLURM does not tell of its jobs; {again} goes on when it does."
    never = [job for job in activity.active if job.never_starts]
    working = len(activity.active) - len(never)
    if working:
        return (
            f"{killed}, and {_count(working, 'job')} of it {'is' if working == 1 else 'are'} still at work "
            f"(`quadscape status` shows them); {again} waits for them, unlocks the directory and goes on."
        )
    if never:
        return (
            f"{killed}, and {_count(len(never), 'job')} of it that can never start ({never[0].reason}); {again} "
            f"cancels {'it' if len(never) == 1 else 'them'}, unlocks the directory and goes on."
        )
    return f"{killed}, but no jobs; {again} unlocks the directory and goes on."
