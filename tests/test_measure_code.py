"""Every measure's code against its label: the tables of a finished experiment are computed again and compared.

The reference of the label "1" of measures that existed then are the tables that 21e0d71 made; those of any other label
lie in tests/data/measures, written by `python tests/test_measure_code.py`.
"""

import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tracing import executed

from quadscape.config import load_experiment
from quadscape.measures import MEASURES
from quadscape.measures.code import locked, measure_closure, measure_label, problems
from quadscape.measures.declaration import effective_options
from quadscape.measures.earlier import earlier_tables
from quadscape.measures.job import Job
from quadscape.numerics import apply_numerics
from quadscape.store import read_store
from quadscape.tables import Table, read_table
from quadscape.targets import Targets
from quadscape.workflow import Problem

DATA = Path(__file__).resolve().with_name("data")
REFERENCES = DATA / "measures"
KEYS = {"run": "run", "checkpoint": "40", "checkpoint_pair": "0-40"}
RUN = "a"
# What pydantic calls from annotations, which are not followed.
CALLED_BY_OTHERS = {"quadscape.config"}


class Reference:
    """A small finished experiment, made at 21e0d71, in float64 and with everything that measures read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with tarfile.open(DATA / "measures-21e0d71.tar.xz") as archive:
            archive.extractall(path, filter="data")

    def prepared(self, name: str) -> Callable[[], dict[str, Table]]:
        """What a job calls once all is set up."""
        measure, key = MEASURES[name], KEYS[MEASURES[name].of]
        targets = Targets(Problem.of(load_experiment("reference.yaml")))
        iterations = [] if key == "run" else [int(part) for part in key.split("-")]
        inputs = targets.inputs(measure, RUN, key)
        job = Job(RUN, iterations, targets.options(name, RUN), inputs, device="cpu", log=lambda _: None)
        module = import_module(measure.module)
        apply_numerics(1)
        return lambda: module.compute(job)

    def tables(self, name: str) -> dict[str, Table]:
        """As the present code computes them."""
        return self.prepared(name)()

    def expected(self, name: str, label: str) -> dict[str, Table]:
        """As they were when the label was given."""
        measure, earlier = MEASURES[name], earlier_of(name, label)
        if not earlier:
            return {
                table: read_table(REFERENCES / f"{name}-{label}" / f"{table}.parquet", schema)
                for table, schema in measure.schemas.items()
            }
        found = {}
        for table, path in earlier.items():
            arrays, attributes = read_store(path)
            found[table] = Table(measure.schemas[table], arrays, attributes["table_attributes"])
        if name == "curves":
            found["evaluations"] = found["evaluations"].where(found["evaluations"]["split"] != "test")
        return found


def earlier_of(name: str, label: str) -> dict[str, Path]:
    """The tables of the archive, as far as they are of this label."""
    measure = MEASURES[name]
    return earlier_tables("results/reference", measure, RUN, KEYS[measure.of]) if label == "1" else {}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    made = Reference(tmp_path_factory.mktemp("reference"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.path)
        yield made


def differences(found: dict[str, Table], expected: dict[str, Table]) -> list[str]:
    """Columns that differ by more than rounding, by table."""
    differing = []
    for name, table in found.items():
        for column, values in table.columns.items():
            other = expected[name].columns[column]
            if values.shape != other.shape:
                differing.append(f"{name}.{column} has another length")
            elif values.dtype.kind != "f":
                differing += [] if np.array_equal(values, other) else [f"{name}.{column}"]
            else:
                finite = np.abs(other[np.isfinite(other)])
                scale = float(finite.max()) if len(finite) else 0.0
                close = np.isclose(values, other, rtol=1e-4, atol=1e-7 * scale, equal_nan=True)
                differing += [] if close.all() else [f"{name}.{column}"]
    return differing


@pytest.mark.parametrize("name", MEASURES)
def test_the_label_says_what_the_code_computes(reference: Reference, name: str) -> None:
    label = locked().get(name, {}).get("label", "1")
    differing = differences(reference.tables(name), reference.expected(name, label))
    command = "python -m quadscape.measures.code --lock"
    if differing:
        pytest.fail(f"the tables differ ({', '.join(differing)}): a new label, `{command} {name}=LABEL`")
    assert measure_label(name) == label, f"the tables are equal: re-lock under the old label, `{command}`"


@pytest.mark.parametrize("name", MEASURES)
def test_a_new_label_has_other_tables_than_the_one_before(reference: Reference, name: str) -> None:
    label = locked()[name]["label"]
    if label == "1":
        pytest.skip("the first label")
    before = str(int(label) - 1)
    assert differences(reference.tables(name), reference.expected(name, before)), "the old label would do"


def test_everything_is_locked() -> None:
    assert problems() == []


@pytest.mark.parametrize("name", MEASURES)
def test_everything_that_runs_can_be_reached(reference: Reference, name: str) -> None:
    missed = executed(reference.prepared(name)) - measure_closure(name).definitions
    assert {place for place in missed if place.split(":")[0] not in CALLED_BY_OTHERS} == set()


@settings(max_examples=20, deadline=None)
@given(size=st.integers(2, 10**6), data=st.data())
def test_effective_options_are_within_the_network(size: int, data: st.DataObject) -> None:
    measure = MEASURES[data.draw(st.sampled_from(sorted(MEASURES)))]
    options = effective_options(measure, {"dtype": "float64"}, size)
    assert options.keys() >= {option.name for option in measure.options}
    for option in measure.options:
        assert not option.parameters_at_most or options[option.name] <= size


def write_references() -> None:
    """Writes the reference of every label that has none."""
    with tempfile.TemporaryDirectory() as folder:
        made = Reference(Path(folder))
        os.chdir(folder)
        for name in MEASURES:
            label = locked()[name]["label"]
            directory = REFERENCES / f"{name}-{label}"
            if not earlier_of(name, label) and not directory.exists():
                for table, content in made.tables(name).items():
                    content.write(directory / f"{table}.parquet")
                print(directory.name)


if __name__ == "__main__":
    write_references()
