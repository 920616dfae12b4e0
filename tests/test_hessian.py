import shutil
import time
import tracemalloc
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import (
    RESNET9,
    SMALL,
    DiesAtEveryThirdUnit,
    dense_hessian,
    lower_triangle,
    problem,
    relative_error,
    run_hessian,
    scalar_problem,
    write_checkpoint,
)

from quadscape.config.sections import CNN, MLP, Curvature, Linear
from quadscape.curvature import costs, strips
from quadscape.curvature.engine import HessianEngine
from quadscape.curvature.hessian import HessianMatrix, HessianShardTask, HessianTask
from quadscape.curvature.shards import shard_directory, shard_name
from quadscape.curvature.strips import column_block, cut_strips, share_of_strips
from quadscape.curvature.verification import sign_probes
from quadscape.errors import ModelError, StageError, StoreError
from quadscape.network.objective import CheckpointObjectives, Objective
from quadscape.results.verify import verify_results
from quadscape.stage.finished import open_stage
from quadscape.stage.run import run_stage

pytestmark = pytest.mark.usefixtures("kept_exports", "one_thread")

LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5}


def whole(objective, theta, block=64):
    """The dense Hessian from the engine's lower triangle, mirrored."""
    result = lower_triangle(HessianEngine(objective, theta), objective.size, block)
    for start in range(0, objective.size, block):
        strip = slice(start, start + block)
        result[strip, start:] = result[start:, strip].T.clone()
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms


@pytest.mark.parametrize("dtype", LIMIT)
def test_least_squares(dtype):
    objective, theta = problem(*SMALL["linear"], dtype=dtype, loss="squared_error")
    x = objective.images.flatten(1).double()
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    # θ is W (classes × pixels) in C order, then the bias: ∇² = (1/N) Σ x̃x̃ᵀ ⊗ I.
    weights = torch.kron(torch.eye(5, dtype=torch.float64), x.T @ x / len(x))
    cross = torch.kron(torch.eye(5, dtype=torch.float64), x.T @ ones / len(x))
    expected = torch.cat([torch.cat([weights, cross], 1), torch.cat([cross.T, torch.eye(5, dtype=torch.float64)], 1)])
    assert relative_error(whole(objective, theta), expected) <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", LIMIT)
