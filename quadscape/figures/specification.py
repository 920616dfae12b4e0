"""What a figure declares about itself; reading it loads neither matplotlib nor torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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
        tables: Names of the tables that it reads.
        scope: Whether there is one of each table per run, per checkpoint, or per pair of checkpoints of a run.
        draw: Takes for each table name the tables in order; returns the figure.
    """

    name: str
    title: str
    category: str
    labels: dict[str, str]
    caption: str
    tables: tuple[str, ...]
    scope: Literal["runs", "checkpoints", "pairs"]
    draw: "Callable[[Tables], Figure]"

    @property
    def module(self) -> str:
        """Module that draws it: what its jobs depend on."""
        return self.draw.__module__
