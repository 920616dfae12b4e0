from quadscape.curvature.eigenbasis import Eigenbasis
from quadscape.jobs import start_job, write_tables
from quadscape.numerics import resolve_device
from quadscape.probes import overlap

experiment, log = start_job(snakemake)
first, second = Eigenbasis(snakemake.input.first), Eigenbasis(snakemake.input.second)
attributes = {
    "run": snakemake.wildcards.run,
    "iteration_a": int(snakemake.wildcards.first),
    "iteration_b": int(snakemake.wildcards.second),
    "P": first.size,
}
device = resolve_device(experiment.device)
write_tables(snakemake, overlap.measure(first, second, experiment.probes.overlap.bands, attributes, device=device))
