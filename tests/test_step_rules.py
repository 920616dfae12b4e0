"""Steps by curvature: against NumPy on least squares, kept and removed components, Newton, kills, replays, the file."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import write_random_data
from hypothesis import given
from hypothesis import strategies as st
from measure_cases import random_orthogonal
from test_optimizers import Rule, batch_gradient, clipped
from test_training import LINEAR, Interrupted, ShortUnits, make_run, train

from quadscape.config.sections import (
    STEP_METHODS,
    Adam,
    Posterior,
    Preconditioned,
    Projected,
    RandomSubspace,
    Run,
    Start,
)
from quadscape.config.values import resolved
from quadscape.curvature import step_rules
from quadscape.curvature.step_rules import make_step
from quadscape.curvature.stored_basis import Eigenbasis
from quadscape.data.sets import DataSet
from quadscape.errors import ConfigError, StoreError
from quadscape.planning.consistency import find_differences
from quadscape.planning.estimate import estimate_experiment
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from quadscape.results.places import Places
from quadscape.results.purge import find_removable
from quadscape.results.sizes import Kept
from quadscape.stage.run import run_stage
from quadscape.training.replay import replay, write_start
from quadscape.training.start import StartPoint
from quadscape.training.step_rules import step_of
from quadscape.training.task import TrainingTask
from quadscape.training.trajectory import Trajectory
from results import small_experiment
from tests.experiments import SMALL, TINY

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE, CLASSES, COUNT = (1, 4, 4), 3, 50
SIZE = CLASSES * 17
STEPS, RATE, DECAY = 70, 0.05, 1e-2
NAMED = {"run": "a", "iteration": 0}
RULES = {
    "top": Projected(method="projected", last=5, **NAMED),
    "ranks": Projected(method="projected", first=4, last=40, **NAMED),
    "without top": Projected(method="projected", last=5, part="remove", **NAMED),
    "random": RandomSubspace(method="random", dimension=7, seed=3),
    "without random": RandomSubspace(method="random", dimension=7, part="remove"),
    "preconditioned": Preconditioned(method="preconditioned", floor=0.02, **NAMED),
    "half power": Preconditioned(method="preconditioned", power=0.5, floor=0.02, normalized=True, **NAMED),
    "posterior": Posterior(method="posterior", floor=0.02, normalized=True, **NAMED),
}


class StandIn:
    """An eigenbasis as an array."""

    digest = "0" * 64

    def __init__(self, eigenvalues: np.ndarray, vectors: np.ndarray, dtype: str = "float64") -> None:
        self.eigenvalues, self._vectors = eigenvalues, vectors.astype(dtype)
        self.read: list[tuple[int, int]] = []

    def vectors(self, start: int, stop: int) -> np.ndarray:
        self.read += [(start, stop)] if stop > start else []
        return self._vectors[:, start:stop]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_random_data(tmp_path_factory.mktemp("data") / "data.zarr", SHAPE, CLASSES, (COUNT, 12, 11))


@pytest.fixture(scope="module")
def examples(data):
    loaded = DataSet.load(data, dtype=torch.float64)
    return tuple(tensor.numpy() for tensor in loaded.split("train"))


@pytest.fixture(scope="module")
def hessian(examples):
    """Of ½|Wx + b − onehot(y)|², whose weights come before the biases."""
    pixels = examples[0].reshape(COUNT, -1)
    inputs = np.concatenate([pixels, np.ones((COUNT, 1))], axis=1)
    whole = np.kron(np.eye(CLASSES), inputs.T @ inputs / COUNT)
    order = [c * 17 + i for c in range(CLASSES) for i in range(16)] + [c * 17 + 16 for c in range(CLASSES)]
    return whole[np.ix_(order, order)]


@pytest.fixture(scope="module")
def basis(hessian):
    values, vectors = np.linalg.eigh(hessian)
    return StandIn(values[::-1].copy(), vectors[:, ::-1].copy())


def constant(**keys: Any) -> Run:
    return make_run(
        **{
            "iterations": STEPS,
            "learning_rate": {"schedule": "constant", "value": RATE},
            "weight_decay": DECAY,
            **({} if "optimizer" in keys else {"momentum": 0.0}),
            **keys,
        }
    )


def task_with(section: Any, basis: Any, base: type = ShortUnits, decay: float = DECAY) -> Any:
    """A task whose step is that of a section, made anew for each process."""

    def make(*arguments: Any) -> TrainingTask:
        return base(*arguments, None, make_step(section.rule(), basis, decay, COUNT))

    return make


def expected_map(section: Any, basis: StandIn) -> np.ndarray:
    """The same linear map, from the formulas of the section's documentation."""
    vectors, values = np.asarray(basis._vectors, dtype=np.float64), basis.eigenvalues
    if isinstance(section, Projected | RandomSubspace):
        if isinstance(section, Projected):
            chosen = vectors[:, section.first - 1 : section.last]
        else:
            seeds = np.random.SeedSequence([0x5B5, section.seed])
            chosen = np.random.Generator(np.random.PCG64(seeds)).standard_normal((len(values), section.dimension))
        projector = chosen @ np.linalg.pinv(chosen)
        return projector if section.part == "keep" else np.eye(len(values)) - projector
    if isinstance(section, Preconditioned):
        factors = 1 / np.maximum(np.abs(values), section.floor) ** section.power
    else:
        factors = 1 / (COUNT * np.maximum(values + DECAY, section.floor))
    return vectors @ np.diag(factors / factors.max() if section.normalized else factors) @ vectors.T


