"""Every measure's code against its label: the tables of a finished experiment are computed again and compared.

The reference of the label "1" of measures that existed then are the tables that 21e0d71 made; those of any other label
lie in tests/data/measures, written by `python tests/test_measure_code.py`.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_cases import family, family_job, scores_of, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from tracing import executed

from quadscape.config.sections import Data, Subset
from quadscape.data.sets import prepare
from quadscape.data.subsets import write_subset
from quadscape.errors import StoreError
from quadscape.measures import MEASURES, SCHEMAS
from quadscape.measures.declaration import GROUPS, effective_options
from quadscape.measures.earlier import earlier_tables
from quadscape.measures.family import Family
from quadscape.measures.job import Job
from quadscape.measures.line_search.losses import SplitLosses
from quadscape.measures.members import columns_of
from quadscape.measures.result import table_path
from quadscape.network.checkpoint import Checkpoint
from quadscape.numerics import apply_numerics
from quadscape.planning.experiment_file import load_experiment
from quadscape.planning.labels import locked, measure_closure, measure_label, problems
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from quadscape.results.places import Places
from quadscape.store import read_store
from quadscape.tables import Table, read_table
from quadscape.training.trajectory import Trajectory
from tests.checkouts import unpack

DATA = Path(__file__).resolve().with_name("data")
REFERENCES = DATA / "measures"
KEYS = {"run": "run", "checkpoint": "40", "checkpoint_pair": "0-40", "family": "family", "run_pair": "pair"}
RUN = "a"
ROUNDED = 5
METHODS = ("sgd", "adam")
SAMPLINGS = ("reshuffled", "independent")
DEEP = {"factory": "mlp", "hidden": [5, 5, 5, 5], "activation": "tanh"}
WELLS = {"factory": "quadscape.network.planted:multi_well", "arguments": {"dimensions": 2, "noise": 15.0}}
LOSSES = ("cross_entropy", "squared_error")
TIMES = "s"
"""Unit of what is measured by a clock, which no code computes again."""
DENSE = {"embedding", "sharpness"}
"""Measures of runs that need more iterates than the archive kept: of the first run of the family."""
SUMMARY = "interpolation_summary"
FLOATS = ("bump", "foot", "top", "barrier", "barrier_at", "start", "end", "floor")
CHAOTIC = (("method", "umap"), ("precision", "float32"))
"""Columns and values of rows that another processor's last bits change as another seed would."""
KEEPING = {"finite_batch"}
"""Measures that read what others keep beside their tables."""
SHORTER = {"fractal": {"windows": 2, "points": 129, "examples": 24}}
"""Options of measures that would take minutes by default."""
# What pydantic calls from annotations, which are not followed.
CALLED_BY_OTHERS = {"quadscape.config.values", "quadscape.config.sections"}
# The code of networks is in the parameters of trainings, and so among what a measure reads.
CALLED_BY_OTHERS |= {"quadscape.network.planted"}


