# What all tables say, in words: the first page of the report.
rule write_findings:
    input:
        unpack(targets.findings_inputs),
    output:
        page=places.findings("rst"),
        data=places.findings("json"),
    log:
        "logs/{}/write_findings.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=memory("figures"),
        runtime=runtime("figures"),
    params:
        experiment=experiment.name,
        settings=targets.settings(),
        code=findings_hash(),
    script:
        "../workflow_scripts/write_findings.py"
