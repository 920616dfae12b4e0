"""How large the problem is, what its jobs ask for, and whether it can be done here."""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from quadscape.amounts import format_bytes
from quadscape.cluster.snakemake_shell import check_working_directory
from quadscape.config.sections import Run
from quadscape.data.sources import DataDescription
from quadscape.errors import ConfigError
from quadscape.measures import MEASURES
from quadscape.measures.declaration import Sizes
from quadscape.memory_limits import memory_total
from quadscape.network.counts import Counts
from quadscape.planning.counted import Countable, counts_of
from quadscape.planning.experiment import Experiment, check_problem
from quadscape.planning.laws import Laws
from quadscape.planning.work import NOMINAL
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


_SPARE_MB = 1500
"""Memory beyond the law, for what a file system's client and SLURM count with a job."""
_SPARE_TIME = 3.0
"""How much longer than at nominal speeds a job may take."""


def memory_mb(megabytes: float, attempt: int) -> int:
    """Memory that a job asks for: something to spare is added, and half of all at each further attempt."""
    return int((_SPARE_MB + megabytes) * (1 + attempt) / 2)


def runtime_minutes(minutes: float, attempt: int) -> int:
    """Time limit of a job that takes so long: with time to spare and a start, and as much again at each attempt."""
    return int((10 + _SPARE_TIME * minutes) * attempt)


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
    kept: Kept = field(default_factory=Kept, compare=False, repr=False)

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
        whole = cls(experiment, data, networks, problem, kept)
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

    def sizes(self, run: str, device: str = "cpu") -> Sizes:
        """Sizes that the costs of measures follow from.

        Args:
            run: Name of the run.
            device: Where it is measured: `cpu` or `cuda`.

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
            iterations=section.iterations,
            tensors=len(self.counts(run).tensors),
            graph_bytes=self.counts(run).chunk_bytes(self.training_images(section), 8),
            device=device,
        )

    def threads(self, run: str) -> int:
        """CPU threads of the stages of a run: two share the work of large networks, and hinder each other on small."""
        return 1 if self.networks[run].parameters <= ONE_THREAD else 2

    @cached_property
    def countable(self) -> dict[str, Countable]:
        """The network of every run, with all that its counts follow from."""
        shape, classes = self.data.shape, len(self.data.classes)
        found: dict[str, Countable] = {}
        for model, runs in self.experiment.networks():
            loss, network = self.experiment.loss_of(runs[0]), self.networks[runs[0].name]
            one = Countable(model, shape, classes, loss, network.parameters, network.code)
            found |= {run.name: one for run in runs}
        return found

    @cached_property
    def _counts(self) -> dict[str, Counts]:
        """Counts of all networks, by key; a job takes what its head has kept."""
        networks = {one.key: one for one in self.countable.values()}
        found = counts_of(list(networks.values()), self.kept)
        self.kept.save()
        return dict(zip(networks, found, strict=True))

    def counts(self, run: str) -> Counts:
        """What one example costs in the network of a run.

        Args:
            run: Name of the run.

        Returns:
            The counts, which are counted when they are first asked for.
        """
        return self._counts[self.countable[run].key]

    @cached_property
    def laws(self) -> Laws:
        """What every job takes, on the device that the experiment asks for; a GPU where it leaves the choice."""
        return Laws(self)

    def memory_mb(self, job: str, attempt: int = 1, run: str | None = None) -> int:
        """Memory that a job asks for, in MB.

        Args:
            job: Kind of job.
            attempt: Which attempt, from 1: each asks for half of the first's more, in case that SLURM killed it.
            run: Name of the run that the job belongs to; None: the one with the largest network.

        Returns:
            Megabytes.
        """
        return memory_mb(self.laws.of(job, run).memory_bytes / 1e6, attempt)

    def runtime_minutes(self, job: str, attempt: int = 1, run: str | None = None) -> int:
        """Time limit of a job, at nominal speeds.

        Args:
            job: Kind of job.
            attempt: Which attempt, from 1: each asks for the first's time more.
            run: Name of the run that the job belongs to; None: the one with the largest network.

        Returns:
            Minutes.
        """
        law, device = self.laws.of(job, run), self.laws.device_of(job)
        return runtime_minutes(law.work.seconds(NOMINAL[device]) / 60, attempt)