class Reference:
    """A small finished experiment, made at 21e0d71, in float64 and with everything that measures read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        unpack(DATA / "measures-21e0d71.tar.xz", path)

    def prepared(self, name: str) -> Callable[[], dict[str, Table]]:
        """What a job calls once all is set up."""
        measure = MEASURES[name]
        job = self.family_job(name) if measure.of in GROUPS else self.job(name)
        module = import_module(measure.module)
        apply_numerics(1)
        return lambda: module.compute(job)

    def job(self, name: str) -> Job:
        """The job of a measure of a run or checkpoints."""
        measure, key = MEASURES[name], KEYS[MEASURES[name].of]
        if name in DENSE:
            of_family = self.family_job(name)
            inputs = {stage: of_family.inputs[stage][:1] for stage in measure.reads}
            options = vars(of_family.options) | {"iterates": 30}
            return Job(RUN, [], options, inputs, device="cpu", log=lambda _: None)
        targets = Targets(Problem.of(load_experiment("reference.yaml")))
        iterations = [] if key == "run" else [int(part) for part in key.split("-")]
        inputs = targets.inputs(measure, RUN, key) | (on_subsets() if measure.reads_subsets else {})
        for read in MEASURES.keys() & set(measure.reads):
            # What it reads of another measure: as that was when its label was given.
            for table, content in self.expected(read, locked()[read]["label"]).items():
                for manifest in inputs[read]:  # of a pair those of both checkpoints, which here are one
                    content.write(table_path(manifest, table))
        options = targets.options(name, RUN) | SHORTER.get(name, {})
        job = Job(RUN, iterations, options, inputs, device="cpu", log=lambda _: None)
        if name in KEEPING:
            planted = planted_examples(job)
            job.kept_values = lambda *_: planted  # type: ignore[method-assign,assignment,return-value]
        return job

    def started_job(self, name: str) -> Job:
        """That of a measure of families whose members start at one checkpoint: as if at the archive's."""
        experiment = load_experiment("reference.yaml")
        places, made = Places(experiment.name, experiment.curvature), family({"sampling": SAMPLINGS, "seed": ("0",)})
        given = Trajectory.open(places.trajectory(RUN)).stage.manifest["parameters"]
        rate = {"schedule": "constant", "value": 0.3}
        keys = {"learning_rate": rate, "batch_size": 16, "momentum": 0.0, "dtype": "float64", "iterations": 64}
        sections = [{"sampling": sampling, **keys} for sampling in SAMPLINGS]
        folder = self.path / "samplings"
        if not folder.exists():
            trained(folder, Path(places.data).parent, given["model"], sections, given["loss"])
        options = effective_options(MEASURES[name], {"dtype": "float64"}, 1)
        manifests = [folder / f"r{place}/manifest.json" for place in range(len(SAMPLINGS))]
        job = family_job(replace(made, start=(RUN, 40)), Path(places.data), manifests, **options)
        start = {"start_checkpoint": places.checkpoint(RUN, 40), "start_eigenbasis": places.eigenbasis(RUN, 40)}
        job.inputs = {**job.inputs, **{stage: [path] for stage, path in start.items()}}
        return job

    def family_job(self, name: str) -> Job:
        """That of a measure of families, of which one is trained here: the archive is older than families."""
        if MEASURES[name].reads_start:
            return self.started_job(name)
        planted = name == "escape"
        folder, made = self.path / ("wells" if planted else "family"), family({"method": METHODS, "seed": ("0", "1")})
        if not folder.exists():
            prepare(Data(source="digits", held_out=0.8), 0, folder / "data.zarr")
            rate = {"schedule": "constant", "value": 0.05}
            # Few steps: what one processor rounds otherwise than another grows, after 400 steps to all there is.
            keys = {"learning_rate": rate, "trajectory": {"stride": 1}, "weight_decay": 0.0, "dtype": "float64"}
            keys |= {"iterations": 40, "evaluate_every": 4}
            sections = [
                {"optimizer": {"method": member.labels["method"]}, "seed": int(member.labels["seed"]), **keys}
                for member in made.members
            ]
            trained(folder, folder / "data.zarr", WELLS if planted else DEEP, sections, LOSSES[planted])
        if MEASURES[name].of == "run_pair":
            made = replace(made, members=made.members[:2])
        manifests = [folder / f"r{place}/manifest.json" for place in range(len(made.members))]
        options = effective_options(MEASURES[name], {"dtype": "float64"}, 1)
        job = family_job(made, folder / "data.zarr", manifests, **options)
        if name == "ruggedness_compared":
            job.inputs = {**job.inputs, **planted_scores(folder, made)}
        return job

    def tables(self, name: str) -> dict[str, Table]:
        """As the present code computes them."""
        return self.prepared(name)()

    def rounded(self, name: str) -> list[dict[str, Table]]:
        """The same at parameters that are off by their last bits: what rounds otherwise on another processor."""
        made, found = Checkpoint.of, []
        # A whole run is read without checkpoints: there is nothing to round otherwise.
        for seed in range(ROUNDED if "checkpoint" in MEASURES[name].of else 1):
            signs = np.random.default_rng(seed).choice([-1.0, 1.0], 100_000)

            def nearby(*given: Any, signs: np.ndarray = signs) -> Checkpoint:
                checkpoint = made(*given)
                off = checkpoint.theta * (1 + np.finfo(float).eps * signs[: len(checkpoint.theta)])
                return replace(checkpoint, theta=off)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Checkpoint, "of", nearby)
                # Float32 rounds all of these θ alike: what another processor makes of it is put in where it decides.
                patch.setattr(SplitLosses, "short_floor", property(partial(_moved_floor, factor=4.0 ** (seed / 2 - 1))))
                found.append(self.tables(name))
        return found

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


_SHORT_FLOOR = SplitLosses.short_floor.func


def _moved_floor(losses: SplitLosses, factor: float) -> float:
    return factor * _SHORT_FLOOR(losses)


def on_subsets() -> dict[str, list[str]]:
    """Eigenbases of the archive, which is older than subsets, as if they were of halves and of another order.

    None is computed here: on another processor a Hessian has other last bits, and what is nearly null other vectors.
    """
    experiment = load_experiment("reference.yaml")
    places = Places(experiment.name, experiment.curvature)
    subsets = (Subset(name="a", half=0), Subset(name="b", half=1), Subset(name="c", shuffled=True, seed=1))
    for subset in subsets:
        write_subset(subset, Path(places.data).parent, Path(places.subset(subset.name)).parent)
    bases = [places.eigenbasis(RUN, iteration) for iteration in (0, 40, 0)]
    return {"subset_data": [places.subset(subset.name) for subset in subsets], "subset_eigenbasis": bases}


