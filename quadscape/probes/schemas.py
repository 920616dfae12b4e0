"""Every table of the probes, by its name."""

from quadscape.probes import curves, density, gradients, line_search, overlap, parts, spectrum
from quadscape.tables import TableSchema

SCHEMAS: dict[str, TableSchema] = {
    schema.name: schema
    for schema in (
        curves.CURVES,
        curves.EVALUATIONS,
        curves.NORMS,
        spectrum.SCHEMA,
        parts.SPECTRA,
        parts.RITZ,
        density.SCHEMA,
        line_search.LINES,
        line_search.FITS,
        gradients.DIRECTIONS,
        gradients.BANDS,
        overlap.ROWS,
        overlap.MAXIMA,
        overlap.BANDS,
        overlap.SUBSPACE,
    )
}
"""By the name of the table, which is also the name of its file."""
