"""How few parameters an eigenvector lives in, and of which layers, against the rank of its eigenvalue."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Localisation of the eigenvectors"
MOST_LAYERS = 10
"""Layers with an area of their own; in deeper networks neighbours share one."""


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws participation, share of the largest components, and shares of the layers for every checkpoint.

    Args:
        tables: `localisation`, `localisation_layers` and `localisation_bands`, one of each per checkpoint.

    Returns:
        The figure.
    """
    found = [parts for parts in zip(*(tables[name] for name in SPEC.tables), strict=True) if len(parts[0])]
    if not found:
        return style.message(TITLE, "There is no checkpoint with an eigenvalue beyond the numerical zero.")
    figure, axes = style.panels(len(found), stacked=3, heights=(2.4, 1.9, 2.2), width=3.2)
    columns = style.even_columns(len(found), 4)
    groups = _groups(found[0][1])
    for (directions, layers, bands), (above, middle, below) in zip(found, axes.T, strict=True):
        _participation(above, directions, bands)
        _largest(middle, directions)
        _layers(below, layers, groups)
        above.set_title(style.checkpoint_title(directions))
        for axis in (above, middle):
            axis.tick_params(labelbottom=False)
    _share(axes)
    style.outer_labels(axes[0], columns, "", "participation ratio\n(parameters)")
    style.outer_labels(axes[1], columns, "", "norm² in the 100\nlargest components")
    style.outer_labels(axes[2], columns, "rank within the sign", "norm² by layer\n(λ > 0)")
    style.legend(figure, _keys(found, groups), columns=4)
    figure.suptitle(TITLE)
    return figure


def _participation(axis: "Axes", table: "Table", bands: "Table") -> None:
    axis.axhline(table.attributes["chance_participation"], color=style.BLACK, linestyle=":", linewidth=1.2)
    for sign, (_, colour, marker, _) in style.SIGNS.items():
        rows = table.where(table["sign"] == sign)
        axis.plot(
            rows["rank"], rows["participation"], color=colour, linestyle="", marker=marker, markersize=2.2, alpha=0.5
        )
        some = bands.where((bands["sign"] == sign) & ~bands["is_zero"] & (bands["count"] > 1))
        middle = style.middle_rank(some)
        # Over what a random subspace of this dimension has, in units of one vector's.
        relative = some["participation"] / some["chance"] * table.attributes["chance_participation"]
        axis.plot(middle, relative, color=colour, linewidth=1.6)
    axis.set(xscale="log", yscale="log")
    axis.set_ylim(bottom=min(axis.get_ylim()[0], table.attributes["chance_participation"] / 5))


def _largest(axis: "Axes", table: "Table") -> None:
    axis.axhline(table.attributes["chance_share"], color=style.BLACK, linestyle=":", linewidth=1.2)
    for sign, (_, colour, marker, _) in style.SIGNS.items():
        rows = table.where(table["sign"] == sign)
        axis.plot(
            rows["rank"], rows["largest_share"], color=colour, linestyle="", marker=marker, markersize=2.2, alpha=0.5
        )
    axis.set(xscale="log", ylim=(0, 1.03))


def _groups(table: "Table") -> list[list[str]]:
    """Layers in the order of the network, as many to a group as keeps the areas few."""
    layers = list(dict.fromkeys(table["layer"].tolist()))
    size = -(-len(layers) // MOST_LAYERS)
    return [layers[start : start + size] for start in range(0, len(layers), size)]


def _colours(groups: list[list[str]]) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps[style.MAP](np.linspace(0.05, 0.95, len(groups)))


def _layers(axis: "Axes", table: "Table", groups: list[list[str]]) -> None:
    rows = table.where(table["sign"] > 0)
    ranks = np.unique(rows["rank"])
    if not len(ranks):
        return
    shares = [
        [rows["share"][(rows["rank"] == rank) & np.isin(rows["layer"], group)].sum() for rank in ranks]
        for group in groups
    ]
    # A single rank has no width: it is drawn as wide as the axis shows it.
    wide = np.array([ranks[0], ranks[0] * 1.3]) if len(ranks) == 1 else ranks
    values = np.repeat(shares, 2, axis=1) if len(ranks) == 1 else np.array(shares)
    axis.stackplot(wide, values, colors=_colours(groups), linewidth=0)
    axis.set(xscale="log", ylim=(0, 1))


def _share(axes: np.ndarray) -> None:
    left = min(axis.get_xlim()[0] for axis in axes.ravel())
    right = max(axis.get_xlim()[1] for axis in axes.ravel())
    low, high = min(a.get_ylim()[0] for a in axes[0]), max(a.get_ylim()[1] for a in axes[0])
    for axis in axes.ravel():
        axis.set_xlim(max(left, 0.8), right)
    for axis in axes[0]:
        axis.set_ylim(low, high * 1.2)


def _keys(found: list, groups: list[list[str]]) -> list:
    keys = [
        style.line_key(label, color=colour, marker=marker, linestyle="", markersize=4)
        for label, colour, marker, _ in style.SIGNS.values()
    ]
    keys.append(style.line_key("band of eigenvectors, over chance", color=style.GREY, linewidth=1.6))
    keys.append(style.line_key("random vector", color=style.BLACK, linestyle=":"))
    for group, colour in zip(groups, _colours(groups), strict=True):
        keys.append(style.patch_key(group[0] if len(group) == 1 else f"{group[0]} … {group[-1]}", color=colour))
    return keys


SPEC = FigureSpec(
    name="eigenvector_localisation",
    title=TITLE,
    category="2. Curvature",
    labels={"measure": "localisation", "shown": "per checkpoint"},
    caption="""\
How few parameters each eigenvector of the Hessian lives in, against the rank of its eigenvalue within its sign.

Top: the participation ratio 1/Σq\\ :sup:`4` of its components, as many equal components as would give the same sum;
a random vector has (P + 2)/3 (dotted). Lines: the same of the projector onto a whole band of neighbours, which does
not depend on how nearly equal eigenvalues share their directions, over that of a random subspace of the same
dimension. Middle: the part of the squared norm in the 100 largest components, of a random vector dotted. Bottom: the
part in each layer of the network, first layer at the bottom, for positive eigenvalues; the height of a layer far out
at high ranks shows how many parameters it has.

Eigenvectors within the numerical zero are left out: a null space has no basis of its own. Points far below the dotted
line of the top panel live in few weights.
""",
    tables=("localisation", "localisation_layers", "localisation_bands"),
    draw=draw,
)
