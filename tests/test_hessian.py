import json
import tracemalloc

import numpy as np
import pytest
import torch
from problems import RESNET9, SMALL, DiesAtEveryThirdUnit, dense_hessian, problem, relative_error, write_checkpoint

from quadscape.config import CNN, MLP, Curvature, Linear
from quadscape.curvature.hessian import HessianEngine, HessianMatrix, HessianTask, column_block
from quadscape.curvature.verification import sign_probes
from quadscape.errors import StoreError, VerificationError
from quadscape.objective import CheckpointObjectives, Objective
from quadscape.stage import open_stage, run_stage

LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def whole(objective, theta, block=64):
    """The dense Hessian from the engine's lower triangle, mirrored."""
    size = objective.size
    result = torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, size, block):
        stop = min(size, start + block)
        columns = HessianEngine(objective, theta).columns(start, stop)
        assert columns.shape == (size - start, stop - start)
        assert columns.dtype == torch.float64
        result[start:, start:stop] = columns
        result[start:stop, start:] = columns.T
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


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", SMALL)
def test_whole_matrix_of_small_networks(name, loss, dtype):
    exact, theta = problem(*SMALL[name], loss=loss)
    objective, _ = problem(*SMALL[name], dtype=dtype, loss=loss)
    assert relative_error(whole(objective, theta), dense_hessian(exact, theta)) <= LIMIT[dtype]


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
    errors, norm = dict.fromkeys(LIMIT, 0.0), 0.0
    for start, stop in columns:
        expected = _columns_by_jvp(exact, theta, start, stop)[start:]
        norm += float(expected.square().sum())
        for objective in (exact, single):
            found = HessianEngine(objective, theta).columns(start, stop)
            errors[objective.dtype] += float((found - expected).square().sum())
    for dtype, error in errors.items():
        assert (error / norm) ** 0.5 <= LIMIT[dtype]


def _columns_by_jvp(objective, theta, start, stop):
    """Columns by torch.func's jvp of the gradient of the mean over all examples at once, flat in θ."""

    def loss(vector):
        parameters = objective.layout.unflatten(vector)
        return objective.chunk_loss(parameters, objective.images, objective.labels) / objective.count

    columns = []
    for number in range(start, stop):
        unit = torch.zeros(objective.size, dtype=torch.float64)
        unit[number] = 1.0
        columns.append(torch.func.jvp(torch.func.grad(loss), (theta,), (unit,))[1])
    return torch.stack(columns, dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks, chunks, odd sizes


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_results_do_not_depend_on_the_column_block(block):
    objective, theta = problem(*SMALL["cnn-group"], dtype=torch.float32)
    reference = torch.tril(HessianEngine(objective, theta).columns(0, objective.size))
    found = torch.zeros_like(reference)
    for start in range(0, objective.size, block):
        stop = min(objective.size, start + block)
        found[start:, start:stop] = HessianEngine(objective, theta).columns(start, stop)
    assert relative_error(torch.tril(found), reference) < 1e-6


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


def scalar_problem():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x):
            x = self.scale * x.flatten(1)
            return torch.cat([x, -x], dim=1)

    from quadscape.parameters import ParameterLayout

    model = Scale()
    images, labels = torch.linspace(-1, 1, 5, dtype=torch.float64).reshape(5, 1, 1, 1), torch.tensor([0, 1, 0, 1, 1])
    return Objective(model, ParameterLayout.of(model), images, labels, "squared_error", 2), torch.tensor([0.3]).double()


def test_parameters_that_the_loss_does_not_use_have_zero_columns():
    class Idle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.idle = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.linear = torch.nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, x):
            return self.linear(x.flatten(1))

    from quadscape.parameters import ParameterLayout, current_vector

    torch.manual_seed(0)
    model = Idle()
    images, labels = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    objective = Objective(model, ParameterLayout.of(model), images, labels, "cross_entropy", 2)
    theta = current_vector(model)
    assert relative_error(whole(objective, theta, 2), dense_hessian(objective, theta)) < 1e-13


def test_column_block_is_bounded():
    assert column_block(1) == 1
    assert column_block(10) == 8
    assert column_block(600) == 16
    assert column_block(2_570) == 64
    assert column_block(26_490) == 256
    assert column_block(104_234) == 256
    assert all(8 * p * column_block(p) <= 256 << 20 for p in (10**3, 10**5, 10**6, 10**7))


# ---------------------------------------------------------------------------------------------------------------------
# The stage


