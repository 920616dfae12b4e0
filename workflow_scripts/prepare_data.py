from quadscape.data import prepare
from quadscape.jobs import start_job

experiment, log = start_job(snakemake)
prepare(experiment.data, experiment.seed, snakemake.output[0])
