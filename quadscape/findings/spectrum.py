"""Findings from Hessian spectra: largest and negative eigenvalues, exponents, outliers, the stability limit."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quadscape.findings import reading
from quadscape.findings.estimates import largest_factor, power_law
from quadscape.findings.known import known_rows
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described, untestable
from quadscape.tables import Table
from quadscape.theory.momentum import Momentum

MEASURE = "spectrum"

PRIMARY = "rank-exponent-trained"
"""The finding declared beforehand; all others are exploratory."""

FIRST_RANK = 10
"""Exponents are read from here on: the first eigenvalues may stand apart."""

LAST_RANK = 1000
"""Exponents are read up to here, or to half of the positive eigenvalues: near its end every spectrum falls off."""

LEAST_POSITIVE = 100
"""Positive eigenvalues above numerical zero below which no exponent is given."""

ISOLATION = 4.0
"""A gap sets outliers apart if its logarithm is this many times the mean of those around it (ranks k/2 to 2k)."""

LEAST_GAP = 1.3
"""And if the eigenvalues at its sides have at least this ratio."""

SETTLED = 0.05
"""Sharpening has stopped where λ₁ changes by less than this between the last two checkpoints at one rate."""

_UNIT = "loss / parameter²"
_NUMERICAL = "numerical error of eigenvalues, on this training set"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `spectrum`; `curves` of the same runs for learning rates.

    Returns:
        Statements, by run.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, MEASURE):
        for table in run.tables:
            found += _checkpoint(run, table)
        if run.last is not None:
            found += [*_exponents(run, run.last), *_outliers(run, run.last)]
        found += [*_start(run), *_paths(run), *_after_drops(run, tables), *_limits(run, tables)]
    return found


def positive_spectrum(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Ranks and eigenvalues above numerical zero, by rank from 1."""
    keep = (table["sign"] > 0) & ~table["is_zero"] & (table["eigenvalue"] > 0)
    order = np.argsort(table["rank"][keep])
    return table["rank"][keep][order].astype(np.float64), table["eigenvalue"][keep][order]


def at_rank(ranks: np.ndarray, values: np.ndarray, rank: int) -> tuple[float, float, float]:
    """An eigenvalue by its rank, from a spectrum that is thinned at high ranks.

    Args:
        ranks: Ranks kept, ascending.
        values: Their eigenvalues, descending, positive.
        rank: The rank.

    Returns:
        The eigenvalue, interpolated in logarithms, and the neighbours that bound it; NaN beyond the last rank.
    """
    if not len(ranks) or not ranks[0] <= rank <= ranks[-1]:
        return (math.nan,) * 3
    place = int(np.searchsorted(ranks, rank))
    if ranks[place] == rank:
        return (float(values[place]),) * 3
    value = math.exp(float(np.interp(math.log(rank), np.log(ranks), np.log(values))))
    return value, float(values[place]), float(values[place - 1])


