"""What the workflow mends of Snakemake and of the processes that it starts.

Snakemake puts the path of Python as it is into commands that it gives to a shell, and jobs inherit its environment.
"""

import importlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from hashlib import sha256
from itertools import pairwise
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quadscape.cluster.slurm import partition_minutes
from quadscape.errors import ConfigError
from quadscape.refusals import unwritable
from quadscape.results.same import made_from

_RECORDS = {"auxiliary", "incomplete", "locks", "log", "metadata", "scripts"}
_EXECUTORS = (
    ("snakemake.executors.local", "Executor"),
    ("snakemake_interface_executor_plugins.executors.remote", "RemoteExecutor"),
    ("snakemake_executor_plugin_slurm_jobstep", "Executor"),
)


def _quoting(method: Callable[[Any], str]) -> Callable[[Any], str]:
    @wraps(method)
    def quoted(self: Any) -> str:
        return shlex.quote(method(self))

    return quoted


def quote_interpreter() -> None:
    """Makes Snakemake quote the path of Python, in the commands of scripts and of jobs; harmless where not needed."""
    from snakemake.script import ScriptBase

    if hasattr(ScriptBase, "quotes_interpreter"):
        return
    ScriptBase.quotes_interpreter = True
    execute = ScriptBase._execute_cmd

    def execute_quoted(self: Any, command: str, **values: Any) -> Any:
        if "py_exec" in values:
            values["py_exec"] = shlex.quote(values["py_exec"])
        return execute(self, command, **values)

    ScriptBase._execute_cmd = execute_quoted
    for module, name in _EXECUTORS:
        # The plugins of SLURM are not imported where nothing goes there.
        with suppress(ImportError):
            executor = getattr(importlib.import_module(module), name)
            executor.get_python_executable = _quoting(executor.get_python_executable)


