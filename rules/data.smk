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


# A part or an order of the data, for runs and curvature that name it.
rule select_subset:
    input:
        data=places.data,
    output:
        places.subset("{subset}"),
    log:
        "logs/{}/select_subset/{{subset}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=memory("data"),
        runtime=runtime("data"),
    params:
        subset=lambda wildcards: resolved(experiment.subset(wildcards.subset)),
    script:
        "../workflow_scripts/select_subset.py"
