"""Where the jobs of a head may go: what SLURM says of its partitions, and the file that tells Snakemake's plugin.

The file is a site's own, so that git does not track it: the `partitions` in it are the plugin's (its documentation has
all limits), and `account` and `qos` beside them are for all jobs, the controller's included.
"""

import getpass
import importlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from quadscape.cluster.slurm import ask, minutes_of
from quadscape.config.yaml_files import read_yaml
from quadscape.errors import ClusterError

PARTITIONS_FILE = "profiles/slurm/partitions.yaml"
"""Where it lies, unless the profile's `slurm-partition-config` says otherwise."""

_SITE = ("account", "qos")
_PLUGIN = "snakemake_executor_plugin_slurm"


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster.

    Attributes:
        name: Its name.
        minutes: The longest time that it gives a job; None: no limit, or none that can be read.
        gpus: Of the node with most; 0: it has none.
        cpus: Of the node with most.
        memory_mb: Likewise.
    """

    name: str
    minutes: int | None
    gpus: int = 0
    cpus: int = 0
    memory_mb: int = 0


@dataclass(frozen=True)
class Site:
    """What the file says.

    Attributes:
        path: Where it lies.
        partitions: Limits of each, as the plugin reads them.
        account: For all jobs that name none; empty where there is none.
        qos: Likewise.
    """

    path: Path
    partitions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    account: str = ""
    qos: str = ""

    def minutes(self) -> dict[str, int]:
        """The longest time of those that have one, in minutes."""
        found = {name: limit_minutes(limits.get("max_runtime")) for name, limits in self.partitions.items()}
        return {name: int(minutes) for name, minutes in found.items() if minutes < math.inf}

    def for_controller(self) -> str:
        """The partition for a job that needs one CPU for long: without GPUs, if there is one."""
        plain = [name for name, limits in self.partitions.items() if not limits.get("max_gpu")]
        minutes = self.minutes()
        return max(plain or self.partitions, key=lambda name: minutes.get(name, math.inf), default="")


def limit_minutes(value: Any) -> float:
    """Minutes of `max_runtime` as the plugin takes it: a number of them, SLURM's notation, or `2h30m`.

    Args:
        value: From the file; None where it says nothing.

    Returns:
        The minutes, infinite without a limit.
    """
    if value is None or value == math.inf:
        return math.inf
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    return float(importlib.import_module(f"{_PLUGIN}.utils").parse_time_to_minutes(str(value)))


# ---------------------------------------------------------------------------------------------------------------------
# What SLURM says


def list_partitions() -> list[Partition]:
    """The partitions that this user may use.

    Returns:
        In SLURM's order.
    """
    found: dict[str, Partition] = {}
    # One line for each kind of node.
    for line in ask("sinfo", "--noheader", "--exact", "--format=%R|%l|%G|%c|%m").splitlines():
        fields = line.strip().split("|")
        if len(fields) != 5:
            continue
        name, limit, gres, cpus, memory = fields
        known = found.get(name, Partition(name, minutes_of(limit)))
        found[name] = Partition(
            name,
            known.minutes,
            max(known.gpus, _gpus(gres)),
            max(known.cpus, _number(cpus)),
            max(known.memory_mb, _number(memory)),
        )
    return list(found.values())


def _gpus(gres: str) -> int:
    """How many GPUs `gpu:a100:4(S:0-1),nvme:1` are."""
    counts = re.findall(r"(?:^|,)gpu(?::[^:,()]+)??(?::(\d+))?(?=[(,]|$)", gres)
    return sum(int(count or 1) for count in counts)


def _number(text: str) -> int:
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0


def _allowed() -> tuple[list[str], list[str]]:
    """Accounts and qualities of service that accounting has for this user; nothing where it does not say."""
    try:
        said = ask(
            *("sacctmgr", "--noheader", "--parsable2", "show", "associations"),
            *(f"user={getpass.getuser()}", "format=account,qos"),
        )
    except (ClusterError, OSError, KeyError):
        return [], []
    rows = [line.partition("|") for line in said.splitlines() if line.strip()]
    accounts = dict.fromkeys(account for account, _, _ in rows if account)
    qualities = dict.fromkeys(name for _, _, names in rows for name in names.split(",") if name)
    return list(accounts), list(qualities)


_HEAD = """\
# Where the jobs of `--profile slurm` may go, as SLURM's sinfo has it. Look it through: remove what is not for this
# work, such as partitions for debugging, or with PreemptMode=CANCEL (docs/cluster.md). A job with a GPU goes to one
# with max_gpu, others to one without; of several that fit, to the one that fits most closely. git ignores this file.
"""


def describe_partitions() -> str:
    """The file for this cluster, to be looked through: from sinfo, with accounts and qualities of service as comments.

    Returns:
        YAML.

    Raises:
        ClusterError: SLURM does not answer, or has no partition for this user.
    """
    found = list_partitions()
    if not found:
        raise ClusterError("SLURM's sinfo lists no partition that you may use; ask your site for an account.")
    lines = [_HEAD + "partitions:"]
    for partition in found:
        limits = {
            "max_runtime": partition.minutes,
            "max_gpu": partition.gpus,
            "max_threads": partition.cpus,
            "max_mem_mb": partition.memory_mb,
        }
        lines.append(f"  {_scalar(partition.name)}:")
        units = {"max_runtime": "  # minutes", "max_gpu": "  # of a node"}
        lines += [f"    {key}: {value}{units.get(key, '')}" for key, value in limits.items() if value]
        lines[-1] += "" if any(limits.values()) else " {}"
    accounts, qualities = _allowed()
    lines += ["", "# For all jobs and the controller, where your site wants them:"]
    for key, names in (("account", accounts), ("qos", qualities)):
        known = f"  # yours: {', '.join(names)}" if names else ""
        lines.append(f"# {key}: {_scalar(names[0]) if names else f'my_{key}'}{known}")
    return "\n".join(lines)


def _scalar(name: str) -> str:
    """A name as YAML reads it as text: `1` and `no` are names of partitions, too."""
    return name if re.fullmatch(r"(?!(?i:y|n|yes|no|on|off|true|false|null)$)[A-Za-z_][\w.-]*", name) else f'"{name}"'


# ---------------------------------------------------------------------------------------------------------------------
# The file


def sends_by_rule(resources: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a profile says itself which rules go where, or get a GPU; it may then leave the rest to SLURM's default.

    Args:
        resources: Its `set-resources`.

    Returns:
        Whether it does.
    """
    return any({"gpu", "slurm_partition"} & set(of_rule) for of_rule in resources.values())


