"""The definitions that a result follows from: what enters their hash, what does not; everything that runs is in."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest
from family_cases import compared_tables, descent_tables, escape_tables, layer_tables
from figure_cases import checkpoint_tables, pair_tables, run_tables
from hypothesis import given, settings
from hypothesis import strategies as st
from stationary_cases import stationary_tables
from tracing import executed

import quadscape
from quadscape.figures import FIGURES
from quadscape.provenance import definitions
from quadscape.provenance.definitions import Closure, cached_closures, closure
from quadscape.provenance.syntax import DefinitionsError
from quadscape.tables import Table
from results import make_results

Tree = Mapping[str, str]
"""Source by path within the package."""


def write(root: Path, tree: Tree) -> Path:
    shutil.rmtree(root / "quadscape", ignore_errors=True)
    for name, source in {"__init__.py": "", **tree}.items():
        path = root / "quadscape" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(root / "quadscape").parents:
            (root / "quadscape" / parent / "__init__.py").touch()
        path.write_text(textwrap.dedent(source))
    return root


def follow(root: Path, tree: Tree, entry: str = "quadscape.a:f") -> Closure:
    return closure([entry], write(root, tree))


def reached(root: Path, tree: Tree, entry: str = "quadscape.a:f") -> set[str]:
    return {name.removeprefix("quadscape.") for name in follow(root, tree, entry).definitions}


BASE = {
    "a.py": '''
        """A module."""
        import math
        import warnings
        from functools import cache
        from math import sqrt
        from typing import TYPE_CHECKING, cast
        import quadscape.b
        import quadscape.pkg.deep as deep_alias
        from quadscape import c as aliased
        from quadscape.pkg import offered
        from . import d
        from .pkg.sibling import near as renamed
        if TYPE_CHECKING:
            from quadscape.e import OnlyType

        SCALE, OTHER = 2.0, 3.0
        TABLE: dict[str, int] = {}
        TABLE["x"] = 5
        LIST = [1]
        LIST += [2]

        def unreached():
            return OTHER

        @cache
        def f(x: "OnlyType", y=1, *, z: int = 2) -> "OnlyType":
            """Does it."""
            from quadscape.e import late  # here
            log = print
            if x is None:
                raise ValueError(f"bad {x}: {message(x)}")
            log(f"now {message(x)}")
            warnings.warn("careful")
            shape = Shape(1)
            shape.log("done")
            total = SCALE * sqrt(x) + math.log(4.0) + quadscape.b.g(x) + aliased.h(x) + deep_alias.k(1)
            total += offered(x) + d.m() + renamed() + late() + TABLE["x"] + LIST[0]
            total += shape.area() + getattr(shape, "named")
            return cast("OnlyType", [i * 7 for i in range(3)] and total)

        def message(x):
            return "message 1"

        class Root:
            unit = "m"

            def area(self):
                return 11

            def unused(self):
                return 12

            def log(self, text):
                return 13

        class Shape(Root):
            """A shape."""

            side: float = 14

            def __init__(self, side: float) -> None:
                self.side = side

            @property
            def named(self):
                return 15

            @named.setter
            def named(self, value):
                self.side = 16

            def __len__(self):
                return 17
    ''',
    "b.py": "def g(x):\n    return 21\n\ndef g2(x):\n    return 22\n",
    "c.py": "def h(x: int):\n    return 31\n",
    "d.py": "def m():\n    return 41\n",
    "e.py": "class OnlyType:\n    x = 51\n\ndef late():\n    return 52\n",
    "pkg/__init__.py": "from quadscape.pkg.inner import made as offered\nfrom quadscape.pkg.inner import other\n",
    "pkg/inner.py": "def made(x):\n    return 61\n\ndef other():\n    return 62\n",
    "pkg/deep.py": "def k(x):\n    return 71\n",
    "pkg/sibling.py": "from ..d import m\n\ndef near():\n    return m() + 81\n",
}

DIFFERENT = {
    "constant": ("a.py", "SCALE, OTHER = 2.0,", "SCALE, OTHER = 2.5,"),
    "type of a constant": ("a.py", "SCALE, OTHER = 2.0,", "SCALE, OTHER = 2,"),
    "default": ("a.py", "y=1", "y=2"),
    "default of a keyword": ("a.py", "z: int = 2", "z: int = 3"),
    "decorator": ("a.py", "@cache\n", "\n"),
    "decorator's arguments": ("a.py", "@cache\n", "@cache()\n"),
    "import from outside": ("a.py", "from math import sqrt", "from cmath import sqrt"),
    "module from outside": ("a.py", "import math\n", "import cmath as math\n"),
    "logarithm": ("a.py", "math.log(4.0)", "math.log(5.0)"),
    "item of a table": ("a.py", 'TABLE["x"] = 5', 'TABLE["x"] = 6'),
    "augmented assignment": ("a.py", "LIST += [2]", "LIST += [3]"),
    "comprehension": ("a.py", "i * 7", "i * 8"),
    "method": ("a.py", "return 11", "return 111"),
    "method called like log": ("a.py", "return 13", "return 113"),
    "class attribute": ("a.py", "side: float = 14", "side: float = 114"),
    "class attribute of the base": ("a.py", 'unit = "m"', 'unit = "km"'),
    "base": ("a.py", "class Shape(Root)", "class Shape(Root, dict)"),
    "property by getattr": ("a.py", "return 15", "return 115"),
    "setter": ("a.py", "self.side = 16", "self.side = 116"),
    "special method": ("a.py", "return 17", "return 117"),
    "attribute chain of import": ("b.py", "return 21", "return 121"),
    "module by from": ("c.py", "return 31", "return 131"),
    "relative import": ("d.py", "return 41", "return 141"),
    "import in a function": ("e.py", "return 52", "return 152"),
    "through a package": ("pkg/inner.py", "return 61", "return 161"),
    "other name through a package": ("pkg/__init__.py", "import made as offered", "import other as offered"),
    "import by alias": ("pkg/deep.py", "return 71", "return 171"),
    "renamed": ("pkg/sibling.py", "+ 81", "+ 181"),
    "name of an attribute": ("a.py", "shape.area()", "shape.unused()"),
    "exception": ("a.py", "raise ValueError(", "raise TypeError("),
}

SAME = {
    "comment": ("a.py", "shape = Shape(1)", "shape = Shape(1)  # now"),
    "docstring": ("a.py", '"""Does it."""', '"""Does it,\n            well."""'),
    "docstring removed": ("a.py", '    """A shape."""\n', ""),
    "module's docstring": ("a.py", '"""A module."""', '"""The module."""'),
    "formatting": ("a.py", "shape = Shape(1)", "shape = (Shape(\n                1,\n            ))"),
    "annotation": ("a.py", "z: int = 2", "z: float = 2"),
    "annotation removed": ("a.py", ' -> "OnlyType":', ":"),
    "annotation of a constant": ("a.py", "TABLE: dict[str, int] = {}", "TABLE = {}"),
    "annotation of a field": ("a.py", "side: float = 14", "side: int = 14"),
    "annotation elsewhere": ("c.py", "h(x: int)", "h(x)"),
    "type only": ("e.py", "x = 51", "x = 151"),
    "type of a cast": ("a.py", 'cast("OnlyType",', "cast(OnlyType,"),
    "message of an error": ("a.py", 'f"bad {x}: {message(x)}"', '"bad"'),
    "message of a log": ("a.py", 'log(f"now {message(x)}")', 'log("then")'),
    "what makes messages": ("a.py", '"message 1"', '"message 2"'),
    "warning": ("a.py", '"careful"', '"carefully"'),
    "method log": ("a.py", 'shape.log("done")', 'shape.log("done", 2)'),
    "unreached function": ("a.py", "return OTHER", "return OTHER + 1"),
    "unreached constant": ("a.py", "2.0, 3.0", "2.0, 4.0"),
    "unreached method": ("a.py", "return 12", "return 112"),
    "unreached in another module": ("b.py", "return 22", "return 122"),
    "unreached behind a package": ("pkg/inner.py", "return 62", "return 162"),
    "another import": ("a.py", "import math\n", "import math\nimport cmath\n"),
    "import's form": ("a.py", "quadscape.b.g(x)", "g(x)"),
    "order of imports": ("a.py", "import math\nimport warnings", "import warnings\nimport math"),
    "from outside through its module": ("a.py", "sqrt(x)", "math.sqrt(x)"),
}


def changed(name: str, old: str, new: str) -> dict[str, str]:
    tree = {path: textwrap.dedent(source) for path, source in BASE.items()}
    old, new = (text.replace("\n        ", "\n") for text in (old, new))
    assert tree[name].count(old) == 1, old
    tree[name] = tree[name].replace(old, new)
    if new == "g(x)":
        tree[name] = tree[name].replace("import quadscape.b\n", "from quadscape.b import g\n")
    return tree


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Closure:
    return follow(tmp_path_factory.mktemp("base"), BASE)


@pytest.mark.parametrize("change", DIFFERENT)
def test_what_is_reachable_counts(change: str, base: Closure, tmp_path: Path) -> None:
    assert follow(tmp_path, changed(*DIFFERENT[change])).hash != base.hash


@pytest.mark.parametrize("change", SAME)
def test_what_does_nothing_or_is_not_reachable_does_not_count(change: str, base: Closure, tmp_path: Path) -> None:
    assert follow(tmp_path, changed(*SAME[change])).hash == base.hash


def test_exactly_what_is_reachable(base: Closure) -> None:
    names = {"f", "SCALE", "TABLE", "LIST", "<statement 1>", "Root", "Root.area", "Root.log"}
    names |= {"Shape", "Shape.__init__", "Shape.__len__", "Shape.named"}
    others = {"b:g", "c:h", "d:m", "e:late", "pkg.inner:made", "pkg.deep:k", "pkg.sibling:near"}
    assert base.definitions == {f"quadscape.a:{name}" for name in names} | {f"quadscape.{name}" for name in others}
    assert len(base.hash) == 20
    assert base.digests.keys() == base.definitions


def test_what_changed_is_named(base: Closure, tmp_path: Path) -> None:
    other = follow(tmp_path, changed("b.py", "return 21", "return 121"))
    assert other.changed(base) == ["quadscape.b:g"]
    other = follow(tmp_path, changed("a.py", "shape.area()", "shape.unused()"))
    assert other.changed(base) == ["quadscape.a:Root.area", "quadscape.a:Root.unused", "quadscape.a:f"]


@pytest.mark.parametrize(
    ("tree", "found"),
    [
        # Local names are not those of the module.
        ({"a.py": "def g(): ...\ndef f(g):\n    return g()\n"}, {"a:f"}),
        ({"a.py": "def g(): ...\ndef f():\n    g = 1\n    return g\n"}, {"a:f"}),
        ({"a.py": "def g(): ...\ndef f():\n    return [g for g in range(2)]\n"}, {"a:f"}),
        ({"a.py": "def g(): ...\ndef f():\n    return [x for x in g()]\n"}, {"a:f", "a:g"}),
        ({"a.py": "def g(): ...\ndef f(x=g()):\n    g = x\n    return g\n"}, {"a:f", "a:g"}),
        ({"a.py": "def g(): ...\ndef f():\n    return (lambda g: g)(1)\n"}, {"a:f"}),
        ({"a.py": "def g(): ...\ndef f():\n    return lambda x=g: x\n"}, {"a:f", "a:g"}),
        ({"a.py": "def g(): ...\ndef f():\n    try: ...\n    except E as g:\n        return g\n"}, {"a:f"}),
        ({"a.py": "def g(): ...\ndef f(x):\n    match x:\n        case [g, *_]:\n            return g\n"}, {"a:f"}),
        ({"a.py": "def g(): ...\ndef f():\n    [g := i for i in range(2)]\n    return g\n"}, {"a:f"}),
        ({"a.py": "def g(): ...\ndef f():\n    g = 1\n    class C:\n        def m(self): return g\n"}, {"a:f"}),
        # Nested ones see what is around them; a class in between is skipped.
        ({"a.py": "def g(): ...\ndef f():\n    def inner():\n        return g()\n    return inner\n"}, {"a:f", "a:g"}),
        (
            {"a.py": "def g(): ...\nclass f:\n    g = 1\n    def __len__(self): return g\n"},
            {"a:f", "a:f.__len__", "a:g"},
        ),
        ({"a.py": "X = 1\ndef f():\n    global X\n    X = 2\n"}, {"a:f", "a:X"}),
        ({"a.py": "X = 1\ndef f():\n    X: int\n    return X\n"}, {"a:f"}),
        # Several definitions of one name all count.
        (
            {
                "a.py": "import m\ntry:\n    from quadscape.b import g\nexcept E:\n    g = None\ndef f(): g()\n",
                "b.py": "def g(): ...",
            },
            {"a:f", "a:g", "b:g"},
        ),
        ({"a.py": "if m:\n    def g(): return 1\nelse:\n    def g(): return 2\ndef f(): g()\n"}, {"a:f", "a:g"}),
        ({"a.py": "if m:\n    class C:\n        def x(self): ...\ndef f(): C()\n"}, {"a:f", "a:C", "a:C.x"}),
        (
            {"a.py": "class C:\n    def x(self): ...\nC = g(C)\ndef f(): C.x\ndef g(): ...\n"},
            {"a:f", "a:C", "a:C.x", "a:g"},
        ),
        ({"a.py": "def g(): ...\nif __name__ != 'x':\n    h = g\ndef f(): h\n"}, {"a:f", "a:g", "a:h"}),
        # Cycles.
        ({"a.py": "def f(): g()\ndef g(): f()\n"}, {"a:f", "a:g"}),
        (
            {"a.py": "from quadscape import b\ndef f(): b.g()\n", "b.py": "from quadscape.a import f\ndef g(): f()\n"},
            {"a:f", "b:g"},
        ),
        ({"a.py": "from quadscape.b import x\ndef f(): x()\n", "b.py": "from quadscape.a import x\n"}, {"a:f"}),
        # A whole module, where it is passed on.
        (
            {"a.py": "from quadscape import b\ndef f(): vars(b)\n", "b.py": "X = 1\nclass C:\n    def m(self): ...\n"},
            {"a:f", "b:X", "b:C"},
        ),
        # Modules whose attributes are made.
        (
            {"a.py": "from quadscape import b\ndef f(): b.x\n", "b.py": "def __getattr__(name): ...\n"},
            {"a:f", "b:__getattr__"},
        ),
        # Several names of one assignment.
        ({"a.py": "A, B = g()\ndef g(): ...\ndef h(): ...\ndef f(): A\n"}, {"a:f", "a:A", "a:B", "a:g"}),
        ({"a.py": "(A, (B, C)), D = (1, (g, h)), 2\ndef g(): ...\ndef h(): ...\ndef f(): B\n"}, {"a:f", "a:B", "a:g"}),
        # Under TYPE_CHECKING and as a program.
        (
            {
                "a.py": "import typing\nif typing.TYPE_CHECKING:\n    from b import g\nelse:\n    def g(): ...\n"
                "def f(): g()\nif __name__ == '__main__':\n    f(h())\ndef h(): ...\n"
            },
            {"a:f", "a:g"},
        ),
    ],
)
def test_scopes(tree: Tree, found: set[str], tmp_path: Path) -> None:
    assert reached(tmp_path, tree) == found


CLASSES = """
class Base:
    def used(self): return self.deep()
    def deep(self): ...
    def idle(self): ...
    def text(self): ...
