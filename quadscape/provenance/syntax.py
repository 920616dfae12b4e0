"""What the statements of a module define, bind and do, from its syntax tree."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from quadscape.errors import QuadscapeError
from quadscape.provenance.source import has_no_effect

PACKAGE = "quadscape"
WHOLE = ".*"
# Fields that are absent from, or differ between, versions of Python, and types.
IGNORED = {"kind", "type_comment", "type_ignores", "ctx", "annotation", "returns", "type_params"}
# Annotations that make of a class attribute something else than a field.
MARKERS = {"ClassVar", "InitVar", "KW_ONLY"}
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPOUND = (ast.If, ast.Try, ast.TryStar, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Match)


class DefinitionsError(QuadscapeError):
    """Source whose definitions cannot be followed; the message names the place."""


class Target(NamedTuple):
    """What a name may stand for: `local`, `definition`, `module`, `external`, `missing`, or an unresolved `import`."""

    kind: str
    value: str = ""
    member: str = ""


LOCAL = Target("local")
_Names = dict[str, list[Target]]


@dataclass
class Definition:
    """One definition: its syntax trees, in order, and for a method the class that it is in."""

    module: str
    name: str
    nodes: list[ast.AST] = field(default_factory=list)
    owner: str = ""
    methods: dict[str, str] = field(default_factory=dict)
    inner: list[str] = field(default_factory=list)


@dataclass
class Module:
    """What one module defines and binds, and which of its statements act at import."""

    name: str
    package: str
    path: str
    names: _Names = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)
    effects: list[str] = field(default_factory=list)
    loads: list[Target] = field(default_factory=list)


class Scope:
    """Names that are bound in a module, class or function, and the scope around it."""

    def __init__(self, kind: str, names: _Names, outer: "Scope | None", module_names: Iterable[str] = ()) -> None:
        self.kind, self.names, self.outer, self.globals = kind, names, outer, frozenset(module_names)

    def find(self, name: str) -> list[Target] | None:
        """What a name may stand for here; None if nothing around binds it."""
        scope: Scope | None = self
        free = False
        while scope is not None:
            outermost = scope.outer is None
            free |= name in scope.globals
            # A class's names are not those of the functions in it.
            visible = scope is self or scope.kind != "class"
            if name in scope.names and visible and (outermost or not free):
                return scope.names[name]
            scope = scope.outer
        return None


def attribute_chain(node: ast.AST) -> tuple[str, list[str]] | None:
    """`a.b.c` as ("a", ["b", "c"]); None for what does not start at a name."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, attributes[::-1]) if isinstance(node, ast.Name) else None


def _branches(test: ast.expr) -> tuple[bool, bool] | None:
    """Which branches of a condition are code: None if both; of TYPE_CHECKING and `__name__ == "__main__"` one."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _branches(test.operand)
        return None if inner is None else (inner[1], inner[0])
    chain = attribute_chain(test)
    if chain is not None and (chain[1] or [chain[0]])[-1] == "TYPE_CHECKING":
        return False, True
    return (False, True) if ast.unparse(test) == "__name__ == '__main__'" else None


def statements_of(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Statements without those that do nothing, and without branches that are only for types."""
    for statement in body:
        branches = _branches(statement.test) if isinstance(statement, ast.If) else None
        if isinstance(statement, ast.If) and branches is not None:
            yield from statements_of([*(statement.body if branches[0] else []), *(statement.orelse * branches[1])])
        elif not has_no_effect(statement):
            yield statement


def _imports(node: ast.AST, package: str, place: str) -> Iterator[tuple[str, Target]]:
    """Names that an import binds, and to what."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield (
                alias.asname or alias.name.partition(".")[0],
                Target("import", alias.name if alias.asname else alias.name.partition(".")[0]),
            )
    if isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        parts = parts[: len(parts) - node.level + 1] if node.level else []
        source = ".".join([*parts, *([node.module] if node.module else [])])
        for alias in node.names:
            if alias.name == "*":
                raise DefinitionsError(
                    f"{place}, line {node.lineno}: 'from {source} import *' hides what is used: import the names, or "
                    "the module."
                )
            yield alias.asname or alias.name, Target("import", source, alias.name)


def loaded_modules(node: ast.AST, package: str, place: str, used: set[str]) -> list[Target]:
    """Modules that an import names only so that they run: no name that it binds is used."""
    if isinstance(node, ast.Import):
        return [Target("import", a.name) for a in node.names if not a.asname or a.asname not in used]
    return [target for name, target in _imports(node, package, place) if name not in used]


def bound_names(nodes: Iterable[ast.AST], package: str, place: str) -> tuple[_Names, set[str]]:
    """Names that statements bind in their own scope, and those that they declare to be bound further out."""
    names: _Names = {}
    outer: set[str] = set()
    pending = list(statements_of(nodes))
    while pending:
        node = pending.pop(0)
        found: list[str | None] = []
        children = [*ast.iter_child_nodes(node)]
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            found, children = [node.name], []
        elif isinstance(node, ast.Lambda):
            children = []
        elif isinstance(node, _COMPREHENSIONS):
            children = [part for part in ast.walk(node) if isinstance(part, ast.NamedExpr)]
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            outer.update(node.names)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found = [node.id]
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
            found = [node.name]
        elif isinstance(node, ast.MatchMapping):
            found = [node.rest]
        for name in found:
            if name is not None:
                names.setdefault(name, []).append(LOCAL)
        for name, target in _imports(node, package, place):
            names.setdefault(name, []).append(target)
        pending[:0] = statements_of(children)
    return {name: list(dict.fromkeys(found)) for name, found in names.items() if name not in outer}, outer


def _stores_into(node: ast.AST) -> bool:
    """Whether anything assigns to, or deletes, an attribute or item."""
    parts = (part for part in ast.walk(node) if isinstance(part, (ast.Attribute, ast.Subscript)))
    return any(not isinstance(part.ctx, ast.Load) for part in parts)


def _acts(node: ast.AST) -> bool:
    """Whether a module's compound statement does more than define names."""
    if isinstance(node, (ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith)) or _stores_into(node):
        return True
    return any(
        getattr(part, "decorator_list", None) or (isinstance(part, ast.Expr) and not has_no_effect(part))
        for part in ast.walk(node)
    )


