"""Sizes and durations as text for people."""


def format_bytes(size: float) -> str:
    """A size for people: `43.5 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} EB"


def format_seconds(seconds: float) -> str:
    """A duration for people: `3 d 04 h`, `2 h 05 min`, `3 min 20 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 2 * 86400:
        return f"{whole // 86400:,} d {whole % 86400 // 3600:02d} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"