def planted_examples(job: Job) -> np.ndarray:
    """Lines of single examples, made up around those of all: the archive is older than what line searches keep."""
    lines, fits = (job.table("line_search", SCHEMAS[table]) for table in ("line_search", "line_fit"))
    generator = np.random.default_rng(3)
    slopes, bends = generator.standard_normal((2, len(fits), int(fits.attributes["N"])))
    found = []
    for place, index in enumerate(fits["index"]):
        own = lines.where((lines["index"] == index) & (lines["split"] == "train"))
        t = own["t"][:, None] / own["t"].max()
        spread = np.abs(own["difference"]).max() * (t * slopes[place] + 0.5 * t**2 * bends[place])
        found.append(own["difference"][:, None] + spread)
    return np.array(found, dtype=np.float32)


def planted_scores(folder: Path, made: Family) -> dict[str, list[Path]]:
    """Tables of other measures that one of a family reads: made up, since each would take a Hessian."""
    found: dict[str, list[Path]] = {"ruggedness": [], "interpolation": []}
    for place, member in enumerate(made.members):
        scores = {"trace_over_norm": 1.0 + place % 5, "largest": 2.0**place, "cosine": np.nan}
        row = {"split": "train", "monotone": False, **dict.fromkeys(FLOATS, 0.1 * place)}
        summary = columns_of([row], SCHEMAS[SUMMARY].all_columns())
        tables = {"ruggedness": scores_of(member.run, 0, **scores), SUMMARY: Table(SCHEMAS[SUMMARY], summary, {})}
        for measure, (table, content) in zip(found, tables.items(), strict=True):
            manifest = folder / f"{measure}-{place}/manifest-x.json"
            manifest.parent.mkdir(exist_ok=True)
            content.write(table_path(manifest, table))
            found[measure].append(manifest)
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


def differences(found: dict[str, Table], expected: dict[str, Table], rounded: list[dict[str, Table]]) -> list[str]:
    """Columns that differ by more than rounding, by table: by more than the last bits of the parameters move them."""
    differing = []
    found, expected, *rounded = (_settled(tables) for tables in (found, expected, *rounded))
    for name, table in found.items():
        timed = {column for column, declared in table.schema.all_columns().items() if declared.unit == TIMES}
        for column, values in ((column, table.columns[column]) for column in table.columns if column not in timed):
            other, beside = expected[name].columns[column], [one[name].columns[column] for one in rounded]
            if values.shape != other.shape:
                differing.append(f"{name}.{column} has another length")
            elif not (_close(values, other) | _within(values, other, beside)).all():
                differing.append(f"{name}.{column}")
    return differing


def _settled(tables: dict[str, Table]) -> dict[str, Table]:
    """Without the rows whose numbers are only the same on one machine."""
    for column, value in CHAOTIC:
        tables = {
            name: table.where(table[column] != value) if column in table.columns else table
            for name, table in tables.items()
        }
    return tables


def _close(values: np.ndarray, other: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "f":
        return values == other
    finite = np.abs(other[np.isfinite(other)])
    scale = float(finite.max()) if len(finite) else 0.0
    return np.isclose(values, other, rtol=1e-4, atol=1e-7 * scale, equal_nan=True)


def _within(values: np.ndarray, other: np.ndarray, beside: list[np.ndarray]) -> np.ndarray:
    """Where a number is no further off than rounding takes it, or comes and goes with the last bit."""
    if values.dtype.kind != "f":
        return np.any([one != beside[0] for one in beside], axis=0)
    missing = np.isnan(beside)
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        near = np.abs(values - other) <= 30 * np.ptp(beside, axis=0)
    return near | (missing.any(axis=0) & ~missing.all(axis=0))


@pytest.mark.parametrize("name", MEASURES)
def test_the_label_says_what_the_code_computes(reference: Reference, name: str) -> None:
    label = locked().get(name, {}).get("label", "1")
    found, rounded = reference.tables(name), reference.rounded(name)
    differing = differences(found, reference.expected(name, label), rounded)
    command = "python -m quadscape.planning.labels --lock"
    if differing:
        pytest.fail(f"the tables differ ({', '.join(differing)}): a new label, `{command} {name}=LABEL`")
    assert measure_label(name) == label, f"the tables are equal: re-lock under the old label, `{command}`"
    # Rounding must not excuse everything: one part in a thousand more is seen in most columns.
    other = {key: _scaled(table) for key, table in found.items()}
    numbers = sum(values.dtype.kind == "f" for table in found.values() for values in table.columns.values())
    assert len(differences(other, found, rounded)) > numbers / 2


def _scaled(table: Table) -> Table:
    columns = {name: values * 1.001 if values.dtype.kind == "f" else values for name, values in table.columns.items()}
    return replace(table, columns=columns)


@pytest.mark.parametrize("name", MEASURES)
def test_a_new_label_has_other_tables_than_the_one_before(reference: Reference, name: str) -> None:
    label = locked()[name]["label"]
    if label == "1":
        pytest.skip("the first label")
    try:
        before = reference.expected(name, str(int(label) - 1))
    except (StoreError, ValueError):  # tables with other columns are other tables
        return
    assert differences(reference.tables(name), before, reference.rounded(name)), "the old label would do"


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
