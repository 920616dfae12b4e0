"""Estimates beside what stages take: disk and memory of real ones, times of two sizes, and the command."""

from pathlib import Path

import pytest
import yaml

from quadscape.amounts import format_seconds
from quadscape.cli import main
from quadscape.measures import MEASURES
from quadscape.measures.declaration import GROUPS
from quadscape.planning.estimate import Estimates, Need, estimate_experiment, format_estimates
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.problem import Problem
from quadscape.planning.speeds import measure_matrices, measure_speeds
from quadscape.results.sizes import Network
from quadscape.stage.events import read_events
from results import PLACES, small_experiment
from tests.experiments import SMALL

STAGES = ["prepare_data", "training", "extract_checkpoint", "hessian_shard", "hessian", "gauss_newton", "eigenbasis"]
# Without those of a Gauss–Newton matrix, which is not asked for, of subsets of the data, of which there are none, and
# what is off unless it is asked for.
STAGES += [
    f"measure_{name}"
    for name, measure in MEASURES.items()
    if name != "parts" and measure.of not in GROUPS and not measure.reads_subsets and measure.by_default
]


def by_stage(estimates: Estimates) -> dict[str, Need]:
    return {need.stage: need for need in estimates.needs}


def store_bytes(directory: Path) -> int:
    return sum(
        path.stat().st_size
        for path in (directory / "store.zarr").rglob("*")
        if path.name != "zarr.json" and path.is_file()
    )


@pytest.fixture(scope="module")
def estimated() -> dict[str, Need]:
    experiment = small_experiment(curvature={"dtype": "float64", "gauss_newton": True})
    return by_stage(estimate_experiment(Problem.of(experiment), ["cpu"])[0])


def test_disk_and_time_of_real_stages(estimated: dict[str, Need], made_results: Path) -> None:
    for stage, place in PLACES.items():
        directory = made_results / "results/small/runs/a" / place
        assert estimated[stage].disk_bytes == pytest.approx(store_bytes(directory), rel=0.1), stage
        events = read_events(directory)
        seconds = sum(event["seconds"] for event in events if event["event"] == "unit")
        # Wide, for a machine that does other things too; it would catch a wrong power of P or N.
        assert seconds / 30 < estimated[stage].seconds < 30 * (seconds + 0.5), stage


def test_it_needs_no_data_and_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = estimate_experiment(Problem.of(small_experiment()), ["cpu", "cuda"])
    assert [part.device for part in found] == ["cpu", "cuda"]
    assert not list(tmp_path.iterdir())
    for part in found:
        needs = by_stage(part)
        assert list(needs) == [stage for stage in STAGES if stage != "gauss_newton"]
        assert needs["eigenbasis"].jobs == needs["hessian"].jobs == 2
        assert needs["eigenbasis"].disk_bytes >= 235**2 * 8
        assert needs["eigenbasis"].memory_bytes >= 3 * 235**2 * 8
        assert part.seconds == sum(need.jobs * need.seconds for need in part.needs)


def test_growth_follows_the_laws() -> None:
    def estimated(hidden: int) -> tuple[int, dict[str, Need]]:
        experiment = small_experiment(model={"factory": "mlp", "hidden": [hidden]})
        problem = Problem.of(experiment)
        return problem.parameters, by_stage(estimate_experiment(problem, ["cuda"])[0])

    (small, few), (large, many) = estimated(20), estimated(160)
    ratio = large / small
    assert many["eigenbasis"].disk_bytes / few["eigenbasis"].disk_bytes == pytest.approx(ratio**2, rel=0.15)
    assert many["hessian_shard"].disk_bytes / few["hessian_shard"].disk_bytes > 0.45 * ratio**2
    assert many["eigenbasis"].seconds < few["eigenbasis"].seconds * ratio**3


def test_shards_share_the_work() -> None:
    whole, parts = (
        by_stage(estimate_experiment(Problem.of(small_experiment(curvature={"shards": k})), ["cuda"])[0])[
            "hessian_shard"
        ]
        for k in (1, 4)
    )
    assert (whole.jobs, parts.jobs) == (2, 8)
    assert parts.kept_bytes == pytest.approx(whole.disk_bytes / 4, abs=1)
    # They share the work, so that one with cheap columns has more of them.
    assert parts.kept_bytes < parts.disk_bytes < whole.disk_bytes


