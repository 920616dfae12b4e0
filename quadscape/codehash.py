"""Hashes of source code that a comment, a docstring or formatting does not change.

Cheap steps of the workflow carry the hash of their own module as a parameter, so that a change of code runs them
again and a comment does not. What long work follows from (data, checkpoints, the long stages) carries a version
instead, and `quadscape/stage_code.json` holds the hash that belongs to each version: a change of their code is noticed
(a test compares), and is either a new version or, if the results stay the same, locked again with
`python -m quadscape.codehash --lock`.

Source is read and parsed, never imported. Hashes are equal under every version of Python that can parse the source.
"""

import argparse
import ast
import json
import sys
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

from quadscape.versions import CHECKPOINT_VERSION, DATA_VERSION, STAGE_VERSIONS

# The loss of a checkpoint over a data set.
_LOSS = (
    "quadscape.objective",
    "quadscape.substitutes",
    "quadscape.checkpoint",
    "quadscape.losses",
    "quadscape.models",
    "quadscape.network_shapes",
    "quadscape.parameters",
    "quadscape.data",
    "quadscape.data_sources",
    "quadscape.numerics",
)

VERSIONS: dict[str, int | str] = {**STAGE_VERSIONS, "data": DATA_VERSION, "checkpoint": CHECKPOINT_VERSION}
STAGE_MODULES: dict[str, tuple[str, ...]] = {
    "data": ("quadscape.data", "quadscape.data_sources", "quadscape.image_folders"),
    "checkpoint": (
        "quadscape.checkpoint",
        "quadscape.extraction",
        "quadscape.curvature.self_check",
        "quadscape.curvature.smoothness",
    ),
    "training": (
        "quadscape.training",
        "quadscape.losses",
        "quadscape.models",
        "quadscape.network_shapes",
        "quadscape.parameters",
        "quadscape.data",
        "quadscape.data_sources",
        "quadscape.numerics",
    ),
    "hessian": (
        "quadscape.curvature.hessian",
        "quadscape.curvature.engine",
        "quadscape.curvature.graph",
        "quadscape.curvature.rules",
        "quadscape.curvature.strips",
        *_LOSS,
    ),
    "gauss_newton": (
        "quadscape.curvature.gauss_newton",
        "quadscape.curvature.strips",
        *_LOSS,
    ),
    "eigenbasis": (
        "quadscape.curvature.eigenbasis",
        "quadscape.curvature.eigensolver",
        "quadscape.curvature.solver_plan",
        "quadscape.curvature.divide_and_conquer",
        "quadscape.curvature.tridiagonal_reduction",
        "quadscape.curvature.strips",
        "quadscape.curvature.verification",
        "quadscape.curvature.projections",
        "quadscape.curvature.invariances",
        "quadscape.curvature.graph",
        "quadscape.objective",
        "quadscape.substitutes",
        "quadscape.numerics",
    ),
}
"""What determines the result of data, checkpoints and each long stage. What comes in as a file (the checkpoint and data
that the Hessian reads, the Hessian that the eigenbasis reads) has a digest in the stage's fingerprint; only the code
that reads it counts here."""

LOCK_COMMAND = "python -m quadscape.codehash --lock"
_ROOT = Path(__file__).resolve().parents[1]
_LOCK = Path(__file__).with_name("stage_code.json")
# Fields that are absent from, or differ between, versions of Python, and carry no meaning.
_IGNORED = {"kind", "type_comment", "type_ignores", "ctx"}


def _has_no_effect(statement: object) -> bool:
    """Whether a statement is a docstring (of whatever it stands below), `pass` or `...`."""
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and (isinstance(statement.value.value, str) or statement.value.value is ...)
    )


def _joined(parts: list[ast.expr]) -> list[object]:
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
                value = _joined(node.values)
            elif isinstance(value, list):
                value = [item for item in value if not _has_no_effect(item)]
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


def _files(module: str) -> list[Path]:
    path = _ROOT.joinpath(*module.split("."))
    if path.is_dir():
        return sorted(path.rglob("*.py"))
    path = path.with_suffix(".py")
    if not path.is_file():
        raise ModuleNotFoundError(f"There is no module '{module}' in {_ROOT}.", name=module)
    return [path]


@cache
def _one_hash(module: str) -> str:
    files = {path.relative_to(_ROOT).as_posix(): path.read_text(encoding="utf-8") for path in _files(module)}
    return sha256("".join(f"{name} {source_hash(text)}\n" for name, text in files.items()).encode()).hexdigest()


def module_hash(*modules: str) -> str:
    """Hash of what modules of this project do.

    Args:
        modules: Dotted names; a package stands for everything in it.

    Returns:
        Twenty hexadecimal digits.
    """
    return sha256("".join(map(_one_hash, sorted(set(modules)))).encode()).hexdigest()[:20]


def current_stages() -> dict[str, dict[str, str | int]]:
    """Version and hash of all that has a version, as the code is now."""
    return {
        stage: {"version": version, "hash": module_hash(*STAGE_MODULES[stage])} for stage, version in VERSIONS.items()
    }


def locked_stages() -> dict[str, dict[str, str | int]]:
    """Version and hash of all that has a version, as they were locked."""
    return json.loads(_LOCK.read_text(encoding="utf-8"))


def lock_problems() -> list[str]:
    """What is wrong with the locked hashes.

    Returns:
        One sentence for each stage that differs; empty when all is as locked.
    """
    locked, problems = locked_stages(), []
    for stage, now in current_stages().items():
        then = locked.get(stage)
        if then is None or then["version"] != now["version"]:
            problems.append(f"Version {now['version']} of the stage '{stage}' is not locked: run `{LOCK_COMMAND}`.")
        elif then["hash"] != now["hash"]:
            problems.append(
                f"The code of the stage '{stage}' ({', '.join(STAGE_MODULES[stage])}) has changed: if that changes its "
                f"results, bump the version in quadscape/versions.py; then, or if not, re-lock with `{LOCK_COMMAND}`."
            )
    return problems


def report_problems(problems: Sequence[str]) -> int:
    """Prints what is not as locked.

    Args:
        problems: One sentence each.

    Returns:
        Exit code: 0 fine, 1 when there is any.
    """
    print("\n".join(problems), file=sys.stderr) if problems else print("everything is as locked")
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Compares the locked hashes, or locks the present ones.

    Args:
        argv: Arguments without the program's name; by default the process's.

    Returns:
        Exit code: 0 fine, 1 when something is not as locked.
    """
    parser = argparse.ArgumentParser(
        prog="python -m quadscape.codehash", description="Compares the code of all stages with what is locked."
    )
    parser.add_argument("--lock", action="store_true", help="take the present code as that of the present versions")
    if parser.parse_args(argv).lock:
        _LOCK.write_text(json.dumps(current_stages(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    return report_problems(lock_problems())


if __name__ == "__main__":
    sys.exit(main())
