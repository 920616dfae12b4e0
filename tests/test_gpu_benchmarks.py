"""The first minutes on a GPU, on a CPU and at small sizes: that nothing fails for a reason that is none of a GPU's."""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import benchmarks.gpu_parts
import benchmarks.gpu_stages
import benchmarks.gpu_whole
from benchmarks import setting
from benchmarks.gpu import eigenbasis, hessian, matrices, runner
from quadscape.curvature.divide_and_conquer import merge_level, solve_leaves
from quadscape.curvature.engine import HessianEngine
from quadscape.curvature.solver_plan import FIELDS, depth

pytestmark = pytest.mark.usefixtures("kept_exports")

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--n", "400", "--images", "64", "--width", "1", "--device", "cpu", "--data", "absent", "--pixels", "8"]
FEW = ["--block", "2048", "--images", "2", "--norm", "none"]
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts that share the process of the test, of which each would load torch again."""

    def of_part(words: list[str], name: str, limit: float) -> list[dict[str, Any]]:
        module = sys.modules[words[2]]
        main = getattr(module, "_main", module.main)
        main(words[3:])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"part"')]

    monkeypatch.setattr(runner, "_in_process", of_part)
    monkeypatch.setattr(setting.gemm_rate, "__defaults__", ("cpu", 256, torch.float32))


def at_once(group: hessian.Group, *_: Any) -> None:
    """In place of timing all columns."""
    group.seconds = group.measured = 1.0


def step(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in rows if row.get("step") == name)


@pytest.mark.usefixtures("in_this_process")
def test_parts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "time_group", at_once)
    summary = benchmarks.gpu_parts.main([*SMALL, *FEW, "--checked", "300", "--sizes", "100", "200"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary
    assert summary["failed"] == []
    parts = summary["parts"]
    names = ["machine", "matrices", "panels", "hessian", "vectors", "reduction", "library"]
    assert list(parts) == names
    products = {row["op"]: row for row in parts["matrices"] if "op" in row}
    assert products["symv"]["skipped"] == "not on this device"
    checked = ("mv", "mv in slabs", "addmm", "addmm in slabs", "gram, a tile", "gram, a tile in slabs")
    assert all(products[name]["error"] < 10 * EPS for name in checked)
    assert parts["hessian"][0]["error"] < 1e-5
    assert step(parts["reduction"], "reduction of 300")["error"] < 1e-4
    whole = step(parts["panels"], "reduction")
    assert (whole["panels"], whole["panels_measured"], whole["measured_share"]) == (7, 7, 1.0)
    assert parts["library"][-1]["largest_right"] == 200


@pytest.mark.usefixtures("in_this_process")
def test_whole(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["panels", "vectors", "gram", "products", "storing", "reduction"]
    summary = benchmarks.gpu_whole.main([*SMALL, *FEW, "--checked", "200", "--parts", *chosen])
    assert "in all, extrapolated" in capsys.readouterr().out
    assert summary["failed"] == []
    rows = [row for found in summary["parts"].values() for row in found if row.get("stage") == "eigenbasis"]
    counted = [row for row in rows if row["step"] != "reduction of 200"]
    assert len(counted) == len(rows) - 1
    found = summary["stages"]["eigenbasis"]
    assert found["seconds_extrapolated"] == pytest.approx(sum(row["seconds"] for row in counted))
    assert 0 < found["measured_share"] < 1


@pytest.mark.usefixtures("in_this_process", "one_thread")
def test_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmarks.gpu_stages, "_model", lambda _: {"factory": "mlp", "hidden": [3]})
    words = ["--images", "64", "--pixels", "8", "--iterations", "3", "--device", "cpu", "--data", "absent"]
    summary = benchmarks.gpu_stages.main([*words, "--folder", str(tmp_path)])
    assert summary["failed"] == []
    rows = {row["stage"]: row for found in summary["parts"].values() for row in found if "stage" in row}
    assert list(rows) == ["training", "checkpoint", "hessian_shard", "hessian", "eigenbasis"]
    basis = rows["eigenbasis"]
    assert basis["size"] == 192 * 3 + 3 + 3 * 10 + 10
    assert basis["seconds_of_units"].keys() == {"library", "overlaps", "products"}
    assert 0 < sum(basis["seconds_of_units"].values()) <= basis["seconds"]
    assert basis["verification"]
    assert rows["hessian"]["verification"]


def test_what_kills_a_part_ends_no_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = """
import os, sys, time
from benchmarks.gpu.runner import Part, command
def dies(_):
    yield {"op": "first"}
    os.abort()
def fails(_):
    yield {"op": "second"}
    raise RuntimeError("an illegal memory access\\nwas encountered")
def lasts(_):
    yield {"op": "third"}
    time.sleep(60)
def works(arguments):
    yield {"left": arguments.seconds}
main = command("", "parts_that_fail", [Part("dies", 9, dies), Part("fails", 9, fails), Part("lasts", 0, lasts),
                                       Part("works", 9, works)])
if __name__ == "__main__":
    main()
