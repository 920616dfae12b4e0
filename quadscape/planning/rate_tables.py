"""Learning rates that runs take from files: read, and checked, when the experiment is."""

from quadscape.config.sections import Run, Table
from quadscape.errors import ConfigError
from quadscape.paths import user_path
from quadscape.planning.experiment import Experiment
from quadscape.results.places import Places
from quadscape.stored import stored_manifest
from quadscape.training.rate_tables import filled


def with_rates(experiment: Experiment) -> Experiment:
    """An experiment whose tables of learning rates have their digests.

    Args:
        experiment: As the experiment file says it.

    Returns:
        The same, or with the digest of the rates in every file. Of a finished run whose file is gone, and of no other,
        the digest is the one that it was trained with.
    """
    tables = any(isinstance(run.learning_rate, Table) and run.path is None for run in experiment.runs)
    if not tables:
        return experiment
    places = Places(experiment.name, experiment.curvature)
    runs = (_filled(run, f"runs[{index}].learning_rate", places) for index, run in enumerate(experiment.runs))
    return experiment.model_copy(update={"runs": tuple(runs)})


def _filled(run: Run, key: str, places: Places) -> Run:
    schedule = run.learning_rate
    if not isinstance(schedule, Table) or run.path is not None:
        return run
    if schedule.path is not None and not user_path(schedule.path).exists():
        finished = (stored_manifest(places.trajectory(run.name)) or {}).get("parameters", {}).get("training", {})
        then = finished.get("learning_rate", {})
        is_same = schedule.digest in {None, then.get("digest")} and finished.get("iterations") == run.iterations
        if then.get("schedule") == "table" and is_same:
            return run.model_copy(update={"learning_rate": schedule.model_copy(update={"digest": then["digest"]})})
    if schedule.path is None:
        # Of a finished run the section stands without it, so that the section itself asks for none.
        raise ConfigError(f"{key}.path is missing and has no default.")
    return filled(run, key)
