from quadscape.jobs import start_job, write_tables
from quadscape.probes import spectrum
from quadscape.probes.setting import Setting

experiment, log = start_job(snakemake)
setting = Setting.load(snakemake.input, experiment)
basis = setting.basis
attributes = {**setting.attributes, "invariances": basis.invariances}
table = spectrum.measure(basis.eigenvalues, basis.zero_threshold, basis.generator_overlaps, attributes)
write_tables(snakemake, {"spectrum": table})
