from pathlib import Path

from quadscape.curvature.hessian import HessianShardTask
from quadscape.planning.jobs import start_job
from quadscape.stage.run import run_stage

experiment, log = start_job(snakemake)
task = HessianShardTask(
    snakemake.input.checkpoint,
    snakemake.input.data,
    experiment.curvature.model_copy(update={"shards": int(snakemake.wildcards.shards)}),
    experiment.device,
    int(snakemake.wildcards.shard),
)
run_stage(task, Path(snakemake.output[0]).parent, log=log)
