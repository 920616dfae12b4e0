"""Interactive pages: losses on planes that can be turned in a browser, one self-contained file for each kind."""

from quadscape.figures.pages.catalogue import PAGES
from quadscape.figures.pages.specification import PageSpec, Scene

__all__ = ["PAGES", "PageSpec", "Scene"]
