# Validates the experiment and names its places. Everything here is cheap: it runs at every start, also on a dry run.
from snakemake.exceptions import WorkflowError

from quadscape.codehash import module_hash
from quadscape.config import parse_experiment, resolved
from quadscape.errors import QuadscapeError
from quadscape.figures import FIGURES
from quadscape.models import factory_code
from quadscape.versions import STAGE_VERSIONS, STYLE_VERSION
from quadscape.workflow import Places, Problem

try:
    experiment = parse_experiment(config)
    problem = Problem.of(experiment)
except QuadscapeError as error:
    raise WorkflowError(str(error)) from None

places = Places(experiment)


def probe_hash(name, *others):
    """Hash of a probe's code, of other modules that it follows from, and of what all probes share."""
    return module_hash(
        f"quadscape.probes.{name}",
        *others,
        "quadscape.probes.ranks",
        "quadscape.probes.interfaces",
    )


def memory(job):
    """What a job asks for, and more with every attempt: SLURM may have killed the one before for it."""
    return lambda wildcards, attempt: problem.memory_mb(job, attempt)


def runtime(job):
    """Time limit of a job, which grows with every attempt."""
    return lambda wildcards, attempt: problem.runtime_minutes(job, attempt)


wildcard_constraints:
    run="|".join(re.escape(run.name) for run in experiment.runs),
    iteration=r"\d+",
    first=r"\d+",
    second=r"\d+",
    shard=r"\d+",
    figure="|".join(FIGURES),
