"""All ways to an eigenbasis, unit by unit: against the matrix itself, LAPACK, and an undisturbed run."""

import itertools

import numpy as np
import pytest
import torch

from quadscape.curvature import divide_and_conquer, eigensolver
from quadscape.curvature.eigensolver import (
    basis_specs,
    fix_signs,
    make_solver,
    plan_solver,
)
from quadscape.curvature.solver_plan import NOMINAL_RATES, scratch_bytes, spectrum_bytes, streamed_plan
from quadscape.curvature.tridiagonal_reduction import Reflectors, panels, reduce_panel
from quadscape.errors import StageError, VerificationError
from quadscape.store import fill_value

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
EPS = {"float32": float(np.finfo("float32").eps), "float64": float(np.finfo("float64").eps)}


class Memory:
    """Arrays in memory in place of a stage's store."""

    directory = "memory"

    def __init__(self, size, dtype, plan, solver):
        specs = [*basis_specs(size, dtype, plan["block"]), *solver.scratch]
        self.arrays = {spec.name: np.full(spec.shape, fill_value(spec.dtype), spec.dtype) for spec in specs}

    def read(self, name, selection=...):
        return self.arrays[name][selection].copy()

    def write(self, arrays):
        for name, (selection, values) in arrays.items():
            assert self.arrays[name][selection].shape == values.shape
            self.arrays[name][selection] = values


