"""How large the problem is, what its jobs ask for, and whether it can be done here."""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from quadscape.amounts import format_bytes
from quadscape.cluster.snakemake_shell import check_working_directory
from quadscape.config.sections import Projected, RandomSubspace, Run
from quadscape.curvature.solver_plan import advisable_bytes
from quadscape.data.sources import DataDescription
from quadscape.errors import ConfigError
from quadscape.measures import MEASURES
from quadscape.measures.declaration import Sizes
from quadscape.memory_limits import memory_total
from quadscape.planning.experiment import Experiment, check_problem
from quadscape.refusals import first_unwritable
from quadscape.results.places import Places
from quadscape.results.sizes import Kept, Network, keep_asked, keep_steps, look_at_data, look_at_network

MOST_PARAMETERS = 4_000_000
"""Above which no machine computes a dense eigenbasis within weeks (docs/scale.md), whatever its disk."""

ONE_THREAD = 5_000
"""P up to which stages compute with one thread, so that two run side by side: at the demo's 2,406 parameters a shard of
the Hessian took 27 s with two threads and the machine for itself, and takes 19 s with one beside another job."""


def check_places(experiment: Experiment) -> None:
    """Checks that results can be where they belong: below the working directory. They may be another user's.

    Args:
        experiment: The experiment.

    Raises:
        ConfigError: One of these folders is there and is no folder.
    """
    check_working_directory(Path.cwd())
    for name in ("results", "logs", f"results/{experiment.name}", f"logs/{experiment.name}"):
        path = Path(name)
        if path.is_symlink() and not path.exists():
            raise ConfigError(
                f"{path.absolute()} is a link to '{path.readlink()}', which leads nowhere; restore what it points to, "
                "or remove the link."
            )
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path.absolute()} is a file, where a folder is needed; move it out of the way.")


def check_writable(paths: Iterable[str | Path]) -> None:
    """Checks, before any job, that all of them can write what they are to make.

    Args:
        paths: Files, which need not be there.

    Raises:
        ConfigError: One, or the folder that it would be made in, may not be written by this user.
    """
    found = {Path(path) for path in paths}
    # What is there is replaced, or removed first.
    if sentence := first_unwritable(sorted({path.parent for path in found} | found)):
        raise ConfigError(sentence)


def _check_sources(experiment: Experiment) -> None:
    """Checks that parameters trained elsewhere are there, where their checkpoints are not made yet.

    Raises:
        ConfigError: A file is missing.
    """
    places = Places(experiment.name, experiment.curvature)
    for index, run in enumerate(experiment.runs):
        for iteration in run.checkpoints if run.path is not None else ():
            source = Path(places.checkpoint_source(run, iteration))
            if re.search(r"[{}\n]", str(source)):
                raise ConfigError(
                    f"runs[{index}].path is {run.path!r}, where only {{iteration}} may stand in braces, since "
                    "Snakemake reads others as wildcards; rename the file, or give a link to it."
                )
            if source.is_dir():
                raise ConfigError(
                    f"runs[{index}].path is '{run.path}', but '{source}' is a folder; valid is a file written by "
                    "torch.save(model.state_dict(), …)."
                )
            if not source.is_file() and not Path(places.checkpoint(run.name, iteration)).exists():
                raise ConfigError(
                    f"runs[{index}].path is '{run.path}', but there is no file '{source}'; valid is a file written by "
                    "torch.save(model.state_dict(), …)."
                )


def memory_mb(megabytes: float, attempt: int) -> int:
    """Memory that a job asks for: what any process takes is added, and half of that at each further attempt."""
    return int((1500 + megabytes) * (1 + attempt) / 2)


def runtime_minutes(minutes: float, attempt: int) -> int:
    """Time limit of a job: a start is added, and the first attempt's limit at each other one."""
    return int((10 + minutes) * attempt)


