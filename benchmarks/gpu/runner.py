"""Parts of a measurement, each in a process of its own, with a line of JSON for everything that one finds.

An illegal access to a GPU's memory ends a process and all that it has on the device, so no part may share one with
another. A part has a limit of time, and all of them have one together; whatever ends a part or the command, the lines
that were printed stay.
"""

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Timer
from typing import Any

from benchmarks.setting import DEVICE, Option, benchmark, option

Found = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """A part of a measurement.

    Attributes:
        name: What `--parts` calls it.
        limit: Seconds after which it is ended.
        work: Gives what it finds, one thing after another.
    """

    name: str
    limit: float
    work: Callable[[argparse.Namespace], Found]


def command(
    documentation: str | None,
    module: str,
    parts: Sequence[Part],
    *options: Option,
    close: Callable[[dict[str, list[dict[str, Any]]]], dict[str, Any]] = lambda _: {},
) -> Callable[..., dict[str, Any]]:
    """A benchmark of several parts.

    Args:
        documentation: What the command does.
        module: Its name, as `python -m` takes it.
        parts: In the order in which they run: what matters most first.
        options: Its arguments, beside `--device`, `--parts` and `--seconds`.
        close: What follows from all that was found, by part.

    Returns:
        The command; the words it was called with are handed to the process of each part.
    """
    names = [part.name for part in parts]
    every = [
        *options,
        DEVICE,
        option("--parts", nargs="+", choices=names, default=names, help="only these"),
        option("--seconds", type=float, default=540.0, help="time for all parts together (default: 540)"),
        option("--here", action="store_true", help=argparse.SUPPRESS),
    ]

    def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
        words = list(sys.argv[1:] if argv is None else argv)

        def run(arguments: argparse.Namespace) -> dict[str, Any]:
            chosen = [part for part in parts if part.name in arguments.parts]
            if arguments.here:
                return _here(chosen, arguments)
            found = _all(chosen, arguments.seconds, [sys.executable, "-m", module, *words])
            return {"command": module, **found, **close(found["parts"])}

        return benchmark(documentation, *every)(run)(words)

    return main


def _here(parts: Sequence[Part], arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs parts in this process; what goes wrong is found too."""
    failed = []
    for part in parts:
        try:
            for found in part.work(arguments):
                print(json.dumps({"part": part.name, **found}), flush=True)
        except Exception as error:
            traceback.print_exc()
            reason = (str(error).splitlines() or [""])[0]
            print(json.dumps({"part": part.name, "failed": f"{type(error).__name__}: {reason}"}), flush=True)
            failed.append(part.name)
    return {"ended": [part.name for part in parts if part.name not in failed]}


def _all(parts: Sequence[Part], seconds: float, words: Sequence[str]) -> dict[str, Any]:
    """Runs each part in a process, as long as time is left."""
    began = time.perf_counter()
    found: dict[str, list[dict[str, Any]]] = {}
    took: dict[str, float] = {}
    for part in parts:
        started = time.perf_counter()
        left = min(part.limit, began + seconds - started)
        if left <= 0:
            row = {"part": part.name, "failed": "no time was left"}
            print(json.dumps(row), flush=True)
            found[part.name] = [row]
            continue
        # The last word counts: a part knows what it has left.
        ours = ["--parts", part.name, "--here", "--seconds", f"{left:.1f}"]
        found[part.name] = _in_process([*words, *ours], part.name, left)
        took[part.name] = round(time.perf_counter() - started, 1)
        print(f"== {part.name}: {took[part.name]:.0f} s", flush=True)
    failed = [name for name, rows in found.items() if any("failed" in row for row in rows)]
    return {"seconds": took, "failed": failed, "parts": found}


def _in_process(words: Sequence[str], name: str, limit: float) -> list[dict[str, Any]]:
    """What a part printed until it ended, and if need be why."""
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    over: list[bool] = []

    def end() -> None:
        over.append(True)
        child.kill()

    timer = Timer(limit, end)
    timer.start()
    rows = []
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith('{"part"'):
            rows.append(json.loads(line))
        if not line.startswith('{"ended"'):
            print(line, end="", flush=True)
    code = child.wait()
    timer.cancel()
    if over or code:
        rows.append({"part": name, "failed": f"ended after {limit:.0f} s" if over else f"ended with status {code}"})
        print(json.dumps(rows[-1]), flush=True)
    return rows
