"""What lies between a result on the device and a finished stage: copies to the host, writing, and check sums."""

import argparse
import hashlib
import os
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.runner import Found
from benchmarks.setting import prepare, timed
from quadscape.numerics import resolve_device

_BYTES = {"cuda": 2 << 30, "cpu": 4 << 20}


def storing_part(arguments: argparse.Namespace) -> Found:
    """Rates, and what they come to for a triangle of H and for Q of size `--n`, each after the other.

    Args:
        arguments: Of the command; `--folder` is where the file is written.

    Yields:
        Rates, then both matrices.
    """
    device = resolve_device(arguments.device)
    prepare()
    count = _BYTES[device.type]
    columns = count // (4 * arguments.n)
    source = torch.randn(arguments.n, max(1, columns), device=device)
    size = source.numel() * 4
    _with_signs(source)  # warms up
    largest, _ = timed(lambda: _with_signs(source), device)
    copied, host = timed(lambda: _with_signs(source).cpu(), device)
    values = memoryview(host.numpy().tobytes())
    summed, _ = timed(lambda: hashlib.sha256(values).hexdigest())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        written, _ = timed(lambda: _write(Path(folder) / "matrix", values))
    seconds = {"signs": largest, "copy": max(copied - largest, 1e-6), "sha256": summed, "file": written}
    yield {"op": "rates", "bytes": size, "gb_per_second": {k: size / s / 1e9 for k, s in seconds.items()}}
    for stage, whole in (("Hessian", 2.0 * arguments.n**2), ("eigenbasis", 4.0 * arguments.n**2)):
        # Without what the format of the store takes: a lower bound.
        total = (copied + summed + written) * whole / size
        share = min(1.0, size / whole)
        yield {"stage": stage, "step": "storing, at least", "bytes": whole, "seconds": total, "measured_share": share}


def _with_signs(columns: torch.Tensor) -> torch.Tensor:
    """Columns whose largest component is positive, as rows."""
    place = columns.abs().argmax(dim=0, keepdim=True)
    return (columns * columns.gather(0, place).sign()).T.contiguous()


def _write(path: Path, values: memoryview) -> None:
    with path.open("wb") as file:
        file.write(values)
        file.flush()
        os.fsync(file.fileno())
