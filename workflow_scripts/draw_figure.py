from quadscape.figures.job import draw_figure
from quadscape.planning.jobs import input_paths, open_log, record_made

log = open_log(snakemake)
draw_figure(snakemake.wildcards.figure, input_paths(snakemake), snakemake.output)
record_made(snakemake)
