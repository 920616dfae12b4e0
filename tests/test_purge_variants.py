"""Purging on full disks, in folders of other users, beside jobs that wait: what it removes, keeps and says."""

import contextlib
import errno
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quadscape.cli import main
from quadscape.cluster import activity
from quadscape.cluster.heads import record_head
from quadscape.cluster.plans import record_plan
from quadscape.measures import MEASURES
from quadscape.refusals import in_words
from quadscape.results.purge import find_removable, purge, purge_checkpoint
from quadscape.results.sizes import Kept, keep_readers
from quadscape.stage.finished import load_purged, open_stage, verify_stage
from quadscape.stage.purging import array_bytes
from tests.users import ALICE, become, needs_root

CHECKPOINTS = "results/small/runs/a/checkpoints"
BASIS, GAUSS_NEWTON = f"{CHECKPOINTS}/40/eigenbasis", f"{CHECKPOINTS}/40/gauss_newton"
SHARD = f"{CHECKPOINTS}/40/hessian_shards/1-of-1"
FIRST = [f"{CHECKPOINTS}/0/eigenbasis", f"{CHECKPOINTS}/0/hessian_shards/1-of-1"]
LARGE = [*FIRST, BASIS, GAUSS_NEWTON, SHARD]
MATRICES = ["matrix", "eigenvectors"]
FORKED = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def finished(made_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("variants") / "root"
    results = shutil.copytree(made_results, root) / "results/small"
    for key in ("0", "40", "0-40"):
        for measure in MEASURES.values():
            if measure.of == ("checkpoint_pair" if "-" in key else "checkpoint"):
                touch(results / f"tables/{measure.name}/a/{key}/manifest-00000000.json")
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = Path(shutil.copytree(finished, tmp_path / "root"))
    monkeypatch.chdir(root)
    return root


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


def removable(root: Path) -> dict[str, str]:
    return {str(found.directory.relative_to(root)): found.kept_for for found in find_removable(root)}


def know_readers(root: Path, readers: dict[str, list[str]]) -> None:
    kept = Kept(root / "results/small/sizes.json")
    keep_readers(kept, ["a"], readers)
    kept.save()


def left(root: Path) -> set[str]:
    """Large stages that have their arrays."""
    return {name for name in LARGE if array_bytes(root / name, MATRICES)}


# ---------------------------------------------------------------------------------------------------------------------
# `keep: tables`, as its jobs do it


def test_a_basis_goes_with_the_last_of_its_readers(root: Path) -> None:
    readers = [
        "tables/overlap/a/0-40/manifest-33333333.json",
        "runs/stepped/trajectory/manifest.json",
        "tables/ruggedness_compared/f/family/manifest-44444444.json",
    ]
    know_readers(root, {f"runs/a/checkpoints/40/{name}/manifest.json": readers for name in ("eigenbasis",)})
    output = root / CHECKPOINTS / "40/purge-basis.json"
    for made in (None, *readers):
        if made is not None:
            touch(root / "results/small" / made)
        purge_checkpoint(output, lambda _: None)
        said = json.loads(output.read_text())
        assert set(said["kept"]) == (set() if made == readers[-1] else {"eigenbasis"}), made
        assert (BASIS in left(root)) == (made != readers[-1])
        # What nothing reads any more is not kept for what something does.
        assert GAUSS_NEWTON not in left(root)
    assert said["purged"].keys() == {"eigenbasis", "gauss_newton"}


def test_a_job_purges_its_own_checkpoint_alone(root: Path) -> None:
    on_half = root / CHECKPOINTS / "40/on-half/eigenbasis"
    shutil.copytree(root / BASIS, on_half)
    know_readers(root, {})
    purge_checkpoint(root / CHECKPOINTS / "40/purge-basis.json", lambda _: None)
    assert left(root) == {*FIRST, SHARD}
    assert array_bytes(on_half, MATRICES), "a basis on a subset has a job of its own"
    name = "runs/a/checkpoints/40/on-half/eigenbasis/manifest.json"
    compared = "tables/identified/a/40/manifest-55555555.json"
    know_readers(root, {name: [compared]})
    output = on_half.with_name("purge-basis.json")
    purge_checkpoint(output, lambda _: None)
    assert json.loads(output.read_text())["kept"] == {"eigenbasis": "needed by 1 unfinished measure: identified"}
    (root / "results/small" / compared).parent.mkdir(parents=True, exist_ok=True)
    # Of no subset: it was measured before there was one.
    (root / "results/small" / compared).write_text('{"inputs": {"subset_eigenbasis": []}}')
    purge_checkpoint(output, lambda _: None)
    assert array_bytes(on_half, MATRICES)
    (root / "results/small" / compared).write_text('{"inputs": {"subset_eigenbasis": ["half"]}}')
    purge_checkpoint(output, lambda _: None)
    assert not array_bytes(on_half, MATRICES)


# ---------------------------------------------------------------------------------------------------------------------
# Jobs that are queued or running


def plan(*jobs: tuple[str, str]) -> None:
    """What a head has planned: jobs with one input and one output each."""
    found = [SimpleNamespace(rule=SimpleNamespace(name="any"), input=[a], output=[b]) for a, b in jobs]
    record_plan(SimpleNamespace(dag=SimpleNamespace(needrun_jobs=lambda: found)))


def test_what_waiting_jobs_read_stays_while_the_rest_goes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan((f"{SHARD}/manifest.json", "hessian"), (f"{BASIS}/manifest.json", "one"), (f"{BASIS}/manifest.json", "two"))
    record_head("running", on_slurm=False, logs=[])
    assert main(["purge", "results", "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"{BASIS}: 2 jobs are going to read it" in said
    assert f"{SHARD}: 1 job is going to read it" in said
    assert left(root) == {SHARD, BASIS}
    for stage in (SHARD, BASIS):
        open_stage(root / stage)
    # One of two has ended, the other is at work.
    (root / "one").write_text("")
    assert main(["purge", "results"]) == 0
    assert f"{BASIS}: 1 job is going to read it" in capsys.readouterr().out
    (root / "two").write_text("")
    (root / "hessian").write_text("")
    assert main(["purge", "results", "--yes"]) == 0
    assert left(root) == set()


@pytest.mark.parametrize("arguments", [[], ["--yes"]])
def test_nothing_is_removed_while_slurm_is_silent(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    silent = activity.Activity("", None, (), (), None, (), "squeue does not answer (timed out).")
    monkeypatch.setattr(activity, "look", lambda _: silent)
    assert main(["purge", "results", *arguments]) == 1
    out, err = capsys.readouterr()
    assert "squeue does not answer (timed out), so that what its jobs read is not known; purge later." in err
    assert "remove" not in out
    assert left(root) == set(LARGE)


# ---------------------------------------------------------------------------------------------------------------------
# What a later wish will cost


def again(said: str) -> dict[str, str]:
    """What is said of each place."""
    lines = [line.split(maxsplit=1)[1].partition(": ") for line in said.splitlines() if line.startswith("again")]
    return {place: text for place, _, text in lines}


def events(directory: Path, seconds: float | None) -> None:
    """Says that a stage took so long; None: nothing is known."""
    unit = {"time": seconds, "event": "unit", "unit": 0, "seconds": seconds}
    lines = [] if seconds is None else [{"time": 0.0, "event": "start"}, unit, {"time": seconds, "event": "finish"}]
    (directory / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_each_checkpoint_says_its_own_price(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in LARGE:
        events(root / name, {FIRST[0]: 100.0, FIRST[1]: 20.0}.get(name))
    (root / CHECKPOINTS / "40/hessian/events.jsonl").unlink(missing_ok=True)
    assert main(["purge", "results"]) == 0
    before = again(capsys.readouterr().out)
    assert before.keys() == {f"{CHECKPOINTS}/0", f"{CHECKPOINTS}/40"}
    assert before[f"{CHECKPOINTS}/0"].startswith("to have it again takes 2 min 00 s, as measured")
    assert before[f"{CHECKPOINTS}/40"].startswith("to have it again takes an unknown time")
    # One by one: what went before counts, and the last says what the dry run has said of all.
    for name in FIRST:
        assert main(["purge", name, "--yes"]) == 0
        price = again(capsys.readouterr().out)[f"{CHECKPOINTS}/0"]
        assert price.startswith("to have it again takes " + ("1 min 40 s" if name == FIRST[0] else "2 min 00 s")), name
    assert price == before[f"{CHECKPOINTS}/0"]


def test_what_is_kept_costs_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    basis = "runs/a/checkpoints/40/eigenbasis/manifest.json"
    know_readers(root, {basis: ["tables/spectrum/a/40/manifest-66666666.json"]})
    for name, seconds in {BASIS: 1000.0, GAUSS_NEWTON: 5.0, SHARD: 7.0}.items():
        events(root / name, seconds)
    for arguments in ([], ["--yes"]):
        assert main(["purge", f"{CHECKPOINTS}/40", *arguments]) == 0
        (text,) = again(capsys.readouterr().out).values()
        assert text.startswith("to have it again takes 12 s, as measured"), text
    assert left(root) == {*FIRST, BASIS}


# ---------------------------------------------------------------------------------------------------------------------
# Full disks and folders that may not be written


def _purge_without_space(directory: Path, call: int, answer: Any) -> None:
    """What `quadscape purge` says where the disk is full from some write on."""
    calls = 0

    def failing(function: Any) -> Any:
        def write(self: Path, *arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            return function(self, *arguments, **keywords)

        return write

    for name in ("write_text", "write_bytes", "mkdir", "symlink_to"):
        setattr(Path, name, failing(getattr(Path, name)))
    answer.send(_command("purge", str(directory), "--yes"))


def _command(*argv: str) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(argv)
    return code, said.getvalue()


def forked(function: Any, *arguments: Any) -> Any:
    """What a function sends back from a process of its own, which ends with what it holds."""
    receiver, sender = FORKED.Pipe(duplex=False)
    child = FORKED.Process(target=function, args=(*arguments, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        child.join()


def test_a_full_disk_loses_nothing(root: Path) -> None:
    manifest, refused = open_stage(root / GAUSS_NEWTON).manifest, 0
    while True:
        refused += 1
        copy = root.parent / f"full-{refused}"
        for part in ("runs/a/checkpoints/40", "tables"):
            shutil.copytree(root / "results/small" / part, copy / "results/small" / part)
        code, said = forked(_purge_without_space, copy / GAUSS_NEWTON, refused)
        assert verify_stage(copy / GAUSS_NEWTON) == manifest
        if code == 0:
            break
        assert said.startswith("quadscape: The disk of ")
        assert "is full" in said
        assert "Traceback" not in said
        # It is whole, or its purge has begun: the same command comes to the end.
        purged = load_purged(copy / GAUSS_NEWTON)
        assert (purged is None) == (copy / GAUSS_NEWTON / "manifest.json").exists()
        (found,) = find_removable(copy / GAUSS_NEWTON)
        assert not found.kept_for
        purge(found, lambda _: None)
        assert array_bytes(copy / GAUSS_NEWTON, MATRICES) == 0
        assert verify_stage(copy / GAUSS_NEWTON) == manifest
    assert refused > 2


def test_a_full_disk_is_freed_by_what_was_set_aside(root: Path) -> None:
    aside = root / f"{CHECKPOINTS}/40/gauss_newton.superseded"
    shutil.copytree(root / GAUSS_NEWTON, aside)
    code, said = forked(_purge_without_space, root / f"{CHECKPOINTS}/40", 1)
    assert code == 1
    assert not aside.exists(), said
    assert left(root) == set(LARGE)


@pytest.fixture
def readable(root: Path) -> Iterator[Path]:
    """A copy that all can come to and its owner alone may change."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copytree(root, Path(folder) / "root"))


def _as_colleague(root: Path, argv: tuple[str, ...], answer: Any) -> None:
    become(ALICE, 0o022)
    os.chdir(root)
    if not os.access(sys.executable, os.X_OK):
        sys.executable = "/bin/cat"  # the heartbeat needs none in particular
    answer.send(_command(*argv))


@needs_root
@pytest.mark.parametrize("arguments", [(), ("--yes",)])
def test_results_of_another_are_left_as_they_are(readable: Path, arguments: tuple[str, ...]) -> None:
    before = {path: path.stat().st_mtime_ns for path in readable.rglob("*")}
    code, said = forked(_as_colleague, readable, ("purge", "results", *arguments))
    assert "Traceback" not in said
    if not arguments:
        assert code == 0
        assert said.count("remove ") == len(LARGE)
    else:
        assert code == 1
        assert "may not be written by this user" in said
        assert "belongs to root" in said
        assert "removed" not in said
    assert {path: path.stat().st_mtime_ns for path in readable.rglob("*")} == before


@needs_root
def test_a_stage_whose_chunks_may_not_be_removed_is_not_half_gone(readable: Path) -> None:
    stage = readable / GAUSS_NEWTON
    # Of the colleague, all but the folder of the chunks.
    for path in [readable, *readable.rglob("*")]:
        shutil.chown(path, ALICE, ALICE)
    for path in [path for path in (stage / "store.zarr/matrix").rglob("*") if path.is_dir()]:
        shutil.chown(path, "root", "root")
    code, said = forked(_as_colleague, readable, ("purge", str(stage), "--yes"))
    assert code == 1
    assert "may not be written by this user" in said
    assert (stage / "manifest.json").exists(), "nothing was begun that cannot be ended"
    assert array_bytes(stage, MATRICES)


def _link_in_words(path: Path, answer: Any) -> None:
    become(ALICE, 0o022)
    answer.send(in_words(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))))


@needs_root
def test_a_link_into_what_may_not_be_entered_is_one_sentence(readable: Path) -> None:
    closed = readable / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").touch()
    (readable / "link").symlink_to(closed / "file")
    assert forked(_link_in_words, readable / "link") == f"{readable / 'link'} cannot be read (Permission denied)."
