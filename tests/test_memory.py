"""Memory of long work against what is estimated beforehand, each measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_MEASURED = """
import json, sys
import psutil, torch
from torch import nn
from quadscape.curvature.engine import HessianEngine
from quadscape.numerics import apply_numerics, keep_large_freed_memory
from test_architectures import objective_of

NETWORKS = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.GELU(), nn.Conv2d(16, 24, 3, padding=1), nn.GELU(),
        nn.AvgPool2d(4), nn.Conv2d(24, 32, 3, stride=2), nn.GroupNorm(4, 32), nn.GELU(), nn.Flatten(),
        nn.Linear(288, 10),
    ),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(3, 12, 5, padding=2), nn.Softplus(), nn.Conv2d(12, 24, 3, groups=3, padding=1), nn.SiLU(),
        nn.MaxPool2d(4), nn.Conv2d(24, 24, 3, groups=24, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(1536, 4),
    ),
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Tanh(), nn.Linear(8, 300), nn.Linear(300, 10)),
}
kind, name, dtype = sys.argv[1:]
apply_numerics(1)
keep_large_freed_memory()
torch.manual_seed(1)
objective, theta = objective_of(
    NETWORKS[name]().eval(), (3, 32, 32), 4, getattr(torch, dtype), "cross_entropy", 64, 64
)
width = 32
engine = HessianEngine(objective, theta)
estimate = engine.memory_bytes(width) if kind == "strip" else objective.product_bytes()
before = psutil.Process().memory_info().rss
if kind == "strip":
    for block in objective.layout.blocks:
        engine.columns(block.start, min(objective.size, block.start + width))
else:
    objective.hessian_product(theta, torch.ones_like(theta))
# Not getrusage: its peak begins at that of the process that started this one.
peak = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"used": peak - before, "estimate": estimate}))
"""


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
def test_no_more_is_taken_than_is_estimated(kind, network, dtype):
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MEASURED, kind, network, dtype],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(finished.stdout.splitlines()[-1])
    assert measured["used"] <= 1.1 * measured["estimate"]
    assert measured["used"] >= 0.1 * measured["estimate"]  # and nobody reserves ten times what is needed
