"""What a head is going to read: its plan, kept in `.quadscape/plan.json`, so that `quadscape purge` leaves it there."""

import contextlib
from pathlib import Path
from typing import Any

from quadscape.cluster.heads import PLACE, read_json, write_json
from quadscape.errors import ClusterError

_STAGES = {"gauss_newton", "eigenbasis"}


def record_plan(workflow: Any) -> None:
    """Records which jobs of this head read what `quadscape purge` could remove.

    Args:
        workflow: Snakemake's workflow, with its plan.
    """
    reads: dict[str, list[list[str]]] = {}
    for job in workflow.dag.needrun_jobs():
        if job.rule.name == "purge":
            continue
        outputs = [str(Path(path).absolute()) for path in job.output]
        for path in [Path(path).absolute() for path in job.input]:
            if path.parent.name in _STAGES or path.parents[1].name == "hessian_shards" or path.match("manifest-*.json"):
                reads.setdefault(str(path), []).append(outputs)
    # A head must not fail for want of its record.
    with contextlib.suppress(OSError):
        write_json(PLACE / "plan.json", reads)


def planned_reads(root: Path) -> dict[Path, str]:
    """Manifests of stages that a living head, or a job that is queued or running, is still going to read.

    Args:
        root: The working directory.

    Returns:
        Why each must stay, by its absolute path; nothing where nobody is at work.

    Raises:
        ClusterError: SLURM does not answer, so that nobody knows; or what is planned is not known.
    """
    # Here, since it reads stages, and so loads Zarr, which the head does not.
    from quadscape.cluster.activity import look

    activity = look(root)
    if activity.silence:
        raise ClusterError(f"{activity.silence.rstrip('.')}, so that what its jobs read is not known; purge later.")
    if not (activity.at_work or activity.head_is_out_of_sight):
        return {}
    place = root / PLACE / "plan.json"
    if not place.exists():
        raise ClusterError(
            "A head or its jobs are at work in this directory (quadscape status), and what they read is not known; "
            "purge once they have ended."
        )
    began, found = place.stat().st_mtime_ns, {}
    for path, jobs in read_json(place).items():
        waiting = sum(any(not _is_newer(output, began) for output in outputs) for outputs in jobs)
        if waiting:
            found[Path(path)] = (
                f"{waiting} {'job is' if waiting == 1 else 'jobs are'} going to read it, which a head has planned"
            )
    return found


def _is_newer(output: str, began: int) -> bool:
    """Whether an output was made after a time: Snakemake touches each when its job has ended."""
    try:
        return Path(output).stat().st_mtime_ns >= began
    except OSError:
        return False
