"""Memory of long work against what is estimated beforehand, each measured in a process of its own."""

import psutil
import pytest
import torch
from fork_server import TORCH, call, start_server
from test_architectures import objective_of
from torch import nn

from quadscape.curvature.engine import HessianEngine
from quadscape.memory_limits import peak_memory
from quadscape.numerics import apply_numerics, keep_large_freed_memory

NETWORKS = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.GELU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2d(4),
        nn.Conv2d(24, 32, 3, stride=2),
        nn.GroupNorm(4, 32),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(288, 10),
    ),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(3, 12, 5, padding=2),
        nn.Softplus(),
        nn.Conv2d(12, 24, 3, groups=3, padding=1),
        nn.SiLU(),
        nn.MaxPool2d(4),
        nn.Conv2d(24, 24, 3, groups=24, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(1536, 4),
    ),
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Tanh(), nn.Linear(8, 300), nn.Linear(300, 10)),
}


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    start_server("test_memory", *TORCH)


def measure(kind: str, network: str, dtype: str, images: int) -> tuple[int, int]:
    """Bytes that the work of a strip or of one product takes, and those that are estimated."""
    apply_numerics(1)
    keep_large_freed_memory()
    torch.manual_seed(1)
    model = NETWORKS[network]().eval()
    objective, theta = objective_of(model, (3, 32, 32), 4, getattr(torch, dtype), "cross_entropy", images, images)
    width = 32
    engine = HessianEngine(objective, theta)
    estimate = engine.memory_bytes(width) if kind == "strip" else objective.product_bytes()
    before = psutil.Process().memory_info().rss
    if kind == "strip":
        for block in objective.layout.blocks:
            engine.columns(block.start, min(objective.size, block.start + width))
    else:
        objective.hessian_product(theta, torch.ones_like(theta))
    return peak_memory() - before, estimate


@pytest.mark.parametrize("images", [32, pytest.param(64, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("kind", "network", "dtype"),
    [
        ("strip", "convolutions", "float32"),
        ("strip", "convolutions", "float64"),
        ("strip", "groups", "float32"),
        ("strip", "dense", "float64"),
        ("product", "convolutions", "float64"),
        ("product", "groups", "float32"),
    ],
)
def test_no_more_is_taken_than_is_estimated(kind, network, dtype, images):
    used, estimate = call(measure, kind, network, dtype, images)
    assert used <= 1.1 * estimate
    assert used >= 0.1 * estimate  # and nobody reserves ten times what is needed
