"""All findings of an experiment, from its tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from quadscape.findings import (
    batch_hessians,
    connection,
    curves,
    density,
    descent,
    embedding,
    escape,
    evolution,
    example_curvature,
    final_test,
    finite_batch,
    fractal,
    gradients,
    identified,
    independence,
    interpolation,
    layers,
    leakage,
    line_forms,
    line_search,
    localisation,
    noise_crossed,
    noise_curvature,
    noise_memory,
    overlap,
    parts,
    path,
    posterior,
    ruggedness,
    ruggedness_compared,
    sharpness,
    spectrum,
    stationary,
    surface,
    tuning,
)
from quadscape.findings.known import known_rows
from quadscape.findings.reading import Tables
from quadscape.findings.statement import NOT_TESTABLE, Statement, untestable

_MODULES = (
    curves,
    final_test,
    spectrum,
    parts,
    density,
    sharpness,
    localisation,
    overlap,
    identified,
    line_search,
    line_forms,
    independence,
    ruggedness,
    fractal,
    gradients,
    finite_batch,
    noise_curvature,
    noise_crossed,
    batch_hessians,
    example_curvature,
    noise_memory,
    evolution,
    leakage,
    posterior,
    layers,
    tuning,
    descent,
    escape,
    ruggedness_compared,
    stationary,
    interpolation,
    path,
    embedding,
    connection,
    surface,
)

MEASURES: Mapping[str, Callable[[Tables], list[Statement]]] = MappingProxyType(
    {module.MEASURE: module.statements for module in _MODULES}
)
"""Findings of each measure, by its name."""

PRIMARY: Mapping[str, str] = MappingProxyType({module.MEASURE: module.PRIMARY for module in _MODULES if module.PRIMARY})
"""The published result that each measure tests first, declared beforehand."""


def all_statements(tables: Tables) -> list[Statement]:
    """Every finding, and every published result that could not be touched.

    Args:
        tables: All tables of an experiment, all runs and checkpoints, by the name of their schema.

    Returns:
        Statements in the order of the report's sections, and within one of the measures and runs; each published result
        of `known_rows` occurs at least once.
    """
    found = [statement for make in MEASURES.values() for statement in make(tables)]
    found = _with_primaries(found)
    touched = {statement.known for statement in found}
    found += [_untouched(row) for row in known_rows() if row not in touched]
    return in_order(found)


def in_order(statements: Sequence[Statement]) -> list[Statement]:
    """Statements by section, and otherwise as they were."""
    return sorted(statements, key=lambda statement: statement.section)


def _with_primaries(statements: Sequence[Statement]) -> list[Statement]:
    """One statement of each measure is its primary finding: the first of its row, preferably one that was tested."""
    # Where the declared finding has no published counterpart, the measure has marked it itself.
    chosen: dict[str, int] = {}
    for place, statement in enumerate(statements):
        if statement.known and PRIMARY.get(statement.measure) == statement.known:
            before = chosen.setdefault(statement.measure, place)
            if statements[before].verdict == NOT_TESTABLE and statement.verdict != NOT_TESTABLE:
                chosen[statement.measure] = place
    own = {place for place, one in enumerate(statements) if one.primary and not PRIMARY.get(one.measure)}
    marked = own | set(chosen.values())
    return [replace(statement, primary=place in marked) for place, statement in enumerate(statements)]


def _untouched(row: str) -> Statement:
    known = known_rows()[row]
    why = "no table here tests it" if known.present else "not measured yet"
    return untestable(known, f"{why}: {known.would_do} would do", measure=known.measure)
