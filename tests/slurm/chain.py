"""What is computed on the test cluster: a small experiment, its long chains, and their undisturbed results.

One checkout is finished once, without SLURM. A scenario gets a copy of it in which the stages of one chain are missing,
and the profile that is shipped, with what the test cluster needs put over it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zarr

from quadscape.measures import MEASURES
from quadscape.stage.events import read_events
from quadscape.stage.finished import open_stage
from tests.checkouts import ROOT, Checkout
from tests.experiments import TINY, on_digits, steps
from tests.slurm.cluster import CPU_MINUTES, GPUS, Slot, show_job

RUN = "results/tiny/runs/a"
CHECKPOINT = f"{RUN}/checkpoints/256"
EXPERIMENT: dict[str, Any] = {
    "device": "cpu",  # the GPUs are fake
    **on_digits(
        0.3,
        {"factory": "cnn", "channels": [4, 8]},
        [256],
        iterations=3840,
        batch_size=32,
        learning_rate=steps(0.05, 2500),
        trajectory={"stride": 64, "dense": 2},
        evaluate_every=512,
    ),
}


class BrokenPromiseError(AssertionError):
    """What the project promises did not hold."""


def require(condition: object, message: str) -> None:
    """Says what is wrong, with and without pytest.

    Raises:
        BrokenPromiseError: The condition does not hold.
    """
    if not condition:
        raise BrokenPromiseError(message)


@dataclass(frozen=True)
class Chain:
    """Long stages that one SLURM job computes.

    Attributes:
        name: What the table says.
        target: Manifest of the last stage.
        stages: Directories of all stages.
        rule: The first one's rule.
    """

    name: str
    target: str
    stages: tuple[str, ...]
    rule: str


TRAINING = Chain("training", f"{RUN}/trajectory/manifest.json", (f"{RUN}/trajectory",), "train")
CURVATURE = Chain(
    "curvature",
    f"{CHECKPOINT}/eigenbasis/manifest.json",
    (f"{CHECKPOINT}/hessian_shards/1-of-1", f"{CHECKPOINT}/hessian", f"{CHECKPOINT}/eigenbasis"),
    "compute_hessian_shard",
)
CHAINS = (TRAINING, CURVATURE)
SHARDS = 3
SHARDED = Chain(
    "shards",
    CURVATURE.target,
    (*(f"{CHECKPOINT}/hessian_shards/{k}-of-{SHARDS}" for k in range(1, SHARDS + 1)), *CURVATURE.stages[1:]),
    CURVATURE.rule,
)
# Trained less, and with a Hessian that takes long enough in three parts.
SHARDED_EXPERIMENT: dict[str, Any] = {
    **EXPERIMENT,
    "model": {"factory": "cnn", "channels": [8, 8]},
    "training": {**EXPERIMENT["training"], "iterations": 256},
    "curvature": {"shards": SHARDS},
}


def environment(path: Path) -> dict[str, str]:
    """For commands in a checkout: its own code, and one thread, whose waiting does not spin."""
    return {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def _rules() -> dict[str, str]:
    """Text of each rule, by name."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    return dict(re.findall(r"^rule (\w+):(.*?)(?=^\S|\Z)", text, flags=re.MULTILINE | re.DOTALL))


def on_gpu() -> list[str]:
    """Rules that ask for a GPU where the experiment does not say `device: cpu`."""
    long = [name for name, text in _rules().items() if "gpu=gpus()" in text]
    return [*long, *(f"measure_{name}" for name, measure in MEASURES.items() if measure.gpu)]


