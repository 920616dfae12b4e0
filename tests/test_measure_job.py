"""What a measure's job writes: once, whole, and again byte for byte; long ones go on after a kill."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from family_cases import family

from quadscape.errors import StoreError
from quadscape.measures import MEASURES, SCHEMAS, items
from quadscape.measures import job as job_module
from quadscape.measures.declaration import GROUPS
from quadscape.measures.job import Job
from quadscape.measures.result import items_directory, open_kept, read_result, table_path
from quadscape.measures.run import run_measure
from quadscape.network import checkpoint as checkpoint_module
from quadscape.planning.labels import measure_label
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from quadscape.results.opened import open_results
from quadscape.results.verify import verify_results
from quadscape.tables import read_table
from results import small_experiment

EXPERIMENT = small_experiment(
    measures={
        "line_search": {"directions": 5, "points": 9},
        "density": {"vectors": 4, "steps": 6},
        "fractal": {"windows": 2, "points": 129, "examples": 32},
    }
)


@pytest.fixture
def root(made_results: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_results, tmp_path / "root"))


def measured(root: Path, name: str, key: str, experiment=EXPERIMENT) -> tuple[Path, list[str]]:
    """Runs the job of one result; its manifest and log."""
    targets, log = Targets(Problem.of(experiment)), []
    measure, options = MEASURES[name], targets.options(name, "a")
    inputs = {part: [root / path for path in paths] for part, paths in targets.inputs(measure, "a", key).items()}
    iterations = [] if key == "run" else [int(part) for part in key.split("-")]
    manifest = root / targets.result(name, "a", key)
    job = Job("a", iterations, options, inputs, device="cpu", log=log.append)
    run_measure(measure, measure_label(name), job, options, manifest)
    return manifest, log


@pytest.mark.parametrize(
    ("name", "key"), [("spectrum", "40"), ("density", "40"), ("curves", "run"), ("overlap", "0-40")]
)
def test_a_result_is_measured_once_and_written_the_same(root: Path, name: str, key: str) -> None:
    manifest, _ = measured(root, name, key)
    before = {path: path.read_bytes() for path in manifest.parent.iterdir()}
    # As Snakemake does before it runs a job again.
    manifest.unlink()
    again, log = measured(root, name, key)
    assert again == manifest
    assert any("nothing is measured" in line for line in log)
    assert {path: path.read_bytes() for path in manifest.parent.iterdir()} == before
    assert {path.name for path in manifest.parent.iterdir()} == {
        manifest.name,
        *(table_path(manifest, table).name for table in MEASURES[name].schemas),
    }
    assert dict(verify_results(manifest.parent)) == {manifest: None}


def test_where_a_family_starts_is_as_a_job_of_that_checkpoint_has_it(root: Path) -> None:
    targets = Targets(Problem.of(EXPERIMENT))
    inputs = targets.inputs(MEASURES["spectrum"], "a", "40") | targets.inputs(MEASURES["gradients"], "a", "40")
    (data,), (checkpoint,), (basis,) = (
        [root / path for path in inputs[name]] for name in ("data", "checkpoint", "eigenbasis")
    )
    there = Job("a", [40], {"dtype": "float32"}, {"data": [data], "checkpoint": [checkpoint], "eigenbasis": [basis]})
    made = replace(family({"seed": ("0", "1")}), start=("a", 40))
    reads = {"data": [data, data], "start_checkpoint": [checkpoint], "start_eigenbasis": [basis]}
    found = Job("family", [], {"dtype": "float32"}, reads, family=made).at_start
    assert (found.run, found.iterations, found.basis_head) == ("a", (40,), there.basis_head)
    np.testing.assert_array_equal(found.checkpoint.theta, there.checkpoint.theta)
    np.testing.assert_array_equal(found.basis.vectors(0, 3), there.basis.vectors(0, 3))
    theta = torch.from_numpy(there.checkpoint.theta)
    assert found.objective("train").loss(theta) == there.objective("train").loss(theta)
    assert found.sizes() == there.sizes()
    assert Job("family", [], {}, {"start_eigenbasis": [basis]}, family=made).at_start.basis.size == 235


def test_the_checkpoint_is_loaded_once_and_one_network_is_built(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []
    read: list[Path] = []
    build, read_store = checkpoint_module.build_model, job_module.read_store
    monkeypatch.setattr(checkpoint_module, "build_model", lambda *given: built.append(given) or build(*given))
    monkeypatch.setattr(job_module, "read_store", lambda path: read.append(path) or read_store(path))
    measured(root, "density", "40")
    assert (len(read), len(built)) == (1, 1)
    measured(root, "line_search", "40")
    assert (len(read), len(built)) == (2, 3), "one more network, in float32"


@pytest.mark.parametrize(("name", "key"), [("spectrum", "40"), ("curves", "run"), ("final_test", "run")])
def test_what_needs_no_torch_does_not_load_it(root: Path, name: str, key: str) -> None:
    targets = Targets(Problem.of(EXPERIMENT))
    declared, options = MEASURES[name], dict(targets.options(name, "a"))
    shutil.rmtree(root / f"results/small/tables/{name}", ignore_errors=True)
    inputs = {part: [str(root / path) for path in paths] for part, paths in targets.inputs(declared, "a", key).items()}
    given = json.dumps([name, key, options, inputs, str(root / targets.result(name, "a", key)), measure_label(name)])
    program = (
        "import json, sys\n"
        "from quadscape.measures import MEASURES\n"
        "from quadscape.measures.job import Job\n"
        "from quadscape.measures.run import run_measure\n"
        "name, key, options, inputs, manifest, label = json.loads(sys.argv[1])\n"
        "job = Job('a', [int(key)] if key.isdecimal() else [], options, inputs, device='cpu')\n"
        "run_measure(MEASURES[name], label, job, options, manifest)\n"
        "print(sorted({'torch', 'snakemake', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program, given], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert Path(targets.result(name, "a", key)).name in {path.name for path in root.rglob("manifest-*.json")}


def test_a_damaged_table_is_measured_again(root: Path) -> None:
    manifest, _ = measured(root, "spectrum", "40")
    path = table_path(manifest, "spectrum")
    before = path.read_bytes()
    path.write_bytes(before[:100] + b"x" + before[101:])
    _, log = measured(root, "spectrum", "40")
    assert not any("nothing is measured" in line for line in log)
    assert path.read_bytes() == before


def test_other_options_are_other_files_and_set_back_find_theirs(root: Path) -> None:
    first, _ = measured(root, "density", "40")
    other, _ = measured(root, "density", "40", small_experiment(measures={"density": {"vectors": 3, "steps": 6}}))
    assert other.parent == first.parent
    assert other.name != first.name
    _, log = measured(root, "density", "40")
    assert any("nothing is measured" in line for line in log)


def test_another_input_is_measured_anew(root: Path) -> None:
    manifest, _ = measured(root, "overlap", "0-40")
    before = read_result(manifest)
    basis = root / "results/small/runs/a/checkpoints/40/eigenbasis"
    shutil.rmtree(basis)
    shutil.copytree(root / "results/small/runs/a/checkpoints/0/eigenbasis", basis)
    _, log = measured(root, "overlap", "0-40")
    assert not any("nothing is measured" in line for line in log)
    assert read_result(manifest)["origin"] != before["origin"]


def test_a_result_from_before_a_measure_had_a_further_table_stays_whole(root: Path) -> None:
    manifest, _ = measured(root, "overlap", "0-40")
    further, document = table_path(manifest, "overlap_power"), json.loads(manifest.read_text())
    del document["tables"]["overlap_power"], document["files"][further.name]
    manifest.write_text(json.dumps(document))
    # A table that is there belongs to it.
    assert "does not agree with itself" in str(dict(verify_results(manifest.parent))[manifest])
    further.unlink()
    assert dict(verify_results(manifest.parent)) == {manifest: None}
    found = open_results(root / "results/small").tables("overlap")
    assert {name: len(tables) for name, tables in found.items()} == {
        table: int(table != "overlap_power") for table in MEASURES["overlap"].schemas
    }


def test_a_job_asked_for_other_files_than_its_own_refuses(root: Path) -> None:
    targets = Targets(Problem.of(EXPERIMENT))
    options = targets.options("density", "a")
    manifest = root / "results/small/tables/density/a/40/manifest-00000000.json"
    with pytest.raises(StoreError, match="other options or other code"):
        run_measure(MEASURES["density"], "1", Job("a", [40], options, {}), options, manifest)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in {"line_search", "sharpness"} else [pytest.mark.long])
        for name, measure in MEASURES.items()
        if measure.items and name != "parts" and measure.of not in GROUPS
    ],
)
def test_a_long_measure_goes_on_after_a_kill_with_the_same_result(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = __import__(MEASURES[name].module, fromlist=["Work"])
    if name == "sharpness":  # of few iterates, enough items
        monkeypatch.setattr(module, "CHAIN", 2)
    key = "run" if MEASURES[name].of == "run" else "40"
    whole, _ = measured(root, name, key)
    expected = {path.name: path.read_bytes() for path in whole.parent.iterdir() if path.is_file()}
    kept = {array: open_kept(whole).read(array) for array in MEASURES[name].keeps}
    shutil.rmtree(whole.parent)
    monkeypatch.setattr(items, "UNIT_SECONDS", 0.0)
    done: list[slice] = []
    measure_of = module.Work.measure

    def dies(self, part: slice):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(part)
        return measure_of(self, part)

    monkeypatch.setattr(module.Work, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        measured(root, name, key)
    monkeypatch.setattr(module.Work, "measure", measure_of)
    manifest, log = measured(root, name, key)
    (found,) = [match for line in log if (match := re.search(r"(\d+) of (\d+) units to compute", line))]
    left, total = map(int, found.groups())
    assert left == total - 2 >= 2
    assert {path.name: path.read_bytes() for path in manifest.parent.iterdir() if path.is_file()} == expected
    for array, values in kept.items():
        np.testing.assert_array_equal(open_kept(manifest).read(array), values)
    assert items_directory(manifest).exists() == bool(kept)


def test_pandas_reads_a_table_with_what_holds_for_all_of_it(root: Path) -> None:
    manifest, _ = measured(root, "spectrum", "40")
    path = table_path(manifest, "spectrum")
    table, frame = read_table(path, MEASURES["spectrum"].schemas["spectrum"]), pandas.read_parquet(path)
    assert list(frame.columns) == list(table.columns)
    np.testing.assert_array_equal(frame["eigenvalue"], table["eigenvalue"])
    assert frame.attrs["P"] == 235
    import pyarrow.parquet

    field = pyarrow.parquet.read_schema(path).field("eigenvalue")
    assert field.metadata[b"unit"].decode() == "loss / parameter²"


def test_a_manifest_says_what_it_follows_from(root: Path) -> None:
    manifest, _ = measured(root, "density", "40")
    document = json.loads(manifest.read_text())
    assert document["options"] == {"dtype": "float64", "vectors": 4, "steps": 6}
    assert document["label"] == measure_label("density")
    assert set(document["inputs"]) == {"data", "checkpoint"}


def test_a_long_measure_of_nothing_is_an_empty_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a run in full batches, which has no noise."""
    module = __import__(MEASURES["noise_memory"].module, fromlist=["Work"])
    monkeypatch.setattr(module.Work, "windows", [])
    manifest, _ = measured(root, "noise_memory", "run")
    assert not len(read_table(table_path(manifest, "noise_memory"), SCHEMAS["noise_memory"]))
