from pathlib import Path

from quadscape.planning.jobs import start_job
from quadscape.planning.tuned import run_to_train
from quadscape.stage.run import run_stage
from quadscape.training.start import StartPoint
from quadscape.training.task import TrainingTask

experiment, log = start_job(snakemake)
run = run_to_train(experiment, snakemake.config, snakemake.wildcards.run, snakemake.input.chosen, log)
task = TrainingTask(
    run,
    experiment.run_seed(run),
    experiment.model_of(run),
    experiment.loss,
    snakemake.input.data,
    experiment.device,
    None if run.start is None else StartPoint.load(snakemake.input.start[0], run.start),
    may_diverge=experiment.is_member(run.name),
)
run_stage(task, Path(snakemake.output[0]).parent, log=log)
