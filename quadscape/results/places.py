"""Where everything lies.

Paths are relative to the working directory, and every one that a rule declares is a small file: the manifest of a long
stage, the root metadata of a Zarr store, a figure, or a page.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from quadscape.config.sections import Curvature, Run
from quadscape.curvature.shards import shard_directory, shard_name
from quadscape.measures.result import manifest_name
from quadscape.paths import user_path
from quadscape.provenance.versions import STAGE_VERSIONS
from quadscape.stored import stored_attributes, stored_manifest

_MEMBER = re.compile(r"[0-9a-f]{8}")
_INSIDE = ("trajectory", "checkpoints", "starts")


@dataclass(frozen=True)
class Located:
    """What a path below the results of an experiment belongs to.

    Attributes:
        root: `results/<name>`.
        run: The run, `<family>/<8 digits>` for a member of a family; of a table also a family.
        key: The checkpoint, `<iteration>` or `<iteration>/on-<subset>`; of a table any subject; empty for others.
    """

    root: Path
    run: str
    key: str

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.root / "runs" / self.run

    def data(self) -> list[Path]:
        """Data stores that it may have been computed on."""
        return [self.root / "data.zarr", *sorted(self.root.glob("subsets/*.zarr"))]


def locate(path: Path) -> Located | None:
    """What run and checkpoint a stage, a store or a folder of one belongs to.

    Args:
        path: Its absolute path, or that of a checkpoint.

    Returns:
        None where it lies in no `runs/<run>/`.
    """
    parts = path.parts
    for index in reversed([index for index, part in enumerate(parts) if part == "runs"]):
        for length in (1, 2):
            inside = parts[index + 1 + length :]
            if not inside or inside[0].split(".")[0] not in _INSIDE:
                continue
            if length == 2 and not _MEMBER.fullmatch(parts[index + 2]):
                continue
            key = inside[1 : 3 if len(inside) > 2 and inside[2].startswith("on-") else 2]
            run = "/".join(parts[index + 1 : index + 1 + length])
            return Located(Path(*parts[:index]), run, "/".join(key) if inside[0] == "checkpoints" else "")
    return None


def locate_tables(folder: Path) -> Located | None:
    """What run, or family, and subject the tables in a folder belong to.

    Args:
        folder: Its absolute path.

    Returns:
        None where it lies in no `tables/<measure>/`.
    """
    parts = folder.parts
    for index in reversed([index for index, part in enumerate(parts) if part == "tables"]):
        rest = parts[index + 2 :]
        tail = 2 if len(rest) > 2 and rest[-1].startswith("on-") else 1
        run, key = rest[:-tail], rest[-tail:]
        if len(run) == 1 or (len(run) == 2 and _MEMBER.fullmatch(run[1])):
            return Located(Path(*parts[:index]), "/".join(run), "/".join(key))
    return None


def measure_of(folder: Path, located: Located) -> str:
    """Name of the measure whose tables lie in a folder.

    Args:
        folder: Its absolute path.
        located: Of the folder.

    Returns:
        The name, which need not be one of a measure.
    """
    return folder.relative_to(located.root / "tables").parts[0]


class Places:
    """Where the results of an experiment lie.

    Attributes:
        root: `results/<name>`.
        data: Root metadata of the data store.
        sizes: What is known of data and network from one start to the next (`quadscape.results.sizes`).
    """

    def __init__(self, name: str, curvature: Curvature) -> None:
        """Places of one experiment.

        Args:
            name: Its name.
            curvature: Its `curvature` section: into how many shards a Hessian is cut that is not there yet.
        """
        self._curvature = curvature
        self._shards: dict[tuple[str, str], int] = {}
        self.root = f"results/{name}"
        self.data = f"{self.root}/data.zarr/zarr.json"
        self.sizes = f"{self.root}/sizes.json"

    def subset(self, name: str) -> str:
        """Root metadata of the data store of a subset."""
        return f"{self.root}/subsets/{name}.zarr/zarr.json"

    def trajectory(self, run: str) -> str:
        """Manifest of a run's training stage."""
        return f"{self.root}/runs/{run}/trajectory/manifest.json"

    def together(self, family: str, part: int | str) -> str:
        """What is kept of the members of a part of a family that are trained in one job."""
        return f"{self.root}/runs/{family}/together/{part}.json"

    def start(self, run: str, iteration: int | str) -> str:
        """Root metadata of the state of a run from which others start."""
        return f"{self.root}/runs/{run}/starts/{iteration}/start.zarr/zarr.json"

    def checkpoint(self, run: str, iteration: int | str) -> str:
        """Root metadata of a checkpoint's store."""
        return f"{self.root}/runs/{run}/checkpoints/{iteration}/checkpoint.zarr/zarr.json"

    def shards(self, run: str, iteration: int | str) -> int:
        """Number of shards of a checkpoint's Hessian: those it was gathered from, since another number is no other one.

        What was begun to be gathered counts, too: Snakemake removes the manifest before a job that writes it again.

        Args:
            run: Name of the run.
            iteration: Number of steps.

        Returns:
            The number; the experiment's where nothing is gathered, or in another precision.
        """
        place = (run, str(iteration))
        if place not in self._shards:
            options = self._curvature
            self._shards[place] = _gathered(Path(self.hessian(run, iteration)).parent, options.dtype) or options.shards
        return self._shards[place]

    def hessian_shard(self, run: str, iteration: int | str, shard: int | str, count: int | str | None = None) -> str:
        """Manifest of one shard of a checkpoint's Hessian, counted from 1, of a number of them."""
        count = self.shards(run, iteration) if count is None else count
        directory = shard_directory(Path(self.hessian(run, iteration)).parent, shard_name(shard, count))
        return (directory / "manifest.json").as_posix()

    def hessian_shards(self, run: str, iteration: int | str) -> list[str]:
        """Manifests of all shards of a checkpoint's Hessian."""
        numbers = range(1, self.shards(run, iteration) + 1)
        return [self.hessian_shard(run, iteration, number) for number in numbers]

    def hessian(self, run: str, iteration: int | str) -> str:
        """Manifest of a checkpoint's Hessian, which lists its shards."""
        return f"{self.root}/runs/{run}/checkpoints/{iteration}/hessian/manifest.json"

    def gauss_newton(self, run: str, iteration: int | str) -> str:
        """Manifest of a checkpoint's Gauss–Newton matrix."""
        return f"{self.root}/runs/{run}/checkpoints/{iteration}/gauss_newton/manifest.json"

    def eigenbasis(self, run: str, iteration: int | str) -> str:
        """Manifest of a checkpoint's eigenbasis."""
        return f"{self.root}/runs/{run}/checkpoints/{iteration}/eigenbasis/manifest.json"

    def purge(self, run: str, iteration: int | str, what: str) -> str:
        """What the workflow has purged of a checkpoint, of its `hessian` or its `basis`, and what not."""
        return f"{self.root}/runs/{run}/checkpoints/{iteration}/purge-{what}.json"

    def result(self, measure: str, run: str, key: int | str, digits: str) -> str:
        """Manifest of a measure's result: of a checkpoint, a pair of them (`<first>-<second>`), or a run (`run`)."""
        return f"{self.root}/tables/{measure}/{run}/{key}/{manifest_name(digits)}"

    def figure(self, figure: str, kind: str) -> str:
        """A figure as `svg` or `png`."""
        return f"{self.root}/figures/{figure}.{kind}"

    def page(self, page: str) -> str:
        """An interactive page."""
        return f"{self.root}/pages/{page}.html"

    def findings(self, kind: str) -> str:
        """What was found, as `rst` (a page of the report) or `json`."""
        return f"{self.root}/findings.{kind}"

    def checkpoint_source(self, run: Run, iteration: int | str) -> str:
        """What a checkpoint is made from: the run's trajectory, or a file of parameters trained elsewhere."""
        # Not str.format: a user's path may hold other braces.
        if run.path is None:
            return self.trajectory(run.name)
        return str(user_path(run.path.replace("{iteration}", str(iteration))))  # ruff: ignore[missing-f-string-syntax]


def _gathered(hessian: Path, dtype: str) -> int | None:
    """Number of shards that a Hessian was, or is being, gathered from; None where there is none of that precision."""
    stored = stored_attributes(hessian / "store.zarr/zarr.json") or stored_manifest(hessian / "manifest.json") or {}
    parameters = stored.get("parameters")
    if stored.get("version") != STAGE_VERSIONS["hessian"] or not isinstance(parameters, dict):
        return None
    shards = parameters.get("shards")
    return len(shards) if isinstance(shards, dict) and shards and parameters.get("dtype") == dtype else None
