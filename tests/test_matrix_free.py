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
    extreme_eigenpairs,
    lanczos_quadrature,
    spectral_density,
)
from quadscape.errors import ModelError, VerificationError
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterLayout, current_vector

pytestmark = pytest.mark.usefixtures("one_thread")

LOSSES = ["cross_entropy", "squared_error"]


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


@pytest.mark.parametrize(
    ("change", "count", "tolerance", "share"), [(1e-4, 5, 1e-3, 0.6), (1e-5, 10, 1e-4, 0.4), (1e-5, 10, 1e-8, 1)]
)
def test_a_warm_start_takes_fewer_products(change, count, tolerance, share):
    eigenvalues = np.concatenate([30 * np.arange(1.0, 301) ** -1.3, -0.8 * np.arange(1.0, 101) ** -1.1])
    matrix, _ = matrix_of(eigenvalues)
    noise = np.random.default_rng(1).standard_normal(matrix.shape) * change
    near = extreme_eigenpairs(Dense(matrix), count, count)
    moved = matrix + noise + noise.T
    cold = extreme_eigenpairs(Dense(moved), count, count, tolerance=tolerance)
    warm = extreme_eigenpairs(Dense(moved), count, count, tolerance=tolerance, start=near)
    check(warm, moved, count, count, tolerance)
    assert warm.products < share * cold.products
    with pytest.raises(ModelError, match="valid is"):
        extreme_eigenpairs(Dense(moved), count + 1, count, start=near)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("overtaken", [10.5, 30.0])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
def test_a_warm_start_finds_an_eigenvalue_that_has_overtaken(count, overtaken, tolerance):
    eigenvalues = np.geomspace(10, 1e-3, 200)
    matrix, vectors = matrix_of(eigenvalues)
    near = extreme_eigenpairs(Dense(matrix), count, 0)
    moved = matrix + (overtaken - eigenvalues[150]) * np.outer(vectors[:, 150], vectors[:, 150])
    check(extreme_eigenpairs(Dense(moved), count, 0, start=near, tolerance=tolerance), moved, count, 0, tolerance)


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


def test_memory_is_a_few_vectors_per_eigenpair():
    size, count = 20_000, 4
    diagonal = np.concatenate([np.linspace(1, 9, 8) ** 2, np.linspace(0, 1, size - 16), -np.linspace(1, 9, 8)])

    class Diagonal(Dense):
        def __init__(self):
            super().__init__(np.zeros((size, 0)))
            self.shape = (size, size)
            self._product = lambda x: torch.from_numpy(diagonal * x)

    tracemalloc.start()
    try:
        found = extreme_eigenpairs(Diagonal(), count, count)
        _, eigenpairs = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        lanczos_quadrature(Diagonal(), np.ones(size), 30)
        _, quadrature = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(found.eigenvalues[:count], np.sort(diagonal)[::-1][:count], atol=1e-8 * 81)
    vector = 8 * size
    # ARPACK keeps 20 vectors; what is returned are 8.
    assert eigenpairs < 80 * vector
    assert quadrature < 45 * vector


# ---------------------------------------------------------------------------------------------------------------------
# Spectral density

SPECTRUM = np.concatenate([10 * np.arange(1.0, 151) ** -1.2, -2 * np.arange(1.0, 51) ** -1.2])


def sphere(size: int, seed: int = 0) -> np.ndarray:
    v = np.random.default_rng(seed).standard_normal(size)
    return v / np.linalg.norm(v)


def test_quadrature_is_exact_for_moments_below_twice_the_steps():
    matrix, vectors = matrix_of(SPECTRUM)
    v, steps = sphere(200), 9
    nodes, weights = lanczos_quadrature(Dense(matrix), 3 * v, steps)
    assert len(nodes) == steps
    parts = (vectors.T @ v) ** 2
    for power in range(2 * steps):
        expected = parts @ (SPECTRUM / 10) ** power
        assert weights @ (nodes / 10) ** power == pytest.approx(expected, rel=1e-11)


def test_with_as_many_steps_as_parameters_it_is_the_spectrum():
    eigenvalues = np.sort(np.linspace(-1, 3, 60) ** 3)
    matrix, vectors = matrix_of(eigenvalues)
    v = sphere(60)
    for steps in (60, 100):
        nodes, weights = lanczos_quadrature(Dense(matrix), v, steps)
        np.testing.assert_allclose(nodes, eigenvalues, atol=1e-11)
        np.testing.assert_allclose(weights, (vectors.T @ v) ** 2, atol=1e-11)


