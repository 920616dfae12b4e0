# Validates the experiment and names its places. Everything here is cheap: it runs at every start, also on a dry run.
import sys
from pathlib import Path

import snakemake.exceptions as snakemake_exceptions
from snakemake.exceptions import LockException, WorkflowError

from quadscape.config.values import resolved
from quadscape.planning.experiment_file import earlier_names, parse_experiment
from quadscape.planning.consistency import report_differences
from quadscape.errors import QuadscapeError
from quadscape.figures import FIGURES
from quadscape.figures.pages import PAGES
from quadscape.refusals import in_words
from quadscape.cluster.heads import record_head
from quadscape.cluster.interrupts import Interrupts
from quadscape.cluster.plans import record_plan
from quadscape.planning.keeping import Keeping
from quadscape.planning.labels import figure_hash, findings_hash, page_hash
from quadscape.results.sizes import Kept
from quadscape.cluster.slurm_head import mark_submitted_job, prepare_slurm_head
from quadscape.cluster.snakemake_shell import (
    check_working_directory,
    judge_jobs,
    let_waiting_threads_sleep,
    quote_interpreter,
    record_places,
    tell_protected_outputs,
    written_files,
)
from quadscape.planning.outdated import outdated
from quadscape.planning.targets import Targets, measure_rules
from quadscape.provenance.versions import (
    CHECKPOINT_VERSION,
    DATA_VERSION,
    STAGE_VERSIONS,
)
from quadscape.planning.problem import Problem, check_places, check_writable
from quadscape.results.places import Places
from quadscape.config.yaml_files import (
    check_given_config,
    check_given_files,
    profile_files,
)

quote_interpreter()
let_waiting_threads_sleep()
tell_protected_outputs()
if workflow.is_main_process:
    prepare_slurm_head()
else:
    mark_submitted_job()

try:
    # Snakemake has read them, but of a key that is given twice its reader keeps the last.
    check_given_files(workflow.configfiles, "The experiment file")
    check_given_files(profile_files(sys.argv), "The profile")
    check_given_config(sys.argv)
    experiment = parse_experiment(config)
    check_places(experiment)
    if workflow.is_main_process:
        # A job's files are looked at when it is known which jobs there are.
        check_writable(record_places())
    places = Places(experiment.name, experiment.curvature)
    # Jobs parse this file, too, and take what their head has found out just before.
    kept = Kept(places.sizes, is_job=not workflow.is_main_process)
    problem = Problem.of(experiment, kept)
except QuadscapeError as error:
    raise WorkflowError(str(error)) from None
except OSError as error:
    if sentence := in_words(error):
        raise WorkflowError(sentence) from None
    raise

targets = Targets(problem, places)
keeping = Keeping(targets)
if workflow.is_main_process:
    for sentence in [
        *earlier_names(config),
        *targets.clipped(),
        *targets.take_over_earlier(),
        *targets.left_out(),
    ]:
        print(sentence, file=sys.stderr)
    keeping.remember(kept)
    forced = report_differences(experiment, places, problem, kept)
    judge_jobs(
        workflow,
        [
            *forced,
            *targets.grown_parts(),
            *targets.parts_of(forced),
            *targets.outgrown(),
            *keeping.outdated(),
            *outdated(targets),
        ],
    )


class DirectoryIsLocked(LockException):
    """What Snakemake raises where it finds the directory locked, saying by whom and what to do."""

    def __init__(self):
        from quadscape.cluster.activity import explain_lock

        WorkflowError.__init__(self, explain_lock())


# Snakemake looks the name up when it raises it: only a head that would run jobs and cannot lock the directory does.
snakemake_exceptions.LockException = DirectoryIsLocked


interrupts = Interrupts()


# For `quadscape status`: who is at work here, and how the last head ended.
onstart:
    # Here, since only now it is known where the jobs go; none has begun.
    try:
        check_working_directory(Path.cwd(), on_slurm=not workflow.local_exec)
        if workflow.is_main_process:
            check_writable(written_files(workflow.dag))
    except QuadscapeError as error:
        raise WorkflowError(str(error)) from None
    record_plan(workflow)
    record_head("running", on_slurm=not workflow.local_exec, logs=log)
    if workflow.is_main_process:
        interrupts.watch(
            on_slurm=not workflow.local_exec,
            logs=log,
            unlock=workflow.persistence.cleanup_locks,
        )


onsuccess:
    record_head("finished", on_slurm=not workflow.local_exec, logs=log)


onerror:
    record_head(interrupts.ending(), on_slurm=not workflow.local_exec, logs=log)


def report_page():
    """What the report opens with."""
    page = Path(places.findings("rst"))
    return str(page.absolute()) if page.exists() else "docs/report/workflow.rst"


def data_of(wildcards):
    """The data of a run, or those on which one of its checkpoints is analysed."""
    return targets.data(wildcards.run, wildcards.get("iteration", ""))


def alternatives(names):
    """A pattern for exactly these names; where there is none, nothing is called so."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def dense_checkpoint(wildcards):
    """The checkpoint of which a dense matrix is computed; refused before any job where that cannot be."""
    try:
        return problem.dense_checkpoint(wildcards.run, wildcards.iteration)
    except QuadscapeError as error:
        raise WorkflowError(str(error)) from None


def gathered_shards(wildcards):
    """The shards of a Hessian: as many as it was gathered from, or is to be."""
    return places.hessian_shards(wildcards.run, wildcards.iteration)


def memory(job):
    """What a job asks for, and more with every attempt: SLURM may have killed the one before for it."""
    return lambda wildcards, attempt: problem.memory_mb(
        job, attempt, wildcards.get("run")
    )


def runtime(job):
    """Time limit of a job, which grows with every attempt."""
    return lambda wildcards, attempt: problem.runtime_minutes(
        job, attempt, wildcards.get("run")
    )


def gpus(asks=True):
    """GPUs of a job: one where it gains from it, and the experiment does not do without."""
    return int(asks and experiment.device != "cpu")


def threads_of(wildcards):
    """CPU threads of a stage of a run."""
    return problem.threads(wildcards.run)


wildcard_constraints:
    run=alternatives(run.name for run in experiment.runs),
    family=alternatives(grid.name for grid in experiment.grids),
    pair=alternatives(pair.name for pair in experiment.groups("run_pair")),
    # A checkpoint, or one that is analysed on a subset of the data.
    iteration=targets.iteration_pattern(),
    subset=alternatives(subset.name for subset in experiment.subsets),
    part=r"\d+",
    first=r"\d+",
    second=r"\d+",
    shard=r"\d+",
    digits="[0-9a-f]{8}",
    shards=r"\d+",
    figure="|".join(FIGURES),
    page="|".join(PAGES),
