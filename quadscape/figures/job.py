"""The job of one figure: tables in, pictures out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from quadscape.figures.catalogue import FIGURES
from quadscape.figures.style import save
from quadscape.measures import OWNERS, SCHEMAS
from quadscape.measures.result import table_path
from quadscape.tables import Table, read_table


def figure_tables(name: str, manifests: Mapping[str, Sequence[str]]) -> dict[str, list[Table]]:
    """The tables of a figure.

    Args:
        name: Name of the figure.
        manifests: Manifests of results by measure.

    Returns:
        Tables by name, in the order of the manifests.
    """
    found = {}
    for table in FIGURES[name].tables:
        found[table] = [read_table(table_path(path, table), SCHEMAS[table]) for path in manifests[OWNERS[table].name]]
    return found


def draw_figure(name: str, manifests: Mapping[str, Sequence[str]], paths: Sequence[str | Path]) -> None:
    """Draws a figure.

    Args:
        name: Name of the figure.
        manifests: Manifests of results by measure.
        paths: Files to write, by their suffix SVG or PNG.
    """
    figure = FIGURES[name].draw(figure_tables(name, manifests))
    for path in paths:
        save(figure, path)
