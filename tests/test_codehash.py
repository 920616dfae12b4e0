"""Hashes of code: blind to comments, docstrings, formatting and the version of Python; locked for the long stages."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import quadscape
from quadscape.provenance import codehash
from quadscape.provenance.codehash import STAGE_MODULES, lock_problems, main, module_hash
from quadscape.provenance.source import source_hash

SOURCE = '''
"""A module."""
import math

SCALE = 1000
"""What it scales by."""


class Shape:
    """A shape."""

    side: float = 2.0

    def area(self, *, factor=1, **others):
        """Its area."""
        if factor > 0:
            return math.pi * self.side**2 * factor
        return f"{self.side!r:>{factor}} of {others}" "!"


def nothing():
    """Does nothing."""
'''

SAME = {
    "comment": ("SCALE = 1000", "# Large.\nSCALE = 1000  # very"),
    "docstring changed": ('"""Its area."""', '"""Its area,\n\n        in square units."""'),
    "docstring removed": ('        """Its area."""\n', ""),
    "module's docstring removed": ('"""A module."""\n', ""),
    "constant's docstring removed": ('"""What it scales by."""\n', ""),
    "only docstring replaced": ('    """Does nothing."""\n', "    pass\n"),
    "only docstring to ellipsis": ('    """Does nothing."""\n', "    ...\n"),
    "number's notation": ("SCALE = 1000", "SCALE = 1_000"),
    "quotes": ('"{self.side!r:>{factor}} of {others}" "!"', "'{self.side!r:>{factor}} of {others}!'"),
    "implicit concatenation": ('of {others}" "!"', 'of {others}" f"!" ""'),
    "spaces": ("self.side**2 * factor", "self.side ** 2*factor"),
    "brackets": ("math.pi * self.side**2 * factor", "((math.pi * (self.side**2))\n                * factor)"),
    "trailing comma": ("factor=1, **others", "factor = 1,\n        **others,\n    "),
    "blank lines": ("import math\n", "\n\nimport math\n\n"),
}

DIFFERENT = {
    "constant": ("SCALE = 1000", "SCALE = 1001"),
    "type of a constant": ("SCALE = 1000", "SCALE = 1000.0"),
    "truth of a constant": ("factor=1", "factor=True"),
    "no constant": ("side: float = 2.0", "side: float"),
    "none": ("factor=1", "factor=None"),
    "empty": ('"!"', '""'),
    "operator": ("self.side**2 * factor", "self.side**2 + factor"),
    "precedence": ("math.pi * self.side**2", "(math.pi * self.side)**2"),
    "comparison": ("factor > 0", "factor >= 0"),
    "name": ("class Shape", "class Form"),
    "attribute": ("math.pi", "math.tau"),
    "annotation": ("side: float", "side: int"),
    "argument": ("*, factor=1", "factor=1"),
    "conversion": ("!r:", "!s:"),
    "format": (":>{factor}", ":<{factor}"),
    "text": (" of {others}", " for {others}"),
    "import": ("import math", "import cmath as math"),
    "order": ("import math\n\nSCALE = 1000", "SCALE = 1000\nimport math\n"),
    "removed": ("        return f", "        f"),
}


def changed(change: tuple[str, str]) -> str:
    old, new = change
    assert SOURCE.count(old) == 1, old
    return SOURCE.replace(old, new)


@pytest.mark.parametrize("change", SAME)
def test_what_does_nothing_does_not_count(change: str) -> None:
    assert changed(SAME[change]) != SOURCE
    assert source_hash(changed(SAME[change])) == source_hash(SOURCE)


@pytest.mark.parametrize("change", DIFFERENT)
def test_what_does_something_counts(change: str) -> None:
    assert source_hash(changed(DIFFERENT[change])) != source_hash(SOURCE)


def test_places_of_none_count() -> None:
    assert source_hash("f(x[1:])") != source_hash("f(x[:1])")
    assert source_hash("{**a, b: c}") != source_hash("{b: c, **a}")
    assert source_hash("def f(*, a=1, b): ...") != source_hash("def f(*, a, b=1): ...")
    assert source_hash("return_ = None") != source_hash("return_ = 0")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of one package whose import would fail."""
    package = tmp_path / "project" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "project" / "__init__.py").write_text("raise ImportError('not to be imported')\n")
    (package / "__init__.py").write_text("raise ImportError\n")
    (package / "first.py").write_text(SOURCE)
    (package / "second.py").write_text("x = 1\n")
    monkeypatch.setattr(codehash, "_ROOT", tmp_path)
    monkeypatch.setattr(codehash, "_LOCK", tmp_path / "stage_code.json")
    codehash._one_hash.cache_clear()
    yield tmp_path
    codehash._one_hash.cache_clear()