@pytest.mark.parametrize(
    ("eigenvalues", "nodes"),
    [([0.0] * 30, [0.0]), ([2.0] * 30, [2.0]), ([5.0] * 3 + [-1.0] * 20 + [0.0] * 7, [-1.0, 0.0, 5.0]), ([4.0], [4.0])],
)
def test_lanczos_ends_in_an_invariant_subspace(eigenvalues, nodes):
    matrix = np.array([[4.0]]) if len(eigenvalues) == 1 else matrix_of(np.array(eigenvalues))[0]
    found = spectral_density(Dense(matrix), 3, 10)
    ended = found.weights > 1e-12
    assert (ended.sum(axis=1) == len(nodes)).all()
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-14)
    for row, kept in zip(found.nodes, ended, strict=True):
        np.testing.assert_allclose(row[kept], nodes, atol=1e-13)
    if len(set(eigenvalues)) == 1:
        assert found.trace() == pytest.approx((sum(eigenvalues), 0.0), abs=1e-12)


def exact(kernel: Kernel, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Density and counts of the known spectrum, broadened by the same kernel."""
    distance = (np.arcsinh(grid[:, None] / kernel.linear) - np.arcsinh(SPECTRUM / kernel.linear)) / kernel.width
    slope = 1 / np.sqrt(grid**2 + kernel.linear**2) / kernel.width
    return scipy.stats.norm.pdf(distance).mean(axis=1) * slope, scipy.stats.norm.cdf(distance).sum(axis=1)


def test_estimates_are_within_four_standard_errors_and_their_errors_are_honest():
    matrix, _ = matrix_of(SPECTRUM)
    kernel, steps, vectors, seeds = Kernel(0.4, 12 / 40), 40, 10, range(40)
    grid = np.array([-1.5, -0.3, -0.05, 0.0, 0.1, 0.5, 2.0, 4.0])
    density, below = exact(kernel, grid)
    scores = []
    for seed in seeds:
        found = spectral_density(Dense(matrix), vectors, steps, seed)
        estimates = [
            (found.trace(), SPECTRUM.sum()),
            (found.average(found.nodes**2), np.square(SPECTRUM).mean()),
            (found.density(grid, kernel), density),
            (found.count_below(grid, kernel), below),
        ]
        scores.append(np.concatenate([np.atleast_1d((e[0] - value) / e[1]) for e, value in estimates]))
    assert np.abs(scores[0]).max() < 4
    # Of 40 intervals of 95 % (Student's t with 9 degrees of freedom) at least 33 hold with probability 0.997.
    held = (np.abs(scores) < scipy.stats.t.ppf(0.975, vectors - 1)).sum(axis=0)
    assert held.min() >= 33, held


def test_the_density_is_that_of_the_counts_and_of_all_eigenvalues():
    matrix, _ = matrix_of(SPECTRUM)
    found, kernel = spectral_density(Dense(matrix), 3, 30), Kernel(0.3, 0.4)
    u = np.linspace(-7, 7, 2001)
    grid = 0.4 * np.sinh(u)
    density, counts = found.density(grid, kernel)[0], found.count_below(grid, kernel)[0]
    np.testing.assert_allclose(np.trapezoid(density * 0.4 * np.cosh(u), u), 1, rtol=1e-10)
    assert counts[0] == pytest.approx(0, abs=1e-9)
    assert counts[-1] == pytest.approx(200)
    np.testing.assert_allclose(np.gradient(counts, grid) / 200, density, atol=1e-3 * density.max())


def test_of_one_vector_the_error_is_unknown_and_first_vectors_stay():
    matrix, _ = matrix_of(SPECTRUM)
    one, three = (spectral_density(Dense(matrix), vectors, 12, 5) for vectors in (1, 3))
    np.testing.assert_array_equal(one.nodes[0], three.nodes[0])
    mean, error = one.trace()
    assert np.isfinite(mean)
    assert np.isnan(error)


def test_density_of_a_network_follows_its_hessian():
    objective, theta = problem(*SMALL["linear"], chunk=11)
    operator = CurvatureOperator(objective, theta)
    found = spectral_density(operator, 6, 25)
    assert operator.products == 150
    mean, error = found.trace()
    assert abs(mean - float(torch.trace(dense_hessian(objective, theta)))) < 4 * error
