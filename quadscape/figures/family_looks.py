"""How settings of a family are told apart in figures: eight looks, and grey for what is beyond."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.figures import style
from quadscape.measures.variants import variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from quadscape.tables import Table

MOST = 8
"""Most settings with a look of their own."""

ROWS = 24
"""Most settings in a list."""

_COLOURS = (
    style.BLUE,
    style.VERMILLION,
    style.GREEN,
    style.ORANGE,
    style.PURPLE,
    style.SKY,
    style.BLACK,
    style.GREY,
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 1, 2)))


@dataclass(frozen=True)
class Look:
    """How one setting is drawn.

    Attributes:
        colour: Its colour.
        marker: Its marker.
        dash: Its dash.
    """

    colour: str
    marker: str
    dash: Any


OTHER = Look(style.PALE, ".", "-")
"""Of settings beyond the eight."""


def looks(names: Sequence[str], scores: Mapping[str, float]) -> dict[str, Look]:
    """Looks of settings: of the eight of the least score, in the order of their names' first appearance.

    Args:
        names: All settings, which may repeat.
        scores: What each is ranked by, where there are more than eight; missing or not finite comes last.

    Returns:
        A look for each that gets one.
    """
    every = list(dict.fromkeys(names))
    score = {name: scores.get(name, np.inf) for name in every}
    ranked = sorted(every, key=lambda name: score[name] if np.isfinite(score[name]) else np.inf)
    chosen = [name for name in every if name in set(ranked[:MOST])]
    return {
        name: Look(*look) for name, look in zip(chosen, zip(_COLOURS, _MARKERS, _DASHES, strict=True), strict=False)
    }


def keys(found: Mapping[str, Look], others: int = 0) -> list[Any]:
    """Legend entries of settings.

    Args:
        found: Looks by name.
        others: Number of settings without one.

    Returns:
        Handles.
    """
    handles = [
        style.line_key(short(name), color=look.colour, marker=look.marker, linestyle=look.dash, markersize=5)
        for name, look in found.items()
    ]
    return handles + ([style.line_key(f"{others:,} other settings", color=OTHER.colour)] if others else [])


def short(name: str, most: int = 46) -> str:
    """A name that leaves room for others: the middle of a long one is left out."""
    return name if len(name) <= most else f"{name[: most // 2]} … {name[-(most // 2 - 3) :]}"


def best_cells(table: "Table", losses: str = "validation_loss") -> dict[str, str]:
    """Of every variant the cell with the least mean loss; a cell with a loss that is not finite comes last.

    Args:
        table: Rows of members with their settings.
        losses: Name of the column.

    Returns:
        Cells by variant.
    """
    names, found = variants(table), dict[str, str]()
    for name in dict.fromkeys(names.tolist()):
        means = {}
        for cell in dict.fromkeys(table["cell"][names == name].tolist()):
            values = table[losses][table["cell"] == cell]
            means[cell] = float(values.mean()) if np.isfinite(values).all() else np.inf
        found[name] = min(means, key=lambda cell: means[cell])
    return found


def listed(axis: "Axes", names: Sequence[str], labelled: bool = True) -> None:
    """Makes the vertical axis a list of settings, the first on top.

    Args:
        axis: The panel.
        names: The settings.
        labelled: Whether it names them.
    """
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_yticks(range(len(names)), [short(name, 40) for name in names] if labelled else [""] * len(names))
    if labelled:
        axis.set_ylabel("setting")
    axis.tick_params(axis="y", length=0)
    axis.grid(visible=False, axis="y")


def spread_places(row: int, count: int) -> np.ndarray:
    """Heights of the seeds of one setting around its row, so that equal values do not hide each other."""
    return row + (np.linspace(-0.18, 0.18, count) if count > 1 else np.zeros(count))


def can_be_log(*values: np.ndarray) -> bool:
    """Whether all that is finite is positive, and spans more than a factor 5."""
    found = np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in values])
    found = found[np.isfinite(found)]
    return bool(len(found)) and bool((found > 0).all()) and float(found.max() / found.min()) > 5
