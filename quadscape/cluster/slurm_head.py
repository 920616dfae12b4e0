"""What a head on SLURM looks at before it submits anything, and where its jobs then go."""

import importlib
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

from quadscape.cluster.partitions import (
    PARTITIONS_FILE,
    Site,
    check_names,
    choose,
    list_partitions,
    read_site,
    sends_by_rule,
)
from quadscape.cluster.slurm import ask
from quadscape.cluster.snakemake_shell import cap_time_limits, tell_cancelled_jobs
from quadscape.errors import ClusterError, QuadscapeError
from quadscape.stage.deadline import SUBMITTED_JOB

_COMMANDS = ("sbatch", "squeue", "sinfo", "scontrol", "scancel")
_LEAST_ARRAY = 3
"""`MaxArraySize` below which Snakemake's plugin (2.8.0) refuses every workflow, though none here has arrays."""

_SUBMIT_LIMIT = re.compile(r"\b(?:QOS|Assoc)\w*Submit\w*")
_SUBMIT_SECONDS = 15.0
_TRIES, _SILENCE_SECONDS = 3, 20.0


def mark_submitted_job() -> None:
    """Has the scripts of a job know that a head has submitted it to SLURM; called in every job."""
    if "slurm-jobstep" in sys.argv and "SLURM_JOB_ID" in os.environ:
        os.environ[SUBMITTED_JOB] = os.environ["SLURM_JOB_ID"]


def prepare_slurm_head() -> None:
    """Has a head that sends its jobs to SLURM look first whether they can go there; harmless in any other."""
    with suppress(ImportError):
        plugin: Any = importlib.import_module("snakemake_executor_plugin_slurm")
        executor = plugin.Executor
        if hasattr(executor, "looks_first"):
            return
        executor.looks_first = True
        executor.__post_init__ = _looking_first(plugin, executor.__post_init__)
        executor._report_job_error_threadsafe = _waiting_for_a_place(executor._report_job_error_threadsafe)


@contextmanager
def _one_sentence() -> Generator[None, None, None]:
    """Errors of the kind that Snakemake prints without lines of code."""
    from snakemake_interface_common.exceptions import ApiError

    try:
        yield
    except QuadscapeError as error:
        raise ApiError(str(error)) from None


def _looking_first(plugin: Any, begin: Any) -> Any:
    @wraps(begin)
    def begun(self: Any, *arguments: Any, **options: Any) -> None:
        settings = self.workflow.executor_settings
        jobs = [job for job in self.workflow.dag.needrun_jobs() if not job.is_local]
        if not settings.partition_config and "SNAKEMAKE_SLURM_PARTITIONS" not in os.environ and _needs_file(self, jobs):
            settings.partition_config = Path(PARTITIONS_FILE)
        with _one_sentence():
            site = check_slurm(settings.partition_config)
        begin(self, *arguments, **options)
        tell_cancelled_jobs()
        cap_time_limits({} if site is None else site.minutes())
        best = plugin.get_best_partition

        def chosen(candidates: Any, job: Any, logger: Any) -> str:
            with _one_sentence():
                return choose(candidates, job, logger, best)

        plugin.get_best_partition = chosen
        _apply_site(self, site)
        with _one_sentence():
            _check_jobs(jobs, self._partitions or [], self.logger)

    return begun


def _needs_file(executor: Any, jobs: Sequence[Any]) -> bool:
    """Whether jobs are to be sent by the site's file of partitions: some name none, and the profile sends none."""
    if all(job.resources.get("slurm_partition") for job in jobs):
        return False
    return Path(PARTITIONS_FILE).is_file() or not sends_by_rule(executor.workflow.resource_settings.overwrite_resources)


def _configuration() -> str | None:
    """The cluster's, after a moment of silence too, since a controller's head may begin in one; None: no cluster."""
    for silent in range(_TRIES):
        try:
            return ask("scontrol", "show", "config")
        except ClusterError as error:
            if "configuration source" in str(error):
                return None
            if silent == _TRIES - 1:
                raise
        time.sleep(_SILENCE_SECONDS)
    return None


