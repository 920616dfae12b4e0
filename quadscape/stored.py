"""How arrays are laid out, and what finished results say about themselves, read as plain JSON: without Zarr.

Here the workflow's head asks what there is, which is never an error. Whether it is whole is for the stages to find out,
and for `quadscape.results.verify`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quadscape.digests import canonical_digest


@dataclass(frozen=True)
class ArraySpec:
    """Name, shape and layout of one array.

    Attributes:
        name: Path within the store, for example `matrix` or `resume/theta`.
        shape: Lengths of the dimensions.
        dtype: NumPy dtype name.
        dimensions: Names of the dimensions.
        chunks: What is compressed, checked and read as one piece.
        shards: What is written as one file; None: each chunk is a file. A multiple of `chunks`.
        compress: Blosc zstd-1 with bitshuffle before the checksum.
        scratch: Needed by a long stage only until it is finished, and removed then.
        attributes: Unit, description and the like.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    compress: bool = False
    scratch: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Uncompressed size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def stored_document(path: str | Path) -> dict[str, Any] | None:
    """A file of JSON; None where there is none that is whole."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def stored_manifest(path: str | Path) -> dict[str, Any] | None:
    """The manifest of a finished stage.

    Args:
        path: The file.

    Returns:
        The manifest; None where there is none that is whole.
    """
    manifest = stored_document(path)
    try:
        if manifest is None or manifest.pop("checksum") != canonical_digest(manifest):
            return None
    except (KeyError, ValueError, TypeError):
        return None
    whole = isinstance(manifest.get("parameters"), dict) and isinstance(manifest.get("results"), dict)
    return manifest if whole and {"stage", "version", "fingerprint", "digest"} <= manifest.keys() else None


def stored_attributes(path: str | Path) -> dict[str, Any] | None:
    """The attributes of a Zarr store.

    Args:
        path: Its root metadata.

    Returns:
        The attributes; None where there are none that can be read.
    """
    attributes = (stored_document(path) or {}).get("attributes")
    return attributes if isinstance(attributes, dict) else None


def stage_digest(manifest: Mapping[str, Any]) -> str:
    """Digest of everything that a stage wrote, under its fingerprint."""
    return canonical_digest([manifest["fingerprint"], manifest["digest"]])
