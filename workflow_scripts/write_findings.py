from quadscape.findings.job import write_findings
from quadscape.planning.jobs import input_paths, open_log, record_made

log = open_log(snakemake)
write_findings(
    snakemake.params.experiment,
    input_paths(snakemake),
    snakemake.params.settings,
    snakemake.output.page,
    snakemake.output.data,
)
record_made(snakemake)
