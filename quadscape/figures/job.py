"""The job of one figure, or of one interactive page: tables in, pictures out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from quadscape.figures.catalogue import FIGURES
from quadscape.figures.pages.catalogue import PAGES
from quadscape.figures.style import save
from quadscape.measures import OWNERS, SCHEMAS
from quadscape.measures.result import table_path
from quadscape.tables import Table, read_table


def shown_tables(names: Sequence[str], manifests: Mapping[str, Sequence[str]]) -> dict[str, list[Table]]:
    """The tables that a figure or a page reads.

    Args:
        names: Names of the tables.
        manifests: Manifests of results by measure.

    Returns:
        Tables by name, in the order of the manifests.
    """
    found = {}
    for table in names:
        found[table] = [read_table(table_path(path, table), SCHEMAS[table]) for path in manifests[OWNERS[table].name]]
    return found


def draw_figure(name: str, manifests: Mapping[str, Sequence[str]], paths: Sequence[str | Path]) -> None:
    """Draws a figure.

    Args:
        name: Name of the figure.
        manifests: Manifests of results by measure.
        paths: Files to write, by their suffix SVG or PNG.
    """
    spec = FIGURES[name]
    beside = [table for table in spec.also if OWNERS[table].name in manifests]
    figure = spec.draw(shown_tables([*spec.tables, *beside], manifests))
    for path in paths:
        save(figure, path)


def draw_page(name: str, manifests: Mapping[str, Sequence[str]], path: str | Path) -> None:
    """Writes an interactive page.

    Args:
        name: Name of the page.
        manifests: Manifests of results by measure.
        path: The file to write.
    """
    from quadscape.figures.pages.document import save_page

    spec = PAGES[name]
    save_page(spec, spec.scenes(shown_tables(spec.tables, manifests)), path)
