"""Random damage to what users give: whatever it is, one sentence that names it, and never a traceback.

Every case has a seed of its own, so that a failure can be repeated alone. `make test` tries a few, and `make test-long`
many.
"""

import contextlib
import os
import pickle
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_data import make_folder, photograph

from quadscape.cli import main
from quadscape.data.sets import prepare
from quadscape.errors import QuadscapeError
from quadscape.network.checkpoint import load_foreign
from quadscape.network.models import build_model
from quadscape.planning.experiment_file import load_experiment
from tests.experiments import TINY


def seeds(few: int, many: int) -> list[Any]:
    """Seeds of cases, of which those beyond the first few are only for `make test-long`."""
    return [pytest.param(seed, marks=[pytest.mark.long] if seed >= few else []) for seed in range(many)]


def assert_one_sentence(message: str, names: list[str]) -> None:
    assert "Traceback" not in message
    assert message.endswith(".\n"), message
    assert message.count("\n") == 1, message
    assert any(name in message for name in names), (message, names)


def validate(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["validate", str(file)])
    return code, capsys.readouterr().err


# Experiment files

VALID: dict[str, Any] = {
    **TINY,
    "seed": 3,
    "device": "cpu",
    "data": {**TINY["data"], "validation": 0.5},
    "model": {**TINY["model"], "activation": "gelu"},
    "loss": "cross_entropy",
    "training": {**TINY["training"], "momentum": 0.9},
    "runs": [*TINY["runs"], {"name": "b", "weight_decay": 0.1}],
    "curvature": {"dtype": "float64", "shards": 2},
    "measures": {name: TINY["measures"][name] for name in ("line_search", "density")},
}
VALUES: list[Any] = [None, True, -1, 0, 10**9, 2**70, -0.5, 1e308, float("nan"), float("inf"), "", "x", "1", "é\u200b"]
VALUES += [[], {}, [1, [2]], {"x": {"y": 1}}, [None], "nan", "{iteration}", "../..", "a/b", "\x7f", "name: x", 5e-324]


