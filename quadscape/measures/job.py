"""One job of a measure: what it reads, opened on demand, and what it writes.

A result is a folder with one declared manifest and, beside it, one Parquet file per table. All names carry the same
eight digits of options and code label, so that other options or changed code are other files. Every table names its
origin, a digest of measure, label, options and the digests of all that was read: a job that finds tables of its own
origin measures nothing and writes the manifest, which equal results make equal byte for byte.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from quadscape.digests import json_digest
from quadscape.errors import StoreError
from quadscape.measures.declaration import Measure, Sizes, fingerprint_digits
from quadscape.stage.events import Log
from quadscape.tables import Table, read_table, table_head

if TYPE_CHECKING:
    import torch

    from quadscape.curvature.eigenbasis import Eigenbasis
    from quadscape.data.sets import Split
    from quadscape.network.checkpoint import Checkpoint
    from quadscape.network.objective import Objective
    from quadscape.training.trajectory import Curves


class Job:
    """What `compute` of a measure works on; each part is opened when it is first asked for.

    Attributes:
        run: Name of the run.
        iterations: The checkpoint, both of a pair, none for a whole run.
        options: The measure's options as attributes.
        inputs: Manifests or root metadata of all that the measure reads, by name.
        threads: CPU threads.
        log: Writes a line to the job's log.
    """

    def __init__(
        self,
        run: str,
        iterations: Sequence[int],
        options: Mapping[str, Any],
        inputs: Mapping[str, Sequence[str | Path]],
        *,
        device: str = "auto",
        threads: int = 1,
        log: Log = print,
    ) -> None:
        self.run, self.iterations, self.threads, self.log = run, tuple(iterations), threads, log
        self.options = SimpleNamespace(**options)
        self.inputs, self._device = inputs, device

    def path(self, name: str, which: int = 0) -> str | Path:
        """Manifest, or root metadata, of a stage or measure that it reads; `which` of a pair."""
        return self.inputs[name][which]

    @cached_property
    def device(self) -> "torch.device":
        """Where the job computes."""
        from quadscape.numerics import resolve_device

        return resolve_device(self._device)

    @cached_property
    def dtype(self) -> "torch.dtype":
        """Precision of the network."""
        import torch

        return getattr(torch, self.options.dtype)

    @property
    def epsilon(self) -> float:
        """Machine epsilon of the network's precision."""
        import torch

        return torch.finfo(self.dtype).eps

    @cached_property
    def course(self) -> "Curves":
        """Losses, learning rates, gradient norms and evaluations of the run."""
        from quadscape.training.trajectory import Trajectory

        return Trajectory.open(self.path("trajectory")).curves()

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """The checkpoint."""
        from quadscape.network.checkpoint import Checkpoint

        return Checkpoint.load(self.path("checkpoint"))

    @cached_property
    def bases(self) -> tuple["Eigenbasis", ...]:
        """The eigenbasis of the checkpoint, or of both of a pair."""
        from quadscape.curvature.eigenbasis import Eigenbasis

        return tuple(Eigenbasis(path) for path in self.inputs["eigenbasis"])

    @property
    def basis(self) -> "Eigenbasis":
        """The eigenbasis of the checkpoint."""
        return self.bases[0]

    def sizes(self) -> Sizes:
        """Sizes that the cost of a measure of a checkpoint follows from."""
        from quadscape.data.sets import data_info

        info = data_info(self.path("data"))
        counts, pixels = info.counts, math.prod(info.shape)
        size = len(self.checkpoint.theta)
        return Sizes(size, counts["train"], counts["validation"], counts["test"], len(info.classes), 8 * pixels, 8)

    def table(self, name: str, which: int = 0) -> Table:
        """A table of another measure that the measure reads; `which` of a pair."""
        from quadscape.measures import OWNERS, SCHEMAS

        return read_table(table_path(self.path(OWNERS[name].name, which), name), SCHEMAS[name])

    def objective(self, split: "Split") -> "Objective":
        """The loss at the checkpoint on one split."""
        from quadscape.network.objective import CheckpointObjectives

        objectives = CheckpointObjectives(self.path("checkpoint"), self.path("data"), split)
        return objectives.get(self.dtype, self.device)

    @cached_property
    def head(self) -> dict[str, Any]:
        """What every table of a checkpoint carries: run, iteration, P, N and weight_decay."""
        from quadscape.data.sets import data_info
        from quadscape.measures.interfaces import checkpoint_head

        checkpoint = self.checkpoint
        return checkpoint_head(checkpoint, len(checkpoint.theta), data_info(self.path("data")).counts["train"])

    @property
    def basis_head(self) -> dict[str, Any]:
        """The same with zero_threshold, the numerical zero ε_λ of the eigenbasis."""
        return {**self.head, "zero_threshold": float(self.basis.zero_threshold)}


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def read_document(path: str | Path) -> dict[str, Any]:
    """A manifest or root metadata as JSON; of a purged stage, the manifest that the record of the purge holds.

    Args:
        path: The file.

    Returns:
        Its content.
    """
    path = Path(path)
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return json.loads(path.with_name("purged.json").read_text(encoding="utf-8"))["manifest"]


