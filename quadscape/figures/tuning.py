"""Final validation loss of the settings of a family."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.family_looks import OTHER, ROWS, Look, can_be_log, keys, listed, looks, spread_places
from quadscape.figures.specification import FigureSpec
from quadscape.measures.variants import rate_axes, variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Tuning on validation data"

_MOST = 8


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws a panel per family: validation loss against learning rate, or by setting where only one rate was tried.

    Args:
        tables: `tuning` and `tuning_runs`, one of each per family.

    Returns:
        The figure.
    """
    pieces = zip(tables["tuning"], tables["tuning_runs"], strict=True)
    families = [(table, runs) for table, runs in pieces if len(table)][:_MOST]
    if not families:
        return style.message(TITLE, "No family of runs was trained.")
    rated = [bool(rate_axes(table)) for table, _ in families]
    names = [name for (table, _), yes in zip(families, rated, strict=True) if yes for name in variants(table).tolist()]
    scores: dict[str, float] = {}
    for table, _ in families:
        for name, loss in zip(variants(table).tolist(), table["validation_loss"].tolist(), strict=True):
            scores[name] = min(scores.get(name, np.inf), loss)
    shown = looks(names, scores)
    rows = max((min(len(table), ROWS) for (table, _), yes in zip(families, rated, strict=True) if not yes), default=0)
    height = max(4.0 if any(rated) else 1.8, 0.28 * rows + 1.0)
    figure, axes = style.panels(len(families), heights=(height,), width=4.6 if all(rated) else 6.0, most=2)
    for axis, (table, runs), yes in zip(axes[0], families, rated, strict=True):
        (_by_rate if yes else _by_setting)(axis, table, runs, shown)
        axis.set_title(f"family {table.attributes['run']}", loc="left")
    handles = keys(shown, len(set(names)) - len(shown))
    if not all(rated):
        handles.append(style.line_key("mean of a setting", color=style.BLUE, marker="o", linestyle=""))
    handles.append(style.line_key("single seeds", color=style.GREY, marker=".", linestyle=""))
    handles.append(style.line_key("95 % over seeds", color=style.GREY, marker="|", markersize=9, linestyle="-"))
    if any((runs["diverged_at"] >= 0).any() for _, runs in families):
        handles.append(style.line_key("a seed diverged", color=style.GREY, marker="x", linestyle=""))
    style.legend(figure, handles, columns=3)
    figure.suptitle(TITLE)
    return figure


def _by_rate(axis: "Axes", table: "Table", runs: "Table", shown: dict[str, Look]) -> None:
    names = variants(table)
    every = np.unique(table["learning_rate"])
    step = float(np.min(every[1:] / every[:-1])) ** (0.5 / max(8, len(set(names.tolist()))))
    middle = (len(set(names.tolist())) - 1) / 2
    places = {name: place - middle for place, name in enumerate(dict.fromkeys(names.tolist()))}
    for name in sorted(dict.fromkeys(names.tolist()), key=lambda name: name in shown):
        look, own = shown.get(name, OTHER), table.where(names == name)
        own = own.where(np.argsort(own["learning_rate"], kind="stable"))
        # Side by side, so that bars at one rate do not hide each other.
        own = replace(own, columns={**own.columns, "learning_rate": own["learning_rate"] * step ** places[name]})
        rates, losses = own["learning_rate"], own["validation_loss"]
        finite = np.isfinite(losses)
        errors = np.stack([losses - own["validation_loss_low"], own["validation_loss_high"] - losses])[:, finite]
        axis.plot(
            rates[finite],
            losses[finite],
            color=look.colour,
            linestyle=look.dash,
            marker=look.marker,
            markersize=5,
            zorder=4 if name in shown else 1,
        )
        axis.errorbar(rates[finite], losses[finite], errors, color=look.colour, linestyle="", capsize=2, elinewidth=0.9)
        for cell, rate in zip(own["cell"].tolist(), rates.tolist(), strict=True):
            values = runs["validation_loss"][runs["cell"] == cell]
            values = values[np.isfinite(values)]
            axis.plot([rate] * len(values), values, ".", color=look.colour, markersize=3, alpha=0.6, zorder=2)
        _mark_best(axis, own, look)
    # Each variant's crosses at a height of its own, so that none hides another.
    order = list(dict.fromkeys(names.tolist()))
    for name in order:
        lost = table.where((names == name) & (table["diverged"] > 0))
        look = shown.get(name, OTHER)
        height = 0.985 - 0.035 * min(order.index(name), 7)
        axis.plot(
            lost["learning_rate"] * step ** places[name],
            np.full(len(lost), height),
            "x",
            color=look.colour,
            transform=axis.get_xaxis_transform(),
            zorder=5,
        )
    axis.set_xscale("log")
    if can_be_log(runs["validation_loss"]):
        axis.set_yscale("log")
    if not np.isfinite(table["validation_loss"]).any():
        style.note(axis, "in every setting a seed diverged", "lower left")
    style.plain_log(axis)
    low, high = axis.get_ylim()
    if (table["diverged"] > 0).any():
        axis.set_ylim(low, high * (high / low) ** 0.25 if axis.get_yscale() == "log" else high + 0.25 * (high - low))
    axis.set_xlabel("learning rate η")
    axis.set_ylabel("final validation loss")


