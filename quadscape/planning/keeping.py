"""What the large arrays of each checkpoint are needed for, and which of them the workflow purges itself (`keep`)."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from quadscape.config.sections import Run
from quadscape.measures import MEASURES
from quadscape.measures.declaration import stage_of
from quadscape.measures.result import items_directory
from quadscape.planning.targets import Targets
from quadscape.results.sizes import Kept, keep_readers
from quadscape.stored import stored_document

DENSE = ("hessian", "gauss_newton", "eigenbasis")
"""Stages of P×P entries, as measures name them; the Hessian's lie in its shards."""

_STAGES = {"hessian": ("hessian",), "basis": ("gauss_newton", "eigenbasis")}
"""What is purged at once, by its name."""

_MAKES = {"hessian": ("eigenbasis",), "basis": ()}
"""Stages that are made from it."""

_PURGED = {"all": (), "bases": ("hessian",), "tables": ("hessian", "basis")}
"""What is purged, by what is kept."""


class Keeping:
    """What the workflow purges, and after what.

    Attributes:
        targets: Results of the experiment.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets

    @cached_property
    def readers(self) -> dict[str, list[str]]:
        """Outputs that are made from a stage of P×P entries, or from what a result keeps, by the manifest of that.

        Of everything that the experiment asks for: also of what only a comparison, a training or a start point needs.
        """
        found: dict[str, dict[str, None]] = {}
        for output, manifest in [*self._measured(), *self._stepped()]:
            found.setdefault(manifest, {})[output] = None
        return {manifest: list(outputs) for manifest, outputs in found.items()}

    def remember(self, kept: Kept) -> None:
        """Keeps them for `quadscape purge`, which knows no experiment file."""
        experiment, root = self.targets.experiment, f"{self.targets.places.root}/"
        readers = {
            manifest.removeprefix(root): [output.removeprefix(root) for output in outputs]
            for manifest, outputs in self.readers.items()
        }
        names = [*(run.name for run in experiment.runs), *(grid.name for grid in experiment.grids)]
        keep_readers(kept, names, readers)

    def _measured(self) -> Iterator[tuple[str, str]]:
        """Every result of a measure with each manifest that it is made from, as far as something large lies there."""
        targets, runs = self.targets, self.targets.experiment.runs
        pending = [
            (name, *subject)
            for name in MEASURES
            for subject in targets.subjects(name)
            if targets.is_wanted(name, *subject)
        ]
        pending += [subject for run in runs for subject in targets.tuning_subjects(run.name)]
        seen = set(pending)
        while pending:
            name, run, key = pending.pop()
            measure, output = MEASURES[name], targets.result(name, run, key)
            for stage, manifests in targets.inputs(measure, run, key).items():
                if stage_of(stage) in DENSE or (stage in MEASURES and MEASURES[stage].keeps):
                    yield from ((output, manifest) for manifest in manifests)
            for other in [name for name in measure.reads if name in MEASURES]:
                read = [(other, *subject) for subject in targets.tables_read(other, measure, run, key)]
                pending += [subject for subject in read if subject not in seen]
                seen.update(read)

    def _stepped(self) -> Iterator[tuple[str, str]]:
        """Every run that steps by an eigenbasis, and every start point that is replayed by one."""
        places, runs = self.targets.places, {run.name: run for run in self.targets.experiment.runs}
        for run in runs.values():
            if (basis := run.basis()) is not None:
                yield places.trajectory(run.name), places.eigenbasis(*basis)
            start = run.start
            if start is not None and (basis := runs[start.run].basis()) is not None:
                yield places.start(start.run, start.iteration), places.eigenbasis(*basis)

    # -----------------------------------------------------------------------------------------------------------------
    # What is purged

    def outputs(self) -> list[str]:
        """What the jobs declare that purge something which is there, or is going to be."""
        place = self.targets.places.purge
        return [place(run, key, what) for what, run, key in self._purged() if self._is_to_purge(what, run, key)]

    def inputs(self, wildcards: Any) -> list[str]:
        """What must be finished before something is purged: everything that is made from it.

        Args:
            wildcards: Snakemake's: run, checkpoint, and what is purged.

        Returns:
            Declared outputs; no stage that was purged itself, since it would be computed again for that.
        """
        run, key, what = wildcards.run, wildcards.iteration, wildcards.what
        made = [*filter(self._is_made, (self._manifest(stage, run, key) for stage in _MAKES[what]))]
        if what == "basis" and self._is_to_purge("hessian", run, key):
            # Whose job waits for the eigenbasis.
            made.append(self.targets.places.purge(run, key, "hessian"))
        return [*made, *self._readers_of(what, run, key)]

    def outdated(self) -> list[str]:
        """Outputs that are made again, though nothing that they are made from has changed.

        Returns:
            Of jobs that purged what has been computed again since; and results whose measure keeps values that were
            purged, and that something reads which is not there.
        """
        found = [manifest for manifest in self.readers if self._lacks_kept(manifest)]
        for what, run, key in self._purged():
            output = self.targets.places.purge(run, key, what)
            stored = stored_document(output)
            if stored is not None and not stored.get("kept") and self._is_there(what, run, key):
                found.append(output)
        return found

    def _lacks_kept(self, manifest: str) -> bool:
        if not Path(manifest).name.startswith("manifest-") or not Path(manifest).exists():
            return False
        purged = (items_directory(manifest) / "purged.json").exists()
        return purged and not all(Path(output).exists() for output in self.readers[manifest])

    def _purged(self) -> list[tuple[str, str, str]]:
        """What is purged of which run and checkpoint, at some time."""
        found = []
        for what in _PURGED[self.targets.experiment.keep]:
            # What nothing reads is not made; but an eigenbasis on a subset may be asked for by itself.
            stages = (*_STAGES[what], *_MAKES[what])
            found += [
                (what, run.name, key)
                for run in self.targets.experiment.runs
                for key in self._keys(run)
                for asked in [self._manifest("eigenbasis", run.name, key) in self._by_themselves]
                if any(self._manifest(stage, run.name, key) in self.readers for stage in stages)
                or (asked and what == "hessian")
            ]
        return found

    def _keys(self, run: Run) -> list[str]:
        whole = [str(iteration) for iteration in run.checkpoints]
        return [*whole, *(key for one in whole for key in self.targets.on_subset_keys(run.name, one))]

    @cached_property
    def _by_themselves(self) -> set[str]:
        """Eigenbases on subsets."""
        return set(self.targets.on_subsets())

    def _manifest(self, stage: str, run: str, key: str) -> str:
        return str(getattr(self.targets.places, stage)(run, key))

    def _readers_of(self, what: str, run: str, key: str) -> list[str]:
        outputs = (self.readers.get(self._manifest(stage, run, key), ()) for stage in _STAGES[what])
        return list(dict.fromkeys(output for found in outputs for output in found))

    def _is_made(self, manifest: str) -> bool:
        """Whether a stage is there, or will be: it is asked for, or something that reads it is missing."""
        if manifest in self._by_themselves or Path(manifest).exists():
            return True
        return not all(Path(output).exists() for output in self.readers.get(manifest, ()))

    def _manifests(self, what: str, run: str, key: str) -> list[Path]:
        """Manifests of the stages whose arrays are large."""
        if what == "hessian":
            return [Path(shard) for shard in self.targets.places.hessian_shards(run, key)]
        return [Path(self._manifest(stage, run, key)) for stage in _STAGES[what]]

    def _is_there(self, what: str, run: str, key: str) -> bool:
        return any(manifest.exists() for manifest in self._manifests(what, run, key))

    def _is_to_purge(self, what: str, run: str, key: str) -> bool:
        if self._is_there(what, run, key):
            return True
        records = [manifest.with_name("purged.json") for manifest in self._manifests(what, run, key)]
        if not Path(self.targets.places.purge(run, key, what)).exists() and any(one.exists() for one in records):
            # By a job that was killed, which may have left files; or by hand.
            return True
        made = [self._manifest(stage, run, key) for stage in _MAKES[what]]
        return any(map(self._is_made_anew, made)) or not all(
            Path(output).exists() for output in self._readers_of(what, run, key)
        )

    def _is_made_anew(self, manifest: str) -> bool:
        return not Path(manifest).exists() and self._is_made(manifest)
