"""The loss on planes through checkpoints, to be turned."""

from typing import TYPE_CHECKING

from quadscape.figures.pages.specification import PageSpec, Scene
from quadscape.figures.planes import Picture, pictures

if TYPE_CHECKING:
    from quadscape.figures.specification import Tables


def scenes(tables: "Tables") -> list[Scene]:
    """Every plane of every checkpoint.

    Args:
        tables: `surface` and `surface_planes`, one of each per checkpoint.

    Returns:
        Checkpoint by checkpoint.
    """
    every = [pictures(*pair) for pair in zip(tables["surface"], tables["surface_planes"], strict=True)]
    return [_scene(picture) for of in every for picture in of]


def _scene(picture: Picture) -> Scene:
    head, plane = picture.table.attributes, picture.plane
    name = f"{head['run']}, iteration {head['iteration']:,}, plane {plane['plane']}"
    ranges = [
        f"{_number(plane[f'{which}_smallest'])} to {_number(plane[f'{which}_largest'])}"
        for which in ("suggested", "measured")
    ]
    note = f"Curvatures in this plane: {ranges[0]} by the picture, {ranges[1]} by the Hessian; in all directions "
    note += f"{_number(head['smallest_eigenvalue'])} to {_number(head['sharpness'])}"
    return Scene(name, picture.a, picture.b, picture.loss, (picture.label(0), picture.label(1)), note)


def _number(value: float) -> str:
    return f"{float(value):.3g}".replace("-", "−")


SPEC = PageSpec(
    name="surface",
    title="The loss on planes through checkpoints, to be turned",
    category="9. Views",
    labels={"measure": "loss on planes, interactive", "shown": "per checkpoint"},
    caption="""\
The training loss on planes through checkpoints, of which one is chosen in the list. Drag to turn, scroll to come
nearer; the pointer shows both coordinates and the loss. The diamond is the checkpoint. The height is logarithmic where
the loss spans more than a decade, and holes are where it is not finite.

Planes called random have two random directions whose filters are as long as those of the network; extreme is that of
the eigenvectors of the largest and of the smallest eigenvalue, and i:j that of the ranks i and j. A plane shows two
directions: its curvatures stand above the picture, beside those in all directions.
""",
    tables=("surface", "surface_planes"),
    scenes=scenes,
)