def rank_exponent(table: Table, first: int = FIRST_RANK, last: int | None = None) -> Estimate:
    """The exponent s of λ ∝ rank⁻ˢ.

    Args:
        table: A `spectrum`.
        first: First rank.
        last: Last rank; by default `LAST_RANK`, or half of the positive eigenvalues.

    Returns:
        s with its range over parts of the ranks; NaN where the spectrum does not reach the last rank.
    """
    ranks, values = positive_spectrum(table)
    if not len(ranks) or (last is not None and ranks[-1] < last):
        return Estimate.alone(math.nan, "too few eigenvalues")
    last = min(LAST_RANK, int(ranks[-1]) // 2) if last is None else last
    inside = (ranks >= first) & (ranks <= last)
    fitted = power_law(ranks[inside], values[inside], f"ranks {first:,} to {last:,}")
    return replace(fitted, value=-fitted.value, low=-fitted.high, high=-fitted.low)


def outlier_count(eigenvalues: np.ndarray, classes: int) -> int:
    """How many of the largest eigenvalues stand apart from the bulk.

    Args:
        eigenvalues: λ₁ … λ₆C, descending, positive.
        classes: C; up to 3C outliers are looked for.

    Returns:
        k with the most isolated gap λₖ/λₖ₊₁, 0 if none is isolated; see `ISOLATION` and `LEAST_GAP`.
    """
    gaps = -np.diff(np.log(eigenvalues))
    best, count = ISOLATION, 0
    for k in range(1, min(3 * classes, len(gaps)) + 1):
        around = np.arange(max(1, k // 2), min(max(2 * k, 3), len(gaps)) + 1)
        mean = float(gaps[around[around != k] - 1].mean()) if len(around) > 1 else math.nan
        isolation = gaps[k - 1] / mean if mean > 0 else math.inf
        if gaps[k - 1] >= math.log(LEAST_GAP) and isolation >= best:
            best, count = isolation, k
    return count


def _checkpoint(run: RunTables, table: Table) -> list[Statement]:
    """What every checkpoint has: λ₁, the negative part, the effective rank."""
    at = reading.place(MEASURE, run, table)
    zero, largest = reading.attribute(table, "zero_threshold"), reading.attribute(table, "largest")
    found = [
        described(
            f"The largest eigenvalue is {number(largest)}, the most negative {number(_smallest(table))}",
            Estimate(largest, largest - zero, largest + zero, _NUMERICAL, _UNIT),
            **at,
        )
    ]
    counts = _counts_at(table, zero)
    if counts:
        share = float(counts["negative_share"])
        text = f"{int(counts['negative']):,} of {int(reading.attribute(table, 'P')):,} eigenvalues are negative beyond "
        text += f"the numerical zero and hold {percent(share)} of the sum of |λ|"
        found.append(described(text, Estimate.exact(share), **at))
    rank, trace = reading.attribute(table, "effective_rank"), reading.attribute(table, "trace")
    text = f"The curvature (trace {number(trace)}) is spread over an effective {number(rank)} directions"
    found.append(described(text, Estimate.exact(rank), **at))
    return found


def _smallest(table: Table) -> float:
    return reading.attribute(table, "smallest")


def _counts_at(table: Table, cut: float) -> Mapping[str, Any]:
    for counts in table.attributes.get("cuts", ()):
        if counts["cut"] == cut:
            return counts
    return {}


def _exponents(run: RunTables, table: Table) -> list[Statement]:
    at = reading.place(MEASURE, run, table)
    ranks, values = positive_spectrum(table)
    count = int(ranks[-1]) if len(ranks) else 0
    found = []
    if count < LEAST_POSITIVE:
        found.append(untestable(PRIMARY, _few(count, LEAST_POSITIVE), **at))
    else:
        estimate = rank_exponent(table)
        text = f"The largest eigenvalues fall as the rank to the power −{number(estimate.value)}"
        found.append(compared(PRIMARY, text, estimate, run.setting, **at))
    for rank in (100, 1000):
        row = f"original-top-ratio-{rank}"
        if count < rank:
            found.append(untestable(row, _few(count, rank), **at))
            continue
        zero = reading.attribute(table, "zero_threshold")
        value, low, high = at_rank(ranks, values, rank)
        top = float(values[0])
        text = f"The largest eigenvalue is {number(top / value)} times the one of rank {rank:,}"
        least = max(low - zero, np.finfo(float).tiny)
        estimate = Estimate(top / value, (top - zero) / (high + zero), (top + zero) / least, _NUMERICAL)
        found.append(compared(row, text, estimate, run.setting, **at))
    if count < 1000:
        found.append(untestable("original-exponent", _few(count, 1000), **at))
    else:
        estimate = rank_exponent(table, 100, 1000)
        text = f"Between ranks 100 and 1,000 eigenvalues fall as the rank to the power −{number(estimate.value)}"
        found.append(compared("original-exponent", text, estimate, run.setting, **at))
    return found


def _few(count: int, wanted: int) -> str:
    return f"{count:,} eigenvalues lie above the numerical zero; {wanted:,} would do"


def _outliers(run: RunTables, table: Table) -> list[Statement]:
    at = reading.place(MEASURE, run, table)
    normalization = run.setting.get("normalization")
    rows = {"none": ("outliers-classes",), "batch": ("outliers-batchnorm",)}
    chosen = rows.get(str(normalization), ("outliers-classes", "outliers-batchnorm"))
    classes = reading.classes_of(run.setting)
    if not classes:
        return [untestable(row, "the tables do not say how many classes there are", **at) for row in chosen]
    ranks, values = positive_spectrum(table)
    if not len(ranks) or ranks[-1] < 6 * classes:
        count = int(ranks[-1]) if len(ranks) else 0
        return [untestable(row, _few(count, 6 * classes), **at) for row in chosen]
    first = np.array([at_rank(ranks, values, rank)[0] for rank in range(1, 6 * classes + 1)])
    count = outlier_count(first, classes)
    text = f"{count:,} eigenvalues stand apart from the bulk, with {classes:,} classes"
    return [compared(row, text, Estimate.exact(count / classes), run.setting, **at) for row in chosen]


def _start(run: RunTables) -> list[Statement]:
    """Is the spectrum at iteration 0 a power law? By how much its exponent changes along it."""
    tables = [table for table in run.tables if reading.iteration_of(table) == 0]
    if not tables:
        return []
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run, "iterations": (0,)}
    ranks, _ = positive_spectrum(tables[0])
    count = int(ranks[-1]) if len(ranks) else 0
    if count < LEAST_POSITIVE:
        return [untestable("rank-exponent-start", _few(count, LEAST_POSITIVE), **at)]
    exponent = rank_exponent(tables[0])
    bend = Estimate.exact((exponent.high - exponent.low) / abs(exponent.value) if exponent.value else math.inf)
    text = f"Before training the exponent of the rank is between −{number(exponent.high)} and −{number(exponent.low)}"
    return [compared("rank-exponent-start", f"{text} along the spectrum", bend, run.setting, **at)]


def _largest_of(table: Table) -> tuple[float, float, float]:
    value, zero = reading.attribute(table, "largest"), reading.attribute(table, "zero_threshold")
    return value, value - zero, value + zero


def _smallest_of(table: Table) -> tuple[float, float, float]:
    value, zero = _smallest(table), reading.attribute(table, "zero_threshold")
    return value, value - zero, value + zero


def _negatives(table: Table) -> tuple[float, float, float]:
    ranks = table["rank"][table["sign"] < 0]
    count = float(ranks.max()) if len(ranks) else 0.0
    counts = _counts_at(table, 0.0)
    return (float(counts["negative"]) if counts else count,) * 3


def _above(table: Table, cut: float = 1e-4) -> tuple[float, float, float]:
    """Number of eigenvalues above a cut, between the ranks kept around it."""
    keep = table["sign"] > 0
    order = np.argsort(table["rank"][keep])
    ranks, values = table["rank"][keep][order].astype(np.float64), table["eigenvalue"][keep][order]
    place = int(np.count_nonzero(values > cut))
    low = float(ranks[place - 1]) if place else 0.0
    if place == len(ranks) or ranks[place] == low + 1:
        return low, low, low
    high = float(ranks[place]) - 1
    return (low + high) / 2, low, high


def _paths(run: RunTables) -> list[Statement]:
    """Comparisons with the original study at the iterations that both have."""
    kept = "ranks kept around the cut, on this training set"
    wanted: tuple[tuple[str, str, Callable[[Table], tuple[float, float, float]], str], ...] = (
        ("original-sharpness-path", "largest eigenvalue", _largest_of, _NUMERICAL),
        ("original-positive-count", "number of eigenvalues above 0.0001", _above, kept),
        ("original-negative-count", "number of negative eigenvalues", _negatives, "exact count, on this training set"),
        ("original-most-negative", "most negative eigenvalue", _smallest_of, _NUMERICAL),
    )
    found = []
    for row, what, read, interval in wanted:
        published = known_rows()[row].values
        shared = [table for table in run.tables if reading.iteration_of(table) in published]
        iterations = tuple(reading.iteration_of(table) for table in shared)
        if iterations in {(), (0,)}:
            reason = "no checkpoint after the start at an iteration of the original study"
            found.append(
                untestable(row, f"{reason}; {known_rows()[row].would_do} would do", measure=MEASURE, run=run.run)
            )
            continue
        estimate = largest_factor([read(table) for table in shared], [published[i] for i in iterations], interval)
        text = f"The {what} differs from the original study's by at most a factor {number(estimate.value)}"
        at: dict[str, Any] = {"measure": MEASURE, "run": run.run, "iterations": iterations}
        found.append(compared(row, text, estimate, run.setting, **at))
    return found


def _after_drops(run: RunTables, tables: Tables) -> list[Statement]:
    """λ₁ around drops of the learning rate: soon after, and until the next."""
    drops = reading.drops_of(tables, run.run)
    by_iteration = {reading.iteration_of(table): _largest_of(table) for table in run.tables}
    falls, rises = [], []
    for place, drop in enumerate(drops):
        following = drops[place + 1] if place + 1 < len(drops) else math.inf
        soon = [i for i in by_iteration if drop + 50 <= i <= drop + 200]
        late = [i for i in by_iteration if drop + 1000 <= i <= following]
        if drop in by_iteration and soon:
            falls.append((drop, min(soon), by_iteration[min(soon)], by_iteration[drop]))
        if soon and late:
            rises.append((min(soon), max(late), by_iteration[max(late)], by_iteration[min(soon)]))
    found = []
    cases = (("original-sharpness-falls-after-drop", falls, max), ("original-sharpness-rises-late", rises, min))
    for row, pairs, extreme in cases:
        if not pairs:
            reason = f"{len(drops)} drops, none with such checkpoints; {known_rows()[row].would_do} would do"
            found.append(untestable(row, reason, measure=MEASURE, run=run.run))
            continue
        ratios = [(a[0] / b[0], a[1] / b[2], a[2] / b[1]) for _, _, a, b in pairs]
        value, low, high = extreme(ratios)
        which = ratios.index((value, low, high))
        text = f"From iteration {pairs[which][0]:,} to {pairs[which][1]:,} the largest eigenvalue changes "
        text += f"to {number(value)} of itself"
        iterations = sorted({i for first, second, _, _ in pairs for i in (first, second)})
        at: dict[str, Any] = {"measure": MEASURE, "run": run.run, "iterations": iterations}
        found.append(compared(row, text, Estimate(value, low, high, _NUMERICAL), run.setting, **at))
    return found


def _limits(run: RunTables, tables: Tables) -> list[Statement]:
    """λ₁ + δ over the stability limit of the rule in use."""
    rows = {True: ("edge-full-batch",), False: ("edge-mini-batch-below",)}
    edges = rows.get(run.setting.get("full_batch", None), ("edge-full-batch", "edge-mini-batch-below"))
    missing = [name for name in ("momentum", "batch_size", "weight_decay") if name not in run.setting]
    rates = {i: reading.learning_rate_before(tables, run.run, i) for i in map(reading.iteration_of, run.after_start)}
    usable = [table for table in run.after_start if rates[reading.iteration_of(table)] > 0]
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    if missing or not usable:
        reason = (
            f"the tables do not say the run's {', '.join(missing)}" if missing else "no checkpoint with a known rate"
        )
        rows_all = ("original-below-edge", *edges)
        return [untestable(row, f"{reason}; {known_rows()[row].would_do} would do", **at) for row in rows_all]
    momentum, decay = float(run.setting["momentum"]), float(run.setting["weight_decay"])
    ratios = []
    for table in usable:
        rate = rates[reading.iteration_of(table)]
        limit = Momentum(rate, momentum, bool(run.setting.get("nesterov", False))).limit / rate
        value, low, high = _largest_of(table)
        ratios.append(((value + decay) / limit, (low + decay) / limit, (high + decay) / limit))
    iterations = [reading.iteration_of(table) for table in usable]
    worst = max(ratios)
    text = f"λ₁ + δ reaches {number(worst[0])} of the stability limit of the learning rate"
    estimate = Estimate(*worst, _NUMERICAL)
    found = [compared("original-below-edge", text, estimate, run.setting, iterations=iterations, **at)]
    return found + [_edge(run, row, iterations, ratios, rates) for row in edges]


def _edge(
    run: RunTables,
    row: str,
    iterations: list[int],
    ratios: list[tuple[float, float, float]],
    rates: Mapping[int, float],
) -> Statement:
    """Where λ₁ has settled at one rate: two last checkpoints at that rate with nearly equal λ₁."""
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    if len(ratios) < 2 or not math.isclose(rates[iterations[-1]], rates[iterations[-2]], rel_tol=1e-6):
        reason = f"no two last checkpoints at one learning rate; {known_rows()[row].would_do} would do"
        return untestable(row, reason, iterations=iterations[-1:], **at)
    change = abs(ratios[-1][0] / ratios[-2][0] - 1) if ratios[-2][0] else math.inf
    if not change < SETTLED:
        reason = f"λ₁ still changes ({percent(change)} between the last two checkpoints); checkpoints within "
        return untestable(row, f"{reason}{percent(SETTLED)} of each other would do", iterations=iterations[-2:], **at)
    text = f"λ₁ + δ has settled at {number(ratios[-1][0])} of the stability limit"
    value, low, high = ratios[-1]
    estimate = Estimate(value, low, high, _NUMERICAL)
    return compared(row, text, estimate, run.setting, iterations=iterations[-2:], **at)
