# One rule for each measure, from its declaration (quadscape/measures/<name>/declaration.py). Each takes one thread: with
# two, a measure of the demo takes up to half as much CPU time again, and there are others to run beside it.
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
        resources:
            mem_mb=measure.memory,
            runtime=measure.runtime,
            gpu=gpus(measure.on_gpu),
        params:
            measure=measure.measure,
            label=measure.label,
            options=measure.options,
        script:
            "../workflow_scripts/measure.py"
