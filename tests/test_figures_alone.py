"""One figure as a target, where nothing is there yet: a dry run lists what the figure follows from, and nothing else.

What it follows from is told here by the declarations alone: the measures of its tables, what these read, and so on down
to the data; planning and rules are not asked.
"""

from collections import Counter
from pathlib import Path

import pytest

from quadscape.figures.catalogue import FIGURES
from quadscape.measures import MEASURES, OWNERS
from tests.checkouts import Checkout

pytestmark = pytest.mark.slow

CHECKPOINTS = (0, 20, 40)
PAIRS = 3
RULES = {
    "data": {"prepare_data"},
    "trajectory": {"train"},
    "checkpoint": {"extract_checkpoint"},
    "hessian": {"compute_hessian_shard", "compute_hessian"},
    "eigenbasis": {"compute_eigenbasis"},
}
BELOW = {
    "data": (),
    "trajectory": ("data",),
    "checkpoint": ("trajectory",),
    "hessian": ("checkpoint",),
    "eigenbasis": ("hessian",),
}
"""What each stage is made from."""

HOW_QUADRATIC = (
    "sharpness",
    "eigenvector_localisation",
    "eigenvector_overlap",
    "line_searches",
    "quadratic_radius",
    "quadratic_through_training",
    "fractal",
)


def chain(figure: str) -> Counter[str]:
    """Jobs of a figure of one run, with counts."""
    needed, found = [OWNERS[table].name for table in FIGURES[figure].tables], set[str]()
    while needed:
        if (name := needed.pop()) not in found:
            found.add(name)
            needed += MEASURES[name].reads if name in MEASURES else BELOW[name]
    jobs = Counter({"draw_figure": 1})
    for name in found:
        if name in MEASURES:
            of = {"checkpoint": len(CHECKPOINTS), "checkpoint_pair": PAIRS, "run": 1}
            jobs[f"measure_{name}"] = of[MEASURES[name].of]
        else:
            jobs |= Counter(dict.fromkeys(RULES[name], 1 if name in {"data", "trajectory"} else len(CHECKPOINTS)))
    return jobs


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout without results, whose experiment has all of these figures."""
    checkout = Checkout(tmp_path_factory.mktemp("alone") / "checkout")
    runs = [{"name": "a", "checkpoints": list(CHECKPOINTS)}]
    checkout.configure(runs=runs, measures={"fractal": True, "sharpness": True})
    return checkout


@pytest.mark.parametrize("figure", HOW_QUADRATIC)
def test_a_figure_alone_lists_what_it_follows_from(empty: Checkout, figure: str) -> None:
    assert empty.plan(str(Path("results/tiny/figures") / f"{figure}.svg")) == chain(figure)