class Sub(Base):
    def used(self): ...
class Unmade(Base):
    def used(self): ...
"""


@pytest.mark.parametrize(
    ("body", "methods"),
    [
        ("Sub().used()", {"Base.used", "Base.deep", "Sub.used"}),
        ("Sub, x.used", {"Base.used", "Base.deep", "Sub.used"}),
        ("Sub.idle", {"Base.idle"}),
        ("getattr(Sub(), 'idle', None)", {"Base.idle"}),
        ("hasattr(Sub(), 'idle')", {"Base.idle"}),
        ("getattr(Sub(), x), 'text', 'no method'", {"Base.text"}),
        ("getattr(Sub(), x), y(text=1)", {"Base.text"}),
        ("getattr(torch, x), 'text', Sub()", set()),
        ("Sub, 'text'", set()),
        ("Sub, operator.attrgetter('x.idle', 'text')", {"Base.idle", "Base.text"}),
        ("Sub, operator.methodcaller('idle', 'text')", {"Base.idle"}),
        # Of what comes from outside no attribute is one of this project's methods.
        ("Sub(), torch.idle(torch.x.text)", set()),
        ("Sub(), torch.zeros().idle()", {"Base.idle"}),
    ],
)
def test_methods_are_reached_by_name(body: str, methods: set[str], tmp_path: Path) -> None:
    found = reached(tmp_path, {"a.py": f"import operator\nimport torch\n{CLASSES}\ndef f(x): {body}\n"})
    assert found == {"a:f", "a:Base", "a:Sub"} | {f"a:{name}" for name in methods}


def test_patterns_name_attributes(tmp_path: Path) -> None:
    body = "    match x:\n        case Sub(idle=1): ...\n"
    assert "a:Base.idle" in reached(tmp_path, {"a.py": f"{CLASSES}\ndef f(x):\n{body}"})


@pytest.mark.parametrize(
    ("bases", "is_reached"),
    [
        ("", False),
        ("object", False),
        ("Protocol", False),
        ("Protocol[T]", False),
        ("abc.ABC, metaclass=abc.ABCMeta", False),
        ("ValueError", False),
        ("Enum", False),
        ("dict", True),
        ("torch.nn.Module", True),
        ("torch.Base[int]", True),
        ("namedtuple('x', 'y')", True),
        ("Mixed", True),
        ("MADE", True),
        ("metaclass=torch.Meta", True),
    ],
)
def test_methods_that_code_outside_may_call(bases: str, is_reached: bool, tmp_path: Path) -> None:
    source = f"""
        import abc, torch
        from collections import namedtuple
        from enum import Enum
        from typing import Protocol, TypeVar
        T = TypeVar("T")
        MADE = torch.make()
        class Mixed(torch.nn.Module): ...
        class Plain:
            def inherited(self): ...
        class C(Plain{", " if bases else ""}{bases}):
            def hook(self): ...
            def _missing_(self): ...
        def f(): C()
    """
    found = reached(tmp_path, {"a.py": source})
    assert ("a:C.hook" in found) is is_reached
    assert ("a:Plain.inherited" in found) is is_reached
    assert "a:C._missing_" in found


def test_classes_as_entries(tmp_path: Path) -> None:
    tree = {"a.py": f"{CLASSES}\ndef f(x): x.used()\n"}
    everything = {"a:Sub", "a:Sub.used", "a:Base"} | {f"a:Base.{name}" for name in ("used", "deep", "idle", "text")}
    assert reached(tmp_path, tree, "quadscape.a:Sub.*") == everything
    assert reached(tmp_path, tree, "quadscape.a:Sub") == {"a:Sub", "a:Base"}
    # One method as an entry brings its class, and nothing else of it.
    assert reached(tmp_path, tree, "quadscape.a:Base.used") == {"a:Base", "a:Base.used", "a:Base.deep"}
    # The class of an argument.
    assert reached(tmp_path, tree) == {"a:f"}
    both = closure(["quadscape.a:f", "quadscape.a:Base"], tmp_path).definitions
    assert both == {f"quadscape.a:{name}" for name in ("f", "Base", "Base.used", "Base.deep")}
    with pytest.raises(DefinitionsError, match=r"no definition 'quadscape\.a:f\.\*'"):
        closure(["quadscape.a:f.*"], tmp_path)


def test_names_in_a_class(tmp_path: Path) -> None:
    source = """
        def outside(): ...
        def value(): ...
        def default(): ...
        def f(): C, C.plain
        class C:
            kept = value()
            def _get(self): ...
            def plain(self, x=kept, y=default()): ...
            prop = property(_get)
            class Inner:
                def method(self): outside()
    """
    names = {"f", "C", "C._get", "C.plain", "C.Inner.method", "value", "default", "outside"}
    assert reached(tmp_path, {"a.py": source}) == {f"a:{name}" for name in names}


EFFECTS = """
import numpy, torch
from quadscape.registry import KEPT, Registered, register, keeper
def f(): ...
@register("x")
def by_decorator(): ...
@numpy.vectorize
def from_outside(): ...
@keeper.add
class ByDecorator: ...
class BySubclass(Registered): ...
KEPT["y"] = lambda: by_item()
def by_item(): ...
KEPT.z = 1
torch.set_number(2)
for _name in ("A", "B"):
    torch.forget(_name)
