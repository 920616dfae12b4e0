from quadscape.planning.jobs import open_log
from quadscape.results.purge import purge_checkpoint

purge_checkpoint(snakemake.output[0], open_log(snakemake))
