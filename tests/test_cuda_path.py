"""What a GPU does otherwise than a CPU, on machines without one: its shapes on fake tensors, its numbers on a CPU."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from architectures import ARCHITECTURES
from fake_cuda import MEMORY, Record, fake_engine, fake_gpu
from problems import SMALL, lower_triangle, problem, relative_error
from test_architectures import assert_close, block_triangle, objective_of, reference

from benchmarks import setting
from quadscape.config.sections import Custom
from quadscape.curvature import engine, gauss_newton
from quadscape.curvature.engine import HessianEngine, alike_chunk
from quadscape.curvature.gauss_newton import GaussNewtonEngine
from quadscape.curvature.operations import affine, base, fused, normalization
from quadscape.curvature.operations.base import evenly
from quadscape.errors import StageError
from quadscape.library.loss import steady
from quadscape.network import objective as objectives
from quadscape.network.models import build_model
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterBlock
from quadscape.numerics import apply_numerics, is_failure, memory_share

pytestmark = pytest.mark.usefixtures("kept_exports", "one_thread")

# ---------------------------------------------------------------------------------------------------------------------
# Failures are no reason for a loop

FAILURES = [
    "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
    "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
    "GET was unable to find an engine to execute this computation",
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
]


@pytest.mark.parametrize("message", FAILURES)
@pytest.mark.parametrize("what", ["example_gradients", "jacobians", "columns"])
def test_a_failed_device_ends_the_work(what: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails(_):
        def call(*_):
            calls.append(1)
            raise RuntimeError(message)

        return call

    if what == "columns":
        found, theta = objective_of(*ARCHITECTURES["einsum"](), torch.float64, "cross_entropy")
    else:
        found, theta = problem(*SMALL["mlp"])
    columns = HessianEngine(found, theta)
    for module in (objectives, gauss_newton, base):
        monkeypatch.setattr(module, "vmap", fails)
    work = {
        "example_gradients": lambda: found.example_gradients(theta, slice(None)),
        "jacobians": lambda: GaussNewtonEngine(found, theta, 4).rows(found.parameters(theta), found.images),
        "columns": lambda: columns.columns(0, found.size),
    }
    with pytest.raises(RuntimeError) as raised:
        work[what]()
    assert str(raised.value) == message
    assert len(calls) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.sum().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: torch.zeros(3).add_(x),
        lambda x: x[x > 0],
        lambda x: torch.from_numpy(x.numpy()),
    ],
)
def test_what_cannot_be_batched_is_told_from_failures(function) -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.func.vmap(function)(torch.ones(2, 3))
    assert not is_failure(raised.value)


def test_classes_of_failures_come_out_whatever_they_say() -> None:
    assert is_failure(torch.OutOfMemoryError("x"))
    assert is_failure(torch.AcceleratorError("x"))


# ---------------------------------------------------------------------------------------------------------------------
# Precision of products

ROUNDING = ['torch.backends.fp32_precision = "tf32"', 'torch.set_float32_matmul_precision("medium")']


def _precisions() -> list[str]:
    backends = torch.backends
    kinds = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    return [kind.fp32_precision for kind in (*kinds, backends.mkldnn.matmul, backends.mkldnn.conv)]


@pytest.fixture
def _as_before():
    before = torch.backends.fp32_precision
    yield
    torch.backends.fp32_precision = before
    torch.set_float32_matmul_precision("highest")
    apply_numerics(1)


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("place", ["module", "function"])
@pytest.mark.parametrize("line", ROUNDING)
def test_a_factory_cannot_round_products(
    line: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"rounds_{place}_{ROUNDING.index(line)}"
    lines = {"module": "", "function": ""} | {place: line}
    (tmp_path / f"{name}.py").write_text(
        f"import torch\n{lines['module']}\ndef network(shape, classes):\n    {lines['function'] or 'pass'}\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    for tf32 in (False, True):
        apply_numerics(1, tf32)
        expected = ["tf32" if tf32 else "ieee"] * 3 + ["ieee"] * 2
        assert _precisions() == expected
        build_model(Custom(factory=f"{name}:network"), (1, 2, 2), 3)
        assert _precisions() == expected
        assert torch.backends.cuda.matmul.allow_tf32 is tf32  # of the older interface, which must not contradict


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("line", ["pass", *ROUNDING])
def test_a_user_has_the_own_precision_back(line: str) -> None:
    exec(line)
    before = _precisions()
    with steady():
        assert _precisions() == ["ieee"] * 5
    assert _precisions() == before


# ---------------------------------------------------------------------------------------------------------------------
# Plans


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(50_000, 1024, 1000), (45_000, 1024, 1000), (4096, 1024, 1024), (100, 100, 100), (1, 1, 1), (2042, 1024, 1021)],
)
def test_data_chunks_are_alike(count: int, most: int, expected: int) -> None:
    assert alike_chunk(count, most) == expected


def test_where_nothing_divides_the_last_chunk_is_hardly_shorter() -> None:
    for count in (50_021, 49_999, 3001):
        chunk = alike_chunk(count, 1024)
        assert chunk <= 1024
        assert -count % chunk < -(-count // chunk)
    assert [len(range(*span)) for span in evenly(0, 27, 13, even=True)] == [9, 9, 9]
    assert [len(range(*span)) for span in evenly(5, 32, 13, even=False)] == [13, 13, 1]
    assert list(evenly(3, 3, 13, even=True)) == []


def test_gpus_alike_have_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {}
    for name, memory in {**MEMORY, "A100": 42_298_834_944, "A10": 23_609_475_072}.items():
        with fake_gpu(memory):
            assert memory_share(torch.device("cuda")) <= memory // 4
            whole = SimpleNamespace(device=torch.device("cuda"), count=50_000, chunk=4096)
            plans[name] = HessianEngine.plan_for(whole)
    assert plans["H100"] == plans["H200"] == {"chunk": 1000, "tile": 16 << 30, "fused": 1}
    assert plans["A100"] == {"chunk": 1000, "tile": 8 << 30, "fused": 1}
    assert plans["A10"]["tile"] == 4 << 30


def test_a_machine_that_cannot_compile_has_a_plan_without_and_refuses_one_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "compiled", lambda formula: 1 / 0)
    fused.can_fuse.cache_clear()
    try:
        assert not fused.can_fuse(torch.device("cpu"))
        found, theta = problem(*SMALL["mlp"])
        with pytest.raises(StageError, match=r"begun with formulas compiled.*this machine.*remove"):
            HessianEngine(found, theta, {"chunk": 4, "tile": 1 << 20, "fused": 1})
    finally:
        fused.can_fuse.cache_clear()


# ---------------------------------------------------------------------------------------------------------------------
# The numbers of a GPU's ways, on a CPU


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU take the ways of a GPU, with limits so low that they are met; formulas are not compiled."""
    for module in (affine, base, engine, normalization):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(affine, "_SHORTEST", 2)
    monkeypatch.setattr(affine, "LARGEST_BATCH", 13)
    monkeypatch.setattr(fused, "compiled", lambda formula: formula)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", ["vgg-relu", "grouped-bottleneck"])