def test_the_real_experiment_is_told_for_a_gpu_that_is_not_here() -> None:
    # Sizes as `validate` reads them from a source that need not be here.
    from quadscape.data.sources import DataDescription

    experiment = parse_experiment({"model": {"factory": "resnet9", "width": 2}})
    data = DataDescription((3, 32, 32), tuple("abcdefghij"), 50_000, 5_000, 5_000, "")
    networks = {run.name: Network(104_234, None) for run in experiment.runs}
    needs = by_stage(estimate_experiment(Problem(experiment, data, networks), ["cuda"])[0])
    assert needs["hessian_shard"].disk_bytes == pytest.approx(21.7e9, rel=0.02)
    assert needs["eigenbasis"].disk_bytes == pytest.approx(43.5e9, rel=0.03)  # on the way there is next to nothing
    assert 5 * 60 < needs["hessian_shard"].seconds < 5 * 3600
    assert 5 * 60 < needs["eigenbasis"].seconds < 5 * 3600


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (47.9 * 3600, "47 h 54 min"), (3.2e8, "3,703 d 16 h")],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_speeds_are_plausible_kept_and_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = measure_matrices("cpu", 300)
    assert 1e8 < speeds["read"] < 1e13
    assert 1e8 < speeds["matrix float64"] < 1e14
    problem, cache = Problem.of(small_experiment()), tmp_path / "speeds.json"
    networks = [(problem.countable["a"], problem.counts("a"))]
    (first,) = measure_speeds(networks, problem.experiment.runs[0], "float32", "cpu", cache)
    for kind in ("forward float32", "gradient float64", "product float32", "columns float32", "columns float64"):
        assert 1e4 < first[kind] < 1e13, kind
    assert 10 < first["steps"] < 1e6
    # What was measured before is not measured again; another network takes the speeds of the one that is most alike.
    monkeypatch.setattr("quadscape.planning.speeds._passes", None)
    assert measure_speeds(networks, problem.experiment.runs[0], "float32", "cpu", cache) == [first]
    other = Problem.of(small_experiment(model={"factory": "mlp", "hidden": [9]}))
    more = [*networks, (other.countable["a"], other.counts("a"))]
    monkeypatch.setattr("quadscape.planning.speeds._BUDGET", -1.0)
    both = measure_speeds(more, problem.experiment.runs[0], "float32", "cpu", cache)
    assert both[0] == both[1] == first


def test_disk_by_what_is_kept() -> None:
    def estimated(keep: str) -> Estimates:
        changes = {"keep": keep, "curvature": {"gauss_newton": True, "shards": 2}}
        return estimate_experiment(Problem.of(small_experiment(**changes)), ["cuda"])[0]

    every, bases, tables = map(estimated, ("all", "bases", "tables"))
    stages = by_stage(every)
    hessians, matrices = stages["hessian_shard"].kept, stages["eigenbasis"].kept + stages["gauss_newton"].kept
    assert every.disk_bytes - bases.disk_bytes == pytest.approx(hessians)
    assert every.disk_bytes - tables.disk_bytes == pytest.approx(hessians + matrices)
    # One Hessian is there until its basis is; bases of both checkpoints until they are compared.
    assert bases.peak_bytes == pytest.approx(bases.disk_bytes + hessians / 2)
    expected = hessians / 2 + stages["gauss_newton"].kept / 2 + stages["eigenbasis"].kept
    assert tables.peak_bytes == pytest.approx(tables.disk_bytes + expected)
    assert tables.disk_bytes < bases.disk_bytes < every.disk_bytes <= every.peak_bytes


def test_totals_and_table() -> None:
    needs = (Need("training", 1, 1e9, 2e6, 60.0), Need("eigenbasis", 4, 5e9, 1e9, 30.0))
    part = Estimates("cuda", False, needs)
    assert (part.memory_bytes, part.disk_bytes, part.seconds) == (5e9, 4e9 + 2e6, 180.0)
    table = format_estimates([part]).splitlines()
    assert "assumed nominal speeds" in table[0]
    assert table[-2].split() == ["total", "5", "GB", "4", "GB", "3", "min", "00", "s"]
    assert "At most 4 GB of disk" in table[-1]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = yaml.safe_dump(SMALL)
    (tmp_path / "small.yaml").write_text(text)
    assert main(["estimate", str(tmp_path / "small.yaml"), "--device", "cuda"]) == 0
    said = capsys.readouterr().out
    assert "235 parameters" in said
    for stage in STAGES:
        assert (stage in said) == (stage != "gauss_newton")
    (tmp_path / "wrong.yaml").write_text(text.replace("training:", "trainig:"))
    assert main(["estimate", str(tmp_path / "wrong.yaml")]) == 1
    error = capsys.readouterr().err
    assert "did you mean 'training'" in error
    assert error.count("\n") == 1


def test_curvature_on_subsets_is_counted_and_its_gauss_newton_matrix_is_not() -> None:
    changes = {
        "subsets": [{"name": "half", "half": 0}, {"name": "other", "half": 1}],
        "runs": [{"name": "a", "checkpoints": [0, 40], "curvature_on": {"half": [40], "other": [40]}}],
        "curvature": {"dtype": "float64", "gauss_newton": True},
    }
    needs = by_stage(estimate_experiment(Problem.of(small_experiment(**changes)), ["cuda"])[0])
    jobs = {stage: needs[stage].jobs for stage in ("hessian_shard", "hessian", "gauss_newton", "eigenbasis")}
    assert jobs == {"hessian_shard": 4, "hessian": 4, "gauss_newton": 2, "eigenbasis": 4}
    assert needs["measure_identified"].jobs == 1
