"""What a result follows from: the hash of all definitions that are statically reachable from a function.

A definition is a function, a class, one method or property, one name assigned in a module, or a statement of a module
that acts when it is imported (`TABLE["x"] = f`, a bare call, a function or class registered by a decorator or by an
`__init_subclass__` of this project). `closure` starts at some of them and adds whatever these name, until nothing new
is found. Of a class that is reached, a method belongs to it if

- its name is an attribute somewhere in reachable code, of whatever object (or a constant of `getattr`, or, where the
  name of a `getattr` is computed, any string constant), or
- Python itself calls it (`__len__`, `_missing_`), or a decorator of this project takes it, or
- the class has a base from outside, whose code may call it.

Of the hash: names stand for what they are bound to, so that neither import statements nor the module in which something
is defined enter, but another definition of the same name does; what comes from outside counts by its dotted name.
Docstrings, comments, formatting and annotations do not count, nor do the arguments of `raise X(…)` and of statements
`log(…)`, `….log(…)`, `…._log(…)` and `warnings.warn(…)`; what only these name is not reached.

Statements that act at import are those of all modules in which something is reached, of the packages around these, and
of modules that these import without using the name.

What is not seen: classes of objects that come in as arguments, and of their fields (to be named as further entries);
methods that code from outside calls on objects without a base from outside; names put together at run time; and types
and functions that a library reads from annotations, which check or convert what comes in.

Source is read and parsed, never imported. Hashes are equal under every version of Python that can parse the source.
"""

import ast
import contextlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from quadscape.provenance.source import joined
from quadscape.provenance.syntax import (
    FUNCTIONS,
    IGNORED,
    LOCAL,
    MARKERS,
    PACKAGE,
    WHOLE,
    Definition,
    DefinitionsError,
    Module,
    Scope,
    Target,
    attribute_chain,
    bound_names,
    loaded_modules,
    parse_module,
    statements_of,
)

_ROOT = Path(__file__).resolve().parents[2]
# Bases from outside that call no method that has no underscores around its name.
_PLAIN_BASES = {
    *("abc.ABC", "enum.Enum", "enum.IntEnum", "enum.StrEnum", "enum.Flag", "enum.IntFlag", "object"),
    *("typing.Protocol", "typing.Generic", "typing.NamedTuple", "typing.TypedDict"),
}
_PLAIN_METACLASSES = {"abc.ABCMeta", "enum.EnumMeta", "type"}
_ATTRIBUTE_FUNCTIONS = {"getattr", "hasattr", "setattr", "delattr"}
_ATTRIBUTE_MAKERS = {"operator.attrgetter", "operator.methodcaller"}


@dataclass(frozen=True)
class Closure:
    """What is reachable from some definitions.

    Attributes:
        hash: Twenty hexadecimal digits.
        definitions: Everything reachable: "package.module:name", "package.module:Class.method", and
            "package.module:<statement 1>" for statements that act when the module is imported.
        digests: Of each definition's own text, to tell which of them differ between two closures.
    """

    hash: str
    definitions: frozenset[str]
    digests: Mapping[str, str]

    def changed(self, other: "Closure") -> list[str]:
        """Definitions that only one of two closures has, or whose own text differs, sorted."""
        names = self.definitions | other.definitions
        return sorted(name for name in names if self.digests.get(name) != other.digests.get(name))


@dataclass(frozen=True)
class _Facts:
    """What one definition says: its text and everything that it makes reachable."""

    text: str
    references: tuple[str, ...]
    attributes: frozenset[str]
    strings: frozenset[str]
    dynamic: bool
    loads: tuple[Target, ...]


@dataclass(frozen=True)
class _Sources:
    """The source of all modules; equal if the digest is."""

    digest: str
    texts: Mapping[str, tuple[bool, str, bytes]] = field(compare=False)


