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
from itertools import pairwise
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quadscape.cluster.slurm import partition_minutes
from quadscape.errors import ConfigError
from quadscape.refusals import unwritable

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


def force_outputs(workflow: Any, paths: Sequence[str]) -> None:
    """Has the jobs run that make some outputs, as `--forcerun` does, but only those that the targets need.

    `--forcerun` takes what it is given for further targets, so that one figure would bring everything with it.

    What depends on a job that runs only by ancient inputs is judged by itself: Snakemake (9.27) neither runs it for
    that, as it should not, nor looks whether it must be run for another reason, as it should.

    Args:
        workflow: Snakemake's workflow, of which no jobs are planned yet.
        paths: Declared outputs.
    """
    import snakemake.workflow

    workflow.quadscape_forced = frozenset(paths)
    plan = snakemake.workflow.DAG
    if hasattr(plan, "forces_outputs"):
        return

    class Forcing(plan):  # type: ignore[misc,valid-type]
        """Jobs and what they depend on."""

        forces_outputs = True

        def __init__(self, workflow: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(workflow, *arguments, **options)
            self.forcefiles |= getattr(workflow, "quadscape_forced", frozenset())
            self._judges = False

        async def update_needrun(self, *arguments: Any, **options: Any) -> None:
            self._judges = True
            try:
                await super().update_needrun(*arguments, **options)
            finally:
                self._judges = False

        def bfs(self, direction: Any, *jobs: Any, **options: Any) -> Any:
            if self._judges and direction is self.depending:
                direction = _Updating(direction)
            return super().bfs(direction, *jobs, **options)

    snakemake.workflow.DAG = Forcing


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
