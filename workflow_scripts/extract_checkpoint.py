from quadscape.planning.jobs import start_job
from quadscape.training.extraction import extract_checkpoint

experiment, log = start_job(snakemake)
run = experiment.run(snakemake.wildcards.run)
found = extract_checkpoint(
    experiment.model_of(run),
    experiment.loss,
    run,
    int(snakemake.wildcards.iteration),
    snakemake.input.source,
    snakemake.input.data,
    snakemake.output[0],
    experiment.device,
)
log(found.sentence())