def _read(root: Path) -> _Sources:
    texts, digest = {}, sha256()
    for path in sorted((root / PACKAGE).rglob("*.py")):
        relative = path.relative_to(root)
        is_package = relative.name == "__init__.py"
        parts = relative.parent.parts if is_package else relative.with_suffix("").parts
        content = path.read_bytes()
        texts[".".join(parts)] = (is_package, relative.as_posix(), content)
        digest.update(f"{relative.as_posix()} {len(content)}\n".encode() + content)
    return _Sources(digest.hexdigest(), texts)


class _Project:
    """All modules under one root: what their names stand for, and what each definition says."""

    def __init__(self, sources: _Sources) -> None:
        self._sources = sources
        self._facts: dict[str, _Facts] = {}

    def __contains__(self, module: str) -> bool:
        return module in self._sources.texts

    def module(self, name: str) -> Module:
        """A module, parsed when first asked for."""
        is_package, path, content = self._sources.texts[name]
        return parse_module(name, is_package, path, content)

    def definition(self, identifier: str) -> Definition:
        """The definition with that identifier."""
        module, _, name = identifier.partition(":")
        return self.module(module).definitions[name]

    def member(self, module: str, name: str, seen: tuple[tuple[str, str], ...] = ()) -> list[Target]:
        """What a module's attribute stands for."""
        if (module, name) in seen:
            return []
        found: list[Target] = []
        for target in self.module(module).names.get(name, []):
            found += self.resolved(target, (*seen, (module, name)))
        if not found and f"{module}.{name}" in self:
            return [Target("module", f"{module}.{name}")]
        if not found and not seen and "__getattr__" in self.module(module).definitions:
            return [Target("definition", f"{module}:__getattr__")]
        return list(dict.fromkeys(found)) or ([] if seen else [Target("missing", name)])

    def resolved(self, target: Target, seen: tuple[tuple[str, str], ...] = ()) -> list[Target]:
        """A target without imports."""
        if target.kind != "import":
            return [target]
        if target.value.partition(".")[0] != PACKAGE:
            return [Target("external", target.value + (f".{target.member}" if target.member else ""))]
        if target.value not in self:
            return [Target("missing", target.member or target.value.rpartition(".")[2])]
        return self.member(target.value, target.member, seen) if target.member else [Target("module", target.value)]

    def follow(self, targets: Iterable[Target], attributes: Sequence[str]) -> list[tuple[Target, list[str]]]:
        """Where attributes of targets lead, and which attributes are left there."""
        found: list[tuple[Target, list[str]]] = []
        for target in dict.fromkeys(part for one in targets for part in self.resolved(one)):
            if target.kind == "module" and attributes:
                found += self.follow(self.member(target.value, attributes[0]), attributes[1:])
            elif target.kind == "external":
                found.append((Target("external", ".".join([target.value, *attributes])), []))
            else:
                found.append((target, list(attributes)))
        return found

    def named(self, module: str, node: ast.AST) -> list[tuple[Target, list[str]]]:
        """What an expression at the level of a module names, without subscripts and calls."""
        while (chain := attribute_chain(node)) is None:
            if not isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
                return [(Target("missing"), [])]
            node = node.func if isinstance(node, ast.Call) else node.value
        targets = self.module(module).names.get(chain[0], [Target("external", chain[0])])
        return self.follow(targets, chain[1])

    def is_class(self, identifier: str) -> bool:
        """Whether a definition is a class, that is with methods of its own."""
        return any(isinstance(node, ast.ClassDef) for node in self.definition(identifier).nodes)

    def bases(self, identifier: str) -> tuple[list[str], bool]:
        """Bases and metaclasses in this project, and whether there is one from outside that may call anything."""
        definition = self.definition(identifier)
        inside, outside = [], False
        for node in definition.nodes:
            if not isinstance(node, ast.ClassDef):
                continue
            metaclasses = [keyword.value for keyword in node.keywords if keyword.arg == "metaclass"]
            for base in (*node.bases, *metaclasses):
                plain = _PLAIN_METACLASSES if base in metaclasses else _PLAIN_BASES
                for target, _ in [] if isinstance(base, ast.Call) else self.named(definition.module, base):
                    if target.kind == "definition" and self.is_class(target.value):
                        inside.append(target.value)
                    else:
                        outside |= not (target.kind == "external" and (target.value in plain or _is_error(target)))
                outside |= isinstance(base, ast.Call)
        return inside, outside

    def ancestry(self, identifier: str) -> tuple[list[str], bool]:
        """The class and all its bases in this project, and whether any of them has one from outside."""
        found, outside, pending = [], False, [identifier]
        while pending:
            current = pending.pop()
            if current not in found:
                found.append(current)
                inside, open_here = self.bases(current)
                pending += inside
                outside |= open_here
        return found, outside

    def is_registered(self, identifier: str) -> bool:
        """Whether making a definition runs code of this project that might keep it: a decorator, or a base."""
        definition = self.definition(identifier)
        for node in definition.nodes:
            for decorator in getattr(node, "decorator_list", []):
                for target, _ in self.named(definition.module, decorator):
                    if target.kind == "definition" and target.value != identifier:
                        return True
        if not definition.owner and self.is_class(identifier):
            bases = [base for base in self.ancestry(identifier)[0] if base != identifier]
            return any("__init_subclass__" in self.definition(b).methods for b in bases) or any(
                keyword.arg == "metaclass"
                and any(target.kind == "definition" for target, _ in self.named(definition.module, keyword.value))
                for base in (identifier, *bases)
                for node in self.definition(base).nodes
                if isinstance(node, ast.ClassDef)
                for keyword in node.keywords
            )
        return False

    def facts(self, identifier: str) -> _Facts:
        """What a definition says; `module:*` stands for all definitions of a module."""
        if identifier not in self._facts:
            module, _, name = identifier.partition(":")
            if name == "*":
                parts = self.module(module).definitions.items()
                references = tuple(f"{module}:{key}" for key, part in parts if not part.owner)
                self._facts[identifier] = _Facts("Module", references, frozenset(), frozenset(), False, ())
            else:
                self._facts[identifier] = _Reader(self, self.definition(identifier)).facts()
        return self._facts[identifier]


