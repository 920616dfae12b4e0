"""From scenes to one HTML file that needs nothing else: the library that draws them is in it.

All scenes of a kind share a file, with a list to choose from, since the library takes 4.8 MB of each file.
"""

from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from quadscape.durable import replace_text
from quadscape.figures import style
from quadscape.figures.pages.specification import Course, PageSpec, Scene
from quadscape.figures.planes import spans_decades

_PLACE = "view"
_LIFT = 0.006
"""How far above the surface a path is drawn, as a share of its height, so that it is not hidden in it."""

_SMALL = 3
"""Marks up to this size lie too close for an edge."""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font-family: "DejaVu Sans", Verdana, sans-serif; color: #222222; }}
body {{ margin: 1rem auto; max-width: 72rem; padding: 0 1rem; }}
h1 {{ font-size: 1.2rem; font-weight: normal; }}
p {{ font-size: 0.9rem; line-height: 1.4; max-width: 60rem; }}
</style>
{library}
</head>
<body>
<h1>{title}</h1>
{picture}
{paragraphs}
</body>
</html>
"""


class Drawn:
    """A scene as it is drawn.

    Attributes:
        scene: The scene.
        logarithmic: Whether its height is the logarithm of the loss.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene, self.logarithmic = scene, spans_decades(scene.loss)

    @cached_property
    def _height(self) -> np.ndarray:
        return np.log10(self.scene.loss) if self.logarithmic else self.scene.loss

    def _on_surface(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Loss at which something on the surface is drawn, shape of the coordinates."""
        from scipy.interpolate import RegularGridInterpolator

        scene, height = self.scene, self._height
        if not np.isfinite(height).any():
            return np.full(len(first), np.nan)
        between = RegularGridInterpolator((scene.first, scene.second), height, bounds_error=False)
        found = between(np.stack([first, second], axis=1)) + _LIFT * (np.nanmax(height) - np.nanmin(height))
        return 10.0**found if self.logarithmic else found

    def traces(self) -> list[Any]:
        """The surface, and the path or the checkpoint on it, for plotly."""
        course = self.scene.course
        return [self._surface(), *(self._checkpoint() if course is None else self._path(course))]

    def _surface(self) -> Any:
        from plotly.graph_objects import Surface

        scene, height = self.scene, self._height
        finite = height[np.isfinite(height)]
        ticks = np.linspace(finite.min(), finite.max(), 6) if len(finite) else np.zeros(1)
        values = 10.0**ticks if self.logarithmic else ticks
        bar = {
            "title": {"text": "training loss", "side": "right"},
            "len": 0.7,
            "tickvals": ticks,
            "ticktext": [style.plain(float(f"{value:.3g}")) for value in values],
        }
        names = [label.partition("  ")[0] for label in scene.labels]
        return Surface(
            x=scene.first,
            y=scene.second,
            z=scene.loss.T,
            surfacecolor=height.T,
            colorscale=style.MAP,
            colorbar=bar,
            hovertemplate=f"{names[0]}: %{{x:.4g}}<br>{names[1]}: %{{y:.4g}}<br>loss: %{{z:.6g}}<extra></extra>",
        )

    def _checkpoint(self) -> list[Any]:
        zero = np.zeros(1)
        text = "the checkpoint<br>loss: %{customdata:.6g}<extra></extra>"
        loss = self.scene.loss[len(self.scene.first) // 2, len(self.scene.second) // 2]
        return [self._marks(zero, zero, "diamond", 6, style.VERMILLION, text, np.array([loss]))]

    def _path(self, course: Course) -> list[Any]:
        from plotly.graph_objects import Scatter3d

        first, second = self._dense(course)
        line = Scatter3d(x=first, y=second, z=self._on_surface(first, second), mode="lines", hoverinfo="skip")
        line.update(line={"color": style.VERMILLION, "width": 5}, showlegend=False)
        text = "%{meta}iteration %{customdata[0]:,}<br>first: %{x:.4g}<br>second: %{y:.4g}"
        text += "<br>loss of the surface: %{z:.6g}<br>distance from the plane: %{customdata[1]:.4g}<extra></extra>"
        found = [line]
        ends = {
            "": (slice(None), "circle", 2.5),
            "start, ": (slice(0, 1), "circle", 7),
            "end, ": (slice(-1, None), "diamond", 6),
        }
        for word, (part, symbol, size) in ends.items():
            data = np.stack([course.iteration[part], course.distance[part]], axis=1)
            colour = "white" if word == "start, " else style.VERMILLION
            marks = self._marks(course.first[part], course.second[part], symbol, size, colour, text, data)
            found.append(marks.update(meta=word))
        return found

    def _marks(
        self, first: np.ndarray, second: np.ndarray, symbol: str, size: float, colour: str, text: str, data: np.ndarray
    ) -> Any:
        from plotly.graph_objects import Scatter3d

        edge = {"color": style.VERMILLION if colour == "white" else "white", "width": 1 if size > _SMALL else 0}
        return Scatter3d(
            x=first,
            y=second,
            z=self._on_surface(first, second),
            mode="markers",
            marker={"symbol": symbol, "size": size, "color": colour, "line": edge},
            customdata=data,
            hovertemplate=text,
            showlegend=False,
        )

    def _dense(self, course: Course) -> tuple[np.ndarray, np.ndarray]:
        """The path with further points, so that no step is longer than one of the grid and it follows the surface."""
        steps = [abs(float(axis[1] - axis[0])) for axis in (self.scene.first, self.scene.second)]
        pieces = [
            np.abs(np.diff(values)) / step for values, step in zip((course.first, course.second), steps, strict=True)
        ]
        counts = np.maximum(1, np.ceil(np.max(pieces, axis=0))).astype(np.int64)
        place = np.concatenate([[0.0], *(k + np.arange(1, count + 1) / count for k, count in enumerate(counts))])
        known = np.arange(len(course.first))
        return np.interp(place, known, course.first), np.interp(place, known, course.second)

    def layout(self) -> dict[str, Any]:
        """What of the layout is this scene's own, as plotly's `relayout` takes it."""
        first, second = self.scene.labels
        return {
            "title.text": self.scene.note,
            "scene.xaxis.title.text": first,
            "scene.yaxis.title.text": second,
            "scene.zaxis.title.text": "training loss" + (", log scale" if self.logarithmic else ""),
            "scene.zaxis.type": "log" if self.logarithmic else "linear",
            "scene.zaxis.dtick": 1 if self.logarithmic else None,
        }


def picture(scenes: Sequence[Scene]) -> Any:
    """All scenes as one figure of plotly, of which a list shows one.

    Args:
        scenes: At least one.

    Returns:
        The figure.
    """
    from plotly.graph_objects import Figure

    drawn = [Drawn(scene) for scene in scenes]
    traces = [one.traces() for one in drawn]
    owner = [place for place, of in enumerate(traces) for _ in of]
    figure = Figure(data=[trace for of in traces for trace in of])
    for trace, place in zip(figure.data, owner, strict=True):
        trace.visible = place == 0
    buttons = [
        {
            "label": scene.name,
            "method": "update",
            "args": [{"visible": [other == place for other in owner]}, one.layout()],
        }
        for place, (scene, one) in enumerate(zip(scenes, drawn, strict=True))
    ]
    figure.update_layout(
        template="plotly_white",
        margin={"l": 0, "r": 0, "t": 84, "b": 0},
        title={"x": 0, "xanchor": "left", "y": 0.985, "yanchor": "top", "font": {"size": 13}},
        scene={"aspectmode": "cube", "camera": {"eye": {"x": 1.45, "y": -1.7, "z": 0.95}, "center": {"z": -0.15}}},
        updatemenus=[
            {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "showactive": True}
        ],
    )
    figure.update_layout(drawn[0].layout())
    return figure


def page(spec: PageSpec, scenes: Sequence[Scene]) -> str:
    """One HTML file that works without a network.

    Args:
        spec: The page.
        scenes: What it shows; the same ones give the same bytes.

    Returns:
        Its text.
    """
    library, shown = "", "<p>There is nothing to show: no plane was measured.</p>"
    if scenes:
        from plotly.io import to_html
        from plotly.offline import get_plotlyjs

        library = f"<script>{get_plotlyjs()}</script>"
        # No link to plotly, and above all no button that sends what is shown to its server.
        config = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
        shown = to_html(
            picture(scenes),
            config=config,
            include_plotlyjs=False,
            full_html=False,
            default_height="76vh",
            div_id=_PLACE,
        )
    paragraphs = "\n".join(f"<p>{escape(part)}</p>" for part in spec.caption.strip().split("\n\n"))
    return _PAGE.format(title=escape(spec.title), library=library, picture=shown, paragraphs=paragraphs)


def save_page(spec: PageSpec, scenes: Sequence[Scene], path: str | Path) -> None:
    """Writes a page.

    Args:
        spec: The page.
        scenes: What it shows.
        path: The file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page(spec, scenes))
