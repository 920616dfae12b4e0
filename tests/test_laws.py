"""Laws beside plans: of networks and sizes of all kinds, plan ≤ law ≤ 3 × plan in memory, disk and operations."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from quadscape.config.sections import Curvature
from quadscape.curvature.engine import HessianEngine
from quadscape.curvature.gauss_newton import GaussNewtonTask
from quadscape.curvature.hessian import HessianShardTask
from quadscape.curvature.strips import flops_per_example
from quadscape.data.sets import prepare
from quadscape.data.sources import DataDescription
from quadscape.measures import MEASURES
from quadscape.network.counting import count_network
from quadscape.network.models import build_model, cast, initial_vector
from quadscape.network.objective import CheckpointObjectives, Objective, data_chunk
from quadscape.network.parameters import ParameterLayout
from quadscape.planning.counted import Countable, counts_of
from quadscape.planning.experiment import Experiment
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.laws import ON_GPU, Laws
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from quadscape.planning.work import NOMINAL, Work
from quadscape.results.sizes import Kept, Network
from quadscape.stage.protocol import Needs
from quadscape.training.task import TrainingTask
from results import PLACES, small_experiment

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int, int], int]] = {
    "mlp": ({"factory": "mlp", "hidden": [40, 20]}, (1, 14, 14), 300),
    "wide-mlp": ({"factory": "mlp", "hidden": [150]}, (3, 8, 8), 33),
    "cnn": ({"factory": "cnn", "channels": [4, 8]}, (3, 16, 16), 129),
    "plain-cnn": ({"factory": "cnn", "channels": [3, 6, 6], "normalization": "none"}, (1, 16, 16), 50),
    "resnet9": ({"factory": "resnet9", "width": 1}, (3, 32, 32), 1000),
    "linear": ({"factory": "linear"}, (1, 4, 4), 7),
    "strangers": ({"factory": "test_laws:attention"}, (1, 8, 8), 65),
}
CLASSES = 10


class Attention(torch.nn.Module):
    """Attention among the rows of an image, as a stranger may write it."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.queries, self.keys = torch.nn.Linear(width, 6), torch.nn.Linear(width, 6)
        self.head = torch.nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.flatten(1, 2)
        weights = (self.queries(rows) @ self.keys(rows).transpose(1, 2)).softmax(-1)
        return self.head((weights @ rows).mean(1))


