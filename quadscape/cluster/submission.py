"""Submission of a controller, through submitit: as a small SLURM job, or as a process that outlives the terminal."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit import LocalExecutor, SlurmExecutor

from quadscape.cluster.controller import (
    Controller,
    clean_environment,
    directory_of,
    find_controller,
    find_process,
    log_of,
)
from quadscape.cluster.heads import process_record, write_json
from quadscape.cluster.partitions import PARTITIONS_FILE, read_site, sends_by_rule
from quadscape.cluster.slurm import CONTROLLER_NAME
from quadscape.config.yaml_files import read_yaml
from quadscape.errors import ClusterError
from quadscape.paths import user_path

DEFAULT_MINUTES = 24 * 60
_MEMORY_GB = 4
_SUBMIT_SECONDS = 120.0
_TEN_YEARS_MINUTES = 10 * 365 * 24 * 60


@dataclass(frozen=True)
class Profile:
    """What the snakemake arguments and their profiles say of where jobs go; empty where they say nothing.

    Attributes:
        executor: Snakemake's.
        partition: The default one, or that of the controller.
        account: For all jobs.
        qos: Likewise.
        minutes: The longest time that the partition gives, as the site's file has it.
    """

    executor: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    minutes: int | None = None


def _values(arguments: Sequence[str], *flags: str) -> list[str]:
    """Values of an option, given as `--flag value` or `--flag=value`."""
    found = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag in flags:
            found.append(value if equals else following)
    return found


def _profile_file(folders: Sequence[Path]) -> Path | None:
    """The file of a profile in the first folder that has one, as Snakemake would find it; None: nowhere."""
    for folder in folders:
        if folder.is_file():
            return folder
        # config.yaml, config.v8+.yaml, profile.yaml; the newest version last.
        files = sorted([*folder.glob("config*.yaml"), *folder.glob("profile*.yaml")])
        if files:
            return files[-1]
    return None


def _profile_files(root: Path, arguments: Sequence[str]) -> list[Path]:
    """The files of all profiles that a head would take, of which later ones go before; a `ClusterError` without one."""
    found = []
    variable = os.environ.get("SNAKEMAKE_PROFILE")
    for name in _values(arguments, "--profile") or ([variable] if variable else []):
        homes = (root, user_path("~/.config/snakemake"), Path("/etc/xdg/snakemake"))
        file = _profile_file([home / name for home in homes])
        if file is None:
            raise ClusterError(
                f"There is no profile '{name}' in {root} or ~/.config/snakemake; valid is a directory that holds a "
                "config.yaml."
            )
        found.append(file)
    name = (_values(arguments, "--workflow-profile") or ["default"])[-1]
    file = None if name == "none" else _profile_file([root / name, root / "profiles" / name])
    return found if file is None else [*found, file]


def _by_rule(value: Any) -> dict[str, dict[str, Any]]:
    """A profile's `set-resources`, which may be a mapping of mappings or a list of words `rule:resource=value`."""
    if isinstance(value, dict):
        return {str(rule): resources for rule, resources in value.items() if isinstance(resources, dict)}
    found: dict[str, dict[str, Any]] = {}
    for word in value if isinstance(value, list) else ():
        rule, _, resource = str(word).partition(":")
        found.setdefault(rule, {})[resource.partition("=")[0]] = resource.partition("=")[2]
    return found


def read_profile(root: Path, arguments: Sequence[str]) -> Profile:
    """Where the jobs of a head would go, and with them its controller's.

    Args:
        root: The workflow's working directory.
        arguments: Snakemake's.

    Returns:
        Executor, default partition and account of the jobs, and their quality of service; from the site's file of
        partitions, where there is no default partition, one without GPUs with its time limit.
    """
    content: dict[str, Any] = {}
    for file in _profile_files(root, arguments):
        read = read_yaml(file, "The profile")
        content |= read if isinstance(read, dict) else {}
    defaults = content.get("default-resources", {})
    words = [f"{key}={value}" for key, value in defaults.items()] if isinstance(defaults, dict) else defaults or ()
    resources: dict[str, str] = {}
    for word in [*map(str, words), *arguments]:
        resources |= re.findall(r"^(slurm_partition|slurm_account)=['\"]?([^'\"]+)", word)

    def told(flag: str, *further: str) -> str:
        return (_values(arguments, f"--{flag}", *further) or [str(content.get(flag) or "")])[-1]

    executor, file_of_partitions = told("executor", "-e"), told("slurm-partition-config")
    found = Profile(
        executor, resources.get("slurm_partition", ""), resources.get("slurm_account", ""), told("slurm-qos")
    )
    path = file_of_partitions or os.environ.get("SNAKEMAKE_SLURM_PARTITIONS", "")
    if not path and not found.partition:
        by_rule = sends_by_rule(_by_rule(content.get("set-resources")))
        path = PARTITIONS_FILE if (root / PARTITIONS_FILE).is_file() or not by_rule else ""
    if executor != "slurm" or not path:
        return found
    site = read_site(root / path)
    chosen = found.partition or site.for_controller()
    return Profile(executor, chosen, found.account or site.account, found.qos or site.qos, site.minutes().get(chosen))


