from quadscape.figures.job import draw_page
from quadscape.planning.jobs import input_paths, open_log, record_made

log = open_log(snakemake)
draw_page(snakemake.wildcards.page, input_paths(snakemake), snakemake.output[0])
record_made(snakemake)
