from quadscape.checkpoint import Checkpoint
from quadscape.curvature.eigenbasis import Eigenbasis
from quadscape.jobs import start_job, write_tables
from quadscape.probes import spectrum
from quadscape.probes.interfaces import checkpoint_attributes
from snakemake.script import snakemake

experiment, log = start_job(snakemake)
checkpoint, basis = Checkpoint.load(snakemake.input.checkpoint), Eigenbasis(snakemake.input.eigenbasis)
attributes = checkpoint_attributes(checkpoint, basis, basis.examples)
write_tables(snakemake, {"spectrum": spectrum.measure(basis.eigenvalues, basis.zero_threshold, attributes)})
