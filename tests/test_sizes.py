"""What the workflow's head finds out and keeps: without torch, once, and never from what is no longer so."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quadscape.config.sections import CNN, MLP, Custom, Linear, ResNet9
from quadscape.data.sources import describe
from quadscape.errors import ConfigError, DataError, ModelError
from quadscape.network.models import count_parameters, factory_code
from quadscape.network.shapes import count_built_in
from quadscape.planning.experiment import Experiment
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.problem import Problem
from quadscape.results import sizes
from quadscape.results.sizes import Kept, look_at_data, look_at_network
from tests.checkouts import Checkout
from tests.experiments import TINY

HEAVY = ("torch", "torchvision", "scipy", "sklearn", "zarr", "matplotlib")
HEAD = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise AssertionError(f"the head imports {{name}}")

sys.meta_path.insert(0, Refuse())
from snakemake.cli import main
main(sys.argv[1:])
"""
FACTORY = """
import torch
from {helper} import WIDTH

def make(shape, classes):
    print("made")
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, WIDTH), torch.nn.Linear(WIDTH, classes))
"""


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 19, 40)])
@pytest.mark.parametrize(
    "model",
    [
        ResNet9(width=1),
        ResNet9(width=2, normalization="none"),
        ResNet9(width=1, normalization="batch"),
        Linear(factory="linear"),
        Linear(factory="linear", bias=False),
        MLP(factory="mlp"),
        MLP(factory="mlp", hidden=(7, 5, 3)),
        CNN(factory="cnn"),
        CNN(factory="cnn", channels=(4, 12, 8), normalization="none"),
        CNN(factory="cnn", channels=(5,), normalization="batch"),
        CNN(factory="cnn", channels=(4, 8), depth=3, skip=True),
        MLP(factory="mlp", hidden=(7, 7, 3), normalization="layer", skip=True),
        ResNet9(width=1, skip=False),
    ],
    ids=str,
)
def test_arithmetic_counts_as_torch_does(model: Any, shape: tuple[int, int, int]) -> None:
    assert count_built_in(model, shape, 7) == count_parameters(model, shape, 7)


def test_what_no_tensor_can_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot be built \(a tensor of 4611686018427387904×64 numbers\)"):
        count_built_in(MLP(factory="mlp", hidden=(2**62,)), (1, 8, 8), 10)
    with pytest.raises(ModelError, match="halves the image 3 times"):
        count_built_in(ResNet9(), (1, 4, 4), 10)


def dry_run(checkout: Checkout) -> None:
    command = [sys.executable, "-c", HEAD, "-n", "-q", "all", "--cores", "1", "--configfile", "tiny.yaml"]
    code, output = checkout.run(*command)
    assert code == 0, output


