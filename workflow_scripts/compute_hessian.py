from pathlib import Path

from quadscape.curvature.hessian import HessianTask
from quadscape.jobs import start_job
from quadscape.stage import run_stage

experiment, log = start_job(snakemake)
directory = Path(snakemake.output[0]).parent
task = HessianTask(directory, snakemake.input.checkpoint, snakemake.input.data, experiment.curvature, experiment.device)
run_stage(task, directory, log=log)
