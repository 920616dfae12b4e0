"""A finding: one plain sentence with a number, its interval, and what it means for a published result."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from quadscape.findings.known import KnownRow, Margin, known_rows
from quadscape.measures import MEASURES

AGREES = "agrees"
DISAGREES = "disagrees"
UNDECIDED = "cannot be told"
NOT_TESTABLE = "not testable"
VERDICTS = (AGREES, DISAGREES, UNDECIDED, NOT_TESTABLE, "")
"""Every verdict; the empty one is that of a statement without a published counterpart."""

EXACT = "exact"
"""Interval of a number that is exact on this training set, but for rounding."""


@dataclass(frozen=True)
class Estimate:
    """A number with an interval.

    Attributes:
        value: The number; NaN if there is none.
        low: Lower end; NaN if no interval is known.
        high: Upper end; NaN if no interval is known.
        interval: What the interval is and which target it has, or `EXACT`.
        unit: Unit, "1" for pure numbers.
    """

    value: float
    low: float
    high: float
    interval: str
    unit: str = "1"

    @classmethod
    def exact(cls, value: float, unit: str = "1") -> "Estimate":
        """A number without uncertainty."""
        return cls(float(value), float(value), float(value), EXACT, unit)

    @classmethod
    def alone(cls, value: float, why: str, unit: str = "1") -> "Estimate":
        """A number whose interval is not known, and why."""
        return cls(float(value), math.nan, math.nan, why, unit)


@dataclass(frozen=True)
class Statement:
    """One finding.

    Attributes:
        claim: One plain sentence, without a full stop.
        section: Number of the report's section, 1 … 9.
        measure: The measure whose tables it comes from.
        run: Run, empty if it is of none.
        iterations: Checkpoints that it is about.
        value: The number; NaN if there is none.
        low: Lower end of its interval.
        high: Upper end of its interval.
        interval: What the interval's target is, or `EXACT`.
        unit: Unit of the number.
        known: Id of the published result; empty without one.
        verdict: One of `VERDICTS`.
        reason: Why it is not testable or cannot be told, and what would do; where a setting differs, how.
        primary: Whether it is the finding that its measure declared beforehand; all others are exploratory.
    """

    claim: str
    section: int
    measure: str
    run: str = ""
    iterations: tuple[int, ...] = ()
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    interval: str = ""
    unit: str = "1"
    known: str = ""
    verdict: str = ""
    reason: str = ""
    primary: bool = False

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"'{self.verdict}' is no verdict")
        if bool(self.verdict) != bool(self.known):
            raise ValueError(f"verdict '{self.verdict}' with the published result '{self.known}'")
        object.__setattr__(self, "iterations", tuple(int(iteration) for iteration in self.iterations))
        for name in ("value", "low", "high"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def where(self) -> str:
        """Run and checkpoints in words."""
        if not self.iterations:
            return self.run
        word = "iteration" if len(self.iterations) == 1 else "iterations"
        numbers = ", ".join(f"{iteration:,}" for iteration in self.iterations)
        return f"{self.run}, {word} {numbers}" if self.run else f"{word} {numbers}"

    def to_json(self) -> dict[str, Any]:
        """JSON values: NaN as null, infinities as "inf" and "-inf"."""
        found = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        found["iterations"] = list(self.iterations)
        return found | {name: number_to_json(found[name]) for name in ("value", "low", "high")}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Statement":
        """The statement that `to_json` wrote."""
        found = dict(values)
        found |= {name: number_from_json(found[name]) for name in ("value", "low", "high")}
        return cls(**{**found, "iterations": tuple(found["iterations"])})


def number_to_json(value: float) -> float | str | None:
    """A number that strict JSON can hold."""
    if math.isnan(value):
        return None
    return float(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def number_from_json(value: float | str | None) -> float:
    """The number that `number_to_json` wrote."""
    return math.nan if value is None else float(value)


def judge(value: float, low: float, high: float, margin: Margin, differs: str = "") -> tuple[str, str]:
    """The verdict of a number on a published claim.

    It agrees if its interval lies inside the margin, disagrees if the interval lies outside, and else cannot be told.
    In a setting that differs a claim is never called refuted.

    Args:
        value: The number.
        low: Lower end of its interval; −∞ is allowed.
        high: Upper end of its interval; ∞ is allowed.
        margin: Where it must lie to agree.
        differs: How the setting differs from the published one; empty if it does not.

    Returns:
        Verdict and reason; a difference of the setting is named whatever the verdict.
    """
    setting = f"the setting differs: {differs}" if differs else ""
    if math.isnan(value):
        return NOT_TESTABLE, "; ".join(filter(None, ("the number does not exist in these tables", setting)))
    if math.isnan(low) or math.isnan(high):
        return UNDECIDED, "; ".join(filter(None, ("the number has no interval", setting)))
    if margin.low <= low and high <= margin.high:
        return AGREES, setting
    if high < margin.low or low > margin.high:
        if differs:
            return UNDECIDED, f"outside the margin, but {setting}"
        return DISAGREES, ""
    return UNDECIDED, "; ".join(filter(None, ("the interval reaches across an end of the margin", setting)))


def described(
    claim: str, estimate: Estimate, *, measure: str, run: str = "", iterations: Sequence[int] = ()
) -> Statement:
    """A statement without a published counterpart.

    Args:
        claim: One plain sentence.
        estimate: Its number.
        measure: The measure, to whose chapter of the report it belongs.
        run: Run.
        iterations: Checkpoints.

    Returns:
        The statement.
    """
    place = (MEASURES[measure].chapter, measure, run, tuple(iterations))
    return Statement(claim, *place, estimate.value, estimate.low, estimate.high, estimate.interval, estimate.unit)


def compared(
    row: str | KnownRow,
    claim: str,
    estimate: Estimate,
    setting: Mapping[str, Any],
    *,
    measure: str,
    run: str = "",
    iterations: Sequence[int] = (),
) -> Statement:
    """A statement about a published result.

    Args:
        row: The result, or its id.
        claim: What was found, one plain sentence.
        estimate: The number that the row's `quantity` names.
        setting: What is known of the run; see `KnownRow.differences`.
        measure: The measure.
        run: Run.
        iterations: Checkpoints.

    Returns:
        The statement with its verdict.
    """
    known = known_rows()[row] if isinstance(row, str) else row
    small = known.too_small(setting)
    if small:
        return untestable(known, small, measure=measure, run=run, iterations=iterations)
    verdict, reason = judge(estimate.value, estimate.low, estimate.high, known.margin, known.differences(setting))
    if verdict == NOT_TESTABLE:
        reason = f"{reason}; {known.would_do} would do"
    found = described(claim, estimate, measure=measure, run=run, iterations=iterations)
    return replace(found, section=known.chapter, known=known.id, verdict=verdict, reason=reason)


def untestable(
    row: str | KnownRow, reason: str, *, measure: str, run: str = "", iterations: Sequence[int] = ()
) -> Statement:
    """A statement that a published result cannot be tested here.

    Args:
        row: The result, or its id.
        reason: Why, and which size or data would do.
        measure: The measure.
        run: Run.
        iterations: Checkpoints.

    Returns:
        The statement; its sentence is the published one.
    """
    known = known_rows()[row] if isinstance(row, str) else row
    place = (known.chapter, measure, run, tuple(iterations))
    return Statement(known.claim, *place, known=known.id, verdict=NOT_TESTABLE, reason=reason)
