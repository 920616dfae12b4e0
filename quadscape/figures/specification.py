"""What a figure declares about itself; reading it loads neither matplotlib nor torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quadscape.tables import Table

    Tables = Mapping[str, Sequence[Table]]


@dataclass(frozen=True)
class FigureSpec:
    """A figure: one function from tables to a drawing, with its caption beside it.

    Attributes:
        name: Identifier; the name of its files.
        title: Title in the report.
        category: Section of the report.
        labels: Labels of its line in the report.
        caption: How to read it, in reStructuredText.
        tables: Names of the tables that it reads, of whatever measures; without any of them it is not drawn.
        also: Names of further tables that it shows where they are there; absent from what `draw` gets otherwise.
        draw: Takes for each table name the tables in order; returns the figure.
    """

    name: str
    title: str
    category: str
    labels: dict[str, str]
    caption: str
    tables: tuple[str, ...]
    draw: "Callable[[Tables], Figure]"
    also: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Module that draws it: what its jobs depend on."""
        return self.draw.__module__
