"""Amounts of work by kind, and what a device does of each kind per second."""

from collections.abc import Mapping
from dataclasses import dataclass, field

PASSES = ("forward", "gradient", "product")
"""Passes through a network, in operations: of a loss, of its gradient, and of a Hessian product."""
KINDS = {
    **{f"{name} {dtype}": "operations" for name in (*PASSES, "columns") for dtype in ("float32", "float64")},
    "matrix float32": "operations of products of matrices",
    "matrix float64": "operations of products of matrices",
    "read": "bytes that products with a matrix much larger than caches read",
    "numbers": "numbers that element-wise passes over arrays larger than caches write or add up",
    "stored": "bytes to and from disk",
    "steps": "training steps, whatever they hold",
    "calls": "passes of a measure, whatever they hold",
    "units": "units of a stage, whatever they hold",
    "starts": "processes that load torch",
    "transforms": "processes that also load its compiler, as derivatives by its function transformations do",
    "tables": "processes that read tables and load no torch",
    "checks": "networks that are checked before their curvature is computed",
    "images": "images that are read from their source",
}
"""What is counted of each kind."""

NOMINAL: dict[str, dict[str, float]] = {
    "cpu": {
        "forward float32": 12e9,
        "forward float64": 5e9,
        "gradient float32": 10e9,
        "gradient float64": 5e9,
        "product float32": 8e9,
        "product float64": 4e9,
        "columns float32": 10e9,
        "columns float64": 5e9,
        "matrix float32": 80e9,
        "matrix float64": 40e9,
        "read": 10e9,
        "numbers": 0.3e9,
        "stored": 0.5e9,
        "steps": 500.0,
        "calls": 1000.0,
        "units": 20.0,
        "starts": 0.4,
        "transforms": 0.7,
        "tables": 1.1,
        "checks": 0.4,
        "images": 1500.0,
    },
    "cuda": {
        **{f"{name} {dtype}": 10e12 for name in (*PASSES, "columns") for dtype in ("float32", "float64")},
        "matrix float32": 40e12,
        "matrix float64": 40e12,
        "read": 2.5e12,
        "numbers": 100e9,
        "stored": 1e9,
        "steps": 200.0,
        "calls": 200.0,
        "units": 20.0,
        "starts": 0.2,
        "transforms": 0.5,
        "tables": 1.0,
        "checks": 0.2,
        "images": 500.0,
    },
}
"""Assumed where nothing was measured: one core of a server, and an H100 with a quarter of what its products reach for
all that is no large product (docs/performance.md).

On a CPU a number of an element-wise pass takes between 1 ns, where the system hands out the same pages again, and 20
ns, where it makes new ones (numpy in float64, arrays of 500 MB, a virtual machine); 3.5 ns on average over passes that
make such arrays anew, tile by tile. Starts, transforms, tables and images were timed as processes of their own."""


@dataclass(frozen=True)
class Work:
    """Amounts of work.

    Attributes:
        amounts: By kind, of `KINDS`.
    """

    amounts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = self.amounts.keys() - KINDS.keys()
        if unknown:
            raise KeyError(f"Work has no kind {', '.join(sorted(unknown))}.")

    def __add__(self, other: "Work") -> "Work":
        kinds = [*self.amounts, *(kind for kind in other.amounts if kind not in self.amounts)]
        return Work({kind: self.amounts.get(kind, 0.0) + other.amounts.get(kind, 0.0) for kind in kinds})

    def times(self, factor: float) -> "Work":
        """So many times as much of everything."""
        return Work({kind: factor * amount for kind, amount in self.amounts.items()})

    def seconds(self, speeds: Mapping[str, float]) -> float:
        """Time, one kind after another.

        Args:
            speeds: Amount per second by kind.

        Returns:
            Seconds.
        """
        return sum(amount / speeds[kind] for kind, amount in self.amounts.items() if amount)
