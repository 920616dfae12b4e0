"""How long Snakemake takes to plan a large experiment with our rules, and what its head takes of memory.

`python -m benchmarks.dag --checkpoints 25` asks for the dry run of an experiment with that many checkpoints, from its
first start with nothing made, with the profile for SLURM. It prints one line of JSON: jobs, seconds, memory.
"""

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.setting import benchmark, machine, option

_ROOT = Path(__file__).resolve().parents[1]
_EXPERIMENT = """
name: dag
data: {{source: digits}}
model: {{factory: cnn}}
training: {{iterations: {last}}}
runs: [{{name: many, checkpoints: {checkpoints}}}]
"""


@benchmark(__doc__, option("--checkpoints", type=int, default=25, help="8 jobs each, and one per pair (default: 25)"))
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times the dry run."""
    iterations = [100 * number for number in range(arguments.checkpoints)]
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
    return {
        "benchmark": "dag",
        "jobs": int(found[1]),
        "seconds": round(seconds, 2),
        "head_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3),
        **machine("cpu"),
    }


if __name__ == "__main__":
    main()
