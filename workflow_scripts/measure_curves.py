from quadscape.jobs import start_job, write_tables
from quadscape.probes import curves
from quadscape.training import Trajectory

experiment, log = start_job(snakemake)
course = Trajectory.open(snakemake.input.trajectory).curves()
tables = curves.measure(
    course.loss,
    course.learning_rate,
    course.gradient_norm,
    course.layers,
    course.evaluation,
    course.counts,
    {"run": snakemake.wildcards.run},
)
write_tables(snakemake, tables)
