import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from family_cases import compared_tables, descent_tables, escape_tables, layer_tables
from figure_cases import checkpoint_tables, pair_tables, run_tables
from matplotlib.figure import Figure
from stationary_cases import stationary_tables

from quadscape.figures import FIGURES, FigureSpec, save, style
from quadscape.measures import SCHEMAS
from quadscape.tables import Table

SIZE = 60


def gathered(dictionaries: Sequence[dict[str, Table]]) -> dict[str, list[Table]]:
    found: dict[str, list[Table]] = {name: [] for name in SCHEMAS}
    for tables in dictionaries:
        for name, table in tables.items():
            found[name].append(table)
    return found


def experiment(checkpoints: int, runs: int = 1, **options) -> dict[str, list[Table]]:
    pairs = list(itertools.combinations(range(checkpoints), 2))[:5]  # more than side by side, where there are so many
    return gathered(
        [run_tables(f"r{i}", 300, (150,)) for i in range(runs)]
        + [checkpoint_tables(SIZE, "r0", 100 * i, i / 12, directions=12, **options) for i in range(checkpoints)]
        + [pair_tables(SIZE, "r0", a, b, 0.1, **options) for a, b in pairs]
        + family_tables(checkpoints)
    )


def family_tables(size: int) -> list[dict[str, Table]]:
    """Tables of families: with one, of one run each; with more than three, of several with many settings."""
    if size == 1:
        one = {"batches": ("B=50",), "seeds": 1}
        first = [descent_tables(("sgd",), **one), layer_tables(("tanh",), (5,), 1)]
        first.append(stationary_tables(("independent",), (16,), steady=False))
        return [*first, escape_tables(("full",), 1), compared_tables((2,), 1)]
    usual = [descent_tables(diverged=(4,)), layer_tables(diverged=(2,)), escape_tables(), compared_tables()]
    usual.append(stationary_tables())
    if size <= 3:
        return usual
    methods = ("sgd", "momentum", "rmsprop", "adam")
    many = descent_tables(methods, ("B=1", "B=50", "full"), (0.01, 0.1, 1.0), diverged=(4, 40, 41))
    nets = compared_tables((2, 3, 5, 8) * 5, 3, (0, 30, 31, 32))
    return [*usual, many, descent_tables(("adam",), seeds=2), layer_tables(depths=(8, 14, 22)), nets]


def shown(spec: FigureSpec) -> tuple[str, ...]:
    """Tables of a figure, those without which it is drawn too included."""
    return (*spec.tables, *spec.also)


@pytest.fixture(scope="module")
def usual() -> dict[str, list[Table]]:
    return experiment(3, runs=2)


@pytest.fixture(scope="module", params=FIGURES)
def drawn(request, usual, tmp_path_factory) -> tuple[FigureSpec, Figure, Path]:
    """A figure, laid out and saved, which takes most of the time."""
    spec = FIGURES[request.param]
    figure = spec.draw({table: usual[table] for table in shown(spec)})
    path = tmp_path_factory.mktemp(spec.name) / "first.svg"
    save(figure, path)
    return spec, figure, path


def test_a_figure_is_drawn_saved_and_the_same_again(drawn, usual, tmp_path) -> None:
    spec, figure, first = drawn
    save(spec.draw({table: usual[table] for table in shown(spec)}), tmp_path / "second.svg")
    save(figure, tmp_path / "first.png")
    assert first.read_bytes() == (tmp_path / "second.svg").read_bytes()
    assert (tmp_path / "first.png").stat().st_size > 10_000
    assert b"<dc:date>" not in first.read_bytes()
    assert figure.get_suptitle() == spec.title
    assert figure.legends


def test_every_panel_has_units_and_data(drawn) -> None:
    _, figure, _ = drawn
    panels = [axis for axis in figure.axes if axis.axison or axis.name == "3d"]
    for axis in panels:
        assert axis.has_data()
    assert any(axis.get_xlabel() for axis in panels)
    assert any(axis.get_ylabel() for axis in panels)


