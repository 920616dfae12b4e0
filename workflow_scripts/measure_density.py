import torch

from quadscape.curvature.matrix_free import CurvatureOperator
from quadscape.jobs import start_job, write_tables
from quadscape.numerics import resolve_device
from quadscape.objective import CheckpointObjectives
from quadscape.probes import density
from quadscape.probes.interfaces import checkpoint_head

experiment, log = start_job(snakemake)
objectives = CheckpointObjectives(snakemake.input.checkpoint, snakemake.input.data, "train")
objective = objectives.get(getattr(torch, experiment.probes.dtype), resolve_device(experiment.device))
table = density.measure(
    CurvatureOperator(objective, objectives.theta),
    experiment.probes.density,
    checkpoint_head(objectives.checkpoint, objective.size, objective.count),
)
write_tables(snakemake, {"density": table})
