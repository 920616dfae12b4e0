"""The benchmarks on tiny problems: that they run, and that what they report is consistent and of right columns."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import dense_hessian, relative_error
from torch.utils.flop_counter import FlopCounterMode

import benchmarks.count
import benchmarks.dag
import benchmarks.eigenbasis
import benchmarks.hessian
import benchmarks.lines
import benchmarks.overlap
import benchmarks.scale
import benchmarks.scaling
import benchmarks.tiles
import benchmarks.topk
import benchmarks.trajectory
from benchmarks import peers, setting
from quadscape.config.sections import CNN
from quadscape.curvature import projections
from quadscape.curvature.engine import HessianEngine
from quadscape.network.models import build_model, initial_vector
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterLayout, assign_vector

pytestmark = pytest.mark.usefixtures("kept_exports")

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--pixels", "8"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves a good measurement alone, large products and many passes, is left out."""
    monkeypatch.setattr(setting.gemm_rate, "__defaults__", ("cpu", 256, torch.float32))
    monkeypatch.setattr(benchmarks.hessian, "_OURS_SECONDS", 0.0)
    monkeypatch.setattr(benchmarks.hessian, "_PEER_SECONDS", 0.1)


def small(dtype: torch.dtype, count: int = 6) -> tuple[Objective, torch.Tensor]:
    config, shape = CNN(factory="cnn", channels=(4, 8), normalization="group"), (3, 8, 8)
    images, labels = setting.random_data(count, shape)
    theta = initial_vector(config, shape, 10, 1)
    model = build_model(config, shape, 10).double()
    assign_vector(model, theta)
    model = model.to(dtype)
    return Objective(model, ParameterLayout.of(model), images.to(dtype), labels, "cross_entropy", count), theta


def last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("block", [1, 16, 100, 5000])
def test_sampled_strips_stand_for_all_columns(block: int) -> None:
    layout = small(torch.float32)[0].layout
    strips = setting.sampled_strips(layout, block)
    assert sum(strip.weight for strip in strips) == pytest.approx(layout.size)
    assert all(strip.start % block == 0 and strip.stop == min(strip.start + block, layout.size) for strip in strips)
    for tensor in layout.blocks:
        assert any(strip.start < tensor.stop and strip.stop > tensor.start for strip in strips)
    columns = setting.reference_sample(layout, strips, 60)
    assert len(columns) >= min(60, sum(strip.stop - strip.start for strip in strips))
    assert columns == sorted(set(columns))
    assert {setting.owner(layout, column).name for column in columns} == {tensor.name for tensor in layout.blocks}


def test_reference_columns_are_those_of_the_hessian() -> None:
    objective, theta = small(torch.float64)
    objective.chunk = 4
    hessian = dense_hessian(objective, theta)
    for column, found in zip((0, 40, 700), setting.reference_columns(objective, theta, (0, 40, 700)), strict=True):
        assert relative_error(found, hessian[column:, column]) < 1e-12


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", peers.PEERS)
def test_peers_compute_whole_columns(kind: type[peers.Peer], channels_last: bool) -> None:
    if kind is peers.Curvlinops and (reason := peers.package_missing("curvlinops")):
        pytest.skip(reason)
    exact, theta = small(torch.float64)
    hessian = dense_hessian(exact, theta)
    objective, _ = small(torch.float32)
    peer = kind(objective, theta, channels_last)
    for tensor in objective.layout.blocks:
        offsets = list(range(min(3, tensor.stop - tensor.start)))
        found = peer.columns(tensor, offsets).double()
        assert relative_error(found, hessian[:, [tensor.start + offset for offset in offsets]]) < 1e-4


@pytest.mark.slow
def test_a_compiled_peer_computes_the_same() -> None:
    if reason := peers.package_missing("curvlinops") or peers.compiler_missing():
        pytest.skip(reason)
    objective, theta = small(torch.float32, 2)
    tensor = objective.layout.blocks[0]
    eager = peers.Curvlinops(objective, theta, False).columns(tensor, [0, 5])
    compiled = peers.CompiledCurvlinops(objective, theta, False, block=2).columns(tensor, [0, 5])
    assert relative_error(compiled, eager) < 1e-5