"""
    (tmp_path / "parts_that_fail.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "parts_that_fail", "--seconds", "500"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["failed"] == ["dies", "fails", "lasts"]
    parts = summary["parts"]
    assert parts["dies"] == [
        {"part": "dies", "op": "first"},
        {"part": "dies", "failed": "ended with status -6"},
    ]
    assert parts["fails"][1]["failed"] == "RuntimeError: an illegal memory access"
    assert parts["works"] == [{"part": "works", "left": 9.0}]


def test_a_part_ends_when_its_time_is_up() -> None:
    words = [sys.executable, "-c", 'print(\'{"part": "p"}\', flush=True); import time; time.sleep(60)']
    began = time.perf_counter()
    assert runner._in_process(words, "p", 1.5)[-1]["failed"] == "ended after 2 s"
    assert time.perf_counter() - began < 30


def test_parts_need_few_packages() -> None:
    # On a CPU panels are LAPACK's, and leaves SciPy's: of those parts only that they are imported.
    code = f"""
import sys
for name in ("zarr", "numcodecs", "donfig", "snakemake", "psutil", "scipy", "threadpoolctl", "matplotlib", "pandas",
             "sklearn", "torchvision", "PIL"):
    sys.modules[name] = None
import benchmarks.gpu_whole
from benchmarks.gpu import hessian
from benchmarks.gpu_parts import main
# All columns take long on a CPU.
hessian.time_group = lambda group, *_: setattr(group, "seconds", 1.0)
words = {[*SMALL, *FEW]!r}
main([*words, "--here", "--parts", "machine", "matrices", "hessian"])
benchmarks.gpu_whole.main([*words, "--here", "--parts", "gram", "products", "storing"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert '"failed"' not in done.stdout, done.stdout + done.stderr


def test_columns_are_linear_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, theta = setting.problem(1, "none", torch.float32, setting.random_data(10, (3, 8, 8)))
    engine = HessianEngine(objective, theta, {"chunk": 2, "tile": 1 << 20})
    # A strip takes 3 seconds, and 2 for every chunk of examples.
    monkeypatch.setattr(HessianEngine, "columns", lambda self, start, stop: self.objective.count)
    monkeypatch.setattr(hessian, "timed", lambda work, device: (3.0 + work(), None))
    groups = hessian.groups_of(engine, 4096)
    costs = [sum(engine.flops(s.start, s.stop) for s in group.strips) for group in groups]
    assert costs == sorted(costs)
    for group in groups:
        hessian.time_group(group, engine, torch.device("cpu"))
    total = hessian.sum_of(groups, engine, 1e12)
    assert total["seconds"] == pytest.approx(sum(13 * s.weight / (s.stop - s.start) for g in groups for s in g.strips))
    assert total["seconds_measured"] == 12 * sum(len(group.strips) for group in groups)
    assert (total["chunks"], total["chunks_measured"], total["groups_assumed"]) == (5, 2, [])
    groups[-1].seconds = None
    assert hessian.sum_of(groups, engine, 1e12)["groups_assumed"] == [groups[-1].name]


def test_the_tridiagonal_matrix_hardly_deflates() -> None:
    assert FIELDS[eigenbasis._COUPLED] == "origins"
    diagonal, off_diagonal = eigenbasis.tridiagonal(512)
    level, _ = solve_leaves(diagonal, off_diagonal)
    for number in range(1, depth(512) + 1):
        level = merge_level(number, level, diagonal, off_diagonal, "cpu", 1 << 20)
    assert (level[eigenbasis._COUPLED] >= 0).mean() > 0.8
    # The spectrum of a Gaussian matrix: a semicircle of radius 2√n.
    assert level[0].max() - level[0].min() > 0


def test_a_wrong_product_shows_as_an_error() -> None:
    matrix = torch.empty(50, 64)[:, :50]
    matrices.fill(matrix)
    assert torch.equal(matrix, matrix.T)
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert matrices.vector_error(matrix, matrix @ x, x) < 10 * EPS
    wrong = matrix @ x
    wrong[-1] = 0.0
    assert matrices.vector_error(matrix, wrong, x) > 1e-3


def test_an_unfinished_reduction_tells_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigenbasis, "timed", lambda work, device: (0.5, work()))
    arguments = argparse.Namespace(device="cpu", n=1000)
    *_, result = eigenbasis.reduction_part(arguments, 600, -1.0, whole=True)
    assert (result["panels_measured"], result["panels"]) == (1, 10)
    assert result["step"] == "reduction of 600"
    assert "error" not in result
    # Panels at one rate: each takes in proportion to what it moves.
    moved = [eigenbasis._moved(600, a, min(600, a + 64), True) for a in range(0, 600, 64)]
    assert result["seconds"] == pytest.approx(0.5 * sum(moved) / moved[0])
    assert result["measured_share"] == pytest.approx(moved[0] / sum(moved))


def test_images_are_read_from_a_file_of_jpegs(tmp_path: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    files = []
    for level in generator.integers(40, 200, 5):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "JPEG", quality=95)
        files.append((level, np.frombuffer(buffer.getvalue(), np.uint8)))
    np.savez(
        tmp_path / "images.npz",
        jpeg=np.concatenate([file for _, file in files]),
        offset=np.cumsum([0, *(len(file) for _, file in files)]),
        label=np.arange(5, dtype=np.uint8),
        split=np.array([0, 1, 0, 0, 0], np.uint8),
    )
    images, labels = hessian.data(argparse.Namespace(data=tmp_path / "images.npz", images=3))
    assert images.shape == (3, 3, 8, 8)
    assert labels.tolist() == [0, 2, 3]
    levels = torch.tensor([float(files[i][0]) for i in (0, 2, 3)])
    expected = (levels - levels.mean()) / levels.std(correction=0)
    assert torch.allclose(images.mean(dim=(1, 2, 3)), expected, atol=0.05)
