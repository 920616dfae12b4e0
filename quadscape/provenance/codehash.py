"""Hashes of the code of long stages, and whether they are as locked.

What long work follows from (data, checkpoints, the long stages) carries a version, and `stage_code.json` beside this
module holds the hash that belongs to each version: a change of their code is noticed (a test compares), and is either a
new version or, if the results stay the same, locked again with `python -m quadscape.provenance.codehash --lock`.

Source is read and parsed, never imported. Hashes are equal under every version of Python that can parse the source.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

from quadscape.provenance.source import source_hash
from quadscape.provenance.versions import CHECKPOINT_VERSION, DATA_VERSION, STAGE_VERSIONS

# The loss of a checkpoint over a data set.
_LOSS = ("quadscape.network", "quadscape.data", "quadscape.numerics")

VERSIONS: dict[str, int | str] = {**STAGE_VERSIONS, "data": DATA_VERSION, "checkpoint": CHECKPOINT_VERSION}
STAGE_MODULES: dict[str, tuple[str, ...]] = {
    "data": ("quadscape.data",),
    "checkpoint": (
        "quadscape.network.checkpoint",
        "quadscape.training.extraction",
        "quadscape.curvature.self_check",
        "quadscape.curvature.smoothness",
    ),
    "training": (
        "quadscape.training.batches",
        "quadscape.training.continued",
        "quadscape.training.rate_tables",
        "quadscape.training.step_rules",
        "quadscape.training.steps",
        "quadscape.training.task",
        "quadscape.training.trajectory",
        "quadscape.curvature.step_rules",
        "quadscape.network.losses",
        "quadscape.network.models",
        "quadscape.network.parameters",
        "quadscape.network.shapes",
        "quadscape.data",
        "quadscape.numerics",
    ),
    "hessian": (
        "quadscape.curvature.hessian",
        "quadscape.curvature.shards",
        "quadscape.curvature.engine",
        "quadscape.curvature.graph",
        "quadscape.curvature.operations",
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
        "quadscape.curvature.stored_basis",
        "quadscape.curvature.eigensolver",
        "quadscape.curvature.solver_plan",
        "quadscape.curvature.divide_and_conquer",
        "quadscape.curvature.tridiagonal_reduction",
        "quadscape.curvature.large_products",
        "quadscape.curvature.symmetric_product",
        "quadscape.curvature.strips",
        "quadscape.curvature.verification",
        "quadscape.curvature.projections",
        "quadscape.curvature.invariances",
        "quadscape.curvature.graph",
        "quadscape.network.objective",
        "quadscape.network.substitutes",
        "quadscape.numerics",
    ),
}
"""What determines the result of data, checkpoints and each long stage. What comes in as a file (the checkpoint and data
that the Hessian reads, the Hessian that the eigenbasis reads) has a digest in the stage's fingerprint; only the code
that reads it counts here."""

LOCK_COMMAND = "python -m quadscape.provenance.codehash --lock"
_ROOT = Path(__file__).resolve().parents[2]
_LOCK = Path(__file__).with_name("stage_code.json")


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
                f"results, bump the version in quadscape/provenance/versions.py; then, or if not, re-lock with "
                f"`{LOCK_COMMAND}`."
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
        prog="python -m quadscape.provenance.codehash",
        description="Compares the code of all stages with what is locked.",
    )
    parser.add_argument("--lock", action="store_true", help="take the present code as that of the present versions")
    if parser.parse_args(argv).lock:
        _LOCK.write_text(json.dumps(current_stages(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    return report_problems(lock_problems())


if __name__ == "__main__":
    sys.exit(main())
