"""One workflow makes runs of every kind: from a start point, by an eigenbasis, at given rates, with another network.

What each kind computes is tested in a file for it; here, that the rules say it, and what is made again when a run is
asked for otherwise.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quadscape.cli import main
from quadscape.config.sections import MLP, Start
from quadscape.curvature.hessian import HessianMatrix
from quadscape.curvature.stored_basis import Eigenbasis
from quadscape.data.info import data_info
from quadscape.measures import SCHEMAS
from quadscape.measures.result import table_path
from quadscape.network.checkpoint import Checkpoint
from quadscape.network.objective import CheckpointObjectives
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from quadscape.results.opened import open_results
from quadscape.results.verify import verify_results
from quadscape.store import read_store
from quadscape.tables import read_table
from quadscape.training.rate_tables import rates_digest, write_rates
from quadscape.training.replay import replay
from quadscape.training.start import StartPoint
from quadscape.training.trajectory import Trajectory
from results import hessian_and_basis, measure
from tests.checkouts import Checkout, jobs
from tests.experiments import TINY

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
RATES = [0.01] * 12
OWN = {"factory": "mlp", "hidden": [2], "activation": "sigmoid"}  # 160 parameters, where the others have 235
ROOT = "results/tiny"
TRAINED = {name: f"{ROOT}/runs/{name}/trajectory/manifest.json" for name in "abd"}
STARTS = {at: f"{ROOT}/runs/{at[0]}/starts/{at[1]}/start.zarr/zarr.json" for at in (("a", 30), ("b", 4))}
BASES = [f"{ROOT}/runs/{place}/eigenbasis/manifest.json" for place in ("a/checkpoints/40/on-half", "d/checkpoints/40")]
CHECKPOINTS = [path.replace("eigenbasis/manifest.json", "checkpoint.zarr/zarr.json") for path in BASES]
STEPPED_BY = f"{ROOT}/runs/a/checkpoints/40/eigenbasis/manifest.json"
SPECTRUM = f"{ROOT}/figures/spectrum.svg"
# The first training and what the second needs to go on from it.
MADE = [STARTS["b", 4], *CHECKPOINTS]


def kinds(
    rates: str = "rates.csv",
    start: dict[str, Any] | None = None,
    step: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    half: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The finished run of the tiny experiment and what refers to it, with changes of what some of it is asked for."""
    stepping = {"name": "b", "iterations": 10, "learning_rate": {"schedule": "table", "path": rates}}
    stepping["start"] = {"run": "a", "iteration": 30, "optimizer": "fresh", **(start or {})}
    stepping["step"] = {"method": "projected", "last": 12, "run": "a", "iteration": 40, **(step or {})}
    return {
        "subsets": [{"name": "half", "half": 0, **(half or {})}, {"name": "few", "per_class": 5, "seed": 2}],
        "runs": [
            {**TINY["runs"][0], "curvature_on": {"half": [40]}},
            stepping,
            {"name": "c", "iterations": 10, "step": stepping["step"], "start": {"run": "b", "iteration": 4}},
            {"name": "d", "checkpoints": [40], "model": {**OWN, **(model or {})}, "examples": "few"},
        ],
    }


@dataclass(frozen=True)
class Made:
    """The checkout in which the workflow has made them, and what it said."""

    checkout: Checkout
    output: str

    @property
    def root(self) -> Path:
        return self.checkout.path / ROOT


