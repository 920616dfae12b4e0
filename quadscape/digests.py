"""Digests of arrays: the same for equal content, however it is stored."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


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