with torch.no_grad():
    X = 1
if torch.here:
    torch.there(3)
if torch.here:
    Y = 1
if torch.here:
    @register("y")
    def in_condition(): ...
assert torch.is_here
__all__ = ["f"]
def idle(): ...
"""
REGISTRY = """
KEPT = {}
def register(name):
    def inner(function):
        KEPT[name] = function
        return function
    return inner
class Registered:
    def __init_subclass__(cls): KEPT[cls] = 1
class Keeper:
    def add(self, x): ...
keeper = Keeper()
def idle(): ...
"""


def test_what_acts_at_import_is_reached_with_its_module(tmp_path: Path) -> None:
    tree = {"a.py": EFFECTS, "registry.py": REGISTRY}
    inside = {"f", "in_condition", "by_decorator", "ByDecorator", "BySubclass", "by_item", "_name", "X"}
    inside |= {f"<statement {number}>" for number in range(1, 8)}
    # `_name` and `X` are bound by the statements that act.
    kept = {"KEPT", "register", "Registered", "Registered.__init_subclass__", "keeper", "Keeper", "Keeper.add"}
    assert reached(tmp_path, tree) == {f"a:{name}" for name in inside} | {f"registry:{name}" for name in kept}
    first = follow(tmp_path, tree)
    for old, new in (
        ("set_number(2)", "set_number(3)"),
        ('"A", "B"', '"A", "C"'),
        ("there(3)", "there(4)"),
        ("z = 1", "z = 2"),
    ):
        assert follow(tmp_path, {**tree, "a.py": EFFECTS.replace(old, new)}).hash != first.hash
    assert follow(tmp_path, {**tree, "a.py": EFFECTS.replace("Y = 1", "Y = 2")}).hash == first.hash


def test_which_modules_act(tmp_path: Path) -> None:
    act = "import torch\ntorch.act({})\ndef {}(): ...\n"
    tree = {
        "__init__.py": "import torch\nfrom quadscape.offered import o\ntorch.act(0)\n",
        "a.py": """
            import quadscape.whole
            from quadscape import single
            from quadscape.named import n
            from quadscape.silent import s
            from quadscape.typed import t
            def f(x: t): return n() + g()
            def g(): return s
            def h(): import quadscape.later
        """,
        **{
            f"{name}.py": act.format(number, name[0])
            for number, name in enumerate(("whole", "single", "named", "offered", "later", "typed", "far"))
        },
        "silent.py": "import quadscape.far\nX = 1\n",
    }
    expected = {"a:f", "a:g", ":<statement 1>", "named:n"} | {
        f"{name}:<statement 1>" for name in ("whole", "single", "named")
    }
    found = {name.removeprefix("quadscape").removeprefix(".") for name in follow(tmp_path, tree).definitions}
    assert found == expected
    found = reached(tmp_path, tree, "quadscape.a:h")
    assert "later:<statement 1>" in found


def test_decorators_of_methods(tmp_path: Path) -> None:
    source = """
        from functools import singledispatch
        from quadscape.b import register
        class C:
            @register
            def hook(self): ...
            @singledispatch
            def other(self): ...
        @singledispatch
        def area(x): ...
        @area.register
        def _circle(x): ...
        @area.register(int)
        def _square(x): ...
        def f(): C()
    """
    found = reached(tmp_path, {"a.py": source, "b.py": "def register(x): ...\n"})
    assert found == {"a:f", "a:C", "a:C.hook", "a:area", "a:_circle", "a:_square", "b:register"}


LOGS = {
    "log('a', 1)": True,
    "self.log('a', 1)": True,
    "x.job._log('a', 1)": True,
    "warnings.warn('a', 1)": True,
    "careful('a', 1)": True,
    "inside.log('a', 1)": True,
    "math.log('a', 1)": False,
    "outside_log('a', 1)": False,
    "x = log('a', 1)": False,
    "x = self.log('a', 1)": False,
    "print('a', 1)": False,
    "raise ValueError('a', 1)": True,
    "raise make('a', 1) from x": True,
    "raise ValueError from make('a', 1)": False,
}


@pytest.mark.parametrize("statement", LOGS)
def test_arguments_of_messages(statement: str, tmp_path: Path) -> None:
    head = "import math, warnings\nfrom warnings import warn as careful\nfrom torch import log as outside_log\n"
    head += "from quadscape import inside\ndef g(): ...\n"
    hashes, names = set(), set()
    for argument in ("1", "2", "g()"):
        source = f"{head}def f(self, x):\n    {statement.replace('1', argument)}\n"
        found = follow(tmp_path, {"a.py": source, "inside.py": "def log(*x): ..."})
        hashes.add(found.hash)
        names.add("quadscape.a:g" in found.definitions)
    assert (len(hashes) == 1) is LOGS[statement]
    assert (names == {False}) is LOGS[statement]


def test_log_from_outside_counts(tmp_path: Path) -> None:
    trees = [
        {"a.py": f"from {module} import log\ndef f(x):\n    log({x})\n"} for module in ("numpy", "torch") for x in "12"
    ]
    assert len({follow(tmp_path, tree).hash for tree in trees}) == 4


FIELDS = [
    "x: ClassVar[int] = 1",
    "x: int = 1",
    "x: InitVar[int] = 1",
    "x = 1",
    "x: dataclasses.KW_ONLY = 1",
    "x: int",
    "",
]


def test_fields_of_classes_count_without_their_types(tmp_path: Path) -> None:
    trees = [{"a.py": f"class f:\n    y = 1\n    {text}\n"} for text in FIELDS]
    assert len({follow(tmp_path, tree).hash for tree in trees}) == len(FIELDS)
    same = [{"a.py": f"class f:\n    {text}\n"} for text in ("x: int = 1", "x: 'float' = 1", "x: list[Y] = 1")]
    assert len({follow(tmp_path, tree).hash for tree in same}) == 1
    same = [{"a.py": f"def f():\n    {text}\n    return x\n"} for text in ("x = 1", "x: int = 1", "x: int\n    x = 1")]
    assert len({follow(tmp_path, tree).hash for tree in same}) == 1


def test_of_two_definitions_with_one_name_it_counts_which_is_meant(tmp_path: Path) -> None:
    tree = {
        "a.py": "from quadscape import b, c\ndef f(): return 2 * b.g() - c.g()\n",
        "b.py": "def g(): return helper()\ndef helper(): return 1\n",
        "c.py": "def g(): return helper()\ndef helper(): return 2\n",
    }
    first = follow(tmp_path, tree)
    assert {"quadscape.b:helper", "quadscape.c:helper"} <= first.definitions
    swapped = follow(tmp_path, {**tree, "a.py": tree["a.py"].replace("2 * b.g() - c", "2 * c.g() - b")})
    assert swapped.definitions == first.definitions
    assert swapped.hash != first.hash
    # Swapped once more where they are defined, they are the same again.
    both = {
        **tree,
        "a.py": tree["a.py"].replace("2 * b.g() - c", "2 * c.g() - b"),
        "b.py": tree["c.py"],
        "c.py": tree["b.py"],
    }
    assert follow(tmp_path, both).hash == first.hash


def test_a_method_counts_with_its_class(tmp_path: Path) -> None:
    classes = "class {}:\n    def x(self): return 1\nclass {}:\n    y = 2\ndef f(): C().x(); D()\n"
    assert (
        follow(tmp_path, {"a.py": classes.format("C", "D")}).hash
        != follow(tmp_path, {"a.py": classes.format("D", "C")}).hash
    )


def test_what_cannot_be_followed_is_said(tmp_path: Path) -> None:
    star = r"^quadscape/a\.py, line 2: 'from quadscape\.b import \*' hides what is used"
    with pytest.raises(DefinitionsError, match=star):
        follow(tmp_path, {"a.py": "\nfrom .b import *\ndef f(): ...\n"})
    with pytest.raises(DefinitionsError, match=r"'from numpy import \*'"):
        follow(tmp_path, {"a.py": "from numpy import *\ndef f(): ...\n"})
    with pytest.raises(DefinitionsError, match=r"^quadscape/b\.py, line 2: this is no valid Python"):
        follow(tmp_path, {"a.py": "from quadscape.b import g\ndef f(): g()\n", "b.py": "\ndef g(:\n"})
    with pytest.raises(DefinitionsError, match=r"^quadscape/b\.py.*: this is no valid Python"):
        follow(tmp_path, {"a.py": "from quadscape.b import g\ndef f(): g()\n", "b.py": "X = '\0'\n"})
    # What is not reached may be anything.
    assert reached(tmp_path, {"a.py": "from b import *\n", "b.py": "def f(): ...\n"}, "quadscape.b:f") == {"b:f"}
    for entry in ("quadscape.a:g", "quadscape.b:f", "quadscape.a", "numpy:array", ""):
        with pytest.raises(DefinitionsError, match=f"no definition '{entry}'"):
            follow(tmp_path, {"a.py": "def f(): ...\n"}, entry)


def test_missing_names_are_no_error(tmp_path: Path) -> None:
    source = "from quadscape import gone\nfrom quadscape.b import lost\ndef f(): gone.x, lost.y, unknown\n"
    assert reached(tmp_path, {"a.py": source, "b.py": ""}) == {"a:f"}


# Random modules.

MODULES = ("a", "b", "c")


@st.composite
def programs(draw: st.DrawFn) -> list[dict]:
    """Definitions that name others, each with its module."""
    count = draw(st.integers(2, 8))
    return [
        {
            "module": draw(st.sampled_from(MODULES)),
            "kind": draw(st.sampled_from(["function", "class", "constant"])),
            "uses": draw(st.lists(st.integers(0, count - 1), max_size=3)),
            "value": draw(st.integers(0, 2)),
            "form": draw(st.sampled_from(["from", "module", "inside"])),
        }
        for _ in range(count)
    ]


def rendered(program: list[dict], doc: str = "") -> dict[str, str]:
    bodies: dict[str, list[str]] = {name: [] for name in MODULES}
    heads: dict[str, set[str]] = {name: set() for name in MODULES}
    for number, item in enumerate(program):
        names, inside = [], []
        for use in item["uses"]:
            other = program[use]["module"]
            if other == item["module"]:
                names.append(f"d{use}")
            elif item["form"] == "module":
                heads[item["module"]].add(f"from quadscape import {other} as m{other}")
                names.append(f"m{other}.d{use}")
            elif item["form"] == "inside" and item["kind"] == "function":
                inside.append(f"from quadscape.{other} import d{use}")
                names.append(f"d{use}")
            else:
                heads[item["module"]].add(f"from quadscape.{other} import d{use} as e{use}")
                names.append(f"e{use}")
        value = f"[{item['value']}, {', '.join(names)}]"
        note = [f'    """{doc}"""'] if doc else []
        lines = {
            "function": [f"def d{number}():", *note, *(f"    {line}" for line in inside), f"    return {value}"],
            "class": [f"class d{number}:", *note, f"    x = {value}"],
            "constant": [f"d{number} = lambda: {value}"],
        }[item["kind"]]
        bodies[item["module"]] += [*([f"# {doc}", "", ""] if doc else []), *lines]
    return {f"{name}.py": "\n".join([*sorted(heads[name]), *bodies[name]]) + "\n" for name in MODULES}


def reachable(program: list[dict]) -> set[int]:
    found, pending = set(), [0]
    while pending:
        number = pending.pop()
        if number not in found:
            found.add(number)
            pending += program[number]["uses"]
    return found


@given(program=programs(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_random_programs(program: list[dict], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "random"

    def hashed(changed: list[dict], doc: str = "") -> str:
        found = follow(root, rendered(changed, doc), f"quadscape.{changed[0]['module']}:d0")
        assert {name.partition(":")[2] for name in found.definitions} == {f"d{n}" for n in reachable(changed)}
        return found.hash

    first = hashed(program)
    number = data.draw(st.integers(0, len(program) - 1))
    moved = [{**item} for item in program]
    moved[number]["module"] = data.draw(st.sampled_from(MODULES))
    assert hashed(moved) == first
    assert hashed(program, "Something.") == first
    edited = [{**item} for item in program]
    edited[number]["value"] += 1
    assert (hashed(edited) != first) is (number in reachable(program))


# Caching.


def test_closures_are_kept_until_a_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, BASE)
    names = {"one": ["quadscape.a:f"], "two": ["quadscape.b:g", "quadscape.c:h"]}
    made = {name: closure(entries, root) for name, entries in names.items()}
    directory = root / "quadscape" / "__pycache__"
    assert cached_closures(names, root) == made
    (kept,) = directory.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(definitions, "_found", lambda *_: pytest.fail("made again"))
        assert cached_closures(names, root) == made
        assert cached_closures({"again": names["two"]}, root) == {"again": made["two"]}
    # Another start is added.
    cached_closures({"three": ["quadscape.d:m"]}, root)
    assert len(json.loads(kept.read_text())) == 3
    # Damaged, it is made anew.
    for damaged in ("", "[]", '{"quadscape.a:f": {"hash": 1}}', '{"quadscape.a:f": 2}'):
        kept.write_text(damaged)
        assert cached_closures(names, root) == made
    path = root / "quadscape" / "b.py"
    path.write_text(path.read_text() + "# a comment\n")
    assert {name: found.hash for name, found in cached_closures(names, root).items()} == {
        name: found.hash for name, found in made.items()
    }
    (newer,) = directory.iterdir()
    assert newer != kept
    path.write_text("def g(x):\n    return 0\n")
    assert cached_closures(names, root)["two"].hash != made["two"].hash


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path: Path) -> None:
    root = write(tmp_path, BASE)
    (root / "quadscape" / "__pycache__").write_text("in the way")
    names = {"one": ["quadscape.a:f"]}
    assert cached_closures(names, root) == {"one": closure(names["one"], root)}


# What really runs.

SIZE = 40


@pytest.fixture(scope="module")
def tables() -> dict[str, list[Table]]:
    found: dict[str, list[Table]] = {}
    pairs = pair_tables(SIZE, "a", 0, 1, 0.1)
    parts = [checkpoint_tables(SIZE, "a", 3, 0.5, directions=12), run_tables("a", 300, (150,)), pairs]
    parts += [descent_tables(rates=(0.01, 0.1), diverged=(4,)), layer_tables(diverged=(2,)), escape_tables()]
    parts += [compared_tables(diverged=(2,)), stationary_tables()]
    for part in parts:
        for name, table in part.items():
            found.setdefault(name, []).append(table)
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_what_draws_is_reachable(name: str, tables: dict[str, list[Table]]) -> None:
    spec = FIGURES[name]
    ran = executed(lambda: spec.draw({table: tables[table] for table in (*spec.tables, *spec.also)}))
    # The classes of what comes in are named beside the function.
    entries = [f"{spec.draw.__module__}:{spec.draw.__name__}", "quadscape.tables:Table", "quadscape.tables:TableSchema"]
    found = closure(entries).definitions
    assert ran <= found, sorted(ran - found)
    assert {"quadscape.figures.style:styled", "quadscape.tables:Table.__getitem__"} <= ran | found
    assert "quadscape.tables:Table.write" not in found
    others = {spec.draw.__module__ for other, spec in FIGURES.items() if other != name}
    assert not any(definition.partition(":")[0] in others for definition in found)


STAGES = (
    "stage.run:run_stage",
    "training.task:TrainingTask",
    "curvature.hessian:HessianTask",
    "curvature.hessian:HessianShardTask",
    "curvature.eigenbasis:EigenbasisTask",
    "curvature.eigenbasis:Eigenbasis",
    "curvature.gauss_newton:GaussNewtonTask",
    "data.sets:prepare",
    "training.extraction:extract_checkpoint",
    "results.places:Places",
    "planning.problem:Problem",
    "planning.experiment_file:parse_experiment",
    "planning.targets:Targets",
    "planning.labels:measure_label",
    "measures.run:run_measure",
    "measures.job:Job",
    "measures.spectrum.compute:compute",
    "tables:Table.write",
)


@pytest.mark.long
def test_what_runs_in_all_stages_is_reachable(tmp_path: Path) -> None:
    """A minute under the profiler."""
    ran = executed(lambda: make_results(tmp_path))
    found = closure([f"quadscape.{entry}" for entry in STAGES]).definitions
    assert len(ran) > 400
    # Functions that pydantic takes from annotations.
    modules = {"quadscape.config.values", "quadscape.config.sections", "quadscape.planning.experiment"}
    assert {name.partition(":")[0] for name in ran - found} <= modules, sorted(ran - found)


PROGRAM = """
import json, sys
from pathlib import Path
from quadscape.provenance.definitions import closure
entries = ["curvature.eigenbasis:EigenbasisTask.*", "training.task:TrainingTask.*", "figures.catalogue:FIGURES"]
found = [closure(["quadscape." + entry]) for entry in entries] + [closure(["quadscape.a:f"], Path(sys.argv[1]))]
print(json.dumps([[one.hash, sorted(one.definitions)] for one in found]))
"""


def closures_of(python: str, root: Path) -> list | None:
    package = Path(quadscape.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([python, "-c", PROGRAM, str(root)], capture_output=True, text=True, env=environment)
    return json.loads(done.stdout) if done.returncode == 0 else None


def test_closures_are_equal_under_other_versions_of_python(tmp_path: Path) -> None:
    root = write(tmp_path, BASE)
    here = closures_of(sys.executable, root)
    assert here is not None
    pythons = [found for minor in (12, 13, 14) if (found := shutil.which(f"python3.{minor}"))]
    others = [found for python in pythons if (found := closures_of(python, root)) is not None]
    if not others:
        pytest.skip("no other version of Python is installed here")
    for other in others:
        assert other == here


def test_known_hash(base: Closure) -> None:
    """Under whatever version of Python the tests run."""
    assert base.hash == "0fbf583486aa4150ff85"