def check_slurm(partitions_file: str | Path | None) -> Site | None:
    """Looks whether jobs can be submitted here, and to the partitions that the site's file names.

    Args:
        partitions_file: The profile's `slurm-partition-config`.

    Returns:
        What the file says; None where the profile names none.

    Raises:
        ClusterError: There is no SLURM, it does not answer, or it does not have what is asked for.
    """
    why = next((f"no {name}" for name in _COMMANDS if shutil.which(name) is None), "")
    config = "" if why else _configuration()
    if config is None:
        why = "its commands know of no cluster"
    if why:
        raise ClusterError(
            f"The profile sends jobs to SLURM, and there is no SLURM on this machine ({why}); start it where there is "
            "one, or with another profile, such as --profile profiles/local --cores 2."
        )
    array = re.search(r"^MaxArraySize\s*=\s*(\d+)", config or "", re.MULTILINE)
    if array is not None and int(array[1]) < _LEAST_ARRAY:
        raise ClusterError(
            f"MaxArraySize of this cluster is {array[1]}, so that it has no job arrays, and Snakemake's plugin for "
            f"SLURM then refuses every workflow; ask its administrator for at least {_LEAST_ARRAY}."
        )
    path = partitions_file or os.environ.get("SNAKEMAKE_SLURM_PARTITIONS")
    if not path:
        return None
    site = read_site(path)
    # Those of other clusters (federations) are not listed here.
    own = [
        name for name, limits in site.partitions.items() if not {"cluster", "clusters", "slurm_cluster"} & set(limits)
    ]
    check_names(((name, str(site.path)) for name in own), [partition.name for partition in list_partitions()])
    return site


def _apply_site(executor: Any, site: Site | None) -> None:
    """Account and quality of service, of jobs that name none."""
    account = "" if site is None else site.account
    if account or "SBATCH_ACCOUNT" in os.environ:
        # Otherwise the plugin guesses one, which then goes before the environment's.
        executor._fallback_account_arg = f" -A {shlex.quote(account)}" if account else ""
    settings = executor.workflow.executor_settings
    if site is not None and site.qos and not settings.qos:
        settings.qos = site.qos


def _check_jobs(jobs: Sequence[Any], candidates: Sequence[Any], logger: Any) -> None:
    """Looks for every job that is to be submitted whether it has somewhere to go."""
    asked: dict[str, str] = {}
    for job in jobs:
        name = job.resources.get("slurm_partition")
        if name and not any(job.resources.get(key) for key in ("slurm_cluster", "cluster", "clusters")):
            asked.setdefault(str(name), f"slurm_partition of rule {job.name}")
        elif candidates and not name:
            choose(candidates, job, logger, lambda fitting, _job, _logger: str(fitting[0].name))
    if asked:
        check_names(asked.items(), [partition.name for partition in list_partitions()])


def _waiting_for_a_place(report: Any) -> Any:
    """A job that SLURM does not take since there are too many of this user's is submitted again, and has not failed."""
    told = False

    @wraps(report)
    def reported(self: Any, job_info: Any, msg: str) -> None:
        nonlocal told
        limit = _SUBMIT_LIMIT.search(msg.partition("sbatch call:")[0])
        if limit is None:
            report(self, job_info, msg)
            return
        if not told:
            told = True
            self.logger.warning(
                f"SLURM takes no more jobs of yours for now ({limit[0]}): the others wait here until some have ended. "
                "A smaller `jobs:` in the profile leaves room for what else you submit."
            )
        submissions = self._job_submission_executor
        until = time.monotonic() + _SUBMIT_SECONDS
        while time.monotonic() < until and not submissions._shutdown:
            time.sleep(min(0.5, _SUBMIT_SECONDS))
        # Not from here, where waiting again and again would never return; a head that ends takes no more.
        with suppress(RuntimeError):
            submissions.submit(self.run_job, job_info.job)

    return reported
