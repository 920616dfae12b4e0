"""How long Snakemake takes to plan a large experiment with our rules, and what its head takes of memory.

`python -m benchmarks.dag --checkpoints 25` asks for the dry run of an experiment with that many checkpoints, from its
first start with nothing made, with the profile for SLURM. It prints one line of JSON: jobs, seconds, memory.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.setting import machine

_ROOT = Path(__file__).resolve().parents[1]
_EXPERIMENT = """
name: dag
data: {{source: digits}}
model: {{factory: cnn}}
training: {{iterations: {last}}}
runs: [{{name: many, checkpoints: {checkpoints}}}]
"""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Times the dry run.

    Args:
        argv: Arguments; None: those of the command.

    Returns:
        What the line of JSON says.

    Raises:
        RuntimeError: Snakemake failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=25, help="8 jobs each, and one per pair (default: 25)")
    checkpoints = parser.parse_args(argv).checkpoints
    iterations = [100 * number for number in range(checkpoints)]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "dag.yaml"
        config.write_text(_EXPERIMENT.format(last=iterations[-1], checkpoints=iterations))
        command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "host", "--profile", "profiles/slurm"]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, "--snakefile", str(_ROOT / "Snakefile"), "--directory", folder, "--configfile", str(config)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - began
    found = re.search(r"^total\s+(\d+)", done.stdout + done.stderr, flags=re.MULTILINE)
    if done.returncode or found is None:
        raise RuntimeError(done.stdout + done.stderr)
    result = {
        "benchmark": "dag",
        "jobs": int(found[1]),
        "seconds": round(seconds, 2),
        "head_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3),
        **machine("cpu"),
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
