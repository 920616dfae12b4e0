"""What a measure keeps beside its tables: once, checked, purged without them, and made again when it is missing."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from quadscape.cli import main
from quadscape.errors import StoreError
from quadscape.measures import MEASURES, items
from quadscape.measures.batches import draw
from quadscape.measures.declaration import Sizes
from quadscape.measures.finite_batch.compute import of_batches
from quadscape.measures.job import Job, KeptValues
from quadscape.measures.line_search.declaration import EXAMPLES, LINES
from quadscape.measures.result import items_directory, read_result, table_path
from quadscape.measures.run import run_measure
from quadscape.planning.estimate import estimate_experiment
from quadscape.planning.labels import measure_label
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from quadscape.results.purge import find_removable, purge
from quadscape.results.repair import find_damaged, give_up
from quadscape.results.verify import verify_results
from quadscape.stage.superseded import is_superseded
from quadscape.tables import read_table
from results import small_experiment

DIRECTIONS, POINTS = 4, 9
EXPERIMENT = small_experiment(measures={"line_search": {"directions": DIRECTIONS, "points": POINTS}})


def measured(root: Path, key: str = "40") -> tuple[Path, list[str]]:
    """Runs the job of one line search; its manifest and log."""
    targets, log = Targets(Problem.of(EXPERIMENT)), []
    measure, options = MEASURES["line_search"], targets.options("line_search", "a")
    inputs = {part: [root / path for path in paths] for part, paths in targets.inputs(measure, "a", key).items()}
    manifest = root / targets.result("line_search", "a", key)
    job = Job("a", [int(key)], options, inputs, device="cpu", log=log.append)
    run_measure(measure, measure_label("line_search"), job, options, manifest)
    return manifest, log


def reading(manifest: Path) -> KeptValues:
    """As the job of a measure that reads line searches does."""
    return Job("a", [40], {}, {"line_search": [manifest]}).kept_values("line_search", EXAMPLES)


@pytest.fixture(scope="module")
def finished(made_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(made_results, tmp_path_factory.mktemp("kept") / "root"))
    shutil.rmtree(root / "results/small/tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "UNIT_SECONDS", 0.0)  # a unit for each line
        measured(root)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "root"))


def manifest_in(root: Path) -> Path:
    (found,) = (root / "results/small/tables/line_search/a/40").glob("manifest-*.json")
    return found


def content(folder: Path) -> dict[str, bytes]:
    """All files that do not say when, or in which order, their parts were made."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "events.jsonl" and "lock" not in path.parts
    }
    ordered = {name: b"\n".join(sorted(text.split(b"\n"))) for name, text in found.items() if name.endswith("journal")}
    return found | ordered


def problems(root: Path) -> dict[str, str]:
    return {path.name: text for path, text in verify_results(root / "results/small/tables/line_search") if text}


