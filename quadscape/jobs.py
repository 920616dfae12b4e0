"""What every workflow script does first: a log that a person can read, and errors as one sentence."""

import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from quadscape.config import Experiment, parse_experiment
from quadscape.errors import QuadscapeError
from quadscape.numerics import apply_numerics
from quadscape.stage import Log
from quadscape.tables import Table


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


def write_tables(snakemake: Any, tables: Mapping[str, Table]) -> None:
    """Writes each table to the output of its name; all of them, and no others, must be declared.

    Args:
        snakemake: The object that Snakemake gives to a script.
        tables: Tables by name.

    Raises:
        ValueError: Declared outputs and tables differ.
    """
    outputs = dict(snakemake.output.items())
    if outputs.keys() != tables.keys():
        raise ValueError(f"rule {snakemake.rule} declares {sorted(outputs)}, but the tables are {sorted(tables)}")
    for name, table in tables.items():
        table.write(outputs[name])