def test_hessian(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--images", "3", "--norm", "batch", "--block", "64", "--reference", "50", "--no-compile", *TINY]
    summary = benchmarks.hessian.main(arguments)
    assert last_json(capsys) == summary
    required = {"width", "images", "norm", "ms_per_column", "peers", "best_peer", "ratio", "rel_error", "gemm_share"}
    assert summary.keys() >= required
    assert summary["best_peer"] == min(summary["peers"], key=summary["peers"].get)
    assert summary["ratio"] == pytest.approx(summary["peers"][summary["best_peer"]] / summary["ms_per_column"])
    assert summary["best_baseline"] == min(summary["baselines"], key=summary["baselines"].get)
    reached = summary["baselines"][summary["best_baseline"]] / summary["ms_per_column"]
    assert summary["ratio_to_baseline"] == pytest.approx(reached)
    assert min(summary["ratio"], summary["ratio_to_baseline"]) == min(summary["ratios"].values())
    assert not summary["baselines"].keys() & summary["peers"].keys()
    assert summary["peers"].keys() | summary["baselines"].keys() | summary["skipped"].keys() == {
        *(kind.name for kind in peers.PEERS),
        peers.CompiledCurvlinops.name,
    }
    assert summary["reference_columns"] >= 50
    assert 0 < summary["rel_error"] < 1e-4
    rate = summary["gflop_per_column"] / summary["ms_per_column"] * 1e3
    assert summary["gemm_share"] == pytest.approx(rate / summary["gemm_gflops"])
    assert torch.are_deterministic_algorithms_enabled()


def test_wrong_columns_of_a_peer_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = peers.ForwardOverReverse.columns
    monkeypatch.setattr(peers.ForwardOverReverse, "columns", lambda *arguments: 1.01 * right(*arguments))
    monkeypatch.setattr(benchmarks.hessian, "PEERS", (peers.DoubleBackward, peers.ForwardOverReverse))
    with pytest.raises(RuntimeError, match="columns of forward_over_reverse are wrong"):
        benchmarks.hessian.time_peers(*small(torch.float32), compiled=False)


@pytest.mark.long
def test_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--widths", "1", "--images", "2", "3", "--blocks", "32", "64", "--norm", "none", *TINY]
    summary = benchmarks.scaling.main(arguments)
    assert last_json(capsys) == summary
    series = summary["series"]
    assert [row["images"] for row in series["images"]] == [2, 3]
    assert [row["block"] for row in series["block"]] == [32, 64]
    assert all(row["ms_per_column"] > 0 and row["gflops"] > 0 for rows in series.values() for row in rows)


def test_topk(capsys: pytest.CaptureFixture[str]) -> None:
    summary = benchmarks.topk.main(["--images", "3", "--count", "2", *TINY])
    assert last_json(capsys) == summary
    assert summary["results"].keys() | summary["skipped"].keys() == {"ours", "hessian_eigenthings"}
    largest = [row["largest"] for row in summary["results"].values()]
    assert largest == pytest.approx([largest[0]] * len(largest), rel=1e-4)
    assert all(row["residual"] <= summary["tolerance"] and row["products"] > 2 for row in summary["results"].values())


def test_overlap(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.overlap, "FILE_ROWS", 16)
    summary = benchmarks.overlap.main(["--repeats", "1", "--n", "200", "--threads", "1", "--folder", str(tmp_path)])
    assert last_json(capsys) == summary
    assert summary["stages"].keys() == {"balanced", "storing", "small", "eigenbasis"}
    for stage in summary["stages"].values():
        assert stage["ratio"] == pytest.approx(stage["serial"][0] / stage["overlapping"][0], rel=0.01)
    assert not list(tmp_path.iterdir())


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    summary = benchmarks.lines.main(
        ["--images", "3", "--demo-images", "20", "--points", "4", "--rounds", "1", "--device", "cpu"]
    )
    assert last_json(capsys) == summary
    ways = {(row["network"], row["dtype"], row["points_at_once"], row["chunk"]) for row in summary["rows"]}
    chunks = {"demo": (20, 16), "resnet9 w=1": (3,)}
    assert ways == {(n, d, k, c) for n in chunks for d in ("float32", "float64") for k in (1, 4) for c in chunks[n]}
    for row in summary["rows"]:
        assert row["ms_per_loss"] > 0
        assert row["error"] < {"float32": 1e-4, "float64": 1e-12}[row["dtype"]]
    # Of both ways and chunks the same operations are counted.
    work = {
        (row["network"], row["points_at_once"], row["chunk"]): row["share"] * row["gemm_gflops"] * row["ms_per_loss"]
        for row in summary["rows"]
    }
    assert work["demo", 1, 20] == pytest.approx(work["demo", 4, 16])
    assert work["demo", 1, 20] * 1e6 == pytest.approx(20 * flops_of_demo())


def flops_of_demo() -> int:
    """Operations of the demo's network on one image, as torch counts them."""
    objective, theta = benchmarks.lines.demo_problem(1, torch.float32, "cpu")
    with FlopCounterMode(display=False) as counter:
        objective.example_losses(theta)
    return counter.get_total_flops()


def test_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    summary = benchmarks.tiles.main(["--n", "75", "--rows", "20", "--memory", "1"])
    assert last_json(capsys) == summary
    assert summary["products"].keys() == {"overlap", "gram", "trajectory"}
    for row in summary["products"].values():
        assert row["share"] == pytest.approx(row["gflops"] / summary["gemm_gflops"][row["dtype"]])
        assert 0 <= row["error"] < 2e-6
    matrix = 4 * 75**2 / 1e9
    read = [row["read_gb"] for row in summary["products"].values()]
    assert read == pytest.approx([2 * matrix, matrix, matrix])


def test_trajectory(capsys: pytest.CaptureFixture[str]) -> None:
    summary = benchmarks.trajectory.main(["--n", "75", "--rows", "20", "--rounds", "2"])
    assert last_json(capsys) == summary
    assert {row["basis"] for row in summary["passes"]} == {"float32", "float64"}
    for row in summary["passes"]:
        assert row["share"] == pytest.approx(row["gflops"] / summary["gemm_gflops"])
        assert row["gflops"] == pytest.approx(2 * 20 * 75**2 / row["seconds"] / 1e9)
        assert 0 <= row["error"] < {"float32": 2e-6, "float64": 1e-12}[row["basis"]]


def test_wrong_products_show_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    right = benchmarks.tiles.CountedBasis.vectors
    monkeypatch.setattr(benchmarks.tiles.CountedBasis, "vectors", lambda *arguments: 1.001 * right(*arguments))
    products = benchmarks.tiles.main(["--n", "40", "--rows", "5"])["products"]
    assert products["gram"]["error"] > 1e-3


def test_count_agrees_with_torch_and_with_the_size() -> None:
    objective, theta = setting.problem(1, "group", torch.float32, setting.random_data(1))
    layers = benchmarks.count.layers_of(objective.model, objective.images)
    assert sum(layer.weights + layer.others for layer in layers) == objective.size == 26_490
    total = 0
    for kind, name in (
        (peers.DoubleBackward, "Hessian, double backward, flat gradient"),
        (peers.DoubleBackwardByTensor, "Hessian, double backward, tensor's gradient"),
    ):
        peer, total = kind(objective, theta, False), 0
        for layer in layers:
            tensor = next(block for block in objective.layout.blocks if block.name == f"{layer.name}.weight")
            with FlopCounterMode(display=False) as counter:
                peer.columns(tensor, [0])
            total += (layer.weights + layer.others) * counter.get_total_flops()
        counted, _ = benchmarks.count.stages(layers, 1, 10)[name]
        assert 0.95 < total / counted <= 1.0  # torch leaves out the gradient by the images
    cut, _ = benchmarks.count.stages(layers, 1, 10)["Hessian, layer cut"]
    # By hand for the last pair, where nearly all columns lie: four products of the last convolution, one of the own.
    pair = next(layer for layer in layers if layer.name == "residual2.conv1")
    assert pair.products == 9 * 32 * 32 * 16
    own = benchmarks.count.layer_cut(layers)[layers.index(pair)][0]
    linear = layers[-1].products
    assert own == 9216 * (5 * pair.products + 4 * linear) + 96 * 4 * (pair.products + linear)
    assert cut < total / 3


def test_the_page_on_performance_has_what_an_estimate_counts() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    assert f"<!-- gpu -->\n\n{benchmarks.count.gpu_table()}\n" in page


@pytest.mark.long
def test_the_page_on_performance_has_what_the_engine_counts() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    assert f"<!-- engine -->\n\n{benchmarks.count.engine_table()}\n" in page


def test_engine_estimate_and_layer_cut_count_alike() -> None:
    objective, theta = setting.problem(1, "group", torch.float32, setting.random_data(2))
    engine = HessianEngine(objective, theta).flops(0, objective.size) / 2 * 1000
    law = benchmarks.count.gpu_work(1, 1000)["hessian_shard"].amounts["columns float32"]
    by_column, _ = benchmarks.count.stages(benchmarks.scale.layers(1), 1000, 10)["Hessian, layer cut"]
    # A law is what a stage takes at most; positions save operations that the layer cut by columns has.
    assert engine <= law <= 1.5 * engine
    assert engine <= 1.05 * by_column


def test_an_estimate_of_the_eigenbasis_counts_what_the_table_does() -> None:
    work, n = benchmarks.count.gpu_work(2, 50_000)["eigenbasis"].amounts, 104_234.0
    assert work["matrix float32"] == pytest.approx((4 / 3 + 2 + 1) * n**3, rel=0.01)
    # The square, not the triangle, is read for every column.
    assert work["read"] == pytest.approx(4 * n**3 / 3, rel=0.05)
    assert work["matrix float64"] == pytest.approx(2 * n**3, rel=0.01)


@pytest.mark.parametrize("name", benchmarks.scale.TABLES)
def test_the_page_on_scale_has_the_counted_numbers(name: str) -> None:
    assert f"<!-- {name} -->\n\n{benchmarks.scale.table(name)}\n" in (ROOT / "docs" / "scale.md").read_text()


def test_the_page_on_scale_has_the_tiles_that_are_taken() -> None:
    size = 104_234
    rows, _ = projections._shape(size, size, 4, projections.HOST_MEMORY)
    text = f"9 GiB hold {rows:,} rows and Q_b is read {-(-size // rows)} times"
    assert text in (ROOT / "docs" / "scale.md").read_text()
    assert projections._shape(size, size, 4, int(projections._DEVICE_SHARE * 80e9))[0] >= size


@pytest.mark.parametrize("triangle", [False, True])
def test_time_of_a_basis_is_the_sum_over_columns(triangle: bool) -> None:
    n, panel = 3000, benchmarks.scale.PANEL
    device = benchmarks.scale.Device("", 0, 7e9, 5e9, 3e9, 0, triangle)
    remaining = np.arange(1.0, n + 1)
    area = np.square(remaining) / (2 if triangle else 1)
    found = benchmarks.scale.basis_seconds(n, device, 8, 2)
    expected = (8 * area.sum() * (1 + 2 / panel) / 7e9 + 4 * area.sum() / 3e9) / 2
    assert found["reduction"] == pytest.approx(expected, rel=1e-3)
    assert found["divide and conquer"] == found["back-transformation"] == n**3 / 3e9


def test_what_fits_fits_and_one_more_does_not() -> None:
    for device in benchmarks.scale.DEVICES:
        for itemsize in (4, 8):
            size = benchmarks.scale.largest_size(device, itemsize)
            free = device.memory - benchmarks.scale.RESERVED
            assert itemsize * benchmarks.scale.STRIPS * size**2 <= free
            assert itemsize * benchmarks.scale.STRIPS * (size + 1) ** 2 > free


def test_networks_are_counted_without_their_memory(capsys: pytest.CaptureFixture[str]) -> None:
    objective, _ = setting.problem(1, "group", torch.float32, setting.random_data(1))
    assert benchmarks.scale.layers(1) == benchmarks.count.layers_of(objective.model, objective.images)
    summary = benchmarks.scale.main([])
    assert last_json(capsys) == summary
    assert summary["parameters"]["2"] == 104_234


def test_pins_of_the_benchmarks_are_those_of_the_software() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / name).read_text()
        assert "://" not in text
        return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([\w.]+)", text, flags=re.MULTILINE))

    runtime, bench, direct = pins("requirements.txt"), pins("requirements-bench.txt"), pins("requirements-bench.in")
    assert {name: bench[name] for name in bench if name in runtime} == {n: v for n, v in runtime.items() if n in bench}
    assert direct == {name: bench[name] for name in direct}
    project = (ROOT / "pyproject.toml").read_text()
    block = project[project.index("bench = [") : project.index("]", project.index("bench = ["))]
    assert set(re.findall(r'"([A-Za-z0-9-]+)>=', block)) == set(direct)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.long)])
