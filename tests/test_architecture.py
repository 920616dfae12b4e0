"""The house of docs/architecture.md: who may import what, and how large anything may be."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import architecture  # ruff: ignore[module-import-not-at-top-of-file]

LINES, FUNCTION_LINES, PARAMETERS = 700, 80, 8
SOURCES = architecture.sources()
CODE = [*SOURCES.values(), *(ROOT / "workflow_scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
TEXTS = [
    *SOURCES.values(),
    *(ROOT / "docs").glob("*.md"),
    *(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),
    ROOT / "results/README.md",
]


def test_every_room_is_in_the_table() -> None:
    rooms = {architecture.room_of(module) for module in SOURCES if module not in architecture.OUTSIDE}
    assert rooms == set(architecture.floors())


def test_nothing_imports_upwards() -> None:
    floors = architecture.floors()
    upwards = [
        f"{module} (floor {floors[here]}) imports {target} (floor {floors[there]})"
        for module, targets in architecture.module_graph().items()
        for target in targets
        if module not in architecture.OUTSIDE and target not in architecture.OUTSIDE
        if (here := architecture.room_of(module)) != (there := architecture.room_of(target))
        and floors[here] <= floors[there]
        and floors[here] > 0
    ]
    assert not upwards, "\n".join(sorted(upwards))


def test_there_is_no_circle() -> None:
    assert not architecture.cycle(architecture.module_graph())
    assert architecture.cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_picture_is_that_of_the_imports() -> None:
    """Otherwise: `make docs`."""
    text = architecture.PICTURE.read_text(encoding="utf-8")
    found = re.search(r"<dc:description>(.*?)</dc:description>", text, re.DOTALL)
    assert found is not None
    assert found.group(1).replace("&gt;", ">") == architecture.description(architecture.room_graph())


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert source.count("\n") <= LINES
    names = {module for module, _ in architecture.imported(path)}
    private = [f"{m}.{name}" for m, name in architecture.imported(path) if m in SOURCES and _is_private(name)]
    modules = {
        (alias.asname or alias.name): f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if f"{node.module}.{alias.name}" in SOURCES
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            private += [f"{modules[node.value.id]}.{node.attr}"] * _is_private(node.attr)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and path in SOURCES.values():
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name
            given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert len([name for name in given if name not in {"self", "cls"}]) <= PARAMETERS, node.name
    assert not private, f"{path.name} uses what others keep to themselves: {private}"
    assert not any(name.startswith("tests") for name in names)


def _resolves(dotted: str) -> bool:
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in SOURCES:
            found = importlib.import_module(".".join(parts[:length]))
            for part in parts[length:]:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False


def test_what_texts_name_is_there() -> None:
    missing = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        dotted = set(re.findall(r"(?<![\w./])quadscape(?:\.\w+)+", text)) - {"quadscape.yaml", "quadscape.toml"}
        files = set(re.findall(r"(?<![\w./])quadscape/[\w/]+\.\w+", text))
        missing += [f"{path.name}: {name}" for name in dotted if not _resolves(name)]
        missing += [f"{path.name}: {name}" for name in files if not (ROOT / name).exists()]
    assert not missing, "\n".join(sorted(missing))
