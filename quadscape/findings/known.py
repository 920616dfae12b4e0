"""Published results as data: what was claimed, where, and by how much ours may differ (`known.yaml`).

Read without pydantic or torch, so that findings can be made wherever tables can be read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from quadscape.measures.catalogue import MEASURES

_FILE = Path(__file__).with_name("known.yaml")

PRESENT_MEASURES = tuple(MEASURES)
"""Measures that exist; a row of any other measure is listed as not measured yet."""

DIRECTIONS = ("inside", "above", "below")
"""What a margin means: between two numbers, at least one, at most one."""


@dataclass(frozen=True)
class Margin:
    """Where a value must lie to agree with a claim; closed at finite ends.

    Attributes:
        low: Lower end, −∞ if there is none.
        high: Upper end, ∞ if there is none.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"a margin from {self.low} to {self.high} is empty")

    @property
    def direction(self) -> str:
        """One of `DIRECTIONS`."""
        if math.isinf(self.low):
            return "below"
        return "above" if math.isinf(self.high) else "inside"


@dataclass(frozen=True)
class KnownRow:
    """One published result.

    Attributes:
        id: Short name.
        claim: What is claimed, in our own words.
        source: Authors, arXiv number, year.
        found: Whether the source's page was found; otherwise the row is from memory.
        section: Key of the question that it belongs to in the project's list of questions (S1, T2, R, …).
        chapter: Number of the report's section, 1 … 9.
        setting: Under which conditions it was published.
        quantity: The number that decides.
        margin: Where that number must lie to agree.
        quoted: Whether the margin is the source's; otherwise it is ours.
        measure: The measure whose tables decide.
        would_do: What it takes to test the row.
        requires: Conditions of the claim that can be compared with a run's setting, by name; see `differences`.
        least: Sizes below which nothing is said, by name (P, N).
        values: Numbers of the source, by iteration, λ or name.
    """

    id: str
    claim: str
    source: str
    found: bool
    section: str
    chapter: int
    setting: str
    quantity: str
    margin: Margin
    measure: str
    would_do: str
    quoted: bool = False
    requires: Mapping[str, Any] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[Any, Any] = field(default_factory=dict)

    @property
    def present(self) -> bool:
        """Whether its measure exists."""
        return self.measure in PRESENT_MEASURES

    def differences(self, setting: Mapping[str, Any]) -> str:
        """How a run's setting differs from the one of the claim.

        Args:
            setting: What is known of the run, by name.

        Returns:
            Differences in words, empty if there are none. What is not known counts as different: a claim is never
            refuted in a setting that may not be its own.
        """
        found = [
            f"{name} is {_words(setting[name])} (published: {_words(wanted)})"
            for name, wanted in self.requires.items()
            if name in setting and not _equal(setting[name], wanted)
        ]
        missing = [
            f"{name} (published: {_words(wanted)})" for name, wanted in self.requires.items() if name not in setting
        ]
        return "; ".join([*found, *([f"the tables do not say {', '.join(missing)}"] if missing else [])])

    def too_small(self, setting: Mapping[str, Any]) -> str:
        """What of a run is too small to say anything, and what would do; empty if nothing is."""
        small = [
            f"not tested at this size ({name} = {setting[name]:,}; {least:,} would do)"
            for name, least in self.least.items()
            if name in setting and setting[name] < least
        ]
        return "; ".join(small)


def _words(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value).lower()


def _equal(have: Any, wanted: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(have, bool) or isinstance(wanted, str) or isinstance(have, str):
        return type(have) is type(wanted) and have == wanted
    try:
        return math.isclose(have, wanted, rel_tol=1e-6)
    except TypeError:
        return False


def _row(entry: Mapping[str, Any]) -> KnownRow:
    values = dict(entry)
    low, high = values.pop("margin")
    margin = Margin(-math.inf if low is None else float(low), math.inf if high is None else float(high))
    direction = values.pop("direction")
    if direction != margin.direction:
        raise ValueError(f"{values['id']}: the margin says '{margin.direction}', the direction '{direction}'")
    for name in ("requires", "least", "values"):
        values[name] = MappingProxyType(dict(values.get(name, {})))
    return KnownRow(margin=margin, **values)


@cache
def known_rows() -> Mapping[str, KnownRow]:
    """Every published result by its id, in the order of the file.

    Returns:
        A read-only mapping.

    Raises:
        ValueError: The file contradicts itself.
    """
    rows = [_row(entry) for entry in yaml.safe_load(_FILE.read_text(encoding="utf-8"))["rows"]]
    found = {row.id: row for row in rows}
    if len(found) != len(rows):
        raise ValueError(f"{_FILE.name} has two rows of one id")
    return MappingProxyType(found)
