"""One job of a measure: what it reads, opened on demand."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.measures.declaration import AT_START, Sizes
from quadscape.measures.family import Family
from quadscape.stage.events import Log
from quadscape.store import read_store
from quadscape.tables import Table, TableSchema, read_table

if TYPE_CHECKING:
    import torch

    from quadscape.curvature.stored_basis import Eigenbasis
    from quadscape.data.sets import DataSet
    from quadscape.data.sources import Split
    from quadscape.network.checkpoint import Checkpoint
    from quadscape.network.objective import Objective
    from quadscape.stage.finished import FinishedStage
    from quadscape.training.trajectory import Curves, Trajectory
from quadscape.measures.result import open_kept, table_path


class KeptValues:
    """Values of single items that a measure keeps, read where they are sliced and checked against their checksums.

    Attributes:
        shape: Items in front.
        dtype: Of an entry.
    """

    def __init__(self, stage: "FinishedStage", name: str) -> None:
        self._stage, self._name = stage, name
        array = stage.array(name)
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, selection: Any) -> np.ndarray:
        return self._stage.read(self._name, selection)


class Job:
    """What `compute` of a measure works on; each part is opened when it is first asked for.

    Attributes:
        run: Name of the run, or of the family.
        iterations: The checkpoint, both of a pair, none for a whole run or a family.
        options: The measure's options as attributes.
        inputs: Manifests or root metadata of all that the measure reads, by name; of a family, of every member in its
            order.
        family: The family, where the measure is of one.
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
        family: Family | None = None,
        device: str = "auto",
        threads: int = 1,
        log: Log = print,
    ) -> None:
        self.run, self.iterations, self.threads, self.log = run, tuple(iterations), threads, log
        self.options = SimpleNamespace(**options)
        self.inputs, self._family, self._device = inputs, family, device
        self._objectives: dict[torch.dtype, dict[Split, Objective]] = {}

    @property
    def family(self) -> Family:
        """The family that the measure is of."""
        assert self._family is not None, "the measure is of no family"
        return self._family

    def described(self) -> dict[str, Any]:
        """What of the subject the result follows from besides inputs and options, as JSON values."""
        return {} if self._family is None else {"family": self._family.document()}

    def path(self, name: str, which: int = 0) -> str | Path:
        """Manifest, or root metadata, of a stage or measure that it reads; `which` of a pair or a family."""
        return self.inputs[name][which]

    @cached_property
    def device(self) -> "torch.device":
        """Where the job computes with torch, under its threads; who needs neither does not load torch."""
        from quadscape.numerics import apply_numerics, resolve_device

        apply_numerics(self.threads)
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

    def trajectory(self, which: int = 0) -> "Trajectory":
        """A training; `which` of a family."""
        from quadscape.training.trajectory import Trajectory

        return Trajectory.open(self.path("trajectory", which))

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """The checkpoint."""
        from quadscape.network.checkpoint import Checkpoint

        return Checkpoint.of(*self._stored_checkpoint, self.path("checkpoint"))

    @cached_property
    def _stored_checkpoint(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Its arrays and attributes, for which no network is built."""
        return read_store(self.path("checkpoint"))

    @cached_property
    def _data(self) -> "DataSet":
        from quadscape.data.sets import DataSet

        return DataSet.load(self.path("data"), device=self.device, dtype=self.dtype)

    @cached_property
    def bases(self) -> tuple["Eigenbasis", ...]:
        """The eigenbasis of the checkpoint, or of both of a pair."""
        from quadscape.curvature.stored_basis import Eigenbasis

        return tuple(Eigenbasis(path) for path in self.inputs["eigenbasis"])

    @property
    def basis(self) -> "Eigenbasis":
        """The eigenbasis of the checkpoint."""
        return self.bases[0]

    @cached_property
    def at_start(self) -> "Job":
        """The checkpoint at which all members of the family start, as a job of that has it.

        Of it are `basis`, `checkpoint`, `objective` and `head`; data and loss are those of all members.
        """
        assert self.family.start is not None, "the measure reads no start"
        run, iteration = self.family.start
        inputs = {"data": self.inputs["data"][:1]} if "data" in self.inputs else {}
        inputs |= {stage: self.inputs[name] for name, stage in AT_START.items() if name in self.inputs}
        options = vars(self.options)
        return Job(run, [iteration], options, inputs, device=self._device, threads=self.threads, log=self.log)

    def sizes(self) -> Sizes:
        """Sizes that the cost of a measure of a checkpoint or a run follows from."""
        from quadscape.config.model import model_section
        from quadscape.data.info import data_info
        from quadscape.network.counting import count_graph
        from quadscape.network.counts import chunk_bytes

        info = data_info(self.path("data"))
        counts, pixels = info.counts, math.prod(info.shape)
        if "checkpoint" in self.inputs:
            arrays, given = self._stored_checkpoint
            size = len(arrays["theta"])
        else:
            given = self.trajectory().stage.manifest["parameters"]
            size = int(given["parameters"])
        numbers = count_graph(model_section(given["model"]), info.shape, len(info.classes), given["loss"])
        return Sizes(
            parameters=size,
            training=counts["train"],
            validation=counts["validation"],
            test=counts["test"],
            classes=len(info.classes),
            example_bytes=8 * pixels,
            itemsize=8,
            graph_bytes=chunk_bytes(numbers, counts["train"], 8),
            device=self.device.type,
        )

    def table(self, measure: str, schema: TableSchema, which: int = 0) -> Table:
        """A table of another measure that the measure reads.

        Args:
            measure: The other measure.
            schema: Of the table; named, so that a result does not follow from the declarations of all measures.
            which: Which of them, where there are several.

        Returns:
            The table.
        """
        return read_table(table_path(self.path(measure, which), schema.name), schema)

    def kept_values(self, measure: str, name: str, which: int = 0) -> "KeptValues":
        """What another measure that the measure reads keeps beside its tables.

        Args:
            measure: The other measure.
            name: One of those that it `keeps`.
            which: Which of them, where there are several.

        Returns:
            Sliceable: only what is sliced is read.
        """
        return KeptValues(open_kept(self.path(measure, which)), name)

    def objective(self, split: "Split") -> "Objective":
        """The loss at the checkpoint on one split; all splits share one network."""
        return self._objective_in(self.dtype, split)

    def short_objective(self, split: "Split") -> "Objective | None":
        """The same in float32, images rounded once; None where that is the precision anyway."""
        import torch

        return None if self.dtype == torch.float32 else self._objective_in(torch.float32, split)

    def objective_on(self, data: str | Path) -> "Objective":
        """The training loss at the checkpoint, on another data store with the same classes."""
        from quadscape.data.sets import DataSet

        found = DataSet.load(data, device=self.device, dtype=self.dtype)
        images, labels = found.split("train")
        return self.objective("train").over(images.to(self.device, self.dtype), labels.to(self.device))

    def _objective_in(self, dtype: "torch.dtype", split: "Split") -> "Objective":
        from quadscape.network.objective import objective_for

        of_dtype = self._objectives.setdefault(dtype, {})
        first = next(iter(of_dtype.values()), None)
        if first is None:
            of_dtype[split] = objective_for(self.checkpoint, self._data, split, dtype, self.device)
        elif split not in of_dtype:
            images, labels = self._data.split(split)
            of_dtype[split] = first.over(images.to(self.device, dtype), labels.to(self.device))
        return of_dtype[split]

    @cached_property
    def head(self) -> dict[str, Any]:
        """What every table of a checkpoint carries: run, iteration, P, N and weight_decay."""
        from quadscape.data.info import data_info
        from quadscape.measures.interfaces import checkpoint_head

        arrays, attributes = self._stored_checkpoint
        checkpoint = SimpleNamespace(**attributes)
        return checkpoint_head(checkpoint, len(arrays["theta"]), data_info(self.path("data")).counts["train"])

    @property
    def training(self) -> dict[str, Any] | None:
        """The resolved `training` section of the checkpoint's run; None for parameters trained elsewhere."""
        return self._stored_checkpoint[1]["training"]

    @property
    def basis_head(self) -> dict[str, Any]:
        """The same with zero_threshold, the numerical zero ε_λ of the eigenbasis."""
        return {**self.head, "zero_threshold": float(self.basis.zero_threshold)}
