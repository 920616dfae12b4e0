"""What every workflow script does first: a log that a person can read, and errors as one sentence."""

import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from quadscape.config import Experiment, parse_experiment
from quadscape.errors import QuadscapeError
from quadscape.numerics import apply_numerics
from quadscape.stage import Log


def start_job(snakemake: Any) -> tuple[Experiment, Log]:
    """Prepares a job: validated experiment, log file, threads, error handling.

    Args:
        snakemake: The object that Snakemake gives to a script.

    Returns:
        The experiment, and a function that writes a line with the time to the job's log and to standard error.
    """
    path = Path(str(snakemake.log[0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Appended, so that a requeued job keeps what its first attempt said.
    file = path.open("a", encoding="utf-8", buffering=1)
    name = " ".join([str(snakemake.rule), *(str(value) for value in snakemake.wildcards)])

    def log(message: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{name}] {message}"
        print(line, file=file)
        print(line, file=sys.stderr, flush=True)

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, QuadscapeError):
            log(f"ERROR: {error}")
        else:
            log("".join(traceback.format_exception(kind, error, trace)).rstrip())

    sys.excepthook = excepthook
    apply_numerics(int(snakemake.threads))
    return parse_experiment(snakemake.config), log
