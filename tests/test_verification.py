import numpy as np
import pytest

from quadscape.curvature import verification as module
from quadscape.curvature.costs import SIGN_PROBES
from quadscape.curvature.verification import (
    DEFLATED_SEED,
    PROBE_SEED,
    BasisEvidence,
    Checks,
    Evidence,
    Forced,
    Spots,
    deflated_indices,
    project_out,
    sampled_ranks,
    sign_probes,
    solver_growth,
    verify_eigenbasis,
    verify_hessian,
)
from quadscape.errors import VerificationError
from quadscape.network.parameters import ParameterBlock, ParameterLayout

SIZE, BLOCK = 300, 32
EPS = {"float32": float(np.finfo("float32").eps), "float64": float(np.finfo("float64").eps)}
LAYOUT = ParameterLayout(
    (
        ParameterBlock("first.weight", "first", (200,), 0, 200),
        ParameterBlock("second.weight", "second", (90,), 200, 290),
        ParameterBlock("second.bias", "second", (10,), 290, 300),
    )
)


def spectrum():
    """A power law with a negative part: λ from 10 to about 1e-4 of it, a tenth negative and smaller still."""
    values = 10 * np.arange(1, SIZE + 1) ** -1.5
    values[-30:] *= -1
    return np.sort(values)[::-1]


@pytest.fixture(scope="module")
def exact():
    q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((SIZE, SIZE)))
    matrix = (q * spectrum()) @ q.T
    return (matrix + matrix.T) / 2


def strips_of(matrix, dtype):
    for start in range(0, SIZE, BLOCK):
        yield start, matrix[start:, start : start + BLOCK].astype(dtype)


def rounding(exact, seed, size=1.0):
    """Independent relative errors of about float32's epsilon in every entry."""
    return exact * (1 + size * EPS["float32"] * np.random.default_rng(seed).standard_normal(exact.shape))


def check_hessian(exact, stored, dtype):
    probes = sign_probes(SIZE, SIGN_PROBES, PROBE_SEED)
    return verify_hessian(strips_of(stored, dtype), LAYOUT, probes, exact @ probes, rounding(exact, 5) @ probes, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Hessian


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_right_hessian_passes_and_its_error_is_measured(exact, dtype):
    noise = np.random.default_rng(2).standard_normal(exact.shape)
    stored = (exact * (1 + 3 * EPS[dtype] * (noise + noise.T))).astype(dtype)
    numbers = check_hessian(exact, stored, dtype)
    error = stored.astype(np.float64) - exact
    assert numbers["error_frobenius"] == pytest.approx(np.linalg.norm(error), rel=0.5)
    assert 0.9 * np.linalg.norm(error, 2) <= numbers["error_norm"] <= numbers["error_frobenius"]
    assert numbers["trace"] == pytest.approx(np.trace(exact), rel=1e-5)
    assert numbers["frobenius"] == pytest.approx(np.linalg.norm(exact), rel=1e-5)
    assert abs(numbers["trace_estimate"] - np.trace(exact)) < 3 * numbers["trace_standard_error"]
    assert numbers["amplification"] == pytest.approx(1.0, rel=0.3)


def wrong_column(matrix):
    matrix[:, 123] *= 1.001
    matrix[123] = matrix[:, 123]


def wrong_below_the_block(matrix):
    matrix[280, 5] += 1e-3
    matrix[5, 280] += 1e-3


def wrong_scale(matrix):
    matrix *= 1.0001


def swapped_columns(matrix):
    matrix[:, [11, 70]] = matrix[:, [70, 11]]


def wrong_last_column(matrix):
    matrix[-1, -1] *= 1.01


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "plant", [wrong_column, wrong_below_the_block, wrong_scale, swapped_columns, wrong_last_column]
)
def test_planted_errors_in_the_hessian_are_found(exact, plant, dtype):
    stored = exact.copy()
    plant(stored)
    with pytest.raises(VerificationError, match=r"error .* is \S+, allowed is \S+"):
        check_hessian(exact, stored, dtype)


def test_one_missing_chunk_is_found(exact):
    stored = exact.copy()
    stored[200:232, 32:64] = np.nan
    with pytest.raises(VerificationError, match="is nan, allowed"):
        check_hessian(exact, stored, "float64")


def test_a_wrong_layer_of_small_curvature_is_found():
    scale = np.r_[np.ones(200), np.full(90, 1e-5), np.full(10, 1e-5)]
    generator = np.random.default_rng(4)
    half = generator.standard_normal((SIZE, SIZE)) / SIZE**0.5
    exact = scale[:, None] * (half @ half.T) * scale
    stored = exact.copy()
    stored[290:, 290:] *= 1.5  # far below the norm of the rest …
    assert np.linalg.norm(stored - exact) < 1e-8 * np.linalg.norm(exact)
    stored[:290, 290:] *= 1.5
    stored[290:, :290] *= 1.5
    assert np.linalg.norm(stored - exact) < 1.2e-5 * np.linalg.norm(exact)
    with pytest.raises(VerificationError, match=r"rows of second\.bias"):
        check_hessian(exact, stored, "float32")


