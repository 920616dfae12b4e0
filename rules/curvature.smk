# Hessian and eigenbasis of one checkpoint are one job on a cluster (one group, so one GPU is held once). With several
# shards each of them is a job with a GPU of its own, and the gather goes with the eigenbasis.
rule compute_hessian_shard:
    input:
        data=data_of,
        checkpoint=dense_checkpoint,
    output:
        places.hessian_shard("{run}", "{iteration}", "{shard}", "{shards}"),
    log:
        "logs/{}/compute_hessian_shard/{{run}}/{{iteration}}/{{shard}}-of-{{shards}}.log".format(
            experiment.name
        ),
    group:
        "curvature" if experiment.curvature.shards == 1 else None
    conda:
        "../envs/quadscape.yaml"
    threads: threads_of
    resources:
        mem_mb=memory("hessian_shard"),
        runtime=runtime("hessian_shard"),
        gpu=gpus(),
    params:
        version=STAGE_VERSIONS["hessian"],
        dtype=experiment.curvature.dtype,
        tf32=experiment.curvature.tf32,
    script:
        "../workflow_scripts/compute_hessian_shard.py"


rule compute_hessian:
    input:
        data=data_of,
        checkpoint=places.checkpoint("{run}", "{iteration}"),
        shards=gathered_shards,
    output:
        places.hessian("{run}", "{iteration}"),
    log:
        "logs/{}/compute_hessian/{{run}}/{{iteration}}.log".format(experiment.name),
    group:
        "curvature"
    conda:
        "../envs/quadscape.yaml"
    threads: threads_of
    resources:
        mem_mb=memory("hessian"),
        runtime=runtime("hessian"),
        gpu=gpus(),
    params:
        version=STAGE_VERSIONS["hessian"],
        dtype=experiment.curvature.dtype,
        shards=lambda wildcards: places.shards(wildcards.run, wildcards.iteration),
    script:
        "../workflow_scripts/compute_hessian.py"


rule compute_eigenbasis:
    input:
        data=data_of,
        checkpoint=places.checkpoint("{run}", "{iteration}"),
        hessian=places.hessian("{run}", "{iteration}"),
        # Not named to the script, which finds them; but if one was removed, it must be there again.
        shards=gathered_shards,
    output:
        places.eigenbasis("{run}", "{iteration}"),
    log:
        "logs/{}/compute_eigenbasis/{{run}}/{{iteration}}.log".format(experiment.name),
    group:
        "curvature"
    conda:
        "../envs/quadscape.yaml"
    threads: threads_of
    resources:
        mem_mb=memory("eigenbasis"),
        runtime=runtime("eigenbasis"),
        gpu=gpus(),
    params:
        version=STAGE_VERSIONS["eigenbasis"],
        dtype=experiment.curvature.dtype,
    script:
        "../workflow_scripts/compute_eigenbasis.py"


# Asked for with curvature.gauss_newton; needs no Hessian, so it runs beside it.
rule compute_gauss_newton:
    input:
        data=data_of,
        checkpoint=dense_checkpoint,
    output:
        places.gauss_newton("{run}", "{iteration}"),
    log:
        "logs/{}/compute_gauss_newton/{{run}}/{{iteration}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    threads: threads_of
    resources:
        mem_mb=memory("gauss_newton"),
        runtime=runtime("gauss_newton"),
        gpu=gpus(),
    params:
        version=STAGE_VERSIONS["gauss_newton"],
        dtype=experiment.curvature.dtype,
    script:
        "../workflow_scripts/compute_gauss_newton.py"