def test_multinomial_logistic_regression(dtype):
    objective, theta = problem(*SMALL["linear"], dtype=dtype)
    x = torch.cat([objective.images.flatten(1).double(), torch.ones(objective.count, 1, dtype=torch.float64)], 1)
    weights = torch.cat([theta[:80].reshape(5, 16), theta[80:, None]], 1)
    p = torch.softmax(x @ weights.T, dim=1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    full = torch.einsum("nab,ni,nj->aibj", inner, x, x) / len(x)
    order = [(a, i) for a in range(5) for i in range(16)] + [(a, 16) for a in range(5)]
    a, i = (torch.tensor(part) for part in zip(*order, strict=True))
    expected = full[a[:, None], i[:, None], a[None], i[None]]
    assert relative_error(whole(objective, theta), expected) <= LIMIT[dtype]


# ---------------------------------------------------------------------------------------------------------------------
# Independent float64 autograd


@cache
def reference(name, loss):
    return dense_hessian(*problem(*SMALL[name], loss=loss))


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", SMALL)
def test_whole_matrix_of_small_networks(name, loss, dtype):
    objective, theta = problem(*SMALL[name], dtype=dtype, loss=loss)
    assert relative_error(whole(objective, theta), reference(name, loss)) <= LIMIT[dtype]


@pytest.mark.parametrize("name", RESNET9)
def test_resnet9_columns_of_all_layers(name):
    exact, theta = problem(*RESNET9[name], count=3, chunk=2)
    single, _ = problem(*RESNET9[name], dtype=torch.float32, count=3, chunk=2)
    assert exact.size in {26_325, 26_045}  # 3×8×8 images and 5 classes; 26,490 with 10
    layers = exact.layout.blocks
    columns = []
    for block in layers:
        width = min(-(-200 // len(layers)), block.stop - block.start)
        columns.append((block.start, block.start + width))  # the first: they need the most rows
        if block.stop - block.start > 2 * width:
            columns.append((block.stop - 2, block.stop))
    assert sum(stop - start for start, stop in columns) >= 200
    engines = [HessianEngine(objective, theta) for objective in (exact, single)]
    column_of = _columns_by_double_backward(exact, theta)
    errors, norm = dict.fromkeys(LIMIT, 0.0), 0.0
    for start, stop in columns:
        expected = torch.stack([column_of(number)[start:] for number in range(start, stop)], dim=1)
        norm += float(expected.square().sum())
        for engine in engines:
            found = engine.columns(start, stop)
            errors[engine.objective.dtype] += float((found - expected).square().sum())
    for dtype, error in errors.items():
        assert (error / norm) ** 0.5 <= LIMIT[dtype]


def _columns_by_double_backward(objective, theta):
    """Columns by autograd, from one graph of the gradient of the mean over all examples at once, flat in θ."""
    vector = theta.clone().requires_grad_()
    parameters = objective.layout.unflatten(vector)
    loss = objective.chunk_loss(parameters, objective.images, objective.labels) / objective.count
    (gradient,) = torch.autograd.grad(loss, vector, create_graph=True)
    return lambda number: torch.autograd.grad(gradient[number], vector, retain_graph=True)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Blocks, chunks, odd sizes


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_results_do_not_depend_on_the_column_block(block):
    objective, theta = problem(*SMALL["cnn-group"], dtype=torch.float32, count=7)
    engine = HessianEngine(objective, theta)
    at_once = torch.tril(engine.columns(0, objective.size))
    found = torch.zeros_like(at_once)
    for start in range(0, objective.size, block):
        stop = min(objective.size, start + block)
        found[start:, start:stop] = engine.columns(start, stop)
    assert relative_error(torch.tril(found), at_once) < 1e-6


@pytest.mark.parametrize("chunk", [1, 3, 11, 50])
def test_results_do_not_depend_on_the_data_chunk(chunk):
    reference, theta = problem(*SMALL["mlp"], chunk=4)
    objective, _ = problem(*SMALL["mlp"], chunk=chunk)
    assert relative_error(whole(objective, theta), whole(reference, theta)) < 1e-14


def test_one_example_and_one_parameter():
    objective, theta = problem(*SMALL["mlp"], count=1)
    assert relative_error(whole(objective, theta), dense_hessian(objective, theta)) < 1e-13
    objective, theta = scalar_problem()
    expected = (objective.images.square().sum() * 2 / objective.count).reshape(1, 1)
    assert relative_error(HessianEngine(objective, theta).columns(0, 1), expected) < 1e-14


def test_parameters_that_the_loss_does_not_use_have_zero_columns():
    class Idle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.idle = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.linear = torch.nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, x):
            return self.linear(x.flatten(1))

    from quadscape.network.parameters import ParameterLayout, current_vector

    torch.manual_seed(0)
    model = Idle()
    images, labels = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    objective = Objective(model, ParameterLayout.of(model), images, labels, "cross_entropy", 2)
    theta = current_vector(model)
    assert relative_error(whole(objective, theta, 2), dense_hessian(objective, theta)) < 1e-13


# ---------------------------------------------------------------------------------------------------------------------
# Cutting


def test_column_block_is_bounded():
    assert column_block(1) == 1
    assert column_block(10) == 8
    assert column_block(600) == 16
    assert column_block(2_570) == 64
    assert column_block(26_490) == 256
    assert column_block(104_234) == 256
    assert all(8 * p * column_block(p) <= 512 << 20 for p in (10**3, 10**5, 10**6, 10**7))


def layered(start, stop):
    """Columns of three layers, the first of which is ten times as dear; every strip pays for a pass over the data."""
    return 50.0 + sum(100.0 if column < 300 else 10.0 for column in range(start, stop))


@pytest.mark.parametrize("budget", [1.0, 200.0, 1000.0, 1e9])
def test_strips_are_whole_files_within_the_budget(budget):
    block, bounds = cut_strips(1000, layered, budget)
    assert (bounds[0], bounds[-1]) == (0, 1000)
    widths = np.diff(bounds)
    assert (widths > 0).all()
    assert not any(bound % block for bound in bounds[:-1])
    assert widths.max() <= 16
    assert block == 1 or all(layered(a, b) <= budget for a, b in pairwise(bounds))
    if budget == 1000.0:
        assert (widths[0], widths[-2]) == (8, 16), "dear columns make narrow strips, cheap ones wide strips"


def test_strips_fit_into_memory(monkeypatch):
    for module in (strips, costs):
        monkeypatch.setattr(module, "STRIP_BYTES", 8 * 1000 * 5)
    block, bounds = cut_strips(1000, lambda a, b: 0.0, 1.0)
    assert block == 4
    assert all(8 * (1000 - a) * (b - a) <= 8 * 1000 * 5 for a, b in pairwise(bounds))
    assert np.diff(bounds).max() == 16, "there is room for wider strips further down"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 71])
