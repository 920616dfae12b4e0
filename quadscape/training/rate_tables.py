"""Learning rates from a file, one for each iteration: reading and writing it, and the digest that stands for it.

Neither torch nor Zarr is loaded, since the workflow's head reads such files at every start.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from quadscape.config.sections import Table, Training
from quadscape.durable import replace_text
from quadscape.errors import ConfigError
from quadscape.paths import user_path

HEADER = "learning_rate"
KEY = "learning_rate"
_DIGITS = 6
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)

AnyTraining = TypeVar("AnyTraining", bound=Training)


def _text(rate: float) -> str:
    return f"{rate:.{_DIGITS}g}"


def rounded(rates: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rates as they are used.

    Args:
        rates: Finite numbers, shape (T,).

    Returns:
        The nearest numbers of six significant digits, float64, shape (T,).
    """
    # Zero is added, so that there is one zero only.
    return np.array([float(_text(float(rate))) for rate in rates], dtype=np.float64) + 0.0


def rates_digest(rates: Sequence[float] | np.ndarray) -> str:
    """SHA-256 of rates, which are rounded first.

    Args:
        rates: Finite numbers, shape (T,).

    Returns:
        Hexadecimal digits; the same for files that differ in path, comments or the way in which they write numbers.
    """
    return hashlib.sha256("".join(f"{_text(rate)}\n" for rate in rounded(rates)).encode()).hexdigest()


def read_rates(path: str | Path, key: str = KEY) -> np.ndarray:
    """Reads a file of learning rates.

    Args:
        path: Of a text file with one number per line; blank lines and lines that begin with # do not count, and the
            first other line may be `learning_rate`.
        key: The key of the experiment file whose `path` it is, for messages.

    Returns:
        The rates, rounded, float64, shape (lines,).

    Raises:
        ConfigError: The file cannot be read, or a line holds something else than a number from 0 on.
    """
    named = f"{key}.path is '{path}'"
    valid = "valid is a text file with one learning rate per line"
    try:
        text = user_path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{named}, which cannot be read ({error.strerror}); {valid}.") from None
    except ValueError:
        raise ConfigError(f"{named}, which is not UTF-8 text; {valid}.") from None
    found: list[float] = []
    may_be_header = True
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if may_be_header and entry == HEADER:
            may_be_header = False
            continue
        may_be_header = False
        rate = float(entry) if _NUMBER.fullmatch(entry) else math.nan
        if not (math.isfinite(rate) and rate >= 0):
            shown = entry if len(entry) <= 40 else f"{entry[:37]}..."
            raise ConfigError(f"{named}, whose line {number} is {shown!r}; valid are finite numbers, 0 or more.")
        found.append(rate)
    return rounded(found)


def write_rates(path: str | Path, rates: Sequence[float] | np.ndarray) -> str:
    """Writes a file of learning rates, which is there as a whole or not at all.

    Args:
        path: The file; what was there is replaced.
        rates: Finite numbers, 0 or more, shape (T,).

    Returns:
        The digest of what was written, as `rates_digest`.

    Raises:
        ConfigError: There are none, or one of them is negative or not finite.
    """
    values = np.asarray(rates, dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0))) if values.ndim == 1 else np.zeros(1, int)
    if values.ndim != 1 or not values.size or bad.size:
        what = f"the rate of iteration {bad[0]} is {values[bad[0]]}" if values.ndim == 1 and bad.size else "no list"
        raise ConfigError(f"No learning rates can be written to '{path}': {what}; valid are finite numbers, 0 or more.")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_text(target, "\n".join([HEADER, *(_text(rate) for rate in rounded(values)), ""]))
    return rates_digest(values)


def rates_of(schedule: Table, iterations: int, key: str = KEY) -> np.ndarray:
    """The rates of a run.

    Args:
        schedule: The table.
        iterations: Number of steps.
        key: The key at which it stands, for messages.

    Returns:
        float64, shape (iterations,).

    Raises:
        ConfigError: There is no such file, it has too few rates, or they are others than `digest` says.
    """
    if schedule.path is None:
        raise ConfigError(f"{key}.path is missing and has no default.")
    rates = read_rates(schedule.path, key)
    named = f"{key}.path is '{schedule.path}'"
    if len(rates) < iterations:
        raise ConfigError(
            f"{named}, which holds {len(rates)} learning rates, but the run has {iterations} iterations; valid is one "
            "rate for each, or more."
        )
    rates = rates[:iterations]
    if schedule.digest is not None and schedule.digest != (found := rates_digest(rates)):
        raise ConfigError(
            f"{named}, whose rates have the digest {found}, but {key}.digest is {schedule.digest}; valid is the file "
            "with that digest, or, for these rates, theirs."
        )
    return rates


def filled(run: AnyTraining, key: str = KEY) -> AnyTraining:
    """A run whose table of learning rates, if it has one, has its digest.

    Args:
        run: The run, or its training parameters alone.
        key: The key of its schedule, for messages.

    Returns:
        The same, or with the digest of the rates in its file. A table without a path stays as it is: that of a finished
        run, whose rates are recorded.
    """
    schedule = run.learning_rate
    if not isinstance(schedule, Table) or schedule.path is None:
        return run
    digest = rates_digest(rates_of(schedule, run.iterations, key))
    return run.model_copy(update={"learning_rate": schedule.model_copy(update={"digest": digest})})