def test_asymmetry_of_a_diagonal_block_is_found(exact):
    stored = exact.copy()
    difference = np.zeros_like(exact)
    difference[3, 20], difference[20, 3] = 1e-2, -1e-2  # the average of both triangles hides it from the products
    with pytest.raises(VerificationError, match="asymmetry"):
        check_hessian(exact, stored + difference, "float64")


def test_a_float32_hessian_that_drowned_in_cancellation_is_refused(exact):
    probes = sign_probes(SIZE, SIGN_PROBES, PROBE_SEED)
    stored = rounding(exact, 3, 2e5)
    stored = (stored + stored.T) / 2
    with pytest.raises(VerificationError, match=r"set curvature\.dtype to float64") as caught:
        verify_hessian(
            strips_of(stored, "float32"), LAYOUT, probes, exact @ probes, rounding(exact, 5, 2e5) @ probes, "float32"
        )
    assert "Frobenius norm of the error against" not in str(caught.value)  # the network's rounding, not the engine's


def test_amplified_rounding_is_allowed_in_proportion(exact):
    probes = sign_probes(SIZE, SIGN_PROBES, PROBE_SEED)
    stored = rounding(exact, 3, 500.0)
    stored = (stored + stored.T) / 2
    with pytest.raises(VerificationError):
        check_hessian(exact, stored, "float32")
    numbers = verify_hessian(
        strips_of(stored, "float32"), LAYOUT, probes, exact @ probes, rounding(exact, 5, 500.0) @ probes, "float32"
    )
    assert numbers["amplification"] == pytest.approx(500, rel=0.3)


