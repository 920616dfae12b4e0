"""Families: grids of runs, values chosen from them, members that diverge, and many trainings in one job."""

import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadscape.data.sets import prepare
from quadscape.errors import ConfigError, StageError
from quadscape.measures import MEASURES
from quadscape.measures.family import Family
from quadscape.planning.estimate import estimate_experiment
from quadscape.planning.experiment import Experiment
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.families import chosen_run
from quadscape.planning.problem import Problem
from quadscape.planning.targets import MeasureRule, Targets
from quadscape.planning.together import PARTS, Training, part_of, take_manifest, train_member
from quadscape.stage.run import run_stage
from quadscape.training.task import TrainingTask
from quadscape.training.trajectory import Trajectory
from tests.checkouts import Checkout
from tests.experiments import TINY

RATES = {
    "name": "rates",
    "vary": {"learning_rate.value": [0.05, 0.1, 0.2], "seed": [0, 1, 2, 3]},
    "set": {"iterations": 30},
}
FINAL = {"name": "final", "vary": {"seed": [10, 11]}, "set": {"iterations": 30, "chosen": {"family": "rates"}}}


def with_families(*families: Mapping[str, Any], **changes: Any) -> Experiment:
    return parse_experiment({**TINY, "families": list(families), **changes})


def varied(**axes: Any) -> dict[str, Any]:
    return {**RATES, "vary": {**RATES["vary"], **axes}}


# ---------------------------------------------------------------------------------------------------------------------
# Grids


def test_every_combination_is_a_run() -> None:
    experiment = with_families(RATES)
    (grid,) = experiment.grids
    assert len(grid.members) == len({member.run for member in grid.members}) == 12
    assert grid.axes == {"learning_rate.value": ("0.05", "0.1", "0.2"), "seed": ("0", "1", "2", "3")}
    assert (grid.repeats, list(grid.cells)) == (("seed",), ["0.05", "0.1", "0.2"])
    for member in grid.members:
        run = experiment.run(member.run)
        assert (run.learning_rate.value, run.seed) == (float(grid.cell(member)), int(member.labels["seed"]))
        assert (run.iterations, run.batch_size, run.learning_rate.schedule) == (30, 32, "steps")
    assert [run.name for run in experiment.listed_runs] == ["a"]
    assert Family.of_document(json.loads(json.dumps(grid.document()))) == grid


def test_a_name_is_what_determines_a_run() -> None:
    before = {member.run for member in with_families(RATES).grids[0].members}
    more = with_families(varied(**{"learning_rate.value": [0.05, 0.1, 0.2, 0.4]})).grids[0]
    assert before < {member.run for member in more.members}
    # An axis of one level changes nothing at all, whether it says a default or what the file says.
    for axes in ({"momentum": [0.9]}, {"decay": {"usual": {"weight_decay": 1e-3}}}, {"batch_size": [32]}):
        assert with_families(varied(**axes)).grids == with_families(RATES).grids
    # Labels are no part of it, nor is the order of axes.
    named = {
        **RATES,
        "vary": {"seed": [0, 1, 2, 3], "rate": {f"η={v}": {"learning_rate.value": v} for v in (0.05, 0.1, 0.2)}},
    }
    assert {member.run for member in with_families(named).grids[0].members} == before
    changed = with_families({**RATES, "set": {"iterations": 31}}).grids[0]
    assert before.isdisjoint(member.run for member in changed.members)


def test_equal_runs_share_a_place() -> None:
    other = {"name": "again", "vary": {"seed": [0, 7]}, "set": {"iterations": 30, "checkpoints": [30]}}
    whole = {"name": "whole", "vary": {"seed": [0, 7]}}
    experiment = with_families(RATES, other, whole)
    rates, again, plain = experiment.grids
    assert again.members[0].run in {member.run for member in rates.members}
    assert again.members[1].run.startswith("again/")
    assert plain.members[0].run == "a"  # the run that the file lists
    assert experiment.run(again.members[0].run).checkpoints == (30,)
    assert len(experiment.runs) == 1 + 12 + 1 + 1