def test_shards_share_the_strips_by_cost(count):
    _, bounds = cut_strips(1000, layered, 1000.0)
    shares = [share_of_strips(bounds, layered, number, count) for number in range(1, count + 1)]
    joined = [bounds[0], *(bound for share in shares for bound in share[1:])]
    assert joined == bounds
    assert all(len(share) >= 2 for share in shares)
    costs = [sum(layered(a, b) for a, b in pairwise(s)) for s in shares]
    strip = max(layered(a, b) for a, b in pairwise(bounds))
    assert max(costs) <= sum(costs) / count + 2 * strip


# ---------------------------------------------------------------------------------------------------------------------
# The stages


def hessian_stage(folder, config, shape, dtype="float64", shards=1):
    checkpoint, data = write_checkpoint(folder, config, shape)
    manifest = run_hessian(folder / "hessian", checkpoint, data, Curvature(dtype=dtype, shards=shards))
    exact = CheckpointObjectives(checkpoint, data, "train")
    return manifest, exact.get(torch.float64, "cpu"), torch.from_numpy(exact.theta)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hessian")
    config = CNN(factory="cnn", channels=(4,), normalization="batch")
    manifest, objective, theta = hessian_stage(folder, config, (1, 4, 4))
    return folder / "hessian", manifest, dense_hessian(objective, theta).numpy()


def paths(directory):
    return directory.parent / "checkpoint.zarr", directory.parent / "data.zarr"


def test_stored_matrix_equals_the_reference(finished):
    directory, manifest, reference = finished
    matrix = HessianMatrix(directory / "manifest.json")
    dense = matrix.dense()
    assert dense.dtype == np.float64
    assert np.array_equal(dense, dense.T)
    assert np.linalg.norm(dense - reference) <= 1e-13 * np.linalg.norm(reference)
    assert matrix.dense("float32").dtype == np.float32
    plan = open_stage(shard_directory(directory, shard_name(1, 1))).manifest["plan"]
    assert set(plan) == {"threads", "device", "chunk", "engine", "block", "strips", "flops", "memory_bytes"}
    assert len(plan["flops"]) == len(plan["strips"]) - 1
    assert matrix.size % plan["block"]  # the last strip is ragged
    checks = manifest["results"]["verification"]["checks"]
    assert all(entry["value"] <= entry["threshold"] for entry in checks.values())
    # The matrix is in the shards and nowhere else.
    assert sum(path.stat().st_size for path in (directory / "store.zarr").rglob("*") if path.is_file()) < 60_000


def test_entries_above_a_strip_are_nan_in_the_store(finished):
    shard = open_stage(shard_directory(finished[0], shard_name(1, 1)), "hessian_shard")
    stored = shard.read("matrix")
    bounds = np.array(shard.manifest["plan"]["strips"])
    row, column = np.indices(stored.shape)
    assert np.array_equal(np.isnan(stored), row < bounds[np.searchsorted(bounds, column, side="right") - 1])


@pytest.mark.parametrize("span", [(0, 1), (0, 99), (3, 40), (16, 32), (17, 18), (30, 99), (98, 99)])
def test_columns_are_mirrored(finished, span):
    directory, _, _ = finished
    matrix = HessianMatrix(directory)
    dense = matrix.dense()
    assert matrix.size == 99
    assert np.array_equal(matrix.columns(*span), dense[:, slice(*span)])
    assert np.array_equal(matrix.columns(*span, lower=True), dense[span[0] :, slice(*span)])