def rehash(*modules: str) -> str:
    codehash._one_hash.cache_clear()
    return module_hash(*modules)


def test_modules_are_found_without_import(project: Path) -> None:
    first, package = rehash("project.inner.first"), rehash("project.inner")
    assert first != package
    assert rehash("project.inner.first", "project.inner.second") == rehash(
        "project.inner.second", "project.inner.first"
    )
    (project / "project/inner/second.py").write_text("x = 2\n")
    assert rehash("project.inner.first") == first
    assert rehash("project.inner") != package
    (project / "project/inner/second.py").write_text("x = 1  # one\n")
    assert rehash("project.inner") == package
    (project / "project/inner/second.py").rename(project / "project/inner/third.py")
    assert rehash("project.inner") != package
    with pytest.raises(ModuleNotFoundError, match=r"no module 'project\.outer'"):
        rehash("project.outer")


def test_locking(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    versions = {"hessian": 1}
    monkeypatch.setattr(codehash, "STAGE_MODULES", {"hessian": ("project.inner",)})
    monkeypatch.setattr(codehash, "VERSIONS", versions)
    assert main(["--lock"]) == 0
    assert main([]) == 0
    assert "as locked" in capsys.readouterr().out
    (project / "project/inner/second.py").write_text("x = 2\n")
    codehash._one_hash.cache_clear()
    assert main([]) == 1
    said = capsys.readouterr().err
    assert "stage 'hessian' (project.inner) has changed" in said
    assert "bump the version" in said
    assert "re-lock with `python -m quadscape.provenance.codehash --lock`" in said
    versions["hessian"] = 2
    assert lock_problems() == [
        "Version 2 of the stage 'hessian' is not locked: run `python -m quadscape.provenance.codehash --lock`."
    ]
    main(["--lock"])
    assert lock_problems() == []
    assert json.loads((project / "stage_code.json").read_text())["hessian"]["version"] == 2
    (project / "stage_code.json").write_text("{}")
    assert len(lock_problems()) == 1


def test_long_stages_are_as_locked() -> None:
    problems = lock_problems()
    assert not problems, "\n".join(problems)


def test_stages_have_versions_and_modules() -> None:
    assert STAGE_MODULES.keys() == codehash.VERSIONS.keys() == codehash.locked_stages().keys()


OTHERS = [found for minor in (12, 13, 14) if (found := shutil.which(f"python3.{minor}"))]


def hashes_of(python: str) -> dict[str, str] | None:
    """Hashes of every file of the package as another Python computes them; None when that one does not start."""
    package = Path(quadscape.__file__).parent
    program = (
        "import json, sys; from pathlib import Path; from quadscape.provenance.source import source_hash\n"
        "files = sorted(Path(sys.argv[1]).rglob('*.py')) + [Path(sys.argv[2])]\n"
        "print(json.dumps({path.name: source_hash(path.read_text()) for path in files}))"
    )
    done = subprocess.run(
        [python, "-c", program, str(package), __file__],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


def test_hash_is_equal_under_other_versions_of_python() -> None:
    here = hashes_of(sys.executable)
    assert here is not None
    others = [found for python in OTHERS if (found := hashes_of(python)) is not None]
    if not others:
        pytest.skip("no other version of Python is installed here")
    for other in others:
        assert other == here


def test_known_hash() -> None:
    """Under whatever version of Python the tests run."""
    assert source_hash(SOURCE) == "e5b0f63e49ec9f231462126d25338303227079b0157430304bdfa202f6977eab"
