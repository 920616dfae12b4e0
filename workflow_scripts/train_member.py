from quadscape.planning.jobs import run_member_job

run_member_job(snakemake)
