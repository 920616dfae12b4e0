# The store beside the manifest is not declared: Snakemake deletes declared outputs of a job that was interrupted.
rule train:
    input:
        data=places.data,
        start=start_point,
        eigenbasis=step_basis,
    output:
        places.trajectory("{run}"),
    log:
        "logs/{}/train/{{run}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    threads: 2
    resources:
        mem_mb=memory("training"),
        runtime=runtime("training"),
    params:
        version=STAGE_VERSIONS["training"],
        training=lambda wildcards: resolved(experiment.run(wildcards.run).training()),
        seed=lambda wildcards: experiment.run_seed(experiment.run(wildcards.run)),
        model=lambda wildcards: resolved(
            experiment.model_of(experiment.run(wildcards.run))
        ),
        model_code=lambda wildcards: problem.networks[wildcards.run].code,
        loss=experiment.loss,
    script:
        "../workflow_scripts/train.py"


rule extract_start:
    input:
        data=places.data,
        trajectory=places.trajectory("{run}"),
        eigenbasis=step_basis,
    output:
        places.start("{run}", "{iteration}"),
    log:
        "logs/{}/extract_start/{{run}}/{{iteration}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    threads: 2
    resources:
        mem_mb=memory("training"),
        runtime=runtime("checkpoint"),
    params:
        version=STAGE_VERSIONS["training"],
    script:
        "../workflow_scripts/extract_start.py"


rule extract_checkpoint:
    input:
        data=places.data,
        source=lambda wildcards: places.checkpoint_source(
            experiment.run(wildcards.run), wildcards.iteration
        ),
    output:
        places.checkpoint("{run}", "{iteration}"),
    log:
        "logs/{}/extract_checkpoint/{{run}}/{{iteration}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=memory("checkpoint"),
        runtime=runtime("checkpoint"),
    params:
        model=lambda wildcards: resolved(
            experiment.model_of(experiment.run(wildcards.run))
        ),
        model_code=lambda wildcards: problem.networks[wildcards.run].code,
        loss=experiment.loss,
        training=lambda wildcards: resolved(experiment.run(wildcards.run).training()),
        code=CHECKPOINT_VERSION,
    script:
        "../workflow_scripts/extract_checkpoint.py"
