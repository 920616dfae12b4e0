"""Measuring: what is there already is read, what was begun goes on, and the manifest comes last."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from quadscape.errors import StoreError
from quadscape.measures.declaration import Measure, fingerprint_digits
from quadscape.measures.job import Job
from quadscape.measures.result import (
    Provenance,
    has_kept,
    has_tables,
    manifest_name,
    write_manifest,
    write_result,
)


def run_measure(measure: Measure, label: str, job: Job, options: Mapping[str, Any], manifest: str | Path) -> None:
    """Measures, unless the tables are there already.

    Args:
        measure: The measure.
        label: Label of its code.
        job: What it works on.
        options: Its options, the same as the job's.
        manifest: The declared file; its name carries the digits of options and label.

    Raises:
        StoreError: The name of the manifest belongs to other options or other code.
    """
    manifest = Path(manifest)
    digits = fingerprint_digits(options, label)
    if manifest.name != manifest_name(digits):
        raise StoreError(
            f"{manifest} belongs to other options or other code of the measure {measure.name}, whose files now carry "
            f"{digits} in their names; ask for that one."
        )
    provenance = Provenance.of(measure, label, {**options, **job.described()}, job.inputs)
    if has_tables(manifest, measure, provenance.origin) and has_kept(manifest, measure, provenance.origin):
        job.log("The tables are there already, from the same options, code and inputs; nothing is measured.")
        write_manifest(manifest, provenance)
    elif measure.items:
        from quadscape.measures.items import measure_items, remove_items

        write_result(manifest, provenance, measure_items(measure, job, provenance.origin, manifest))
        if not measure.keeps:
            remove_items(manifest)
    else:
        write_result(manifest, provenance, import_module(measure.module).compute(job))
