from quadscape.measures.declaration import iteration_of_key, subset_of_key
from quadscape.planning.jobs import start_job
from quadscape.training.extraction import extract_checkpoint

experiment, log = start_job(snakemake)
run = experiment.run(snakemake.wildcards.run)
found = extract_checkpoint(
    experiment.model_of(run),
    experiment.loss,
    run,
    iteration_of_key(snakemake.wildcards.iteration),
    snakemake.input.source,
    snakemake.input.data,
    snakemake.output[0],
    experiment.device,
    subset=subset_of_key(snakemake.wildcards.iteration),
    trained_on=next(iter(snakemake.input.trained_on), None),
)
log(found.sentence())