def test_products_are_those_of_the_reference(finished):
    directory, _, reference = finished
    expected = reference @ sign_probes(len(reference), 16, 20_240_001)
    np.testing.assert_allclose(HessianMatrix(directory).products(), expected, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("normalization", ["group", "none"])
def test_float32_stage_passes_its_checks(tmp_path, normalization):
    config = CNN(factory="cnn", channels=(4, 4), normalization=normalization)
    manifest, objective, theta = hessian_stage(tmp_path, config, (1, 8, 8), "float32", shards=2)
    dense = HessianMatrix(tmp_path / "hessian").dense("float64")
    reference = dense_hessian(objective, theta).numpy()
    error = np.linalg.norm(dense - reference)
    assert error <= 1e-5 * np.linalg.norm(reference)
    numbers = manifest["results"]["verification"]
    # What verification says of the error is the error, within its sampling error, and bounds its spectral norm.
    assert numbers["error_frobenius"] == pytest.approx(error, rel=0.6)
    assert numbers["error_norm"] >= 0.8 * np.linalg.norm(dense - reference, 2)
    assert numbers["trace"] == pytest.approx(np.trace(dense), rel=1e-5)
    assert numbers["frobenius"] == pytest.approx(np.linalg.norm(dense), rel=1e-5)


def test_two_first_starts_make_the_same_plan_on_a_machine_of_any_speed(finished, monkeypatch):
    directory, manifest, _ = finished
    shard = open_stage(shard_directory(directory, shard_name(1, 1))).manifest["plan"]
    clock = iter(float(2**n) for n in range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    config = Curvature(dtype="float64")
    assert HessianShardTask(*paths(directory), config, "cpu").plan() == shard
    assert HessianTask(directory, *paths(directory), config, "cpu").plan() == manifest["plan"]


def test_a_second_run_recomputes_nothing_and_repeats_the_manifests(finished, monkeypatch):
    directory, _, _ = finished
    manifests = [directory / "manifest.json", shard_directory(directory, shard_name(1, 1)) / "manifest.json"]
    before = [path.read_bytes() for path in manifests]
    for path in manifests:
        path.unlink()
    monkeypatch.setattr(HessianTask, "compute", None)
    monkeypatch.setattr(HessianShardTask, "compute", None)
    run_hessian(directory, *paths(directory), Curvature(dtype="float64"))
    assert [path.read_bytes() for path in manifests] == before


class InterruptedShard(DiesAtEveryThirdUnit, HessianShardTask):
    """Counts its own calls."""

    calls = 0


class InterruptedGather(DiesAtEveryThirdUnit, HessianTask):
    """Counts its own calls."""

    calls = 0


def until_finished(make, directory):
    for _ in range(20):
        try:
            return run_stage(make(), directory, log=lambda line: None)
        except KeyboardInterrupt:
            pass
    raise AssertionError("it never finished")


def test_interrupted_stages_resume_bit_for_bit(finished, tmp_path):
    directory, _, _ = finished
    config = Curvature(dtype="float64")
    copy = tmp_path / "hessian"
    shard = shard_directory(copy, shard_name(1, 1))
    until_finished(lambda: InterruptedShard(*paths(directory), config, "cpu"), shard)
    until_finished(lambda: InterruptedGather(copy, *paths(directory), config, "cpu"), copy)
    assert InterruptedShard.calls > 6
    assert InterruptedGather.calls > 4
    assert (copy / "manifest.json").read_bytes() == (directory / "manifest.json").read_bytes()
    whole = shard_directory(directory, shard_name(1, 1))
    assert (shard / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_matrix_is_the_same_for_every_number_of_shards(finished, tmp_path, count):
    directory, manifest, _ = finished
    config = Curvature(dtype="float64", shards=count)
    found = run_hessian(tmp_path / "hessian", *paths(directory), config)
    one, many = HessianMatrix(directory), HessianMatrix(tmp_path / "hessian")
    assert np.array_equal(one.dense(), many.dense())
    assert np.array_equal(one.columns(5, 97), many.columns(5, 97))
    assert found["results"] == manifest["results"]
    assert set(found["parameters"]["shards"]) == {f"{number}-of-{count}" for number in range(1, count + 1)}
    assert one.digest == many.digest, "an eigenbasis of the one is an eigenbasis of the other"


def test_more_shards_than_strips_are_refused(finished, tmp_path):
    task = HessianShardTask(*paths(finished[0]), Curvature(dtype="float64", shards=8), "cpu")
    with pytest.raises(StageError, match=r"curvature\.shards is 8, .* valid are 1 to 7\."):
        run_stage(task, tmp_path / "shard", log=lambda line: None)


def test_out_of_device_memory_halves_chunks_and_tiles(finished, tmp_path, monkeypatch):
    directory, *_ = finished
    columns, limits = HessianEngine.columns, []

    def too_large(engine, start, stop):
        limits.append(engine.plan["chunk"])
        if start >= 64 and engine.plan["chunk"] > limits[0] // 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")
        return columns(engine, start, stop)

    monkeypatch.setattr(HessianEngine, "columns", too_large)
    log = []
    task = HessianShardTask(*paths(directory), Curvature(dtype="float64"), "cpu")
    manifest = run_stage(task, tmp_path / "shard", log=log.append)
    chunks = [entry["plan"]["engine"]["float64"]["chunk"] for entry in manifest["replanned"]]
    assert chunks == [limits[0] // 2, limits[0] // 4]
    assert sum("does not hold columns" in line and "CUDA out of memory" in line for line in log) == 2
    found, expected = (
        open_stage(p).read("matrix") for p in (tmp_path / "shard", shard_directory(directory, shard_name(1, 1)))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


@pytest.fixture
def three_shards(finished, tmp_path):
    run_hessian(tmp_path / "hessian", *paths(finished[0]), Curvature(dtype="float64", shards=3))
    return tmp_path / "hessian"


def test_a_damaged_shard_is_named(three_shards):
    assert not any(problem for _, problem in verify_results(three_shards.parent))
    shard = shard_directory(three_shards, shard_name(2, 3))
    victim = next(p for p in sorted((shard / "store.zarr/matrix/c").rglob("*")) if p.is_file())
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 1
    victim.write_bytes(content)
    problems = {path: problem for path, problem in verify_results(three_shards.parent) if problem}
    assert set(problems) == {shard}
    with pytest.raises(StoreError, match=f"{shard} is damaged"):
        HessianMatrix(three_shards).dense()
    victim.unlink()
    with pytest.raises(StoreError, match=f"{shard} .*missing"):
        HessianMatrix(three_shards)


def test_a_removed_shard_heals_and_the_manifest_stays(finished, three_shards):
    before, dense = (three_shards / "manifest.json").read_bytes(), HessianMatrix(three_shards).dense()
    shutil.rmtree(shard_directory(three_shards, shard_name(3, 3)))
    with pytest.raises(StoreError, match=r"hessian_shards/3-of-3: it has no manifest"):
        HessianMatrix(three_shards)
    run_hessian(three_shards, *paths(finished[0]), Curvature(dtype="float64", shards=3))
    assert (three_shards / "manifest.json").read_bytes() == before
    assert np.array_equal(HessianMatrix(three_shards).dense(), dense)


def test_a_shard_of_another_cut_is_not_joined(finished, three_shards, monkeypatch):
    monkeypatch.setitem(strips.UNIT_FLOPS, "cpu", 1.0)
    shard, config = shard_directory(three_shards, shard_name(2, 3)), Curvature(dtype="float64", shards=3)
    shutil.rmtree(shard)
    run_stage(HessianShardTask(*paths(finished[0]), config, "cpu", 2), shard, log=lambda line: None)
    with pytest.raises(StoreError, match=r"2-of-3 is not the shard that .*hessian was gathered from; remove"):
        HessianMatrix(three_shards)
    task = HessianTask(three_shards, *paths(finished[0]), config, "cpu")
    with pytest.raises(StoreError, match="the shards were cut in different ways"):
        run_stage(task, three_shards, log=lambda line: None)


def test_one_strip_is_in_memory_while_the_matrix_is_read(tmp_path):
    config = Linear(factory="linear")
    hessian_stage(tmp_path, config, (1, 16, 16))
    matrix = HessianMatrix(tmp_path / "hessian")
    assert matrix.size == 771
    tracemalloc.start()
    matrix.dense()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.4 * 8 * matrix.size**2


def test_non_finite_columns_are_named(tmp_path):
    checkpoint, data = write_checkpoint(tmp_path, MLP(factory="mlp", hidden=(4,)), (1, 4, 4))
    task = HessianShardTask(checkpoint, data, Curvature(dtype="float64"), "cpu")
    task._objectives.checkpoint.theta[:] = 1e200
    with pytest.raises(ModelError, match="outputs are not finite"):
        run_stage(task, tmp_path / "shard", log=lambda line: None)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    checkpoint, _ = write_checkpoint(tmp_path / "a", Linear(factory="linear"), (1, 4, 4))
    _, other = write_checkpoint(tmp_path / "b", Linear(factory="linear"), (1, 4, 4), counts=(24, 6, 6))
    task = HessianShardTask(checkpoint, other, Curvature(dtype="float64"), "cpu")
    with pytest.raises(StoreError, match="another data set"):
        run_stage(task, tmp_path / "shard", log=lambda line: None)


def test_tf32_is_refused_where_there_is_none(tmp_path):
    checkpoint, data = write_checkpoint(tmp_path, MLP(factory="mlp", hidden=(4,)), (1, 4, 4))
    task = HessianShardTask(checkpoint, data, Curvature(tf32=True), "cpu")
    with pytest.raises(
        StageError, match=r"^curvature\.tf32 is true, but this job runs on a CPU.*valid here is false\.$"
    ):
        task.plan()


def test_the_engine_of_a_part_is_that_of_its_examples():
    objective, theta = problem(*SMALL["cnn-group"])
    engine = HessianEngine(objective, theta)
    before = engine.columns(5, 9)
    part = engine.of_part(slice(3, 10))
    expected = HessianEngine(objective.part(slice(3, 10)), theta)
    assert torch.equal(part.columns(5, 9), expected.columns(5, 9))
    assert part.flops(5, 9) == expected.flops(5, 9)
    assert torch.equal(engine.columns(5, 9), before)
