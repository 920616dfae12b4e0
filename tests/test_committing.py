"""Storing beside computing: what the committing thread of a stage may overlap, and what it must not."""

import errno
import gc
import json
import os
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_stage import PATIENT, Toy, finished, run, silent

from quadscape.errors import DeviceMemoryError, FencedError, StageError, StoreError
from quadscape.stage.committing import Committing
from quadscape.stage.events import read_events, seconds_taken
from quadscape.stage.journal import Journal
from quadscape.stage.lock import Lock, present_owner
from quadscape.stage.protocol import Needs
from quadscape.stage.run import _Run, run_stage
from quadscape.store import ArraySpec

pytestmark = pytest.mark.usefixtures("toy_server", "workers_end")

ADD_UNIT = Journal.add_unit


class Free:
    """Units that read nothing of each other, of which each array is a file."""

    name, version = "free", 1

    def __init__(
        self, units: int = 5, before: Callable[[int, Any], Any] | None = None, fits: dict[int, int] | None = None
    ) -> None:
        self.count, self.before, self.fits = units, before or (lambda unit, store: None), fits or {}
        self.blocks: list[int] = []

    def parameters(self) -> dict[str, Any]:
        return {"units": self.count}

    def plan(self) -> dict[str, Any]:
        return {"block": 8}

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        return [ArraySpec(name, (self.count, 9), "float64", ("unit", "column"), (1, 9)) for name in ("values", "other")]

    def units(self, plan: dict[str, Any]) -> int:
        return self.count

    def estimate(self, plan: dict[str, Any]) -> Needs:
        return Needs(1, 1)

    def start(self, plan: dict[str, Any]) -> None:
        self.blocks.append(plan["block"])

    def compute(self, unit: int, plan: dict[str, Any], store: Any) -> Any:
        self.before(unit, store)
        if plan["block"] > self.fits.get(unit, 8):
            raise DeviceMemoryError(f"The device's memory does not hold {plan['block']} rows; use a larger one.")
        values = np.arange(9.0) + unit
        name = "other" if unit == self.count - 1 else "values"
        return {name: ((unit, slice(None)), values)}

    def smaller(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        return {**plan, "block": plan["block"] // 2}

    def results(self, plan: dict[str, Any], store: Any) -> dict[str, Any]:
        return {"sum": float(np.nansum(store.read("values")))}


def compute(task: Any, directory: Path) -> dict[str, Any]:
    return run_stage(task, directory, log=silent, **PATIENT)


def journalled(directory: Path) -> list[Any]:
    """Units and blocks of further plans, in the order of the journal's lines."""
    lines = [json.loads(line.partition(" ")[2]) for line in (directory / "journal").read_text().splitlines()]
    return [
        line["unit"] if "unit" in line else f"block {line['replanned']['plan']['block']}"
        for line in lines
        if "unit" in line or "replanned" in line
    ]


def before_line(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], Any]) -> None:
    """Has something done in the committing thread just before a unit is written into the journal."""

    def add(self: Journal, unit: int, files: Any) -> None:
        act(unit)
        ADD_UNIT(self, unit, files)

    monkeypatch.setattr(Journal, "add_unit", add)


