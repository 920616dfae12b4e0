from quadscape.planning.jobs import start_job
from quadscape.training.replay import write_start

experiment, log = start_job(snakemake)
iteration = int(snakemake.wildcards.iteration)
basis = next(iter(snakemake.input.eigenbasis), None)
write_start(snakemake.input.trajectory, snakemake.input.data, iteration, snakemake.output[0], basis)
