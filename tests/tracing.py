"""Which functions of the package run, seen by Python's profiler, in all threads."""

import ast
import inspect
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import quadscape

PACKAGE = Path(quadscape.__file__).resolve().parent


@cache
def _assigned(path: Path, line: int) -> str:
    """Name of the assignment of a module that a line is in."""
    for node in ast.parse(path.read_bytes()).body:
        if node.lineno <= line <= (node.end_lineno or node.lineno):
            names = [
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            ]
            return names[0] if names else f"<line {line}>"
    return f"<line {line}>"


def definition_of(code: CodeType) -> str | None:
    """The definition that code belongs to, as "module:qualname"; None if it is not of the package."""
    path = Path(code.co_filename)
    # Bodies of modules and classes are no functions.
    if not path.is_relative_to(PACKAGE) or not code.co_flags & inspect.CO_OPTIMIZED:
        return None
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    names: list[str] = []
    for part in code.co_qualname.split("."):
        if part.startswith("<"):
            break
        names.append(part)
    return f"{module}:{'.'.join(names) or _assigned(path, code.co_firstlineno)}"


def executed(function: Callable[[], object]) -> set[str]:
    """Runs a function.

    Returns "module:qualname" of all functions and methods of the package that ran; what is nested belongs to the
    definition around it, and what runs because a module is imported does not count.
    """
    found: set[CodeType] = set()
    state = threading.local()

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event not in {"call", "return"}:
            return
        depth = getattr(state, "depth", 0)
        if frame.f_code.co_name == "<module>":
            state.depth = depth + (1 if event == "call" else -1)
        elif event == "call" and depth == 0:
            found.add(frame.f_code)

    before = sys.getprofile()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    return {name for code in found if (name := definition_of(code)) is not None}
