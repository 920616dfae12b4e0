"""SIGKILLs of a whole experiment at random moments: afterwards everything must equal that of an undisturbed run.

The experiment is run in copies of this checkout: once undisturbed, then with its head and all jobs killed again and
again, followed by the same command each time, and anew where it ends before the last kill. Then all arrays of all
stores and all tables are compared, and `quadscape verify` reads everything. Prints what was compared, and what differs.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.setting import benchmark, machine, option

ROOT = Path(__file__).resolve().parents[1]


def _checkout(folder: Path) -> Path:
    """A copy of what git tracks here."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def _command(profile: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--profile", f"profiles/{profile}", "--quiet", "all", *more]


def _start(folder: Path, profile: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with (folder / "kills.log").open("ab") as log:
        command = _command(profile)
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def _kill(head: subprocess.Popen[bytes]) -> None:
    """Head and jobs at once: all are of its session."""
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()


def _arrays(results: Path) -> dict[str, np.ndarray]:
    found = {}
    for store in sorted(results.rglob("*.zarr")):
        group = zarr.open_group(store, mode="r")
        for name, member in group.members(max_depth=None):
            if isinstance(member, zarr.Array):
                found[f"{store.relative_to(results)}/{name}"] = np.asarray(member[...])
    return found


def _tables(results: Path) -> dict[str, bytes]:
    return {str(path.relative_to(results)): path.read_bytes() for path in sorted(results.rglob("*.parquet"))}


def differences(one: Path, other: Path) -> tuple[int, int, list[str]]:
    """Compares two folders of results.

    Args:
        one: Results of the undisturbed run.
        other: Those of the other.

    Returns:
        Number of arrays, number of tables, and the names of what differs or is in one of them only.
    """
    arrays, others = _arrays(one), _arrays(other)
    tables, other_tables = _tables(one), _tables(other)
    differ = sorted(arrays.keys() ^ others.keys()) + sorted(tables.keys() ^ other_tables.keys())
    differ += [
        name
        for name in arrays.keys() & others.keys()
        if arrays[name].dtype != others[name].dtype or arrays[name].tobytes() != others[name].tobytes()
    ]
    return (
        len(arrays),
        len(tables),
        differ + [n for n in tables.keys() & other_tables.keys() if tables[n] != other_tables[n]],
    )


@benchmark(
    __doc__,
    option("--profile", default="demo"),
    option("--kills", type=int, default=60),
    option("--seed", type=int, default=0),
    option("--longest", type=float, default=20.0, help="seconds between a start and its kill, at most"),
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs both, and compares."""
    moments = random.Random(arguments.seed)
    began = time.monotonic()
    kills = arrays = tables = 0
    differ: list[str] = []
    verified: list[int] = []
    with tempfile.TemporaryDirectory(prefix="quadscape-kills-") as place:
        alone = _checkout(Path(place) / "alone")
        if _start(alone, arguments.profile).wait():
            raise SystemExit(f"The undisturbed run failed: {(alone / 'kills.log').read_text()[-2000:]}")
        undisturbed = time.monotonic() - began
        while kills < arguments.kills:
            killed = _checkout(Path(place) / f"killed-{len(verified)}")
            while True:
                head = _start(killed, arguments.profile)
                try:
                    # After the last kill, and where a kill comes too late, it runs to its end.
                    code = head.wait(moments.uniform(2.0, arguments.longest) if kills < arguments.kills else None)
                    break
                except subprocess.TimeoutExpired:
                    _kill(head)
                    kills += 1
                    print(f"kill {kills} after {time.monotonic() - began:.0f} s", flush=True)
            if code:
                raise SystemExit(f"A run failed: {(killed / 'kills.log').read_text()[-2000:]}")
            more_arrays, more_tables, more = differences(alone / "results", killed / "results")
            arrays, tables, differ = arrays + more_arrays, tables + more_tables, differ + more
            command = [sys.executable, "-m", "quadscape.cli", "verify", "results"]
            check = subprocess.run(command, cwd=killed, capture_output=True, text=True, check=False)
            print(check.stdout.splitlines()[-1] if check.stdout else check.stderr, flush=True)
            verified.append(check.returncode)
    print(f"{kills} kills, {arrays} arrays and {tables} tables compared, {len(differ)} differ")
    for name in differ[:20]:
        print(f"  {name}")
    seconds = {"undisturbed": round(undisturbed), "all": round(time.monotonic() - began)}
    return {
        "benchmark": "kills",
        **machine(),
        "kills": kills,
        "arrays": arrays,
        "tables": tables,
        "differ": differ,
        "verify": verified,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
