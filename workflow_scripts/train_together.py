from quadscape.planning.jobs import start_job
from quadscape.planning.together import Training, train_together

experiment, log = start_job(snakemake)
trainings = {run: Training(**asked) for run, asked in snakemake.params.trainings.items()}
train_together(experiment, snakemake.config, trainings, snakemake.output[0], log)