def attention(shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    return Attention(shape[2], classes)


class Looking(torch.nn.Module):
    """It does what the meta device cannot: it looks at a value."""

    def __init__(self, numbers: int, classes: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(numbers, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shift = 1.0 if float(images.mean()) > 1e6 else 0.0
        return self.linear(images.flatten(1) + shift)


def looks_at_values(shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    return Looking(shape[0] * shape[1] * shape[2], classes)


class Imagined(CheckpointObjectives):
    """Objectives over one image that stands for all."""

    def __init__(self, experiment: Experiment, data: DataDescription) -> None:
        super().__init__("", "", "train")
        self._experiment, self._data = experiment, data
        layout = ParameterLayout.of(build_model(experiment.model, data.shape, CLASSES))
        vector = initial_vector(experiment.model, data.shape, CLASSES, 0).numpy()
        self.__dict__["checkpoint"] = SimpleNamespace(theta=vector, layout=layout, shape=data.shape)

    @property
    def examples(self) -> int:
        return self._data.training

    def get(self, dtype: torch.dtype, device: torch.device | str, chunk: int | None = None) -> Objective:
        if dtype not in self._loaded:
            model = cast(build_model(self._experiment.model, self._data.shape, CLASSES), dtype, torch.device(device))
            images = torch.randn(1, *self._data.shape, dtype=dtype).expand(self.examples, *self._data.shape)
            labels = torch.zeros(1, dtype=torch.int64).expand(self.examples)
            objective = Objective(model.eval(), self.checkpoint.layout, images, labels, self._experiment.loss, 1)
            objective.chunk = data_chunk(objective.graph_bytes_per_example(), self.examples, torch.device(device))
            self._loaded[dtype] = objective
        return self._loaded[dtype]


class ImaginedShard(HessianShardTask):
    def __init__(self, objectives: CheckpointObjectives, config: Curvature, number: int) -> None:
        super().__init__("", "", config, "cpu", number)
        self._objectives = objectives

    def _expected_seconds(self, strips: list[int], costs: list[float]) -> None:
        return None


class ImaginedGaussNewton(GaussNewtonTask):
    def __init__(self, objectives: CheckpointObjectives, config: Curvature) -> None:
        super().__init__("", "", config, "cpu")
        self._objectives = objectives


def problem_of(name: str, dtype: str = "float32", shards: int = 1) -> Problem:
    model, shape, count = NETWORKS[name]
    curvature = {"dtype": dtype, "gauss_newton": True, "shards": shards}
    experiment = small_experiment(model=model, curvature=curvature, device="cpu")
    data = DataDescription(shape, tuple("abcdefghij"), count, 20, 20, "")
    size = ParameterLayout.of(build_model(experiment.model, shape, CLASSES)).size
    return Problem(experiment, data, {run.name: Network(size, None) for run in experiment.runs})


def within(plan: float, law: float, what: str) -> None:
    assert plan <= law * (1 + 1e-9), f"{what}: the plan takes {plan:.4g}, more than the law's {law:.4g}"
    assert law <= 3 * plan, f"{what}: the law's {law:.4g} is more than three times the plan's {plan:.4g}"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mlp", "float32"),
        ("wide-mlp", "float64"),
        ("cnn", "float64"),
        ("plain-cnn", "float32"),
        ("resnet9", "float32"),
        ("linear", "float64"),
    ],
)
def test_curvature(name: str, dtype: str) -> None:
    problem = problem_of(name, dtype)
    laws, objectives = Laws(problem), Imagined(problem.experiment, problem.data)
    shard = ImaginedShard(objectives, problem.experiment.curvature, 1)
    plan = shard.plan()
    found, law = shard.estimate(plan), laws.of("hessian_shard")
    within(found.memory_bytes, law.memory_bytes, "memory of a shard")
    # Of files, which are whole: on disk they may have more than the triangle.
    within(found.disk_bytes, law.disk_bytes, "disk of a shard")
    within(sum(plan["flops"]), law.work.amounts[f"columns {dtype}"], "operations of a shard")
    task = ImaginedGaussNewton(objectives, problem.experiment.curvature)
    found, law = task.estimate(task.plan()), laws.of("gauss_newton")
    within(found.memory_bytes, law.memory_bytes, "memory of a Gauss–Newton matrix")
    within(found.disk_bytes, law.disk_bytes, "disk of a Gauss–Newton matrix")


@pytest.mark.parametrize(("name", "shards"), [("cnn", 3), ("wide-mlp", 5)])
def test_every_shard(name: str, shards: int) -> None:
    problem = problem_of(name, shards=shards)
    law, objectives = Laws(problem).of("hessian_shard"), Imagined(problem.experiment, problem.data)
    for number in range(1, shards + 1):
        task = ImaginedShard(objectives, problem.experiment.curvature, number)
        plan = task.plan()
        found = task.estimate(plan)
        assert found.memory_bytes <= law.memory_bytes <= 3 * found.memory_bytes
        assert found.disk_bytes <= law.disk_bytes
        assert sum(plan["flops"]) <= 1.5 * law.work.amounts["columns float32"]


@pytest.mark.parametrize("name", ["cnn", "wide-mlp", "strangers"])
def test_networks_are_counted_as_they_are_measured(name: str) -> None:
    problem = problem_of(name)
    objectives = Imagined(problem.experiment, problem.data)
    counts = problem.counts("a")
    for dtype in (torch.float32, torch.float64):
        objective = objectives.get(dtype, "cpu")
        assert (counts.forward, counts.backward) == flops_per_example(objective, objectives.theta)
        graph = objective.graph_bytes_per_example()
        assert counts.graph_numbers * dtype.itemsize == pytest.approx(graph, rel=0.1)
        assert counts.product_bytes(objective.count, dtype.itemsize) == pytest.approx(
            objective.product_bytes(), rel=0.1
        )
    assert sum(one.columns for one in counts.tensors) == objectives.size


def test_a_network_that_looks_at_values_is_counted_on_the_cpu() -> None:
    model = parse_experiment({"model": {"factory": "test_laws:looks_at_values"}}).model
    assert count_network(model, (1, 8, 8), 3, "cross_entropy").forward > 0


def stage_bounds(needs: Needs, law: Any, what: str) -> None:
    within(needs.memory_bytes, law.memory_bytes, f"memory of {what}")
    within(needs.disk_bytes, law.disk_bytes, f"disk of {what}")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": {"batch_size": "full", "iterations": 45}},
        {"training": {"dtype": "float64", "batch_size": 17, "optimizer": {"method": "adam"}}},
        {
            "model": {"factory": "mlp", "hidden": [300, 30]},
            "training": {"trajectory": {"stride": 8, "dense": 0}, "batch_size": 100},
        },
    ],
)
def test_training(changes: dict[str, Any], tmp_path: Path) -> None:
    experiment = small_experiment(**changes, device="cpu")
    prepare(experiment.data, experiment.seed, tmp_path / "data.zarr")
    problem, run = Problem.of(experiment), experiment.runs[0]
    task = TrainingTask(run, 0, experiment.model, experiment.loss, tmp_path / "data.zarr", "cpu")
    plan = task.plan()
    law = problem.laws.of("training", run.name)
    stage_bounds(task.estimate(plan), law, "a training")
    assert task.units(plan) == law.work.amounts["units"]