def test_zero_hessian():
    zero = np.zeros((SIZE, SIZE))
    numbers = check_hessian(zero, zero, "float32")
    assert numbers["error_norm"] == numbers["frobenius"] == numbers["trace_standard_error"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Eigenbasis


class ArrayBasis:
    def __init__(self, values, vectors):
        self.eigenvalues, self._vectors = values, vectors

    @property
    def size(self):
        return len(self.eigenvalues)

    def vectors(self, start, stop):
        return self._vectors[:, start:stop]

    def select(self, indices):
        return self._vectors[:, indices]


def check_basis(exact, values, vectors, dtype, hessian_error=0.0, tile=64, spots=None, forced=None, memory=1 << 18):
    basis = ArrayBasis(values, vectors.astype(dtype))
    norm = np.linalg.norm(exact)
    hessian = {
        "trace": float(np.trace(exact)),
        "frobenius": float(norm),
        "error_frobenius": hessian_error * norm,
        "error_norm": hessian_error * norm,
    }
    probes = sign_probes(SIZE, SIGN_PROBES, PROBE_SEED)
    chosen = basis.select(sampled_ranks(SIZE)).astype(np.float64)
    left = project_out(basis.select(deflated_indices(values)), sign_probes(SIZE, SIGN_PROBES, DEFLATED_SEED))
    evidence = BasisEvidence(
        Evidence(probes, exact @ probes),
        Evidence(chosen, exact @ chosen),
        Evidence(left, exact @ left),
        spots or Spots(exact[:, :5], exact[:, :5]),
        forced or {},
    )
    return verify_eigenbasis(basis, hessian, evidence, dtype, tile=tile, memory=memory)


def right_basis(exact, dtype):
    values, vectors = np.linalg.eigh(exact.astype(dtype))
    return values[::-1].astype(np.float64), vectors[:, ::-1].copy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_right_eigenbasis_passes(exact, dtype):
    values, vectors = right_basis(exact, dtype)
    numbers = check_basis(exact, values, vectors, dtype)
    for name in ("trace", "square"):
        deviation = abs(numbers[f"deflated_{name}"] - numbers[f"deflated_{name}_estimate"])
        assert deviation < 3 * numbers[f"deflated_{name}_standard_error"]
    assert np.abs(values - spectrum()).max() <= numbers["zero_threshold"] < 100 * EPS[dtype] * 10
    assert set(numbers["residuals"]) == {str(rank) for rank in sampled_ranks(SIZE)}
    assert numbers["deflated"] == 30
    at_once = check_basis(exact, values, vectors, dtype, tile=300, memory=None)
    assert at_once["orthogonality"] == pytest.approx(numbers["orthogonality"], rel=0.5)
    stored = vectors.astype(dtype)
    assert numbers["orthogonality"] == pytest.approx(np.abs(stored.T @ stored - np.eye(SIZE)).max(), rel=0.5)


def forced_by(exact, deviation, off=0.0):
    """Directions whose products are known, but for an error."""
    u = np.linalg.qr(np.random.default_rng(3).standard_normal((SIZE, 2)))[0]
    expected = exact @ u
    return {"scale": Forced(u, exact @ u, expected * (1 + off), deviation)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_invariances_force_is_compared_with_products_and_with_the_basis(exact, dtype):
    values, vectors = right_basis(exact, dtype)
    checks = check_basis(exact, values, vectors, dtype, forced=forced_by(exact, 0.0))["checks"]
    assert sum("scale generators" in name for name in checks) == 2
    with pytest.raises(VerificationError, match="deviation of Hu from what scale generators u force"):
        check_basis(exact, values, vectors, dtype, forced=forced_by(exact, 0.0, off=1e-3))
    # What holds only approximately is compared approximately.
    check_basis(exact, values, vectors, dtype, forced=forced_by(exact, 1e-3, off=1e-3))
    # A basis that is wrong in the bulk, where neither sampled ranks nor the top see it.
    damaged = vectors.copy()
    damaged[:, [101, 140]] = damaged[:, [140, 101]]
    with pytest.raises(VerificationError, match=r"largest error \|QΛQᵀu − Hu\| along scale generators"):
        check_basis(exact, values, damaged, dtype, forced=forced_by(exact, 0.0))


def test_a_wrong_column_is_found_and_the_numerical_zero_includes_what_columns_show(exact):
    values, vectors = right_basis(exact, "float64")
    stored = exact[:, :5].copy()
    stored[7, 3] += 1e-6
    with pytest.raises(VerificationError, match="error of a column of the Hessian against float64 is 1e-06"):
        check_basis(exact, values, vectors, "float64", spots=Spots(stored, exact[:, :5]))
    error = 1e-8
    numbers = check_basis(
        exact, values, vectors, "float64", hessian_error=error, spots=Spots(stored * 0 + exact[:, :5], exact[:, :5])
    )
    assert numbers["column_error"] == 0.0
    assert numbers["zero_threshold"] >= error * np.linalg.norm(exact) * 0.999
    stored[7, 3] = exact[7, 3] + 1.5 * error * np.linalg.norm(exact)
    larger = check_basis(exact, values, vectors, "float64", hessian_error=error, spots=Spots(stored, exact[:, :5]))
    assert larger["zero_threshold"] > 1.4 * numbers["zero_threshold"]


def swapped_pair(values, vectors):
    vectors[:, [101, 140]] = vectors[:, [140, 101]]  # in the bulk, and neither is a sampled rank


def not_orthogonal(values, vectors):
    vectors[:, 150] += 1e-3 * vectors[:, 149]


def not_normalised(values, vectors):
    vectors[:, 60] *= 1.01


def scaled_values(values, vectors):
    values *= 1.001


def scaled_vectors(values, vectors):
    vectors *= 1.001


def unordered(values, vectors):
    values[[7, 8]] = values[[8, 7]]
    vectors[:, [7, 8]] = vectors[:, [8, 7]]


def small_eigenvalues(values, vectors):
    values[60:240] *= 1.5


def repeated_vector(values, vectors):
    vectors[:, 201] = vectors[:, 202]


def not_a_number(values, vectors):
    vectors[17, 222] = np.nan


def value_not_a_number(values, vectors):
    values[222] = np.nan


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (swapped_pair, "largest estimated residual of all"),
        (not_orthogonal, "QᵀQ"),
        (not_normalised, "QᵀQ"),
        (scaled_values, "residual .* of the sampled"),
        (scaled_vectors, "QᵀQ"),
        (unordered, "increase between consecutive"),
        (small_eigenvalues, "deflated trace"),
        (repeated_vector, "QᵀQ"),
        (not_a_number, "is nan, allowed"),
        (value_not_a_number, "not finite is 1, allowed is 0"),
    ],
)
def test_planted_errors_in_the_eigenbasis_are_found(exact, plant, message, dtype):
    values, vectors = right_basis(exact, dtype)
    plant(values, vectors)
    with pytest.raises(VerificationError, match=message):
        check_basis(exact, values, vectors, dtype)


def test_small_eigenvalues_are_seen_by_the_deflated_estimates_only_after_deflation(exact):
    """Without deflation the same error drowns in the sampling error of the top: that is why it is deflated."""
    values, vectors = right_basis(exact, "float64")
    true = values.copy()
    small_eigenvalues(values, vectors)
    shift = abs(values.sum() - true.sum())
    undeflated_error = np.sqrt(2 * np.square(true).sum() / SIGN_PROBES)
    assert shift < module.STANDARD_ERRORS * undeflated_error
    with pytest.raises(VerificationError) as caught:
        check_basis(exact, values, vectors, "float64")
    assert "deflated trace from its Hutchinson estimate" in str(caught.value)


