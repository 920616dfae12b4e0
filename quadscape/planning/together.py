"""Members of families that are small are trained many to a job; each then finds its training finished.

Starting a process takes longer than a small training. Each member keeps a rule, a stage and a manifest of its own, so
that a further member leaves the others as they are. What comes before them is one job for each part of a family, which
trains what is missing and keeps the manifests: Snakemake removes that of a member before the member's own job, which
puts it back. Where anything differs, or the part knows nothing of it, the member's job trains by itself.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from quadscape.digests import json_digest
from quadscape.durable import replace_text
from quadscape.errors import QuadscapeError
from quadscape.measures.result import input_digest
from quadscape.planning.experiment import Experiment
from quadscape.planning.tuned import run_to_train
from quadscape.stage.events import Log


@dataclass(frozen=True)
class Training:
    """What one training reads and writes.

    Attributes:
        parameters: Of its rule.
        inputs: Manifests and root metadata, by name.
        manifest: Its manifest.
    """

    parameters: Mapping[str, Any]
    inputs: Mapping[str, Sequence[str]]
    manifest: str

    @property
    def asked(self) -> str:
        """Digest of everything that it follows from."""
        read = {name: [input_digest(path) for path in paths] for name, paths in self.inputs.items()}
        return json_digest([dict(self.parameters), read])


PARTS = 2
"""Parts of a family, by the digits of its members, so that which members share a job is always the same."""
_FORMAT = 1


def part_of(run: str) -> int:
    """The part of its family to which a member belongs, from 0."""
    return int(run.rpartition("/")[2], 16) % PARTS


def _record(part: str | Path) -> dict[str, Any]:
    try:
        document = json.loads(Path(part).read_text(encoding="utf-8"))
        checksum = document.pop("checksum")
        if checksum == json_digest(document) and document["format"] == _FORMAT:
            return dict(document["members"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def unknown_members(part: str | Path, runs: Sequence[str]) -> list[str]:
    """Members of which a part that was trained before knows nothing."""
    known = _record(part)
    return [run for run in runs if run not in known]


def take_manifest(part: str | Path, run: str, asked: str, manifest: str | Path) -> bool:
    """Puts the manifest of a member back, if it was trained for what is asked for.

    Args:
        part: What its part keeps.
        run: Name of the member.
        asked: From `Training.asked`.
        manifest: Where its manifest belongs.

    Returns:
        Whether it is there now.
    """
    found, manifest = _record(part).get(run), Path(manifest)
    if found is None or found["asked"] != asked or not (manifest.parent / "store.zarr/zarr.json").is_file():
        return False
    replace_text(manifest, found["manifest"])
    return True


def train_member(experiment: Experiment, raw: Mapping[str, Any], run: str, job: Training, log: Log) -> None:
    """Trains one run, or goes on with it.

    Args:
        experiment: The experiment.
        raw: The content of its file.
        run: Name of the run.
        job: What it reads, and where its manifest belongs.
        log: Receives progress.
    """
    # Here, since most jobs of members find everything done and need not load torch.
    from quadscape.stage.run import run_stage
    from quadscape.training.start import StartPoint
    from quadscape.training.step_rules import step_of
    from quadscape.training.task import TrainingTask

    section = run_to_train(experiment, raw, run, job.inputs["chosen"], log)
    data, rule = job.inputs["data"][0], None if section.step is None else section.step.rule()
    task = TrainingTask(
        section,
        experiment.run_seed(section),
        experiment.model_of(section),
        experiment.loss_of(section),
        data,
        experiment.device,
        None if section.start is None else StartPoint.load(job.inputs["start"][0], section.start),
        step_of(section, rule, next(iter(job.inputs["eigenbasis"]), None), data),
    )
    task.may_diverge = experiment.is_member(run)
    run_stage(task, Path(job.manifest).parent, log=log)


def _say(log: Log, who: str, message: str) -> None:
    log(f"{who}: {message}")


def train_together(
    experiment: Experiment, raw: Mapping[str, Any], trainings: Mapping[str, Training], out: str | Path, log: Log
) -> None:
    """Trains some runs one after another; one that fails is left to its own job, which says why.

    Args:
        experiment: The experiment.
        raw: The content of its file.
        trainings: What each reads and writes, by name of the run.
        out: Where their manifests are kept.
        log: Receives progress.
    """
    members: dict[str, Any] = {}
    for number, (run, training) in enumerate(trainings.items(), 1):
        said = f"{run} ({number} of {len(trainings)})"
        try:
            train_member(experiment, raw, run, training, partial(_say, log, said))
        except QuadscapeError as error:
            _say(log, said, str(error))
            continue
        text = Path(training.manifest).read_text(encoding="utf-8")
        members[run] = {"asked": training.asked, "manifest": text}
    document = {"format": _FORMAT, "members": members}
    replace_text(
        Path(out), json.dumps({**document, "checksum": json_digest(document)}, indent=1, sort_keys=True) + "\n"
    )
