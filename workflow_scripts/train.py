from quadscape.planning.jobs import input_paths, start_job
from quadscape.planning.together import Training, train_member

experiment, log = start_job(snakemake)
training = Training({}, input_paths(snakemake), snakemake.output[0])
train_member(experiment, snakemake.config, snakemake.wildcards.run, training, log)
