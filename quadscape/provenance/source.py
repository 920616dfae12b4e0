"""Hash of a piece of source that a comment, a docstring or formatting does not change."""

import ast
from hashlib import sha256

# Fields that are absent from, or differ between, versions of Python, and carry no meaning.
_IGNORED = {"kind", "type_comment", "type_ignores", "ctx"}


def has_no_effect(statement: object) -> bool:
    """Whether a statement is a docstring (of whatever it stands below), `pass` or `...`."""
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and (isinstance(statement.value.value, str) or statement.value.value is ...)
    )


def joined(parts: list[ast.expr]) -> list[object]:
    """Parts of an f-string, where constants that follow each other are one, and empty ones none."""
    found: list[object] = []
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            if found and isinstance(found[-1], str):
                found[-1] += part.value
            elif part.value:
                found.append(part.value)
        else:
            found.append(part)
    return found


def _text(node: object) -> str:
    """A canonical text of a syntax tree: names and values of all fields that are there and mean something."""
    if isinstance(node, ast.AST):
        fields = []
        for name in sorted(node._fields):
            value = getattr(node, name, None)
            if isinstance(node, ast.JoinedStr):
                value = joined(node.values)
            elif isinstance(value, list):
                value = [item for item in value if not has_no_effect(item)]
            # A constant's value may be None or empty, and means it.
            if name not in _IGNORED and (isinstance(node, ast.Constant) or (value is not None and value != [])):
                fields.append(f"{name}={_text(value)}")
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_text, node))}]"
    return repr(node)


def source_hash(source: str) -> str:
    """Hash of what a piece of source does.

    Args:
        source: Python source.

    Returns:
        Hexadecimal digest; comments, docstrings, formatting and the version of Python do not change it.
    """
    return sha256(_text(ast.parse(source)).encode()).hexdigest()
