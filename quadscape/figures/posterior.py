"""Variance of SGD over that of the posterior, against curvature."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Where SGD samples the posterior"
_SHOWN = {"independent": ("--", style.ORANGE), "reshuffled": ("-", style.BLUE)}


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws r against λ + δ as it is (above) and at other batch sizes (below), for every checkpoint.

    Args:
        tables: `posterior`, `posterior_curves` and `posterior_crossings`, one of each per checkpoint, in one order.

    Returns:
        The figure.
    """
    names = ("posterior", "posterior_curves", "posterior_crossings")
    found = [of for of in zip(*(tables[name] for name in names), strict=True) if len(of[0]) and len(of[1])]
    if not found:
        return style.message(TITLE, "No checkpoint ends a plateau of the learning rate on which SGD has noise.")
    figure, axes = style.panels(len(found), stacked=2, heights=(2.8, 2.8), width=3.3, sharex="col")
    columns = style.even_columns(len(found), 4)
    for (bands, curves, crossings), (above, below) in zip(found, axes.T, strict=True):
        _measured(above, bands)
        _elsewhere(below, curves, crossings)
        for axis in (above, below):
            axis.axhline(1, color=style.BLACK, linewidth=1.1)
            axis.axvline(10 * float(bands.attributes["weight_decay"]), color=style.GREY, linestyle=":", linewidth=1.2)
            axis.set(xscale="log", yscale="log")
        rate = style.power(float(bands.attributes["learning_rate"]))
        above.set_title(f"{style.checkpoint_title(bands)}\nη = {rate}, B = {bands.attributes['batch_size']}")
    style.outer_labels(axes[0], columns, "", "r = N(λ + δ) Var x")
    style.outer_labels(axes[1], columns, "λ + δ  (loss / parameter²)", "r at other batch sizes")
    keys = [
        style.line_key("measured, 95 %", color=style.BLACK, marker="o", linestyle="", markersize=5),
        style.line_key(
            "no claim: too slow or not steady",
            color=style.GREY,
            marker="o",
            linestyle="",
            markersize=5,
            markerfacecolor="white",
        ),
        style.line_key("theory, reshuffled batches", color=style.BLUE),
        style.line_key("theory, independent batches", color=style.ORANGE, linestyle="--"),
        style.line_key("the posterior", color=style.BLACK),
        style.line_key("10 δ: mostly prior below", color=style.GREY, linestyle=":"),
        style.line_key("crossing", color=style.VERMILLION, marker="D", linestyle="", markersize=5),
    ]
    style.legend(figure, keys, columns=3)
    figure.suptitle(TITLE)
    return figure


def _measured(axis: "Axes", bands: "Table") -> None:
    for told, colour, face in ((True, style.BLACK, style.BLACK), (False, style.GREY, "white")):
        rows = bands.where(bands["told"] == told)
        low = np.maximum(rows["ratio_low"], 1e-3 * rows["ratio"])
        axis.errorbar(
            rows["curvature"],
            rows["ratio"],
            yerr=np.nan_to_num(np.abs(np.stack([low, rows["ratio_high"]]) - rows["ratio"])),
            color=colour,
            markerfacecolor=face,
            marker="o",
            markersize=4.5,
            linestyle="",
            elinewidth=0.9,
            zorder=3,
        )
    reshuffled = str(bands.attributes["sampling"]) == "reshuffled"
    for name, sampling in (("independent", "independent"), ("expected", "reshuffled")):
        if name == "expected" and not reshuffled:
            continue
        dash, colour = _SHOWN[sampling]
        axis.plot(bands["curvature"], bands[name], color=colour, linestyle=dash, linewidth=1.4)
    axis.set_ylim(*_limits(np.concatenate([bands["ratio"], bands["expected"], bands["independent"]])))


def _elsewhere(axis: "Axes", curves: "Table", crossings: "Table") -> None:
    rate, own = float(curves.attributes["learning_rate"]), int(curves.attributes["batch_size"])
    here = curves.where(np.isclose(curves["learning_rate"], rate, rtol=1e-9))
    sizes = [size for size in np.unique(here["batch_size"]) if size <= own]
    for place, size in enumerate(sizes):
        for sampling, (dash, colour) in _SHOWN.items():
            rows = here.where((here["batch_size"] == size) & (here["sampling"] == sampling))
            if not len(rows):
                continue
            axis.plot(
                rows["curvature"],
                rows["ratio"],
                color=colour,
                linestyle=dash,
                linewidth=1.2,
                alpha=0.35 + 0.65 * (place + 1) / len(sizes),
            )
            axis.fill_between(
                rows["curvature"], rows["ratio_low"], rows["ratio_high"], color=colour, alpha=0.15, linewidth=0
            )
            if sampling == "independent":
                axis.annotate(
                    f"B = {size}",
                    (rows["curvature"][0], rows["ratio"][0]),
                    textcoords="offset points",
                    xytext=(-4, 0),
                    ha="right",
                    va="center",
                    fontsize=8.5,
                )
    marks = crossings.where(np.isclose(crossings["learning_rate"], rate, rtol=1e-9) & (crossings["batch_size"] <= own))
    marks = marks.where(np.isfinite(marks["first"]))
    for name in ("first", "last"):
        axis.plot(
            marks[name], np.ones(len(marks)), color=style.VERMILLION, marker="D", linestyle="", markersize=5, zorder=4
        )
    axis.set_ylim(*_limits(here["ratio"][here["batch_size"] <= own]))


def _limits(values: "np.ndarray") -> tuple[float, float]:
    known = np.append(values[np.isfinite(values) & (values > 0)], 1.0)
    return float(known.min()) / 2, 2 * float(known.max())


SPEC = FigureSpec(
    name="posterior",
    title=TITLE,
    category="7. Theory",
    labels={"measure": "SGD and the posterior", "shown": "per checkpoint"},
    caption="""\
The variance of SGD along eigenvectors over that of the posterior, 1/(N(λ + δ)), against curvature with weight decay:
1 where SGD samples the posterior, below it where it is colder, above where it is warmer.

Above: as measured in bands of curvature at the end of a plateau (95 % intervals over blocks of time; open: no claim,
since ten relaxation times do not fit into the window or the loss is not steady), and by the noisy quadratic model with
the noise that was measured. Reshuffled batches leave flat directions far colder than independent ones.

Below: what the model gives at the run's learning rate for batches of its own size and smaller, with noise smoothed over
bands (shaded: 95 % of a bootstrap over directions), and where it crosses 1. Left of the dotted line the posterior is
mostly prior.
""",
    tables=("posterior", "posterior_curves", "posterior_crossings"),
    draw=draw,
)
