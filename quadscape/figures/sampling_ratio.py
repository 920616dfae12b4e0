"""How far runs from one checkpoint spread, against the noisy quadratic model, by how their batches are drawn."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.family_looks import Look, looks
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Do runs from one checkpoint spread as the noisy quadratic model says?"

_MOST = 3

_FLATTER = 30
"""Bands this many times flatter than the flattest that is told, or more, are not shown: they say nothing."""


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws two panels per family: each member beside the model, and pairs that differ in how batches are drawn.

    Args:
        tables: `stationary` and `sampling_ratio`, one of each per family.

    Returns:
        The figure.
    """
    pieces = zip(tables["stationary"], tables["sampling_ratio"], strict=True)
    families = [(table, pairs) for table, pairs in pieces if len(table)][:_MOST]
    if not families:
        return style.message(TITLE, "No family has a member that ends on a plateau from a common checkpoint.")
    figure, axes = style.panels(len(families), stacked=2, heights=(3.3, 3.3), width=6.6, most=2)
    handles = []
    for (upper, lower), (table, pairs) in zip(axes.T, families, strict=True):
        found = looks(table["cell"].tolist(), {})
        _members(upper, table, found)
        _pairs(lower, pairs)
        _limits(upper, lower, table)
        a = table.attributes
        upper.set_title(
            f"family {a['run']}, from {a['start_run']} at iteration {style.thousands(a['start_iteration'])}", loc="left"
        )
        upper.set_ylabel("variance, measured / expected")
        lower.set_ylabel("variance, reshuffled / independent")
        lower.set_xlabel("λ̃ at the start  (loss / parameter²)")
        for name, look in found.items():
            key = {"color": look.colour, "marker": look.marker, "linestyle": "", "markersize": 5}
            handles.append(style.line_key(name, **key))
    handles += [
        style.line_key("told, 95 %", color=style.GREY, marker="o", linestyle="", markersize=5),
        style.line_key("not told", color=style.GREY, marker="o", linestyle="", markersize=5, markerfacecolor="white"),
        style.line_key("expected of the pair", color=style.BLACK, linestyle="-"),
    ]
    unique = {handle.get_label(): handle for handle in handles}
    style.legend(figure, list(unique.values()), columns=3)
    figure.suptitle(TITLE)
    return figure


def _members(axis: "Axes", table: "Table", found: dict[str, Look]) -> None:
    for place in np.unique(table["run"]).tolist():
        own = table.where((table["run"] == place) & (table["ratio"] > 0))
        look = found.get(str(own["cell"][0])) if len(own) else None
        if look is not None:
            _points(axis, own, look)
    axis.axhline(1, color=style.BLACK, linewidth=0.9, linestyle=":")
    axis.set_xscale("log")
    axis.set_yscale("log")


def _pairs(axis: "Axes", pairs: "Table") -> None:
    sizes = [f"batches of {size}" for size in pairs["batch_size"].tolist()]
    rates = pairs["learning_rate"].tolist()
    names = np.array([f"{size}, η = {rate:g}" for size, rate in zip(sizes, rates, strict=True)], dtype=np.str_)
    found = looks(names.tolist(), {})
    for name, look in found.items():
        for place in np.unique(pairs["reshuffled"][names == name]).tolist():
            own = pairs.where((names == name) & (pairs["reshuffled"] == place))
            own = own.where((own["expected"] > 0) & (own["ratio"] > 0))
            order = np.argsort(own["curvature"])
            axis.plot(own["curvature"][order], own["expected"][order], color=style.BLACK, linestyle=look.dash, lw=1.1)
            _points(axis, own, look)
    axis.axhline(1, color=style.BLACK, linewidth=0.9, linestyle=":")
    axis.set_xscale("log")
    axis.set_yscale("log")
    if found:
        keys = [
            style.line_key(
                name,
                color=style.BLACK,
                linestyle=look.dash,
                lw=1.1,
                marker=look.marker,
                markersize=5,
                markerfacecolor=look.colour,
                markeredgecolor=look.colour,
            )
            for name, look in found.items()
        ]
        axis.legend(handles=keys, loc="lower right", fontsize=8.5)
    else:
        style.note(axis, "no two members differ in how batches are drawn alone")


def _points(axis: "Axes", rows: "Table", look: Look) -> None:
    """Filled with intervals where it is told, open and pale elsewhere."""
    told = rows["told"]
    axis.plot(
        rows["curvature"][~told],
        rows["ratio"][~told],
        color=look.colour,
        marker=look.marker,
        markersize=4.5,
        markerfacecolor="white",
        linestyle="",
        alpha=0.45,
    )
    own = rows.where(told)
    # An interval that reaches below zero ends at the edge of the panel.
    low = np.where(own["ratio_low"] > 0, own["ratio_low"], own["ratio"] / 1e3)
    low = np.where(np.isfinite(own["ratio_low"]), low, own["ratio"])
    high = np.where(np.isfinite(own["ratio_high"]), own["ratio_high"], own["ratio"])
    error = np.maximum(np.stack([own["ratio"] - low, high - own["ratio"]]), 0)
    axis.errorbar(
        own["curvature"],
        own["ratio"],
        yerr=error,
        color=look.colour,
        marker=look.marker,
        markersize=5,
        linestyle="",
        elinewidth=1.0,
        zorder=3,
    )


def _limits(upper: "Axes", lower: "Axes", table: "Table") -> None:
    """One range of curvature for both panels, without what is hopelessly flat."""
    shown = table["curvature"][table["told"]] if table["told"].any() else table["curvature"]
    largest = float(np.nanmax(table["curvature"]))
    for axis in (upper, lower):
        axis.set_xlim(
            max(float(np.nanmin(table["curvature"])), float(np.nanmin(shown)) / _FLATTER) / 1.3, largest * 1.5
        )
    values = table["ratio"][table["told"] & (table["ratio"] > 0)]
    if len(values):
        upper.set_ylim(min(0.2, float(values.min()) / 2), max(5.0, float(values.max()) * 2))
        style.plain_log(upper)
    low, high = lower.get_ylim()
    lower.set_ylim(max(low, 1e-4), min(high, 1e2))


SPEC = FigureSpec(
    name="sampling_ratio",
    title=TITLE,
    category="7. Theory",
    labels={"measure": "stationary variances", "shown": "per family"},
    caption="""\
Members of a family start at one checkpoint and keep their learning rate. Above, how far each spreads in bands of
eigenvectors of that checkpoint at the end of the run, over what the noisy quadratic model expects of the same window
with the noise and the curvature that were measured there; below, the variance of a run with reshuffled batches over
that of one with independent batches, equal in all else, and what the model expects of it (lines). Filled points have
95 % intervals over blocks of time where there are ten of two relaxation times; in bands of open points the window is
shorter than ten relaxation times, the run shorter than twenty, or its loss has spikes, so that they tell nothing.
""",
    tables=("stationary", "sampling_ratio"),
    draw=draw,
)