def _is_error(target: Target) -> bool:
    return "." not in target.value and target.value.endswith(("Error", "Exception", "Warning"))


class _Reader:
    """Writes the canonical text of one definition, and notes what it names."""

    def __init__(self, project: _Project, definition: Definition) -> None:
        self._project, self._definition = project, definition
        self._module = project.module(definition.module)
        self._references: list[str] = []
        self._attributes: set[str] = set()
        self._strings: set[str] = set()
        self._used: set[str] = set()
        self._imported: list[ast.AST] = []
        self._dynamic = False

    def facts(self) -> _Facts:
        """Reads all parts of the definition."""
        scope = Scope("module", self._module.names, None)
        definition = self._definition
        if definition.owner:
            self._references.append(definition.owner)
            owner = self._project.definition(definition.owner)
            scope = self._class_scope(
                [part for node in owner.nodes for part in getattr(node, "body", [])], scope, owner
            )
        parts = []
        for node in definition.nodes:
            whole = not (isinstance(node, ast.ClassDef) and definition.methods)
            parts.append(self._text(node, scope) if whole else self._class(node, scope, definition))  # type: ignore[arg-type]  # is one
        name = "" if definition.name.startswith("<") else definition.name
        module, loads = self._module, []
        for node in self._imported:
            loads += loaded_modules(node, module.package, module.path, self._used)
        return _Facts(
            f"{name}={';'.join(parts)}",
            tuple(self._references),
            frozenset(self._attributes),
            frozenset(self._strings),
            self._dynamic,
            tuple(loads),
        )

    def _inner(self, kind: str, body: Iterable[ast.AST], outer: Scope, more: Iterable[str] = ()) -> Scope:
        names, declared = bound_names(body, self._module.package, self._module.path)
        for name in more:
            names.setdefault(name, []).append(LOCAL)
        return Scope(kind, names, outer, declared)

    def _class_scope(self, body: Iterable[ast.AST], outer: Scope, definition: Definition | None) -> Scope:
        scope = self._inner("class", body, outer)
        for name, identifier in (definition.methods if definition is not None else {}).items():
            scope.names[name] = [Target("definition", identifier)]
        return scope

    def _text(self, node: object, scope: Scope) -> str:
        """The canonical text of a syntax tree."""
        if isinstance(node, list):
            return f"[{','.join(self._text(item, scope) for item in self._kept(node, scope))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        special = getattr(self, f"_on_{type(node).__name__.lower()}", None)
        return self._plain(node, scope) if special is None else special(node, scope)

    def _plain(self, node: ast.AST, scope: Scope, **changed: object) -> str:
        """Names and values of all fields that are there and mean something."""
        fields = []
        for name in sorted(node._fields):
            value = changed.get(name, getattr(node, name, None))
            if isinstance(value, list):
                value = list(self._kept(value, scope))
            if name not in IGNORED and (isinstance(node, ast.Constant) or (value is not None and value != [])):
                fields.append(f"{name}={self._text(value, scope)}")
        return f"{type(node).__name__}({','.join(fields)})"

    def _kept(self, items: Iterable[object], scope: Scope) -> Iterator[object]:
        """Items of a list; of statements those that do something."""
        for item in items:
            if not isinstance(item, ast.stmt):
                yield item
                continue
            for statement in statements_of([item]):
                if isinstance(statement, (ast.Import, ast.ImportFrom)):
                    if scope.kind != "module":
                        self._imported.append(statement)
                elif not isinstance(statement, ast.AnnAssign) or statement.value is not None or scope.kind == "class":
                    yield statement

    def _refer(self, name: str, attributes: Sequence[str], scope: Scope) -> str:
        """The text of `name.attribute.…`."""
        self._used.add(name)
        targets = scope.find(name)
        if targets is None:
            targets = [Target("free")]
        texts = []
        for target, rest in self._project.follow(targets, attributes):
            self._attributes.update(rest)
            if target.kind == "definition":
                self._references.append(target.value)
                text = f"Definition({target.value.partition(':')[2]!r})"
            elif target.kind == "module":
                self._references.append(f"{target.value}:*")
                text = "Module()"
            elif target.kind == "external":
                text = f"External({target.value!r})"
            else:
                text = f"{target.kind.capitalize()}({target.value or name!r})"
            for attribute in rest:
                text = f"Attribute({attribute!r},{text})"
            texts.append(text)
        return texts[0] if len(texts) == 1 else f"Either({','.join(texts)})"

    def _external(self, node: ast.AST, scope: Scope) -> str:
        """Dotted name of what an expression names outside of this project; "" if it names anything else."""
        chain = attribute_chain(node)
        found = self._project.follow(scope.find(chain[0]) or [], chain[1]) if chain is not None else []
        return found[0][0].value if len(found) == 1 and found[0][0].kind == "external" else ""

    def _on_name(self, node: ast.Name, scope: Scope) -> str:
        return self._refer(node.id, [], scope)

    def _on_attribute(self, node: ast.Attribute, scope: Scope) -> str:
        chain = attribute_chain(node)
        if chain is not None:
            return self._refer(*chain, scope)
        self._attributes.add(node.attr)
        return f"Attribute({node.attr!r},{self._text(node.value, scope)})"

    def _on_constant(self, node: ast.Constant, scope: Scope) -> str:
        if isinstance(node.value, str) and node.value.isidentifier():
            self._strings.add(node.value)
        return self._plain(node, scope)

    def _on_keyword(self, node: ast.keyword, scope: Scope) -> str:
        self._strings.update([node.arg] if node.arg else [])
        return self._plain(node, scope)

    def _on_joinedstr(self, node: ast.JoinedStr, scope: Scope) -> str:
        return self._plain(node, scope, values=joined(node.values))

    def _on_matchclass(self, node: ast.MatchClass, scope: Scope) -> str:
        self._attributes.update(node.kwd_attrs)
        return self._plain(node, scope)

    def _on_call(self, node: ast.Call, scope: Scope) -> str:
        external = self._external(node.func, scope)
        arguments = node.args
        if external == "typing.cast":
            arguments = arguments[1:]
        built_in = isinstance(node.func, ast.Name) and scope.find(node.func.id) is None and node.func.id
        if built_in in _ATTRIBUTE_FUNCTIONS and len(arguments) > 1 and not self._external(arguments[0], scope):
            self._by_name(arguments[1:2])
        elif external in _ATTRIBUTE_MAKERS:
            self._by_name(arguments if external == "operator.attrgetter" else arguments[:1])
        return self._plain(node, scope, args=arguments)

    def _by_name(self, arguments: Iterable[ast.expr]) -> None:
        for argument in arguments:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                self._attributes.update(argument.value.split("."))
            else:
                self._dynamic = True

    def _on_raise(self, node: ast.Raise, scope: Scope) -> str:
        return self._plain(node, scope, exc=node.exc.func if isinstance(node.exc, ast.Call) else node.exc)

    def _on_expr(self, node: ast.Expr, scope: Scope) -> str:
        if isinstance(node.value, ast.Call) and self._is_log(node.value.func, scope):
            return f"Log({self._text(node.value.func, scope)})"
        return self._plain(node, scope)

    def _is_log(self, function: ast.expr, scope: Scope) -> bool:
        external = self._external(function, scope)
        if external:
            return external == "warnings.warn"
        if isinstance(function, ast.Attribute):
            return function.attr in {"log", "_log"}
        return isinstance(function, ast.Name) and function.id == "log"

    def _on_annassign(self, node: ast.AnnAssign, scope: Scope) -> str:
        target, value = self._text(node.target, scope), self._text(node.value, scope)
        if scope.kind != "class":
            # The same as without its annotation.
            return f"Assign(targets=[{target}],value={value})"
        named = {getattr(part, "attr", getattr(part, "id", "")) for part in ast.walk(node.annotation)}
        if isinstance(node.annotation, ast.Constant):
            named = {marker for marker in MARKERS if marker in str(node.annotation.value)}
        return f"Field({target},{value},{sorted(named & MARKERS)})"

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, scope: Scope) -> str:
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        every = node.args
        names = [part.arg for part in (*every.posonlyargs, *every.args, *every.kwonlyargs)]
        names += [part.arg for part in (every.vararg, every.kwarg) if part is not None]
        names += [part.name for part in getattr(node, "type_params", [])]
        inner = self._inner("function", body, scope, names)
        # Defaults and decorators are of the scope around it.
        head = [self._text(every, scope), self._text(getattr(node, "decorator_list", []), scope)]
        return f"{type(node).__name__}({getattr(node, 'name', '')!r},{','.join(head)},{self._text(body, inner)})"

    _on_functiondef = _on_asyncfunctiondef = _on_lambda = _function

    def _on_classdef(self, node: ast.ClassDef, scope: Scope) -> str:
        return self._class(node, scope, None)

    def _class(self, node: ast.ClassDef, scope: Scope, definition: Definition | None) -> str:
        """A class; without its methods where these are definitions of their own."""
        body = [part for part in node.body if definition is None or not isinstance(part, FUNCTIONS)]
        head = [self._text(part, scope) for part in (node.bases, node.keywords, node.decorator_list)]
        inner = self._class_scope(node.body, scope, definition)
        return f"ClassDef({node.name!r},{','.join(head)},{self._text(body, inner)})"

    def _comprehension(self, node: ast.AST, scope: Scope) -> str:
        generators: list[ast.comprehension] = node.generators  # type: ignore[attr-defined]  # has them
        inner = self._inner("function", [generator.target for generator in generators], scope)
        # The first iterable is of the scope around it.
        parts = [self._text(generators[0].iter, scope)]
        for number, generator in enumerate(generators):
            parts += [self._text(generator.iter, inner)] if number else []
            parts += [self._text(generator.target, inner), self._text(generator.ifs, inner), str(generator.is_async)]
        values = [getattr(node, name) for name in ("key", "value", "elt") if hasattr(node, name)]
        return f"{type(node).__name__}({','.join(parts)},{','.join(self._text(part, inner) for part in values)})"

    _on_listcomp = _on_setcomp = _on_dictcomp = _on_generatorexp = _comprehension