# ---------------------------------------------------------------------------------------------------------------------
# Against formulas in NumPy


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_direction_is_the_map_of_the_gradient(name: str, dtype: str, basis: StandIn) -> None:
    given_basis = StandIn(basis.eigenvalues, basis._vectors, dtype)
    step = make_step(RULES[name].rule(), given_basis, DECAY, COUNT)
    step.prepare(SIZE, torch.device("cpu"))
    gradient = np.random.default_rng(1).standard_normal(SIZE)
    tensor = torch.from_numpy(gradient.copy())
    found = step.direction(tensor)
    np.testing.assert_array_equal(tensor.numpy(), gradient)
    expected = expected_map(RULES[name], given_basis) @ gradient
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-13 * np.linalg.norm(expected) + 1e-14)
    assert found.dtype == torch.float64
    torch.testing.assert_close(step.direction(tensor), found, rtol=0, atol=0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "keys",
    [
        {"momentum": 0.8, "nesterov": True},
        {"momentum": 0.8, "batch_size": "full", "clip_norm": 0.3},
        {"optimizer": Adam(method="adam"), "clip_value": 0.02},
    ],
    ids=["nesterov", "full batches, clipped", "adam, clipped"],
)
def test_every_step_is_the_formula(name: str, keys: dict[str, Any], data, examples, basis, tmp_path: Path) -> None:
    run = constant(**keys, learning_rate={"schedule": "constant", "value": 1e-3})
    _, trajectory = train(tmp_path / "run", run, data, task=task_with(RULES[name], basis))
    images, labels = examples
    stored, recorded = trajectory.stage.read("theta"), trajectory.stage.read("batch")
    transform = expected_map(RULES[name], basis)
    theta, rule = stored[0], Rule(run, SIZE)
    for t in range(run.iterations):
        indices = recorded[t][recorded[t] >= 0] if run.batch_size != "full" else np.arange(COUNT)
        gradient = batch_gradient(theta, images[indices], labels[indices], CLASSES)
        theta = rule.step(theta, transform @ clipped(gradient, run), 1e-3)
        assert np.linalg.norm(stored[t + 1] - theta) <= 1e-10 * np.linalg.norm(theta), t
    assert np.linalg.norm(stored[-1] - stored[0]) > 1e-4 * np.linalg.norm(stored[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["top", "without top", "ranks", "without random", "random"])
def test_what_no_gradient_reaches_stays_where_it_was(name: str, dtype: str, data, basis, tmp_path: Path) -> None:
    """Along the stored vectors themselves, also where these are orthonormal to 1e-7 only."""
    section = RULES[name]
    given_basis = StandIn(basis.eigenvalues, basis._vectors, dtype)
    run = constant(weight_decay=0.0, momentum=0.9)
    _, trajectory = train(tmp_path / "run", run, data, task=task_with(section, given_basis, decay=0.0))
    stored = trajectory.stage.read("theta")
    moved = stored - stored[0]
    # The map is a projector, so that what stays is what its complement sees.
    transform = expected_map(section, given_basis)
    assert np.abs(moved @ (np.eye(SIZE) - transform).T).max() < 1e-13
    assert np.linalg.norm(moved[-1]) > 1e-2
    if isinstance(section, Projected) and section.part == "remove":
        along = stored @ given_basis._vectors[:, : section.last].astype(np.float64)
        np.testing.assert_allclose(along, np.broadcast_to(along[0], along.shape), atol=1e-13)


def test_weight_decay_moves_what_no_gradient_reaches(data, basis, tmp_path: Path) -> None:
    run = constant(weight_decay=DECAY, momentum=0.0)
    _, trajectory = train(tmp_path / "run", run, data, task=task_with(RULES["without top"], basis))
    along = trajectory.stage.read("theta") @ basis._vectors[:, :5]
    np.testing.assert_allclose(along[-1], along[0] * (1 - RATE * DECAY) ** STEPS, rtol=1e-10)


@pytest.mark.parametrize("method", ["preconditioned", "posterior"])
def test_one_full_step_is_newtons(method: str, data, examples, hessian, basis, tmp_path: Path) -> None:
    floor = basis.eigenvalues.min() / 2
    section = STEP_METHODS[method](method=method, floor=floor, **NAMED)
    rate = 1.0 if method == "preconditioned" else float(COUNT)
    run = constant(
        batch_size="full",
        weight_decay=0.0,
        iterations=1,
        trajectory={"stride": 1, "dense": 0},
        learning_rate={"schedule": "constant", "value": rate},
    )
    _, trajectory = train(tmp_path / "run", run, data, task=task_with(section, basis, decay=0.0))
    theta = trajectory.theta(0)
    gradient = batch_gradient(theta, *examples, CLASSES)
    np.testing.assert_allclose(trajectory.theta(1), theta - np.linalg.solve(hessian, gradient), atol=1e-9)
    assert np.linalg.norm(batch_gradient(trajectory.theta(1), *examples, CLASSES)) < 1e-10 * np.linalg.norm(gradient)


@given(
    values=st.lists(st.floats(-10, 10), min_size=1, max_size=30),
    power=st.floats(0.05, 1),
    floor=st.floats(1e-6, 1),
    decay=st.floats(0, 0.1),
)
def test_factors(values: list[float], power: float, floor: float, decay: float) -> None:
    ordered = np.sort(values)[::-1].copy()
    vectors = random_orthogonal(len(ordered), 1)
    stand_in = StandIn(ordered, vectors)
    for method, keys in (("preconditioned", {"power": power}), ("posterior", {})):
        plain, normalized = (
            make_step(
                STEP_METHODS[method](method=method, floor=floor, normalized=flag, **keys, **NAMED).rule(),
                stand_in,
                decay,
                7,
            ).factors
            for flag in (False, True)
        )
        widths = np.array([max(abs(v), floor) if keys else max(v + decay, floor) for v in ordered])
        np.testing.assert_allclose(plain, widths**-power if keys else 1 / (7 * widths), rtol=1e-12)
        assert normalized.max() == 1
        np.testing.assert_allclose(normalized, plain / plain.max(), rtol=1e-15)


def test_a_random_subspace_has_its_dimension_and_its_seed() -> None:
    directions = {}
    for seed in (0, 0, 1):
        step = make_step(RandomSubspace(method="random", dimension=9, seed=seed).rule(), None, 0.0, 1)
        step.prepare(SIZE, torch.device("cpu"))
        projector = torch.stack([step.direction(row) for row in torch.eye(SIZE, dtype=torch.float64)])
        assert torch.linalg.matrix_rank(projector) == 9
        torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-14)
        torch.testing.assert_close(directions.setdefault(seed, projector), projector, rtol=0, atol=0)
    assert not torch.allclose(directions[0], directions[1])


