from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from problems import (
    SMALL,
    DiesAtEveryThirdUnit,
    problem,
    relative_error,
    run_hessian,
    scalar_problem,
    write_checkpoint,
)
from torch.func import functional_call

from quadscape.config.sections import CNN, Curvature
from quadscape.curvature import gauss_newton, strips
from quadscape.curvature.gauss_newton import (
    GaussNewtonEngine,
    GaussNewtonMatrix,
    GaussNewtonTask,
    RemainderMatrix,
    eigenvalue_error,
    eigenvalues,
    output_factor,
)
from quadscape.curvature.hessian import HessianMatrix
from quadscape.curvature.solver_plan import streamed_plan
from quadscape.errors import StoreError, VerificationError
from quadscape.network.objective import CheckpointObjectives, Objective
from quadscape.network.parameters import ParameterLayout, current_vector
from quadscape.results.verify import verify_results
from quadscape.stage.run import run_stage
from results import silent

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = {torch.float64: 1e-13, torch.float32: 1e-5}


def explicit(objective, theta):
    """G in float64 from the Jacobian of every example, written out."""
    size = objective.size
    total = torch.zeros(size, size, dtype=torch.float64)
    for number in range(objective.count):
        image = objective.images[number : number + 1]

        def scores(vector, image=image):
            return functional_call(objective.model, objective.layout.unflatten(vector), (image,))[0]

        jacobian = torch.autograd.functional.jacobian(scores, theta)
        if objective.loss_kind == "squared_error":
            inner = torch.eye(len(jacobian), dtype=torch.float64)
        else:
            p = torch.softmax(scores(theta), dim=0)
            inner = torch.diag(p) - torch.outer(p, p)
        total += jacobian.T @ inner @ jacobian
    return total / objective.count


def whole(objective, theta, examples=3, block=64, run=200):
    size = objective.size
    result = torch.zeros(size, size, dtype=torch.float64)
    engine = GaussNewtonEngine(objective, theta, examples)
    for start in range(0, size, run):
        for c, strip in engine.columns(start, min(size, start + run), block):
            assert strip.dtype == torch.float64
            result[c:, c : c + strip.shape[1]] = strip
            result[c : c + strip.shape[1], c:] = strip.T
    return result


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", SMALL)
def test_columns_are_those_of_explicit_jacobians(name, loss, dtype):
    exact, theta = problem(*SMALL[name], loss=loss)
    objective, _ = problem(*SMALL[name], loss=loss, dtype=dtype)
    assert relative_error(whole(objective, theta), explicit(exact, theta)) <= LIMIT[dtype]


def test_least_squares_is_all_gauss_newton():
    objective, theta = problem(*SMALL["linear"], loss="squared_error")
    x = torch.cat([objective.images.flatten(1), torch.ones(objective.count, 1, dtype=torch.float64)], 1)
    full = torch.kron(torch.eye(5, dtype=torch.float64), x.T @ x / len(x))
    order = torch.tensor([a * 17 + i for a in range(5) for i in range(16)] + [a * 17 + 16 for a in range(5)])
    assert relative_error(whole(objective, theta), full[order][:, order]) < 1e-14


@pytest.mark.parametrize(("examples", "block", "run"), [(1, 64, 64), (4, 7, 21), (11, 1000, 1000), (50, 1, 100)])
def test_chunks_and_blocks_do_not_matter(examples, block, run):
    objective, theta = problem(*SMALL["cnn-group"])
    assert relative_error(whole(objective, theta, examples, block, run), whole(objective, theta)) < 1e-14


