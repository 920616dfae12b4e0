"""Every event of a cluster several times, at random moments: the table in benchmarks/results/.

    python -m tests.slurm.matrix --repeats 3

goes on after a scenario that failed, prints the table, writes it as `slurm-events-<machine>-<date>.md` and `.json`,
and ends with exit code 1 if any scenario failed. The first repeat of an event interrupts one stage in one job, the
second a group of three rules in one job, and so on in turns.
"""

import argparse
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.checkouts import ROOT
from tests.slurm.chain import CHAINS, TRAINING, Prepared
from tests.slurm.cluster import CPUS, GRACE, KILL_WAIT, NODE_TIMEOUT, UnavailableError, ask, running
from tests.slurm.events import EVENTS, LONGEST, ImpossibleError, Pool, Record


@dataclass
class Outcome:
    """What became of one scenario.

    Attributes:
        event: Name of the event.
        chain: What was computed.
        seed: Of the moment.
        record: What it cost; None when it failed.
        problem: What went wrong.
    """

    event: str
    chain: str
    seed: int
    record: Record | None = None
    problem: str = ""


def _outcome(event: str, chain: str, seed: int, future: Future[Record]) -> Outcome:
    try:
        return Outcome(event, chain, seed, record=future.result())
    except ImpossibleError as why:
        return Outcome(event, chain, seed, problem=f"impossible here: {why}")
    except Exception as error:
        return Outcome(event, chain, seed, problem=f"{type(error).__name__}: {error}")


def table(outcomes: Sequence[Outcome]) -> str:
    """The table, in Markdown."""
    lines = [
        "| event | repeats | failed | interruptions | units lost | seconds to resume: median | worst |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for event in EVENTS:
        those = [outcome for outcome in outcomes if outcome.event == event]
        records = [outcome.record for outcome in those if outcome.record is not None]
        times = [record.resume for record in records if record.resume is not None]
        cells = [
            event,
            len(those),
            len(those) - len(records),
            sum(record.interruptions for record in records),
            sum(record.lost for record in records),
            f"{statistics.median(times):.0f}" if times else "–",
            f"{max(times):.0f}" if times else "–",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _machine() -> tuple[str, str]:
    """Name of the processor, and a short one with the number of cores."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    name = found[1] if found else "unknown"
    words = re.findall(r"[a-z]+", name.lower().replace("(r)", "").replace("(tm)", ""))
    return name, f"{words[1] if len(words) > 1 else 'cpu'}-{os.cpu_count()}c"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the matrix.

    Args:
        argv: Arguments; None: those of the command.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of every event (default: 3)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: random")
    parser.add_argument("--events", nargs="*", default=list(EVENTS), choices=list(EVENTS), help="default: all")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="where the table is written")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="quadscape-matrix-"))
    print(f"seed {arguments.seed}; checkouts are in {directory}", flush=True)
    chance = random.Random(arguments.seed)
    planned = [
        (event, TRAINING if event == "finish within grace" else CHAINS[repeat % len(CHAINS)], chance.randrange(10**6))
        for repeat in range(arguments.repeats)
        for event in sorted(arguments.events, key=lambda event: event not in LONGEST)
    ]
    try:
        with running() as cluster:
            prepared = Prepared(directory / "undisturbed")
            pool = Pool(cluster, cluster.slots, prepared, directory)
            futures = [(event, chain.name, seed, pool.submit(event, chain, seed)) for event, chain, seed in planned]
            outcomes = []
            for event, chain, seed, future in futures:
                outcomes.append(_outcome(event, chain, seed, future))
                print(outcomes[-1].record or f"FAILED {event} ({chain}, {seed}): {outcomes[-1].problem}", flush=True)
            pool.close()
            version, no_cgroups = ask("sinfo", "--version").strip(), cluster.no_cgroups
    except UnavailableError as why:
        print(f"No SLURM can be started here: {why}", file=sys.stderr)
        return 1
    machine, short = _machine()
    date = datetime.now(UTC).date().isoformat()
    failed = [outcome for outcome in outcomes if outcome.record is None]
    facts: dict[str, Any] = {
        "machine": machine,
        "cores": os.cpu_count(),
        "slurm": version,
        "tracking": "cgroup" if not no_cgroups else f"no cgroups: {no_cgroups}",
        "seconds": {"grace": GRACE, "kill wait": KILL_WAIT, "node timeout": NODE_TIMEOUT},
        "declared cpus per node": CPUS,
        "at a time": len(cluster.slots),
        "seed": arguments.seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "date": date,
    }
    text = (
        f"# Events of a cluster, {date}\n\n"
        f"{machine}, {facts['cores']} cores for {facts['at a time']} scenarios at a time; {version} "
        f"({facts['tracking']}), grace {GRACE} s, KillWait {KILL_WAIT} s, SlurmdTimeout {NODE_TIMEOUT} s; seed "
        f"{arguments.seed}, {facts['minutes']} minutes in all. SLURM looks at time limits and grace times every 30 s, "
        "Snakemake's head for jobs that have failed after 2, 12, 22, … s. A unit is of a third to one second here; "
        "seconds to resume are counted from the event until work on the next unit begins (of a controller: until it "
        "runs again), start-up of Snakemake and torch included.\n\n" + table(outcomes) + "\n"
    )
    for outcome in failed:
        text += f"\nFailed: {outcome.event} ({outcome.chain}, seed {outcome.seed}): {outcome.problem.splitlines()[0]}\n"
    print(text)
    stem = arguments.output / f"slurm-events-{short}-{date}"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    records = [{**asdict(outcome), "problem": outcome.problem.partition("\n")[0]} for outcome in outcomes]
    line = json.dumps({"benchmark": "slurm-events", **facts, "scenarios": records})
    stem.with_suffix(".json").write_text(line + "\n", encoding="utf-8")
    print(f"written: {stem}.md and .json")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
