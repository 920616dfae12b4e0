"""Re-reads finished results, months later too: every byte against its checksum, every manifest against its store."""

import os
from collections.abc import Iterator
from pathlib import Path

from quadscape.errors import StoreError
from quadscape.stage import verify_stage
from quadscape.store import read_store


def verify_results(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Checks every finished stage and every small store below a directory.

    Args:
        root: Where to look.

    Yields:
        Path of the stage or store, and what is wrong with it (None: nothing).

    Raises:
        StoreError: There is no such directory.
    """
    if not root.is_dir():
        raise StoreError(f"There is no directory {root}; nothing to verify.")
    for folder, subfolders, files in os.walk(root):
        here = Path(folder)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if "manifest.json" in files or "journal" in files:
            subfolders.clear()
            if "manifest.json" not in files:
                continue  # not finished: its own command will check it
            check = verify_stage
        elif here.suffix == ".zarr":
            subfolders.clear()
            check = read_store  # type: ignore[assignment]
        else:
            continue
        try:
            check(here)
        except StoreError as error:
            yield here, str(error)
        else:
            yield here, None
