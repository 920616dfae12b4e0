"""What the jobs of an experiment took, by section of the report, from the last lines of their logs."""

import re
from dataclasses import dataclass
from pathlib import Path

from quadscape.errors import StoreError
from quadscape.measures import MEASURES
from quadscape.measures.declaration import CHAPTERS

_OTHERS = "Figures and findings"
_STAGES = dict.fromkeys(
    ("prepare_data", "select_subset", "train", "train_together", "train_member", "extract_start"), 1
)
_STAGES["extract_checkpoint"] = 2
_TAKEN = re.compile(r" took .*?([\d.]+) CPU-s and at most ")


@dataclass
class Spent:
    """What some jobs took.

    Attributes:
        jobs: Their number.
        cpu_seconds: Of all their attempts that ended by themselves, user and system together.
    """

    jobs: int = 0
    cpu_seconds: float = 0.0


def _section(rule: str) -> str:
    """Section of the report that a rule works for."""
    if rule.startswith("measure_") and (measure := MEASURES.get(rule.removeprefix("measure_"))):
        chapter = measure.chapter
    elif rule in _STAGES or rule.startswith("compute_"):
        chapter = _STAGES.get(rule, 2)
    else:
        return _OTHERS
    return f"{chapter} {CHAPTERS[chapter]}"


def costs(logs: Path) -> dict[str, Spent]:
    """What the jobs of an experiment took.

    Args:
        logs: Folder of its logs, `logs/<name>`.

    Returns:
        By section of the report, in their order; only those that had jobs.

    Raises:
        StoreError: No log says what its job took.
    """
    found: dict[str, Spent] = {}
    for path in sorted(logs.rglob("*.log")):
        taken = _TAKEN.findall(path.read_text(encoding="utf-8", errors="replace"))
        if taken:
            rule = path.relative_to(logs).parts[0].removesuffix(".log")
            spent = found.setdefault(_section(rule), Spent())
            spent.jobs += 1
            spent.cpu_seconds += sum(map(float, taken))
    if not found:
        raise StoreError(f"There are no logs of finished jobs in {logs}; run the workflow, which writes them.")
    order = [f"{chapter} {name}" for chapter, name in CHAPTERS.items()] + [_OTHERS]
    return {section: found[section] for section in order if section in found}


def format_costs(found: dict[str, Spent]) -> str:
    """A table for a terminal, with a line for all sections together."""
    total = Spent(sum(spent.jobs for spent in found.values()), sum(spent.cpu_seconds for spent in found.values()))
    lines = [f"{'section':<24}{'jobs':>6}{'CPU-s':>10}{'CPU-s a job':>14}"]
    for section, spent in {**found, "all": total}.items():
        each = spent.cpu_seconds / spent.jobs
        lines.append(f"{section:<24}{spent.jobs:>6}{spent.cpu_seconds:>10.1f}{each:>14.2f}")
    return "\n".join(lines)
