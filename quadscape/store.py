"""Zarr v3 stores: one place that knows how arrays are named, chunked, protected and read.

Every chunk carries a crc32c (Zarr reads a flipped bit or a zeroed tail silently without one), arrays have
dimension names (xarray opens them), and a missing float chunk reads as NaN. Small stores are written
whole by `write_store`, and their root `zarr.json`, written last, holds a digest of the content: that
file is what a workflow rule declares as its output. Stores of long stages are written by
`quadscape.stage`, chunk by chunk.
"""

import hashlib
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from quadscape.digests import digest
from quadscape.errors import StoreError
from quadscape.stored import ArraySpec

# Zarr takes settings from ZARR_* variables and from files such as ~/.config/zarr. They reach the order of arrays in
# memory (and so sums), the text of metadata (and so digests), what is written and how it is read: none may count here.
zarr.config.refresh(paths=[], env={})


def fill_value(dtype: str) -> Any:
    """What an array reads as where nothing was written: NaN for floats, -1 for signed integers, 0 and "" otherwise."""
    kind = np.dtype(dtype).kind
    return {"f": np.nan, "i": -1, "b": False, "U": "", "T": ""}.get(kind, 0)


def create_array(group: zarr.Group, spec: ArraySpec) -> zarr.Array:
    """Creates one empty array.

    Args:
        group: An open, writable group.
        spec: Its layout.

    Returns:
        The array.
    """
    codecs: list[Any] = [Crc32cCodec()]
    if spec.compress:
        codecs.insert(0, BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"))
    return group.create_array(
        spec.name,
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=tuple(max(1, c) for c in spec.chunks),
        shards=spec.shards,
        fill_value=fill_value(spec.dtype),
        compressors=codecs,
        dimension_names=spec.dimensions,
        attributes=dict(spec.attributes),
        # As Zarr's defaults are, whatever a program that uses this library has set.
        config={"order": "C", "write_empty_chunks": False},
    )


def write_store(
    path: str | Path, arrays: Sequence[tuple[ArraySpec, np.ndarray]], attributes: Mapping[str, Any]
) -> None:
    """Writes a small store whole; its root `zarr.json`, which gains the content's digest, comes last.

    Args:
        path: Directory of the store, or the `zarr.json` in it; what was there is replaced.
        arrays: Layout and values of each array.
        attributes: Provenance, as JSON values that are equal for equal results.
    """
    path = store_directory(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Built beside and renamed, so that a kill leaves the old store or the new one, and no reader sees half of one.
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    content = {spec.name: np.asarray(values, dtype=_stored_dtype(spec, values)) for spec, values in arrays}
    group = zarr.open_group(temporary, mode="w", zarr_format=3)
    for spec, _ in arrays:
        create_array(group, spec)[...] = content[spec.name]
    group.update_attributes({**attributes, "digest": digest(content, attributes), "layout_digest": _NO_DIGEST})
    root = temporary / "zarr.json"
    root.write_bytes(root.read_bytes().replace(_NO_DIGEST.encode(), _layout_digest(temporary, _NO_DIGEST).encode()))
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)


_NO_DIGEST = "0" * 64


def _layout_digest(path: Path, written: str) -> str:
    """SHA-256 of all metadata, byte by byte; the digest of the content says nothing of units, dimensions and chunks.

    Args:
        path: Directory of the store.
        written: What stands in the root for this digest, and does not count.

    Returns:
        Hexadecimal digest.
    """
    total = hashlib.sha256()
    for file in sorted(path.rglob("zarr.json")):
        text = file.read_bytes()
        total.update(f"{file.relative_to(path)} {len(text)}\n".encode())
        total.update(text.replace(written.encode(), _NO_DIGEST.encode()) if file.parent == path else text)
    return total.hexdigest()


def store_directory(path: str | Path) -> Path:
    """The directory of a store that is named by it, or by the `zarr.json` in it, which rules declare."""
    path = Path(path)
    return path.parent if path.name == "zarr.json" else path


def _stored_dtype(spec: ArraySpec, values: np.ndarray) -> Any:
    return np.asarray(values).dtype if spec.dtype in {"str", "T"} else spec.dtype


def open_store(path: str | Path) -> zarr.Group:
    """Opens a store for reading.

    Args:
        path: Directory of the store, or the `zarr.json` in it.

    Returns:
        The root group.

    Raises:
        StoreError: There is none, or its metadata are damaged.
    """
    path = store_directory(path)
    if not (path / "zarr.json").exists():
        raise StoreError(
            f"There is no store at {path}; remove what is left of that directory and run the workflow again."
        )
    try:
        return zarr.open_group(path, mode="r", zarr_format=3)
    except Exception as error:
        raise StoreError(
            f"The metadata of {path} are damaged ({error}); remove that directory and run the workflow again."
        ) from error


def read(
    array: zarr.Array,
    selection: Any = ...,
    *,
    directory: str | Path | None = None,
    remedy: str = "remove that directory and run the workflow again",
) -> np.ndarray:
    """Reads a part of an array; a chunk whose checksum does not hold is an error, never a value.

    Args:
        array: An open array.
        selection: NumPy-style basic selection.
        directory: The directory to name in the error; by default the store's.
        remedy: What to do then, for the end of the error's sentence.

    Returns:
        The values.

    Raises:
        StoreError: A chunk is damaged.
    """
    try:
        values = np.asarray(array[selection], order="C")
    except (ValueError, RuntimeError, OSError, EOFError) as error:
        where = directory if directory is not None else array.store_path
        raise StoreError(f"Array '{array.name}' of {where} is damaged ({error}); {remedy}.") from error
    # Zarr's variable-length strings come back as StringDType, which most of NumPy does not know yet.
    return np.array(values.tolist(), dtype=str) if values.dtype.kind == "T" else values


def read_store(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a small store whole and checks its digest.

    Args:
        path: Directory of the store, or the `zarr.json` in it.

    Returns:
        Arrays by name (nested groups as `group/name`), attributes without the digests.

    Raises:
        StoreError: The store is missing or its content differs from its digest.
    """
    group = open_store(path)
    where = store_directory(path)
    attributes = dict(group.attrs)
    expected, layout = attributes.pop("digest", None), attributes.pop("layout_digest", None)
    # The first stores had no digest of their layout.
    if (isinstance(layout, str) and layout == _layout_digest(where, layout)) or layout is None:
        arrays = {name: read(member, directory=where) for name, member in _arrays(group, where)}
        if digest(arrays, attributes) == expected:
            return arrays, attributes
    raise StoreError(
        f"The content of {where} differs from its digest, so a part is missing or was changed; "
        "remove that directory and run the workflow again."
    )


def _arrays(group: zarr.Group, where: Path) -> list[tuple[str, zarr.Array]]:
    """All arrays of a store by name, whose metadata may be damaged in any way."""
    try:
        return [(name, array) for name, array in sorted(group.members(max_depth=None)) if isinstance(array, zarr.Array)]
    except Exception as error:
        raise StoreError(
            f"The metadata of {where} are damaged ({error}); remove that directory and run the workflow again."
        ) from error