class _Search:
    """Everything reachable from some definitions."""

    def __init__(self, project: _Project) -> None:
        self._project = project
        self.reached: dict[str, _Facts] = {}
        self._pending: list[str] = []
        self._attributes: set[str] = set()
        self._strings: set[str] = set()
        self._dynamic = False
        self._classes: list[str] = []
        self._open: set[str] = set()
        self._modules: set[str] = set()

    def run(self, entries: Iterable[str]) -> None:
        """Adds definitions until nothing new is found."""
        for entry in entries:
            self._pending.append(entry.removesuffix(WHOLE))
            self._open.update(self._project.ancestry(entry.removesuffix(WHOLE))[0] if entry.endswith(WHOLE) else [])
        while self._pending:
            while self._pending:
                self._take(self._pending.pop())
            called = self._attributes | (self._strings if self._dynamic else set())
            for owner in self._classes:
                for name, method in self._project.definition(owner).methods.items():
                    if method not in self.reached and self._is_method_called(owner, name, method, called):
                        self._pending.append(method)

    def _is_method_called(self, owner: str, name: str, method: str, called: set[str]) -> bool:
        by_python = name.startswith("_") and name.endswith("_")
        return name in called or by_python or owner in self._open or self._is_taken(owner, method)

    def _is_taken(self, owner: str, method: str) -> bool:
        """Whether a decorator of this project, and not a property of the class, takes a method."""
        definition = self._project.definition(method)
        own = self._project.definition(owner).methods
        for node in definition.nodes:
            for decorator in getattr(node, "decorator_list", []):
                chain = attribute_chain(decorator.func if isinstance(decorator, ast.Call) else decorator)
                if chain is not None and chain[0] not in own:
                    found = self._project.named(definition.module, decorator)
                    if any(target.kind == "definition" for target, _ in found):
                        return True
        return False

    def _take(self, identifier: str) -> None:
        if identifier in self.reached:
            return
        facts = self._project.facts(identifier)
        self.reached[identifier] = facts
        self._pending += facts.references
        self._attributes |= facts.attributes
        self._strings |= facts.strings
        self._dynamic |= facts.dynamic
        module, _, name = identifier.partition(":")
        if not name.startswith("<"):
            self._load(module)
        self._load_all(facts.loads)
        if name != "*" and self._project.is_class(identifier):
            self._classes.append(identifier)
            ancestry, outside = self._project.ancestry(identifier)
            self._open.update(ancestry if outside else [])

    def _load_all(self, targets: Iterable[Target]) -> None:
        """Modules that imports name, where nothing uses what they bind."""
        for target in targets:
            if f"{target.value}.{target.member}" in self._project:
                self._load(f"{target.value}.{target.member}")
            elif target.value in self._project:
                self._load(target.value)

    def _load(self, name: str) -> None:
        """Statements of a module, and of the packages around it, that act when it is imported."""
        if name in self._modules:
            return
        self._modules.add(name)
        module = self._project.module(name)
        self._load_all(module.loads)
        self._pending += self._effects(module)
        while "." in name:
            name = name.rpartition(".")[0]
            # A package imports what it offers, which is not what a module in it needs.
            if name in self._project:
                self._pending += self._effects(self._project.module(name))

    def _effects(self, module: Module) -> list[str]:
        registered = [
            f"{module.name}:{name}"
            for name, definition in module.definitions.items()
            if not definition.owner and not name.startswith("<")
        ]
        found = [identifier for identifier in registered if self._project.is_registered(identifier)]
        return [*(f"{module.name}:{name}" for name in module.effects), *found]