def places(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and every entry."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, entry in inner for path in [(*where, key), *places(entry, (*where, key))]]


def mutated_text(generator: random.Random) -> tuple[bytes, list[str]]:
    """An experiment file with one fault, and what a message about it may name."""
    content = yaml.safe_load(yaml.safe_dump(VALID))
    path = generator.choice(places(content))
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    names = [str(key) for key in path if isinstance(key, str)]
    kind = generator.randrange(10)
    if kind == 0 and isinstance(parent, dict):
        renamed = generator.choice([path[-1].upper(), path[-1] + "s", path[-1][1:], " " + path[-1], "1", "~", "é"])
        parent[renamed] = parent.pop(path[-1])
        return yaml.safe_dump(content, allow_unicode=True).encode(), [*names, renamed]
    if kind == 1:
        del parent[path[-1]]
        return yaml.safe_dump(content).encode(), names
    text = yaml.safe_dump(content, sort_keys=False)
    if kind == 2:
        lines = text.splitlines()
        keyed = [index for index, line in enumerate(lines) if line.endswith(tuple("0123456789abcdefghijklmnop"))]
        line = generator.choice(keyed)
        lines.insert(line, lines[line].replace("- ", "  "))
        return "\n".join(lines).encode(), [""]
    if kind == 3:
        return text.encode()[: generator.randrange(len(text))], ["mutated", "runs", "schedule", *VALID]
    if kind == 4:
        raw = bytearray(text.encode())
        for _ in range(generator.randrange(1, 5)):
            raw[generator.randrange(len(raw))] = generator.randrange(256)
        return bytes(raw), [""]
    if kind == 5:
        place = generator.randrange(len(text))
        return (text[:place] + generator.choice("\t\r\0{[&*!|>%@`'\"\ufeff\u2028\x1b") + text[place:]).encode(), [""]
    if kind == 6:
        return text.replace("tiny", "tïny").encode(generator.choice(["utf-16", "latin-1", "utf-32"])), [
            "mutated",
            "tïny",
        ]
    if kind == 7:
        deep = generator.choice(
            ["[" * 3000, "{a: " * 900, "- " * 3000, "!!python/object:os.system x", "&a [*a]", "2020-99-99"]
        )
        return text.replace("seed: 3", f"seed: {deep}").encode(), ["mutated", "seed"]
    parent[path[-1]] = generator.choice(VALUES)
    return yaml.safe_dump(content, allow_unicode=True).encode(), [*names, "mutated"]


@pytest.mark.parametrize("seed", seeds(14, 120))
def test_mutated_experiment_files(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text, names = mutated_text(random.Random(seed))
    file = tmp_path / "mutated.yaml"
    file.write_bytes(text)
    code, message = validate(file, capsys)
    # A mutation may leave the file valid.
    if code:
        assert_one_sentence(message, names)


# Image folders


def _damage(generator: random.Random, root: Path) -> str:
    """Damages one entry of an image folder; returns what a message about it may name."""
    files = sorted(path for path in root.rglob("*.png"))
    victim = generator.choice(files)
    kind = generator.randrange(16)
    content = victim.read_bytes()
    if kind == 0:
        victim.write_bytes(content[: generator.randrange(len(content))])
    elif kind == 1:
        victim.write_bytes(b"")
    elif kind == 2:
        raw = bytearray(content)
        for _ in range(generator.randrange(1, 6)):
            raw[generator.randrange(len(raw))] = generator.randrange(256)
        victim.write_bytes(bytes(raw))
    elif kind == 3:
        victim.rename(
            victim.with_suffix(generator.choice([".PNG", ".gif", "", ".txt", ".png~", ".jp2", ".jpg", ".npy"]))
        )
        return victim.stem
    elif kind == 4:
        victim.unlink()
        victim.symlink_to(generator.choice(["nowhere", victim.name, "..", "/", victim.parent.parent]))
    elif kind == 5:
        photograph(1, size=generator.choice([(1, 1), (7, 5), (300, 1)])).save(victim)
    elif kind == 6:
        victim.unlink()
        victim.mkdir()
    elif kind == 7:
        victim.rename(root / victim.name)
    elif kind == 8:
        victim.unlink()
        os.mkfifo(victim)
    elif kind == 9:
        (victim.parent / "loop").symlink_to(generator.choice([victim.parent, root]))
        return "loop"
    elif kind == 10:
        victim.parent.rename(root / generator.choice(["Train-2", "Test-Set", "VALID", "tr", "x_train", "holdout1"]))
        return str(root)
    elif kind == 11:
        shutil.rmtree(victim.parent)
        victim.parent.write_bytes(content)
        return str(root)
    elif kind == 12:
        victim.rename(
            victim.with_name(generator.choice(["\n.png", "ä.png", "a b.png", "-x.png", os.fsdecode(b"\xff.png")]))
        )
        return str(root)
    elif kind == 13:
        victim.parent.rename(root / generator.choice(["\n", "é", os.fsdecode(b"\xfe"), "x" * 200, "{seed}", "~"]))
        return str(root)
    elif kind == 14:
        photograph(2).save(victim, format=generator.choice(["GIF", "TIFF", "BMP", "WEBP", "JPEG"]))
    else:
        (root / generator.choice([".hidden", "__MACOSX", "Thumbs.db", "empty", "notes"])).mkdir()
        return str(root)
    return victim.name


@pytest.mark.parametrize("seed", seeds(14, 100))
def test_mutated_image_folders(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = random.Random(1000 + seed)
    root = tmp_path / "pictures"
    if generator.randrange(3):
        make_folder(root, ("ant", "bee", "cat"), count=5)
    else:
        for part in ("train", "test"):
            make_folder(root / part, ("ant", "bee"), count=4)
    name = _damage(generator, root)
    names = [name, str(root), "held_out", "bands"]
    file = tmp_path / "mutated.yaml"
    content = {**VALID, "data": {"source": "image_folder", "path": str(root)}, "runs": [{"name": "a"}]}
    content["training"] = {**VALID["training"], "batch_size": 2}
    content["curvature"] = {}
    file.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    code, message = validate(file, capsys)
    if code:
        assert_one_sentence(message, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            prepare(load_experiment(file).data, 0, tmp_path / "data.zarr")
        except QuadscapeError as error:
            assert_one_sentence(f"{error}\n", names)
            assert not (tmp_path / "data.zarr").exists()
        else:
            assert code == 0, "what validation refuses is not prepared either"


# Parameters trained elsewhere


def _mutations(generator: random.Random, state: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a file of parameters with one fault."""
    name = generator.choice(sorted(state))
    changes: list[Callable[[], Any]] = [
        lambda: {**state, name: torch.full_like(state[name], float("nan"))},
        lambda: {**state, name: state[name].half()},
        lambda: {**state, name: state[name].to(torch.complex64)},
        lambda: {**state, name: state[name].to(torch.int8)},
        lambda: {**state, name: state[name].to_sparse()},
        lambda: {**state, name: state[name].to("meta")},
        lambda: {**state, name: state[name][..., :1]},
        lambda: {**state, name: state[name][None]},
        lambda: {**state, name: state[name].numpy()},
        lambda: {key: value for key, value in state.items() if key != name},
        lambda: {**state, "extra": torch.zeros(2)},
        lambda: {**state, 3: torch.zeros(2)},
        lambda: {"model": state, "epoch": 3},
        lambda: {"state": {"dict": state}},
        lambda: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda: {f"module.{key}" if key == name else key: value for key, value in state.items()},
        lambda: [state],
        lambda: None,
        lambda: "text",
        dict,
        lambda: torch.zeros(3),
    ]
    kind = generator.randrange(len(changes) + 5)
    if kind < len(changes):
        torch.save(changes[kind](), path)
        return
    torch.save(state, path)
    raw = bytearray(path.read_bytes())
    if kind == len(changes):
        path.write_bytes(raw[: generator.randrange(len(raw))])
    elif kind == len(changes) + 1:
        path.write_bytes(pickle.dumps({"a": 1, "b": generator.choice([1j, print, os.system, {2}, Path()])}))
    elif kind == len(changes) + 2:
        path.write_bytes(generator.randbytes(200))
    else:
        for _ in range(generator.randrange(1, 30)):
            raw[generator.randrange(len(raw))] = generator.randrange(256)
        path.write_bytes(bytes(raw))


@pytest.mark.parametrize("seed", seeds(14, 100))
def test_mutated_parameter_files(seed: int, tmp_path: Path) -> None:
    experiment = load_experiment(_written(tmp_path / "tiny.yaml", VALID))
    model = build_model(experiment.model, (1, 8, 8), 10)
    path = tmp_path / "theta.pt"
    _mutations(random.Random(2000 + seed), dict(model.state_dict()), path)
    try:
        with contextlib.redirect_stderr(None):
            load_foreign(model.to(torch.float64), path)
    except QuadscapeError as error:
        assert_one_sentence(f"{error}\n", [str(path)])


def _written(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path
