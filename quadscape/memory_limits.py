"""Memory that this process may take, which is often less than the machine has: limits of control groups, SLURM, ulimit.

A process over the limit of its control group is killed without a word, so every one on the way up counts.
"""

import contextlib
import os
import re
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

_NONE = 1 << 60
"""Version 1 writes the largest multiple of a page for no limit."""


def _number(path: Path) -> int | None:
    """The number in a file; None for `max`, for version 1's huge one, and where there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() and int(text) < _NONE else None


def _reclaimable(folder: Path) -> int:
    """Bytes of a group's usage that are only cached files, which the kernel gives up when memory is needed."""
    with contextlib.suppress(OSError):
        pairs = re.findall(r"^((?:total_)?(?:in)?active_file) (\d+)$", (folder / "memory.stat").read_text(), re.M)
        sizes = {name: int(size) for name, size in pairs}
        # Version 1 writes its own and that of the groups below it.
        return sum(max(sizes.get(n, 0), sizes.get(f"total_{n}", 0)) for n in ("inactive_file", "active_file"))
    return 0


def _unescaped(text: str) -> str:
    """A path of mountinfo, which writes spaces and the like as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _folders(system: Path) -> Iterator[Path]:
    """The control groups of this process from its own up to the root, of both versions."""
    try:
        groups = (system / "proc/self/cgroup").read_text().splitlines()
        mounts = (system / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        for mount in mounts:
            before, _, after = mount.partition(" - ")
            kind, _, options = (*after.split(" "), "", "")[:3]
            fields = before.split(" ")
            if len(fields) < 5 or kind != ("cgroup" if controllers else "cgroup2"):
                continue
            if controllers and "memory" not in options.split(","):
                continue
            top = system / _unescaped(fields[4]).lstrip("/")
            inside = path
            if fields[3] != "/":
                # In a container what is mounted may be the process's own group.
                inside = path.removeprefix(fields[3]) if (path + "/").startswith(fields[3] + "/") else ""
            folder = top / inside.lstrip("/")
            while ".." not in folder.parts:
                yield folder
                if folder == top:
                    break
                folder = folder.parent


def cgroup_limits(system: Path = Path("/")) -> list[tuple[int, int]]:
    """Limits of this process's control groups.

    Args:
        system: Where `proc` and what is mounted lie.

    Returns:
        For each group with a limit: the limit, and what of it is left, in bytes.
    """
    found = []
    for folder in _folders(system):
        limits = [_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        given = [limit for limit in limits if limit is not None]
        if given:
            used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
            found.append((min(given), max(0, min(given) - max(0, used - _reclaimable(folder)))))
    return found


def _megabytes(text: str) -> int | None:
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip().upper())
    if match is None:
        return None
    return int(match[1]) << {"K": 10, "": 20, "M": 20, "G": 30, "T": 40}[match[2]]


def _count(environment: Mapping[str, str], *names: str) -> int:
    """The first of some variables that holds a number, as in `4`, `4(x2)`, `h100:2` and `a100:1,h100:2`."""
    for name in names:
        parts = re.sub(r"\(.*?\)", "", environment.get(name, "")).split(",")
        numbers = [part.rpartition(":")[2] for part in parts if part]
        if numbers and all(number.isdecimal() for number in numbers):
            return sum(map(int, numbers)) if ":" in environment[name] else int(numbers[0])
    return 1


def slurm_limit(environment: Mapping[str, str]) -> int | None:
    """What SLURM has given to the job on this machine.

    Args:
        environment: Environment variables.

    Returns:
        Bytes; None where it has set no limit.
    """
    cpus = _count(environment, "SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE", "SLURM_CPUS_PER_TASK")
    gpus = _count(environment, "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE", "SLURM_GPUS")
    if not any(environment.get(name) for name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE", "SLURM_GPUS")):
        gpus = max(1, len([part for part in environment.get("SLURM_JOB_GPUS", "").split(",") if part]))
    for name, count in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cpus), ("SLURM_MEM_PER_GPU", gpus)):
        size = _megabytes(environment.get(name, ""))
        if size:  # 0 means the whole node
            return size * max(1, count)
    return None


def _address_space() -> list[tuple[int, int]]:
    """Limits of `ulimit -v` and `ulimit -d`, and what is left of them."""
    found = []
    try:
        pages = Path("/proc/self/statm").read_text().split()
    except OSError:
        pages = ["0"] * 7
    size = resource.getpagesize()
    for which, used in ((resource.RLIMIT_AS, int(pages[0]) * size), (resource.RLIMIT_DATA, int(pages[5]) * size)):
        limit = resource.getrlimit(which)[0]
        if 0 <= limit < _NONE:
            found.append((limit, max(0, limit - used)))
    return found


def limited(memory: int, *, left: bool) -> int:
    """Memory of the machine, or less where this process may take less.

    Args:
        memory: Bytes of the machine.
        left: What is left of the limits, instead of the limits.

    Returns:
        Bytes.
    """
    limits = [pair[left] for pair in (*cgroup_limits(), *_address_space())]
    slurm = slurm_limit(os.environ)
    return min([memory, *limits, *([] if slurm is None else [slurm])])


def memory_available() -> int:
    """Bytes of memory that this process may still take: the machine's, or what is left of a limit."""
    return limited(psutil.virtual_memory().available, left=True)


def memory_total() -> int:
    """Bytes of memory of the machine, or of the smallest limit of this process, whoever uses them at present."""
    return limited(psutil.virtual_memory().total, left=False)


def peak_memory() -> int:
    """Largest resident size that this process has had.

    Returns:
        Bytes; where the kernel does not tell, those of getrusage, which begin at what the process that started this one
        had.
    """
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.M)
        if found:
            return 1024 * int(found[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