def test_what_is_measured_of_members() -> None:
    experiment = with_families(RATES)
    member = experiment.grids[0].members[0].run
    assert experiment.is_measured("curves", "a")
    assert not experiment.is_measured("curves", member)
    measures = {**TINY["measures"], "curves": {"runs": ["rates"]}}
    named = with_families(RATES, measures=measures)
    assert named.is_measured("curves", member)
    assert not named.is_measured("curves", "a")
    targets = Targets(Problem.of(named))
    assert len(targets.results("curves")) == 12
    assert len(targets.results("tuning")) == 1
    assert targets.settings()["rates"]["N"] == 359
    assert targets.clipped() == []


@given(
    st.dictionaries(
        st.sampled_from(["momentum", "weight_decay", "seed", "learning_rate.value", "trajectory.stride"]),
        st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
        min_size=1,
    )
)
@settings(max_examples=25, deadline=None)
def test_a_grid_is_the_product_of_its_axes(axes: dict[str, list[int]]) -> None:
    vary = {key: [v / 10 if key in {"momentum", "weight_decay"} else v for v in axes[key]] for key in axes}
    vary = {key: [float(v) for v in vs] if key == "learning_rate.value" else vs for key, vs in vary.items()}
    experiment = with_families({"name": "f", "vary": vary})
    (grid,) = experiment.grids
    assert len(grid.members) == np.prod([len(levels) for levels in axes.values()])
    for member in grid.members:
        run = experiment.run(member.run)
        for axis, label in member.labels.items():
            value: Any = run
            for part in axis.split("."):
                value = getattr(value, part)
            assert value == json.loads(label)
    assert sum(len(cell) for cell in grid.cells.values()) == len(grid.members)


