from quadscape.jobs import start_job, write_tables
from quadscape.probes import line_search
from quadscape.probes.setting import Setting

experiment, log = start_job(snakemake)
setting = Setting.load(snakemake.input, experiment)
tables = line_search.measure(
    setting.objective("train"),
    setting.objective("validation"),
    setting.basis,
    setting.checkpoint.theta,
    experiment.probes.line_search,
    setting.attributes,
    epsilon=setting.epsilon,
)
write_tables(snakemake, tables)
