"""Digests of JSON values and of arrays: the same for equal content, however it is stored."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def canonical(value: Any) -> str:
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_digest(value: Any) -> str:
    """SHA-256 of `canonical`: what stages and their manifests are recognised by."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of JSON text with sorted keys: what results of measures and kept sizes are recognised by."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of decoded arrays (names, dtypes, shapes, values) and attributes.

    Args:
        arrays: Arrays by name.
        attributes: JSON values.

    Returns:
        Hexadecimal digest; equal for equal content, however it is chunked.
    """
    total = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        text = values.dtype.kind in "UTO"
        total.update(f"{name} {'str' if text else values.dtype.str} {values.shape}\n".encode())
        if text:
            total.update(json.dumps(values.tolist()).encode())
        else:
            total.update(values.tobytes())
    total.update(json.dumps(attributes or {}, sort_keys=True).encode())
    return total.hexdigest()
