from quadscape.data.subsets import write_subset
from quadscape.planning.jobs import start_job

experiment, log = start_job(snakemake)
counts = write_subset(experiment.subset(snakemake.wildcards.subset), snakemake.input.data, snakemake.output[0])
log(f"Examples: {', '.join(f'{count:,} {split}' for split, count in counts.items())}.")
