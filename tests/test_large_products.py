"""Products of matrices that are too large for one call of cuBLAS: what is called for at full size, on tensors without
memory, and that slabs change nothing but rounding."""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from quadscape.curvature import large_products, projections, symmetric_product
from quadscape.curvature.eigensolver import _filled
from quadscape.curvature.large_products import LIMIT, matrix_vector, multiply, slabs, span, square, subtract_product
from quadscape.curvature.projections import overlap_tiles, project
from quadscape.curvature.symmetric_product import TriangleProduct, checked_product, fault
from quadscape.curvature.tridiagonal_reduction import Reflectors, reduce_panel

SIZE = 104_234
GPU = torch.device("cuda")
PRODUCTS = {"mm", "addmm", "addmm_", "mv", "addmv", "addmv_", "bmm", "dot", "matmul"}


class Calls(TorchDispatchMode):
    """Names of all operations, and operands and multiplications of products."""

    def __init__(self):
        super().__init__()
        self.names, self.spans, self.work = [], [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.names.append(name)
        result = function(*args, **(kwargs or {}))
        if name in PRODUCTS:
            operands = [a for a in (*args, *(kwargs or {}).values(), result) if isinstance(a, torch.Tensor)]
            self.spans += map(span, operands)
            left = args[1] if name.startswith("add") else args[0]
            self.work += result.numel() * left.shape[-1]
        return result


@pytest.fixture
def calls(monkeypatch):
    """A GPU's tensors without memory, whose operations are recorded."""
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: np.zeros(tuple(self.shape)))
    with FakeTensorMode(), Calls() as found:
        yield found


# ---------------------------------------------------------------------------------------------------------------------
# At full size


def test_a_whole_product_would_be_beyond_the_limit(calls):
    _ = square(SIZE, torch.float32, GPU) @ torch.empty(SIZE, device=GPU)
    assert max(calls.spans) > LIMIT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [0, 50_048])
def test_no_product_of_a_panel_spans_more_than_the_limit(calls, start, dtype):
    matrix = square(SIZE, dtype, GPU)
    assert matrix.stride() == (104_256, 1)  # rows begin at multiples of 256 bytes
    reduce_panel(matrix, start, start + 8, "torch")
    assert 0 < max(calls.spans) <= LIMIT
    rest = SIZE - start
    assert calls.work > (8 + 16) * (rest - 8) ** 2  # all of it was there


def test_no_product_of_the_back_transformation_spans_more_than_the_limit(calls):
    reflectors = Reflectors(SIZE)
    reflectors.add(torch.empty(512, SIZE, device=GPU), np.ones(512), 0)
    columns = torch.empty(SIZE, 1280, device=GPU)
    reflectors.apply(columns)
    assert 0 < max(calls.spans) <= LIMIT


class Absent:
    """A basis of which nothing is read."""

    eigenvalues = np.broadcast_to(np.zeros(1), SIZE)

    def vectors(self, start, stop):
        return np.broadcast_to(np.zeros(1, dtype="float32"), (SIZE, stop - start))


@pytest.mark.parametrize(("gigabytes", "parts"), [(100, 1.01), (60, 1.01), (20, 1.3)])
def test_no_product_of_all_eigenvectors_spans_more_than_the_limit(calls, monkeypatch, gigabytes, parts):
    """And where all rows fit, half of the products are made."""
    monkeypatch.setattr(projections, "_fill", lambda tile, pieces: None)
    monkeypatch.setattr(projections, "_all_pieces", lambda basis, columns: [])
    entries = sum(tile.values.numel() for tile in overlap_tiles(Absent(), memory=gigabytes << 30, device=GPU))
    assert 0 < max(calls.spans) <= LIMIT
    assert calls.work == entries * SIZE
    assert SIZE**2 / 2 < entries < SIZE**2 / 2 * parts


def test_no_product_of_a_trajectory_spans_more_than_the_limit(calls, monkeypatch):
    monkeypatch.setattr(projections, "_fill", lambda tile, pieces: None)
    monkeypatch.setattr(projections, "_all_pieces", lambda basis, columns: [])

    def rows(part):
        return torch.empty(part.stop - part.start, SIZE, device=GPU)

    entries = sum(t.values.numel() for t in project(rows, 30_000, Absent(), memory=60 << 30, device=GPU))
    assert entries == 30_000 * SIZE
    assert 0 < max(calls.spans) <= LIMIT


# ---------------------------------------------------------------------------------------------------------------------
# Values


