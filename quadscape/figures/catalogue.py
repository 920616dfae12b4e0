"""All figures, by name and in the order of the report."""

from quadscape.figures import (
    connection,
    curvature_parts,
    descent,
    descent_noise,
    eigenvector_localisation,
    eigenvector_overlap,
    embedding,
    escape,
    fractal,
    gradient_cosine,
    hard_to_train,
    interpolation,
    layer_gradients,
    learning_curves,
    line_searches,
    quadratic_radius,
    random_lines,
    ruggedness,
    score_ranks,
    sharpness,
    spectral_density,
    spectrum,
    surface,
    surface_relief,
    trajectory_plane,
    tuning,
)
from quadscape.figures.specification import FigureSpec

FIGURES: dict[str, FigureSpec] = {
    module.SPEC.name: module.SPEC
    for module in (
        learning_curves,
        layer_gradients,
        spectrum,
        curvature_parts,
        spectral_density,
        sharpness,
        eigenvector_localisation,
        line_searches,
        quadratic_radius,
        ruggedness,
        random_lines,
        fractal,
        gradient_cosine,
        eigenvector_overlap,
        tuning,
        descent,
        descent_noise,
        escape,
        hard_to_train,
        score_ranks,
        interpolation,
        trajectory_plane,
        embedding,
        connection,
        surface,
        surface_relief,
    )
}
"""Every figure by its name."""
