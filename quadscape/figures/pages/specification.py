"""What an interactive page declares about itself, and what it shows; reading it loads neither plotly nor torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from quadscape.figures.specification import Tables


@dataclass(frozen=True)
class Course:
    """The projection of a run's path onto a plane.

    Attributes:
        first: Coordinates along the first axis, shape (n,).
        second: Along the second.
        iteration: Steps taken, int64.
        distance: Distance of the iterates from the plane.
    """

    first: "np.ndarray"
    second: "np.ndarray"
    iteration: "np.ndarray"
    distance: "np.ndarray"


@dataclass(frozen=True)
class Scene:
    """The loss on one plane.

    Attributes:
        name: What the page's list calls it.
        first: Coordinates of the grid along the first axis, ascending, shape (n,).
        second: Along the second, shape (m,).
        loss: Shape (n, m); NaN where it is not finite.
        labels: What the two axes are, with units.
        note: What stands above the picture.
        course: The path of a run; None: the middle of the grid is a checkpoint, which is marked.
    """

    name: str
    first: "np.ndarray"
    second: "np.ndarray"
    loss: "np.ndarray"
    labels: tuple[str, str]
    note: str = ""
    course: Course | None = None


@dataclass(frozen=True)
class PageSpec:
    """An interactive page: one function from tables to scenes, among which the reader chooses.

    Attributes:
        name: Identifier; the name of its file.
        title: Title in the report.
        category: Section of the report.
        labels: Labels of its line in the report.
        caption: How to read it, in paragraphs without markup.
        tables: Names of the tables that it reads.
        scenes: Takes for each table name the tables in order.
    """

    name: str
    title: str
    category: str
    labels: dict[str, str]
    caption: str
    tables: tuple[str, ...]
    scenes: "Callable[[Tables], list[Scene]]"

    @property
    def module(self) -> str:
        """Module that makes its scenes: what its jobs depend on."""
        return self.scenes.__module__

    @property
    def report_caption(self) -> str:
        """The caption in the report, in reStructuredText, with a link to the file.

        A report holds its results as data URLs, of which browsers made from Chromium open none above 2 MB.
        """
        place = f"pages/{self.name}.html"
        text = "Where this stays empty, as in Chrome and its relatives, which open no embedded file of this size, open "
        return f"{self.caption}\n{text}`{place} <{place}>`__ beside the report.\n"
