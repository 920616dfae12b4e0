"""`quadscape scores`: a stranger's network, parameters and images, without an experiment."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import quadscape
from quadscape.cli import main
from quadscape.curvature.matrix_free import CurvatureOperator, extreme_eigenpairs
from quadscape.errors import ConfigError, ModelError
from quadscape.library import scores as library_scores
from quadscape.library.own import own_objective
from quadscape.measures.ruggedness.declaration import RUGGEDNESS, SCORES
from quadscape.tables import read_table

CLASSES = 7

FACTORY = """
import torch

def build(shape, classes, width=3):
    return torch.nn.Sequential(
        torch.nn.Conv2d(shape[0], width, 3, stride=2),
        torch.nn.BatchNorm2d(width),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * width, classes),
    )
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images of seven classes and a module with a network."""
    generator = np.random.default_rng(0)
    for label in range(CLASSES):
        folder = tmp_path / "images" / f"kind{label}"
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 100, (9, 9, 3)) + 20 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "theirs.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(*more: str) -> int:
    return main(["scores", "--model", "theirs:build", "--images", "images", "--option", "directions=2", *more])


def test_one_command_gives_the_table(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--option", "points=5", "--out", "found", "--arguments", "{width: 2}") == 0
    out = capsys.readouterr().out
    assert "42 images of 3×9×9 in 7 classes" in out
    assert "Hessian products, all eigenvalues: about" in out
    assert all(f"  {name} " in out for name in SCORES)
    table = read_table(stranger / "found" / "ruggedness.parquet", RUGGEDNESS)
    assert table.attributes["N"] == 42
    assert table.attributes["directions"] == 2
    assert {path.suffix for path in (stranger / "found").iterdir()} == {".parquet", ".svg"}


def test_their_parameters_are_taken_and_an_estimate_stops(
    stranger: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = own_objective("theirs:build", Path("images"), log=str)
    model = loss.checked.model
    state = {name: 0.5 * value if value.is_floating_point() else value for name, value in model.state_dict().items()}
    torch.save(state, "half.pt")
    half = own_objective("theirs:build", Path("images"), Path("half.pt"), log=str)
    assert np.allclose(half.theta, 0.5 * loss.theta)
    assert _run("--parameters", "half.pt", "--estimate") == 0
    assert "largest" not in capsys.readouterr().out


def test_without_a_matrix_the_ends_are_those_of_the_hessian(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = own_objective("theirs:build", Path("images"), log=str)
    exact = quadscape.measure("ruggedness", loss, directions=2, points=5)["ruggedness"]
    monkeypatch.setattr(library_scores, "EXACT_SIZE", 10)
    found = quadscape.measure("ruggedness", loss, directions=2, points=5)["ruggedness"]
    ends = extreme_eigenpairs(CurvatureOperator(loss, loss.theta), 1, 1)
    for name, place in (("largest", 0), ("smallest", 1)):
        row = found["score"].tolist().index(name)
        assert found["value"][row] == pytest.approx(ends.eigenvalues[place], rel=1e-2)
        assert exact["value"][row] == pytest.approx(ends.eigenvalues[place], rel=1e-6)
    row = found["score"].tolist().index("trace")
    assert found["value_low"][row] < exact["value"][row] < found["value_high"][row]
    # What does not depend on the spectrum is the same.
    row = found["score"].tolist().index("mean_rise_filter")
    assert found["value"][row] == pytest.approx(exact["value"][row], rel=1e-12)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["--option", "lines=3"], "no option 'lines'"),
        (["--option", "points"], "valid is name=value"),
        (["--option", "points=8"], "odd"),
        (["--arguments", "[3]"], "valid is a mapping"),
        (["--arguments", "{depth: 3}"], "depth"),
        (["--parameters", "none.pt"], "no such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    stranger: Path, given: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(*given) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert word in line


def test_one_command_gives_a_surface(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["surface", "--model", "theirs:build", "--images", "images", "--option", "resolution=5"]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "plane random: the picture suggests" in out
    assert {"surface.html", "surface.svg", "surface_relief.svg"} <= {path.name for path in Path("surface").iterdir()}
    loss = own_objective("theirs:build", Path("images"), log=str)
    basis = quadscape.eigenbasis(loss)
    expected = quadscape.measure("surface", basis, resolution=5, samples=0)
    for name in ("surface", "surface_planes"):
        found = read_table(Path("surface") / f"{name}.parquet", expected[name].schema)
        for column, values in expected[name].columns.items():
            if values.dtype.kind == "f":
                # An eigenvector may point either way, and is found to a residual of 1e-3.
                assert np.abs(found[column]).sum() == pytest.approx(np.abs(values).sum(), rel=0.1, abs=1e-9), column
    assert main([*given, "--option", "planes=1:2"]) == 1
    assert "whole eigenbasis" in capsys.readouterr().err


def test_torchvision_has_models_by_name(stranger: Path) -> None:
    with pytest.raises(ConfigError, match=r"resnet99.*alexnet"):
        own_objective("resnet99", Path("images"), log=str)
    with pytest.raises(ModelError, match="cannot be made"):
        own_objective("resnet18", Path("images"), arguments={"colour": 3}, log=str)
