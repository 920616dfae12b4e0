"""Labels of the code of measures, so that a change of mathematics is measured again, and nothing else.

A result follows from the definitions that can be reached from a measure's `compute`, whose hash
(`quadscape.provenance.definitions`) neither a comment, a docstring, a message nor a move to another module changes.
`measure_code.json` gives the present hash of every measure a label, which is part of the names of its files:

    python -m quadscape.planning.labels                       what is not as locked
    python -m quadscape.planning.labels --lock                the code changed, the tables did not: the label stays
    python -m quadscape.planning.labels --lock spectrum=2     the mathematics changed: a new label

tests/test_measure_code.py computes the tables of a finished experiment again and says which of the two it must be.
Code that is not locked, such as a user's own change, is its own label.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

from quadscape.figures.catalogue import FIGURES
from quadscape.figures.pages.catalogue import PAGES
from quadscape.measures.catalogue import MEASURES
from quadscape.measures.declaration import GROUPS, Measure
from quadscape.provenance.codehash import report_problems
from quadscape.provenance.definitions import Closure, cached_closures

LOCK = Path(__file__).with_name("measure_code.json")
COMMAND = "python -m quadscape.planning.labels --lock"
_ROOT = Path(__file__).resolve().parents[2]


def entries_of(measure: Measure) -> list[str]:
    """What a result of a measure follows from, before what that reaches.

    Args:
        measure: The measure.

    Returns:
        Entries for `quadscape.provenance.definitions.closure`. A job, and its family, come in as arguments, so they are
        named here.
    """
    found = [f"{measure.module}:compute", "quadscape.measures.job:Job"]
    found += ["quadscape.measures.family:Family"] * (measure.of in GROUPS)
    return [*found, f"{measure.module}:Work.*"] if measure.items else found


@cache
def _closures(root: Path) -> dict[str, Closure]:
    entries = {f"measure {name}": entries_of(measure) for name, measure in MEASURES.items()}
    # Tables come in as arguments.
    tables = ["quadscape.tables:Table", "quadscape.tables:TableSchema"]
    for name, spec in FIGURES.items():
        entries[f"figure {name}"] = [f"{spec.module}:draw", "quadscape.figures.style:save", *tables]
    for name, page in PAGES.items():
        entries[f"page {name}"] = [f"{page.module}:scenes", "quadscape.figures.pages.document:save_page", *tables]
    entries["findings"] = ["quadscape.findings.job:write_findings", *tables]
    return cached_closures(entries, root)


def measure_closure(name: str) -> Closure:
    """All that the result of a measure follows from.

    Args:
        name: Name of the measure.

    Returns:
        Hash and definitions.
    """
    return _closures(_ROOT)[f"measure {name}"]


def findings_hash() -> str:
    """Hash of all code that findings follow from, and of the published results that they are compared with.

    Returns:
        Twenty hexadecimal digits.
    """
    known = (_ROOT / "quadscape/findings/known.yaml").read_bytes()
    return sha256(_closures(_ROOT)["findings"].hash.encode() + known).hexdigest()[:20]


def figure_hash(name: str) -> str:
    """Hash of all code that a figure follows from.

    Args:
        name: Name of the figure.

    Returns:
        Twenty hexadecimal digits.
    """
    return _closures(_ROOT)[f"figure {name}"].hash


def page_hash(name: str) -> str:
    """Hash of all code that an interactive page follows from.

    Args:
        name: Name of the page.

    Returns:
        Twenty hexadecimal digits.
    """
    return _closures(_ROOT)[f"page {name}"].hash


@cache
def locked() -> Mapping[str, Mapping[str, str]]:
    """Hash and label of every measure, as locked."""
    return json.loads(LOCK.read_text(encoding="utf-8"))


def measure_label(name: str) -> str:
    """Label of the present code of a measure.

    Args:
        name: Name of the measure.

    Returns:
        The locked label, or one that is made of the hash where the code is not as locked.
    """
    found, now = locked().get(name, {}), measure_closure(name).hash
    return found["label"] if found.get("hash") == now else f"code-{now[:12]}"


def problems() -> list[str]:
    """One sentence on each measure whose code is not as locked."""
    return [
        f"The code of the measure '{name}' is not as locked; tests/test_measure_code.py says whether its label stays "
        f"(`{COMMAND}`) or is a new one (`{COMMAND} {name}=LABEL`)."
        for name in MEASURES
        if locked().get(name, {}).get("hash") != measure_closure(name).hash
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Compares the code of measures with what is locked, or locks it.

    Args:
        argv: Arguments without the program's name; by default the process's.

    Returns:
        Exit code: 0 fine, 1 when something is not as locked.
    """
    parser = argparse.ArgumentParser(
        prog="python -m quadscape.planning.labels", description="Labels of measures' code."
    )
    parser.add_argument(
        "--lock", nargs="*", metavar="MEASURE=LABEL", help="lock the present code; new labels are given"
    )
    given = parser.parse_args(argv).lock
    if given is not None:
        new = dict(item.split("=", 1) for item in given)
        document = {
            name: {
                "hash": measure_closure(name).hash,
                "label": new.get(name, locked().get(name, {}).get("label", "1")),
            }
            for name in MEASURES
        }
        LOCK.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    return report_problems(problems())


if __name__ == "__main__":
    sys.exit(main())
