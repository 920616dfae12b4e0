from pathlib import Path

from quadscape.planning.jobs import start_job
from quadscape.stage.run import run_stage
from quadscape.training.start import StartPoint
from quadscape.training.step_rules import step_of
from quadscape.training.task import TrainingTask

experiment, log = start_job(snakemake)
run = experiment.run(snakemake.wildcards.run)
task = TrainingTask(
    run,
    experiment.run_seed(run),
    experiment.model_of(run),
    experiment.loss,
    snakemake.input.data,
    experiment.device,
    None if run.start is None else StartPoint.load(snakemake.input.start[0], run.start),
    step_of(
        run,
        None if run.step is None else run.step.rule(),
        next(iter(snakemake.input.eigenbasis), None),
        snakemake.input.data,
    ),
)
run_stage(task, Path(snakemake.output[0]).parent, log=log)
