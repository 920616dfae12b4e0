"""Paths as users write them: `~` for the home folder, and accents in either of Unicode's two spellings."""

import os
import unicodedata
from pathlib import Path


def user_path(text: str | Path) -> Path:
    """The path that a user means.

    Args:
        text: As it stands in the experiment file.

    Returns:
        With `~` expanded where there is a home folder; where nothing is there under that name, but is under the same
        name with its accents composed or decomposed, that one (file systems and editors differ in which they write).
    """
    # Not Path.expanduser, which fails where a user has no entry in the system's list.
    path = os.path.expanduser(str(text))  # ruff: ignore[os-path-expanduser]
    if not os.path.lexists(path):
        for other in (unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path)):
            if os.path.lexists(other):
                return Path(other)
    return Path(path)