def test_a_swapped_top_pair_is_found_by_the_sampled_residuals(exact):
    values, vectors = right_basis(exact, "float64")
    vectors[:, [0, 1]] = vectors[:, [1, 0]]
    with pytest.raises(VerificationError, match="sampled eigenpairs is"):
        check_basis(exact, values, vectors, "float64")


def test_the_error_of_the_hessian_widens_zero_and_nothing_else(exact):
    values, vectors = right_basis(exact, "float64")
    narrow = check_basis(exact, values, vectors, "float64")
    wide = check_basis(exact, values, vectors, "float64", hessian_error=1e-7)
    assert wide["zero_threshold"] == pytest.approx(1e-7 * np.linalg.norm(exact), rel=1e-3)
    assert wide["orthogonality"] == narrow["orthogonality"]


# ---------------------------------------------------------------------------------------------------------------------
# Their parts


def test_hutchinson_estimates_spread_as_claimed(exact):
    """Over 400 seeds: unbiased within four standard errors, with the stated variance, and far inside the threshold."""
    found, squares, norms, fourth = [], [], [], []
    for seed in range(400):
        z = sign_probes(SIZE, SIGN_PROBES, seed)
        y = exact @ z
        found.append(np.einsum("pm,pm->", z, y) / SIGN_PROBES)
        squares.append(np.square(y).sum() / SIGN_PROBES)
        norms.append(module._root_mean_square(y))
        fourth.append(module._fourth_norm(y))
    off_diagonal = np.square(exact).sum() - np.square(np.diag(exact)).sum()
    for values, truth, error in (
        (found, np.trace(exact), np.sqrt(2 * off_diagonal / SIGN_PROBES)),
        (squares, np.square(exact).sum(), np.sqrt(2 * (spectrum() ** 4).sum() / SIGN_PROBES)),
    ):
        assert abs(np.mean(values) - truth) < 4 * error / 20
        assert np.std(values) == pytest.approx(error, rel=0.15)
        assert np.abs(np.array(values) - truth).max() < module.STANDARD_ERRORS * error
    assert np.mean(np.square(norms)) == pytest.approx(np.square(exact).sum(), rel=0.1)
    assert np.mean(np.array(fourth) ** 4) == pytest.approx((spectrum() ** 4).sum(), rel=0.2)


def test_estimated_residuals_stay_below_their_inflated_bound():
    """Right pairs never fail by chance: the largest of many χ² means against the stated inflation."""
    size = 100_000
    generator = np.random.default_rng(0)
    means = generator.chisquare(SIGN_PROBES, (20, size)) / SIGN_PROBES
    tail = np.log(size / module.UNLUCKY)
    inflation = 1 + 2 * np.sqrt(tail / SIGN_PROBES) + 2 * tail / SIGN_PROBES
    assert means.max() < inflation < 2.5 * means.max()


def test_probes_are_signs_and_extend():
    probes = sign_probes(50, 4, 3)
    assert set(np.unique(probes)) == {-1.0, 1.0}
    assert np.array_equal(sign_probes(50, 2, 3), probes[:, :2])
    assert not np.array_equal(sign_probes(50, 4, 4), probes)


@pytest.mark.parametrize("size", [1, 2, 5, 300, 104_234])
def test_sampled_ranks_cover_both_ends(size):
    ranks = sampled_ranks(size)
    assert ranks[0] == 0
    assert ranks[-1] == size - 1
    assert (np.diff(ranks) > 0).all()
    assert len(ranks) <= min(size, 24)
    assert np.array_equal(ranks, (size - 1 - ranks)[::-1])


def test_deflated_indices_are_the_largest_magnitudes():
    assert deflated_indices(np.linspace(5, -20, 30)).tolist() == [27, 28, 29]
    assert deflated_indices(np.ones(5)).tolist() == []


def test_checks_name_number_and_threshold():
    checks = Checks("The result")
    checks.require("first", 1.0, 2.0)
    checks.finish()
    checks.require("second", 3.25, 2.0)
    checks.require("third", float("nan"), 2.0)
    with pytest.raises(
        VerificationError, match=r"result failed its verification: second is 3\.25, allowed is 2; third is nan"
    ):
        checks.finish()


def test_solver_bound_is_meant_for_lapack():
    """LAPACK on clustered and graded spectra stays ten times below it; it is no licence for worse solvers."""
    for size in (100, 400):
        matrix = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
        matrix = matrix @ np.diag(np.geomspace(1, 1e-4, size).astype(np.float32)) @ matrix.T
        matrix = (matrix + matrix.T) / 2
        values, vectors = np.linalg.eigh(matrix)
        residual = np.linalg.norm(matrix.astype(float) @ vectors - vectors.astype(float) * values, axis=0).max()
        assert residual < solver_growth(size) * EPS["float32"] * np.abs(values).max() / 3
