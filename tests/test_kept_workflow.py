"""The workflow that purges by itself, what it computes again after that, and copies of results with other times."""

import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.checkouts import Checkout
from tests.experiments import TINY

pytestmark = pytest.mark.slow

CHECKPOINTS = "results/tiny/runs/a/checkpoints"
PURGED = {
    "bases": {f"{key}/hessian_shards/1-of-1" for key in (0, 40)},
    "tables": {f"{key}/{stage}" for key in (0, 40) for stage in ("hessian_shards/1-of-1", "eigenbasis")},
}


def purged(checkout: Checkout) -> set[str]:
    found = (checkout.path / CHECKPOINTS).rglob("purged.json")
    return {path.parent.relative_to(checkout.path / CHECKPOINTS).as_posix() for path in found}


def with_checkpoint(**changes: Any) -> dict[str, Any]:
    """The experiment with one checkpoint more, and overlaps with those before asked for by name."""
    run, measures = {"name": "a", "checkpoints": [0, 20, 40]}, TINY["measures"]
    return {"runs": [run], "measures": {**measures, "overlap": {"on": True, "bands": 8}}, **changes}


def test_it_purges_what_nothing_needs_and_computes_again_what_something_does(checkout: Checkout) -> None:
    for keep, jobs in (("bases", 2), ("tables", 2)):
        checkout.configure(keep=keep)
        assert checkout.plan() == Counter(purge=jobs)
        assert not checkout.plan("results/tiny/figures/spectrum.svg"), "one figure needs no purge"
        # Half of it by hand, or by a workflow that was killed.
        if keep == "tables":
            code, output = checkout.snakemake(f"{CHECKPOINTS}/40/purge-basis.json")
            assert code == 0, output
            assert checkout.plan() == Counter(purge=1)
        code, output = checkout.snakemake()
        assert code == 0, output
        assert purged(checkout) == PURGED[keep]
        assert not checkout.plan()
    log = (checkout.path / "logs/tiny/purge/a/0/basis.log").read_text()
    assert "was purged, which freed" in log
    assert "as measured when it was computed" in log
    code, said = checkout.run(sys.executable, "-m", "quadscape.cli", "verify", "results/tiny")
    assert code == 0, said
    assert said.count("purged on 20") == 4
    (checkout.path / "results/tiny/figures/spectrum.svg").unlink()
    assert checkout.plan() == Counter(draw_figure=1)
    checkout.configure(keep="all")
    assert checkout.plan() == Counter(draw_figure=1)
    # One checkpoint more: of the others the bases are needed, for overlaps, and nothing that is there is measured anew.
    checkout.configure(**with_checkpoint(keep="tables"))
    planned = checkout.plan()
    assert planned["compute_hessian_shard"] == planned["compute_hessian"] == planned["compute_eigenbasis"] == 3
    assert planned["measure_overlap"] == 2
    assert planned["purge"] == 6
    assert {planned[f"measure_{name}"] for name in ("spectrum", "gradients", "localisation", "line_search")} == {1}
    assert not planned["train"]


def test_what_was_purged_of_something_else_measures_everything_again(checkout: Checkout) -> None:
    checkout.configure(keep="tables")
    code, output = checkout.snakemake()
    assert code == 0, output
    checkout.configure(**with_checkpoint(curvature={"dtype": "float64"}))
    planned = checkout.plan()
    # In another precision the bases are others, though they are missing only since they were purged.
    assert {planned[f"measure_{name}"] for name in ("spectrum", "gradients", "localisation", "overlap")} == {3}


def shuffle_times(root: Path, seed: int) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    random.Random(seed).shuffle(files)
    for number, path in enumerate(files):
        os.utime(path, (1.7e9 + number, 1.7e9 + number))


@pytest.mark.parametrize("memory", [False, True])
def test_copies_with_other_times_are_what_they_are(checkout: Checkout, memory: bool) -> None:
    results = checkout.path / "results/tiny"
    if not memory:
        shutil.rmtree(checkout.path / ".snakemake")
    for seed in (1, 2):
        shuffle_times(results, seed)
        assert not checkout.plan()
    # What says that it is of something else is made again, with what follows from it.
    if not memory:
        (there,) = (results / "tables/gradients/a/40").glob("manifest-*.json")
        shutil.copyfile(next((results / "tables/gradients/a/0").glob("manifest-*.json")), there)
        os.utime(there, (1.6e9, 1.6e9))
        assert checkout.plan()["measure_gradients"] == 1
