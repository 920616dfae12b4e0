"""At which iterates of a run its largest eigenvalue is taken, and over which plateaus it is averaged."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def chosen_iterates(kept: np.ndarray, drops: Sequence[int], most: int) -> np.ndarray:
    """Iterates of a run: half of them even, the others log-spaced after its start and after every drop of the rate.

    Args:
        kept: Iterations whose θ was kept, ascending, shape (k,).
        drops: Iterations from which a lower rate holds.
        most: How many, 4 or more.

    Returns:
        At most so many of those kept, ascending, int64. The first and the last are among them.
    """
    kept = np.asarray(kept, dtype=np.int64)
    if len(kept) <= most:
        return kept
    best = _near(kept, drops, most)
    # Where many wishes fall on one iterate, more are made.
    for wishes in range(most + 1, 4 * most):
        found = _near(kept, drops, wishes)
        if len(best) < len(found) <= most:
            best = found
    return best


def _near(kept: np.ndarray, drops: Sequence[int], wishes: int) -> np.ndarray:
    """The iterates nearest to so many wishes."""
    starts = [int(kept[0]), *(int(drop) for drop in drops if kept[0] < drop < kept[-1])]
    even = max(2, wishes // 2, wishes - wishes // 2 - len(starts))
    if len(starts) > wishes - even:
        starts = starts[:1]
    each = (wishes - even) // len(starts)
    wanted = [np.linspace(kept[0], kept[-1], even)]
    for start, stop in zip(starts, [*starts[1:], int(kept[-1])], strict=True):
        wanted.append(np.array([start, *(start + np.geomspace(1, max(stop - start, 1), each)[:-1])][:each]))
    places = np.concatenate(wanted)
    above = np.clip(np.searchsorted(kept, places), 1, len(kept) - 1)
    nearest = np.where(places - kept[above - 1] <= kept[above] - places, above - 1, above)
    return np.unique(kept[nearest])


def plateaus_of(rates: np.ndarray) -> list[tuple[int, int]]:
    """Plateaus of a run: at least two steps in a row of equal learning rate.

    Args:
        rates: η of every step, shape (T,).

    Returns:
        Steps taken before and at the end of each, in order.
    """
    if not len(rates):
        return []
    edges = np.flatnonzero(~np.isclose(rates[1:], rates[:-1], rtol=1e-9, atol=0.0)) + 1
    ends = [0, *edges.tolist(), len(rates)]
    return [(a, b) for a, b in pairwise(ends) if b - a > 1]