def test_the_ways_of_a_gpu_give_the_hessian(name: str) -> None:
    found, theta = objective_of(*ARCHITECTURES[name](), torch.float64, "cross_entropy")
    expected = reference(name, "cross_entropy")
    columns = HessianEngine(found, theta, {"chunk": 4, "tile": 1 << 14})
    assert_close(lower_triangle(columns, found.size, 64), block_triangle(expected, 64), 1e-10)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", ["cnn-group", "cnn-batch"])
def test_formulas_in_one_pass_give_the_hessian(name: str) -> None:
    found, theta = problem(*SMALL[name])
    engines = [HessianEngine(found, theta, {"chunk": 4, "tile": 1 << 14} | more) for more in ({}, {"fused": 1})]
    plain, together = (lower_triangle(each, found.size, 64) for each in engines)
    kinds = {type(operation) for operation in engines[1]._traced[4].operations.values()}
    assert fused.FusedPointwise in kinds
    assert (fused.FusedGroupNorm in kinds) == (name == "cnn-group")
    assert relative_error(together, plain) <= 1e-13


@pytest.mark.parametrize("groups", [1, 3])
def test_one_product_is_that_of_all_directions(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affine, "_SHORTEST", 4)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(groups, 5, 24 * 60, generator=generator, dtype=torch.float64)
    directions = torch.randn(7, 24 * 60, groups * 2, generator=generator, dtype=torch.float64)
    expected = torch.einsum("gjm,kmgc->kgjc", matrix, directions.unflatten(2, (groups, 2)))
    for given in (directions, affine._copied(directions), directions.movedim(0, -1).contiguous().movedim(-1, 0)):
        assert relative_error(affine._folded_product(matrix, given), expected) <= 1e-14


