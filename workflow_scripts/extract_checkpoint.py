from quadscape.extraction import extract_checkpoint
from quadscape.jobs import start_job

experiment, log = start_job(snakemake)
found = extract_checkpoint(
    experiment,
    snakemake.wildcards.run,
    int(snakemake.wildcards.iteration),
    snakemake.input.source,
    snakemake.input.data,
    snakemake.output[0],
)
log(found.sentence())