def test_factors_are_square_roots_where_the_network_is_certain_too():
    scores = torch.tensor([[0.0, 0.0, 0.0], [3.0, -1.0, 0.5], [40.0, 0.0, 1.0], [-800.0, 0.0, 2.0]]).double()
    factor = output_factor(scores, "cross_entropy")
    p = torch.softmax(scores, dim=1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    assert (factor @ factor.transpose(1, 2) - expected).abs().max() < 1e-15
    assert torch.equal(output_factor(scores, "squared_error")[2], torch.eye(3, dtype=torch.float64))


def test_one_parameter():
    objective, theta = scalar_problem()
    expected = (objective.images.square().sum() * 2 / objective.count).reshape(1, 1)
    assert relative_error(whole(objective, theta), expected) < 1e-14


def test_networks_that_vmap_refuses_and_parameters_that_do_nothing():
    class Reads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.idle = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.linear = torch.nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, x):
            scale = 2.0 if float(x.abs().sum()) >= 0 else 1.0
            return torch.tanh(self.linear(x.flatten(1))) * scale

    torch.manual_seed(0)
    model = Reads()
    images, labels = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    objective = Objective(model, ParameterLayout.of(model), images, labels, "cross_entropy", 2)
    theta = current_vector(model)
    found = whole(objective, theta)
    assert (found[:3] == 0).all()
    assert relative_error(found, explicit(objective, theta)) < 1e-14


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_products_are_those_of_explicit_jacobians(loss):
    objective, theta = problem(*SMALL["cnn-group"], loss=loss)
    vector = torch.randn(objective.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = explicit(objective, theta) @ vector
    assert relative_error(objective.gauss_newton_product(theta, vector), expected) < 1e-13


def test_runs_of_columns_fit_memory_and_work():
    runs = gauss_newton._cut_runs(1000, 16, 8 * 50_000, 1e12)
    assert (runs[0], runs[-1]) == (0, 1000)
    assert not any(bound % 16 for bound in runs[:-1])
    entries = [sum((1000 - c) * min(16, 1000 - c) for c in range(a, b, 16)) for a, b in pairwise(runs)]
    assert max(entries) <= 50_000
    assert min(entries[:-1]) > 50_000 - 16_000, "no run is narrower than it must be"
    assert gauss_newton._cut_runs(1000, 16, 1 << 40, 1e12) == [0, 1000]
    assert len(gauss_newton._cut_runs(1000, 16, 1, 1.0)) == 64


# ---------------------------------------------------------------------------------------------------------------------
# The stage


CONFIG = Curvature(dtype="float64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    paths = write_checkpoint(folder, CNN(factory="cnn", channels=(4, 8)), (1, 8, 8))
    run_hessian(folder / "hessian", *paths, CONFIG)
    run_stage(GaussNewtonTask(*paths, CONFIG, "cpu"), folder / "gauss_newton", log=silent)
    return folder


def paths(folder):
    return folder / "checkpoint.zarr", folder / "data.zarr"


def parts(folder):
    hessian, matrix = HessianMatrix(folder / "hessian"), GaussNewtonMatrix(folder / "gauss_newton")
    return hessian, matrix, RemainderMatrix(hessian, matrix)


def test_stored_parts_add_up(folder):
    hessian, matrix, remainder = parts(folder)
    objectives = CheckpointObjectives(*paths(folder), "train")
    reference = explicit(objectives.get(torch.float64, "cpu"), torch.from_numpy(objectives.theta)).numpy()
    g, r = matrix.dense(), remainder.dense()
    assert np.linalg.norm(g - reference) < 1e-13 * np.linalg.norm(reference)
    assert np.array_equal(g, g.T)
    assert np.array_equal(r, hessian.dense() - g)
    assert np.array_equal(remainder.columns(7, 300), r[:, 7:300])
    for start, strip in remainder.strips():
        assert np.array_equal(strip, r[start:, start : start + strip.shape[1]])
    assert matrix.verification["checks"]


def test_float32_parts_pass_their_checks(folder, tmp_path):
    config = Curvature(dtype="float32")
    run_stage(GaussNewtonTask(*paths(folder), config, "cpu"), tmp_path / "gauss_newton", log=silent)
    found, exact = GaussNewtonMatrix(tmp_path / "gauss_newton"), parts(folder)[1].dense()
    error = np.linalg.norm(found.dense("float64") - exact)
    assert 0 < error < 1e-5 * np.linalg.norm(exact)
    assert found.verification["error_frobenius"] == pytest.approx(error, rel=0.6)


class Interrupted(DiesAtEveryThirdUnit, GaussNewtonTask):
    """Counts its own calls."""

    calls = 0


def test_an_interrupted_stage_resumes_bit_for_bit(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(strips.UNIT_FLOPS, "cpu", 1.0)
    monkeypatch.setattr(gauss_newton, "_JACOBIAN_SHARE", 0.1)
    run_stage(GaussNewtonTask(*paths(folder), CONFIG, "cpu"), tmp_path / "whole", log=silent)
    for _ in range(30):
        try:
            run_stage(Interrupted(*paths(folder), CONFIG, "cpu"), tmp_path / "gauss_newton", log=silent)
            break
        except KeyboardInterrupt:
            pass
    assert Interrupted.calls > 30
    manifests = [tmp_path / name / "manifest.json" for name in ("whole", "gauss_newton")]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()
    # Another cut, another order of sums, the same matrix to rounding.
    found, once = GaussNewtonMatrix(tmp_path / "gauss_newton").dense(), parts(folder)[1].dense()
    assert np.linalg.norm(found - once) < 1e-14 * np.linalg.norm(once)


def test_damage_is_named(folder, tmp_path):
    run_stage(GaussNewtonTask(*paths(folder), CONFIG, "cpu"), tmp_path / "gauss_newton", log=silent)
    victim = sorted(p for p in (tmp_path / "gauss_newton/store.zarr/matrix/c").rglob("*") if p.is_file())[1]
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 1
    victim.write_bytes(content)
    assert [path for path, problem in verify_results(tmp_path) if problem] == [tmp_path / "gauss_newton"]
    with pytest.raises(StoreError, match="gauss_newton is damaged"):
        GaussNewtonMatrix(tmp_path / "gauss_newton").dense()


def test_a_wrong_matrix_is_found(folder, tmp_path, monkeypatch):
    right = GaussNewtonEngine.rows

    def wrong(self, parameters, images):
        rows = right(self, parameters, images)
        rows[:, 5] *= 1.001
        return rows

    monkeypatch.setattr(GaussNewtonEngine, "rows", wrong)
    with pytest.raises(VerificationError, match="The Gauss–Newton matrix failed its verification"):
        run_stage(GaussNewtonTask(*paths(folder), CONFIG, "cpu"), tmp_path / "gauss_newton", log=silent)


# ---------------------------------------------------------------------------------------------------------------------
# Spectra


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eigenvalues_are_within_their_error(folder, dtype):
    for matrix in parts(folder)[1:]:
        exact = np.linalg.eigvalsh(matrix.dense())[::-1]
        found = eigenvalues(matrix.dense(dtype), torch.device("cpu"), 1, "it")
        assert found.dtype == np.float64
        rounding = 0.0 if dtype == "float64" else np.linalg.norm(matrix.dense() - matrix.dense("float32"), 2)
        assert np.abs(found - exact).max() <= eigenvalue_error(found, np.dtype(dtype), rounding)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clustered", [False, True])
def test_large_spectra_are_streamed_and_the_same_but_for_rounding(monkeypatch, dtype, clustered):
    chance = np.random.default_rng(3)
    q, _ = np.linalg.qr(chance.standard_normal((300, 300)))
    exact = chance.choice([3.0, 0.1, 0.0, -0.5], 300) if clustered else np.geomspace(1e-9, 4, 300)
    matrix = (q * exact) @ q.T
    matrix = ((matrix + matrix.T) / 2).astype(dtype)
    expected = eigenvalues(matrix.copy(), torch.device("cpu"), 1, "it")
    monkeypatch.setitem(gauss_newton._LIBRARY_LIMIT, "cpu", 299)
    right, sizes = scipy.linalg.eigh, []
    monkeypatch.setattr(scipy.linalg, "eigh", lambda a, **k: (sizes.append(len(a)), right(a, **k))[1])
    for engine in ("lapack", "torch"):
        plan = {**streamed_plan(300, dtype, "cpu"), "engine": engine}
        monkeypatch.setattr(gauss_newton, "streamed_plan", lambda *_, plan=plan: plan)
        found = eigenvalues(matrix.copy(), torch.device("cpu"), 1, "it")
        assert np.abs(found - expected).max() < 60 * np.finfo(dtype).eps * np.abs(expected).max()
        assert (np.diff(found) <= 0).all()
    assert max(sizes) <= 64  # no library is asked for the whole matrix


def test_wrong_eigenvalues_are_found(monkeypatch):
    right = scipy.linalg.eigh
    monkeypatch.setattr(scipy.linalg, "eigh", lambda *a, **k: right(*a, **k) * np.linspace(1, 1.001, 50))
    matrix = np.diag(np.linspace(-1, 3, 50))
    with pytest.raises(VerificationError, match="The spectrum of it failed its verification"):
        eigenvalues(matrix, torch.device("cpu"), 1, "it")
    matrix[3, 4] = np.nan
    with pytest.raises(VerificationError, match="not finite"):
        eigenvalues(matrix, torch.device("cpu"), 1, "it")