class ClusterCheckout(Checkout):
    """A checkout whose profile `slurm` is the shipped one on the test cluster."""

    def link(self) -> None:
        """Makes the link that lets `--profile slurm` be typed."""
        (self.path / "slurm").symlink_to("profiles/slurm")

    def write_profile(
        self,
        slot: Slot | None,
        resources: Mapping[str, Mapping[str, Any]],
        partitions: Mapping[str, Mapping[str, Any]] | None = None,
        **changes: Any,
    ) -> None:
        """Puts over the shipped profile what the test cluster needs.

        Args:
            slot: Whose nodes jobs are bound to; None for all nodes.
            resources: Further resources by rule.
            partitions: For the site's file; None: the profile names partitions itself, as profiles did before there
                was that file.
            changes: Further keys.
        """
        profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
        defaults = profile["default-resources"]
        if slot is not None:
            defaults["constraint"] = slot.feature
        # The experiment says `device: cpu`, since the GPUs are fake, and its rules ask for none.
        of_rules: dict[str, dict[str, Any]] = {rule: {"gpu": 1} for rule in on_gpu()}
        if partitions is None:
            defaults["slurm_partition"] = "cpu"
            for of_rule in of_rules.values():
                of_rule["slurm_partition"] = "gpu"
        else:
            site = {"partitions": {name: dict(limits) for name, limits in partitions.items()}}
            (self.path / "profiles/slurm/partitions.yaml").write_text(yaml.safe_dump(site))
        for rule, values in resources.items():
            of_rules.setdefault(rule, {}).update(values)
        profile["set-resources"] = of_rules
        profile |= {
            # Two cores are shared by all jobs; a plan with two threads would be another plan.
            "set-threads": dict.fromkeys(_rules(), 1),
            # Snakemake looks after 2, 12, 22, … seconds for what has ended.
            "seconds-between-status-checks": 2,
            "slurm-init-seconds-before-status-checks": 2,
            "latency-wait": 5,
            **changes,
        }
        (self.path / "profiles/slurm/config.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))

    def launch(self, log: Path, *command: str) -> subprocess.Popen[bytes]:
        """Starts `python -m` something in the checkout, in a session of its own, and appends what it says to a file."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.path,
                env=environment(self.path),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Else Control-C means nothing to it where the tests themselves run in the background of a script.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def events(self, chain: Chain) -> list[dict[str, Any]]:
        """Events of all stages of a chain, oldest first, each with its stage's directory as `directory`."""
        found = [
            {**event, "directory": directory} for directory in chain.stages for event in self.stage_events(directory)
        ]
        return sorted(found, key=lambda event: event["time"])

    def stage_events(self, directory: str) -> list[dict[str, Any]]:
        """Events of one stage."""
        return read_events(self.path / directory)


def decoded(directory: Path) -> dict[str, np.ndarray]:
    """All arrays of a finished stage."""
    stage = open_stage(directory)
    group = zarr.open_group(directory / "store.zarr", mode="r")
    members = group.members(max_depth=None)
    return {name: stage.read(name) for name, member in members if isinstance(member, zarr.Array)}


LEFT_OUT = ("density", "interpolation", "localisation", "finite_batch", "noise_curvature")
"""Measures whose jobs are to SLURM as those of others of the same subject, with or without a GPU."""


class Whole:
    """The whole workflow through SLURM jobs, of which tables are kept: first one figure, then everything.

    Attributes:
        checkout: The checkout.
        first: What SLURM has recorded of the jobs for the figure.
        rest: The same of all others.
        purged_after_one_figure: What was purged before the others.
    """

    def __init__(self, path: Path, slot: Slot) -> None:
        self.checkout = ClusterCheckout(path)
        self.checkout.link()
        self.checkout.configure(
            device="cpu", keep="tables", measures={**TINY["measures"], **dict.fromkeys(LEFT_OUT, False)}
        )
        self.checkout.write_profile(slot, {}, {"cpu": {"max_runtime": CPU_MINUTES}, "gpu": {"max_gpu": GPUS}})
        self.first = self._run("results/tiny/figures/spectrum.svg")
        self.purged_after_one_figure = [*path.rglob("purged.json")]
        self.rest = self._run()

    def _run(self, *targets: str) -> list[dict[str, str]]:
        log = self.checkout.path / "head.log"
        log.unlink(missing_ok=True)
        command = ["snakemake", *targets, "--profile", "slurm", "--configfile", "tiny.yaml"]
        code = self.checkout.launch(log, *command).wait(900)
        require(code == 0, f"the head ended with exit code {code}\n{log.read_text()}")
        return [show_job(number) for number in re.findall(r"submitted with SLURM jobid (\d+)", log.read_text())]


class Prepared:
    """A checkout with an undisturbed run of some chains.

    Attributes:
        checkout: The checkout.
        units: Number of units of each chain, by its name.
    """

    def __init__(
        self, path: Path, chains: Sequence[Chain] = CHAINS, experiment: Mapping[str, Any] = EXPERIMENT
    ) -> None:
        self.checkout = ClusterCheckout(path)
        self.checkout.link()
        self.checkout.configure(**experiment)
        options = ["--profile", "profiles/local", "--cores", "1", "--configfile", "tiny.yaml"]
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *(chain.target for chain in chains), *options],
            cwd=path,
            env=environment(path),
            capture_output=True,
            text=True,
            timeout=600,
        )
        require(done.returncode == 0, f"The undisturbed run failed:\n{done.stdout}\n{done.stderr}")
        self.units = {
            chain.name: sum(int(open_stage(path / stage).manifest["units"]) for stage in chain.stages)
            for chain in chains
        }
        for name, units in self.units.items():
            require(units >= 10, f"{name} has {units} units, too few to be interrupted between")

    def copy(self, path: Path, chain: Chain) -> ClusterCheckout:
        """A checkout in which one chain is yet to be computed."""
        shutil.copytree(self.checkout.path, path, symlinks=True)
        copy = ClusterCheckout.at(path)
        for stage in chain.stages:
            shutil.rmtree(path / stage)
        shutil.rmtree(path / "logs", ignore_errors=True)
        return copy

    def compare(self, checkout: ClusterCheckout, chain: Chain) -> None:
        """Checks that a chain's manifests and decoded arrays are those of the undisturbed run.

        Raises:
            BrokenPromiseError: They are not.
        """
        for stage in chain.stages:
            found, expected = checkout.path / stage, self.checkout.path / stage
            require((found / "manifest.json").exists(), f"{stage} has no manifest")
            same = (found / "manifest.json").read_bytes() == (expected / "manifest.json").read_bytes()
            require(same, f"the manifest of {stage} differs from that of the undisturbed run")
            arrays, others = decoded(found), decoded(expected)
            require(arrays.keys() == others.keys(), f"{stage} has other arrays than the undisturbed run")
            for name, values in others.items():
                equal = np.array_equal(arrays[name], values, equal_nan=values.dtype.kind == "f")
                require(equal, f"array {name} of {stage} differs from that of the undisturbed run")