def random_matrix(size, spectrum, dtype="float64", seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    matrix = (q * spectrum) @ q.T
    return ((matrix + matrix.T) / 2).astype(dtype)


WAYS = ("evd", "lapack", "torch", "repeated")
"""A library at once; streamed with LAPACK's arithmetic, with torch's, and as on a GPU, without a journal."""


def plan_of(way, size, dtype):
    if way == "evd":
        plan = plan_solver(size, dtype, CPU)
    elif way == "repeated":
        plan = {**streamed_plan(size, dtype, "cpu"), "engine": "torch", "journal": False, "leaf": 150}
    else:
        plan = {**streamed_plan(size, dtype, "cpu"), "engine": way}
    assert plan["solver"] == ("evd" if way == "evd" else "streamed")
    return {**plan, "device": "cpu", "threads": 1}


def solver_of(matrix, plan):
    return make_solver(len(matrix), str(matrix.dtype), plan, lambda target: target.copy_(torch.from_numpy(matrix)))


def solved(matrix, way, **changes):
    size, dtype = len(matrix), str(matrix.dtype)
    plan = {**plan_of(way, size, dtype), **changes}
    solver = solver_of(matrix, plan)
    memory = Memory(size, dtype, plan, solver)
    for unit in range(solver.units):
        memory.write(solver.compute(unit, memory))
    return memory.arrays["eigenvalues"], memory.arrays["eigenvectors"], memory


SPECTRA = {
    "simple": lambda n: np.linspace(-1, 3, n),
    "degenerate": lambda n: np.r_[np.full(n // 3, 2.0), np.zeros(n // 3), np.full(n - 2 * (n // 3), -1.0)],
    "power law": lambda n: np.arange(1.0, n + 1) ** -1.5 * np.where(np.arange(n) % 5 == 4, -1, 1),
    "wide": lambda n: np.geomspace(1, 1e-12, n),
    "rank one": lambda n: np.r_[7.0, np.zeros(n - 1)],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("size", [60, 301])
def test_pairs_reconstruct_the_matrix(way, dtype, spectrum, size):
    expected = SPECTRA[spectrum](size)
    matrix = random_matrix(size, expected, dtype)
    values, vectors, _ = solved(matrix, way)
    assert values.dtype == np.float64
    assert vectors.dtype == dtype
    q, scale = vectors.astype(np.float64), np.abs(expected).max()
    assert np.abs((q * values) @ q.T - matrix).max() < 30 * EPS[dtype] * scale
    assert np.abs(q.T @ q - np.eye(size)).max() < 30 * EPS[dtype]
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(values, np.sort(expected)[::-1], atol=50 * EPS[dtype] * scale)
    assert (vectors[np.abs(vectors).argmax(axis=0), np.arange(size)] > 0).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129])
def test_every_size(way, size):
    matrix = random_matrix(size, np.linspace(-2.5, 1, size), seed=size)
    values, vectors, _ = solved(matrix, way)
    np.testing.assert_allclose((vectors * values) @ vectors.T, matrix, atol=1e-14 * max(8, size) ** 0.5)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(size), atol=1e-14)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("matrix", [np.zeros((200, 200)), np.eye(200), np.diag(np.arange(200.0)), np.ones((200, 200))])
def test_special_matrices(way, dtype, matrix):
    values, vectors, _ = solved(matrix.astype(dtype), way)
    scale = max(1.0, np.abs(matrix).sum(axis=0).max())
    q = vectors.astype(np.float64)
    assert np.abs((q * values) @ q.T - matrix).max() < 30 * EPS[dtype] * scale
    assert np.abs(q.T @ q - np.eye(200)).max() < 100 * EPS[dtype]  # of 200 reflectors made from rounding errors


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("way", WAYS)
def test_scale_does_not_matter_in_single_precision(way, scale):
    matrix = (random_matrix(200, np.linspace(-1, 1, 200)) * scale).astype("float32")
    values, vectors, _ = solved(matrix, way)
    q = vectors.astype(np.float64)
    assert np.abs((q * values) @ q.T - matrix).max() < 30 * EPS["float32"] * scale


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_matrices_that_are_not_finite_are_refused(way, value):
    matrix = np.eye(70)
    matrix[2, 1] = value
    with pytest.raises(VerificationError, match="not finite"):
        solved(matrix, way)


def test_both_arithmetics_reduce_to_the_same_tridiagonal_matrix():
    matrix = random_matrix(150, np.linspace(-1, 3, 150))
    entries = []
    for engine in ("lapack", "torch"):
        work = torch.from_numpy(matrix.copy())
        found = [reduce_panel(work, start, stop, engine) for start, stop in panels(0, 150)]
        tau = np.concatenate([panel.tau for panel in found])
        entries.append([np.concatenate([getattr(p, name) for p in found]) for name in ("diagonal", "off_diagonal")])
        q = torch.eye(150, dtype=torch.float64)
        reflectors = Reflectors(150)
        for start, stop in ((0, 64), (64, 150)):
            reflectors.add(work[start:stop, start:], tau[start:stop], start)
        reflectors.apply(q)
        d, e = entries[-1]
        t = np.diag(d) + np.diag(e[:-1], 1) + np.diag(e[:-1], -1)
        assert np.abs(q.numpy() @ t @ q.numpy().T - matrix).max() < 1e-14
    np.testing.assert_allclose(entries[0], entries[1], atol=1e-13)


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_unit_resumes_bit_for_bit(way, dtype):
    """A new process before every unit: what it needs is repeated from what is stored."""
    matrix = random_matrix(333, SPECTRA["power law"](333), dtype)
    _, _, undisturbed = solved(matrix, way)
    plan = plan_of(way, 333, dtype)
    memory = Memory(333, dtype, plan, solver_of(matrix, plan))
    for unit in range(solver_of(matrix, plan).units):
        memory.write(solver_of(matrix, plan).compute(unit, memory))
    for name, values in undisturbed.arrays.items():
        assert memory.arrays[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("way", WAYS[1:])
def test_single_units_can_be_repeated_in_any_order(way):
    """As after damage: the units that are missing, and no others, by one process."""
    matrix = random_matrix(400, SPECTRA["power law"](400), "float32")
    _, _, memory = solved(matrix, way, columns=64)
    plan = {**plan_of(way, 400, "float32"), "columns": 64}
    expected = {name: values.copy() for name, values in memory.arrays.items()}
    units = solver_of(matrix, plan).units
    for missing in ([1, 4], [0, 3, 5, 9], [2, units - 1], [units - 2, 6], [8, 2]):
        solver = solver_of(matrix, plan)
        for unit in missing:
            memory.write(solver.compute(unit, memory))
        for name, values in expected.items():
            assert memory.arrays[name].tobytes() == values.tobytes(), (missing, name)


def test_without_a_journal_nothing_of_the_size_of_the_matrix_is_stored_on_the_way():
    matrix = random_matrix(333, SPECTRA["power law"](333))
    scratch = {way: {spec.name for spec in solver_of(matrix, plan_of(way, 333, "float64")).scratch} for way in WAYS[1:]}
    assert scratch["torch"] == scratch["repeated"] | {"reflectors", "updates"}
    plan = streamed_plan(104_234, "float32", "cuda")
    solver = make_solver(104_234, "float32", {**plan, "device": "cuda", "threads": 1}, lambda target: None)
    assert sum(spec.nbytes for spec in solver.scratch) == scratch_bytes(104_234, "float32", plan) < 1e9
    journalled = scratch_bytes(104_234, "float32", {**plan, "journal": True})
    assert journalled == pytest.approx(43.5e9 + scratch_bytes(104_234, "float32", plan), rel=1e-3)
    # A GPU that holds so much works for long, and then the bytes are a small part of it.
    assert streamed_plan(190_000, "float32", "cuda")["journal"]
    assert all(streamed_plan(size, "float32", "cpu")["journal"] for size in (100, 104_234))


def test_the_journal_does_not_change_the_basis():
    matrix = random_matrix(333, SPECTRA["power law"](333), "float32")
    (values, vectors, _), (others, repeated, _) = (
        solved(matrix, way, leaf=150, columns=64) for way in ("torch", "repeated")
    )
    assert np.array_equal(values, others)
    assert np.abs(vectors - repeated).max() < 30 * EPS["float32"]  # blocks of reflectors may be cut otherwise


def test_a_reduction_that_does_not_repeat_is_refused():
    matrix = random_matrix(300, SPECTRA["power law"](300))
    _, _, memory = solved(matrix, "repeated", columns=64)
    plan = {**plan_of("repeated", 300, "float64"), "columns": 64}
    memory.arrays["tridiagonal"][0, 70] = np.nextafter(memory.arrays["tridiagonal"][0, 70], np.inf)
    for unit in (3, solver_of(matrix, plan).units - 1):
        with pytest.raises(StageError, match=r"memory was begun on a machine that rounds differently; remove"):
            solver_of(matrix, plan).compute(unit, memory)


def test_plans_of_before_there_was_a_choice_go_on():
    matrix = random_matrix(200, SPECTRA["simple"](200))
    _, vectors, _ = solved(matrix, "lapack")
    plan = plan_of("lapack", 200, "float64")
    del plan["journal"], plan["leaf"]
    memory = Memory(200, "float64", plan, solver_of(matrix, plan))
    for unit in range(solver_of(matrix, plan).units):
        memory.write(solver_of(matrix, plan).compute(unit, memory))
    assert np.array_equal(memory.arrays["eigenvectors"], vectors)


def test_memory_of_what_is_dropped_is_given_back(monkeypatch):
    """With the journal after the reduction; without one only when the matrix has to be made again."""
    given = []
    monkeypatch.setattr(eigensolver, "release_device_memory", lambda: given.append(True))
    matrix = random_matrix(200, SPECTRA["simple"](200))
    solved(matrix, "lapack", columns=64)
    assert len(given) == 1
    _, _, memory = solved(matrix, "repeated", columns=64)
    assert len(given) == 1
    plan = {**plan_of("repeated", 200, "float64"), "columns": 64}
    solver = solver_of(matrix, plan)
    solver.compute(3, memory)
    solver.compute(1, memory)
    assert len(given) == 2


def test_largest_component_is_positive():
    tied = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert np.array_equal(fix_signs(tied), [[1.0, 1.0], [-1.0, -1.0]])  # the first of equals decides
    assert np.array_equal(fix_signs(np.zeros((3, 1))), np.zeros((3, 1)))


def test_blocks_of_two_decompositions_are_never_mixed(monkeypatch):
    matrix = random_matrix(100, np.linspace(-1, 1, 100))
    _, _, memory = solved(matrix, "evd")
    original = eigensolver.decompose

    def otherwise(matrix, threads):
        values, vectors = original(matrix, threads)
        return np.nextafter(values, np.inf), vectors

    monkeypatch.setattr(eigensolver, "decompose", otherwise)
    solver = solver_of(matrix, plan_of("evd", 100, "float64"))
    with pytest.raises(StageError, match=r"memory was begun on a machine that rounds differently; remove"):
        solver.compute(1, memory)


# ---------------------------------------------------------------------------------------------------------------------
# Choosing


def test_the_way_follows_from_size_and_memory(monkeypatch):
    def chosen(size, gigabytes, dtype="float32"):
        monkeypatch.setattr(eigensolver, "device_memory", lambda device: gigabytes << 30)
        return plan_solver(size, dtype, CPU)["solver"]

    assert chosen(26_490, 24) == "evd"  # 2.8 GB, three times
    assert chosen(26_490, 8) == "streamed"
    assert chosen(26_490, 16, "float64") == "streamed"
    assert chosen(104_234, 1000) == "streamed"  # beyond LAPACK's 32-bit workspace
    assert chosen(1, 1) == "evd"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 100, 6000, 26_490, 104_234, 400_000])