@given(rows=st.integers(1, 300_000), stride=st.integers(1, 300_000))
def test_slabs_are_few_and_even(rows, stride):
    found = slabs(rows, stride)
    lengths = [part.stop - part.start for part in found]
    assert [part.start for part in found[1:]] == [part.stop for part in found[:-1]]
    assert (found[0].start, found[-1].stop) == (0, rows)
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) * stride <= LIMIT
    assert len(found) == -(-rows // (LIMIT // stride))


@given(
    m=st.integers(1, 40), k=st.integers(1, 40), n=st.integers(1, 9), limit=st.integers(50, 400), turned=st.booleans()
)
def test_slabs_change_nothing_but_rounding(m, k, n, limit, turned):
    chance = torch.Generator().manual_seed(m * k)
    a = torch.randn((k, m) if turned else (m, k), dtype=torch.float64, generator=chance)
    a = a.T if turned else a
    b, x = (torch.randn(k, width, dtype=torch.float64, generator=chance) for width in (n, 1))
    left, right = (torch.randn(n, width, dtype=torch.float64, generator=chance) for width in (m, k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_products, "_is_cut", lambda matrix: True)
        patch.setattr(large_products, "LIMIT", limit)
        with Calls() as found:
            product = multiply(a, b)
        assert max(found.spans[:-1]) <= max(limit, span(b), m, m * n)
        torch.testing.assert_close(product, a @ b, rtol=0, atol=1e-13)
        rows = a.contiguous()
        torch.testing.assert_close(matrix_vector(rows, x[:, 0]), rows @ x[:, 0], rtol=0, atol=1e-13)
        target = rows.clone()
        subtract_product(target, left, right)
        torch.testing.assert_close(target, rows - left.T @ right, rtol=0, atol=1e-13)


def test_within_a_batch_rows_above_the_diagonal_are_left_out_on_a_gpu(monkeypatch):
    from measure_cases import PlainBasis, random_orthogonal

    q = random_orthogonal(90, 1)
    monkeypatch.setattr(projections, "_skips_above", lambda device: True)
    for memory in (0, 50_000, None):
        whole = np.full((90, 90), np.nan)
        for tile in overlap_tiles(PlainBasis(np.zeros(90), q), memory=memory):
            part = whole[tile.rows, tile.columns]
            assert np.isnan(part).all()
            part[...] = tile.values.numpy()
        lower = np.tril_indices(90)
        np.testing.assert_allclose(whole[lower], np.eye(90)[lower], atol=1e-14)


def test_whether_all_entries_are_finite_is_asked_once():
    with Calls() as calls:
        _filled(2000, "float32", "cpu", lambda target: target.fill_(1.0))
    assert calls.names.count("_local_scalar_dense") == 1


# ---------------------------------------------------------------------------------------------------------------------
# One triangle


def library(wrong="", dtype=np.float64):
    """What cuBLAS's symv is said to do, on a CPU, from addresses and sizes alone."""

    def symv(handle, triangle, size, alpha, a, lda, x, x_stride, beta, y, y_stride):
        assert handle == 7
        if wrong == "status":
            return 13
        number = ctypes.POINTER(ctypes.c_double if dtype == np.float64 else ctypes.c_float)

        def vector(address, length):
            return np.ctypeslib.as_array(ctypes.cast(address, number), (length,))

        # Columns in memory; of triangle 0 what lies below the diagonal is read.
        columns = np.lib.stride_tricks.as_strided(
            vector(a, (size - 1) * lda + size), (size, size), (dtype().itemsize, lda * dtype().itemsize)
        )
        assert triangle == 0
        low = np.tril(columns) if wrong != "triangle" else np.triu(columns).T
        full = low + np.tril(low, -1).T
        result = vector(y, (size - 1) * y_stride + 1)[::y_stride]
        scale, kept = (ctypes.cast(part, number)[0] for part in (alpha, beta))
        assert kept == 0  # what was there is not read
        result[:] = scale * full @ vector(x, (size - 1) * x_stride + 1)[::x_stride]
        if wrong == "bits":
            library.calls = getattr(library, "calls", 0) + 1
            result[size // 2] *= 1 + 1e-16 * (library.calls % 7)
            result[0] = np.nextafter(result[0], np.inf) if library.calls % 2 else result[0]
        if wrong == "entry":
            result[-1] += 1.0
        return 0

    return symv


def half(size=150, stride=192):
    """A symmetric matrix, and its upper triangle with rubbish left of it, in rows that lie apart."""
    chance = torch.Generator().manual_seed(0)
    whole = torch.randn(size, size, dtype=torch.float64, generator=chance)
    whole = whole + whole.T
    stored = torch.full((size, stride), 1e3, dtype=torch.float64)[:, :size]
    stored[...] = whole.triu() + 1e3 * torch.ones_like(whole).tril(-1)
    return whole, stored


def product_of(wrong=""):
    return TriangleProduct(library(wrong), lambda: 7)


@pytest.mark.parametrize("start", [0, 1, 77, 149])
def test_the_triangle_right_of_the_diagonal_is_read(start):
    whole, stored = half()
    x = torch.arange(1.0, 300.0, 2, dtype=torch.float64)[start:]
    found = product_of()(stored[start:, start:], x)
    torch.testing.assert_close(found, whole[start:, start:] @ x, rtol=1e-13, atol=1e-11)


def test_the_library_takes_float32_too():
    whole, stored = (part.float() for part in half())
    x = torch.ones(150)
    found = TriangleProduct(library(dtype=np.float32), lambda: 7)(stored, x)
    torch.testing.assert_close(found, whole @ x, rtol=1e-4, atol=1e-3)


def test_a_right_product_passes_its_check_and_a_wrong_one_does_not():
    whole, _ = half()
    padded = torch.zeros(150, 192, dtype=torch.float64)[:, :150]
    padded[...] = whole
    assert fault(product_of(), padded) is None
    assert fault(product_of(), padded[:1, :1]) is None
    assert fault(product_of(), torch.zeros(40, 40, dtype=torch.float64)) is None
    assert "off by" in fault(product_of("entry"), padded)
    assert "other bits" in fault(product_of("bits"), padded)
    assert "status 13" in fault(product_of("status"), padded)
    padded += torch.ones_like(padded).tril(-1)  # triangles that differ
    assert "off by" in fault(product_of("triangle"), padded)


class OnGPU:
    """Says that it is on a GPU."""

    is_cuda = True
    dtype = torch.float32


def test_without_the_library_the_square_is_read_and_it_is_said_once(monkeypatch):
    assert checked_product(torch.eye(3)) is matrix_vector
    monkeypatch.setattr(symmetric_product, "_library_function", lambda dtype: None)
    with pytest.warns(UserWarning, match=r"since the cuBLAS in use has no cublasSsymv_v2_64; the reduction reads"):
        assert checked_product(OnGPU()) is matrix_vector
    monkeypatch.setattr(symmetric_product, "_library_function", lambda dtype: library())
    monkeypatch.setattr(torch.cuda, "current_blas_handle", lambda: 7)
    monkeypatch.setattr(symmetric_product, "fault", lambda product, matrix: "it is off")
    with pytest.warns(UserWarning, match="since it is off; the reduction") as said:
        assert checked_product(OnGPU()) is matrix_vector
    assert len(said) == 1
    monkeypatch.setattr(symmetric_product, "fault", lambda product, matrix: None)
    assert isinstance(checked_product(OnGPU()), TriangleProduct)


def test_the_reduction_is_the_same_with_one_triangle():
    whole, _ = half(150)
    found = []
    for product in (matrix_vector, product_of()):
        matrix = torch.zeros(150, 192, dtype=torch.float64)[:, :150]
        matrix[...] = whole
        panels = [reduce_panel(matrix, a, min(150, a + 64), "torch", product) for a in (0, 64, 128)]
        found.append(np.concatenate([np.abs(panel.off_diagonal) for panel in panels]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-11)


# ---------------------------------------------------------------------------------------------------------------------
# What a machine with a GPU must have


ALONE = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"zarr", "numcodecs", "donfig", "google_crc32c", "psutil", "snakemake", "scipy",
                                  "threadpoolctl", "pandas", "pyarrow", "matplotlib", "PIL", "sklearn", "umap", "rich"}:
            raise ModuleNotFoundError(f"{name} is not there")

sys.meta_path.insert(0, Blocked())
for name in sys.argv[1:]:
    importlib.import_module(name)

import numpy as np, torch
from quadscape.curvature.tridiagonal_reduction import reduce_panel
matrix = torch.randn(100, 100, dtype=torch.float64)
matrix += matrix.T.clone()
trace = float(matrix.trace())
panels = [reduce_panel(matrix, a, b, "torch") for a, b in ((0, 64), (64, 100))]
assert abs(sum(float(panel.diagonal.sum()) for panel in panels) - trace) < 1e-10
print("done")
"""
NEEDED = (
    "quadscape.curvature.eigensolver",
    "quadscape.curvature.tridiagonal_reduction",
    "quadscape.curvature.divide_and_conquer",
    "quadscape.curvature.projections",
    "quadscape.curvature.strips",
    "quadscape.curvature.engine",
    "benchmarks.gpu_parts",
    "benchmarks.gpu_whole",
)


def test_a_gpu_needs_torch_numpy_pydantic_and_yaml_only():
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", ALONE, *NEEDED]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]
