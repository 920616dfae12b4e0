"""A contact sheet: the images that carry most of the curvature along the first eigenvectors."""

import base64
from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Images that carry most of the curvature"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws the images of the last checkpoint of the first run, a row for each eigenvector.

    Args:
        tables: `curvature_examples`, one per checkpoint.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    found = [table for table in tables["curvature_examples"] if len(table)]
    if not found:
        return style.message(TITLE, "There is no checkpoint.")
    run = found[0].attributes["run"]
    table = max((one for one in found if one.attributes["run"] == run), key=lambda one: one.attributes["iteration"])
    directions = list(dict.fromkeys(table["index"].tolist()))
    columns = int(table["place"].max())
    figure = Figure(figsize=(1.35 * columns + 1.2, 1.75 * len(directions) + 0.9), layout=style.layout())
    axes = figure.subplots(len(directions), columns, squeeze=False)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        for spine in axis.spines.values():
            spine.set_visible(True)
    for row, index in enumerate(directions):
        own = table.where(table["index"] == index)
        for place in range(len(own)):
            axis = axes[row, place]
            axis.imshow(_image(own, place), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            right = own["label"][place] == own["prediction"][place]
            colour, width = (style.BLACK, 0.8) if right else (style.VERMILLION, 2.2)
            for spine in axis.spines.values():
                spine.set(color=colour, linewidth=width)
            said = own["label"][place] if right else f"{own['label'][place]}, not {own['prediction'][place]}"
            push = "+" if own["slope"][place] > 0 else "−"
            axis.set_title(f"{said}\n{own['share'][place]:.1%}  {push}", fontsize=8.5)
        sign, rank = int(own["sign"][0]), int(own["rank"][0])
        name = f"{'λ' if sign > 0 else 'negative λ'}, rank {rank}\n{style.power(float(own['eigenvalue'][0]))}"
        axes[row, 0].set_ylabel(name)
    axes[-1, (columns - 1) // 2].set_xlabel(style.checkpoint_title(table))
    keys = [
        style.line_key("class; share of the curvature; + or −: sign of the slope", linestyle=""),
        style.line_key("taken for another class", color=style.VERMILLION, linewidth=2.2),
    ]
    style.legend(figure, keys, columns=2)
    figure.suptitle(TITLE)
    return figure


def _image(rows: "Table", place: int) -> np.ndarray:
    """An image as matplotlib shows it: grey (height, width), or colours last."""
    shape = tuple(int(length) for length in rows.attributes["image_shape"])
    pixels = np.frombuffer(base64.b64decode(rows["image"][place]), dtype=np.uint8).reshape(shape)
    if len(shape) != 3:
        return np.atleast_2d(pixels.reshape(shape[0], -1))
    return np.moveaxis(pixels, 0, -1) if shape[0] == 3 else pixels[0]


SPEC = FigureSpec(
    name="curvature_examples",
    title=TITLE,
    category="4. Noise",
    labels={"measure": "images", "shown": "first run, last checkpoint"},
    caption="""\
The training images with the largest curvature qᵀGₙq along the first eigenvectors and the most negative one, a row
each, at the last checkpoint of the first run. Above each image its class, and what the network takes it for where that
is another (thick red frame); its share of the curvature of all examples, which would be 1/N if all were alike; and the
sign of its slope along q: images with opposite signs push the parameters in opposite directions.
""",
    tables=("curvature_examples",),
    draw=draw,
)