@pytest.mark.long
def test_compiled_formulas_are_those_of_torch() -> None:
    if not fused.can_fuse(torch.device("cpu")):
        pytest.skip("no compiler here")
    apply_numerics(1)
    generator = torch.Generator().manual_seed(0)
    sizes = {"moving": (3, 4, 2, 6), "normalised": (4, 2, 6), "inverse": (4, 2, 1), "gamma": (2, 6)}
    moving, normalised, inverse, gamma = (torch.randn(*s, generator=generator) for s in sizes.values())
    means = [torch.randn(3, 4, 2, 1, generator=generator) for _ in range(2)]
    fixed = [torch.randn(*sizes[s], generator=generator) for s in ("normalised", "inverse", "normalised")]
    for formula, tensors in (
        (fused.group_tangent, [moving, normalised, inverse, gamma]),
        (fused.group_pulled_and_bent, [moving.flip(0), gamma, moving, *means, normalised, inverse, *fixed]),
        (fused.sums_of_adjoint, [moving, normalised]),
    ):
        found, again, expected = formula(*tensors), formula(*tensors), formula.__wrapped__(*tensors)
        for one, same, other in zip(*map(_listed, (found, again, expected)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
            assert torch.equal(one, same)


def _listed(result: torch.Tensor | tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [result] if torch.is_tensor(result) else list(result)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes, launches, bytes and memory of the reference network at N = 50,000, one data chunk at a time


@pytest.fixture(scope="module")
def reference_networks() -> dict[int, Objective]:
    """By width."""
    return {width: setting.problem(width, "group", torch.float32, setting.random_data(2))[0] for width in (1, 2)}


def _channel(block: ParameterBlock) -> tuple[int, int]:
    """Columns of the channel in the middle of a weight; all of a vector."""
    if len(block.shape) == 1:
        return block.start, block.stop
    size = (block.stop - block.start) // block.shape[0]
    start = block.start + block.shape[0] // 2 * size
    return start, start + size


def _widths(record: Record) -> set[int]:
    """Directions of the convolutions that carry several, in data chunks."""
    images = {shapes[0][0] for shapes in record.shapes["aten::convolution"]}
    return {count // 1000 for count in images if count > 1000}


# Bytes that one column moves for one example at w = 2, compiled and not; in residual1.conv1 they were 4.4e6.
MOVED = {
    "conv1.weight": (5.2e6, 1.1e7),
    "norm2.weight": (4.0e6, 7.0e6),
    "residual1.conv1.weight": (2.1e6, 4.6e6),
    "conv4.weight": (1.6e5, 2.6e5),
    "linear.weight": (2.2e4, 2.2e4),
}


@pytest.mark.parametrize(("gpu", "width", "fuses"), [("H100", 1, True), ("H200", 2, True), ("H100", 2, False)])
def test_columns_on_a_gpu(gpu: str, width: int, fuses: bool, reference_networks: dict[int, Objective]) -> None:
    found = reference_networks[width]
    blocks = {block.name: block for block in found.layout.blocks}
    with fake_engine(found, 50_000, MEMORY[gpu], fuses) as columns:
        assert columns.plan["chunk"] == 1000
        most = columns.memory_bytes(256)
        assert most <= 0.9 * MEMORY[gpu]
        for name, moved in MOVED.items():
            start, stop = _channel(blocks[name])
            with Record() as record:
                result = columns.columns(start, stop)
            assert result.shape == (found.size - start, stop - start)
            assert (result.dtype, result.device.type) == (torch.float64, "cpu")
            assert record.peak <= most
            assert record.largest < 2**31
            if width == 2:
                assert record.moved.total() <= moved[0 if fuses else 1] * 1000 * (stop - start)
            assert all(shapes[0][0] <= 65_535 for shapes in record.shapes["aten::convolution"])
            carried = {count for count in _widths(record) if count > 1}
            assert max(carried, default=1) - min(carried, default=1) <= 1, "strips are not alike"
