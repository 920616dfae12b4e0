from quadscape.figures.job import draw_figure
from quadscape.jobs import open_log

log = open_log(snakemake)
draw_figure(snakemake.wildcards.figure, dict(snakemake.input.items()), snakemake.output)
