from quadscape.jobs import start_job, write_tables
from quadscape.probes import gradients
from quadscape.probes.setting import Setting

experiment, log = start_job(snakemake)
setting = Setting.load(snakemake.input, experiment)
tables = gradients.measure(
    setting.objective("train"), setting.basis, setting.checkpoint.theta, setting.attributes, device=setting.device
)
write_tables(snakemake, tables)
