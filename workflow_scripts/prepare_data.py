from quadscape.data.sets import prepare
from quadscape.planning.jobs import start_job

experiment, log = start_job(snakemake)
prepare(experiment.data, experiment.seed, snakemake.output[0])
