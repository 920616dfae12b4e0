"""What workflow scripts share: a log that a person can read, errors as one sentence, and the jobs of measures."""

import atexit
import resource
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil

from quadscape.amounts import format_bytes, format_seconds
from quadscape.errors import QuadscapeError
from quadscape.memory_limits import peak_memory
from quadscape.refusals import in_words
from quadscape.stage.deadline import submitted_job
from quadscape.stage.events import Log

if TYPE_CHECKING:
    from quadscape.planning.experiment import Experiment


def open_log(snakemake: Any) -> Log:
    """Prepares a job: log file and error handling.

    Args:
        snakemake: The object that Snakemake gives to a script.

    Returns:
        A function that writes a line with the time to the job's log and to standard error. The last line, written when
        the process ends by itself, says what the job took (`quadscape costs` adds these up).

    Raises:
        SystemExit: The log cannot be written, in one sentence.
    """
    path = Path(str(snakemake.log[0]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Appended, so that a requeued job keeps what its first attempt said.
        file = path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise SystemExit(f"ERROR: {in_words(error) or error}") from None
    name = " ".join([str(snakemake.rule), *(str(value) for value in snakemake.wildcards)])

    def log(message: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{name}] {message}"
        print(line, file=file)
        print(line, file=sys.stderr, flush=True)

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sentence = in_words(error) if isinstance(error, OSError) else ""
        if sentence or isinstance(error, QuadscapeError):
            log(f"ERROR: {sentence or error}")
        elif isinstance(error, KeyboardInterrupt):
            log("interrupted")
        else:
            log("".join(traceback.format_exception(kind, error, trace)).rstrip())

    sys.excepthook = excepthook
    atexit.register(lambda: log(_taken()))
    return log


def _taken() -> str:
    """What this process and its children have taken so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    elapsed = time.time() - psutil.Process().create_time()
    return f"took {format_seconds(elapsed)}, {cpu:.1f} CPU-s and at most {format_bytes(peak_memory())} of memory"


def start_job(snakemake: Any) -> tuple["Experiment", Log]:
    """Prepares a job that needs the experiment: log, error handling, threads.

    Args:
        snakemake: The object that Snakemake gives to a script.

    Returns:
        The validated experiment, and what `open_log` returns.
    """
    log = open_log(snakemake)
    # Here, since jobs that only read tables need neither: both take a second or more.
    from quadscape.numerics import apply_numerics
    from quadscape.planning.experiment_file import parse_experiment

    apply_numerics(int(snakemake.threads))
    experiment = parse_experiment(snakemake.config)
    # Whatever the profile has made of it: its rule has the resource.
    _check_gpu(experiment.device, asks=snakemake.resources.get("gpu") is not None)
    return experiment, log


def _check_gpu(device: str, *, asks: bool) -> None:
    """In a SLURM job of the workflow, that it was given the GPU that its rule asks for."""
    if asks and submitted_job():
        from quadscape.numerics import check_gpu_is_there

        check_gpu_is_there(device)


def record_made(snakemake: Any) -> None:
    """Records what a figure, a page or the findings were made from, and their checksums.

    Args:
        snakemake: The object that Snakemake gives to a script.
    """
    from quadscape.measures.made import write_record

    write_record(list(snakemake.output), input_paths(snakemake))


def run_measure_job(snakemake: Any, log: Log) -> None:
    """Runs the job of a measure, whose options come from the parameters that decide whether it is run again.

    Args:
        snakemake: The object that Snakemake gives to a script.
        log: From `open_log`.
    """
    from quadscape.measures import MEASURES
    from quadscape.measures.declaration import GROUPS, iteration_of_key
    from quadscape.measures.family import Family
    from quadscape.measures.job import Job
    from quadscape.measures.run import run_measure

    names, parameters = snakemake.wildcards, snakemake.params
    measure = MEASURES[parameters.measure]
    # How it is computed, not what.
    device = snakemake.config.get("device", "auto")
    _check_gpu(device, asks=measure.gpu)
    given = input_paths(snakemake)
    inputs = {name: given[name] for name in measure.reads}
    options = dict(parameters.options)
    family = Family.of_document(options.pop("family")) if measure.of in GROUPS else None
    job = Job(
        names.run if family is None else family.name,
        [iteration_of_key(names[name]) for name in measure.wildcards],
        options,
        inputs,
        family=family,
        device=device,
        threads=int(snakemake.threads),
        log=log,
    )
    run_measure(measure, parameters.label, job, options, snakemake.output[0])


def run_member_job(snakemake: Any) -> None:
    """Runs the job of a small member of a family: usually it was trained with others, and nothing is left to do.

    Args:
        snakemake: The object that Snakemake gives to a script.
    """
    from quadscape.planning.together import Training, take_manifest, train_member

    log, run = open_log(snakemake), str(snakemake.wildcards.run)
    inputs = input_paths(snakemake)
    (part,) = inputs.pop("together")
    training = Training(dict(snakemake.params.items()), inputs, snakemake.output[0])
    if take_manifest(part, run, training.asked, training.manifest):
        log("It was trained with other members of its family.")
        return
    from quadscape.numerics import apply_numerics
    from quadscape.planning.experiment_file import parse_experiment

    apply_numerics(int(snakemake.threads))
    train_member(parse_experiment(snakemake.config), snakemake.config, run, training, log)


def input_paths(snakemake: Any) -> dict[str, list[str]]:
    """All inputs of a job by name."""
    return {name: _paths(found) for name, found in snakemake.input.items()}


def _paths(found: Any) -> list[str]:
    """The files of one name, which Snakemake gives alone where there is only one."""
    return [found] if isinstance(found, str) else list(found)
