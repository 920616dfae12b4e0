"""Reading YAML files of the user strictly: what a lenient reader would drop or fail on becomes one sentence.

YAML's own readers let the last of two equal keys win without a word. Here a key that is given twice is an error, at any
depth; merge keys and anchors work as ever. Snakemake reads experiment files and profiles itself, so the workflow has
this module read the same files again (`check_given_files`).
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from quadscape.errors import ConfigError
from quadscape.paths import user_path

_MOST_VALUES = 1_000_000
"""Values of one file once its aliases are written out: a few nested ones can stand for more than any memory holds."""
_MERGE = "tag:yaml.org,2002:merge"
# What the constructors of YAML's scalars raise for text that only looks like a date, a number, …
_SCALAR_ERRORS = (ValueError, KeyError, AttributeError, TypeError, IndexError, OverflowError)


class _Loader(yaml.SafeLoader):
    """Names the value that looks like a date or number but is none."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except _SCALAR_ERRORS as error:
            value = str(node.value)[:60]
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"'{value}' reads as a YAML {kind} but is none ({error}); quote it", node.start_mark
            ) from None


def _key_text(node: yaml.Node) -> Any:
    """What a key is once the mapping is JSON, where 1 and "1" are the same."""
    if not isinstance(node, yaml.ScalarNode):
        return id(node)
    kind, value = node.tag.rpartition(":")[2], node.value
    if kind == "bool":
        return "true" if value.lower() in {"yes", "true", "on"} else "false"
    if kind == "null":
        return "null"
    if kind in {"int", "float"}:
        return str(yaml.safe_load(value)) if yaml.safe_load(value) is not None else value
    return value


def _children(node: yaml.Node) -> list[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return [(f".{key.value}", value) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(f"[{index}]", value) for index, value in enumerate(node.value)]
    return []


def _repeated(root: yaml.Node) -> Iterator[tuple[str, int, int]]:
    """Every key that is given twice: where, and its first and second line."""
    pending, seen = [("", root)], {id(root)}
    while pending:
        where, node = pending.pop()
        if isinstance(node, yaml.MappingNode):
            first: dict[Any, int] = {}
            for key, _ in node.value:
                text, line = _key_text(key), key.start_mark.line + 1
                # Two merges in one mapping lose nothing.
                if text in first and key.tag != _MERGE:
                    yield f"{where}.{key.value}".lstrip("."), first[text], line
                first.setdefault(text, line)
        for name, child in _children(node):
            if id(child) not in seen:
                seen.add(id(child))
                pending.append((where + name, child))


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values below a node with all aliases written out; infinite loops count as too many."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _MOST_VALUES + 1  # what an alias within itself sees
    known[id(node)] = 1 + sum(_written_out(child, known) for _, child in _children(node))
    return known[id(node)]


class _RepeatedJsonKeyError(Exception):
    """Carries the key."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedJsonKeyError(key)
        found[key] = value
    return found


def _shortened(error: BaseException) -> str:
    """An error as part of a sentence; PyYAML spreads its own over lines, and quotes the text."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text


def read_text(path: str | Path, what: str) -> str:
    """Reads a text file of the user.

    Args:
        path: The file.
        what: What it is, for the message.

    Returns:
        Its text, without a byte-order mark.

    Raises:
        ConfigError: It is missing, unreadable, a directory, or not UTF-8.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        link = Path(path)
        dangling = f" (a link to '{link.readlink()}', which leads nowhere)" if _is_dangling(link) else ""
        raise ConfigError(f"{what} {path}{dangling} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise ConfigError(f"{what} {str(path)!r} cannot be read: {error}.") from None
    try:
        # The mark at its start would otherwise become part of the first key.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{what} {path} is not UTF-8 text (byte {error.start}, in line {line}); save it as UTF-8."
        ) from None


def _is_dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def read_yaml(path: str | Path, what: str = "The file") -> Any:
    """Reads a YAML (or JSON) file.

    Args:
        path: The file.
        what: What it is, for the message.

    Returns:
        Its content.
    """
    return parse_yaml(read_text(path, what), f"{what} {path}")


def parse_yaml(text: str, where: str) -> Any:
    """Reads YAML (or JSON) text.

    Args:
        text: The text.
        where: Where it stands, for the message.

    Returns:
        Its content.

    Raises:
        ConfigError: It is no YAML, gives a key twice, or is nested or repeated beyond all measure.
    """
    try:
        # JSON allows tabs where YAML does not.
        return json.loads(text, object_pairs_hook=_unique)
    except _RepeatedJsonKeyError as error:
        if "\t" in text:
            raise ConfigError(f"{where} gives the key '{error}' twice; keep one of them.") from None
    except (ValueError, RecursionError):
        pass
    try:
        loader = _Loader(text)
        loader.name = "the file"
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            for key, first, second in _repeated(node):
                raise ConfigError(
                    f"{where} gives the key '{key}' twice, in line {first} and in line {second}, of which only one "
                    "can count; keep one of them."
                )
            if _written_out(node, {}) > _MOST_VALUES:
                raise ConfigError(
                    f"{where} holds an alias (*) that stands for itself, or for more than a million values."
                )
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {_shortened(error)}.") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested deeper than any experiment is; give another file.") from None


def _words_after(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Values of options that take one or more, as `--flag a b` or `--flag=a`."""
    found: list[str] = []
    taking = False
    for word in arguments:
        flag, equals, value = word.partition("=")
        if flag in flags:
            taking = not equals
            found += [value] if equals else []
        elif word.startswith("-"):
            taking = False
        elif taking:
            found.append(word)
    return found


def check_given_config(arguments: Sequence[str]) -> None:
    """Checks what is given to Snakemake's `--config` for keys given twice, of which its own reader takes the last.

    Args:
        arguments: Snakemake's command line.

    Raises:
        ConfigError: A key is given twice.
    """
    seen: set[str] = set()
    # Jobs get theirs encoded, from a head that has checked them.
    for word in _words_after(arguments, ("--config", "-C")):
        key, equals, value = word.partition("=")
        if not equals or word.startswith("base64//"):
            continue
        if key in seen:
            raise ConfigError(f"--config gives the key '{key}' twice, of which only one can count; keep one of them.")
        seen.add(key)
        if value.lstrip().startswith(("{", "[")):
            parse_yaml(value, f"--config {key}")


def profile_files(arguments: Sequence[str]) -> list[Path]:
    """The files of the profiles that Snakemake has read.

    Args:
        arguments: Snakemake's command line.

    Returns:
        Those that are found; Snakemake itself says where one is missing.
    """
    names = _words_after(arguments, ("--profile", "--workflow-profile"))
    names += [os.environ["SNAKEMAKE_PROFILE"]] if os.environ.get("SNAKEMAKE_PROFILE") else []
    homes = (Path(), user_path("~/.config/snakemake"), Path("/etc/xdg/snakemake"))
    found: list[Path] = []
    for folder in [home / name for name in names for home in homes] + [Path("profiles/default")]:
        if folder.is_file():
            found.append(folder)
        else:
            found += sorted([*folder.glob("config*.yaml"), *folder.glob("profile*.yaml")])
    return found


def check_given_files(files: Sequence[str | Path], what: str) -> None:
    """Reads files that Snakemake has read already, for what its reader does not see.

    Args:
        files: Paths.
        what: What they are, for the message.
    """
    for path in files:
        read_yaml(path, what)
