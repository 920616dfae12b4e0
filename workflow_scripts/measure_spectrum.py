from quadscape.jobs import start_job, write_tables
from quadscape.probes import spectrum
from quadscape.probes.setting import Setting

experiment, log = start_job(snakemake)
setting = Setting.load(snakemake.input, experiment)
table = spectrum.measure(setting.basis.eigenvalues, setting.basis.zero_threshold, setting.attributes)
write_tables(snakemake, {"spectrum": table})
