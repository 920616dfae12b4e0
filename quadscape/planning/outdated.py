"""Which tables, figures, pages and findings were made from other tables than they would be made from now.

Snakemake knows that from its own records and from times of files. Where those are gone, as in a fresh clone over copied
results, it takes for finished whatever lies in its place, and does not make what a figure that exists would be drawn
from. Every result says itself which tables it was made from.
"""

from collections.abc import Iterator

from quadscape.figures import FIGURES
from quadscape.figures.pages import PAGES
from quadscape.measures import MEASURES
from quadscape.measures.made import digest_there, is_made_from
from quadscape.planning.targets import Targets
from quadscape.stored import stored_document


def outdated(targets: Targets) -> list[str]:
    """Outputs that are there and were made from other tables.

    Args:
        targets: Results of the experiment.

    Returns:
        Of every job that makes such one declared output: manifests of results, then what is drawn and written.
    """
    return [*_results(targets), *(output for output, inputs in _drawn(targets) if not is_made_from(output, inputs))]


def _drawn(targets: Targets) -> Iterator[tuple[str, dict[str, list[str]]]]:
    places = targets.places
    for figure in FIGURES:
        yield places.figure(figure, "svg"), targets.figure_inputs(figure)
    for page in PAGES:
        yield places.page(page), targets.page_inputs(page)
    yield places.findings("rst"), targets.findings_inputs()


def _results(targets: Targets) -> Iterator[str]:
    """Results of measures that read tables of others which are there, and are others now."""
    for name, measure in MEASURES.items():
        read = [other for other in measure.reads if other in MEASURES]
        for run, key in targets.subjects(name) if read else ():
            manifest = targets.result(name, run, key)
            made = (stored_document(manifest) or {}).get("inputs", {})
            now = targets.inputs(measure, run, key) if made else {}
            for other in read:
                digests = [digest_there(path) for path in now.get(other, [])] if other in made else []
                if all(digests) and digests != made.get(other, []):
                    yield manifest
                    break