def test_the_head_imports_nothing_heavy(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    checkout.configure()
    dry_run(checkout)
    kept = json.loads((checkout.path / "results/tiny/sizes.json").read_text())
    assert kept["entries"]["data"]["value"]["description"]["training"] == 359


def test_nor_for_a_network_of_the_users_own(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    (checkout.path / "mine.py").write_text(FACTORY.format(helper="helper"))
    (checkout.path / "helper.py").write_text("WIDTH = 5\n")
    checkout.configure(model={"factory": "mine:make"})
    dry_run(checkout)
    found = json.loads((checkout.path / "results/tiny/sizes.json").read_text())["entries"]["network"]["value"]
    assert found["parameters"] == 65 * 5 + 6 * 10
    assert {Path(file).name for file in found["files"]} == {"mine.py", "helper.py"}
    # The second start makes no process either.
    (checkout.path / "quadscape/network/models.py").write_text("raise AssertionError")
    dry_run(checkout)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment with a network of the user's own, in the present directory, seen from a process without torch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_net.py").write_text(FACTORY.format(helper="own_helper"))
    (tmp_path / "own_helper.py").write_text("WIDTH = 5\n")
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    monkeypatch.setattr(sizes, "sys", _WithoutTorch())
    return parse_experiment({**TINY, "model": {"factory": "own_net:make"}})


class _WithoutTorch:
    """The module `sys` of a process that has not imported torch."""

    def __getattr__(self, name: str) -> Any:
        if name == "modules":
            return {key: value for key, value in sys.modules.items() if key != "torch"}
        return getattr(sys, name)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collects what other processes are asked."""
    questions: list[dict[str, Any]] = []
    ask = sizes._in_process

    def noted(question: dict[str, Any]) -> dict[str, Any]:
        questions.append(question)
        return ask(question)

    monkeypatch.setattr(sizes, "_in_process", noted)
    return questions


def test_a_network_is_made_again_when_its_source_changes(own: Experiment, asked: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "kept/sizes.json"
    first = Problem.of(own, Kept(file))
    assert (first.parameters, len(asked)) == (385, 1)
    assert first.networks["a"].code == factory_code(own.model)
    assert Problem.of(own, Kept(file)) == first
    assert Problem.of(own, Kept(file, is_job=True)) == first
    assert len(asked) == 1
    (tmp_path / "own_helper.py").write_text("WIDTH = 6\n")
    # A job takes what its head has found.
    assert Problem.of(own, Kept(file, is_job=True)) == first
    assert Problem.of(own, Kept(file)).parameters == 65 * 6 + 7 * 10
    (tmp_path / "own_net.py").write_text(FACTORY.format(helper="own_helper").replace("WIDTH)", "WIDTH, bias=False)"))
    changed = Problem.of(own, Kept(file))
    assert changed.parameters == 64 * 6 + 7 * 10
    assert changed.networks["a"].code != first.networks["a"].code
    assert len(asked) == 3
    # Another file of that name that is found before it is another network, though nothing has changed in the first.
    (tmp_path / "own_net.py").unlink()
    with pytest.raises(ModelError, match="cannot be imported"):
        Problem.of(own, Kept(file))


@pytest.mark.long
def test_errors_of_the_other_process_are_those_of_this(own: Experiment, tmp_path: Path) -> None:
    data = describe(own.data)
    for source, arguments, words in (
        ("def make(shape, classes):\n    return 3\n", {}, "returned a int"),
        ("def make(shape, classes, width):\n    return width / 0\n", {"width": 3}, "failed when called.*ZeroDivision"),
        ("raise ImportError('nothing here')\n", {}, "cannot be imported.*nothing here"),
        ("import os\ndef make(shape, classes):\n    os._exit(7)\n", {}, "could not be counted.*exit code 7"),
        ("import os\ndef make(shape, classes):\n    os.abort()\n", {}, "could not be counted.*signal 6"),
    ):
        (tmp_path / "own_net.py").write_text(source)
        model = Custom(factory="own_net:make", arguments=arguments)
        with pytest.raises(ModelError, match=words):
            look_at_network(model, "cross_entropy", data, Kept(), 1e6)
    large = "import torch\ndef make(shape, classes):\n    return torch.nn.Linear(2**20, 2**20)\n"
    (tmp_path / "own_net.py").write_text(large)
    network = look_at_network(Custom(factory="own_net:make"), "cross_entropy", data, Kept(), 1e6)
    assert network.parameters == 2**40 + 2**20


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(json.dumps({"format": 1, "entries": {"data": {}}})),
        lambda path: path.write_text(path.read_text().replace('"training": 359', '"training": 362')),
        lambda path: path.write_bytes(b"\xff\x00"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_what_is_damaged_is_found_out_again(tmp_path: Path, spoil: Any) -> None:
    experiment, path = parse_experiment(TINY), tmp_path / "sizes.json"
    first = Problem.of(experiment, Kept(path))
    spoil(path)
    assert Problem.of(experiment, Kept(path, is_job=True)) == first
    assert Problem.of(experiment, Kept(path)) == first


def test_where_nothing_can_be_kept_it_works_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Problem.of(parse_experiment(TINY), Kept(tmp_path / "file/sizes.json")).parameters == 235
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_kept_is_of_one_experiment(tmp_path: Path) -> None:
    path, job = tmp_path / "sizes.json", True
    Problem.of(parse_experiment(TINY), Kept(path))
    other = parse_experiment({**TINY, "data": {"source": "digits", "held_out": 0.5}})
    found = Problem.of(other, Kept(path, is_job=job))
    assert found.data == describe(other.data)
    before = path.read_text()
    Kept(path, is_job=job).save()
    assert path.read_text() == before


def _image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5), value, dtype=np.uint8)).save(path)


def test_folders_are_listed_at_every_start_but_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(24):
        _image(tmp_path / f"images/{'ab'[index % 2]}/{index}.bmp", index)
    section = {"source": "image_folder", "path": str(tmp_path / "images"), "held_out": 0.5}
    experiment, kept = parse_experiment({**TINY, "data": section}), Kept(tmp_path / "sizes.json")
    store = tmp_path / "data.zarr/zarr.json"
    first, _ = look_at_data(experiment.data, store, kept)
    opened: list[Path] = []
    open_image = __import__("quadscape.data.sources", fromlist=["open_image"]).open_image
    monkeypatch.setattr("quadscape.data.sources.open_image", lambda path: (opened.append(path), open_image(path))[1])
    assert look_at_data(experiment.data, store, kept)[0] == first
    assert not opened
    # Another size of the file is another listing; another content of the same size is looked at, too.
    _image(tmp_path / "images/a/0.bmp", 77)
    assert look_at_data(experiment.data, store, kept)[0] == first
    assert opened
    _image(tmp_path / "images/a/new.bmp", 1)
    assert look_at_data(experiment.data, store, kept)[0].listing != first.listing
    kept.save()
    again = look_at_data(experiment.data, store, Kept(tmp_path / "sizes.json", is_job=True))[0]
    assert list(again.parts.items()) == [("all", 25)]
    kept.is_job = True
    _image(tmp_path / "images/b/newer.bmp", 1)
    assert look_at_data(experiment.data, store, kept)[0].training == 12
    kept.is_job = False
    for path in (tmp_path / "images").rglob("*.bmp"):
        path.unlink()
    with pytest.raises(DataError, match="no images"):
        look_at_data(experiment.data, store, kept)