@pytest.mark.parametrize(
    ("families", "sentence"),
    [
        ([varied(**{"learning_rate.valu": [1, 2]})], r"learning_rate\.valu is not a known key \(did you mean 'value'"),
        ([varied(momentun=[0.1, 0.2])], r"momentun is not a known key \(did you mean 'momentum'\?\)"),
        ([varied(decay={"high": {"weight_decay": -1}})], r"family 'rates'.*weight_decay is -1"),
        ([{**RATES, "vary": {}}], r"families\[0\]\.vary is \{\}"),
        ([varied(seed=[])], r"family 'rates': vary\.seed is empty"),
        ([varied(seed=[1, 1])], r"vary\.seed has the level 1 twice"),
        ([{**RATES, "name": "a"}], r"families has the name 'a', which is that of a run"),
        ([{**RATES, "name": "a/b"}], r"families\[0\]\.name is \"a/b\"; valid are letters"),
        ([{**RATES, "vari": {}}], r"families\[0\]\.vari is not a known key \(did you mean 'vary'\?\)"),
        ([RATES, RATES], r"two families are called 'rates'"),
        ([varied(again={"x": {"seed": 1}, "y": {"seed": 2}})], r"vary\.seed and vary\.again both give seed"),
        ([{**RATES, "set": {"path": "x"}}], r"set gives path"),
        ([{**RATES, "set": {"checkpoints": [33]}}], r"family 'rates', learning_rate\.value 0\.05, seed 0: checkpoint"),
        ([{**FINAL, "name": "f"}], r"chosen names the family 'rates'; the families are f"),
        (
            [RATES, {**FINAL, "vary": {"learning_rate.value": [0.1, 0.2]}}],
            r"'rates', which varies nothing else than",
        ),
        ([RATES, {**FINAL, "set": {"chosen": {"family": "rates", "bye": 1}}}], r"chosen\.bye is not a known key"),
        ([RATES, {**FINAL, "vary": {"learning_rate.value": {"x": {"nesterov": True}}}}, FINAL], r"two families"),
        ([varied(optimizer=["adam", "adma"])], r"optimizer\.method is \"adma\"; valid are adam, adamw"),
        ([varied(seed=list(range(2000)))], r"family 'rates' has 6000 members; valid are at most 4096"),
    ],
)
def test_a_wrong_family_is_one_sentence(families: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        with_families(*families)
    assert "\n" not in str(caught.value)


def test_names_of_families_are_checked() -> None:
    measures = {**TINY["measures"], "curves": {"runs": ["rate"]}}
    with pytest.raises(ConfigError, match=r"measures\.curves\.runs names the run 'rate'; the runs are a"):
        with_families(RATES, measures=measures)
    measures = {**TINY["measures"], "tuning": {"runs": ["a"]}}
    with pytest.raises(ConfigError, match=r"measures\.tuning\.runs names the family 'a'; the families are rates"):
        with_families(RATES, measures=measures)
    with pytest.raises(ConfigError, match=r"family 'f', batch_size 400: batch_size is 400, but there are only 359"):
        Problem.of(with_families({"name": "f", "vary": {"batch_size": [32, 400]}}))


# ---------------------------------------------------------------------------------------------------------------------
# Values that are chosen


def best_of(losses: Mapping[str, float], *families: Mapping[str, Any], index: int = -1) -> Any:
    raw = {**TINY, "families": list(families)}
    experiment = parse_experiment(raw)
    return chosen_run(experiment, raw, experiment.grids[-1].members[index].run, losses)[0]


def test_the_best_of_a_family_is_taken() -> None:
    run = best_of({"0.05": 3.0, "0.1": 1.0, "0.2": np.inf}, RATES, FINAL)
    assert (run.learning_rate.value, run.seed, run.iterations, run.momentum) == (0.1, 11, 30, 0.9)


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        ((1, 2, 3), r"The best learning_rate\.value of family 'rates' is 0\.05, the smallest of its.*add 0\.025 to it"),
        ((3, 2, 1), r"is 0\.2, the largest of its grid \(0\.05, 0\.1, 0\.2\).*add 0\.4 to it"),
        ((np.inf, np.inf, np.inf), r"All members of family 'rates' that are chosen from diverged"),
    ],
)
def test_a_best_value_at_an_edge_is_an_error(losses: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        best_of(dict(zip(("0.05", "0.1", "0.2"), losses, strict=True)), RATES, FINAL)


def test_axes_that_both_have_are_matched_by_their_labels() -> None:
    methods = {"sgd": {}, "adam": {"optimizer": "adam"}}
    tune = {**RATES, "vary": {"method": methods, **RATES["vary"]}}
    final = {**FINAL, "vary": {"method": methods, **FINAL["vary"]}}
    losses = {f"{m} · {v}": 1.0 for m in methods for v in ("0.05", "0.1", "0.2")}
    losses |= {"sgd · 0.1": 0.5, "adam · 0.1": 0.2, "adam · 0.2": 0.3}
    for index, method in enumerate(("sgd", "sgd", "adam", "adam")):
        run = best_of(losses, tune, final, index=index)
        assert (run.optimizer.method, run.learning_rate.value) == (method, 0.1)
    raw = {**TINY, "families": [tune, {**FINAL, "vary": {"method": {"lbfgs": {}, "sgd": {}}}}]}
    with pytest.raises(ConfigError, match="family 'rates', whose method is never lbfgs; valid are sgd, adam"):
        parse_experiment(raw)
    run = best_of(losses, tune, {**FINAL, "vary": {"method": {"sgd": {}}, "seed": [10, 11]}})
    assert (run.optimizer.method, run.learning_rate.value) == ("sgd", 0.1)
    # A whole method can be chosen, too; options of SGD are then not inherited.
    run = best_of(losses, tune, FINAL)
    assert (run.optimizer.method, run.learning_rate.value) == ("adam", 0.1)


def test_a_listed_run_can_choose() -> None:
    raw = {**TINY, "families": [RATES], "runs": [{"name": "a"}, {"name": "best", "chosen": {"family": "rates"}}]}
    experiment = parse_experiment(raw)
    run, levels = chosen_run(experiment, raw, "best", {"0.05": 2.0, "0.1": 1.0, "0.2": 3.0})
    assert (run.name, run.learning_rate.value, run.iterations) == ("best", 0.1, 40)
    assert {axis: level.label for axis, level in levels.items()} == {"learning_rate.value": "0.1"}
    assert Targets(Problem.of(experiment)).tuning("best") == Targets(Problem.of(experiment)).results("tuning")


# ---------------------------------------------------------------------------------------------------------------------
# Divergence


def diverging(steps: int) -> Any:
    raw = {**TINY, "training": {"iterations": steps, "learning_rate": {"schedule": "constant", "value": 1e200}}}
    raw["runs"] = [{"name": "a"}]
    return parse_experiment(raw)


def test_a_member_that_diverges_is_a_result(tmp_path: Path) -> None:
    experiment = diverging(300)
    prepare(experiment.data, 0, tmp_path / "data.zarr")
    run = experiment.runs[0].model_copy(update={"batch_size": 32, "evaluate_every": 10})
    arguments = (run, 0, experiment.model, experiment.loss, tmp_path / "data.zarr", "cpu")
    with pytest.raises(StageError, match=r"Training of run 'a' diverged: the loss is not finite at iteration \d+"):
        run_stage(TrainingTask(*arguments), tmp_path / "error", log=lambda _: None)
    task = TrainingTask(*arguments)
    task.may_diverge = True
    run_stage(task, tmp_path / "trajectory", log=lambda _: None)
    found = Trajectory.open(tmp_path / "trajectory")
    lost = found.diverged
    assert lost is not None
    curves = found.curves()
    assert np.isfinite(curves.loss[:lost]).all()
    for values in (curves.loss, curves.learning_rate, curves.gradient_norm):
        assert np.isnan(values[lost:]).all()
    assert np.isnan(curves.evaluation[lost:]).all()
    assert (found.stage.read("batch")[lost:] == -1).all()
    assert np.isnan(found.stage.read("resume/theta")[2:]).all()
    assert found.stage.manifest["results"]["final"]["train"] == {"loss": None, "accuracy": None}
    # A run that does not diverge says nothing of it, so that manifests are as they were.
    tame = run.model_copy(update={"learning_rate": run.learning_rate.model_copy(update={"value": 0.1})})
    for name, may in (("strict", False), ("lenient", True)):
        task = TrainingTask(tame, *arguments[1:])
        task.may_diverge = may
        run_stage(task, tmp_path / name, log=lambda _: None)
    assert (tmp_path / "strict/manifest.json").read_bytes() == (tmp_path / "lenient/manifest.json").read_bytes()
    assert Trajectory.open(tmp_path / "lenient").diverged is None


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


class Wildcards(SimpleNamespace):
    """Snakemake's."""

    def __getitem__(self, name: str) -> str:
        return getattr(self, name)


def test_pairs_are_families_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = parse_experiment({**TINY, "runs": [{"name": "a"}, {"name": "b"}], "pairs": [["b", "a"]]})
    (grid,) = pair.groups("run_pair")
    assert (grid.name, [member.run for member in grid.members]) == ("pairs/b/a", ["b", "a"])
    targets = Targets(Problem.of(pair))
    # One that is of families, made one of pairs.
    monkeypatch.setitem(MEASURES, "tuning", replace(MEASURES["tuning"], of="run_pair"))
    assert targets.subjects("tuning") == [("pairs/b/a", "pair")]
    rule = MeasureRule(MEASURES["tuning"], targets)
    assert rule.output == "results/tiny/tables/tuning/{pair}/pair/manifest-{digits}.json"
    wildcards = Wildcards(pair="pairs/b/a")
    assert rule.options(wildcards)["family"] == grid.document()
    assert rule.inputs(wildcards) == {
        "trajectory": [f"results/tiny/runs/{run}/trajectory/manifest.json" for run in "ba"]
    }
    (result,) = targets.results("tuning")
    assert result.startswith("results/tiny/tables/tuning/pairs/b/a/pair/manifest-")


def test_pairs_are_checked() -> None:
    for pairs, sentence in (
        ([["a", "c"]], r"pairs\[0\] names the run 'c'; the runs are a"),
        ([["a", "a"]], r"pairs\[0\] names the run 'a' twice; valid are two runs"),
        ([["a"]], r"pairs\[0\]"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            parse_experiment({**TINY, "pairs": pairs})


# ---------------------------------------------------------------------------------------------------------------------
# Where all members start


FROM_A = {"run": "a", "iteration": 40, "batches": "fresh"}
BOTH = {
    "name": "both",
    "vary": {"sampling": ["reshuffled", "independent"]},
    "set": {"iterations": 30, "start": FROM_A},
}


def started(**keys: Any) -> dict[str, Any]:
    """The family with other keys, which all members share."""
    return {**BOTH, "set": {**BOTH["set"], **keys}}


def starting(**axes: Any) -> dict[str, Any]:
    """The same, whose members differ in something else."""
    return {**BOTH, "vary": axes, "set": {"iterations": 30}}


@pytest.fixture
def start_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two measures as if they read the checkpoint at which members start; `tuning` is on by default."""
    for name in ("tuning", "escape"):
        reads = (*MEASURES[name].reads, "start_checkpoint", "start_eigenbasis")
        monkeypatch.setitem(MEASURES, name, replace(MEASURES[name], reads=reads))


@pytest.mark.usefixtures("start_is_read")
def test_the_checkpoint_at_which_all_members_start_is_read() -> None:
    targets = Targets(Problem.of(with_families(RATES, BOTH)))
    assert targets.subjects("tuning") == [("both", "family")]
    assert targets.results("escape") == []
    rule, wildcards = MeasureRule(MEASURES["tuning"], targets), Wildcards(family="both")
    place = "results/tiny/runs/a/checkpoints/40"
    inputs = rule.inputs(wildcards)
    assert inputs["start_checkpoint"] == [f"{place}/checkpoint.zarr/zarr.json"]
    assert inputs["start_eigenbasis"] == [f"{place}/eigenbasis/manifest.json"]
    assert len(inputs["trajectory"]) == 2
    family = Family.of_document(json.loads(json.dumps(rule.options(wildcards)["family"])))
    assert family == replace(targets.experiment.grid("both"), start=("a", 40))
    with pytest.raises(ConfigError, match="no checkpoint at which all members of 'rates' start"):
        rule.inputs(Wildcards(family="rates"))
    # What does not read it is as it was, and so are its finished results.
    descent = MeasureRule(MEASURES["descent"], targets)
    assert descent.options(wildcards)["family"] == targets.experiment.grid("both").document()
    assert "start" not in descent.options(wildcards)["family"]
    assert [family for family, _ in targets.subjects("descent")] == ["rates", "both"]
    asked = with_families(RATES, BOTH, measures={**TINY["measures"], "escape": {"runs": ["both"]}})
    assert Targets(Problem.of(asked)).subjects("escape") == [("both", "family")]


@pytest.mark.usefixtures("start_is_read")
def test_reading_the_basis_counts() -> None:
    targets, other = Targets(Problem.of(with_families(BOTH))), Targets(Problem.of(with_families(RATES, BOTH)))
    read = [targets.law(name, "both").work.amounts["stored"] for name in ("tuning", "descent")]
    assert read == [4 * 235**2, 0]
    estimates = estimate_experiment(other._problem, ["cpu"])[0].needs
    assert {need.stage: need.jobs for need in estimates}["measure_tuning"] == 1


@pytest.mark.usefixtures("start_is_read")
@pytest.mark.parametrize(
    ("family", "problem"),
    [
        (RATES, "whose member (learning_rate.value 0.05, seed 0) starts by itself"),
        (
            started(start={**FROM_A, "iteration": 30}),
            "whose members start at iteration 30 of run 'a', whose checkpoints are 0, 40",
        ),
        (
            starting(**{"start": {"x": {"start": FROM_A}, "y": {"start": {**FROM_A, "iteration": 0}}}}),
            "whose member (start y) starts at iteration 0 of run 'a', not at iteration 40 of run 'a'",
        ),
        (
            starting(**{"start": {"x": {"start": FROM_A}, "y": {}}}),
            "whose member (start y) starts by itself",
        ),
        (
            started(examples="few"),
            "whose member (sampling reshuffled) has examples few, but starts at iteration 40 of run 'a', which has all",
        ),
        (
            starting(loss={f"{n}": {"loss": n, "start": FROM_A} for n in ("cross_entropy", "squared_error")}),
            "whose member (loss squared_error) has loss squared_error, but starts at iteration 40 of run 'a', which "
            "has cross_entropy",
        ),
    ],
)
def test_where_members_do_not_start_at_one_checkpoint(family: dict[str, Any], problem: str) -> None:
    common = {"subsets": [{"name": "few", "per_class": 20}]}
    good = {**BOTH, "name": "good"}
    by_default = Targets(Problem.of(with_families(family, good, **common)))
    assert by_default.subjects("tuning") == [("good", "family")]
    name = family["name"]
    for measure in ("tuning", "escape"):
        for section, said in (
            ({"runs": [name]}, rf"measures\.{measure}\.runs names the family '{name}'"),
            ({"runs": ["good", name], "on": True}, rf"measures\.{measure}\.runs names the family '{name}'"),
            (True, rf"measures\.{measure}\.on is true, also for the family '{name}'"),
        ):
            with pytest.raises(ConfigError, match=rf"^{said}, .*valid as runs are .*: good\.$") as caught:
                with_families(family, good, **common, measures={**TINY["measures"], measure: section})
            assert problem in str(caught.value)
        for section in ({"runs": ["good"]}, {"on": False, "runs": [name]}, False):
            with_families(family, good, **common, measures={**TINY["measures"], measure: section})


@pytest.mark.usefixtures("start_is_read")
def test_two_runs_of_a_pair_may_start_at_one_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEASURES, "tuning", replace(MEASURES["tuning"], of="run_pair"))
    runs = [*TINY["runs"], *({"name": name, "start": FROM_A} for name in "bc")]
    pairs = parse_experiment({**TINY, "runs": runs, "pairs": [["b", "c"], ["a", "b"]]})
    assert Targets(Problem.of(pairs)).subjects("tuning") == [("pairs/b/c", "pair")]
    measures = {**TINY["measures"], "tuning": True}
    with pytest.raises(
        ConfigError, match=r"the pair 'pairs/a/b', whose member \(run a\) starts by itself.*: pairs/b/c"
    ):
        parse_experiment({**TINY, "runs": runs, "pairs": [["b", "c"], ["a", "b"]], "measures": measures})


@pytest.mark.usefixtures("start_is_read")
def test_a_result_that_reads_a_start_is_known_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    targets = Targets(Problem.of(with_families(BOTH)))
    (result,) = map(Path, targets.results("tuning"))
    basis = Path(targets.inputs(MEASURES["tuning"], "both", "family")["start_eigenbasis"][0])
    basis.parent.mkdir(parents=True)
    basis.with_name("purged.json").write_text("{}")
    # What was purged is not computed again for what is missing, unless it is asked for.
    assert Targets(Problem.of(with_families(BOTH))).results("tuning") == []
    asked = with_families(BOTH, measures={**TINY["measures"], "tuning": True})
    assert Targets(Problem.of(asked)).results("tuning") == [str(result)]
    result.parent.mkdir(parents=True)
    document = targets.group(MEASURES["tuning"], "both").document()
    for family, outgrown in ((document, []), ({**document, "start": ["a", 0]}, [str(result)])):
        result.write_text(json.dumps({"options": {"family": family}}))
        again = Targets(Problem.of(with_families(BOTH)))
        assert again.results("tuning") == [str(result)]
        assert again.outgrown() == outgrown


# ---------------------------------------------------------------------------------------------------------------------
# Many to a job


def test_which_members_share_a_job_does_not_depend_on_others() -> None:
    few, many = (Targets(Problem.of(with_families(f))) for f in (RATES, varied(seed=list(range(40)))))
    assert len(few.small_members) == 12
    assert {run: many.small_members[run] for run in few.small_members} == few.small_members
    members = [len(many.part_members("rates", part)) for part in range(PARTS)]
    assert sum(members) == 120
    assert min(members) >= 16
    long = {**RATES, "set": {"iterations": 2_000_000}}
    assert Targets(Problem.of(with_families(long))).small_members == {}


def test_estimates_of_families() -> None:
    def needs(*families: Mapping[str, Any]) -> dict[str, Any]:
        found = estimate_experiment(Problem.of(with_families(*families)), ["cuda"])[0].needs
        return {need.stage: need for need in found}

    few, many = needs(RATES), needs(varied(seed=list(range(16))))
    assert (few["training"].jobs, few["train_together"].jobs, many["train_together"].jobs) == (1, 2, 2)
    assert many["train_together"].disk_bytes == pytest.approx(4 * few["train_together"].disk_bytes)
    assert few["train_together"].seconds < many["train_together"].seconds < 4 * few["train_together"].seconds
    assert few["measure_tuning"].jobs == 1
    # Members of one family may have networks of several sizes.
    widths = {"name": "w", "vary": {"model.hidden": [[2], [3], [4]]}}
    found = estimate_experiment(Problem.of(with_families(widths)), ["cuda"])[0].needs
    assert sum(need.jobs for need in found if need.stage in {"training", "train_together"}) >= 2


def test_a_damaged_record_of_a_part_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "part.json").write_text('{"members": {"f/1": {"asked": "x", "manifest": "y"}}, "format": 1}')
    assert not take_manifest(tmp_path / "part.json", "f/1", "x", tmp_path / "trajectory/manifest.json")


FEW = varied(seed=[0, 1])


def table_of(*families: Mapping[str, Any]) -> str:
    return Targets(Problem.of(with_families(*families))).results("tuning")[-1]


@pytest.fixture(scope="module")
def family_made(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which a family of 6 is trained, by jobs that are killed twice on the way, and its table made."""
    checkout = Checkout.at(Path(shutil.copytree(finished.path, tmp_path_factory.mktemp("family") / "copy")))
    checkout.configure(families=[FEW])

    def begun() -> int:
        return len(list(checkout.path.glob("results/tiny/runs/rates/*/trajectory/store.zarr")))

    ended = []
    for _ in range(2):
        child = checkout.begin(*checkout.command(table_of(FEW)))
        most = min(begun() + 2, 6)
        limit = time.time() + 60
        while child.poll() is None and time.time() < limit and begun() < most:
            time.sleep(0.05)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        ended += [child.returncode]
    assert -signal.SIGKILL in ended
    code, output = checkout.snakemake(table_of(FEW))
    assert code == 0, output
    return checkout


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_job_of_many_that_is_killed_goes_on(
    family_made: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(family_made.path)
    made = sorted(Path("results/tiny/runs/rates").glob("*/trajectory/manifest.json"))
    experiment = with_families(FEW)
    targets = Targets(Problem.of(experiment))
    assert len(made) == 6
    for manifest in made:
        run = f"rates/{manifest.parts[-3]}"
        training = Training({}, targets.training_inputs(run), str(tmp_path / run / "trajectory/manifest.json"))
        train_member(experiment, {}, run, training, log=lambda _: None)
        assert Path(training.manifest).read_bytes() == manifest.read_bytes()


@pytest.mark.slow
def test_a_family_grows_without_training_again(family_made: Checkout) -> None:
    checkout = family_made
    # The same family, said with axes of one level that change nothing.
    same = varied(seed=[0, 1], momentum=[0.9], weight_decay=[0.001])
    checkout.configure(families=[same])
    assert checkout.plan(table_of(same)) == {}
    more = varied(**{"learning_rate.value": [0.05, 0.1, 0.2, 0.4], "seed": [0, 1]})
    checkout.configure(families=[more])
    parts = {part_of(member.run) for member in with_families(more).grids[0].members[6:]}
    expected = {"train_together": len(parts), "train_member": 2, "measure_tuning": 1}
    assert checkout.plan(table_of(more)) == expected
    old = [member.run for member in with_families(FEW).grids[0].members]
    assert not [run for run in old if f"run={run}" in checkout.listing], checkout.listing
    # The same where Snakemake remembers nothing.
    (checkout.path / ".snakemake").rename(checkout.path / "remembered")
    again = checkout.plan(table_of(more))
    shutil.rmtree(checkout.path / ".snakemake")
    (checkout.path / "remembered").rename(checkout.path / ".snakemake")
    assert again == expected
    wide = {**FEW, "set": {"iterations": 30, "trajectory": {"stride": 1}}}
    checkout.configure(families=[wide])
    assert checkout.plan(table_of(wide))["train_member"] == 6
