rule prepare_data:
    output:
        places.data,
    log:
        "logs/{}/prepare_data.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=memory("data"),
        runtime=runtime("data"),
    params:
        data=resolved(experiment.data),
        seed=experiment.seed,
        listing=problem.data.listing,
        code=DATA_VERSION,
    script:
        "../workflow_scripts/prepare_data.py"