# ---------------------------------------------------------------------------------------------------------------------
# Memory, kills, replays


def test_kept_and_read_anew_are_the_same_bit_by_bit(basis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_rules, "_BLOCK_BYTES", 8 * SIZE * 16)
    gradient = torch.from_numpy(np.random.default_rng(1).standard_normal(SIZE))
    found, reads, needs = [], [], []
    for free in (1 << 40, 0):
        monkeypatch.setattr(step_rules, "memory_available", lambda free=free: free)
        stand_in = StandIn(basis.eigenvalues, basis._vectors, "float32")
        step = make_step(RULES["preconditioned"].rule(), stand_in, 0.0, 1)
        needs.append(step.memory_bytes(SIZE, "cpu"))
        step.prepare(SIZE, torch.device("cpu"))
        found += [step.direction(gradient), step.direction(gradient)]
        reads.append(stand_in.read)
    assert all(torch.equal(found[0], other) for other in found)
    once = [(0, 16), (16, 32), (32, 48), (48, 51)]
    assert reads == [once, 2 * once]
    assert needs[0] - needs[1] == 4 * SIZE**2


def test_of_a_projection_its_vectors_alone_are_read(basis) -> None:
    stand_in = StandIn(basis.eigenvalues, basis._vectors)
    step = make_step(RULES["ranks"].rule(), stand_in, 0.0, 1)
    for _ in range(2):
        step.prepare(SIZE, torch.device("cpu"))
    assert stand_in.read == [(3, 40)]
    assert step.memory_bytes(SIZE, "cpu") == 3 * 8 * SIZE * 37