def test_finished_stages(made_results: Path) -> None:
    """Disk and files of real ones."""
    experiment = small_experiment(curvature={"dtype": "float64", "gauss_newton": True}, device="cpu")
    laws = Problem.of(experiment).laws
    for stage, place in PLACES.items():
        directory, law = made_results / "results/small/runs/a" / place, laws.of(stage)
        files = [path for path in directory.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files if path.name != "zarr.json" and "store.zarr" in str(path))
        within(0.9 * size, law.kept_bytes, f"disk of {stage}")
        within(len(files) / 1.5, law.files, f"files of {stage}")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_slurm_is_asked_for_follows_from_the_law(device: str) -> None:
    problem = Problem.of(small_experiment(device=device))
    for job in ("data", "checkpoint", "training", "hessian_shard", "hessian", "gauss_newton", "eigenbasis", "figures"):
        law, where = problem.laws.of(job), problem.laws.device_of(job)
        assert problem.memory_mb(job) == pytest.approx(1500 + law.memory_bytes / 1e6, abs=1)
        assert problem.runtime_minutes(job) == pytest.approx(10 + 3 * law.work.seconds(NOMINAL[where]) / 60, abs=1)
    assert {problem.laws.device_of(job) for job in ("checkpoint", "data", "figures")} == {"cpu"}
    assert problem.laws.device_of("eigenbasis") == device


def test_gpus_are_asked_for_by_the_rules_of_these_stages() -> None:
    texts = "".join(path.read_text() for path in (Path(__file__).parents[1] / "rules").glob("*.smk"))
    rules = re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", texts, re.M | re.S)
    asking = {name.removeprefix("compute_") for name, body in rules if "gpu=gpus()" in body}
    assert {"training" if name == "train" else name for name in asking} == ON_GPU


def at_full_size(device: str) -> Problem:
    experiment = parse_experiment({"model": {"factory": "resnet9", "width": 2}, "device": device})
    data = DataDescription((3, 32, 32), tuple("abcdefghij"), 45_000, 5_000, 10_000, "")
    return Problem(experiment, data, {run.name: Network(104_234, None) for run in experiment.runs})