def input_digest(path: str | Path) -> str:
    """Digest of the content of a stage, a store, or the tables of another measure.

    Args:
        path: Manifest or root metadata, as rules declare them.

    Returns:
        Hexadecimal digest, the same however the content was cut into shards.

    Raises:
        StoreError: The file is not there or says nothing.
    """
    try:
        found = read_document(path)
        if "tables" in found:
            return json_digest(found["tables"])
        attributes = found.get("attributes", {})
        own = attributes.get("content") or attributes.get("digest") or found.get("results", {}).get("content")
        return own or sha256(f"{found['fingerprint']} {found['digest']}".encode()).hexdigest()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); run the workflow again.") from error


@dataclass(frozen=True)
class Provenance:
    """Everything that a result follows from.

    Attributes:
        measure: The measure.
        label: Label of its code.
        options: Its options.
        inputs: Digests of what it reads, by name.
    """

    measure: Measure
    label: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Sequence[str]]

    @classmethod
    def of(
        cls, measure: Measure, label: str, options: Mapping[str, Any], paths: Mapping[str, Sequence[str | Path]]
    ) -> "Provenance":
        """That of a result whose inputs lie in some places, by name."""
        return cls(
            measure, label, options, {name: [input_digest(path) for path in paths[name]] for name in measure.reads}
        )

    def document(self) -> dict[str, Any]:
        """As JSON values, for the manifest."""
        return {
            "measure": self.measure.name,
            "label": self.label,
            "options": dict(self.options),
            "inputs": {name: list(found) for name, found in self.inputs.items()},
        }

    @property
    def origin(self) -> str:
        """Digest of all of it."""
        return json_digest(list(self.document().values()))


def manifest_name(digits: str) -> str:
    """Name of the declared file of a result."""
    return f"manifest-{digits}.json"


def table_path(manifest: str | Path, table: str) -> Path:
    """File of a table, beside the manifest of its result."""
    manifest = Path(manifest)
    return manifest.with_name(f"{table}-{manifest.stem.removeprefix('manifest-')}.parquet")


def read_result(manifest: str | Path) -> dict[str, Any]:
    """A manifest as JSON.

    Args:
        manifest: The file.

    Returns:
        measure, label, options, inputs, origin, and digests of the tables.

    Raises:
        StoreError: It is missing or damaged.
    """
    try:
        found = json.loads(Path(manifest).read_text(encoding="utf-8"))
        found["tables"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{manifest} is damaged ({error}); remove that file and run the workflow again.") from error
    return found


def write_result(manifest: str | Path, provenance: Provenance, tables: Mapping[str, Table]) -> None:
    """Writes the tables of a result, then its manifest.

    Args:
        manifest: The declared file.
        provenance: What the result follows from.
        tables: By name; all that the measure declares and no others.

    Raises:
        ValueError: The tables are not those that the measure declares.
    """
    measure, origin = provenance.measure, provenance.origin
    if tables.keys() != measure.schemas.keys():
        raise ValueError(f"{measure.name} declares {sorted(measure.schemas)}, but the tables are {sorted(tables)}")
    for name, table in tables.items():
        table.write(table_path(manifest, name), origin)
    write_manifest(manifest, provenance)


def write_manifest(manifest: str | Path, provenance: Provenance) -> None:
    """Writes the manifest of tables that are there.

    Args:
        manifest: The declared file.
        provenance: What the result follows from.
    """
    path = Path(manifest)
    files = {name: table_path(path, name) for name in provenance.measure.schemas}
    document = {
        **provenance.document(),
        "origin": provenance.origin,
        "tables": {name: table_head(file)["digest"] for name, file in files.items()},
        "files": {file.name: sha256(file.read_bytes()).hexdigest() for file in files.values()},
    }
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def _is_there(manifest: Path, measure: Measure, origin: str) -> bool:
    """Whether all tables of a result are there, whole, and of this origin."""
    for name, schema in measure.schemas.items():
        path = table_path(manifest, name)
        try:
            if table_head(path)["origin"] != origin:
                return False
            read_table(path, schema)
        except StoreError:
            return False
    return True


def run_measure(measure: Measure, label: str, job: Job, options: Mapping[str, Any], manifest: str | Path) -> None:
    """Measures, unless the tables are there already.

    Args:
        measure: The measure.
        label: Label of its code.
        job: What it works on.
        options: Its options, the same as the job's.
        manifest: The declared file; its name carries the digits of options and label.

    Raises:
        StoreError: The name of the manifest belongs to other options or other code.
    """
    manifest = Path(manifest)
    digits = fingerprint_digits(options, label)
    if manifest.name != manifest_name(digits):
        raise StoreError(
            f"{manifest} belongs to other options or other code of the measure {measure.name}, whose files now carry "
            f"{digits} in their names; ask for that one."
        )
    provenance = Provenance.of(measure, label, options, job.inputs)
    if _is_there(manifest, measure, provenance.origin):
        job.log("The tables are there already, from the same options, code and inputs; nothing is measured.")
        write_manifest(manifest, provenance)
    elif measure.items:
        from quadscape.measures.items import measure_items, remove_items

        write_result(manifest, provenance, measure_items(measure, job, provenance.origin, manifest))
        remove_items(manifest)
    else:
        if measure.stages:
            from quadscape.numerics import apply_numerics

            apply_numerics(job.threads)
        write_result(manifest, provenance, import_module(measure.module).compute(job))
