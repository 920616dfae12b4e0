"""What was drawn, or measured, from other tables than it would be now; results are written by hand."""

import json
from pathlib import Path

import pytest

from quadscape.measures.made import is_made_from, record_path, write_record
from quadscape.measures.result import input_digest
from quadscape.planning.outdated import outdated
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from results import small_experiment


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def targets(**overlap: int) -> Targets:
    return Targets(Problem.of(small_experiment(measures={"overlap": overlap} if overlap else {})))


def write(manifest: str | Path, tables: str = "1", inputs: dict[str, list[str]] | None = None) -> None:
    """A result whose tables have some digest."""
    path = Path(manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"tables": {"one": tables}, "inputs": inputs or {}}))


def draw(of: Targets, name: str = "eigenvector_overlap") -> str:
    """A figure, drawn from what it would be drawn from."""
    svg = Path(of.places.figure(name, "svg"))
    svg.parent.mkdir(parents=True, exist_ok=True)
    svg.write_text("<svg/>")
    write_record([svg], of.figure_inputs(name))
    return str(svg)


def results_of(of: Targets, name: str = "eigenvector_overlap") -> list[str]:
    return [path for paths in of.figure_inputs(name).values() for path in paths]


def test_other_options_are_noticed_below_a_figure_that_exists() -> None:
    before, now = targets(bands=8), targets(bands=7)
    assert outdated(before) == []
    for path in results_of(before):
        write(path)
    figure = draw(before)
    assert outdated(before) == []
    assert outdated(now) == [figure]
    for path in results_of(now):
        write(path, tables="2")
    assert outdated(now) == [figure]
    draw(now)
    assert outdated(now) == []
    # Set back: those tables are there, and older.
    assert outdated(before) == [figure]


def test_tables_with_other_numbers_are_noticed() -> None:
    now = targets()
    for path in results_of(now):
        write(path)
    figure = draw(now)
    write(results_of(now)[0], tables="2")
    assert outdated(now) == [figure]
    Path(results_of(now)[0]).write_text("no JSON")
    assert outdated(now) == [figure]


def test_a_table_that_somebody_removed_is_no_reason() -> None:
    now = targets()
    for path in results_of(now):
        write(path)
    draw(now)
    Path(results_of(now)[0]).unlink()
    assert outdated(now) == []


def test_records_of_before_name_digests_alone() -> None:
    now = targets()
    paths = results_of(now)
    for path in paths:
        write(path)
    figure = draw(now)
    record = record_path(figure)
    document = json.loads(record.read_text())
    document["inputs"] = {name: list(made.values()) for name, made in document["inputs"].items()}
    record.write_text(json.dumps(document))
    assert outdated(now) == []
    assert outdated(targets(bands=7)) == [figure]
    Path(paths[0]).unlink()
    assert outdated(now) == [figure], "nobody can tell whether another one is asked for"
    record.unlink()
    assert outdated(now) == []


def test_a_copied_folder_of_results_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = targets()
    for path in results_of(now):
        write(path)
    draw(now)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results").rename(tmp_path / "elsewhere/results")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert outdated(now) == []
    assert is_made_from(now.places.figure("eigenvector_overlap", "svg"), now.figure_inputs("eigenvector_overlap"))


def test_tables_that_were_measured_from_others_are_noticed() -> None:
    now = targets()
    path, key = now.result("posterior", "a", "40"), now.result("evolution", "a", "40")
    write(key)

    write(path, inputs={"evolution": [input_digest(key)]})
    assert outdated(now) == []
    write(key, tables="2")
    assert outdated(now) == [path]
    Path(key).unlink()
    assert outdated(now) == []