def read_site(path: str | Path) -> Site:
    """Reads the file.

    Args:
        path: Where it lies.

    Returns:
        What it says.

    Raises:
        ClusterError: It is missing, or says something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ClusterError(
            f"There is no {path}, which tells where jobs may go; `quadscape partitions > {path}` makes it from what "
            "SLURM says of this cluster: look it through, and run the same command again."
        )
    content = read_yaml(path, "The file of partitions")
    partitions = content.get("partitions") if isinstance(content, dict) else None
    if not isinstance(partitions, dict) or not partitions:
        raise ClusterError(f"{path} names no partitions; valid is what `quadscape partitions` prints.")
    if unknown := [str(key) for key in content if key not in ("partitions", *_SITE)]:
        raise ClusterError(f"{path} has the key '{unknown[0]}'; valid are partitions, account and qos.")
    for name, limits in partitions.items():
        _check_limits(path, name, limits)
    given = {key: str(content[key]) for key in _SITE if content.get(key) is not None}
    return Site(path, {name: limits or {} for name, limits in partitions.items()}, **given)


def _check_limits(path: Path, name: Any, limits: Any) -> None:
    """Says what the plugin would fail on."""
    if not isinstance(name, str) or not name.strip():
        raise ClusterError(f'{path} names a partition {name!r}; valid is text, in quotation marks: "{name}".')
    if limits is None or not isinstance(limits, dict):
        raise ClusterError(f"{path}: limits of partition '{name}' are {limits!r}; valid is a mapping, such as {{}}.")
    valid = [*importlib.import_module(f"{_PLUGIN}.partitions").PartitionLimits.__dataclass_fields__, "cluster"]
    for key, value in limits.items():
        if key not in (*valid, "clusters", "slurm_cluster"):
            raise ClusterError(f"{path}: partition '{name}' has the key '{key}'; valid are {', '.join(valid)}.")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key.startswith("max_") and key != "max_runtime" and not number:
            raise ClusterError(f"{path}: {key} of partition '{name}' is {value!r}; valid is a number.")
    try:
        limit_minutes(limits.get("max_runtime"))
    except Exception:
        raise ClusterError(
            f"{path}: max_runtime of partition '{name}' is {limits['max_runtime']!r}; valid are minutes, or SLURM's "
            'notation in quotation marks, such as "1-00:00:00".'
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# Jobs


def check_names(wanted: Iterable[tuple[str, str]], known: Sequence[str]) -> None:
    """Checks that partitions exist, before anything is submitted to them.

    Args:
        wanted: Names, several with commas, each with who asks for it.
        known: What SLURM has.

    Raises:
        ClusterError: One of them does not.
    """
    for names, who in wanted:
        for name in names.split(","):
            if name not in known:
                raise ClusterError(
                    f"{who} names the partition '{name}', which this cluster does not have; valid are "
                    f"{', '.join(known)}."
                )


def choose(
    candidates: Sequence[Any], job: Any, logger: Any, best: Callable[[Sequence[Any], Any, Any], str | None]
) -> str:
    """The partition of a job that names none.

    As the plugin chooses, but jobs without a GPU take one with GPUs only where no other fits; and where the time that a
    job asks for is all that does not fit, it goes where most is given, and is given that.

    Args:
        candidates: The plugin's partitions.
        job: The plugin's job.
        logger: Snakemake's.
        best: How the plugin chooses.

    Returns:
        Its name.

    Raises:
        ClusterError: None fits.
    """
    gpus = int(job.resources.get("gpu") or 0) or "gpu" in str(job.resources.get("gres", ""))
    without = [partition for partition in candidates if not partition.limits.max_gpu]
    resources = {name: value for name, value in job.resources.items() if name != "runtime"}
    timeless = SimpleNamespace(name=job.name, threads=job.threads, resources=resources)
    for among in [candidates] if gpus else [without, candidates]:
        fitting = [partition for partition in among if partition.score_job_fit(timeless) is not None]
        if any(partition.score_job_fit(job) is not None for partition in fitting):
            return str(best(fitting, job, logger))
        if fitting:
            return str(max(fitting, key=lambda partition: partition.limits.max_runtime).name)
    asked = {name: job.resources.get(name) for name in ("gpu", "mem_mb", "constraint") if job.resources.get(name)}
    wanted = ", ".join(f"{name}={value}" for name, value in asked.items()) or f"{job.threads} threads"
    raise ClusterError(
        f"No partition fits {job.name}, which asks for {wanted}; the file of partitions has "
        f"{', '.join(partition.name for partition in candidates)}, and one of them must give as much, or one be added."
    )
