# quadscape: training → checkpoints → exact Hessian eigenbases → measures → figures.
# The experiment is config.yaml, or the file given by --configfile or by the profile; it stands alone over the defaults.
from snakemake.utils import min_version

min_version("9.27")


if not config:

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/training.smk"
include: "rules/curvature.smk"
include: "rules/measures.smk"
include: "rules/figures.smk"
include: "rules/findings.smk"
include: "rules/purge.smk"


# The first page of the report: what was found, once there is anything.
report: report_page()


rule all:
    default_target: True
    input:
        targets.everything(),
        keeping.outputs(),