def hessian_stage(folder, config, shape, dtype="float64"):
    checkpoint, data = write_checkpoint(folder, config, shape)
    task = HessianTask(checkpoint, data, Curvature(dtype=dtype), "cpu")
    manifest = run_stage(task, folder / "hessian", log=lambda line: None)
    exact = CheckpointObjectives(checkpoint, data, "train")
    return manifest, exact.get(torch.float64, "cpu"), torch.from_numpy(exact.theta)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hessian")
    config = CNN(factory="cnn", channels=(4,), normalization="batch")
    manifest, objective, theta = hessian_stage(folder, config, (1, 4, 4))
    return folder / "hessian", manifest, dense_hessian(objective, theta).numpy()


def test_stored_matrix_equals_the_reference(finished):
    directory, manifest, reference = finished
    matrix = HessianMatrix(directory / "manifest.json")
    dense = matrix.dense()
    assert dense.dtype == np.float64
    assert np.array_equal(dense, dense.T)
    assert np.linalg.norm(dense - reference) <= 1e-13 * np.linalg.norm(reference)
    assert matrix.dense("float32").dtype == np.float32
    plan = manifest["plan"]
    assert {"threads", "device", "chunk", "block", "probe_block"} <= set(plan)
    assert matrix.size % plan["block"]  # the last strip is ragged
    assert not any(key.startswith("second") for key in json.dumps(plan).split('"'))
    checks = manifest["results"]["verification"]["checks"]
    assert all(entry["value"] <= entry["threshold"] for entry in checks.values())


def test_entries_above_a_block_are_nan_in_the_store(finished):
    directory, manifest, _ = finished
    stored = open_stage(directory, "hessian").read("matrix")
    block = manifest["plan"]["block"]
    row, column = np.indices(stored.shape)
    assert np.array_equal(np.isnan(stored), row < column // block * block)


@pytest.mark.parametrize("span", [(0, 1), (0, 99), (3, 40), (16, 32), (17, 18), (30, 99), (98, 99)])
def test_columns_are_mirrored(finished, span):
    directory, _, _ = finished
    matrix = HessianMatrix(directory)
    dense = matrix.dense()
    assert matrix.size == 99
    assert np.array_equal(matrix.columns(*span), dense[:, slice(*span)])


def test_products_are_those_of_the_reference(finished):
    directory, _, reference = finished
    expected = reference @ sign_probes(len(reference), 16, 20_240_001)
    np.testing.assert_allclose(HessianMatrix(directory).products(), expected, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("normalization", ["group", "none"])
def test_float32_stage_passes_its_checks(tmp_path, normalization):
    config = CNN(factory="cnn", channels=(4, 4), normalization=normalization)
    manifest, objective, theta = hessian_stage(tmp_path, config, (1, 8, 8), "float32")
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


def test_a_second_run_recomputes_nothing_and_repeats_the_manifest(finished, monkeypatch):
    directory, _, _ = finished
    before = (directory / "manifest.json").read_bytes()
    (directory / "manifest.json").unlink()
    monkeypatch.setattr(HessianTask, "compute", None)
    folder = directory.parent
    task = HessianTask(folder / "checkpoint.zarr", folder / "data.zarr", Curvature(dtype="float64"), "cpu")
    run_stage(task, directory, log=lambda line: None)
    assert (directory / "manifest.json").read_bytes() == before


def test_an_interrupted_stage_resumes_bit_for_bit(finished, tmp_path):
    directory, _, _ = finished
    folder = directory.parent

    class Interrupted(DiesAtEveryThirdUnit, HessianTask):
        calls = 0

    task = Interrupted(folder / "checkpoint.zarr", folder / "data.zarr", Curvature(dtype="float64"), "cpu")
    for _ in range(20):
        try:
            run_stage(task, tmp_path / "hessian", log=lambda line: None)
            break
        except KeyboardInterrupt:
            pass
    assert Interrupted.calls > 6
    assert (tmp_path / "hessian" / "manifest.json").read_bytes() == (directory / "manifest.json").read_bytes()


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
    task = HessianTask(checkpoint, data, Curvature(dtype="float64"), "cpu")
    task._objectives.checkpoint.theta[:] = 1e200
    with pytest.raises(VerificationError, match=r"Column \d+ of the Hessian is not finite"):
        run_stage(task, tmp_path / "hessian", log=lambda line: None)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    checkpoint, _ = write_checkpoint(tmp_path / "a", Linear(factory="linear"), (1, 4, 4))
    _, other = write_checkpoint(tmp_path / "b", Linear(factory="linear"), (1, 4, 4), counts=(24, 6, 6))
    task = HessianTask(checkpoint, other, Curvature(dtype="float64"), "cpu")
    with pytest.raises(StoreError, match="another data set"):
        run_stage(task, tmp_path / "hessian", log=lambda line: None)
