from pathlib import Path

from quadscape.curvature.eigenbasis import EigenbasisTask
from quadscape.planning.jobs import start_job
from quadscape.stage.run import run_stage

experiment, log = start_job(snakemake)
task = EigenbasisTask(
    snakemake.input.hessian, snakemake.input.checkpoint, snakemake.input.data, experiment.curvature, experiment.device
)
run_stage(task, Path(snakemake.output[0]).parent, log=log)