def _digest(*parts: str) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()


def _labels(reached: Mapping[str, _Facts]) -> dict[str, str]:
    """What each definition is, together with all that it refers to, without the names of modules."""
    # Refined by the labels of what is referred to until no two more are told apart, so that of two definitions with
    # one name it counts which of them is meant where.
    labels = {identifier: _digest(facts.text) for identifier, facts in reached.items()}
    kinds = 0
    while kinds < len(set(labels.values())):
        kinds = len(set(labels.values()))
        labels = {
            identifier: _digest(labels[identifier], *(labels[reference] for reference in facts.references))
            for identifier, facts in reached.items()
        }
    return labels


def _found(project: _Project, entries: Sequence[str]) -> Closure:
    search = _Search(project)
    for entry in entries:
        module, _, name = entry.removesuffix(WHOLE).partition(":")
        known = module in project and name in project.module(module).definitions
        if not known or (entry.endswith(WHOLE) and not project.is_class(f"{module}:{name}")):
            raise DefinitionsError(f"There is no definition '{entry}'; expected 'package.module:name'.")
    search.run(entries)
    labels = _labels(search.reached)
    names: dict[str, str] = {}
    for identifier, facts in search.reached.items():
        module, _, name = identifier.partition(":")
        if name != "*":
            names[identifier] = _digest(facts.text)[:8]
            names |= {f"{module}:{inner}": names[identifier] for inner in project.definition(identifier).inner}
    return Closure(_digest(*sorted(labels.values()))[:20], frozenset(names), names)


