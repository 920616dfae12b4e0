# Each probe reduces a trajectory or a basis once to small tables; figures read only those.
rule measure_curves:
    input:
        trajectory=places.trajectory("{run}"),
    output:
        curves=places.run_table("curves", "{run}"),
        evaluations=places.run_table("evaluations", "{run}"),
        layer_gradients=places.run_table("layer_gradients", "{run}"),
    log:
        "logs/{}/measure_curves/{{run}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=memory("tables"),
        runtime=runtime("tables"),
    params:
        code=probe_hash("curves"),
    script:
        "../workflow_scripts/measure_curves.py"


rule measure_spectrum:
    input:
        data=places.data,
        checkpoint=places.checkpoint("{run}", "{iteration}"),
        eigenbasis=places.eigenbasis("{run}", "{iteration}"),
    output:
        spectrum=places.table("spectrum", "{run}", "{iteration}"),
    log:
        "logs/{}/measure_spectrum/{{run}}/{{iteration}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=memory("tables"),
        runtime=runtime("tables"),
    params:
        code=probe_hash("spectrum"),
    script:
        "../workflow_scripts/measure_spectrum.py"


# Spectra of the two parts of the Hessian, asked for with curvature.gauss_newton.
rule measure_parts:
    input:
        data=places.data,
        checkpoint=places.checkpoint("{run}", "{iteration}"),
        hessian=places.hessian("{run}", "{iteration}"),
        shards=gathered_shards,
        gauss_newton=places.gauss_newton("{run}", "{iteration}"),
        eigenbasis=places.eigenbasis("{run}", "{iteration}"),
    output:
        parts_spectrum=places.table("parts_spectrum", "{run}", "{iteration}"),
        parts_ritz=places.table("parts_ritz", "{run}", "{iteration}"),
    log:
        "logs/{}/measure_parts/{{run}}/{{iteration}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    threads: 2
    resources:
        mem_mb=memory("parts"),
        runtime=runtime("parts"),
    params:
        code=probe_hash("parts"),
        spectrum=module_hash("quadscape.probes.spectrum"),
    script:
        "../workflow_scripts/measure_parts.py"


rule measure_density:
    input:
        data=places.data,
        checkpoint=places.checkpoint("{run}", "{iteration}"),
    output:
        density=places.table("density", "{run}", "{iteration}"),
    log:
        "logs/{}/measure_density/{{run}}/{{iteration}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    threads: 2
    resources:
        mem_mb=memory("density"),
        runtime=runtime("density"),
    params:
        options=resolved(experiment.probes.density),
        dtype=experiment.probes.dtype,
        code=probe_hash("density", "quadscape.curvature.matrix_free"),
    script:
        "../workflow_scripts/measure_density.py"


rule search_lines:
    input:
        data=places.data,
        checkpoint=places.checkpoint("{run}", "{iteration}"),
        eigenbasis=places.eigenbasis("{run}", "{iteration}"),
    output:
        line_search=places.table("line_search", "{run}", "{iteration}"),
        line_fit=places.table("line_fit", "{run}", "{iteration}"),
    log:
        "logs/{}/search_lines/{{run}}/{{iteration}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    threads: 2
    resources:
        mem_mb=memory("line_search"),
        runtime=runtime("line_search"),
    params:
        options=resolved(experiment.probes.line_search),
        dtype=experiment.probes.dtype,
        code=probe_hash("line_search"),
    script:
        "../workflow_scripts/search_lines.py"


rule project_gradients:
    input:
        data=places.data,
        checkpoint=places.checkpoint("{run}", "{iteration}"),
        eigenbasis=places.eigenbasis("{run}", "{iteration}"),
    output:
        gradients=places.table("gradients", "{run}", "{iteration}"),
        gradient_bands=places.table("gradient_bands", "{run}", "{iteration}"),
    log:
        "logs/{}/project_gradients/{{run}}/{{iteration}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    threads: 2
    resources:
        mem_mb=memory("gradients"),
        runtime=runtime("gradients"),
    params:
        dtype=experiment.probes.dtype,
        code=probe_hash("gradients", "quadscape.curvature.projections"),
    script:
        "../workflow_scripts/project_gradients.py"


rule measure_overlap:
    input:
        first=places.eigenbasis("{run}", "{first}"),
        second=places.eigenbasis("{run}", "{second}"),
    output:
        overlap_rows=places.table("overlap_rows", "{run}", "{first}-{second}"),
        overlap_maxima=places.table("overlap_maxima", "{run}", "{first}-{second}"),
        overlap_bands=places.table("overlap_bands", "{run}", "{first}-{second}"),
        overlap_subspace=places.table("overlap_subspace", "{run}", "{first}-{second}"),
    log:
        "logs/{}/measure_overlap/{{run}}/{{first}}-{{second}}.log".format(
            experiment.name
        ),
    conda:
        "../envs/quadscape.yaml"
    threads: 2
    resources:
        mem_mb=memory("overlap"),
        runtime=runtime("overlap"),
    params:
        options=resolved(experiment.probes.overlap),
        code=probe_hash("overlap", "quadscape.curvature.projections"),
    script:
        "../workflow_scripts/measure_overlap.py"
