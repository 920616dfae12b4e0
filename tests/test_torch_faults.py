"""What docs/refused.md says that torch gets wrong holds for the torch that is installed.

Where one of these fails, torch has mended it: the example, and what stands for the operation here, can go.
"""

import re
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).resolve().parents[1] / "docs/refused.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(
    r"^\*\*(.+?)\*\*.*?^```python\n(.*?)^```", PAGE.partition("## What torch gets wrong")[2], re.M | re.S
)


def test_every_example_is_found() -> None:
    assert len(EXAMPLES) == PAGE.count("```python") >= 10


@pytest.mark.parametrize(("claim", "code"), EXAMPLES, ids=[claim.split(":")[0] for claim, _ in EXAMPLES])
def test_torch_still_gets_it_wrong(claim: str, code: str) -> None:
    torch.manual_seed(0)
    exec(textwrap.dedent(code), {"torch": torch, "pytest": pytest, "warnings": warnings})
