import contextlib
import itertools
import weakref

import numpy as np
import pytest
import torch
from measure_cases import PlainBasis, random_orthogonal
from problems import DiesAtEveryThirdUnit, run_hessian, write_checkpoint

from quadscape.config.sections import CNN, MLP, Curvature, Custom
from quadscape.curvature import eigenbasis, eigensolver, verification
from quadscape.curvature.eigenbasis import EigenbasisTask
from quadscape.curvature.hessian import HessianMatrix
from quadscape.curvature.stored_basis import Eigenbasis
from quadscape.errors import DeviceMemoryError, VerificationError
from quadscape.stage.run import run_stage
from results import silent

pytestmark = pytest.mark.usefixtures("kept_exports", "one_thread")


EPS = {"float32": float(np.finfo("float32").eps), "float64": float(np.finfo("float64").eps)}


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


@contextlib.contextmanager
def forced(solver):
    """Lets the plan of a first start choose this way; `repeated` is the streamed one without a journal."""
    with pytest.MonkeyPatch.context() as patch:
        if solver != "evd":
            patch.setattr(eigensolver, "USABLE", 0.0)
        if solver == "repeated":
            planned = eigensolver.streamed_plan
            patch.setattr(eigensolver, "streamed_plan", lambda *sizes: {**planned(*sizes), "journal": False})
        yield


def way_of(plan):
    return "repeated" if not plan.get("journal", True) else plan["solver"]


@pytest.fixture(
    scope="module", params=itertools.product(["float32", "float64"], ["evd", "streamed", "repeated"]), ids="-".join
)
def finished(network, request):
    dtype, solver = request.param
    make = tasks(network, dtype)
    directory = network / f"eigenbasis-{dtype}-{solver}"
    log: list[str] = []
    with forced(solver):
        manifest = run_stage(make(), directory, log=log.append)
    assert way_of(manifest["plan"]) == solver
    assert ("LAPACK's divide and conquer" if solver == "evd" else "streamed since") in log[0]
    return directory, manifest, HessianMatrix(network / f"hessian-{dtype}").dense("float64"), dtype


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
    pieces = [basis.vectors(start, min(basis.size, start + 37)) for start in range(0, basis.size, 37)]
    assert np.array_equal(np.concatenate(pieces, axis=1), whole)
    indices = np.array([5, 6, 7, 0, basis.size - 1, 5])
    assert np.array_equal(basis.select(indices), whole[:, indices])
    assert basis.select(np.array([], dtype=int)).shape == (basis.size, 0)


class Interrupted(DiesAtEveryThirdUnit, EigenbasisTask):
    """Counts its own calls."""

    calls = 0


def test_an_interrupted_chain_resumes_bit_for_bit(network, finished, tmp_path):
    directory, undisturbed, _, dtype = finished
    make = tasks(network, dtype)
    Interrupted.calls = 0
    for _ in range(60):
        try:
            with forced(way_of(undisturbed["plan"])):
                run_stage(make(Interrupted), tmp_path / "eigenbasis", log=silent)
            break
        except KeyboardInterrupt:
            pass
    assert Interrupted.calls > 9
    assert (tmp_path / "eigenbasis/manifest.json").read_bytes() == (directory / "manifest.json").read_bytes()
    # What was needed on the way is gone; what is kept is equal.
    kept = {
        folder: {
            str(p.relative_to(folder)): p.read_bytes() for p in (folder / "store.zarr").rglob("c/**/*") if p.is_file()
        }
        for folder in (directory, tmp_path / "eigenbasis")
    }
    assert kept[directory] == kept[tmp_path / "eigenbasis"]
    assert {name.split("/")[1] for name in kept[directory]} == {
        "eigenvalues",
        "eigenvectors",
        "products",
        "generator_overlaps",
    }


def test_a_damaged_chunk_is_made_again_although_what_it_came_from_is_gone(finished):
    directory, _, _, dtype = finished
    before = (directory / "manifest.json").read_bytes()
    chunk = min((directory / "store.zarr/eigenvectors/c/0").iterdir())
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    run_stage(tasks(directory.parent, dtype)(), directory, log=silent)
    assert chunk.read_bytes() == whole
    assert (directory / "manifest.json").read_bytes() == before


