"""All figures, by name and in the order of the report."""

from quadscape.figures import (
    curvature_parts,
    eigenvector_localisation,
    eigenvector_overlap,
    gradient_cosine,
    learning_curves,
    line_searches,
    quadratic_radius,
    spectral_density,
    spectrum,
)
from quadscape.figures.specification import FigureSpec

FIGURES: dict[str, FigureSpec] = {
    module.SPEC.name: module.SPEC
    for module in (
        learning_curves,
        spectrum,
        curvature_parts,
        spectral_density,
        eigenvector_localisation,
        line_searches,
        quadratic_radius,
        gradient_cosine,
        eigenvector_overlap,
    )
}
"""Every figure by its name."""
