"""Parts and orders of the data: which examples they have, and runs and curvature on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quadscape.config.sections import Data, Subset
from quadscape.data.info import data_info
from quadscape.data.sets import DataSet, prepare
from quadscape.data.subsets import choose_examples, write_subset
from quadscape.errors import ConfigError
from quadscape.measures import MEASURES
from quadscape.measures.declaration import checkpoint_key, iteration_of_key, subset_of_key
from quadscape.planning.experiment import Experiment
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from quadscape.results.places import Located, locate, locate_tables
from quadscape.store import read_store
from tests.experiments import TINY

CLASSES = ("a", "b", "c")


def subset(**keys: Any) -> Subset:
    return Subset(name="part", **keys)


@given(
    labels=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=30, max_size=60),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_what_a_subset_holds(labels: list[tuple[int, int]], seed: int) -> None:
    classes, split = np.array(labels).T
    training = set(np.flatnonzero(split == 0))
    counts = [int(((classes == number) & (split == 0)).sum()) for number in range(3)]
    halves = [
        choose_examples(subset(half=half, seed=seed), classes, split, CLASSES) if len(training) > 1 else None
        for half in (0, 1)
    ]
    if halves[0] is not None and halves[1] is not None:
        first, second = ({n for n in half if split[n] == 0} for half in halves)
        assert first | second == training
        assert not first & second
        assert (len(first), len(second)) == (len(training) // 2, -(-len(training) // 2))
        for half in (0, 1):
            assert subset(half=half).at_most(len(training), 3) == len((first, second)[half])
    if min(counts) >= 2:
        drawn = choose_examples(subset(per_class=2, seed=seed), classes, split, CLASSES)
        assert [int(((classes[drawn] == n) & (split[drawn] == 0)).sum()) for n in range(3)] == [2, 2, 2]
        assert subset(per_class=2).at_most(len(training), 3) == 6
    if counts[0] and counts[2]:
        two = choose_examples(subset(classes=("a", "c")), classes, split, CLASSES)
        assert set(two) == set(np.flatnonzero(classes != 1))
        assert (np.diff(two[split[two] == 0]) > 0).all()
    if training:
        shuffled = choose_examples(subset(shuffled=True, seed=seed), classes, split, CLASSES)
        assert sorted(shuffled) == list(range(len(labels)))
        assert set(shuffled[: len(training)]) == training


def test_subsets_are_checked() -> None:
    labels, split = np.repeat([0, 1, 2], 4), np.zeros(12, dtype=np.uint8)
    for keys, sentence in (
        ({"classes": ("a", "d")}, "'part' has the class 'd'; the classes are a, b, c"),
        ({"per_class": 5}, "per_class 5, but class 'a' has only 4 training examples; valid are 1 to 4"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            choose_examples(subset(**keys), labels, split, CLASSES)
    with pytest.raises(ConfigError, match="leaves no training example"):
        choose_examples(subset(half=0), labels[:1], split[:1], CLASSES)
    for keys, sentence in (
        ({"subsets": [{"name": "x"}]}, r"subsets\[0\]: at least one of classes, per_class, half and shuffled"),
        ({"subsets": [{"name": "x", "half": 2}]}, r"subsets\[0\]\.half is 2; valid are 0 or 1"),
        ({"subsets": [{"name": "x", "hlaf": 1}]}, r"subsets\[0\]\.hlaf is not a known key \(did you mean 'half'"),
        ({"subsets": [{"name": "x", "half": 1}] * 2}, r"two subsets are called 'x'"),
        ({"runs": [{"name": "a", "examples": "y"}]}, r"runs\[0\]: examples names the subset 'y'; the subsets are none"),
        (
            {
                "subsets": [{"name": "x", "half": 1}],
                "runs": [{"name": "a", "checkpoints": [0], "curvature_on": {"x": [40]}}],
            },
            r"runs\[0\]: curvature_on\.x names iteration 40, which is no checkpoint of the run; its checkpoints are 0",
        ),
        (
            {"subsets": [{"name": "x", "per_class": 2}], "runs": [{"name": "a", "examples": "x"}]},
            r"runs\[0\]\.batch_size is 32, but there are only 20 training images; valid are 1 to 20",
        ),
    ):
        with pytest.raises(ConfigError, match=sentence):
            Problem.of(parse_experiment({**TINY, **keys}))


def test_a_subset_is_normalised_as_the_whole(tmp_path: Path) -> None:
    prepare(Data(source="digits", held_out=0.8), 0, tmp_path / "data.zarr")
    counts = write_subset(subset(per_class=3, classes=("0", "7")), tmp_path / "data.zarr", tmp_path / "part.zarr")
    whole, part = (DataSet.load(tmp_path / f"{name}.zarr", dtype=torch.float64) for name in ("data", "part"))
    assert counts == part.counts
    assert (counts["train"], part.classes) == (6, whole.classes)
    assert sorted(set(part.split("validation")[1].tolist())) == [0, 7]
    origin = read_store(tmp_path / "part.zarr")[0]["origin"]
    numbers = np.searchsorted(np.flatnonzero(read_store(tmp_path / "data.zarr")[0]["split"] == 0), origin[:6])
    assert torch.equal(part.split("train")[0], whole.split("train")[0][numbers])
    again = write_subset(subset(per_class=3, classes=("0", "7")), tmp_path / "data.zarr", tmp_path / "again.zarr")
    assert again == counts
    assert data_info(tmp_path / "again.zarr").digest == data_info(tmp_path / "part.zarr").digest


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True),
    st.booleans(),
    st.integers(0, 10**9),
    st.one_of(st.none(), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)),
)
@settings(deadline=None)
def test_places_are_found_again(name: str, member: bool, iteration: int, on: str | None) -> None:
    run, key = f"{name}/0123abcd" if member else name, checkpoint_key(iteration, on)
    assert (iteration_of_key(key), subset_of_key(key)) == (iteration, on)
    root = Path("/somewhere/results/x")
    place = root / "runs" / run / "checkpoints" / key
    for path in (place / "eigenbasis", place / "checkpoint.zarr", place):
        assert locate(path) == Located(root, run, key)
    assert locate(root / "runs" / run / "trajectory") == Located(root, run, "")
    assert locate_tables(root / "tables/spectrum" / run / key) == Located(root, run, key)


def on_parts(**changes: Any) -> Experiment:
    return parse_experiment({**TINY, **PARTS_OF_DATA, **changes})


PARTS_OF_DATA = {
    "subsets": [
        {"name": "half", "half": 0},
        {"name": "few", "per_class": 5, "seed": 2},
        {"name": "order", "shuffled": True},
    ],
    "runs": [
        {"name": "a", "checkpoints": [40], "curvature_on": {"half": [40]}},
        {"name": "b", "examples": "few", "checkpoints": [40]},
    ],
}


def test_sizes_and_places_of_subsets() -> None:
    targets = Targets(Problem.of(on_parts()))
    problem = Problem.of(on_parts())
    assert [problem.sizes(run).training for run in "ab"] == [359, 50]
    assert targets.data("b") == targets.data("b", "40") == "results/tiny/subsets/few.zarr/zarr.json"
    assert targets.data("a", "40/on-half") == "results/tiny/subsets/half.zarr/zarr.json"
    assert targets.on_subsets() == ["results/tiny/runs/a/checkpoints/40/on-half/eigenbasis/manifest.json"]
    assert set(targets.on_subsets()) <= set(targets.everything())
    assert targets.settings()["b"]["N"] == 50


# ---------------------------------------------------------------------------------------------------------------------
# What compares a checkpoint on subsets


COMPARED = {
    **PARTS_OF_DATA,
    "runs": [
        {"name": "a", "checkpoints": [0, 30, 40], "curvature_on": {"half": [40], "order": [0, 40]}},
        {"name": "b", "examples": "few", "checkpoints": [0, 40]},
    ],
}


def compared(**changes: Any) -> Targets:
    return Targets(Problem.of(parse_experiment({**TINY, **COMPARED, **changes})))


def test_a_measure_of_subsets_exists_only_where_there_are_any() -> None:
    targets = compared()
    measure = MEASURES["identified"]
    assert [targets.keys(measure, run) for run in "ab"] == [["0", "40"], []]
    assert [Path(path).parent.name for path in targets.results("identified")] == ["0", "40"]
    inputs = targets.inputs(measure, "a", "40")
    place = "results/tiny/runs/a/checkpoints/40"
    assert inputs == {
        "data": ["results/tiny/data.zarr/zarr.json"],
        "checkpoint": [f"{place}/checkpoint.zarr/zarr.json"],
        "eigenbasis": [f"{place}/eigenbasis/manifest.json"],
        "subset_data": [f"results/tiny/subsets/{name}.zarr/zarr.json" for name in ("half", "order")],
        "subset_eigenbasis": [f"{place}/on-{name}/eigenbasis/manifest.json" for name in ("half", "order")],
    }
    assert len(targets.inputs(measure, "a", "0")["subset_eigenbasis"]) == 1
    problem = Problem.of(parse_experiment({**TINY, **COMPARED}))
    assert [problem.sizes(run).subsets for run in "ab"] == [2, 0]
    assert (
        sum(targets.law("identified", "a").work.amounts[f"matrix {t}"] for t in [targets.experiment.curvature.dtype])
        == 2 * 2 * 235**3
    )
    # Other measures are as they were.
    without = Targets(
        Problem.of(parse_experiment({**TINY, **COMPARED, "runs": [{"name": "a", "checkpoints": [0, 40]}]}))
    )
    for name, other in MEASURES.items():
        if other.of in {"run", "checkpoint", "checkpoint_pair"} and not other.reads_subsets:
            key = {"run": "run", "checkpoint": "40", "checkpoint_pair": "0-40"}[other.of]
            assert targets.inputs(other, "a", key) == without.inputs(other, "a", key)
            assert targets.result(name, "a", key) == without.result(name, "a", key)
    assert without.results("identified") == []


def test_its_figure_shows_the_change_between_checkpoints_where_there_is_any() -> None:
    targets = compared()
    found = targets.figure_inputs("identified_directions")
    assert found["identified"] == targets.results("identified")
    # Of run a alone, and only pairs with a checkpoint that is shown.
    assert [Path(path).parent.name for path in found["overlap"]] == ["0-30", "0-40", "30-40"]
    assert all("/overlap/a/" in path for path in found["overlap"])
    runs = [{"name": "a", "checkpoints": [0, 30, 40], "curvature_on": {"half": [40]}}]
    pairs = compared(runs=runs).figure_inputs("identified_directions")["overlap"]
    assert [Path(path).parent.name for path in pairs] == ["0-40", "30-40"]
    alone = compared(runs=[{"name": "a", "checkpoints": [40], "curvature_on": {"half": [40]}}])
    assert alone.figure_inputs("identified_directions").keys() == {"identified"}
    assert any("identified_directions" in path for path in alone.figures())
    off = compared(measures={**TINY["measures"], "overlap": False})
    assert off.figure_inputs("identified_directions").keys() == {"identified"}
    without = compared(runs=[{"name": "a", "checkpoints": [40]}])
    assert not any("identified_directions" in path for path in without.figures())


def test_what_was_purged_on_a_subset_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [{"name": "a", "checkpoints": [40], "curvature_on": {"half": [40], "order": [40]}}]
    bases = compared(runs=runs).on_subsets()
    assert len(bases) == 2
    Path(bases[0]).parent.mkdir(parents=True)
    Path(bases[0]).with_name("purged.json").write_text("{}")
    targets = compared(runs=runs)
    assert targets.on_subsets() == bases[1:]
    assert targets.results("identified") == []
    assert any("identified of a/40 is left out, since what it reads was purged" in one for one in targets.left_out())
    # What is there stays, and who asks for it by name gets it.
    result = Path(targets.result("identified", "a", "40"))
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    assert compared(runs=runs).results("identified") == [str(result)]
    result.unlink()
    assert compared(runs=runs, measures={"identified": True}).results("identified") == [str(result)]


def test_a_figure_of_two_measures_shows_what_both_have() -> None:
    runs = [{"name": "a", "checkpoints": [0, 40]}, {"name": "b", "checkpoints": [40]}]
    measures = {**TINY["measures"], "line_forms": {"runs": ["b"]}, "noise_curvature": {"runs": ["a"]}}
    targets = Targets(Problem.of(parse_experiment({**TINY, "runs": runs, "measures": measures})))
    for figure, shown in (("quadratic_radius", ["b/40"]), ("noise_curvature", ["a/0", "a/40"])):
        for paths in targets.figure_inputs(figure).values():
            assert ["/".join(Path(path).parts[-3:-1]) for path in paths] == shown