def submit(
    root: Path,
    arguments: Sequence[str],
    *,
    local: bool,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    minutes: int | None = None,
) -> str:
    """Submits a controller for a working directory.

    Args:
        root: The workflow's working directory.
        arguments: Snakemake's.
        local: A process of this machine instead of a SLURM job.
        partition: For the controller's job; by default that of the profile.
        account: Likewise.
        qos: Quality of service of the controller's job; by default that of the profile, or what SBATCH_QOS, the account
            or the partition says.
        minutes: Time limit of the controller's job, after which it is queued again; by default a day, or what the
            profile's partition gives.

    Returns:
        What to tell the user: the controller and its log.

    Raises:
        ClusterError: There is a controller already, something is missing, or SLURM refuses.
    """
    root = Path(os.path.realpath(root))
    if not any((root / name).is_file() for name in ("Snakefile", "workflow/Snakefile")):
        raise ClusterError(f"There is no Snakefile in {root}; submit in the root of the workflow.")
    if local and {partition, account, qos, minutes} != {None}:
        raise ClusterError(
            "--partition, --account, --qos and --minutes are for a controller in SLURM, and --local is given."
        )
    if minutes is not None and minutes < 1:
        raise ClusterError(f"--minutes is {minutes}; valid is a time limit of at least 1 minute.")
    profile = read_profile(root, arguments)
    if not local:
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ClusterError("There is no SLURM on this machine (no sbatch); `quadscape submit --local` needs none.")
        if profile.executor in {"", "local"}:
            raise ClusterError(
                "The snakemake arguments name no executor, so all jobs would run inside the controller's own small "
                "job; add `--profile slurm`, or submit with --local."
            )
    needs_slurm = not local or profile.executor == "slurm"
    present = find_controller(root) if needs_slurm else find_process(root)
    if present:
        raise ClusterError(f"A controller is queued or at work in this directory: {present} (see `quadscape status`).")
    request = {
        "root": str(root),
        "arguments": list(arguments),
        "kind": "local" if local else "slurm",
        "needs_slurm": needs_slurm,
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES") if local else None,
        "partition": partition or profile.partition,
        "account": account or profile.account,
        "qos": qos or profile.qos or None,
        # Where the partition gives less than a day, it goes back into the queue more often.
        "minutes": minutes or min(DEFAULT_MINUTES, (None if partition else profile.minutes) or DEFAULT_MINUTES),
    }
    job = _launch(request)
    if local:
        label, log = f"process {job} on {socket.gethostname()}", log_of(root, f"{socket.gethostname()}-{job}")
    else:
        label, log = f"SLURM job {job}", log_of(root, job)
    return f"controller: {label}\nlog: {log.relative_to(root)}"


def _of_sbatch(request: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """What the environment lets sbatch know of the controller's job that the request does not say.

    For sbatch variables go before what the script says, so that a time limit there would not be the controller's own.

    Args:
        request: As for `launch`.
        environment: Environment variables.

    Returns:
        Some of them.
    """
    names = {"SBATCH_RESERVATION", "SBATCH_CONSTRAINT", "SBATCH_CLUSTERS", "SBATCH_WCKEY"}
    names |= {f"SBATCH_{key.upper()}" for key in ("partition", "account", "qos") if not request[key]}
    return {name: value for name, value in environment.items() if name in names}


def _launch(request: dict[str, Any]) -> str:
    """Calls `launch` in a process of a session of its own, with an environment that belongs to no job.

    Returns:
        The number of the job or process.

    Raises:
        ClusterError: It could not be submitted.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from quadscape.cluster.submission import launch; launch()", json.dumps(request)],
            cwd=request["root"],
            env=clean_environment(os.environ) | _of_sbatch(request, os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SUBMIT_SECONDS,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"SLURM's sbatch did not answer within {_SUBMIT_SECONDS:.0f} s; `quadscape status` tells whether it has "
            "taken the controller all the same."
        ) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise ClusterError(f"The controller could not be submitted: {' '.join(done.stderr.split())[-300:]}") from None
    if "job" not in answer:
        raise ClusterError(f"The controller could not be submitted: {answer['error'].rstrip('.')}.")
    return str(answer["job"])


def launch() -> None:
    """Submits the controller that the first argument describes, and prints its number as JSON.

    In a process of its own: the local executor's process inherits its session, its streams and its environment.
    """
    answer = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    try:
        result = {"job": _submit(json.loads(sys.argv[1]))}
    except Exception as error:
        result = {"error": " ".join(str(error).split()) or repr(error)}
    os.write(answer, json.dumps(result).encode())


def _submit(request: dict[str, Any]) -> str:
    root = Path(request["root"])
    directory = directory_of(root)
    directory.mkdir(parents=True, exist_ok=True)
    log_of(root, "any").parent.mkdir(parents=True, exist_ok=True)
    work = Controller(
        request["root"], request["arguments"], request["kind"], request["needs_slurm"], request["devices"]
    )
    if request["kind"] == "local":
        local = LocalExecutor(directory)
        local.update_parameters(timeout_min=_TEN_YEARS_MINUTES, stderr_to_stdout=True)
        number = local.submit(work).job_id
        # Until the controller has taken its lock, this tells that there is one.
        process = process_record(directory, int(number))
        write_json(directory / "started.json", process)
        return number
    slurm = SlurmExecutor(directory, max_num_timeout=10**9)
    # SLURM replaces what follows a %, so that one in a folder's name must be doubled.
    log = log_of(Path(str(root).replace("%", "%%")), "%j")
    minutes = request["minutes"]
    slurm.update_parameters(
        job_name=CONTROLLER_NAME,
        time=minutes,
        # Time to be queued again before the limit; SLURM may send the signal up to a minute earlier.
        signal_delay_s=min(120, 15 * minutes),
        cpus_per_task=1,
        mem=f"{_MEMORY_GB}GB",
        partition=request["partition"] or None,
        account=request["account"] or None,
        qos=request["qos"],
        wckey=None,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, "chdir": root, "output": log},
        srun_args=[f"--output={log}", "--open-mode=append"],
    )
    return slurm.submit(work).job_id
