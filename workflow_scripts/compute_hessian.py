from pathlib import Path

from quadscape.curvature.hessian import HessianTask
from quadscape.planning.jobs import start_job
from quadscape.stage.run import run_stage

experiment, log = start_job(snakemake)
directory = Path(snakemake.output[0]).parent
options = experiment.curvature.model_copy(update={"shards": int(snakemake.params.shards)})
task = HessianTask(directory, snakemake.input.checkpoint, snakemake.input.data, options, experiment.device)
run_stage(task, directory, log=log)
