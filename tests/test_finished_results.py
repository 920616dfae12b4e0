"""Results that the code of 21e0d71 finished, or was stopped in: whoever upgrades goes on with them.

The archive was made at that commit and is never made again. `old`: everything is finished, and the large arrays of
iteration 40 are purged. `theirs`: everything is finished, for a network of the user's own. `half`: one of each long
stage was stopped after its first units; a checkpoint of parameters from elsewhere is made. Figures hold a line of text
in place of the picture, since nothing reads them, and pictures are large.
"""

import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from quadscape.measures import MEASURES
from quadscape.measures.earlier import earlier_tables, replaced_tables
from quadscape.measures.result import table_path
from quadscape.planning.experiment_file import load_experiment
from quadscape.results.verify import verify_results
from quadscape.stage.finished import load_purged
from quadscape.store import read_store
from quadscape.tables import read_table
from tests.checkouts import Checkout, unpack

ARCHIVE = Path(__file__).with_name("data") / "results-21e0d71.tar.gz"
# What is never to be computed again: data, training, checkpoints and curvature.
EXPENSIVE = {"prepare_data", "train", "extract_checkpoint", "compute_hessian_shard", "compute_hessian"}
EXPENSIVE |= {"compute_eigenbasis", "compute_gauss_newton"}
STOPPED = {
    "runs/t/trajectory": (1, 3),
    "runs/h/checkpoints/0/hessian_shards/1-of-1": (2, 4),
    "runs/h/checkpoints/10/hessian": (1, 4),
    "runs/h/checkpoints/20/eigenbasis": (1, 16),
    "runs/h/checkpoints/40/gauss_newton": (2, 5),
}


class Upgraded(Checkout):
    """The present code over the results of then."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        unpack(ARCHIVE, path)
        self._first: dict[str, tuple[Counter[str], str]] = {}

    def use(self, experiment: str) -> Path:
        """Makes an experiment the one that commands are about; returns the directory of its results."""
        shutil.copy(self.path / f"{experiment}.yaml", self.path / "tiny.yaml")
        return self.path / "results" / experiment

    def first_plan(self, experiment: str) -> tuple[Counter[str], str]:
        """What the first start after the upgrade plans, and its listing; several tests look at them."""
        self.use(experiment)
        if experiment not in self._first:
            planned = self.plan()
            self._first[experiment] = planned, self.listing
        return self._first[experiment]


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Upgraded:
    return Upgraded(tmp_path_factory.mktemp("upgraded") / "checkout")


def test_the_archive_is_small() -> None:
    assert ARCHIVE.stat().st_size <= 500_000


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["old", "theirs"])
def test_nothing_expensive_is_computed_again(upgraded: Upgraded, experiment: str) -> None:
    results = upgraded.use(experiment)
    assert load_experiment(upgraded.path / "tiny.yaml").name == experiment
    planned, listing = upgraded.first_plan(experiment)
    assert not EXPENSIVE & set(planned), listing
    problems = {path: problem for path, problem in verify_results(results) if problem is not None}
    assert not problems


@pytest.mark.slow
def test_tables_are_taken_over_and_the_rest_is_said(upgraded: Upgraded) -> None:
    results = upgraded.use("old")
    first, listing = upgraded.first_plan("old")
    # What is new and reads nothing that was purged: test data in a measure of their own, views of runs, and findings.
    views = {f"measure_{name}" for name in ("interpolation", "path", "embedding", "sharpness", "noise_memory")}
    assert set(first) == {"draw_figure", "draw_page", "measure_final_test", "write_findings"} | views
    # Lines are other tables now, and their basis was purged; what reads these alone does not ask for them.
    for name in ("localisation", "line_search", "line_forms", "independence", "finite_batch"):
        assert f"{name} of a/40 is left out, since what it reads was purged" in listing
    assert "measured again, for line_search" not in listing
    for name, measure in MEASURES.items():
        key = "run" if measure.of == "run" else "40"
        taken = {} if name == "line_search" else earlier_tables(results, measure, "a", key)
        for table, path in taken.items():
            arrays, attributes = read_store(path)
            manifest = next((results / "tables" / name / "a" / key).glob("manifest-*.json"))
            found = read_table(table_path(manifest, table), measure.schemas[table])
            kept = arrays["split"] != "test" if table == "evaluations" else slice(None)
            assert found.attributes == attributes["table_attributes"]
            for column, values in found.columns.items():
                np.testing.assert_array_equal(values, arrays[column][kept])
    assert len(list(replaced_tables(results))) == 9
    # Other options are other tables.
    path = upgraded.path / "tiny.yaml"
    path.write_text(path.read_text().replace("vectors: 2", "vectors: 3"))
    planned = upgraded.plan()
    assert planned["measure_density"] == 1
    assert not {"measure_gradients", "measure_spectrum", "measure_line_search"} & set(planned)
    assert "measured again, for density: the options differ (vectors was 2): a/40" in upgraded.listing
    upgraded.use("old")
    assert upgraded.plan() == first, "options set back find their tables"


@pytest.mark.slow
def test_what_is_measured_again_is_said_with_the_reason(upgraded: Upgraded) -> None:
    planned, listing = upgraded.first_plan("theirs")
    assert planned["measure_line_search"] == planned["measure_line_forms"] == 2
    reason = "the code of the measure has changed"
    assert re.search(
        rf"Tables of an earlier version are measured again, for line_search: {reason}: \w+/\d+, \w+/\d+\.", listing
    )


@pytest.mark.slow
def test_what_was_purged_is_not_asked_for(upgraded: Upgraded) -> None:
    results = upgraded.use("old")
    for stage in ("hessian_shards/1-of-1", "eigenbasis", "gauss_newton"):
        assert load_purged(results / "runs/a/checkpoints/40" / stage) is not None
    planned, listing = upgraded.first_plan("old")
    assert not EXPENSIVE & set(planned)
    jobs = re.split(r"^(?:local)?rule ", listing, flags=re.MULTILINE)[1:]
    rules = {job.split(":")[0] for job in jobs if "iteration=40" in job}
    # What reads tables alone, which are there, can be measured all the same.
    assert rules <= {f"measure_{name}" for name, measure in MEASURES.items() if not measure.stages}


@pytest.mark.slow
def test_what_was_stopped_goes_on(tmp_path: Path) -> None:
    upgraded = Upgraded(tmp_path / "checkout")
    results = upgraded.use("half")
    targets = [f"results/half/{stage}/manifest.json" for stage in STOPPED]
    # The checkpoint of parameters from elsewhere is asked for, too, but there.
    planned = upgraded.plan(*targets, "results/half/runs/given/checkpoints/5/checkpoint.zarr/zarr.json")
    assert planned == Counter(
        train=1, compute_hessian_shard=1, compute_hessian=1, compute_eigenbasis=1, compute_gauss_newton=1
    )
    before = {stage: (results / stage / "journal").read_text() for stage in STOPPED}
    code, output = upgraded.snakemake(*targets)
    assert code == 0, output
    for stage, (done, total) in STOPPED.items():
        assert f"{total - done} of {total} units to compute" in output, (stage, output)
        if stage.endswith("eigenbasis") and "begun on a machine that rounds differently; starting afresh" in output:
            continue  # LAPACK's results depend on the processor, and this is another one than the archive's
        # Their files are where the journal of then says, with the content of then.
        assert set(before[stage].splitlines()) <= set((results / stage / "journal").read_text().splitlines())
    assert not {path: problem for path, problem in verify_results(results) if problem is not None}
