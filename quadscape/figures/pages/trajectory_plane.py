"""The path of a run on the loss over the plane of its principal components, to be turned."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures.pages.specification import Course, PageSpec, Scene

if TYPE_CHECKING:
    from quadscape.figures.specification import Tables
    from quadscape.tables import Table


def scenes(tables: "Tables") -> list[Scene]:
    """The plane of every run that has one.

    Args:
        tables: `path_points` and `path_plane`, one of each per run.

    Returns:
        Run by run.
    """
    pairs = zip(tables["path_points"], tables["path_plane"], strict=True)
    return [_scene(points, plane) for points, plane in pairs if len(plane)]


def _scene(points: "Table", plane: "Table") -> Scene:
    first, second = np.unique(plane["pc1"]), np.unique(plane["pc2"])
    far, radius = float(points["distance"].max()), float(points["radius"].max())
    return Scene(
        name=f"run {points.attributes['run']}",
        first=first,
        second=second,
        loss=plane["loss"].reshape(len(first), len(second)),
        labels=("first component  (parameter)", "second component  (parameter)"),
        note=f"The path is up to {far:.3g} from this plane, and up to {radius:.3g} from its mean",
        course=Course(points["pc1"], points["pc2"], points["iteration"], points["distance"]),
    )


SPEC = PageSpec(
    name="trajectory_plane",
    title="The path on the loss over the plane of its principal components, to be turned",
    category="9. Views",
    labels={"measure": "path and loss on its plane, interactive", "shown": "per run"},
    caption="""\
The training loss on the plane of the first two principal components of a run's iterates, and on it the projection of
the path; the run is chosen in the list. Drag to turn, scroll to come nearer; the pointer shows coordinates and loss,
and on the path the iteration and how far the iterate is from the plane. The circle is its start, the diamond its end.
The height is logarithmic where the loss spans more than a decade.

The path does not lie in this plane. It is drawn at the height of the surface below its projection, between the points
of the grid by linear interpolation: that is not the loss of the iterate. Only where the path is much closer to the
plane than to its own mean does the picture say where the run went.
""",
    tables=("path_points", "path_plane"),
    scenes=scenes,
)
