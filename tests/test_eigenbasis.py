import numpy as np
import pytest
import torch
from problems import DiesAtEveryThirdUnit, run_hessian, write_checkpoint

from quadscape.config import CNN, MLP, Curvature, Custom
from quadscape.curvature import eigenbasis as module
from quadscape.curvature.eigenbasis import Eigenbasis, EigenbasisTask, decompose, fix_signs
from quadscape.curvature.hessian import HessianMatrix
from quadscape.errors import StageError, VerificationError
from quadscape.stage import run_stage


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


EPS = {"float32": float(np.finfo("float32").eps), "float64": float(np.finfo("float64").eps)}


def quiet(line):
    pass


def random_matrix(size, spectrum, dtype="float64"):
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))
    matrix = (q * spectrum) @ q.T
    return ((matrix + matrix.T) / 2).astype(dtype)


def decomposed(matrix, driver="evd"):
    values, vectors = decompose(matrix.copy(), driver, 1)
    return values, fix_signs(vectors)


# ---------------------------------------------------------------------------------------------------------------------
# The solver


@pytest.mark.parametrize("driver", ["evd", "ev"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "spectrum",
    [
        np.linspace(-1, 3, 60),
        np.r_[np.full(20, 2.0), np.zeros(25), np.full(15, -1.0)],  # degenerate, a large null space
        np.geomspace(1, 1e-9, 60),
    ],
    ids=["simple", "degenerate", "wide"],
)
def test_pairs_reconstruct_the_matrix(driver, dtype, spectrum):
    matrix = random_matrix(60, spectrum, dtype)
    values, vectors = decomposed(matrix, driver)
    assert values.dtype == np.float64
    assert vectors.dtype == dtype
    q = vectors.astype(np.float64)
    assert np.abs((q * values) @ q.T - matrix).max() < 50 * EPS[dtype] * np.abs(spectrum).max()
    assert np.abs(q.T @ q - np.eye(60)).max() < 50 * EPS[dtype]
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(values, np.sort(spectrum)[::-1], atol=50 * EPS[dtype] * np.abs(spectrum).max())


def test_largest_component_is_positive():
    _, vectors = decomposed(random_matrix(40, np.linspace(-1, 1, 40)))
    assert (vectors[np.abs(vectors).argmax(axis=0), np.arange(40)] > 0).all()
    tied = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert np.array_equal(fix_signs(tied), [[1.0, 1.0], [-1.0, -1.0]])  # the first of equals decides
    assert np.array_equal(fix_signs(np.zeros((3, 1))), np.zeros((3, 1)))


def test_one_parameter_and_the_zero_matrix():
    values, vectors = decomposed(np.array([[-2.5]]))
    assert values.tolist() == [-2.5]
    assert vectors.tolist() == [[1.0]]
    values, vectors = decomposed(np.zeros((5, 5)))
    assert (values == 0).all()
    assert np.array_equal(vectors.T @ vectors, np.eye(5))


def test_repeats_bit_for_bit():
    matrix = random_matrix(200, np.geomspace(1, 1e-6, 200), "float32")
    first, second = decomposed(matrix), decomposed(matrix)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_matrices_that_are_not_finite_are_refused(value):
    matrix = np.eye(4)
    matrix[2, 1] = value
    with pytest.raises(VerificationError, match="not finite"):
        decompose(matrix, "evd", 1)


# ---------------------------------------------------------------------------------------------------------------------
# The stage


def tasks(folder, dtype="float32"):
    paths = folder / "checkpoint.zarr", folder / "data.zarr"
    hessian = folder / f"hessian-{dtype}"
    config = Curvature(dtype=dtype)
    if not (hessian / "manifest.json").exists():
        run_hessian(hessian, *paths, config)
    return lambda kind=EigenbasisTask: kind(hessian, *paths, config, "cpu")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eigenbasis")
    write_checkpoint(folder, CNN(factory="cnn", channels=(4, 8)), (1, 8, 8))
    return folder


@pytest.fixture(scope="module", params=["float32", "float64"])
def finished(network, request):
    make = tasks(network, request.param)
    directory = network / f"eigenbasis-{request.param}"
    manifest = run_stage(make(), directory, log=quiet)
    return directory, manifest, HessianMatrix(network / f"hessian-{request.param}").dense("float64"), request.param


def test_stored_basis_is_the_eigenbasis(finished):
    directory, manifest, matrix, dtype = finished
    basis = Eigenbasis(directory / "manifest.json")
    size = basis.size
    assert size == len(matrix) == manifest["results"]["size"]
    q = basis.vectors(0, size).astype(np.float64)
    scale = np.abs(basis.eigenvalues).max()
    assert np.abs(matrix @ q - q * basis.eigenvalues).max() < 30 * EPS[dtype] * scale
    assert np.abs(q.T @ q - np.eye(size)).max() < 30 * EPS[dtype]
    assert (np.diff(basis.eigenvalues) <= 0).all()
    assert (q[np.abs(q).argmax(axis=0), np.arange(size)] > 0).all()


def test_zero_threshold_bounds_the_error_of_every_eigenvalue(network, finished):
    directory, _, _, dtype = finished
    tasks(network, "float64")
    exact = np.linalg.eigvalsh(HessianMatrix(network / "hessian-float64").dense())[::-1]
    basis = Eigenbasis(directory)
    largest = np.abs(basis.eigenvalues - exact).max()
    assert largest <= basis.zero_threshold < 1e4 * EPS[dtype] * exact[0]
    assert basis.zero_threshold == basis.verification["zero_threshold"]


def test_reading_in_pieces(finished):
    basis = Eigenbasis(finished[0])
    whole = basis.vectors(0, basis.size)
    pieces = list(basis.tiles(37))
    assert [start for start, _ in pieces] == list(range(0, basis.size, 37))
    assert np.array_equal(np.concatenate([part for _, part in pieces], axis=1), whole)
    indices = np.array([5, 6, 7, 0, basis.size - 1, 5])
    assert np.array_equal(basis.select(indices), whole[:, indices])
    assert basis.select(np.array([], dtype=int)).shape == (basis.size, 0)


class Interrupted(DiesAtEveryThirdUnit, EigenbasisTask):
    """Counts its own calls."""

    calls = 0


def test_an_interrupted_chain_resumes_bit_for_bit(network, finished, tmp_path):
    directory, _, _, dtype = finished
    make = tasks(network, dtype)
    Interrupted.calls = 0
    for _ in range(40):
        try:
            run_stage(make(Interrupted), tmp_path / "eigenbasis", log=quiet)
            break
        except KeyboardInterrupt:
            pass
    assert Interrupted.calls > 9
    assert (tmp_path / "eigenbasis/manifest.json").read_bytes() == (directory / "manifest.json").read_bytes()


def test_blocks_of_two_decompositions_are_never_mixed(network, tmp_path, monkeypatch):
    make = tasks(network)
    Interrupted.calls = 0
    with pytest.raises(KeyboardInterrupt):
        run_stage(make(Interrupted), tmp_path / "eigenbasis", log=quiet)

    def otherwise(matrix, driver, threads):
        values, vectors = decompose(matrix, driver, threads)
        return np.nextafter(values, np.inf), vectors

    monkeypatch.setattr(module, "decompose", otherwise)
    with pytest.raises(StageError, match=r"eigenbasis was begun on a machine that rounds differently; remove"):
        run_stage(make(), tmp_path / "eigenbasis", log=quiet)


def test_a_wrong_hessian_is_found_although_it_is_decomposed_correctly(network, tmp_path, monkeypatch):
    make = tasks(network)

    def wrong(self, dtype=None):
        matrix = HessianMatrix.columns(self, 0, self.size)
        matrix[:, 40] *= 1.01
        matrix[40] = matrix[:, 40]
        return matrix

    monkeypatch.setattr(HessianMatrix, "dense", wrong)
    with pytest.raises(VerificationError, match=r"is .*, allowed is "):
        run_stage(make(), tmp_path / "eigenbasis", log=quiet)


def make_scale(shape, classes):
    """One parameter: scores are θ times the mean pixel and its negative."""

    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            x = self.scale * x.flatten(1).mean(1, keepdim=True)
            return torch.cat([x, -x, 0 * x], dim=1)

    return Scale()


def make_constant(shape, classes):
    """Scores that do not depend on the parameters: the Hessian is zero."""

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.idle = torch.nn.Parameter(torch.ones(7))

        def forward(self, x):
            return x.flatten(1)[:, :3] + 0 * self.idle.sum()

    return Constant()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("factory", "size"), [("make_scale", 1), ("make_constant", 7)])
def test_degenerate_networks_pass_the_whole_chain(tmp_path, factory, size, dtype):
    write_checkpoint(tmp_path, Custom(factory=f"test_eigenbasis:{factory}"), (1, 4, 4))
    make = tasks(tmp_path, dtype)
    run_stage(make(), tmp_path / "eigenbasis", log=quiet)
    basis = Eigenbasis(tmp_path / "eigenbasis")
    assert basis.size == size
    assert (basis.eigenvalues > 0).all() if size == 1 else (basis.eigenvalues == 0).all()
    vectors = basis.vectors(0, size)
    assert np.array_equal(vectors.T @ vectors, np.eye(size))


def test_a_network_with_a_large_null_space(tmp_path):
    write_checkpoint(tmp_path, MLP(factory="mlp", hidden=(12,)), (1, 8, 8), counts=(3, 3, 3))
    make = tasks(tmp_path)
    run_stage(make(), tmp_path / "eigenbasis", log=quiet)
    basis = Eigenbasis(tmp_path / "eigenbasis")
    # Three examples: all curvature lies in few of the 819 directions, the others are numerically zero.
    assert basis.size == 819
    assert (np.abs(basis.eigenvalues) > basis.zero_threshold).sum() < 120