@pytest.fixture(scope="module")
def made(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Run once; then the curvature of two of the checkpoints, as its jobs compute it, without a process for each."""
    checkout = Checkout.at(Path(shutil.copytree(finished.path, tmp_path_factory.mktemp("kinds") / "copy")))
    write_rates(checkout.path / "rates.csv", RATES)
    checkout.configure(**kinds())
    code, output = checkout.snakemake(*MADE)
    assert code == 0, output
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout.path)
        experiment = parse_experiment({**TINY, **kinds()})
        targets = Targets(Problem.of(experiment))
        for name, key in (("a", "40/on-half"), ("d", "40")):
            data = checkout.path / targets.data(name, key)
            hessian_and_basis(checkout.path, targets.places, experiment, name, key, data)
    return Made(checkout, output)


@pytest.fixture
def asked(made: Made) -> Iterator[Checkout]:
    """The same, for a test to ask for something else without making it."""
    yield made.checkout
    made.checkout.configure(**kinds())
    write_rates(made.checkout.path / "rates.csv", RATES)


def named_jobs(listing: str) -> Counter[tuple[str, str]]:
    """Rules that are listed, with their wildcards; those of a group are indented."""
    found = re.findall(r"^( *)(?:local)?rule (\w+):\n((?:\1 {4}.*\n)*)", listing, flags=re.MULTILINE)
    wildcards = (re.search(r"^ *wildcards: (.*)$", said, flags=re.MULTILINE) for _, _, said in found)
    named = ((rule, match[1] if match else "") for (_, rule, _), match in zip(found, wildcards, strict=True))
    return Counter(one for one in named if one[0] != "all")


def test_only_what_they_need_is_made(made: Made) -> None:
    assert jobs(made.output) == {"select_subset": 2, "extract_start": 2, "train": 2, "extract_checkpoint": 2}
    [said] = [part for part in made.output.split("localrule ") if part.startswith("train:") and TRAINED["b"] in part]
    given = next(line for line in said.splitlines() if "input:" in line)
    assert STEPPED_BY in given
    assert STARTS["a", 30] in given


def test_a_run_goes_on_from_a_finished_one_and_steps_by_its_eigenbasis_at_rates_of_a_table(made: Made) -> None:
    first, second = (Trajectory.open(made.checkout.path / TRAINED[name]) for name in "ab")
    np.testing.assert_array_equal(second.theta(0), first.theta(30))
    np.testing.assert_array_equal(second.curves().learning_rate, RATES[:10])
    asked = second.stage.manifest["parameters"]
    assert asked["step"]["digest"] == Eigenbasis(made.checkout.path / STEPPED_BY).digest
    assert asked["training"]["learning_rate"] == {"schedule": "table", "digest": rates_digest(RATES[:10])}


def test_the_state_of_a_run_that_stepped_by_an_eigenbasis_is_found_again(made: Made) -> None:
    path = made.checkout.path / TRAINED["b"]
    expected = next(iter(replay(path, made.root / "data.zarr", 4, 4, made.checkout.path / STEPPED_BY)))
    point = StartPoint.load(made.checkout.path / STARTS["b", 4], Start(run="b", iteration=4))
    np.testing.assert_array_equal(point.theta, expected)


def test_a_run_may_have_another_network(made: Made) -> None:
    results = open_results(made.root)
    assert results.checkpoint("d", 40).model_config == MLP(factory="mlp", hidden=(2,), activation="sigmoid")
    assert results.checkpoint("a", 40).model_config == MLP(factory="mlp", hidden=(3,))
    assert [results.eigenbasis(run, 40).size for run in "ad"] == [235, 160]


def test_a_run_may_have_examples_of_its_own(made: Made) -> None:
    stored = read_store(made.root / "runs/d/checkpoints/40/checkpoint.zarr")[1]["data"]
    assert stored == data_info(made.root / "subsets/few.zarr").digest


def test_curvature_on_a_subset_is_that_of_its_loss(made: Made) -> None:
    place = made.root / "runs/a/checkpoints/40/on-half"
    basis = Eigenbasis(place / "eigenbasis/manifest.json")
    objectives = CheckpointObjectives(place / "checkpoint.zarr", made.root / "subsets/half.zarr", "train")
    objective = objectives.get(torch.float64, "cpu")
    assert objective.count == 179
    theta = Checkpoint.load(place / "checkpoint.zarr").theta
    column = objective.hessian_product(theta, np.eye(len(theta))[3])
    stored = HessianMatrix(place / "hessian/manifest.json").dense()[:, 3]
    assert np.abs(np.asarray(column) - stored).max() < 1e-5
    top = np.asarray(objective.hessian_product(theta, basis.vectors(0, 1)[:, 0].astype(np.float64)))
    assert np.abs(top - basis.eigenvalues[0] * basis.vectors(0, 1)[:, 0]).max() < 1e-4
    # On all data it is another one.
    whole = CheckpointObjectives(place / "checkpoint.zarr", made.root / "data.zarr", "train").get(torch.float64, "cpu")
    assert np.abs(np.asarray(whole.hessian_product(theta, np.eye(len(theta))[3])) - stored).max() > 1e-3


def test_all_of_it_is_as_it_was_written(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.checkout.path)
    assert main(["verify", ROOT]) == 0


def test_curvature_on_a_subset_is_compared_with_that_on_all(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.checkout.path)
    manifest = measure(made.checkout.path, parse_experiment({**TINY, **kinds()}), "identified", "a", "40")
    table = read_table(table_path(manifest, "identified_maxima"), SCHEMAS["identified_maxima"])
    # Half a halving is a subset like any other.
    assert set(zip(table["kind"], table["subset"], table["examples"], strict=True)) == {
        ("subset", "half 0, seed 0", 179)
    }
    assert 0.7 < table["median"][(table["sign"] == 1) & (table["first_rank"] == 1)][0] < 1 - 1e-4
    assert {path: problem for path, problem in verify_results(made.root) if problem} == {}
    # Of another basis on that subset it would not be.
    place = made.root / "runs/a/checkpoints/40/on-half/eigenbasis"
    away = place.rename(made.root / "away")
    try:
        assert not [problem for path, problem in verify_results(manifest.parent) if problem]
        shutil.copytree(made.root / "runs/a/checkpoints/40/eigenbasis", place)
        (problem,) = [problem for path, problem in verify_results(manifest.parent) if problem]
        assert "was measured from other eigenbases on subsets than those in" in str(problem)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        away.rename(place)
        shutil.rmtree(made.root / "tables/identified")


def test_what_is_made_is_not_made_again_wherever_the_table_lies(asked: Checkout) -> None:
    (asked.path / "rates.csv").unlink()
    write_rates(asked.path / "moved.csv", [*RATES[:11], 1.0])
    asked.configure(**kinds(rates="moved.csv"))
    # A figure asks for what is measured of the new run, too.
    assert asked.plan(*MADE, *BASES, SPECTRUM) == {"measure_spectrum": 1, "draw_figure": 1}
    assert "wildcards: run=d, iteration=40, digits=" in asked.listing
    (asked.path / "moved.csv").unlink()
    assert asked.plan(*MADE, *BASES) == {}
    assert "Nothing to be done" in asked.listing


def test_another_rate_alone_trains_again(asked: Checkout) -> None:
    write_rates(asked.path / "rates.csv", [0.02, *RATES[1:]])
    assert asked.plan(TRAINED["b"]) == {"train": 1}
    assert "training.learning_rate.digest: " in asked.listing


def test_what_is_asked_for_otherwise_is_made_again_and_nothing_else(asked: Checkout) -> None:
    asked.configure(
        **kinds(start={"batches": "fresh"}, step={"last": 13}, model={"activation": "tanh"}, half={"seed": 1})
    )
    asked.plan(*MADE, BASES[0])
    for change in ('start.batches: "kept" → "fresh"', "step.last: 12 → 13", 'model.activation: "sigmoid" → "tanh"'):
        assert change in asked.listing
    on_half = "run=a, iteration=40/on-half"
    assert named_jobs(asked.listing) == Counter(
        [
            ("train", "run=b"),
            ("extract_start", "run=b, iteration=4"),
            ("train", "run=d"),
            ("extract_checkpoint", "run=d, iteration=40"),
            ("select_subset", "subset=half"),
            ("extract_checkpoint", on_half),
            ("compute_hessian_shard", f"{on_half}, shard=1, shards=1"),
            ("compute_hessian", on_half),
            ("compute_eigenbasis", on_half),
        ]
    )


def test_from_nothing_all_that_the_basis_is_made_from_comes_first(asked: Checkout) -> None:
    away = (asked.path / ROOT).rename(asked.path / "away")
    try:
        plan = asked.plan(TRAINED["b"], SPECTRUM)
    finally:
        shutil.rmtree(asked.path / ROOT)
        away.rename(asked.path / ROOT)
    of_runs = {"prepare_data": 1, "select_subset": 1, "train": 3, "extract_start": 1}
    of_checkpoints = ("extract_checkpoint", "compute_hessian_shard", "compute_hessian", "compute_eigenbasis")
    assert plan == {**of_runs, **dict.fromkeys(of_checkpoints, 3), "measure_spectrum": 3, "draw_figure": 1}
    assert named_jobs(asked.listing)["compute_eigenbasis", "run=d, iteration=40"] == 1
