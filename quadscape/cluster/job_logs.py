"""The logs of a rule's jobs: what the rule says, and what SLURM keeps of each job."""

import re
from collections.abc import Iterator
from pathlib import Path

from quadscape.cluster.slurm import rule_of_log
from quadscape.errors import StoreError

_FILES = 6
_LINES = 20


def _logs(root: Path) -> Iterator[tuple[str, Path]]:
    """Rule and path of every log; that of a group of jobs comes once for each of its rules."""
    # logs/<experiment>/<rule>/….log, or <rule>.log where a rule has no wildcards
    for path in (root / "logs").glob("*/**/*.log"):
        parts = path.relative_to(root / "logs").parts
        if parts[0] == "controller":
            yield "controller", path
        elif not any(part.startswith(("rule_", "group_")) for part in parts[:-1]):
            yield parts[1].removesuffix(".log"), path
    # <slurm-logdir>/rule_<rule>/<wildcards>/<job>.log
    for place in (root / "logs", root / ".snakemake/slurm_logs"):
        for path in place.glob("**/*.log"):
            kinds = [part for part in path.relative_to(place).parts[:-1] if part.startswith(("rule_", "group_"))]
            if not kinds:
                continue
            if kinds[0].startswith("rule_"):
                yield kinds[0].removeprefix("rule_"), path
            else:
                text = path.read_text(errors="replace")
                for rule in sorted(set(re.findall(r"^ *(?:local)?rule (\w+):", text, flags=re.MULTILINE))):
                    yield rule, path


def rule_of_job(root: Path, number: str) -> str:
    """Rule or group and wildcards of a SLURM job, from where its log lies.

    Args:
        root: The workflow's working directory.
        number: The job's.

    Returns:
        As `Job.rule`; empty where there is no log.
    """
    for place in (root / "logs/slurm", root / ".snakemake/slurm_logs"):
        for path in place.glob(f"**/{number}.log"):
            return rule_of_log(path)
    return ""


def format_logs(root: Path, rule: str) -> str:
    """The newest lines of the newest logs of a rule.

    Args:
        root: The workflow's working directory.
        rule: The rule.

    Returns:
        For each log its path and its last lines, the newest log last.

    Raises:
        StoreError: There is no log of that rule.
    """
    logs = list(_logs(root))
    paths = sorted({path for name, path in logs if name == rule}, key=lambda path: path.stat().st_mtime)
    if not paths:
        names = sorted({name for name, _ in logs})
        raise StoreError(
            f"There are no logs of a rule '{rule}' in {root / 'logs'}; "
            + (f"there are some of {', '.join(names)}." if names else "there are none at all.")
        )
    blocks = []
    if len(paths) > _FILES:
        blocks.append(f"({len(paths) - _FILES} older logs are not shown)")
    for path in paths[-_FILES:]:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:]
        blocks.append("\n".join([str(path.relative_to(root)), *(f"    {line}" for line in lines)]))
    return "\n".join(blocks)
