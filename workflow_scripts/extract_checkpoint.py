from quadscape.planning.jobs import start_job
from quadscape.training.extraction import extract_checkpoint

experiment, log = start_job(snakemake)
found = extract_checkpoint(
    experiment.model,
    experiment.loss,
    experiment.run(snakemake.wildcards.run),
    int(snakemake.wildcards.iteration),
    snakemake.input.source,
    snakemake.input.data,
    snakemake.output[0],
    experiment.device,
)
log(found.sentence())
