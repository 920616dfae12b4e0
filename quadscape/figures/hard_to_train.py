"""Networks of a family: a score at the start against what training makes of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.figures import style
from quadscape.figures.family_looks import MOST, Look, looks, short
from quadscape.figures.specification import FigureSpec
from quadscape.measures.ruggedness_compared.declaration import BUMP, OUTCOMES, PRIMARY_SCORE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Which network is hard to train?"

_MOST = 3
_SCORE = "tr H/‖H‖ at the start"
_LOGARITHMIC = 5.0
_KINDS = {False: ("o", "without normalisation"), True: ("s", "with normalisation")}


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws four panels per family, with a point for each network.

    Args:
        tables: `compared_networks`, `compared_scores` and `compared_ranks`, one of each per family.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    names = ("compared_networks", "compared_scores", "compared_ranks")
    families = [found for found in zip(*(tables[name] for name in names), strict=True) if len(found[0])][:_MOST]
    if not families:
        return style.message(TITLE, "No family of networks was compared.")
    figure = Figure(figsize=(11.6, 3.2 * len(families) + 1.3), layout=style.layout())
    grid = figure.subplots(len(families), 4, squeeze=False)
    every = [cell for networks, _, _ in families for cell in networks["cell"].tolist()]
    found = looks(every, {}) if len(set(every)) <= MOST else _by_kind(figure, grid, [one for one, _, _ in families])
    for axes, (networks, scores, ranks) in zip(grid, families, strict=True):
        start = scores.where((scores["score"] == PRIMARY_SCORE) & (scores["iteration"] == 0))
        of = dict(zip(start["cell"].tolist(), start["value"].tolist(), strict=True))
        x = np.array([of.get(cell, np.nan) for cell in networks["cell"].tolist()])
        for axis, outcome in zip(axes, OUTCOMES, strict=True):
            is_gap = outcome == "gap"
            _panel(axis, networks, networks[BUMP] if is_gap else x, outcome, found)
            axis.set_xlabel("bump from start to end (loss)" if is_gap else _SCORE)
            chosen = ranks["score"] == (BUMP if is_gap else PRIMARY_SCORE)
            axis.set_title(_correlation(ranks.where(chosen & (ranks["outcome"] == outcome))), fontsize=9.5)
        axes[0].annotate(
            f"family {networks.attributes['run']}",
            (0, 1),
            (0, 22),
            xycoords="axes fraction",
            textcoords="offset points",
            weight="bold",
        )
    if len(set(every)) <= MOST:
        handles = [
            style.line_key(short(name), color=look.colour, marker=look.marker, linestyle="")
            for name, look in found.items()
        ]
    else:
        handles = [
            style.line_key(label, color=style.GREY, marker=marker, linestyle="") for marker, label in _KINDS.values()
        ]
    handles.append(style.line_key("never, or diverged", color=style.GREY, marker=10, markersize=8, linestyle=""))
    style.legend(figure, handles)
    figure.suptitle(TITLE)
    return figure


def _by_kind(figure: "Figure", grid: np.ndarray, families: "Sequence[Table]") -> dict[str, Look]:
    """Where there are many networks: colours by depth, markers by normalisation."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_hex
    from matplotlib.ticker import MaxNLocator

    depths = np.concatenate([networks["depth"] for networks in families])
    colours = ScalarMappable(Normalize(depths.min(), max(depths.max(), depths.min() + 1)), style.MAP)
    bar = figure.colorbar(colours, ax=list(grid.ravel()), pad=0.015, aspect=18, ticks=MaxNLocator(5, integer=True))
    bar.set_label("depth (layers)")
    return {
        str(cell): Look(to_hex(tuple(colours.to_rgba(depth))), _KINDS[bool(normalised)][0], "")
        for networks in families
        for cell, depth, normalised in zip(networks["cell"], networks["depth"], networks["normalised"], strict=True)
    }


def _panel(axis: "Axes", networks: "Table", x: np.ndarray, outcome: str, found: "Mapping[str, Look]") -> None:
    y = networks[outcome].astype(float)
    axis.set_ylabel(OUTCOMES[outcome] + {"gap": " (loss)", "final_loss": " (loss)"}.get(outcome, ""))
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        style.note(axis, "no network has both", "upper left")
        axis.set_xticks([])
        axis.set_yticks([])
        return
    for name, values in (("x", x[np.isfinite(x)]), ("y", y[finite])):
        if values.min() > 0 and values.max() > _LOGARITHMIC * values.min():
            axis.set(**{f"{name}scale": "log"})
    for row in np.flatnonzero(np.isfinite(x) & ~np.isnan(y)):
        look = found[str(networks["cell"][row])]
        if finite[row]:
            kind: dict[str, Any] = {"marker": look.marker, "mec": style.BLACK, "mew": 0.6, "markersize": 7}
            axis.plot([x[row]], [y[row]], color=look.colour, linestyle="", **kind)
        else:
            # What has no finite outcome is put at the upper edge.
            kind = {"marker": 10, "markersize": 9, "transform": axis.get_xaxis_transform(), "clip_on": False}
            axis.plot([x[row]], [0.96], color=look.colour, linestyle="", **kind)
    axis.margins(x=0.15, y=0.16)
    style.plain_log(axis)
    style.plain_log(axis, horizontal=True)
    style.few_ticks(axis, 4)


def _correlation(ranks: "Table") -> str:
    at_start = ranks.where(ranks["iteration"] <= 0)
    if not len(at_start) or not np.isfinite(at_start["correlation"][0]):
        return "no correlation"
    value, low, high = (float(at_start[name][0]) for name in ("correlation", "correlation_low", "correlation_high"))
    ends = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ", no interval"
    return f"ρ = {value:.2f}{ends}, n = {int(at_start['networks'][0])}".replace("-", "−")


SPEC = FigureSpec(
    name="hard_to_train",
    title=TITLE,
    category="8. Comparisons",
    labels={"measure": "ruggedness_compared", "shown": "networks"},
    caption="""\
Networks of a family, one point each, every one trained at the same fraction of the limit of its own learning rate. The
first three panels have the score that was named beforehand, tr H/‖H‖ at the start, against steps to a training loss,
final training loss and its spread over seeds (standard deviation of its logarithm); medians over seeds. The last has
the largest rise of the training loss on the straight line from start to end against the gap of validation and
training loss; means over seeds.

ρ is Spearman's rank correlation with its 95 % bootstrap interval over networks. If the score told which network is hard
to train, points would lie along one rising or falling curve, and within each depth and kind too. Carets at the
upper edge are networks that diverged, or never came to the loss; they rank last. Fewer than 20 networks tell nothing
but the strongest correlation.
""",
    tables=("compared_networks", "compared_scores", "compared_ranks"),
    draw=draw,
)
