"""Results of something else than the experiment are found by what they say of themselves; those of old code are not."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_finished_results import ARCHIVE
from test_workflow import PER_CHECKPOINT

from quadscape.digests import canonical_digest
from quadscape.planning.consistency import find_differences
from quadscape.planning.experiment import Experiment
from quadscape.planning.experiment_file import load_experiment, parse_experiment
from quadscape.planning.problem import Problem
from quadscape.results.places import Places
from quadscape.results.sizes import Kept
from quadscape.stage.events import read_events
from quadscape.stage.purging import purge_stage
from results import small_experiment
from tests.checkouts import Checkout, unpack
from tests.experiments import SMALL, TINY

[RUN], TRAINING = SMALL["runs"], SMALL["training"]


@pytest.fixture
def root(made_results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_results, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def differences(experiment: Experiment, kept: Kept | None = None) -> dict[str, tuple[str, ...]]:
    """What differs, by path within the results."""
    places = Places(experiment.name, experiment.curvature)
    found = find_differences(experiment, places, Problem.of(experiment), kept)
    return {one.path.removeprefix(f"{places.root}/"): one.changes for one in found}


def test_the_same_experiment_differs_in_nothing(root: Path) -> None:
    assert differences(small_experiment()) == {}
    assert differences(small_experiment(curvature={"dtype": "float64", "gauss_newton": True})) == {}
    # Other runs, checkpoints, measures and devices change nothing of what is there.
    assert differences(small_experiment(device="cpu", runs=[{**RUN, "checkpoints": [0, 20, 40]}])) == {}
    assert differences(small_experiment(runs=[RUN, {"name": "b", "momentum": 0.5}])) == {}
    assert differences(small_experiment(runs=[{**RUN, "seed": 0}])) == {}


CHECKPOINTS = [f"runs/a/checkpoints/{iteration}/checkpoint.zarr/zarr.json" for iteration in (0, 40)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 1}, {"data.zarr/zarr.json": "not as of seed 1", "runs/a/trajectory/manifest.json": "seed: 0 → 1"}),
        (
            {"runs": [{**RUN, "seed": 1}]},
            {"runs/a/trajectory/manifest.json": "seed: 0 → 1"},
        ),
        (
            {"data": {"source": "digits", "held_out": 0.7}},
            {"data.zarr/zarr.json": "counts.train: 359 → 539"},
        ),
        (
            {"training": {**TRAINING, "momentum": 0.8}},
            dict.fromkeys(["runs/a/trajectory/manifest.json", *CHECKPOINTS], "training.momentum: 0.9 → 0.8"),
        ),
        (
            {"training": {**TRAINING, "weight_decay": 0}},
            dict.fromkeys(["runs/a/trajectory/manifest.json", *CHECKPOINTS], "training.weight_decay: 0.001 → 0.0"),
        ),
        (
            {"training": {**TRAINING, "learning_rate": {"schedule": "cosine", "value": 0.1}}},
            dict.fromkeys(
                ["runs/a/trajectory/manifest.json", *CHECKPOINTS],
                'training.learning_rate.schedule: "constant" → "cosine"',
            ),
        ),
        (
            {"loss": "squared_error"},
            dict.fromkeys(["runs/a/trajectory/manifest.json", *CHECKPOINTS], 'loss: "cross_entropy" → "squared_error"'),
        ),
        (
            {"model": {"factory": "mlp", "hidden": [3], "activation": "tanh"}},
            dict.fromkeys(["runs/a/trajectory/manifest.json", *CHECKPOINTS], 'model.activation: "gelu" → "tanh"'),
        ),
        (
            {"model": {"factory": "linear"}},
            dict.fromkeys(["runs/a/trajectory/manifest.json", *CHECKPOINTS], 'model.factory: "mlp" → "linear"'),
        ),
        (
            {"curvature": {"dtype": "float32", "gauss_newton": True}},
            dict.fromkeys(
                [
                    f"runs/a/checkpoints/{iteration}/{stage}/manifest.json"
                    for iteration in (0, 40)
                    for stage in ("hessian_shards/1-of-1", "hessian", "eigenbasis", "gauss_newton")
                    if (iteration, stage) != (0, "gauss_newton")
                ],
                'dtype: "float64" → "float32"',
            ),
        ),
    ],
    ids=lambda value: next(iter(value)),
)
def test_what_is_asked_otherwise_is_named(root: Path, changes: dict[str, Any], expected: dict[str, str]) -> None:
    found = differences(small_experiment(**changes))
    assert found.keys() == expected.keys()
    for path, words in expected.items():
        if path == "data.zarr/zarr.json":
            assert any(words in change for change in found[path])
        else:
            assert found[path] == (words,)


def _edit(path: Path, change: Any) -> None:
    """Changes a manifest as if it had been written so."""
    document = json.loads(path.read_text())
    del document["checksum"]
    change(document)
    path.write_text(json.dumps({**document, "checksum": canonical_digest(document)}))


def test_what_was_computed_from_something_else_is_named(root: Path) -> None:
    place = root / "results/small/runs/a/checkpoints"
    shutil.rmtree(place / "0/eigenbasis")
    shutil.copytree(place / "40/eigenbasis", place / "0/eigenbasis")
    (path, changes), *others = differences(small_experiment()).items()
    assert path == "runs/a/checkpoints/0/eigenbasis/manifest.json"
    assert [change.partition(":")[0] for change in changes] == ["checkpoint", "hessian"]
    assert not others
    shutil.rmtree(place / "0/hessian_shards")
    shutil.copytree(place / "40/hessian_shards", place / "0/hessian_shards")
    found = differences(small_experiment())
    assert found["runs/a/checkpoints/0/hessian_shards/1-of-1/manifest.json"][0].startswith("checkpoint: ")
    assert found["runs/a/checkpoints/0/hessian/manifest.json"][0].startswith("shards.1-of-1: ")


def test_keys_that_came_later_stand_at_their_default(root: Path) -> None:
    def forget(document: dict[str, Any]) -> None:
        for key in ("nesterov", "remainder", "weight_decay"):
            del document["parameters"]["training"][key]
        del document["parameters"]["training"]["learning_rate"]["warmup"]
        del document["parameters"]["model"]["activation"]
        del document["parameters"]["model_code"]

    _edit(root / "results/small/runs/a/trajectory/manifest.json", forget)
    shard = root / "results/small/runs/a/checkpoints/40/hessian_shards/1-of-1/manifest.json"
    _edit(shard, lambda document: document["parameters"].pop("tf32"))
    assert differences(small_experiment()) == {}
    nesterov = differences(small_experiment(training={**TRAINING, "nesterov": True}))
    assert nesterov["runs/a/trajectory/manifest.json"] == ("training.nesterov: false → true",)


def test_what_is_unfinished_purged_damaged_or_set_aside_differs_in_nothing(root: Path) -> None:
    results, other = root / "results/small", small_experiment(training={**TRAINING, "momentum": 0.8}, seed=1)
    trajectory = results / "runs/a/trajectory"
    shutil.copytree(trajectory, trajectory.with_name("trajectory.superseded"))
    (trajectory / "manifest.json").unlink()
    for iteration in (0, 40):
        place = results / f"runs/a/checkpoints/{iteration}"
        purge_stage(place / "eigenbasis", ["eigenvectors"], log=lambda _: None)
        purge_stage(place / "hessian_shards/1-of-1", ["matrix"], log=lambda _: None)
        (place / "checkpoint.zarr/zarr.json").write_text("{")
        (place / "hessian/manifest.json").write_text('{"parameters": 3}')
    (results / "data.zarr/zarr.json").write_bytes(b"\xff")
    assert differences(other) == {}
    shutil.rmtree(results)
    assert differences(other) == {}


def test_damaged_labels_are_for_others_to_find(root: Path) -> None:
    for path in (root / "results/small/data.zarr/labels").rglob("c/*"):
        path.write_bytes(b"")
    assert differences(small_experiment()) == {}


def test_the_split_is_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(root / "sizes.json")
    assert differences(small_experiment(), kept) == {}
    kept.save()
    monkeypatch.setattr("quadscape.store.open_store", None)
    assert differences(small_experiment(), Kept(root / "sizes.json")) == {}
    monkeypatch.undo()
    monkeypatch.chdir(root)
    assert set(differences(small_experiment(seed=1), kept)) == {
        "data.zarr/zarr.json",
        "runs/a/trajectory/manifest.json",
    }


@pytest.mark.parametrize("name", ["old", "theirs", "half"])
def test_results_of_old_code_are_those_of_their_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    unpack(ARCHIVE, tmp_path)
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(f"{name}.yaml")
    assert differences(experiment) == {}
    assert Places(experiment.name, experiment.curvature).shards(
        experiment.runs[0].name, experiment.runs[0].checkpoints[0]
    ) == (experiment.curvature.shards)
    if name == "half":
        run = next(run for run in experiment.runs if run.path is not None)
        runs = [{"name": run.name, "path": run.path, "checkpoints": list(run.checkpoints)}]
        raw = {**json.loads(experiment.model_dump_json()), "runs": runs}
        # Said in full, defaults would be asked of a network that has fewer eigenvectors.
        del raw["measures"]
        # What trains nothing does not ask how.
        raw["training"]["momentum"] = 0.1
        assert differences(parse_experiment(raw)) == {}
        found = differences(parse_experiment({**raw, "loss": "squared_error"}))
        assert set(found) == {f"runs/{run.name}/checkpoints/5/checkpoint.zarr/zarr.json"}


def test_cleaning_keeps_what_snakemake_knows(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).resolve().parents[1] / "Makefile", tmp_path)
    for name in ("metadata", "incomplete", "log", "conda"):
        (tmp_path / ".snakemake" / name).mkdir(parents=True)
    for _ in range(2):
        subprocess.run(["make", "-s", "clean"], cwd=tmp_path, check=True)
        assert {path.name for path in (tmp_path / ".snakemake").iterdir()} == {"metadata", "incomplete"}
    shutil.rmtree(tmp_path / ".snakemake")
    subprocess.run(["make", "-s", "clean"], cwd=tmp_path, check=True)


# ---------------------------------------------------------------------------------------------------------------------
# The workflow


def _forget(checkout: Checkout) -> None:
    shutil.rmtree(checkout.path / ".snakemake")


@pytest.mark.slow
def test_without_its_memory_the_workflow_notices_another_seed(checkout: Checkout) -> None:
    _forget(checkout)
    assert not checkout.plan()
    checkout.configure(seed=1)
    planned = checkout.plan()
    assert set(planned) >= {"prepare_data", "train", "draw_figure", *PER_CHECKPOINT}
    assert "trajectory/manifest.json was made for something else (seed: 0 → 1)" in (checkout.listing)
    checkout.configure(training={**TINY["training"], "momentum": 0.8})
    planned = checkout.plan()
    assert set(planned) >= {"train", "draw_figure", *PER_CHECKPOINT}
    assert "prepare_data" not in planned
    assert "training.momentum: 0.9 → 0.8" in checkout.listing
    # Only what is asked for is made.
    checkout.configure(training={**TINY["training"], "momentum": 0.8}, curvature={"dtype": "float64"})
    code, output = checkout.snakemake("results/tiny/figures/learning_curves.svg")
    assert code == 0, output
    assert set(re.findall(r"rule (\w+):", output)) == {"train", "measure_curves", "draw_figure"}
    assert "was made for something else" in output
    assert not checkout.plan("results/tiny/figures/learning_curves.svg")
    assert "trajectory/manifest.json was made" not in checkout.listing


@pytest.mark.long
def test_without_its_memory_the_workflow_notices_other_options_of_a_measure(checkout: Checkout) -> None:
    """What figures were drawn from they say themselves; a table that someone removed is no reason to measure again."""
    overlap = "results/tiny/figures/eigenvector_overlap.svg"
    manifest = next((checkout.path / "results/tiny/tables/overlap/a/0-40").glob("manifest-*.json"))
    kept = manifest.read_bytes()
    manifest.unlink()
    _forget(checkout)
    assert not checkout.plan()
    manifest.write_bytes(kept)
    at_first = TINY["measures"]
    checkout.configure(measures={**at_first, "overlap": {"bands": 7}})
    planned = checkout.plan(overlap)
    assert planned == Counter(measure_overlap=1, draw_figure=1)
    planned = checkout.plan()
    assert planned["measure_overlap"] == 1
    assert planned["write_findings"] == 1
    code, output = checkout.snakemake(overlap)
    assert code == 0, output
    _forget(checkout)
    assert not checkout.plan(overlap)
    # Set back, the tables are there, and older than the figure.
    checkout.configure(measures=at_first)
    assert checkout.plan(overlap) == Counter(draw_figure=1)


@pytest.mark.long
def test_another_seed_and_back_computes_nothing_again(checkout: Checkout) -> None:
    run = checkout.path / "results/tiny/runs/a"
    basis = "results/tiny/runs/a/checkpoints/40/eigenbasis/manifest.json"
    stages = ["trajectory", *(f"checkpoints/40/{name}" for name in ("hessian_shards/1-of-1", "hessian", "eigenbasis"))]
    first = {stage: (run / stage / "manifest.json").read_bytes() for stage in stages}

    def made(target: str) -> str:
        code, output = checkout.snakemake(target)
        assert code == 0, output
        return output

    def verified() -> tuple[int, str]:
        return checkout.run(sys.executable, "-m", "quadscape.cli", "verify", "results/tiny")

    checkout.configure(seed=1)
    # Stopped half-way: what follows from the first trajectory is there beside the second.
    made("results/tiny/runs/a/trajectory/manifest.json")
    code, said = verified()
    assert code == 1
    assert "DAMAGED" not in said
    assert "belongs to another" in said
    assert said.count("OTHER") > len(stages)
    made(basis)
    assert "DAMAGED" not in verified()[1]
    second = {stage: (run / stage / "manifest.json").read_bytes() for stage in stages}
    assert all(first[stage] != second[stage] for stage in stages)
    checkout.configure(seed=0)
    output = made(basis)
    assert output.count("is taken back") == len(stages), output
    for stage in stages:
        assert (run / stage / "manifest.json").read_bytes() == first[stage]
        assert (run / f"{stage}.superseded/manifest.json").read_bytes() == second[stage]
        kinds = [event["event"] for event in read_events(run / stage)]
        assert "unit" not in kinds[len(kinds) - kinds[::-1].index("start") :], f"{stage} was computed again"
    # Tables and figures that were never made of the second seed are what they were.
    code, said = verified()
    assert code == 0, said
