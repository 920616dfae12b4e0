from quadscape.figures import FIGURES, save
from quadscape.jobs import start_job
from quadscape.probes.schemas import SCHEMAS
from quadscape.tables import read_table

_, log = start_job(snakemake)
spec = FIGURES[snakemake.wildcards.figure]
tables = {name: [read_table(path, SCHEMAS[name]) for path in snakemake.input.get(name)] for name in spec.tables}
figure = spec.draw(tables)
save(figure, snakemake.output.svg)
save(figure, snakemake.output.png)
