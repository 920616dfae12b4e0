"""Losses along straight lines in the space of parameters, one panel each, as several figures show them."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.tables import Table

MOST = 8
_DECADE = 10.0


def lines(runs: "Sequence[tuple[Table, Table]]", title: str, nothing: str, along: str) -> "Figure":
    """Draws one panel per line.

    Args:
        runs: Points and summary of each line.
        title: Title of the figure.
        nothing: What to say where there is no line.
        along: Label of the horizontal axis.

    Returns:
        The figure.
    """
    runs = [(line, summary) for line, summary in runs if len(line)][:MOST]
    if not runs:
        return style.message(title, nothing)
    figure, axes = style.panels(len(runs), width=3.4, heights=(3.0,), most=4)
    for (line, summary), axis in zip(runs, axes[0], strict=True):
        _panel(axis, line, summary)
    style.outer_labels(
        axes[0],
        style.even_columns(len(runs), 4),
        along,
        "loss per example (nats)" if _nats(runs) else "loss per example",
    )
    twice = any("aligned" in line.columns for line, _ in runs)
    keys = [
        style.line_key(label, color=colour, marker=marker, linestyle="-" if twice else dash, markersize=4)
        for label, colour, marker, dash in style.SPLITS.values()
    ]
    if any(line["aligned"].any() for line, _ in runs if "aligned" in line.columns):
        keys.append(style.line_key("the same, hidden units aligned", color=style.GREY, linestyle="--"))
    keys.append(style.line_key("between the end losses", color=style.GREY, linestyle=":"))
    if any(not _shown(summary)["monotone"].all() for _, summary in runs):
        keys.append(style.line_key("largest rise, from foot to top", color=style.BLACK, marker="_", markersize=8))
    style.legend(figure, keys)
    figure.suptitle(title)
    return figure


def _panel(axis: "Axes", line: "Table", summary: "Table") -> None:
    notes = []
    for split, (label, colour, marker, dash) in style.SPLITS.items():
        rows, own = line.where(line["split"] == split), summary.where(summary["split"] == split)
        if not len(rows):
            continue
        if "aligned" in line.columns:
            notes.append(f"{label}: {_both(axis, rows, own, colour, marker)}")
            continue
        _line(axis, rows, colour, marker, dash)
        if not len(own):
            notes.append(f"{label}: not finite")
        elif own["monotone"][0]:
            notes.append(f"{label}: falls throughout" if own["end"][0] < own["start"][0] else f"{label}: level")
        else:
            _bracket(axis, rows, own)
            notes.append(f"{label}: rises by {style.power(float(own['bump'][0]))}")
    values = line["loss"][np.isfinite(line["loss"])]
    if len(values) and values.min() > 0 and values.max() / values.min() > _DECADE:
        axis.set_yscale("log")
        style.plain_log(axis)
    axis.set_xlim(-0.02, 1.02)
    names = line.attributes.get("runs", [f"run {line.attributes['run']}"])
    axis.set_title(" to ".join(names) + "\n" + "\n".join(notes), fontsize=9)


def _both(axis: "Axes", rows: "Table", own: "Table", colour: str, marker: str) -> str:
    """Draws the line as it is and with hidden units aligned, and says what barriers they have."""
    barriers = []
    for aligned, dash in ((False, "-"), (True, "--")):
        part, summary = (table.where(table["aligned"] == aligned) for table in (rows, own))
        if not len(part):
            barriers.append("not aligned")
            continue
        _line(axis, part, colour, marker, dash)
        if not aligned and len(summary) and not summary["monotone"][0]:
            _bracket(axis, part, summary)
        size = float(summary["barrier"][0]) if len(summary) else np.nan
        word = "not finite" if np.isnan(size) else (f"barrier {style.power(size)}" if size > 0 else "no barrier")
        barriers.append(f"aligned: {word}" if aligned else word)
    return "; ".join(barriers)


def _shown(summary: "Table") -> "Table":
    """The rows whose largest rise is drawn."""
    return summary.where(~summary["aligned"]) if "aligned" in summary.columns else summary


def _line(axis: "Axes", rows: "Table", colour: str, marker: str, dash: str) -> None:
    alpha, loss = rows["alpha"], rows["loss"]
    axis.plot(alpha, loss, color=colour, linestyle=dash, zorder=3)
    some = np.searchsorted(alpha, np.linspace(0, 1, 11))
    axis.plot(alpha[some], loss[some], color=colour, linestyle="", marker=marker, markersize=3.5, zorder=3)
    axis.plot(alpha, (1 - alpha) * loss[0] + alpha * loss[-1], color=colour, linestyle=":", linewidth=1, zorder=2)


def _bracket(axis: "Axes", rows: "Table", own: "Table") -> None:
    foot, top = float(own["foot"][0]), float(own["top"][0])
    high = float(np.interp(top, rows["alpha"], rows["loss"]))
    low = high - float(own["bump"][0])
    axis.plot([top, top], [low, high], color=style.BLACK, marker="_", markersize=9, linewidth=1, zorder=5)
    axis.plot([foot, top], [low, low], color=style.BLACK, linewidth=0.6, linestyle="-", zorder=5)


def _nats(runs: "Sequence[tuple[Table, Table]]") -> bool:
    return all(line.attributes.get("loss", "cross_entropy") == "cross_entropy" for line, _ in runs)
