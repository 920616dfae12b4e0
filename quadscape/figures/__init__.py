"""Figures: each is one function from tables to a drawing; none computes science or opens a basis."""

from quadscape.figures.catalogue import FIGURES
from quadscape.figures.specification import FigureSpec
from quadscape.figures.style import save

__all__ = ["FIGURES", "FigureSpec", "save"]