def test_the_next_unit_is_computed_while_one_is_stored(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two waits for the other, so that neither could come after the other's end."""
    begun = [threading.Event() for _ in range(6)]
    main = threading.get_ident()
    waited = []

    def wait(unit: int) -> None:
        assert threading.get_ident() != main
        if unit < 4:
            assert begun[unit + 1].wait(60)
            waited.append(unit)

    before_line(monkeypatch, wait)
    compute(Free(before=lambda unit, store: begun[unit].set()), place / "free")
    assert waited == [0, 1, 2, 3]
    assert journalled(place / "free") == [0, 1, 2, 3, 4]


def test_reading_waits_for_what_earlier_units_wrote(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_line(monkeypatch, lambda unit: time.sleep(0.1))

    def read(unit: int, store: Any) -> None:
        # Of the array that nobody writes to before the end, nothing is waited for.
        assert np.isnan(store.read("other")).all()
        units = slice(0, unit)
        np.testing.assert_array_equal(store.read("values")[units], np.arange(9.0) + np.arange(unit)[:, None])
        np.testing.assert_array_equal(store.array("values")[units], np.arange(9.0) + np.arange(unit)[:, None])
        assert journalled(place / "free") == list(range(unit))

    compute(Free(before=read), place / "free")


def test_reading_another_array_does_not_wait(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = [threading.Event() for _ in range(6)]
    before_line(monkeypatch, lambda unit: begun[min(4, unit + 1)].wait(60) or pytest.fail("the reader waits"))

    def read(unit: int, store: Any) -> None:
        store.read("other")
        begun[unit].set()

    compute(Free(before=read), place / "free")


FAILURES: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "full disk": (lambda _: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), StageError, "^The disk of .* is full"),
    "damage": (lambda _: StoreError("It is damaged; mend it."), StoreError, "^It is damaged; mend it.$"),
    "other": (lambda _: ZeroDivisionError("x"), ZeroDivisionError, "^x$"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("reads", [False, True])
def test_a_failed_commit_stops_before_the_next_unit(
    place: Path, monkeypatch: pytest.MonkeyPatch, failure: str, reads: bool
) -> None:
    make, kind, message = FAILURES[failure]
    computed: list[int] = []

    def fail(unit: int) -> None:
        if unit == 2:
            raise make(place)

    def note(unit: int, store: Any) -> None:
        if reads:
            store.read("values")
        computed.append(unit)

    with monkeypatch.context() as patch:
        before_line(patch, fail)
        with pytest.raises(kind, match=message):
            compute(Free(before=note), place / "free")
    # Unit 3 may have been at work; the one after it never is. Where it reads, not even that.
    assert computed == ([0, 1, 2] if reads else [0, 1, 2, 3])
    assert journalled(place / "free") == [0, 1]
    assert read_events(place / "free")[-1]["event"] == "error"
    assert present_owner(place / "free").released  # type: ignore[union-attr]
    compute(Free(before=note), place / "free")
    assert computed[-3:] == [2, 3, 4]


def test_the_error_of_the_earlier_unit_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit 3 fails while unit 2 is stored, which fails, too: one after the other, nobody had seen the former."""
    begun = threading.Event()

    def fail(unit: int) -> None:
        if unit == 2:
            assert begun.wait(60)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def divide(unit: int, store: Any) -> None:
        if unit == 3:
            begun.set()
            raise ZeroDivisionError

    before_line(monkeypatch, fail)
    with pytest.raises(StageError, match="is full"):
        compute(Free(before=divide), place / "free")


def test_taken_over_while_storing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []

    def take_over(unit: int) -> None:
        if unit == 1:
            contender = Lock(place / "free", **PATIENT)
            assert contender._claim(present_owner(place / "free").number + 1)  # type: ignore[union-attr]
            contender.release()

    with monkeypatch.context() as patch:
        before_line(patch, take_over)
        with pytest.raises(FencedError, match="nothing is lost"):
            compute(Free(before=lambda unit, store: computed.append(unit)), place / "free")
    # The line of unit 1 had passed its look at the lock; nothing came after it.
    assert journalled(place / "free") == [0, 1]
    assert computed[-1] <= 2
    assert read_events(place / "free")[-1]["event"] == "fenced"


@pytest.mark.parametrize("unit", [0, 2, 4])
def test_a_further_plan_comes_after_the_unit_before_it(place: Path, monkeypatch: pytest.MonkeyPatch, unit: int) -> None:
    """Its line is asked for while the unit before is being stored."""
    before_line(monkeypatch, lambda unit: time.sleep(0.1))
    task = Free(fits={unit: 2})
    manifest = compute(task, place / "free")
    assert journalled(place / "free") == [*range(unit), "block 4", "block 2", *range(unit, 5)]
    assert task.blocks == [8, 4, 2]
    assert [entry["unit"] for entry in manifest["replanned"]] == [unit, unit]


def test_one_unit_waits_in_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_line(monkeypatch, lambda unit: time.sleep(0.05))
    alive: list[weakref.ref[Any]] = []
    most = []
    original = Free.compute

    def counted(self: Free, *arguments: Any) -> Any:
        gc.collect()
        most.append(sum(one() is not None for one in alive))
        arrays = original(self, *arguments)
        alive.extend(weakref.ref(values) for _, values in arrays.values())
        return arrays

    monkeypatch.setattr(Free, "compute", counted)
    compute(Free(units=12), place / "free")
    assert max(most) == 1
    gc.collect()
    assert not any(one() is not None for one in alive)


def test_at_most_two_units_are_lost_per_kill(place: Path) -> None:
    """One that is computed and one that is stored: killed at every fourth change of files, a unit is begun at most two
    times more than it must be."""
    for operation in range(40, 400, 24):
        directory = place / str(operation)
        mark = place / f"mark.{operation}"
        outcome = run(directory, {"mark": str(mark)}, PATIENT, kill_at=operation).outcome()
        begun = len(list(place.glob(f"mark.{operation}.*")))
        task = Toy()
        run_stage(task, directory, log=silent, **PATIENT)
        start = [event for event in read_events(directory) if event["event"] == "start"][-1]
        assert begun - start["done"] <= 2
        arrays, _ = finished(directory)
        for name, values in task.expected().items():
            assert arrays[name].tobytes() == values.tobytes()
        shutil.rmtree(directory)
        if outcome is not None:
            break


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_keeps_what_is_being_stored(
    place: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    begun = threading.Event()
    before_line(monkeypatch, lambda unit: unit < 2 or begun.wait(60))

    def interrupt(unit: int, store: Any) -> None:
        if unit == 3:
            begun.set()
            raise stop

    with pytest.raises(stop):
        compute(Free(before=interrupt), place / "free")
    assert journalled(place / "free") == [0, 1, 2]
    assert present_owner(place / "free").released  # type: ignore[union-attr]


def test_a_second_interrupt_gives_it_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the thread is waited for; the lock is given back only once it has ended."""
    committed = _Run._commit
    held: list[bool] = []
    computing = threading.Event()

    def slow(self: Any, unit: int, arrays: Any, staging: Any, journal: Any, committing: Committing) -> None:
        if unit == 2:
            assert computing.wait(60)
            # To that thread: the kernel may choose another one, which would not end the main one's sleep.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            ended = time.monotonic() + 60
            while not committing._given_up and time.monotonic() < ended:
                time.sleep(0.05)
            held.append(self.lock.is_mine() and not present_owner(self.directory).released)  # type: ignore[union-attr]
        committed(self, unit, arrays, staging, journal, committing)

    def waited_for(works: Any) -> Any:
        if not held:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return wait(works)

    def begun(unit: int, store: Any) -> None:
        if unit == 3:
            computing.set()
            time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_commit", slow)
        patch.setattr("quadscape.stage.committing.wait", waited_for)
        with pytest.raises(KeyboardInterrupt):
            compute(Free(before=begun), place / "free")
    assert held == [True]
    assert journalled(place / "free") == [0, 1]
    assert compute(Free(), place / "free")["units"] == 5


def test_the_job_is_put_back_once_all_is_stored(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[Any], float]] = []

    class Near:
        """The end of the job is always near, and SLURM refuses."""

        def comes_before(self, seconds: float) -> bool:
            seen.append(([], seconds))
            return True

        def describe(self) -> str:
            return "soon"

        def requeue(self, release: Callable[[], None]) -> str:
            seen[-1][0].extend(journalled(place / "free"))
            return "no"

    monkeypatch.setattr("quadscape.stage.run.Deadline", Near)
    before_line(monkeypatch, lambda unit: time.sleep(0.2))
    compute(Free(units=4), place / "free")
    assert [units for units, _ in seen] == [[0], [0, 1], [0, 1, 2]]
    # One more unit takes as long as the last one took from its beginning until it was stored.
    assert all(seconds >= 0.2 for _, seconds in seen[1:])


def test_seconds_of_units_are_the_time_at_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer of computing and storing, of which their sum is the time that the stage took."""
    before_line(monkeypatch, lambda unit: time.sleep(0.2))
    began = time.monotonic()
    compute(Free(units=6, before=lambda unit, store: time.sleep(0.3)), place / "free")
    took = time.monotonic() - began
    units = [event for event in read_events(place / "free") if event["event"] == "unit"]
    assert [event["done"] for event in units] == [1, 2, 3, 4, 5, 6]
    assert sum(event["seconds"] for event in units) <= took < 6 * 0.5
    assert units[0]["seconds"] >= 0.5
    assert min(event["seconds"] for event in units[1:]) >= 0.25
    taken = seconds_taken(place / "free")
    assert taken is not None
    assert taken <= took + 0.1


def test_time_left_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quadscape.stage import progress

    monkeypatch.setattr(progress, "_SILENT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "format_seconds", lambda seconds: f"{seconds:.3f}")
    before_line(monkeypatch, lambda unit: time.sleep(0.05))
    said: list[str] = []
    run_stage(Free(units=6, before=lambda unit, store: time.sleep(0.2)), place / "free", log=said.append, **PATIENT)
    lines = [line for line in said if " each, " in line]
    assert [line.split()[1] for line in lines] == ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]
    for done, line in enumerate(lines[:-1], start=1):
        each, left = float(line.split()[4]), float(line.split()[7])
        assert (6 - done) * each - 0.6 <= left <= (6 - done) * each
    assert lines[-1].endswith(" in all.")


def test_no_thread_is_left(place: Path) -> None:
    compute(Free(units=1), place / "free")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("commit")]
