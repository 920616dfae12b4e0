from quadscape.measures.declaration import iteration_of_key, subset_of_key
from quadscape.planning.jobs import start_job
from quadscape.training.extraction import OnSubset, extract_checkpoint

experiment, log = start_job(snakemake)
run, subset = experiment.run(snakemake.wildcards.run), subset_of_key(snakemake.wildcards.iteration)
data = snakemake.input.data
found = extract_checkpoint(
    experiment.model_of(run),
    experiment.loss_of(run),
    run,
    iteration_of_key(snakemake.wildcards.iteration),
    snakemake.input.source,
    data if subset is None else OnSubset(subset, data, snakemake.input.trained_on[0]),
    snakemake.output[0],
    experiment.device,
)
log(found.sentence())
