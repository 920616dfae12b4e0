"""All interactive pages, by name and in the order of the report."""

from quadscape.figures.pages import surface, trajectory_plane
from quadscape.figures.pages.specification import PageSpec

PAGES: dict[str, PageSpec] = {module.SPEC.name: module.SPEC for module in (trajectory_plane, surface)}
"""Every page by its name."""