def _split(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """`a, b = x, y` as two assignments."""
    if isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List)):
        starred = any(isinstance(item, ast.Starred) for item in (*target.elts, *value.elts))
        if not starred and len(target.elts) == len(value.elts):
            for inner, part in zip(target.elts, value.elts, strict=True):
                yield from _split(inner, part)
            return
    yield target, value


class _Collector:
    """Sorts the statements of a module into definitions."""

    def __init__(self, module: Module) -> None:
        self.module = module

    def collect(self, tree: ast.Module) -> None:
        """All statements of the module."""
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for statement in statements_of(tree.body):
            self._statement(statement, used)

    def _add(self, name: str, node: ast.AST) -> Definition:
        identifier = f"{self.module.name}:{name}"
        definition = self.module.definitions.setdefault(name, Definition(self.module.name, name))
        if not definition.nodes:
            self.module.names.setdefault(name, []).append(Target("definition", identifier))
        definition.nodes.append(node)
        return definition

    def _effect(self, node: ast.AST) -> None:
        name = f"<statement {len(self.module.effects) + 1}>"
        self.module.definitions[name] = Definition(self.module.name, name, [node], inner=sorted(_functions_in(node)))
        self.module.effects.append(name)

    def _statement(self, node: ast.AST, used: set[str]) -> None:
        package, path = self.module.package, self.module.path
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name, target in _imports(node, package, path):
                self.module.names.setdefault(name, []).append(target)
            self.module.loads += loaded_modules(node, package, path, used)
        elif isinstance(node, FUNCTIONS):
            self._add(node.name, node)
        elif isinstance(node, ast.ClassDef):
            self._class(node)
        elif isinstance(node, ast.Assign):
            for place in node.targets:
                for part, value in _split(place, node.value):
                    self._bind(part, node if part is place else ast.Assign(targets=[part], value=value))
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
            if node.value is not None:
                self._bind(node.target, node)
        elif isinstance(node, _COMPOUND):
            self._compound(node, used)
        elif type(node).__name__ == "TypeAlias":  # of Python 3.12
            self._bind(node.name, node)  # type: ignore[attr-defined]
        elif isinstance(node, ast.Expr) or (isinstance(node, ast.Delete) and _stores_into(node)):
            self._effect(node)

    def _bind(self, target: ast.expr, node: ast.AST) -> None:
        """An assignment: of the names in its target, and an effect if anything else is in it."""
        names, _ = bound_names([target], self.module.package, self.module.path)
        for name in names:
            self._add(name, node)
        if _stores_into(target):
            self._effect(node)

    def _compound(self, node: ast.AST, used: set[str]) -> None:
        """`if`, `try`, `for` and `with` belong as a whole to every name that they bind."""
        names, _ = bound_names([node], self.module.package, self.module.path)
        for name, targets in names.items():
            if LOCAL in targets:
                self._add(name, node).inner = sorted(_functions_in(node))
            self.module.names.setdefault(name, []).extend(target for target in targets if target != LOCAL)
        for part in ast.walk(node):
            if isinstance(part, (ast.Import, ast.ImportFrom)):
                self.module.loads += loaded_modules(part, self.module.package, self.module.path, used)
        if _acts(node):
            self._effect(node)

    def _class(self, node: ast.ClassDef) -> None:
        owner = self._add(node.name, node)
        owner.inner = sorted({f"{node.name}.{inner}" for part in node.body for inner in _nested(part)})
        for part in node.body:
            if isinstance(part, FUNCTIONS):
                name = f"{node.name}.{part.name}"
                identifier = f"{self.module.name}:{name}"
                method = self.module.definitions.setdefault(
                    name, Definition(self.module.name, name, owner=f"{self.module.name}:{node.name}")
                )
                method.nodes.append(part)
                owner.methods[part.name] = identifier


def _nested(node: ast.AST) -> set[str]:
    """Functions in a statement of a class's body that is not itself a function."""
    return set() if isinstance(node, FUNCTIONS) else _functions_in(node)


def _functions_in(node: ast.AST, prefix: str = "") -> set[str]:
    """Qualified names of functions and methods in a statement, without those inside of functions."""
    if isinstance(node, FUNCTIONS):
        return {prefix + node.name}
    if isinstance(node, ast.ClassDef):
        prefix += f"{node.name}."
    return {name for child in ast.iter_child_nodes(node) for name in _functions_in(child, prefix)}


@cache
def parse_module(name: str, is_package: bool, path: str, source: bytes) -> Module:
    """What a module defines and binds.

    Args:
        name: Its dotted name.
        is_package: Whether the source is that of a package's `__init__.py`.
        path: Where it lies, for messages.
        source: Its source.

    Returns:
        The module.

    Raises:
        DefinitionsError: The source is no valid Python.
    """
    module = Module(name, name if is_package else name.rpartition(".")[0], path)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise DefinitionsError(f"{path}{line}: this is no valid Python: {error}.") from error
    _Collector(module).collect(tree)
    return module