@pytest.mark.parametrize("name", ["top", "without random", "posterior"])
def test_resumed_runs_are_bitwise_the_undisturbed_ones(name: str, data, basis, tmp_path: Path) -> None:
    run = constant(momentum=0.9)
    manifest, whole = train(tmp_path / "whole", run, data, task=task_with(RULES[name], basis))
    assert manifest["parameters"]["step"] == {
        **RULES[name].rule(),
        **({} if name == "without random" else {"digest": basis.digest}),
    }
    for _ in range(5):
        try:
            again, pieces = train(tmp_path / "pieces", run, data, task=task_with(RULES[name], basis, Interrupted))
        except KeyboardInterrupt:
            continue
        break
    assert again == manifest
    assert whole.stage.digest == pieces.stage.digest


def test_a_basis_of_another_network_is_refused(data, basis, tmp_path: Path) -> None:
    small = StandIn(basis.eigenvalues[:9], basis._vectors[:9, :9])
    for section in (RULES["top"], RULES["preconditioned"]):
        with pytest.raises(StoreError, match=r"has 9 eigenvectors, .* but its network has 51 parameters"):
            train(tmp_path / section.method, constant(), data, task=task_with(section, small))
    wide = RandomSubspace(method="random", dimension=52)
    with pytest.raises(StoreError, match="52 dimensions was asked for, among 51 parameters"):
        train(tmp_path / "random", constant(), data, task=task_with(wide, None))


def stepped(root: Path, step: dict[str, Any], name: str = "b", **keys: Any) -> tuple[Any, Places]:
    """Trains a run of the small experiment that steps by the eigenbasis of its first run."""
    experiment = small_experiment(runs=[*SMALL["runs"], {"name": name, "step": step, **keys}])
    run, places = experiment.run(name), Places("small", experiment.curvature)
    data, basis = root / places.data, run.basis()
    rule = step_of(run, run.step.rule(), None if basis is None else root / places.eigenbasis(*basis), data)
    start = None
    if run.start is not None:
        at = root / places.start(run.start.run, run.start.iteration)
        start = StartPoint.load(at, run.start)
    task = TrainingTask(run, 0, experiment.model, experiment.loss, data, "cpu", start, rule)
    run_stage(task, (root / places.trajectory(name)).parent, log=lambda line: None)
    return experiment, places


BY_40 = {"run": "a", "iteration": 40}


