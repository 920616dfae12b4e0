"""Gives up what is damaged, and no more than that, so that the workflow makes it again in place.

Of a stage that is its manifest: the units that are whole stay, and the next job computes those that are not. Tables and
small stores are made again whole, from what is there.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quadscape.results.status import owner_lives
from quadscape.results.verify import Forbidden, Misplaced, verify_results
from quadscape.stage.files import PURGED
from quadscape.stage.superseded import is_superseded


@dataclass(frozen=True)
class Damaged:
    """One damaged result.

    Attributes:
        path: Directory of the stage or store, or manifest of the result.
        problem: What is wrong with it.
        given_up: What is removed; None where nothing is.
        kept_for: Why nothing is; empty where something is.
        later: What happens then, as a sentence.
    """

    path: Path
    problem: str
    given_up: Path | None
    kept_for: str = ""
    later: str = ""


def find_damaged(root: str | Path) -> Iterator[Damaged]:
    """Reads every result and tells what to give up of those that are damaged.

    What is whole but belongs to something else, or may not be read by this user, is not damaged.

    Args:
        root: Results of one experiment, or a folder of such.

    Yields:
        One for each, in the order of their paths.
    """
    told: set[Path] = set()
    for path, problem in verify_results(Path(root)):
        if problem is not None and not isinstance(problem, Misplaced | Forbidden):
            told.add(path)
            found = _damaged(path, problem)
            yield found
            result = _result_of_items(path)
            if found.given_up is not None and result is not None and result not in told:
                yield Damaged(result, "what its measure keeps beside it is damaged", result, later=_MEASURED)


_MEASURED = "the workflow measures it again"


def _result_of_items(path: Path) -> Path | None:
    """The manifest of the result that keeps a stage beside it; None where a path is of something else."""
    result = path.with_name(path.name.replace("items-", "manifest-", 1) + ".json")
    return result if path.name.startswith("items-") and path.is_dir() and result.exists() else None


def _damaged(path: Path, problem: str) -> Damaged:
    if path.name.startswith("made-"):
        return Damaged(path, problem, path, later="what is called like it is drawn again once it is removed, too")
    if path.suffix == ".json" and path.name.startswith("manifest-"):
        return Damaged(path, problem, path, later=_MEASURED)
    if path.is_file():
        return Damaged(path, problem, path, later="the workflow makes it again from its tables")
    if path.suffix == ".zarr":
        return Damaged(path, problem, path, later="the workflow makes it again")
    if is_superseded(path):
        return Damaged(path, problem, None, "it was set aside, and nothing uses it; `quadscape purge` removes it")
    if owner_lives(path):
        return Damaged(path, problem, None, "a process is at work in it")
    manifest = path / ("manifest.json" if (path / "manifest.json").exists() else PURGED)
    later = "units that are whole stay; the others are computed again once something needs them, which tables do not"
    return Damaged(path, problem, manifest, later=later)


def give_up(found: Damaged) -> None:
    """Removes what is to be given up of a damaged result; killed in the middle, the same call goes on."""
    if found.given_up is None:
        return
    if found.given_up.is_dir():
        # Its metadata first: without them it is no store any more, whatever is left of it.
        (found.given_up / "zarr.json").unlink(missing_ok=True)
        shutil.rmtree(found.given_up)
    else:
        found.given_up.unlink(missing_ok=True)
