rule prepare_data:
    output:
        places.data,
    log:
        "logs/{}/prepare_data.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=problem.memory_mb("data"),
        runtime=problem.runtime_minutes("data"),
    params:
        data=resolved(experiment.data),
        seed=experiment.seed,
        listing=problem.data.listing,
        code=module_hash("quadscape.data"),
    script:
        "../workflow_scripts/prepare_data.py"