def test_at_full_size_estimate_and_slurm_agree() -> None:
    gpu, cpu = at_full_size("cuda"), at_full_size("cpu")
    # On a CPU the whole matrix is in memory, and the Hessian alone takes days.
    assert 30e3 < cpu.memory_mb("eigenbasis") < 70e3
    assert gpu.memory_mb("eigenbasis") < 12e3
    assert cpu.runtime_minutes("hessian_shard") > 3000 > 180 > gpu.runtime_minutes("hessian_shard") > 30
    for problem in (gpu, cpu):
        law = problem.laws.of("eigenbasis")
        assert law.kept_bytes == pytest.approx(43.5e9, rel=0.02)
        # Triangles of reflectors and updates are another matrix, on the way; on a GPU they are made again.
        assert law.disk_bytes == pytest.approx(87e9 if problem is cpu else 44.5e9, rel=0.02)
        assert problem.laws.of("hessian_shard").kept_bytes == pytest.approx(21.8e9, rel=0.02)


def test_every_measure_has_a_law() -> None:
    problem = Problem.of(small_experiment())
    targets = Targets(problem)
    for name, measure in MEASURES.items():
        for subject, _ in targets.subjects(name)[:1]:
            law = targets.law(name, subject)
            assert 1e8 < law.memory_bytes < 6e9, name
            assert law.work.seconds(NOMINAL["cpu"]) > 0, name
            assert law.disk_bytes > 0, name
            assert measure.gpu or problem.laws.device_of(name) == "cpu"


def test_counts_are_kept_and_what_cannot_be_counted_is_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = parse_experiment({"model": {"factory": "mlp", "hidden": [5]}}).model
    own = Countable(model, (1, 8, 8), 3, "cross_entropy", 343, None)
    (first,) = counts_of([own], Kept())
    stored = json.loads((tmp_path / "quadscape/counts.json").read_text())
    assert list(stored["entries"]) == [own.key]

    def counting(*_: Any) -> None:
        raise AssertionError("it was counted before")

    monkeypatch.setattr("quadscape.planning.counted._count", counting)
    assert counts_of([own], Kept()) == [first]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    broken = parse_experiment({"model": {"factory": "test_laws:no_such_network"}}).model
    (assumed,) = counts_of([Countable(broken, (1, 8, 8), 3, "cross_entropy", 1000, "x")], Kept())
    assert assumed.forward == 128_000
    # Nothing of it is kept for others.
    assert not (tmp_path / "other/quadscape/counts.json").exists()


def test_a_head_counts_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from quadscape.planning.counted import Countable, counts_of; "
        "from quadscape.planning.experiment_file import parse_experiment; from quadscape.results.sizes import Kept; "
        "m = parse_experiment({'model': {'factory': 'mlp', 'hidden': [5]}}).model; "
        "print(counts_of([Countable(m, (1, 8, 8), 3, 'cross_entropy', 343, None)], Kept())[0].forward, "
        "'torch' in sys.modules)"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(2.0 * (64 * 5 + 5 * 3)), "False"]


def test_engine_and_law_agree_on_a_network_of_one_layer() -> None:
    problem = problem_of("linear")
    objective = Imagined(problem.experiment, problem.data).get(torch.float64, "cpu")
    engine = HessianEngine(objective, np.zeros(objective.size))
    law = Laws(problem).of("hessian_shard").work.amounts["columns float32"]
    within(engine.flops(0, objective.size), law, "operations of a single layer")


def test_work_adds_up_and_knows_its_kinds() -> None:
    both = Work({"steps": 2.0, "units": 1.0}) + Work({"steps": 3.0}).times(2)
    assert both.amounts == {"steps": 8.0, "units": 1.0}
    assert both.seconds({"steps": 4.0, "units": 0.5}) == 4.0
    with pytest.raises(KeyError, match="stepps"):
        Work({"stepps": 1.0})
