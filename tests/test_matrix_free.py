"""Products, extreme eigenpairs and spectral density against dense matrices, closed forms and exact spectra."""

import tracemalloc

import numpy as np
import pytest
import scipy.stats
import torch
from problems import SMALL, dense_hessian, problem, relative_error
from scipy.sparse.linalg import LinearOperator
from test_objective import _WithoutForwardDerivative

from quadscape.curvature.matrix_free import (
    CurvatureOperator,
    Kernel,
    SpectralDensity,
    extreme_eigenpairs,
    lanczos_quadrature,
    spectral_density,
)
from quadscape.errors import ModelError, VerificationError
from quadscape.objective import Objective
from quadscape.parameters import ParameterLayout, current_vector

LOSSES = ["cross_entropy", "squared_error"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def dense_gauss_newton(objective: Objective, theta: torch.Tensor) -> torch.Tensor:
    """(1/N) Σ Jₙᵀ Sₙ Jₙ from every example's Jacobian and the closed form of the loss's Hessian."""

    def outputs(vector):
        return torch.func.functional_call(objective.model, objective.layout.unflatten(vector), (objective.images,))

    jacobians, scores = torch.func.jacrev(outputs)(theta), outputs(theta)
    total = torch.zeros(objective.size, objective.size, dtype=torch.float64)
    for jacobian, score in zip(jacobians, scores, strict=True):
        p = score.softmax(dim=0)
        inner = torch.eye(len(p), dtype=torch.float64)
        if objective.loss_kind == "cross_entropy":
            inner = torch.diag(p) - torch.outer(p, p)
        total += jacobian.T @ inner @ jacobian
    return total / objective.count


def columns(operator: CurvatureOperator) -> torch.Tensor:
    return torch.from_numpy(operator.matmat(np.eye(operator.shape[0])))


# ---------------------------------------------------------------------------------------------------------------------
# Products


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SMALL)
def test_gauss_newton_product_is_that_of_per_example_jacobians(name, loss):
    objective, theta = problem(*SMALL[name], loss=loss)
    v = torch.randn(objective.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert relative_error(objective.gauss_newton_product(theta, v), dense_gauss_newton(objective, theta) @ v) < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_of_a_linear_model_gauss_newton_is_the_hessian(loss):
    objective, theta = problem(*SMALL["linear"], loss=loss)
    v = torch.randn(objective.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = objective.gauss_newton_product(theta, v)
    assert relative_error(found, objective.hessian_product(theta, v)) < 1e-13
    # With x̃ = (x, 1) and p the softmax: Σ (diag p − p pᵀ) ⊗ x̃ x̃ᵀ / N, or Σ I ⊗ x̃ x̃ᵀ / N.
    features = torch.cat([objective.images.flatten(1), torch.ones(objective.count, 1, dtype=torch.float64)], dim=1)
    weight, bias = (v[b.start : b.stop].reshape(5, -1) for b in objective.layout.blocks)
    along = features @ torch.cat([weight, bias], dim=1).T
    if loss == "cross_entropy":
        p = objective.outputs(theta).softmax(dim=1)
        along = p * (along - (p * along).sum(dim=1, keepdim=True))
    expected = along.T @ features / objective.count
    assert relative_error(found, torch.cat([expected[:, :-1].flatten(), expected[:, -1]])) < 1e-13


@pytest.mark.parametrize("chunk", [1, 3, 11])
def test_gauss_newton_does_not_depend_on_the_chunk_and_sums_in_float64(chunk):
    reference, theta = problem(*SMALL["cnn-group"], chunk=5)
    objective, _ = problem(*SMALL["cnn-group"], chunk=chunk)
    single, _ = problem(*SMALL["cnn-group"], torch.float32, chunk=chunk)
    expected = reference.gauss_newton_product(theta, theta)
    torch.testing.assert_close(objective.gauss_newton_product(theta, theta), expected, rtol=1e-12, atol=1e-15)
    rounded = single.gauss_newton_product(theta, theta)
    assert rounded.dtype == torch.float64
    assert 0 < relative_error(rounded, expected) < 1e-5


class _Attention(torch.nn.Module):
    """Self-attention over the rows of an image, in the fused form that has no forward derivative."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(4, 12)
        self.score = torch.nn.Linear(4, 3)

    def forward(self, images):
        q, k, v = self.embed(images[:, 0]).chunk(3, dim=2)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            mixed = torch.nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return self.score(mixed.mean(dim=1))


def objective_of(model: torch.nn.Module, shape: tuple[int, ...], loss: str) -> tuple[Objective, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, *shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (7,), generator=generator)
    model = model.double()
    return Objective(model, ParameterLayout.of(model), images, labels, loss, 3), current_vector(model)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("network", "shape"), [(_Attention, (1, 5, 4)), (_WithoutForwardDerivative, (1, 1, 4))])
def test_products_of_networks_with_custom_or_attention_operations(network, shape, loss):
    torch.manual_seed(0)
    objective, theta = objective_of(network(), shape, loss)
    found = columns(CurvatureOperator(objective, theta, "gauss_newton"))
    assert relative_error(found, dense_gauss_newton(objective, theta)) < 1e-12


def test_the_operator_is_symmetric_semidefinite_and_counts():
    objective, theta = problem(*SMALL["mlp"], chunk=11)
    hessian, gauss_newton = CurvatureOperator(objective, theta), CurvatureOperator(objective, theta, "gauss_newton")
    for operator, expected in (
        (hessian, dense_hessian(objective, theta)),
        (gauss_newton, dense_gauss_newton(objective, theta)),
    ):
        dense = columns(operator)
        assert operator.products == objective.size
        assert operator.dtype == np.float64
        assert relative_error(dense, expected) < 1e-12
        assert relative_error(dense, dense.T) < 1e-13
        x = np.ones(objective.size)
        np.testing.assert_array_equal(operator.H @ x, operator @ x)
        assert operator.products == objective.size + 2
    assert np.linalg.eigvalsh(columns(gauss_newton).numpy())[0] > -1e-14
    assert np.linalg.eigvalsh(columns(hessian).numpy())[0] < -1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Extreme eigenpairs


class Dense(CurvatureOperator):
    """The operator of a given matrix."""

    def __init__(self, matrix: np.ndarray) -> None:
        LinearOperator.__init__(self, np.dtype(np.float64), matrix.shape)
        self._product = lambda x: torch.from_numpy(matrix @ x)
        self.products = 0


def matrix_of(eigenvalues: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    vectors = scipy.stats.ortho_group.rvs(len(eigenvalues), random_state=seed)
    matrix = (vectors * eigenvalues) @ vectors.T
    return (matrix + matrix.T) / 2, vectors


def check(found, matrix: np.ndarray, largest: int, smallest: int, tolerance: float = 1e-8) -> None:
    exact = np.linalg.eigvalsh(matrix)[::-1]
    scale = np.abs(exact).max()
    expected = np.concatenate([exact[:largest], exact[len(exact) - smallest :]])
    np.testing.assert_allclose(found.eigenvalues, expected, rtol=0, atol=tolerance * scale)
    residuals = np.linalg.norm(matrix @ found.eigenvectors - found.eigenvectors * found.eigenvalues, axis=0)
    np.testing.assert_allclose(found.residuals, residuals, rtol=0, atol=1e-13 * scale)
    assert residuals.max() <= tolerance * scale
    np.testing.assert_allclose(found.eigenvectors.T @ found.eigenvectors, np.eye(largest + smallest), atol=1e-12)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", ["linear", "mlp", "cnn-group"])
def test_both_ends_against_lapack(name, kind):
    objective, theta = problem(*SMALL[name], chunk=11)
    operator = CurvatureOperator(objective, theta, kind)
    matrix = columns(operator).numpy()
    matrix = (matrix + matrix.T) / 2
    found = extreme_eigenpairs(operator, 5, 4)
    assert found.products == operator.products - objective.size
    check(found, matrix, 5, 4)
    for largest, smallest in ((1, 0), (0, 3), (12, 0)):
        check(extreme_eigenpairs(Dense(matrix), largest, smallest), matrix, largest, smallest)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.zeros(200),
        np.ones(200),
        -np.linspace(20, 30, 200),
        np.concatenate([[3.0, 2.0, 1.0], np.zeros(197)]),
        # More eigenvalues than a Krylov space of the usual size holds, and a null space far away from them.
        np.concatenate([np.linspace(1, 2, 60), np.zeros(140)]),
        np.concatenate([np.geomspace(1e3, 1e-9, 150), -np.geomspace(1e-9, 1, 50)]),
    ],
    ids=["zero", "identity", "negative", "rank 3", "rank 60", "12 decades"],
)
def test_spectra_that_are_hard(eigenvalues):
    matrix, _ = matrix_of(eigenvalues)
    check(extreme_eigenpairs(Dense(matrix), 5, 4), matrix, 5, 4)


@pytest.mark.parametrize(("size", "largest", "smallest"), [(1, 1, 0), (1, 0, 1), (2, 1, 1), (40, 20, 20), (70, 40, 30)])
def test_all_eigenvalues_of_few_parameters(size, largest, smallest):
    matrix, _ = matrix_of(np.linspace(-1, 2, size))
    operator = Dense(matrix)
    check(extreme_eigenpairs(operator, largest, smallest), matrix, largest, smallest, 1e-13)
    assert operator.products == size


@pytest.mark.parametrize(("largest", "smallest"), [(3, 3), (0, 0), (6, -1)])
def test_impossible_numbers_are_refused(largest, smallest):
    with pytest.raises(ModelError, match=r"valid are 1 to 5 in all\.$"):
        extreme_eigenpairs(Dense(np.eye(5)), largest, smallest)


def test_the_same_seed_gives_the_same():
    matrix, _ = matrix_of(np.concatenate([np.geomspace(10, 1e-3, 150), np.zeros(50)]))
    first, second = (extreme_eigenpairs(Dense(matrix), 3, 3, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.eigenvectors, second.eigenvectors)


@pytest.mark.parametrize(("largest", "smallest", "tolerance"), [(10, 10, 1e-8), (10, 10, 1e-4), (3, 0, 1e-10)])
def test_a_warm_start_takes_fewer_products(largest, smallest, tolerance):
    eigenvalues = np.concatenate([30 * np.arange(1.0, 301) ** -1.3, -0.8 * np.arange(1.0, 101) ** -1.1])
    matrix, _ = matrix_of(eigenvalues)
    noise = np.random.default_rng(1).standard_normal(matrix.shape) * 1e-4
    near = extreme_eigenpairs(Dense(matrix), largest, smallest)
    moved = matrix + noise + noise.T
    cold = extreme_eigenpairs(Dense(moved), largest, smallest, tolerance=tolerance)
    warm = extreme_eigenpairs(Dense(moved), largest, smallest, tolerance=tolerance, start=near)
    check(warm, moved, largest, smallest, tolerance)
    assert warm.products < 0.8 * cold.products
    with pytest.raises(ModelError, match="valid is"):
        extreme_eigenpairs(Dense(moved), largest + 1, smallest, start=near)


def test_a_warm_start_finds_an_eigenvalue_that_has_overtaken():
    eigenvalues = np.geomspace(10, 1e-3, 200)
    matrix, vectors = matrix_of(eigenvalues)
    near = extreme_eigenpairs(Dense(matrix), 1, 0)
    for overtaken in (10.5, 30.0):
        moved = matrix + (overtaken - eigenvalues[150]) * np.outer(vectors[:, 150], vectors[:, 150])
        check(extreme_eigenpairs(Dense(moved), 1, 0, start=near), moved, 1, 0)


def test_what_does_not_converge_is_refused():
    noise = np.random.default_rng(0)

    class Noisy(Dense):
        def _matvec(self, x):
            return super()._matvec(x) * (1 + 1e-4 * noise.standard_normal(len(x)))

    matrix, _ = matrix_of(np.geomspace(10, 1e-3, 100))
    with pytest.raises(VerificationError, match=r"larger tolerance\.$"):
        extreme_eigenpairs(Noisy(matrix), 3, 3, tolerance=1e-10)
    with pytest.raises(VerificationError, match=r"larger tolerance\.$"):
        extreme_eigenpairs(Dense(np.diag(np.linspace(0, 1, 800))), 30, 0, tolerance=1e-15)
