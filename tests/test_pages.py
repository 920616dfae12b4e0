"""Interactive pages: self-contained, the same bytes again, true to the tables, and of degenerate ones."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from figure_cases import checkpoint_tables
from view_cases import path_tables

from quadscape.config.sections import Curvature
from quadscape.figures.pages import PAGES, PageSpec, Scene
from quadscape.figures.pages.document import page, save_page
from quadscape.measures import SCHEMAS
from quadscape.results.places import Places
from quadscape.tables import Table


@pytest.fixture(scope="module")
def tables() -> dict[str, list[Table]]:
    found: dict[str, list[Table]] = {name: [] for name in SCHEMAS}
    checkpoints = [checkpoint_tables(40, "r0", 100 * i, i / 2, directions=4) for i in range(2)]
    for dictionary in (*checkpoints, path_tables("r0"), path_tables("other", count=9)):
        for name, table in dictionary.items():
            found[name].append(table)
    return found


class Links(HTMLParser):
    """What a document would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]


def figure_of(text: str) -> tuple[list[dict], dict, dict]:
    """Traces, layout and configuration that a page gives to plotly."""
    given = text[text.index("Plotly.newPlot(") :]
    decoder, place, found = json.JSONDecoder(), given.index("["), []
    for _ in range(3):
        value, place = decoder.raw_decode(given, place)
        found.append(value)
        place = re.compile(r"[\s,]*").match(given, place).end()  # type: ignore[union-attr]
    return found[0], found[1], found[2]


@pytest.fixture(scope="module", params=PAGES)
def made(request, tables) -> tuple[PageSpec, list[Scene], str]:
    spec = PAGES[request.param]
    scenes = spec.scenes({name: tables[name] for name in spec.tables})
    return spec, scenes, page(spec, scenes)


def test_a_page_needs_nothing_else(made) -> None:
    _, _, text = made
    links = Links()
    links.feed(text)
    assert links.found == []
    assert links.tags.count("script") >= 2
    assert not {"link", "img", "iframe", "object"} & set(links.tags)
    assert "plotly.js v" in text[:3000]
    config = figure_of(text)[2]
    assert config["showSendToCloud"] is False
    assert "plot" not in str(config)  # nor any address of plotly's


def test_a_page_is_the_same_again(made, tables, tmp_path: Path) -> None:
    spec, _, text = made
    save_page(spec, spec.scenes({name: tables[name] for name in spec.tables}), tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == text


def test_the_list_shows_one_scene_each(made) -> None:
    _, scenes, text = made
    traces, layout, _ = figure_of(text)
    buttons = layout["updatemenus"][0]["buttons"]
    assert [button["label"] for button in buttons] == [scene.name for scene in scenes]
    shown = np.array([button["args"][0]["visible"] for button in buttons])
    assert (shown.sum(axis=0) == 1).all()  # each trace belongs to one scene
    assert shown[0].tolist() == [trace["visible"] for trace in traces]
    for button, row in zip(buttons, shown, strict=True):
        kinds = [trace["type"] for trace, on in zip(traces, row, strict=True) if on]
        assert kinds[0] == "surface"
        assert "scatter3d" in kinds
        assert button["args"][1]["scene.xaxis.title.text"]


def test_hovering_says_coordinates_and_loss(made) -> None:
    _, scenes, text = made
    traces = figure_of(text)[0]
    surfaces = [trace for trace in traces if trace["type"] == "surface"]
    assert len(surfaces) == len(scenes)
    for trace in surfaces:
        assert re.search(r"%\{x.*%\{y.*loss: %\{z", trace["hovertemplate"])
    marks = [trace["hovertemplate"] for trace in traces if trace.get("mode") == "markers"]
    assert all("loss" in text for text in marks)
    assert all(("iteration" in text) == (scenes[0].course is not None) for text in marks)


def test_a_path_lies_on_the_surface() -> None:
    first, second = np.linspace(-1, 1, 5), np.linspace(0, 2, 6)
    plane = 3 + 2 * first[:, None] + second[None, :]  # linear: interpolation is exact
    from quadscape.figures.pages.document import picture
    from quadscape.figures.pages.specification import Course

    course = Course(np.array([-0.9, 0.8]), np.array([0.1, 1.7]), np.array([0, 10]), np.array([0.0, 0.5]))
    figure = picture([Scene("run a", first, second, plane, ("x", "y"), course=course)])
    line, marks = figure.data[1], figure.data[2]
    lift = np.ptp(plane) * 0.006
    for trace in (line, marks):
        np.testing.assert_allclose(trace.z, 3 + 2 * trace.x + trace.y + lift, rtol=1e-12)
    assert len(line.x) > 4  # no step longer than one of the grid
    assert [line.x[0], line.x[-1]] == [-0.9, 0.8]
    np.testing.assert_array_equal(marks.customdata, [[0, 0], [10, 0.5]])


@pytest.mark.parametrize("name", PAGES)
def test_the_caption_in_the_report_links_to_the_file(name: str) -> None:
    docutils = pytest.importorskip("docutils.core", reason="docutils comes with Snakemake's reports")
    settings = {"halt_level": 2, "report_level": 5}
    html = docutils.publish_string(PAGES[name].report_caption, writer="html", settings_overrides=settings).decode()
    assert f'href="{Places("tiny", Curvature()).page(name).removeprefix("results/tiny/")}"' in html


@pytest.mark.parametrize("name", PAGES)
def test_nothing_to_show_is_said(name: str) -> None:
    spec = PAGES[name]
    text = page(spec, spec.scenes({table: [] for table in spec.tables}))
    assert "nothing to show" in text
    assert len(text) < 5000


@pytest.mark.parametrize("loss", [np.full((5, 5), 0.3), np.full((5, 5), np.nan), np.zeros((5, 5))])
def test_degenerate_losses(loss: np.ndarray) -> None:
    axis = np.linspace(-1, 1, 5)
    traces = figure_of(page(PAGES["surface"], [Scene("one", axis, axis, loss, ("a", "b"))]))[0]
    assert [trace["type"] for trace in traces] == ["surface", "scatter3d"]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_without_a_network_draws_it(made, tmp_path: Path) -> None:
    _, _, text = made
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=15000", "--dump-dom"]
    done = subprocess.run([*command, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120)
    assert "gl-container" in done.stdout
    assert "<canvas" in done.stdout