@dataclass(frozen=True)
class Problem:
    """Sizes that memory and time follow from.

    Attributes:
        experiment: The experiment.
        data: What the data set holds.
        networks: What is known of the network of each run.
        source_problem: Why the data store that was made before stands in for the source of the data; empty where the
            source can be used.
    """

    experiment: Experiment
    data: DataDescription
    networks: Mapping[str, Network]
    source_problem: str = ""

    @property
    def parameters(self) -> int:
        """P, of the largest network where runs have several."""
        return max(network.parameters for network in self.networks.values())

    def sizes_text(self) -> str:
        """`26,490 parameters`, or of several networks `26,490 and 104,234 parameters`."""
        sizes = sorted({network.parameters for network in self.networks.values()})
        texts = [f"{size:,}" for size in sizes]
        return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts) + " parameters"

    @classmethod
    def of(cls, experiment: Experiment, kept: Kept | None = None) -> "Problem":
        """Looks at data source and network, without loading the one or training the other, and checks the sizes.

        Args:
            experiment: The experiment.
            kept: What was found at earlier starts, and is written anew where it has changed; None: nothing is kept.

        Returns:
            The sizes.
        """
        kept = Kept() if kept is None else kept
        data, problem = look_at_data(experiment.data, Path(Places(experiment.name, experiment.curvature).data), kept)
        _check_sources(experiment)
        networks: dict[str, Network] = {}
        for model, runs in experiment.networks():
            found = look_at_network(model, experiment.loss_of(runs[0]), data, kept, MOST_PARAMETERS)
            networks |= {run.name: found for run in runs}
        whole = cls(experiment, data, networks, problem)
        parameters = {name: network.parameters for name, network in networks.items()}
        check_problem(experiment, parameters, {run.name: whole.training_images(run) for run in experiment.runs})
        keep_asked(
            kept,
            {
                run.name: [name for name in MEASURES if experiment.is_measured(name, run.name)]
                for run in experiment.runs
            },
        )
        keep_steps(kept, {run.name: basis for run in experiment.runs if (basis := run.basis()) is not None})
        kept.save()
        return whole

    def training_images(self, run: Run) -> int:
        """N of a run, or more where its subset has classes of unknown size."""
        if run.examples is None:
            return self.data.training
        return self.experiment.subset(run.examples).at_most(self.data.training, len(self.data.classes))

    def check_dense(self) -> None:
        """Refuses checkpoints whose dense matrices cannot be; what is finished needs no room."""
        places = Places(self.experiment.name, self.experiment.curvature)
        for run in self.experiment.runs:
            for iteration in run.checkpoints:
                if not Path(places.eigenbasis(run.name, iteration)).exists():
                    self.dense_checkpoint(run.name, iteration)

    def dense_checkpoint(self, run: str, iteration: int | str) -> str:
        """The checkpoint of which a P×P matrix is to be computed.

        A basis is P×P numbers, the Hessian half of that. Refused is what is larger than the whole disk of the results
        folder, whatever else lies on it, or has more parameters than `MOST_PARAMETERS`.

        Args:
            run: Name of the run.
            iteration: Number of steps.

        Returns:
            Root metadata of its store.

        Raises:
            ConfigError: The matrices are too large.
        """
        experiment, size = self.experiment, self.networks[run].parameters
        places = Places(experiment.name, experiment.curvature)
        basis = (4 if experiment.curvature.dtype == "float32" else 8) * size**2
        root = Path(places.root).absolute()
        while not root.exists():
            root = root.parent
        disk = shutil.disk_usage(root)
        if size > MOST_PARAMETERS or basis + basis // 2 > disk.total:
            raise ConfigError(
                f"checkpoints asks for the Hessian and the eigenbasis of run '{run}' at iteration {iteration}, but "
                f"with {size:,} parameters these take {format_bytes(1.5 * basis)} on disk and {format_bytes(basis)} in "
                f"memory, where the disk of {root} has {format_bytes(disk.total)} ({format_bytes(disk.free)} of them "
                f"free) and this machine {format_bytes(memory_total())} of memory; make the model smaller, or ask only "
                "for the spectral density, which needs no matrix: snakemake "
                f"{places.figure('spectral_density', 'svg')} (docs/scale.md)."
            )
        return places.checkpoint(run, iteration)

    def sizes(self, run: str) -> Sizes:
        """Sizes that the costs of measures follow from.

        Args:
            run: Name of the run.

        Returns:
            The sizes.
        """
        data, section = self.data, self.experiment.run(run)
        return Sizes(
            parameters=self.networks[run].parameters,
            training=self.training_images(section),
            validation=data.validation,
            test=data.test,
            classes=len(data.classes),
            example_bytes=8 * data.shape[0] * data.shape[1] * data.shape[2],
            itemsize=4 if self.experiment.curvature.dtype == "float32" else 8,
            subsets=max((len(section.subsets_at(iteration)) for iteration in section.checkpoints), default=0),
        )

    def _parameters(self, run: str | None) -> int:
        return self.parameters if run is None else self.networks[run].parameters

    def threads(self, run: str) -> int:
        """CPU threads of the stages of a run: two share the work of large networks, and hinder each other on small."""
        return 1 if self.networks[run].parameters <= ONE_THREAD else 2

    def memory_mb(self, job: str, attempt: int = 1, run: str | None = None) -> int:
        """Memory that a job asks for; growth laws with generous constants, in MB.

        Args:
            job: Kind of job.
            attempt: Which attempt, from 1: each asks for half of the first's more, in case that SLURM killed it.
            run: Name of the run that the job belongs to; None: the one with the largest network.

        Returns:
            Megabytes.
        """
        count = self.data.training + self.data.validation + self.data.test
        pixels = self.data.shape[0] * self.data.shape[1] * self.data.shape[2]
        images = count * pixels * 8 / 1e6
        size = self._parameters(run)
        columns = size * 8 / 1e6
        extra = {
            "data": 2 * images,
            "training": images + 512 * columns + self._step_bytes(run) / 1e6,
            # A few dozen vectors of the size of θ while the network is checked.
            "checkpoint": 2 * images + 2000 + 40 * columns,
            "hessian_shard": images + 4000 + 1600,
            "hessian": images + 4000 + 1600,
            # Columns in float64 (an eighth of a GPU's memory at most, or 1 GiB) and twice as stored, and Jacobians.
            "gauss_newton": images + 4000 + min(22000, columns * size),
            "eigenbasis": images + 4000 + advisable_bytes(size, self.experiment.curvature.dtype) / 1e6,
            "figures": 500.0,
        }
        return memory_mb(extra[job], attempt)

    def _step_bytes(self, run: str | None) -> float:
        """What the step of a run holds in memory: the vectors of its subspace, or a whole basis where that can be."""
        step = None if run is None else self.experiment.run(run).step
        if run is None or step is None:
            return 0.0
        size, options = self.networks[run].parameters, self.experiment.curvature
        vectors = step.vectors(size)
        if isinstance(step, Projected | RandomSubspace):
            return 3.0 * 8 * size * vectors
        # No more than where the basis was made: what is not kept is read anew for each step. Half of it may be free.
        whole = 2.0 * size**2 * (4 if options.dtype == "float32" else 8)
        return min(whole, advisable_bytes(size, options.dtype)) + 2**28

    def runtime_minutes(self, job: str, attempt: int = 1, run: str | None = None) -> int:
        """Time limit of a job; growth laws that leave a factor of two or more on one current GPU.

        Args:
            job: Kind of job.
            attempt: Which attempt, from 1: each asks for the first's time more.
            run: Name of the run that the job belongs to; None: the one with the largest network.

        Returns:
            Minutes.
        """
        size, count = float(self._parameters(run)), float(self.data.training)
        trained = None if run is None else self.experiment.run(run)
        # A step goes through its vectors once or twice, as fast as the memory of a CPU gives them.
        step = 0.03 + self._step_bytes(run) / 1e10
        extra = {
            "data": count / 5e3,
            "training": 0.0
            if trained is None
            else trained.iterations * (step + 2e-5 * trained.batch_of(self.training_images(trained))) / 60,
            "checkpoint": count / 5e3,
            # 8e6 counted operations per column and example (P=104,234: docs/performance.md) at 2.6e12 a second.
            "hessian_shard": size * count / 2e7 / self.experiment.curvature.shards,
            # Products with sign vectors, and one pass over the matrix.
            "hessian": count / 2e3 + size**2 / 1e9,
            # N·C·P² operations at 1e12 a second, and products with sign vectors.
            "gauss_newton": count / 2e3 + count * len(self.data.classes) * size**2 / 6e13,
            "eigenbasis": 600 * (size / 104234) ** 3,
            "figures": 0.0,
        }
        return runtime_minutes(extra[job], attempt)
