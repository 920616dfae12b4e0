# Hessian and eigenbasis of one checkpoint are one job on a cluster (one group, so one GPU is held once).
rule compute_hessian:
    input:
        data=places.data,
        checkpoint=places.checkpoint("{run}", "{iteration}"),
    output:
        places.hessian("{run}", "{iteration}"),
    log:
        "logs/{}/compute_hessian/{{run}}/{{iteration}}.log".format(experiment.name),
    group:
        "curvature"
    conda:
        "../envs/quadscape.yaml"
    threads: 2
    resources:
        mem_mb=problem.memory_mb("hessian"),
        runtime=problem.runtime_minutes("hessian"),
    params:
        version=STAGE_VERSIONS["hessian"],
        dtype=experiment.curvature.dtype,
    script:
        "../workflow_scripts/compute_hessian.py"


rule compute_eigenbasis:
    input:
        data=places.data,
        checkpoint=places.checkpoint("{run}", "{iteration}"),
        hessian=places.hessian("{run}", "{iteration}"),
    output:
        places.eigenbasis("{run}", "{iteration}"),
    log:
        "logs/{}/compute_eigenbasis/{{run}}/{{iteration}}.log".format(experiment.name),
    group:
        "curvature"
    conda:
        "../envs/quadscape.yaml"
    threads: 2
    resources:
        mem_mb=problem.memory_mb("eigenbasis"),
        runtime=problem.runtime_minutes("eigenbasis"),
    params:
        version=STAGE_VERSIONS["eigenbasis"],
        dtype=experiment.curvature.dtype,
    script:
        "../workflow_scripts/compute_eigenbasis.py"
