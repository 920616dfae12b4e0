"""The job that turns all tables of an experiment into findings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quadscape.findings.report import write_report
from quadscape.findings.statements import all_statements
from quadscape.measures import MEASURES
from quadscape.measures.result import table_path
from quadscape.tables import Table, read_table


def tables_with_settings(
    manifests: Mapping[str, Sequence[str]], settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Table]]:
    """All tables, each with the setting of its run among its attributes.

    Args:
        manifests: Manifests of results by measure.
        settings: What is known of each run, by its name; see `quadscape.findings.reading.SETTING`.

    Returns:
        Tables by name.
    """
    found: dict[str, list[Table]] = {}
    for measure, paths in manifests.items():
        for name, schema in MEASURES[measure].schemas.items():
            for path in paths:
                table = read_table(table_path(path, name), schema)
                setting = settings.get(str(table.attributes.get("run")), {})
                found.setdefault(name, []).append(Table(schema, table.columns, {**setting, **table.attributes}))
    return found


def write_findings(
    experiment: str,
    manifests: Mapping[str, Sequence[str]],
    settings: Mapping[str, Mapping[str, Any]],
    page: str | Path,
    data: str | Path,
) -> None:
    """Writes the findings of an experiment.

    Args:
        experiment: Its name.
        manifests: Manifests of results by measure.
        settings: What is known of each run, by its name.
        page: File for the report, reStructuredText.
        data: The same as JSON.
    """
    statements = all_statements(tables_with_settings(manifests, settings))
    write_report(statements, page, data, f"What was found in experiment {experiment}")