@lru_cache(maxsize=8)
def _project(sources: _Sources) -> _Project:
    return _Project(sources)


def closure(entries: Sequence[str], root: Path = _ROOT) -> Closure:
    """All definitions that are reachable from some, and their hash.

    Args:
        entries: Where to start: "package.module:name", "package.module:Class.method", or "package.module:Class.*" for a
            class with everything in it and in its bases. A class alone makes reachable what is called of it, as for
            the classes of arguments.
        root: Directory that holds the package.

    Returns:
        The closure.
    """
    return _found(_project(_read(root)), entries)


def cached_closures(entries_by_name: Mapping[str, Sequence[str]], root: Path = _ROOT) -> dict[str, Closure]:
    """Closures from several starts, kept beside the package's compiled files until any source changes.

    Args:
        entries_by_name: Entries of `closure`, by any name.
        root: Directory that holds the package.

    Returns:
        A closure by name.
    """
    sources = _read(root)
    directory = root / PACKAGE / "__pycache__"
    own = "" if root == _ROOT else _digest(Path(__file__).read_text(encoding="utf-8"))
    path = directory / f"definitions-{_digest(sources.digest, own)[:20]}.json"
    keys = {name: " ".join(entries) for name, entries in entries_by_name.items()}
    kept = _kept_closures(path)
    missing = {key: entries_by_name[name] for name, key in keys.items() if key not in kept}
    if missing:
        project = _project(sources)
        kept |= {key: _found(project, entries) for key, entries in missing.items()}
        _keep(path, kept)
    return {name: kept[key] for name, key in keys.items()}


def _kept_closures(path: Path) -> dict[str, Closure]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            key: Closure(value["hash"], frozenset(value["digests"]), value["digests"]) for key, value in found.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # None yet, or damaged: it is made anew.
        return {}


def _keep(path: Path, closures: Mapping[str, Closure]) -> None:
    """Writes closures, and removes those of other sources; does nothing where this cannot be written."""
    content = {key: {"hash": found.hash, "digests": dict(found.digests)} for key, found in closures.items()}
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            new.write_text(json.dumps(content), encoding="utf-8")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        for other in path.parent.glob("definitions-*.json"):
            if other != path:
                other.unlink(missing_ok=True)
