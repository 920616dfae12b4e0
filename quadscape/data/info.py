"""What a data store says about itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadscape.store import open_store


@dataclass(frozen=True)
class DataInfo:
    """What the data store says about itself.

    Attributes:
        shape: Channels, height and width of every image.
        classes: Names of the classes.
        counts: Number of images of each split.
        digest: SHA-256 of the arrays and of what gives them meaning; not of the names of source files.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    counts: dict[str, int]
    digest: str


def data_info(path: str | Path) -> DataInfo:
    """Reads what a data store says about itself, without its images.

    Args:
        path: Directory of the store, or the `zarr.json` in it.

    Returns:
        Shape, classes, sizes and digest.
    """
    attributes: dict[str, Any] = dict(open_store(path).attrs)
    channels, height, width = attributes["shape"]
    return DataInfo(
        (channels, height, width), tuple(attributes["classes"]), dict(attributes["counts"]), attributes["content"]
    )