def test_replays_and_start_points_by_the_eigenbasis_of_another_run(made_results: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made_results, tmp_path / "copy"))
    step = {"method": "projected", "last": 20, "part": "remove", **BY_40}
    trajectory = {"stride": 1, "dense": 0}
    _, places = stepped(root, step, trajectory=trajectory)
    data, path = root / places.data, root / places.trajectory("b")
    right, wrong = (root / places.eigenbasis("a", iteration) for iteration in (40, 0))
    kept = Trajectory.open(path).stage.read("theta")
    top = Eigenbasis(right).vectors(0, 20).astype(np.float64)
    np.testing.assert_array_equal(list(replay(path, data, 7, 12, right)), kept[7:13])
    for basis, error, words in (
        (wrong, StoreError, "was trained with another eigenbasis than"),
        (None, ConfigError, r"step\.method is projected, whose steps go by an eigenbasis, and none is given"),
    ):
        with pytest.raises(error, match=words):
            next(replay(path, data, 0, 1, basis))
    assert Trajectory.open(path).stage.manifest["parameters"]["step"]["digest"] == Eigenbasis(right).digest
    at = root / places.start("b", 15)
    write_start(path, data, 15, at.parent, right)
    # With everything kept, and the same step, the continuation is the uninterrupted run; without a step it is not.
    start = {"run": "b", "iteration": 15}
    for name, own in (("c", step), ("d", {"method": "random", "dimension": 3})):
        runs = [*SMALL["runs"], {"name": "b", "step": step, "trajectory": trajectory}]
        runs.append({"name": name, "step": own, "start": start, "iterations": 25, "trajectory": trajectory})
        experiment = small_experiment(runs=runs)
        run = experiment.run(name)
        rule = step_of(run, run.step.rule(), right if name == "c" else None, data)
        given_start = StartPoint.load(at, Start(**start))
        task = TrainingTask(run, 0, experiment.model, experiment.loss, data, "cpu", given_start, rule)
        run_stage(task, (root / places.trajectory(name)).parent, log=lambda line: None)
        theta = Trajectory.open(root / places.trajectory(name)).stage.read("theta")
        assert np.array_equal(theta, kept[15:]) == (name == "c")
    # Momentum and weight decay alone move what the gradient does not reach: along q as from rest, with decay alone.
    along, velocity = kept[0] @ top, np.zeros(20)
    for _ in range(40):
        velocity = 0.9 * velocity + 1e-3 * along
        along = along - 0.1 * velocity
    np.testing.assert_allclose(kept[40] @ top, along, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# The experiment file, and what is made again


def with_step(step: Any, *others: dict[str, Any], **keys: Any) -> Any:
    return parse_experiment({**TINY, "runs": [*TINY["runs"], {"name": "b", "step": step, **keys}, *others]})


def test_steps_as_the_file_says_them() -> None:
    run = with_step({"method": "projected", "last": 10, **BY_40}).run("b")
    assert run.basis() == ("a", 40)
    assert run.step.rule() == {"method": "projected", "first": 1, "last": 10, "part": "keep"}
    assert run.rule()["momentum"] is None
    assert (run.step.vectors(235), run.step.vectors(4)) == (10, 4)
    control = with_step({"method": "random", "dimension": 10}).run("b")
    assert control.basis() is None
    assert control.step.vectors(235) == 10
    assert with_step({"method": "posterior", "floor": 1e-3, **BY_40}).run("b").step.vectors(235) == 235
    plain = parse_experiment(TINY).run("a")
    assert "step" not in resolved(plain)
    assert plain.rule()["momentum"] == 0.9
    settings = Targets(Problem.of(with_step({"method": "random", "dimension": 10}))).settings()
    assert [("momentum" in settings[name]) for name in "ab"] == [True, False]


def test_a_step_takes_memory_and_time() -> None:
    problem = Problem.of(with_step({"method": "preconditioned", "floor": 1e-3, **BY_40}))
    assert problem.memory_mb("training", run="b") > problem.memory_mb("training", run="a")
    needs = estimate_experiment(problem, ["cuda"])[0].needs
    plain, stepping = (need for need in needs if need.stage == "training")
    assert stepping.seconds > plain.seconds
    assert stepping.memory_bytes > plain.memory_bytes


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"method": "projectd", **BY_40, "last": 3}, 'step.method is "projectd"; valid are posterior, precond'),
        ({**BY_40, "last": 3}, "step.method is missing; valid are"),
        ({"method": "projected", **BY_40}, "step.last is missing and has no default"),
        ({"method": "projected", "last": 3}, "step.run is missing and has no default"),
        ({"method": "projected", "last": 3, "lats": 4, **BY_40}, "step.lats is not a known key (did you mean 'last'?)"),
        ({"method": "projected", "first": 4, "last": 3, **BY_40}, "last is 3, below first, which is 4"),
        ({"method": "projected", "last": 0, **BY_40}, "runs[1].step.last is 0"),
        ({"method": "preconditioned", **BY_40}, "step.floor is missing"),
        ({"method": "preconditioned", "floor": 0, **BY_40}, "step.floor is 0"),
        ({"method": "preconditioned", "floor": 1, "power": 1.5, **BY_40}, "step.power is 1.5"),
        ({"method": "posterior", "floor": 1, "power": 1, **BY_40}, "step.power is not a known key"),
        ({"method": "random", "dimension": 3, **BY_40}, "step.run is not a known key"),
        ({"method": "projected", "last": 3, "run": "c", "iteration": 0}, "names the run 'c'; the runs are a, b"),
        ({"method": "projected", "last": 3, "run": "a", "iteration": 7}, "iteration 7 of run 'a', whose checkpoints a"),
        ({"method": "projected", "last": 3, "run": "b", "iteration": 0}, "these runs need each other, b needs b"),
        (3, "runs[1].step"),
    ],
    ids=lambda value: re.sub(r"\W+", " ", value) if isinstance(value, str) else "",
)
def test_mistakes_get_one_sentence(step: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        with_step(step, checkpoints=[0])
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_circles_other_networks_and_paths_are_refused() -> None:
    by_c = {"method": "projected", "last": 3, "run": "c", "iteration": 0}
    by_b = {**by_c, "run": "b"}
    for other in ({"step": by_b}, {"start": {"run": "b", "iteration": 1}}):
        with pytest.raises(ConfigError, match="step of run 'b': these runs need each other, b needs c needs b"):
            with_step(by_c, {"name": "c", "checkpoints": [0], **other}, checkpoints=[0])
    with pytest.raises(ConfigError, match="step of run 'b' names the run 'c', which has another model"):
        with_step(by_c, {"name": "c", "checkpoints": [0], "model": {"factory": "linear"}})
    with pytest.raises(ConfigError, match="path and step are both given"):
        with_step({**by_c, "run": "a"}, path="x.pt", checkpoints=[0])
    # Two runs by the same basis, and a basis of parameters from elsewhere, are no circle.
    with_step({**by_c, "run": "a"}, {"name": "c", "step": {**by_c, "run": "a"}, "start": {"run": "b", "iteration": 3}})
    with_step(by_c, {"name": "c", "path": "x.pt", "checkpoints": [0]})
    for step, words in (
        (
            {"method": "projected", "last": 236, **BY_40},
            "runs[1].step.last is 236, but the network of run 'b' has only",
        ),
        (
            {"method": "random", "dimension": 999},
            "runs[1].step.dimension is 999, but the network of run 'b' has only 23",
        ),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            Problem.of(with_step(step))


def test_another_step_or_basis_is_trained_again(
    made_results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(made_results, tmp_path / "copy"))
    monkeypatch.chdir(root)
    step = {"method": "preconditioned", "floor": 0.1, "normalized": True, **BY_40}
    experiment, places = stepped(root, step)

    def changes(**now: Any) -> list[str]:
        asked = small_experiment(runs=[*SMALL["runs"], {"name": "b", **({"step": {**step, **now}} if now else {})}])
        found = find_differences(asked, places, Problem.of(asked))
        assert all(one.path == places.trajectory("b") for one in found)
        return [change for one in found for change in one.changes]

    assert changes(floor=0.1) == []
    assert changes(floor=0.2) == ["step.floor: 0.1 → 0.2"]
    assert [change.partition(": ")[0] for change in changes(iteration=0)] == ["step.digest"]
    assert changes()[0].startswith("step: {")
    assert changes()[0].endswith("→ null")
    # A basis that is not there says nothing; and a run that has not stepped by it yet needs it.
    manifest = Path(places.eigenbasis("a", 40))
    manifest.rename(manifest.with_name("away"))
    assert changes(floor=0.1) == []
    manifest.with_name("away").rename(manifest)
    kept = Kept(places.sizes)
    Problem.of(experiment, kept)
    reasons = {str(one.directory): one.kept_for for one in find_removable(Path(places.root))}
    assert "unfinished run" not in reasons[str(manifest.parent)]
    shutil.rmtree(Path(places.trajectory("b")).parent)
    reasons = {str(one.directory): one.kept_for for one in find_removable(Path(places.root))}
    assert reasons[str(manifest.parent)] == "needed by 1 unfinished run: b"


def test_nothing_of_it_is_asked_where_there_is_no_step(data, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TrainingTask(constant(), 0, LINEAR, "squared_error", data, "cpu")
    assert "step" not in task.parameters()
    assert step_of(SimpleNamespace(), None, None, data) is None  # type: ignore[arg-type]