def test_the_solver_is_gone_before_anything_else_is_loaded(network, tmp_path, monkeypatch):
    """And its memory with it: else images would come to lie in the matrix's segment of a GPU."""
    made, events = [], []
    make_solver, find = eigenbasis.make_solver, eigenbasis.find_generators

    def kept(*arguments):
        solver = make_solver(*arguments)
        made.append(weakref.ref(solver))
        return solver

    monkeypatch.setattr(eigenbasis, "make_solver", kept)
    monkeypatch.setattr(eigenbasis, "find_generators", lambda *a: events.append("images") or find(*a))
    monkeypatch.setattr(eigenbasis, "release_device_memory", lambda: events.append("released"))
    right = EigenbasisTask._overlaps

    def overlaps(self, *arguments):
        assert all(solver() is None for solver in made)
        events.append("overlaps")
        return right(self, *arguments)

    monkeypatch.setattr(EigenbasisTask, "_overlaps", overlaps)
    with forced("streamed"):
        run_stage(tasks(network)(), tmp_path / "eigenbasis", log=silent)
    assert made
    assert events.index("released") < events.index("overlaps")


def test_tiles_of_the_check_become_smaller_where_a_gpu_does_not_hold_them(monkeypatch):
    tried, right = [], verification.overlap_tiles

    def scarce(basis, *, memory, device):
        tried.append(memory)
        if memory > 2 << 30:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")
        return right(basis, memory=memory, device=device)

    monkeypatch.setattr(verification, "overlap_tiles", scarce)
    basis = PlainBasis(np.zeros(20), random_orthogonal(20, 0))
    assert verification._orthogonality(basis, "cpu", 10 << 30) < 1e-14
    assert tried == [10 << 30, 5 << 30, 5 << 29, 5 << 28]
    monkeypatch.setattr(verification, "_LEAST_OVERLAP_BYTES", 4 << 30)
    with pytest.raises(DeviceMemoryError, match="does not hold the products of all eigenvectors with each other"):
        verification._orthogonality(basis, "cpu", 10 << 30)


def test_a_wrong_hessian_is_found_although_it_is_decomposed_correctly(network, tmp_path, monkeypatch):
    make = tasks(network)

    def wrong(self, dtype=None):
        matrix = HessianMatrix.columns(self, 0, self.size)
        matrix[:, 40] *= 1.01
        matrix[40] = matrix[:, 40]
        return matrix

    monkeypatch.setattr(HessianMatrix, "fill", lambda self, target: target.copy_(torch.from_numpy(wrong(self))))
    with pytest.raises(VerificationError, match=r"is .*, allowed is "):
        run_stage(make(), tmp_path / "eigenbasis", log=silent)


class Scale(torch.nn.Module):
    """One parameter: scores are θ times the mean pixel and its negative."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = self.scale * x.flatten(1).mean(1, keepdim=True)
        return torch.cat([x, -x, 0 * x], dim=1)


def make_scale(shape, classes):
    return Scale()


class Constant(torch.nn.Module):
    """Scores that do not depend on the parameters: the Hessian is zero."""

    def __init__(self):
        super().__init__()
        self.idle = torch.nn.Parameter(torch.ones(7))

    def forward(self, x):
        return x.flatten(1)[:, :3] + 0 * self.idle.sum()


def make_constant(shape, classes):
    return Constant()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("factory", "size"), [("make_scale", 1), ("make_constant", 7)])
def test_degenerate_networks_pass_the_whole_chain(tmp_path, factory, size, dtype):
    write_checkpoint(tmp_path, Custom(factory=f"test_eigenbasis:{factory}"), (1, 4, 4))
    make = tasks(tmp_path, dtype)
    run_stage(make(), tmp_path / "eigenbasis", log=silent)
    basis = Eigenbasis(tmp_path / "eigenbasis")
    assert basis.size == size
    assert (basis.eigenvalues > 0).all() if size == 1 else (basis.eigenvalues == 0).all()
    vectors = basis.vectors(0, size)
    assert np.array_equal(vectors.T @ vectors, np.eye(size))


def test_a_network_with_a_large_null_space(tmp_path):
    write_checkpoint(tmp_path, MLP(factory="mlp", hidden=(12,)), (1, 8, 8), counts=(3, 3, 3))
    make = tasks(tmp_path)
    run_stage(make(), tmp_path / "eigenbasis", log=silent)
    basis = Eigenbasis(tmp_path / "eigenbasis")
    # Three examples: all curvature lies in few of the 819 directions, the others are numerically zero.
    assert basis.size == 819
    assert (np.abs(basis.eigenvalues) > basis.zero_threshold).sum() < 120
