# One rule for each measure, from its declaration (quadscape/measures/<name>/declaration.py).
for measure in measure_rules(targets):

    rule:
        name:
            measure.name
        input:
            unpack(measure.inputs),
        output:
            measure.output,
        log:
            measure.log,
        conda:
            "../envs/quadscape.yaml"
        threads: measure.threads
        resources:
            mem_mb=measure.memory,
            runtime=measure.runtime,
        params:
            measure=measure.measure,
            label=measure.label,
            options=measure.options,
        script:
            "../workflow_scripts/measure.py"
