"""What larger networks would take, counted: the tables of docs/scale.md.

`python -m benchmarks.scale` prints them; a test holds the page to them. s is the size of a number in bytes, P = n the
number of parameters, b the columns of a panel of the reduction.

- *Reduction*, a matrix–vector product per column and a rank-2b update per panel: of m remaining columns the product
  reads s·m²/2 bytes where a kernel reads one triangle (LAPACK), s·m² where it reads the square (a GPU's), and takes
  2m² operations either way; the update reads and writes the square once in b columns and takes 4m² operations per
  column on the square, 2m² on a triangle. Sums over columns: Σm² = n³/3.
- *Divide and conquer*: as built, 2n³ in float64, less what deflates. *Back-transformation*: 2n³.
- *Memory of the streamed way*: one matrix and strips, in all 1.08 matrices, and 1 GB.
- *Several GPUs*: a library that holds matrix, vectors and a workspace of the same size, spread evenly: 3 matrices.
- *Hessian*: the layer cut of `benchmarks.count`, its products and its bytes one after the other; nothing element-wise
  is fused, which moves `UNFUSED` times the bytes. *A product* with a vector: nine passes over every layer and example.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from benchmarks.count import Layer, layers_of, stages
from benchmarks.setting import CLASSES, SHAPE, benchmark
from quadscape.config.sections import ResNet9
from quadscape.curvature.solver_plan import PANEL
from quadscape.measures import MEASURES
from quadscape.network.models import ResNet9Network

IMAGES = 50_000
WIDTHS = (1, 2, 6, 20, 197)
TOP = 10
TOP_PRODUCTS = 108
"""Products for `TOP` eigenpairs, measured at w = 1 (docs/performance.md)."""
MATRICES = 3
STRIPS = 1.08
RESERVED = 1e9
PASSES = 9
UNFUSED = 5.5
"""Bytes that the engine moves, over those of the layer cut with everything fused: counted at w = 2."""


@dataclass(frozen=True)
class Device:
    """Assumed rates and prices.

    Attributes:
        name: Of the device.
        memory: Bytes.
        bandwidth: Bytes per second.
        float32: Operations per second of products in float32.
        float64: The same in float64.
        price: Dollars per hour.
        triangle: Whether its matrix–vector product reads one triangle only.
    """

    name: str
    memory: float
    bandwidth: float
    float32: float
    float64: float
    price: float
    triangle: bool = False


H100 = Device("H100, 80 GB", 80e9, 3.0e12, 45e12, 40e12, 3.0)
H200 = Device("H200, 141 GB", 141e9, 4.0e12, 45e12, 40e12, 4.0)
SERVER = Device("server, 512 GB", 512e9, 0.3e12, 3e12, 1.5e12, 3.0, triangle=True)
CORES = Device("two cores, 24 GB", 24e9, 0.02e12, 0.2e12, 0.07e12, 0.1, triangle=True)
DEVICES = (H100, H200, SERVER, CORES)


@cache
def layers(width: int) -> list[Layer]:
    """Layers of the reference network, without memory for its parameters."""
    config = ResNet9.model_validate({"factory": "resnet9", "width": width, "normalization": "group"})
    with torch.device("meta"):
        model = ResNet9Network(config, SHAPE, CLASSES)
    return layers_of(model, torch.empty(1, *SHAPE, device="meta"))


def parameters(of: Sequence[Layer]) -> int:
    """P."""
    return sum(layer.weights + layer.others for layer in of)


def product_operations(of: Sequence[Layer], images: int = IMAGES) -> float:
    """Operations of one product of the Hessian with a vector."""
    return 2.0 * PASSES * images * sum(layer.products for layer in of)


def largest_size(device: Device, itemsize: int) -> int:
    """The largest P whose matrix can be decomposed in the memory of one device, in the streamed way."""
    return math.isqrt(int((device.memory - RESERVED) / (STRIPS * itemsize)))


def basis_seconds(size: int, device: Device, itemsize: int = 4, count: int = 1) -> dict[str, float]:
    """Time of each part of a decomposition at the assumed rates.

    Args:
        size: n.
        device: Where.
        itemsize: Bytes of a number: 4 or 8.
        count: Number of devices; their rates add up.

    Returns:
        Seconds by part; of the reduction's products with vectors and updates the one after the other.
    """
    cubed, half = float(size) ** 3, 2 if device.triangle else 1
    rate = device.float32 if itemsize == 4 else device.float64
    moved = itemsize * cubed / 3 / half * (1 + 2 / PANEL)
    seconds = {
        "reduction": moved / device.bandwidth + 4 / 3 * cubed / half / rate,
        "divide and conquer": 2 * cubed / device.float64,
        "back-transformation": 2 * cubed / rate,
    }
    return {name: value / count for name, value in seconds.items()}


def devices_needed(size: int, device: Device, itemsize: int = 4) -> int:
    """Devices whose memory together holds `MATRICES` matrices."""
    return math.ceil(MATRICES * itemsize * size**2 / (device.memory - RESERVED))


def _assumptions() -> list[list[str]]:
    return [
        [
            device.name,
            f"{device.bandwidth / 1e12:g} TB/s",
            f"{device.float32 / 1e12:g} TFLOP/s",
            f"{device.float64 / 1e12:g} TFLOP/s",
            f"${device.price:.2f}",
        ]
        for device in DEVICES
    ]


def _limits() -> list[list[str]]:
    rows = []
    for device in DEVICES:
        for itemsize in (4, 8):
            size = largest_size(device, itemsize)
            parts = basis_seconds(size, device, itemsize)
            seconds = sum(parts.values())
            rows.append(
                [
                    device.name,
                    f"float{8 * itemsize}",
                    f"{size // 1000 * 1000:,}",
                    *(_time(parts[name]) for name in parts),
                    _time(seconds),
                    _money(seconds / 3600 * device.price),
                ]
            )
    return rows


def _dense() -> list[list[str]]:
    rows = []
    for width in WIDTHS:
        of = layers(width)
        size = parameters(of)
        operations, fused = stages(of, IMAGES, CLASSES)["Hessian, layer cut"]
        assert fused is not None
        one = size <= largest_size(H200, 4)
        count = 1 if one else devices_needed(size, H200)
        basis = sum(basis_seconds(size, H200, count=count).values())
        curvature = (operations / H200.float32 + UNFUSED * fused / H200.bandwidth) / count
        rows.append(
            [
                f"{width}",
                f"{size:,}",
                _bytes(4 * size**2 / 2),
                _bytes(4 * size**2),
                f"{count:,}",
                _time(curvature),
                _time(basis),
                _money((curvature + basis) / 3600 * count * H200.price),
            ]
        )
    return rows


def _matrix_free() -> list[list[str]]:
    rows = []
    options = {option.name: int(option.default) for option in MEASURES["density"].options}
    for width in WIDTHS:
        of = layers(width)
        size, operations = parameters(of), product_operations(of)
        products = options["vectors"] * options["steps"]
        # ARPACK keeps 2k + 1 Lanczos vectors (20 at least) and makes k eigenvectors; quadrature keeps all its steps.
        top, lanczos = 8 * size * (max(20, 2 * TOP + 1) + TOP), 8 * size * options["steps"]
        seconds = operations / H100.float32
        rows.append(
            [
                f"{width}",
                f"{size:,}",
                f"{operations:.1e}",
                _time(seconds),
                _bytes(top),
                _time(TOP_PRODUCTS * seconds),
                _money(TOP_PRODUCTS * seconds / 3600 * H100.price),
                _bytes(lanczos),
                _time(products * seconds),
                _money(products * seconds / 3600 * H100.price),
            ]
        )
    return rows


def _stored() -> list[list[str]]:
    rows = []
    for width in WIDTHS:
        size = parameters(layers(width))
        rows.append(
            [
                f"{width}",
                f"{size:,}",
                _bytes(8 * size),
                _bytes(8 * size * 500),
                _bytes(8 * size * TOP),
                _bytes(4 * size**2 / 2),
                _bytes(4 * size**2),
            ]
        )
    return rows


TABLES: dict[str, tuple[list[str], Callable[[], list[list[str]]]]] = {
    "assumptions": (["", "memory bandwidth", "float32 products", "float64 products", "price per hour"], _assumptions),
    "limits": (
        ["", "dtype", "largest P", "reduction", "divide and conquer", "back-transformation", "in all", "price"],
        _limits,
    ),
    "dense": (["w", "P", "H (half)", "Q", "H200s", "Hessian", "eigenbasis", "price"], _dense),
    "matrix-free": (
        [
            "w",
            "P",
            "operations of a product",
            "its time",
            f"{TOP} pairs: vectors",
            "time",
            "price",
            "density: vectors",
            "time",
            "price",
        ],
        _matrix_free,
    ),
    "stored": (
        ["w", "P", "θ, float64", "500 iterates", f"{TOP} eigenvectors, float64", "H (half), float32", "Q, float32"],
        _stored,
    ),
}


def table(name: str) -> str:
    """One table in Markdown.

    Args:
        name: One of `TABLES`.

    Returns:
        Its lines.
    """
    head, rows = TABLES[name]
    lines = [head, ["---"] * len(head), *rows()]
    return "\n".join("| " + " | ".join(line) + " |" if line[0] != "---" else "|" + "---|" * len(line) for line in lines)


@benchmark(__doc__)
def main(_: argparse.Namespace) -> dict[str, Any]:
    """Prints the tables."""
    for name in TABLES:
        print(f"\n{name}\n\n{table(name)}")
    return {
        "largest": {device.name: largest_size(device, 4) for device in DEVICES},
        "parameters": {str(width): parameters(layers(width)) for width in WIDTHS},
        "basis_seconds": {device.name: basis_seconds(104_234, device) for device in DEVICES},
    }


def _time(seconds: float) -> str:
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h"), (730 * 86400, 86400, "days")):
        if seconds < limit:
            return f"{_two(seconds / unit)} {name}"
    return f"{_two(seconds / 86400 / 365)} years"


def _money(dollars: float) -> str:
    for limit, unit, name in ((1e6, 1, ""), (1e9, 1e6, " million"), (1e12, 1e9, " billion")):
        if dollars < limit:
            return "under $0.01" if dollars < 0.01 else f"${_two(dollars / unit)}{name}"
    return f"${_two(dollars / 1e12)} trillion"


def _bytes(count: float) -> str:
    exponent = min(6, int(math.log10(count) // 3))
    return f"{_two(count / 1000**exponent)} {('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[exponent]}"


def _two(value: float) -> str:
    """Two significant digits, without exponent below a million."""
    if value == 0:
        return "0"
    rounded = round(value, 1 - math.floor(math.log10(value)))
    return f"{rounded:,.0f}" if 10 <= rounded < 1e6 else f"{rounded:.2g}"


if __name__ == "__main__":
    main()