def test_they_are_sliced_and_their_mean_is_what_the_table_says(root: Path) -> None:
    manifest = manifest_in(root)
    kept, table = reading(manifest), read_table(table_path(manifest, "line_search"), LINES)
    own = table.where(table["split"] == "train")
    count = table.attributes["N"]
    assert (kept.shape, kept.dtype, len(kept)) == ((DIRECTIONS, POINTS, count), np.float32, DIRECTIONS)
    every = np.stack([kept[line] for line in range(DIRECTIONS)])
    np.testing.assert_array_equal(kept[1:3, :, :5], every[1:3, :, :5])
    assert (every[:, POINTS // 2] == 0).all()
    difference = own["difference"].reshape(DIRECTIONS, POINTS)
    rounded = np.finfo(np.float32).eps / 2 * np.abs(every).mean(axis=-1, dtype=np.float64)
    assert (np.abs(every.mean(axis=-1, dtype=np.float64) - difference) <= rounded).all()
    assert np.abs(difference).max() > 1e-3
    # Half the width of the interval, from the same numbers.
    error = 1.96 * every.std(axis=-1, ddof=1, dtype=np.float64) / np.sqrt(count)
    width = (own["difference_high"] - own["difference_low"]).reshape(DIRECTIONS, POINTS) / 2
    np.testing.assert_allclose(width, error, rtol=1e-5, atol=1e-12)


def test_they_take_few_files_and_the_disk_that_is_estimated(root: Path) -> None:
    directory = items_directory(manifest_in(root))
    inodes = sum(1 for _ in (directory / "store.zarr").rglob("*"))
    assert inodes <= 5 * DIRECTIONS + 7
    files = [path for path in (directory / "store.zarr" / EXAMPLES).rglob("*") if path.name != "zarr.json"]
    size = sum(path.stat().st_size for path in files if path.is_file())
    found = estimate_experiment(Problem.of(EXPERIMENT), ["cuda"])[0]
    (need,) = [need for need in found.needs if need.stage == "measure_line_search"]
    assert need.disk_bytes == pytest.approx(1e5 + size, rel=0.01)
    full = Sizes(104_234, 50_000, 5_000, 5_000, 10, 8 * 3072, 4)
    options = {option.name: option.default for option in MEASURES["line_search"].options}
    assert MEASURES["line_search"].cost(full, options).kept_bytes == pytest.approx(0.6e9, rel=0.03)


def test_nothing_is_measured_while_they_are_there_and_all_is_made_again_when_they_are_not(root: Path) -> None:
    manifest = manifest_in(root)
    before = content(manifest.parent)
    manifest.unlink()
    _, log = measured(root)
    assert any("nothing is measured" in line for line in log)
    assert content(manifest.parent) == before

    shutil.rmtree(items_directory(manifest))
    assert "has not beside it what its measure keeps" in problems(root)[manifest.name]
    with pytest.raises(StoreError, match=r"cannot be read .*; remove .*manifest-.*json and run the workflow again"):
        reading(manifest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "UNIT_SECONDS", 0.0)
        _, log = measured(root)
    assert any(f"{DIRECTIONS} of {DIRECTIONS} units to compute" in line for line in log)
    assert content(manifest.parent) == before


def test_tables_that_are_lost_are_made_again_from_what_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifest_in(root)
    before = content(manifest.parent)
    table_path(manifest, "line_fit").unlink()
    monkeypatch.setattr("quadscape.measures.line_search.compute.Work.measure", None)
    measured(root)
    assert content(manifest.parent) == before


def test_a_lost_or_damaged_unit_alone_is_measured_again(root: Path) -> None:
    manifest = manifest_in(root)
    before = content(manifest.parent)
    chunk = items_directory(manifest) / f"store.zarr/{EXAMPLES}/c/2/0/0"
    chunk.unlink()
    assert "missing or damaged" in problems(root)[items_directory(manifest).name]
    with pytest.raises(StoreError, match="run the workflow again"):
        reading(manifest)
    _, log = measured(root)
    assert any(f"1 of {DIRECTIONS} units to compute" in line for line in log)
    assert content(manifest.parent) == before

    damaged = bytearray(chunk.read_bytes())
    damaged[40] ^= 1
    chunk.write_bytes(damaged)
    kept = reading(manifest)
    assert kept[1].shape == (POINTS, kept.shape[2])
    with pytest.raises(StoreError, match="damaged"):
        kept[2]
    assert list(problems(root)) == [items_directory(manifest).name]


def test_purge_frees_them_alone_and_they_can_be_made_again(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_in(root)
    before, directory = content(manifest.parent), items_directory(manifest)
    (found,) = [item for item in find_removable(root) if item.directory == directory]
    assert found.kept_for == "needed by 3 unfinished measures: line_forms, independence, finite_batch"
    for reader in ("line_forms", "independence", "finite_batch"):
        read = root / f"results/small/tables/{reader}/a/40/manifest-00000000.json"
        read.parent.mkdir(parents=True)
        read.write_text("{}")
    (found,) = [item for item in find_removable(root) if item.directory == directory]
    assert not found.kept_for
    assert found.size_bytes == pytest.approx(4 * np.prod(reading(manifest).shape), rel=0.01)
    assert main(["purge", str(root / "results/small/tables/line_search")]) == 0
    assert f"{EXAMPLES}, of single examples; its tables stay" in capsys.readouterr().out
    assert content(manifest.parent) == before

    purge(found, lambda _: None)
    assert not [item for item in find_removable(root) if item.directory == directory]
    left = content(manifest.parent)
    gone = {name for name in before if name not in left}
    assert {name for name in gone if not name.endswith("manifest.json")} == {
        f"{directory.name}/store.zarr/{EXAMPLES}/c/{line}/0/0" for line in range(DIRECTIONS)
    }
    assert {name: left[name] for name in before if name in left} == {n: before[n] for n in before if n in left}
    assert problems(root) == {}
    with pytest.raises(StoreError, match=rf"{EXAMPLES} of .* purged on .*; remove .* and run the workflow again"):
        reading(manifest)
    _, log = measured(root)
    assert not any("nothing is measured" in line for line in log)
    assert content(manifest.parent) == before


def test_while_they_are_made_nothing_is_purged(root: Path) -> None:
    manifest = manifest_in(root)
    manifest.unlink()
    (found,) = [item for item in find_removable(root) if item.stage == "measure"]
    assert found.kept_for == "its tables are not written yet"
    (items_directory(manifest) / "manifest.json").unlink()
    (found,) = [item for item in find_removable(root) if item.stage == "measure"]
    assert found.kept_for == "it is not finished"


def test_they_are_given_up_with_their_tables_in_one_call(root: Path) -> None:
    manifest = manifest_in(root)
    chunk = next(path for path in (items_directory(manifest) / "store.zarr").rglob("c/*/*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    for found in find_damaged(root):
        give_up(found)
    assert not manifest.exists()
    assert not (items_directory(manifest) / "manifest.json").exists()
    assert [*find_damaged(root)] == []


def test_those_of_another_basis_are_set_aside(root: Path) -> None:
    manifest = manifest_in(root)
    before = read_result(manifest)["origin"]
    checkpoints = root / "results/small/runs/a/checkpoints"
    shutil.rmtree(checkpoints / "40/eigenbasis")
    shutil.copytree(checkpoints / "0/eigenbasis", checkpoints / "40/eigenbasis")
    old = reading(manifest)[:]
    measured(root)
    assert read_result(manifest)["origin"] != before
    assert not np.array_equal(reading(manifest)[:], old)
    (aside,) = [item for item in find_removable(root) if is_superseded(item.directory)]
    assert aside.directory.name.startswith(items_directory(manifest).name)
    assert "set aside when other parameters" in aside.superseded
    shutil.rmtree(items_directory(manifest))
    aside.directory.rename(items_directory(manifest))
    assert "of another origin" in problems(root)[manifest.name]
    with pytest.raises(StoreError, match="of another origin"):
        reading(manifest)


def test_lines_of_batches_are_what_these_batches_alone_give(finished: Path) -> None:
    """Resampled from what line searches keep, against losses evaluated on those examples."""
    targets, manifest = Targets(Problem.of(EXPERIMENT)), manifest_in(finished)
    inputs = {
        part: [finished / path for path in paths]
        for part, paths in targets.inputs(MEASURES["line_search"], "a", "40").items()
    }
    job = Job("a", [40], targets.options("line_search", "a"), inputs | {"line_search": [manifest]}, device="cpu")
    kept, lines = job.kept_values("line_search", EXAMPLES), job.table("line_search", LINES)
    objective, theta = job.objective("train"), job.checkpoint.theta
    batches = draw(objective.count, 7, 5, (0,))
    for place, index in enumerate(np.unique(lines["index"]).tolist()):
        t = np.sort(lines["t"][(lines["index"] == index) & (lines["split"] == "train")])
        direction = np.asarray(job.basis.vectors(index, index + 1), dtype=np.float64)[:, 0]
        direction /= np.linalg.norm(direction)
        resampled = of_batches(np.asarray(kept[place], dtype=np.float64), batches)
        for number, batch in enumerate(batches):
            own = objective.over(objective.images[batch], objective.labels[batch])
            centre = np.asarray(own.example_losses(theta)).mean()
            fresh = [np.asarray(own.example_losses(theta + at * direction)).mean() - centre for at in t.tolist()]
            # Some points of a line are of float32: a few roundings of the loss.
            rounding = 4 * float(np.finfo(np.float32).eps) * centre
            np.testing.assert_allclose(resampled[:, number], fresh, rtol=1e-6, atol=rounding)
