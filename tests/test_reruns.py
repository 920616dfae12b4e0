"""What measures a result again, and what does not: changes of the code, tried on copies of the package."""

import ast
import re
import shutil
from pathlib import Path

import pytest

from quadscape.figures import FIGURES
from quadscape.measures import MEASURES
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.labels import entries_of
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets, measure_rules
from quadscape.provenance.definitions import closure
from tests.experiments import TINY

ROOT = Path(__file__).resolve().parents[1]
NETWORK = {name for name, measure in MEASURES.items() if measure.evaluates}
LOSSES_ALONE = {"interpolation", "connection", "path", "embedding"}
# The gradient of a mean is in neither.
OF_EXAMPLES = {"example_curvature", "noise_crossed"}
# Of lines of batches N is that of the lines that were searched.
OF_CHECKPOINTS = {n for n, m in MEASURES.items() if {"checkpoint", "start_checkpoint"} & {*m.reads}} - {"finite_batch"}
WITH_BASIS = {n for n, m in MEASURES.items() if {"eigenbasis", "start_eigenbasis"} & {*m.reads}}

# File, what is replaced by what in it, and the measures that are measured again for it.
CHANGES: dict[str, tuple[str, str, str, set[str]]] = {
    "a constant of one measure": (
        "measures/line_search/analysis.py",
        "CLUSTERING = 6.0",
        "CLUSTERING = 5.0",
        {"line_search"},
    ),
    "a bound that two measures share": (
        "measures/spectrum/compute.py",
        "ROWS_PER_SIGN = 1000",
        "ROWS_PER_SIGN = 900",
        {"spectrum", "parts"},
    ),
    "N in what all measures of a checkpoint share": (
        "measures/job.py",
        'data_info(self.path("data")).counts["train"])',
        'data_info(self.path("data")).counts["train"] * 2)',
        OF_CHECKPOINTS,
    ),
    "the gradient, doubled": (
        "network/objective.py",
        "return self._mean(",
        "return 2 * self._mean(",
        NETWORK - LOSSES_ALONE - OF_EXAMPLES,
    ),
    "the eigenvectors, negated": (
        "curvature/stored_basis.py",
        'return self._store.read("eigenvectors"',
        'return -self._store.read("eigenvectors"',
        WITH_BASIS - {"spectrum"},
    ),
    "a default of a figure": ("figures/style.py", "DPI = ", "DPI = 2 * ", set()),
    "the word of an error": (
        "data/sets.py",
        "raise DataError(",
        'raise DataError("Oh: " + ',
        set(),
    ),
    "a line of a job's log": (
        "measures/parts/compute.py",
        'job.log(f"The eigenvalues',
        'job.log(f"Now the eigenvalues',
        set(),
    ),
    "a docstring": ("measures/gradients/compute.py", "Sums over examples, for every direction", "Sums", set()),
    "the law of a cost": ("measures/gradients/declaration.py", "2 * count * size**2", "3 * count * size**2", set()),
    "the limits of memory": ("memory_limits.py", "import os", "import os\n\nCHANGED = 1", set()),
}


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return {name: closure(entries_of(measure), ROOT).hash for name, measure in MEASURES.items()}


def changed(root: Path, before: dict[str, str]) -> set[str]:
    now = {name: closure(entries_of(measure), root).hash for name, measure in MEASURES.items()}
    return {name for name in MEASURES if now[name] != before[name]}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "quadscape", tmp_path / "quadscape", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_measures_again_what_follows_from_it(package: Path, before: dict[str, str], change: str) -> None:
    file, old, new, expected = CHANGES[change]
    path = package / "quadscape" / file
    text = path.read_text()
    assert old in text, "the code has changed; so must this test"
    path.write_text(text.replace(old, new))
    assert changed(package, before) == expected


def test_a_moved_definition_measures_nothing_again(package: Path, before: dict[str, str]) -> None:
    source, target = package / "quadscape/measures/ranks.py", package / "quadscape/rank_order.py"
    text = source.read_text()
    node = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == "signed_ranks")
    lines = text.splitlines(keepends=True)
    moved = "".join(lines[node.lineno - 1 : node.end_lineno])
    imported = "import numpy as np\nfrom quadscape.rank_order import signed_ranks\n"
    source.write_text(text.replace(moved, "").replace("import numpy as np\n", imported, 1))
    target.write_text(f'"""Ranks."""\n\nimport numpy as np\n\n\n{moved}')
    assert changed(package, before) == set()


def test_a_script_of_the_workflow_decides_nothing() -> None:
    """Numbers and options come from parameters: a script neither calculates nor reads the experiment's measures."""
    for path in sorted((ROOT / "workflow_scripts").glob("*.py")):
        tree = ast.parse(path.read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.BinOp | ast.AugAssign | ast.Lambda)], path
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not {"measures", "probes"} & names, path


def test_the_code_of_a_figure_draws_it_again(package: Path) -> None:
    def hashes(root: Path) -> dict[str, str]:
        return {name: closure([f"{spec.module}:draw"], root).hash for name, spec in FIGURES.items()}

    whole = hashes(ROOT)
    path = package / "quadscape/figures/spectrum.py"
    path.write_text(path.read_text().replace("low / 3, high * 3", "low / 3, high * 4"))
    assert {name for name, value in hashes(package).items() if value != whole[name]} == {"spectrum"}
    path = package / "quadscape/figures/style.py"
    path.write_text(path.read_text().replace('GREY, PALE = "#222222"', 'GREY, PALE = "#222223"'))
    assert len([name for name, value in hashes(package).items() if value != whole[name]]) > 3


def test_gpus_are_as_declared() -> None:
    rules = measure_rules(Targets(Problem.of(parse_experiment(TINY))))
    assert {rule.measure: rule.on_gpu for rule in rules} == {name: measure.gpu for name, measure in MEASURES.items()}
    assert len({rule.on_gpu for rule in rules}) == 2
    # The long stages that compute on the experiment's device.
    text = "".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    written = re.findall(r"^rule (\w+):(.*?)(?=^\S|\Z)", text, re.M | re.S)
    assert {name for name, rule in written if "gpu=gpus()" in rule} == {
        *("train", "extract_start"),
        *("compute_hessian_shard", "compute_hessian", "compute_eigenbasis", "compute_gauss_newton"),
    }