def test_eigenbasis(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    def in_this_process(way: str, path: Path, size: int, dtype: str, threads: int, folder: Path) -> dict:
        folder.mkdir()
        return benchmarks.eigenbasis.WAYS[way](path, size, dtype, threads, folder)

    monkeypatch.setattr(benchmarks.eigenbasis, "_in_process", in_this_process)
    summary = benchmarks.eigenbasis.main(["--n", "300", "--dtype", dtype])
    assert last_json(capsys) == summary
    assert (summary["n"], summary["dtype"], summary["driver"]) == (300, dtype, "evd")
    assert summary["spectra"].keys() == {"clustered", "power_law", "real_hessian"}
    eps = float(np.finfo(dtype).eps)
    for row in summary["spectra"].values():
        for name in ("residual", "orthogonality", "lapack_residual", "lapack_orthogonality"):
            assert 0 < row[name] < 100 * eps
        assert sum(row["parts"].values()) <= row["seconds"]
    assert summary["peak_matrices"] == max(row["peak_matrices"] for row in summary["spectra"].values())
    assert summary["seconds"] >= max(row["seconds"] for row in summary["spectra"].values())


def test_both_ways_run_in_processes_of_their_own() -> None:
    found = benchmarks.eigenbasis.compare(benchmarks.eigenbasis.power_law(100), 1)
    for name in ("residual", "orthogonality", "lapack_residual", "lapack_orthogonality"):
        assert 0 < found[name] < 100 * np.finfo("float64").eps
    assert found["parts"].keys() == set(benchmarks.eigenbasis.PARTS)
    assert min(found["seconds"], found["lapack_seconds"]) > 0


def test_matrices_of_the_eigenbasis_benchmark_have_their_spectra() -> None:
    for make in (benchmarks.eigenbasis.clustered, benchmarks.eigenbasis.power_law):
        matrix = make(200)
        assert np.array_equal(matrix, matrix.T)
    values = np.linalg.eigvalsh(benchmarks.eigenbasis.power_law(200))
    expected = np.arange(1.0, 201) ** -1.5 * np.where(np.arange(1, 201) % 5 == 0, -1, 1)
    np.testing.assert_allclose(values, np.sort(expected), atol=1e-14)
    hessian = benchmarks.eigenbasis.real_hessian(300)
    assert np.isfinite(hessian).all()
    assert np.array_equal(hessian, hessian.T)
    assert np.linalg.eigvalsh(hessian).max() > 0.01


def test_errors_of_an_eigenbasis_are_seen() -> None:
    matrix = benchmarks.eigenbasis.power_law(150)
    values, vectors = np.linalg.eigh(matrix)
    residual, orthogonality = benchmarks.eigenbasis.errors(matrix, values, lambda a, b: vectors[:, a:b])
    assert max(residual, orthogonality) < 1e-13
    vectors[:, 7] *= 1.001
    vectors[:, 30] += 1e-4 * vectors[:, 31]
    residual, orthogonality = benchmarks.eigenbasis.errors(matrix, values, lambda a, b: vectors[:, a:b])
    assert orthogonality == pytest.approx(2e-3, rel=1e-2)
    assert residual == pytest.approx(1e-4 * abs(values[31] - values[30]), rel=1e-2)


@pytest.mark.slow
def test_dag_counts_every_job(capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks.dag.main(["--checkpoints", "3"])
    result = last_json(capsys)
    # Once: data, training, its curves, its test, its three views, its sharpness, memory of its noise, findings, all.
    per_checkpoint, pairs, once, figures, pages = 20, 3, 11, 27, 2
    assert result["jobs"] == 3 * per_checkpoint + pairs + once + figures + pages
    assert result["seconds"] > 0
    assert result["head_mb"] > 10
