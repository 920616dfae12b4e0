"""The job of one figure: tables in, pictures out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quadscape.figures.catalogue import FIGURES
from quadscape.figures.style import save
from quadscape.measures import OWNERS, SCHEMAS
from quadscape.measures.job import table_path
from quadscape.tables import Table, read_table


def figure_tables(name: str, manifests: Mapping[str, Any]) -> dict[str, list[Table]]:
    """The tables of a figure.

    Args:
        name: Name of the figure.
        manifests: Manifests of results by measure, one or several of each.

    Returns:
        Tables by name, in the order of the manifests.
    """
    found = {}
    for table in FIGURES[name].tables:
        given = manifests[OWNERS[table].name]
        paths = [given] if isinstance(given, str | Path) else list(given)
        found[table] = [read_table(table_path(path, table), SCHEMAS[table]) for path in paths]
    return found


def draw_figure(name: str, manifests: Mapping[str, Any], paths: Sequence[str | Path]) -> None:
    """Draws a figure.

    Args:
        name: Name of the figure.
        manifests: Manifests of results by measure.
        paths: Files to write, by their suffix SVG or PNG.
    """
    figure = FIGURES[name].draw(figure_tables(name, manifests))
    for path in paths:
        save(figure, path)
