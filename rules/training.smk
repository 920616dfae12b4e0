# The store beside the manifest is not declared: Snakemake deletes declared outputs of a job that was interrupted.
rule train:
    input:
        unpack(lambda wildcards: targets.training_inputs(wildcards.run)),
    output:
        places.trajectory("{run}"),
    log:
        "logs/{}/train/{{run}}.log".format(experiment.name),
    wildcard_constraints:
        run=alternatives(
            run.name
            for run in experiment.runs
            if run.name not in targets.small_members
        ),
    conda:
        "../envs/quadscape.yaml"
    threads: threads_of
    resources:
        mem_mb=memory("training"),
        runtime=runtime("training"),
        gpu=gpus(),
    params:
        version=lambda wildcards: targets.training(wildcards.run)["version"],
        training=lambda wildcards: targets.training(wildcards.run)["training"],
        seed=lambda wildcards: targets.training(wildcards.run)["seed"],
        model=lambda wildcards: targets.training(wildcards.run)["model"],
        model_code=lambda wildcards: targets.training(wildcards.run)["model_code"],
        loss=lambda wildcards: targets.training(wildcards.run)["loss"],
    script:
        "../workflow_scripts/train.py"


# Small members of a family, many to a job (quadscape/planning/together.py) …
rule train_together:
    input:
        unpack(targets.part_inputs),
    output:
        places.together("{family}", "{part}"),
    log:
        "logs/{}/train_together/{{family}}/{{part}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=memory("training"),
        runtime=lambda wildcards, attempt: targets.part_minutes(wildcards, attempt),
    params:
        trainings=targets.part_trainings,
    script:
        "../workflow_scripts/train_together.py"


localrules:
    train_member,


# … and each by itself, which as a rule finds that it was trained. Ancient: a part that is trained again for a further
# member leaves the others as they are.
rule train_member:
    input:
        unpack(lambda wildcards: targets.training_inputs(wildcards.run)),
        together=ancient(lambda wildcards: targets.part(wildcards.run)),
    output:
        places.trajectory("{run}"),
    log:
        "logs/{}/train_member/{{run}}.log".format(experiment.name),
    wildcard_constraints:
        run=alternatives(targets.small_members),
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=memory("training"),
        runtime=runtime("training"),
    params:
        version=lambda wildcards: targets.training(wildcards.run)["version"],
        training=lambda wildcards: targets.training(wildcards.run)["training"],
        seed=lambda wildcards: targets.training(wildcards.run)["seed"],
        model=lambda wildcards: targets.training(wildcards.run)["model"],
        model_code=lambda wildcards: targets.training(wildcards.run)["model_code"],
        loss=lambda wildcards: targets.training(wildcards.run)["loss"],
    script:
        "../workflow_scripts/train_member.py"


rule extract_start:
    input:
        data=data_of,
        trajectory=places.trajectory("{run}"),
        eigenbasis=lambda wildcards: targets.training_inputs(wildcards.run)[
            "eigenbasis"
        ],
    output:
        places.start("{run}", "{iteration}"),
    log:
        "logs/{}/extract_start/{{run}}/{{iteration}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    threads: threads_of
    resources:
        mem_mb=memory("training"),
        runtime=runtime("checkpoint"),
        gpu=gpus(),
    params:
        version=STAGE_VERSIONS["training"],
    script:
        "../workflow_scripts/extract_start.py"


rule extract_checkpoint:
    input:
        data=data_of,
        trained_on=lambda wildcards: targets.trained_on(
            wildcards.run, wildcards.iteration
        ),
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
        loss=lambda wildcards: experiment.loss_of(experiment.run(wildcards.run)),
        training=lambda wildcards: resolved(experiment.run(wildcards.run).training()),
        code=CHECKPOINT_VERSION,
    script:
        "../workflow_scripts/extract_checkpoint.py"
