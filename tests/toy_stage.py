"""A toy long stage, run in processes that can be killed, stopped and raced, to test the protocol of stages."""

import contextlib
import fcntl
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from fork_server import CONTEXT

from quadscape.errors import DeviceMemoryError, VerificationError
from quadscape.stage import lock as stage_lock
from quadscape.stage import run as stage_run
from quadscape.stage.finished import open_stage, verify_stage
from quadscape.stage.lock import Lock, process_state
from quadscape.stage.protocol import Needs
from quadscape.stage.run import run_stage
from quadscape.store import ArraySpec, fill_value

STEP = 4
QUICK = {"heartbeat": 0.05, "stale_after": 0.5}
PATIENT = {"heartbeat": 0.05, "stale_after": 60.0}

# Reading them takes longer than a unit; what a server of workers has read once, each of them has.
stage_run.installed_version = cache(stage_run.installed_version)
stage_run._versions()


class Toy:
    """Arrays as the real stages have them: sharded rows, a triangle of strips, ragged ends, and a state that is handed
    on and removed in the end."""

    name = "toy"

    def __init__(
        self,
        *,
        rows: int = 19,
        width: int = 6,
        seed: int = 3,
        version: int = 1,
        pause: float = 0.0,
        offered: str = "first",
        memory: int = 1,
        disk: int = 1,
        flaw: str = "",
        stop_in: int = -1,
        mark: str = "",
        fail: str = "",
        scratch: bool = True,
        fits: dict[int, int] | None = None,
    ) -> None:
        self.rows, self.width, self.seed, self.version, self.pause = rows, width, seed, version, pause
        self.offered, self.memory, self.disk, self.flaw, self.fail = offered, memory, disk, flaw, fail
        self.scratch = scratch
        self.stop_in, self.mark, self.fits = stop_in, mark, fits or {}
        self.started = 0

    def parameters(self) -> dict[str, Any]:
        return {"rows": self.rows, "width": self.width, "seed": self.seed}

    def plan(self) -> dict[str, Any]:
        return {"step": STEP, "offered": self.offered, "device": "cpu", "block": 8}

    def smaller(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        return None if plan["block"] == 1 else {**plan, "block": plan["block"] // 2}

    def units(self, plan: dict[str, Any]) -> int:
        return -(-self.rows // plan["step"])

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        step, units = plan["step"], self.units(plan)
        return [
            ArraySpec(
                "rows", (self.rows, self.width), "float64", ("row", "column"), (2, self.width), (step, self.width)
            ),
            ArraySpec("triangle", (self.rows, self.rows), "float32", ("row", "column"), (step, step)),
            ArraySpec(
                "resume/state",
                (units, self.width),
                "float64",
                ("unit", "column"),
                (1, self.width),
                scratch=self.scratch,
            ),
            ArraySpec("count", (units,), "int64", ("unit",), (1,), compress=True),
        ]

    def estimate(self, plan: dict[str, Any]) -> Needs:
        return Needs(self.memory, self.disk, 1.0)

    def start(self, plan: dict[str, Any]) -> None:
        self.started += 1

    def compute(self, unit: int, plan: dict[str, Any], store: Any) -> Any:
        if self.mark:
            Path(f"{self.mark}.{unit}").touch()
        if plan["block"] > self.fits.get(unit, 8):
            raise DeviceMemoryError(f"The device's memory does not hold {plan['block']} rows; use a larger one.")
        first, stop = unit * STEP, min(self.rows, (unit + 1) * STEP)
        state = np.full(self.width, float(self.seed)) if unit == 0 else store.read("resume/state", unit)
        assert np.isfinite(state).all(), "the unit before has not been committed"
        if unit == self.stop_in:
            # Here all units before are committed, since their state was read.
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(self.pause)
        rows = np.empty((stop - first, self.width))
        for i in range(stop - first):
            state = np.cos(1.7 * state + np.arange(self.width) + unit)
            rows[i] = state
        strip = np.outer(np.arange(first, self.rows), np.arange(1, stop - first + 1)).astype(np.float32)
        strip[STEP : 2 * STEP] = np.nan  # whole chunks of NaN, for which Zarr writes no file
        arrays: dict[str, Any] = {
            "rows": ((slice(first, stop), slice(None)), rows),
            "triangle": ((slice(first, None), slice(first, stop)), strip),
            "count": ((unit,), np.asarray(unit + 1)),
        }
        if unit == 0:
            arrays["resume/state"] = (
                (slice(0, 2), slice(None)),
                np.stack([np.full(self.width, float(self.seed)), state]),
            )
        elif stop < self.rows:
            arrays["resume/state"] = ((unit + 1, slice(None)), state)
        if self.flaw and unit == 1:
            arrays = {**arrays, **FLAWS[self.flaw]}
        return arrays

    def results(self, plan: dict[str, Any], store: Any) -> dict[str, Any]:
        if self.fail:
            raise VerificationError(self.fail)
        # Integer keys and tuples become strings and lists on their way through the journal.
        return {"sum": float(store.read("rows").sum()), "by_width": {9: 1, 10: (2, 3)}}

    def expected(self) -> dict[str, np.ndarray]:
        """All arrays, without the protocol: scratch ones are empty in the end."""
        plan = self.plan()
        found = {spec.name: np.full(spec.shape, fill_value(spec.dtype), spec.dtype) for spec in self.arrays(plan)}

        class InMemory:
            def read(self, name: str, selection: Any = ...) -> np.ndarray:
                return found[name][selection]

        for unit in range(self.units(plan)):
            for name, (selection, values) in self.compute(unit, plan, InMemory()).items():
                found[name][selection] = values
        for spec in self.arrays(plan):
            if spec.scratch:
                found[spec.name][...] = fill_value(spec.dtype)
        return found


FLAWS: dict[str, dict[str, Any]] = {
    "start": {"rows": ((slice(5, 8), slice(None)), np.zeros((3, 6)))},
    "stop": {"rows": ((slice(4, 7), slice(None)), np.zeros((3, 6)))},
    "chunk": {"rows": ((slice(4, 6), slice(None)), np.zeros((2, 6)))},
    "column": {"rows": ((slice(4, 8), slice(0, 5)), np.zeros((4, 5)))},
    "step": {"rows": ((slice(4, 8, 2), slice(None)), np.zeros((2, 6)))},
    "row": {"rows": ((4, slice(None)), np.zeros(6))},
    "negative": {"count": ((-1,), np.asarray(7))},
    "outside": {"count": ((5,), np.asarray(7))},
    "dimensions": {"rows": ((slice(4, 8),), np.zeros((4, 6)))},
    "shape": {"rows": ((slice(4, 8), slice(None)), np.zeros(6))},
    "twice": {"count": ((0,), np.asarray(7))},
}

Options = dict[str, Any]


def _kill_at(operation: int) -> None:
    """Kills this process just before its n-th change to the file system."""
    left = operation

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"} or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            left -= 1
            if left <= 0:  # two threads may count at once
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _stop_after_check(count: int) -> None:
    """Stops this process just after its n-th look at the lock, before it acts on it."""
    left = count
    original = Lock.check

    def check(self: Lock) -> None:
        nonlocal left
        original(self)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGSTOP)

    Lock.check = check  # type: ignore[method-assign]


def work(
    directory: str,
    task: Options,
    protocol: Options,
    sender: Connection,
    kill_at: int = 0,
    stop_after_check: int = 0,
    elsewhere: int = 0,
) -> None:
    """Runs the toy stage; sends "ready", each line of its log, and at last the outcome."""
    if kill_at:
        _kill_at(kill_at)
    if stop_after_check:
        _stop_after_check(stop_after_check)
    if elsewhere:
        stage_lock.this_machine = lambda: ["elsewhere", "", ""]
    sender.send(("ready", ""))
    try:
        run_stage(Toy(**task), directory, log=lambda line: sender.send(("log", line)), **protocol)
    except Exception as error:
        sender.send((type(error).__name__, str(error)))
    else:
        sender.send(("done", ""))


def compete(directory: str, seed: int, rounds: int, protocol: Options, sender: Connection) -> None:
    """Takes and gives back the lock many times; sends how often another one held it at the same time."""
    random = np.random.default_rng(seed)
    root = Path(directory)
    violations = 0
    for _ in range(rounds):
        lock = Lock(root, **protocol)
        lock.acquire(lambda line: None, lambda event, **details: None)
        # The kernel's own lock is the witness: it is given back by a kill too.
        with (root / "witness").open("w") as witness:
            try:
                fcntl.flock(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                violations += 1
            time.sleep(float(random.uniform(0, 0.002)))
            if not lock.is_mine():
                violations += 1
        lock.release()
    sender.send(violations)


class Worker:
    """One forked process at work; forked from a server that has imported everything, so that a start is cheap."""

    alive: ClassVar[list["Worker"]] = []

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.receiver, sender = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=function, args=(*arguments, sender), daemon=True)
        self.process.start()
        self.alive.append(self)
        sender.close()
        self.log: list[str] = []

    def receive(self, limit: float = 60.0) -> Any:
        """The next message; None when the process has ended without one."""
        if not self.receiver.poll(limit):
            raise TimeoutError("the worker says nothing")
        try:
            return self.receiver.recv()
        except EOFError:
            return None

    def outcome(self, limit: float = 60.0) -> tuple[str, str] | None:
        """What became of the stage: "done" or the error's class, and its message; None when it was killed."""
        while True:
            message = self.receive(limit)
            if message is None:
                break
            if message[0] == "log":
                self.log.append(message[1])
            elif message[0] != "ready":
                break
        self.process.join(limit)
        return message

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        # It may end between the question and the kill.
        with contextlib.suppress(ProcessLookupError):
            if self.process.is_alive():
                self.signal(signal.SIGKILL)
        self.process.join()

    @classmethod
    def end(cls) -> None:
        """Kills what a failed test has left, stopped ones too, which would keep the tests from ending."""
        while cls.alive:
            cls.alive.pop().kill()


def run(directory: Path, task: Options | None = None, protocol: Options | None = None, **hooks: int) -> Worker:
    """Starts the toy stage in a process of its own."""

    return Worker(_Call(work, hooks), str(directory), task or {}, protocol or {})


def silent(_: str) -> None:
    return None


def stopped_in(directory: Path, unit: int, protocol: Options | None = None, **task: Any) -> Worker:
    """The toy stage in a process of its own, which is stopped while it computes that unit."""
    mark = directory.parent / f"mark.{uuid.uuid4().hex}"
    worker = run(directory, {"stop_in": unit, "mark": str(mark), **task}, protocol or PATIENT)
    wait_for(Path(f"{mark}.{unit}").exists)
    # The mark is written just before: on a busy machine the process would be seen running.
    wait_for(lambda: (process_state(worker.process.pid or 0) or ("T",))[0] in {"T", "t"})
    for path in directory.parent.glob(f"{mark.name}.*"):
        path.unlink()
    return worker


def wait_for(condition: Callable[[], Any], limit: float = 60.0) -> Any:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.005)
    raise TimeoutError


class _Call:
    """A function with keyword arguments that pickles."""

    def __init__(self, function: Any, keywords: dict[str, Any]) -> None:
        self.function, self.keywords = function, keywords

    def __call__(self, *arguments: Any) -> None:
        self.function(*arguments, **self.keywords)


def finished(directory: Path) -> tuple[dict[str, np.ndarray], bytes]:
    """Decoded arrays and the manifest's bytes, after every check that a reader can make."""
    verify_stage(directory)
    opened = open_stage(directory, "toy")
    names = [spec.name for spec in Toy(rows=opened.manifest["parameters"]["rows"]).arrays(opened.manifest["plan"])]
    return {name: opened.read(name) for name in names}, (directory / "manifest.json").read_bytes()