def test_labels_are_large_enough_and_inside(drawn) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    _, figure, _ = drawn
    with style.context():
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        whole = figure.bbox
        for text in figure.findobj(Text):
            if not text.get_text().strip() or not text.get_visible() or text.get_fontsize() == 0:
                continue
            assert text.get_fontsize() >= 8.5, text.get_text()
        for axis in figure.axes:
            for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
                shown = [label for label in labels if label.get_text() and label.get_visible() and axis.axison]
                boxes = [label.get_window_extent() for label in shown if _in_view(axis, label)]
                for first, second in itertools.pairwise(sorted(boxes, key=lambda box: (box.x0, box.y0))):
                    assert not first.overlaps(second), [label.get_text() for label in shown]
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert box.x0 >= whole.x0
            assert box.x1 <= whole.x1


def _in_view(axis, label) -> bool:
    x, y = label.get_position()
    view = axis.get_xlim() if label in axis.get_xticklabels() else axis.get_ylim()
    at = x if label in axis.get_xticklabels() else y
    return min(view) <= at <= max(view)


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_to_show_is_said(name: str, tmp_path) -> None:
    spec = FIGURES[name]
    save(spec.draw({table: [] for table in spec.tables}), tmp_path / "empty.svg")
    empty = {
        table: [Table(SCHEMAS[table], {c: np.empty(0, dtype=_dtype(k)) for c, k in _columns(table)}, HEAD)]
        for table in spec.tables
    }
    save(spec.draw(empty), tmp_path / "empty.png")


HEAD = {"run": "a", "iteration": 0, "P": 4, "N": 4, "weight_decay": 0.0, "zero_threshold": 0.0}


def _columns(table: str) -> list[tuple[str, str]]:
    return [(name, column.kind) for name, column in SCHEMAS[table].all_columns().items()]


def _dtype(kind: str) -> str:
    return {"float": "float64", "int": "int64", "bool": "bool", "str": "U1"}[kind]


@pytest.mark.parametrize("checkpoints", [1, 5])
@pytest.mark.parametrize("name", FIGURES)
def test_other_numbers_of_checkpoints(name: str, checkpoints: int, tmp_path) -> None:
    tables = _cached(checkpoints)
    spec = FIGURES[name]
    save(spec.draw({table: tables[table] for table in shown(spec)}), tmp_path / "figure.png")


_CACHE: dict[int, dict[str, list[Table]]] = {}


def _cached(checkpoints: int) -> dict[str, list[Table]]:
    if checkpoints not in _CACHE:
        _CACHE[checkpoints] = experiment(checkpoints, negative=checkpoints != 1)
    return _CACHE[checkpoints]


@pytest.mark.parametrize("name", ["spectrum", "line_searches"])
def test_twelve_checkpoints(name: str, usual, tmp_path) -> None:
    spec = FIGURES[name]
    tables = {table: list(itertools.islice(itertools.cycle(usual[table]), 12)) for table in shown(spec)}
    save(spec.draw(tables), tmp_path / "figure.png")


@pytest.mark.parametrize("name", ["descent", "descent_noise", "tuning", "layer_gradients"])
def test_families_of_which_every_member_diverged(name: str, tmp_path) -> None:
    lost = [descent_tables(("sgd",), ("B=50",), seeds=2, diverged=(0, 1)), layer_tables(("tanh",), (8,), 1, (0,))]
    tables = gathered(lost)
    spec = FIGURES[name]
    save(spec.draw({table: tables[table] for table in shown(spec)}), tmp_path / "figure.png")


def test_reading_about_figures_loads_neither_matplotlib_nor_torch() -> None:
    code = "import sys; from quadscape.figures import FIGURES; print({'matplotlib', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_specifications_are_complete() -> None:
    for name, spec in FIGURES.items():
        assert spec.name == name
        assert spec.module == f"quadscape.figures.{name}"
        assert spec.title
        assert spec.category
        assert spec.labels
        assert len(spec.caption) > 200
        assert set(shown(spec)) <= set(SCHEMAS)
        assert not set(spec.tables) & set(spec.also)


def test_captions_are_restructured_text() -> None:
    docutils = pytest.importorskip("docutils.core", reason="docutils comes with Snakemake's reports")
    for spec in FIGURES.values():
        docutils.publish_string(spec.caption, settings_overrides={"halt_level": 2, "report_level": 5})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (2.0, "2"), (-0.45, "−0.45"), (1234.0, "1,234"), (3.21e-5, r"$3.2\times10^{-5}$"), (17.2, "17")],
)
def test_numbers_in_titles(value: float, text: str) -> None:
    assert style.power(value) == text
