# With `keep: bases` or `keep: tables`, large arrays go once everything is made from them (quadscape/planning/keeping.py).
# What was purged is no input: it would be computed again for that.
localrules:
    purge,


rule purge:
    input:
        keeping.inputs,
    output:
        places.purge("{run}", "{iteration}", "{what}"),
    log:
        "logs/{}/purge/{{run}}/{{iteration}}/{{what}}.log".format(experiment.name),
    wildcard_constraints:
        what="hessian|basis",
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=memory("figures"),
        runtime=runtime("figures"),
    script:
        "../workflow_scripts/purge.py"