def test_plans_keep_to_one_matrix_and_whole_panels(size, dtype):
    for device in ("cpu", "cuda"):
        plan = streamed_plan(size, dtype, device)
        assert plan["columns"] % 64 == 0
        assert plan["block"] % 16 == 0
        solver = make_solver(size, dtype, {**plan, "device": device, "threads": 1}, lambda target: None)
        matrix = size**2 * np.dtype(dtype).itemsize
        if size >= 6000:
            # Without a journal the whole matrix stays beside two ranges, one of which is being stored; only large ones
            # go this way on a GPU.
            assert solver.memory_bytes() < (1.35 if plan["journal"] else 1.65 if size < 30_000 else 1.2) * matrix
            assert spectrum_bytes(size, dtype, device) < (1.1 if size > 20_000 else 1.6) * matrix
            if device == "cuda" and 26_490 <= size <= 104_234:
                assert plan["columns"] % 256 == 0  # whole blocks of reflectors
        seconds = solver.seconds(NOMINAL_RATES[device])
        assert len(seconds) == solver.units
        assert min(seconds) >= 0
        if size <= 104_234:
            assert max(seconds) < 3 * 60


def test_estimated_time_is_cubic():
    found = {}
    for way, size in itertools.product(("evd", "lapack"), (20_000, 40_000)):
        plan = {**plan_of("lapack", size, "float32")} if way == "lapack" else {"solver": "evd", "block": 1024}
        solver = make_solver(size, "float32", {**plan, "device": "cpu", "threads": 1}, lambda target: None)
        found[way, size] = sum(solver.seconds(NOMINAL_RATES["cpu"]))
    for way in ("evd", "lapack"):
        assert 7 < found[way, 40_000] / found[way, 20_000] < 8.5


def test_memory_of_the_tree_is_linear():
    fields = len(divide_and_conquer.FIELDS)
    plan = {**streamed_plan(104_234, "float32", "cpu"), "device": "cpu", "threads": 1}
    solver = make_solver(104_234, "float32", plan, lambda target: None)
    levels = next(spec for spec in solver.scratch if spec.name == "levels")
    assert levels.nbytes == 8 * fields * 104_234 * (1 + divide_and_conquer.depth(104_234))
    assert levels.nbytes < 0.01 * 4 * 104_234**2
