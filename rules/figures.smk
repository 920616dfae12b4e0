# One rule draws every figure: what it reads, its caption and its place in the report stand beside its function.
rule draw_figure:
    input:
        unpack(lambda wildcards: targets.figure_inputs(wildcards.figure)),
    output:
        svg=report(
            places.figure("{figure}", "svg"),
            caption="../docs/report/caption.rst",
            category=lambda wildcards: FIGURES[wildcards.figure].category,
            labels=lambda wildcards: FIGURES[wildcards.figure].labels,
        ),
        png=places.figure("{figure}", "png"),
    log:
        "logs/{}/draw_figure/{{figure}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=memory("figures"),
        runtime=runtime("figures"),
    params:
        title=lambda wildcards: FIGURES[wildcards.figure].title,
        caption=lambda wildcards: FIGURES[wildcards.figure].caption,
        code=lambda wildcards: figure_hash(wildcards.figure),
    script:
        "../workflow_scripts/draw_figure.py"


# What can be turned in a browser: one file for each kind of view, since the library that draws it is in each.
rule draw_page:
    input:
        unpack(lambda wildcards: targets.page_inputs(wildcards.page)),
    output:
        report(
            places.page("{page}"),
            caption="../docs/report/caption.rst",
            category=lambda wildcards: PAGES[wildcards.page].category,
            labels=lambda wildcards: PAGES[wildcards.page].labels,
        ),
    log:
        "logs/{}/draw_page/{{page}}.log".format(experiment.name),
    conda:
        "../envs/quadscape.yaml"
    resources:
        mem_mb=memory("figures"),
        runtime=runtime("figures"),
    params:
        title=lambda wildcards: PAGES[wildcards.page].title,
        caption=lambda wildcards: PAGES[wildcards.page].report_caption,
        code=lambda wildcards: page_hash(wildcards.page),
    script:
        "../workflow_scripts/draw_page.py"
