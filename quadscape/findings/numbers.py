"""Numbers as a reader wants them: three significant digits, thousands apart, a true minus."""

import math

from quadscape.findings.statement import Statement

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3) -> str:
    """A number in words.

    Args:
        value: The number.
        digits: Significant digits; whole numbers below 10⁶ keep all of theirs.

    Returns:
        For example 0.0321, 12,300, −4.56×10⁻⁷; "none" for NaN, "∞" for infinity.
    """
    if math.isnan(value):
        return "none"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == round(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", "−")
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if -4 <= power < 6:
        text = f"{float(f'{mantissa}e{power}'):,.{max(0, digits - 1 - power)}f}"
    else:
        text = f"{mantissa}×10{str(power).translate(_SUPERSCRIPTS)}"
    return text.replace("-", "−")


def percent(value: float) -> str:
    """A share in per cent."""
    return f"{number(100 * value)} %"


def unit_text(unit: str) -> str:
    """A unit with a space before it; nothing for pure numbers."""
    return "" if unit in {"", "1"} else f" {unit}"


def estimate_text(statement: Statement) -> str:
    """Value, unit and interval of a statement.

    Args:
        statement: The statement.

    Returns:
        For example "1.02 (0.95 to 1.09; 95 %, bootstrap over examples)", "±" where the interval is symmetric, empty
        where there is no number.
    """
    if math.isnan(statement.value):
        return ""
    value = number(statement.value)
    unit = unit_text(statement.unit)
    if statement.low == statement.high == statement.value or math.isnan(statement.low) or math.isnan(statement.high):
        return f"{value}{unit} ({statement.interval})" if statement.interval else f"{value}{unit}"
    above, below = statement.high - statement.value, statement.value - statement.low
    if math.isfinite(above) and above > 0 and math.isclose(above, below, rel_tol=1e-3):
        return f"{value} ± {number(above, 2)}{unit} ({statement.interval})"
    return f"{value}{unit} ({number(statement.low)} to {number(statement.high)}; {statement.interval})"


def times(count: int) -> str:
    """How often something happens, in words.

    Args:
        count: How often.

    Returns:
        nowhere, once, twice, or a number of times.
    """
    return {0: "nowhere", 1: "once", 2: "twice"}.get(count, f"{count:,} times")
