from quadscape.planning.jobs import open_log, run_measure_job

run_measure_job(snakemake, open_log(snakemake))
