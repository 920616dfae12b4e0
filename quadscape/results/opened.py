"""Finished results of an experiment, for reading: what lies in its folder, without the experiment file."""

from pathlib import Path

import torch

from quadscape.config.sections import Curvature
from quadscape.config.values import listed
from quadscape.curvature.hessian import HessianMatrix
from quadscape.curvature.stored_basis import Eigenbasis
from quadscape.data.sources import Split
from quadscape.errors import ConfigError, StoreError
from quadscape.measures import MEASURES
from quadscape.measures.declaration import GROUPS, subject_iterations
from quadscape.measures.result import read_result, table_path
from quadscape.network.checkpoint import Checkpoint
from quadscape.network.objective import CheckpointObjectives, Objective
from quadscape.results.places import Places, locate
from quadscape.tables import Table, read_table
from quadscape.training.trajectory import Trajectory


class Results:
    """What an experiment has left in its folder; everything is opened when it is asked for, and nothing is written.

    Attributes:
        root: The folder, `results/<name>`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._places = Places(root.name, Curvature())
        self._places.root = str(root)  # the folder may have been moved

    def __repr__(self) -> str:
        runs = ", ".join(
            f"'{run}' at {', '.join(map(str, self.iterations(run))) or 'no iteration'}" for run in self.runs
        )
        return f"Results of '{self.root.name}': {runs or 'no run'}"

    @property
    def runs(self) -> list[str]:
        """Names of the runs, members of families (`<family>/<8 digits>`) included."""
        found = {locate(path.absolute()) for kind in ("trajectory", "checkpoints") for path in self._having(kind)}
        return sorted(one.run for one in found if one is not None)

    def _having(self, kind: str) -> list[Path]:
        return [path for depth in ("*", "*/*") for path in (self.root / "runs").glob(f"{depth}/{kind}")]

    def iterations(self, run: str) -> list[int]:
        """Iterations of a run's checkpoints, ascending."""
        found = Path(self._places.checkpoint(self._known(run), "*"))
        return sorted(int(path.parents[1].name) for path in self.root.glob(str(found.relative_to(self.root))))

    def trajectory(self, run: str) -> Trajectory:
        """The training of a run: its iterates, losses and evaluations."""
        return Trajectory.open(self._places.trajectory(self._known(run)))

    def checkpoint(self, run: str, iteration: int) -> Checkpoint:
        """The network of a run after so many steps."""
        return Checkpoint.load(self._places.checkpoint(run, self._taken(run, iteration)))

    def objective(
        self, run: str, iteration: int, split: Split = "train", dtype: torch.dtype = torch.float64
    ) -> Objective:
        """The loss of a checkpoint's network over one split of the data, on the CPU.

        Args:
            run: Name of the run.
            iteration: Number of steps.
            split: `train`, `validation` or `test`.
            dtype: Precision of the network.

        Returns:
            The objective; θ, which its methods take, is `checkpoint(run, iteration).theta`.
        """
        checkpoint = self._places.checkpoint(run, self._taken(run, iteration))
        return CheckpointObjectives(checkpoint, self.root / "data.zarr", split).get(dtype, "cpu")

    def hessian(self, run: str, iteration: int) -> HessianMatrix:
        """The Hessian of a checkpoint, which stays on disk: `columns` and `dense` read it."""
        return HessianMatrix(self._places.hessian(run, self._taken(run, iteration)))

    def eigenbasis(self, run: str, iteration: int) -> Eigenbasis:
        """The eigenbasis of a checkpoint, which stays on disk: `vectors` and `select` read some of it."""
        return Eigenbasis(self._places.eigenbasis(run, self._taken(run, iteration)))

    def tables(self, measure: str, run: str | None = None) -> dict[str, list[Table]]:
        """The tables of a measure, as `quadscape.draw` takes them.

        Args:
            measure: Name of the measure.
            run: Name of a run, or of a family for a measure of families; None: of all.

        Returns:
            Tables by name, in the order of runs and iterations. Where a result is there with several options or from
            several versions of the code, the one that was written last.

        Raises:
            ConfigError: There is no such measure or run.
        """
        if measure not in MEASURES:
            raise ConfigError(f"There is no measure '{measure}'; the measures are {listed(list(MEASURES))}.")
        found: dict[str, list[Table]] = {name: [] for name in MEASURES[measure].schemas}
        there = self._groups(measure) if MEASURES[measure].of in GROUPS else self.runs
        if run is not None and run not in there:
            self._known(run)
        for one in there if run is None else [run]:
            folders = (self.root / "tables" / measure / one).glob("*")
            for folder in sorted(folders, key=lambda path: _in_order(path.name)):
                manifests = sorted(folder.glob("manifest-*.json"), key=lambda path: path.stat().st_mtime_ns)
                if manifests:
                    # A result of an earlier version may lack a table that the measure was given since.
                    known = read_result(manifests[-1])["tables"]
                    for name, schema in MEASURES[measure].schemas.items():
                        if name in known:
                            found[name].append(read_table(table_path(manifests[-1], name), schema))
        return found

    def _groups(self, measure: str) -> list[str]:
        """Families, or pairs, of which a measure has results."""
        tables, whole = self.root / "tables" / measure, GROUPS[MEASURES[measure].of]
        return sorted(
            path.parent.relative_to(tables).as_posix() for path in tables.glob(f"**/{whole}") if path.is_dir()
        )

    def _known(self, run: str) -> str:
        if run not in self.runs:
            raise ConfigError(f"There is no run '{run}' in {self.root}; the runs are {listed(self.runs)}.")
        return run

    def _taken(self, run: str, iteration: int) -> int:
        there = self.iterations(run)
        if iteration not in there:
            raise ConfigError(
                f"Run '{run}' in {self.root} has no checkpoint at iteration {iteration}; its checkpoints are at "
                f"{listed([str(number) for number in there])}."
            )
        return iteration


def _in_order(key: str) -> list[int]:
    return [int(part) for part in subject_iterations(key) if part.isdecimal()]


def open_results(path: str | Path) -> Results:
    """Opens the results of an experiment, for reading.

    Args:
        path: Its folder, `results/<name>`.

    Returns:
        Runs, checkpoints, trajectories, Hessians, eigenbases and tables, as far as they are there.

    Raises:
        StoreError: There are no results in that folder.
    """
    root = Path(path)
    if not (root / "runs").is_dir():
        raise StoreError(f"There are no results in {root}, which has no folder 'runs'; give the folder results/NAME.")
    return Results(root)
