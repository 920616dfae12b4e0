"""What is measured: each measure is a folder with a declaration, and `compute`, which turns a job into tables."""

from quadscape.measures.catalogue import MEASURES, OWNERS, SCHEMAS

__all__ = ["MEASURES", "OWNERS", "SCHEMAS"]