def let_waiting_threads_sleep() -> None:
    """Has OpenMP's threads sleep while they wait, in every job, unless the user has said otherwise.

    By default they spin, which costs nothing on idle cores; where something else is at work, or cores are fewer than
    threads, each takes a core from what it waits for (a shard of a small Hessian took 28 instead of 7 CPU-s).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def tell_cancelled_jobs() -> None:
    """Has a head on SLURM notice by `sacct` that a job was cancelled, and not wait for it for ever.

    sacct says `CANCELLED by 1000` of it, and the plugin (2.8.0) compares states with `CANCELLED`; squeue says that.
    """
    with suppress(ImportError):
        plugin: Any = importlib.import_module("snakemake_executor_plugin_slurm")
        ask = plugin.query_job_status
        if hasattr(ask, "tells_cancelled"):
            return

        async def told(*arguments: Any, **options: Any) -> Any:
            states, seconds = await ask(*arguments, **options)
            if states is None:
                return states, seconds
            # Others of two words are one state: the plugin knows none of them but this.
            short = {job: "CANCELLED" if state.startswith("CANCELLED by ") else state for job, state in states.items()}
            return short, seconds

        told.tells_cancelled = True  # type: ignore[attr-defined]
        plugin.query_job_status = told


def cap_time_limits(given: Mapping[str, int] = MappingProxyType({})) -> None:
    """Has a head on SLURM ask for no more time than the partition gives: such a job would wait for ever.

    What a job asks for has a factor of two or more to spare, and grows with every attempt. A long stage that comes to
    its limit all the same goes back into the queue, and on from there.

    Args:
        given: What the user has said of partitions, in minutes; SLURM's own limits hold as well.
    """
    with suppress(ImportError):
        plugin: Any = importlib.import_module("snakemake_executor_plugin_slurm")
        ask = plugin.get_submit_command
        if hasattr(ask, "caps_time"):
            return
        told: set[str] = set()

        @cache
        def limits() -> dict[str, int]:
            of_slurm = partition_minutes()
            return of_slurm | {name: min(minutes, of_slurm.get(name, minutes)) for name, minutes in given.items()}

        def capped(*arguments: Any, **options: Any) -> str:
            call: str = ask(*arguments, **options)
            words = dict(pairwise(shlex.split(call)))
            partition, minutes = words.get("-p", ""), words.get("-t", "")
            # Several partitions may be named, of which any is taken.
            most = max((limits().get(name, inf) for name in partition.split(",")), default=inf)
            if not minutes.isdecimal() or int(minutes) <= most:
                return call
            if partition not in told:
                told.add(partition)
                print(
                    f"Jobs in the partition '{partition}' get {most} minutes at most, and one asks for {minutes}: it "
                    f"is given {most}. Long stages go back into the queue in time, and on from there.",
                    file=sys.stderr,
                )
            return call.replace(f" -t {minutes}", f" -t {most}", 1)

        capped.caps_time = True  # type: ignore[attr-defined]
        plugin.get_submit_command = capped


def judge_jobs(workflow: Any, paths: Sequence[str]) -> None:
    """Has jobs run, and others not, where Snakemake itself would judge otherwise.

    - The jobs that make some outputs run, as with `--forcerun`, but only those that the targets need: `--forcerun`
      takes what it is given for further targets, so that one figure would bring everything with it.
    - What depends on a job that runs only by ancient inputs is judged by itself: Snakemake (9.27) neither runs it for
      that, as it should not, nor looks whether it must be run for another reason, as it should.
    - What was purged and is needed again is computed for that alone: equal parameters give equal bytes, so that tables
      that were made from it stay as they are.
    - A newer input is no reason where Snakemake has no checksum of it, but the output itself says that it was made from
      its very content (`quadscape.results.same`): `cp -r` gives everything new times.

    Args:
        workflow: Snakemake's workflow, of which no jobs are planned yet.
        paths: Declared outputs whose jobs run.
    """
    import snakemake.workflow

    workflow.quadscape_forced = frozenset(paths)
    plan = snakemake.workflow.DAG
    if hasattr(plan, "judges_jobs"):
        return

    class Judging(plan):  # type: ignore[misc,valid-type]
        """Jobs and what they depend on."""

        judges_jobs = True
        depending: Any

        def __init__(self, workflow: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(workflow, *arguments, **options)
            self.forcefiles |= getattr(workflow, "quadscape_forced", frozenset())
            self._judges = False

        async def update_needrun(self, *arguments: Any, **options: Any) -> None:
            know_contents(self.workflow.persistence)
            depending = self.depending
            returning = _Returning(self)
            self.depending, self._judges = returning, True
            try:
                await super().update_needrun(*arguments, **options)
                while changed := returning.find_changed():
                    returning.changed |= changed
                    self._reason.clear()
                    await super().update_needrun(*arguments, **options)
            finally:
                self.depending, self._judges = depending, False

        def bfs(self, direction: Any, *jobs: Any, **options: Any) -> Any:
            if self._judges and direction is self.depending:
                direction = _Updating(direction)
            return super().bfs(direction, *jobs, **options)

    snakemake.workflow.DAG = Judging


class _Updating:
    """Jobs that depend on one by more than ancient files that exist."""

    def __init__(self, depending: Any) -> None:
        self._depending = depending

    def __getitem__(self, job: Any) -> dict[Any, Any]:
        found = self._depending[job].items()
        return {
            other: files for other, files in found if not all(one.is_ancient and Path(one).exists() for one in files)
        }


def tell_protected_outputs() -> None:
    """Has Snakemake say of outputs that it may not replace whose they are, in one sentence."""
    import snakemake.jobs
    from snakemake.exceptions import WorkflowError

    class ProtectedOutputError(WorkflowError):
        """What is raised before any job."""

        def __init__(self, job: Any, files: Sequence[str]) -> None:
            sentences = filter(None, (unwritable(Path(file)) for file in files))
            super().__init__(next(sentences, f"{files[0]} is write-protected; {job.rule.name} would replace it."))

    # Looked up when it is raised.
    snakemake.jobs.ProtectedOutputException = ProtectedOutputError


def record_places() -> list[Path]:
    """Where Snakemake keeps its records of this working directory; it makes some of them even on a dry run."""
    own = Path(".snakemake")
    return [own / "locks" / "new", *(path / "new" for path in own.glob("*/") if path.name in _RECORDS)]


def written_files(dag: Any) -> list[str]:
    """What the jobs of a head are to write.

    Args:
        dag: Snakemake's plan.

    Returns:
        Outputs and logs.
    """
    return [str(path) for job in dag.needrun_jobs() for path in (*job.output, *job.log)]


_CHANGES = (
    *("forced", "updated_input", "params_changed", "input_changed", "code_changed", "software_stack_changed"),
    *("nooutput", "noio", "unfinished_queue_input"),
)
"""Why Snakemake runs a job, other than that its output is missing or its input is about to change."""


class _Returning:
    """Jobs that depend on one by more than what it makes as it was: purged files, that something else needs again.

    Attributes:
        changed: Jobs that may make something else.
    """

    def __init__(self, plan: Any) -> None:
        self._plan, self._depending = plan, plan.depending
        self._purged: dict[str, bool] = {}
        self.changed: set[Any] = set()

    def __getitem__(self, job: Any) -> Any:
        found = self._depending[job]
        return {other: files for other, files in found.items() if not self._stays(other, job)} if found else found

    def _was_purged(self, path: str) -> bool:
        if path not in self._purged:
            place = Path(path)
            self._purged[path] = place.with_name("purged.json").exists() and not place.exists()
        return self._purged[path]

    def _returns(self, job: Any) -> bool:
        """Whether all that a job makes is as it was before, as far as is known."""
        if job in self.changed or not job.output:
            return False
        # A group is run as a whole: the gather of a Hessian with its shards and the eigenbasis.
        return all(map(self._was_purged, job.output)) or any(
            _same_group(job, other) and all(map(self._was_purged, other.output))
            for other in self._plan.dependencies[job]
        )

    def _stays(self, other: Any, job: Any) -> bool:
        """Whether a job need not run for another: not that which purges, where there is something to purge again."""
        if not other.output or other.rule.name == "purge" or _same_group(job, other) or not self._returns(job):
            return False
        return all(Path(one).exists() for one in other.output)

    def find_changed(self) -> set[Any]:
        """Jobs of which it was thought that they make the same, and that run for another reason."""
        return {job for job in self._plan.needrun_jobs() if self._returns(job) and self._is_changed(job)}

    def _is_changed(self, job: Any) -> bool:
        reason = self._plan.reason(job)
        if any(getattr(reason, name, None) for name in _CHANGES):
            return True
        missing = [one for one in job.output if not Path(one).exists()]
        running = set(self._plan.needrun_jobs())
        return not all(map(self._was_purged, missing)) or any(
            other in running and not self._returns(other) for other in self._plan.dependencies[job]
        )


def _same_group(job: Any, other: Any) -> bool:
    return job.group is not None and job.group == other.group


def know_contents(persistence: Any) -> None:
    """Has Snakemake's records tell the checksum of an input where the output itself says that it is as it was."""
    ask = persistence.input_checksums
    if hasattr(ask, "knows_contents"):
        return

    def checksums(job: Any, path: Any) -> set[Any]:
        found = ask(job, path)
        if found - {None} or not job.output:
            return found
        if not all(Path(output).exists() and made_from(Path(output), Path(path)) for output in job.output):
            return found
        return {f"sha256:{sha256(Path(path).read_bytes()).hexdigest()}"}

    checksums.knows_contents = True  # type: ignore[attr-defined]
    persistence.input_checksums = checksums


def check_working_directory(root: Path, *, on_slurm: bool = False) -> None:
    """Refuses a folder whose name Snakemake, or SLURM's log files, would take for something else.

    Args:
        root: The workflow's working directory.
        on_slurm: Whether jobs go to SLURM.

    Raises:
        ConfigError: A character in its path has a meaning there that nothing can take away.
    """
    bad = dict.fromkeys("{}", "Snakemake reads as a wildcard") | {"\n": "no shell command can hold"}
    if on_slurm:
        bad |= {"%": "SLURM replaces in the names of its logs"}
        bad |= dict.fromkeys('"$`\\', "SLURM's command cannot hold")
    for letter, why in bad.items():
        if letter in str(root):
            raise ConfigError(
                f"The working directory {str(root)!r} has the character {letter!r} in its path, which {why}; move the "
                "repository to, or link it from, a folder without it."
            )