def _mark_best(axis: "Axes", own: "Table", look: Look) -> None:
    losses = own["validation_loss"]
    if np.isfinite(losses).any():
        best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
        axis.plot(
            own["learning_rate"][best],
            losses[best],
            "o",
            markersize=11,
            mfc="none",
            mec=look.colour,
            mew=1.3,
            zorder=6,
        )


def _by_setting(axis: "Axes", table: "Table", runs: "Table", _: dict[str, Look]) -> None:
    losses = table["validation_loss"]
    order = np.argsort(np.where(np.isfinite(losses), losses, np.inf), kind="stable")[:ROWS]
    cells = table["cell"][order].tolist()
    for row, place in enumerate(order.tolist()):
        values = runs["validation_loss"][runs["cell"] == table["cell"][place]]
        values = values[np.isfinite(values)]
        axis.plot(values, spread_places(row, len(values)), ".", color=style.GREY, markersize=4, zorder=2)
        if np.isfinite(losses[place]):
            ends = [losses[place] - table["validation_loss_low"][place], table["validation_loss_high"][place]]
            error = np.array([[ends[0]], [ends[1] - losses[place]]])
            axis.errorbar([losses[place]], [row], xerr=error, fmt="o", color=style.BLUE, capsize=2, markersize=6)
        else:
            axis.plot([0.97], [row], "x", color=style.GREY, transform=axis.get_yaxis_transform())
    listed(axis, cells)
    if len(table) > len(cells):
        style.note(axis, f"the best {len(cells)} of {len(table)} settings", "upper right")
    if can_be_log(runs["validation_loss"]):
        axis.set_xscale("log")
    if not np.isfinite(runs["validation_loss"]).any():
        axis.set_xticks([])
        style.note(axis, "every member diverged", "upper left")
    else:
        style.few_ticks(axis)
        style.plain_log(axis, horizontal=True)
    axis.set_xlabel("final validation loss")


SPEC = FigureSpec(
    name="tuning",
    title=TITLE,
    category="8. Comparisons",
    labels={"measure": "tuning", "shown": "validation loss by setting"},
    caption="""\
Validation loss at the end of the runs of a family, by setting: what is tuned is tuned on this.

Where a family tries several learning rates, each line is a variant over them, with the best rate of each in a circle:
at an end of its line a better one may lie beyond, and nothing should be compared yet. Otherwise settings are listed
from the best to the worst. Small dots are single seeds, markers their mean (variants are moved apart a
little to the side), bars its 95 % interval (Student's t over
seeds; none with one seed). A cross marks a setting in which a seed diverged: it has no mean, and is never chosen. Look
for the depth of the minimum against the bars: rates whose bars overlap are as good as each other.
""",
    tables=("tuning", "tuning_runs"),
    draw=draw,
)
