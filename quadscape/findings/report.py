"""Findings as a page of the report, as text for a terminal, and as JSON."""

import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from quadscape.findings.known import KnownRow, known_rows
from quadscape.findings.numbers import estimate_text, number
from quadscape.findings.statement import NOT_TESTABLE, VERDICTS, Statement
from quadscape.findings.statements import in_order
from quadscape.measures.declaration import CHAPTERS

NOTHING = "Nothing measured."

HOW_TO_READ = (
    "Each point is one sentence computed from tables, with its number, the interval of that number and what the "
    "interval is about: this training set (an exact finite sum, where only rounding is uncertain) or the population "
    "that it was drawn from. Where a published result speaks of the same number, a verdict stands first: it agrees if "
    "the interval lies inside the margin, it disagrees if the interval lies outside, and else it cannot be told. In a "
    "setting that differs from the published one, the difference is named and the result is never called refuted. "
    "Margins are this project's own unless said otherwise. The primary finding of each measure was declared "
    "beforehand; all others are exploratory."
)
"""How a reader is told to read the page."""

FORMAT = 1
"""Version of the JSON file."""

_ENUMERATOR = re.compile(r"([a-z]|[0-9]+|[ivxlcdm]+)[.)]?( |$)", re.IGNORECASE)
_SPECIAL = frozenset("!\"#$%&'*+-:;<=>?@[\\]^_`{|}~")


def escape(text: str) -> str:
    """Text as reStructuredText that shows exactly it, whatever it holds, in one paragraph.

    Args:
        text: Any text; runs of white space become single spaces, control characters are left out.

    Returns:
        Escaped text; a template engine that reads it before docutils (Jinja's braces) leaves it alone, too.
    """
    words = " ".join("".join(c if c.isprintable() or c.isspace() else "" for c in text).split())
    escaped = "".join(f"\\{c}" if c in _SPECIAL else c for c in words)
    # What starts a list, an enumeration or a comment only does so at the very beginning; a full stop may yet follow.
    starts = words and words[0] not in _SPECIAL and (not words[0].isalnum() or _ENUMERATOR.match(words))
    if escaped and set(escaped) == {"\\"}:
        return f"\\ {escaped}"  # a line of one mark alone would be read as the line over a title
    return f"\\{escaped}" if starts else escaped


def to_rst(statements: Iterable[Statement], title: str = "Findings") -> str:
    """The page of the report.

    Args:
        statements: All statements.
        title: Title of the page.

    Returns:
        reStructuredText: title, how to read it, the sections, what could not be tested, and a table of the published
        results touched.
    """
    ordered = in_order(list(statements))
    lines = [*_heading(title, "="), escape(HOW_TO_READ), "", f"{escape(summary(ordered))}", ""]
    for section, name in CHAPTERS.items():
        lines += _heading(f"{section} {name}", "-")
        shown = [s for s in ordered if s.section == section and s.verdict != NOT_TESTABLE]
        # What speaks of published results comes first.
        shown.sort(key=lambda statement: not statement.verdict)
        lines += [line for statement in shown for line in _bullet(statement)]
        if not shown:
            lines += [NOTHING, ""]
    lines += _untested(ordered)
    return "\n".join([*lines, *_known_table(ordered)]).rstrip() + "\n"


def _untested(statements: Sequence[Statement]) -> list[str]:
    """What could not be tested, one line each: every result once for every reason."""
    reasons = dict.fromkeys((s.known, s.claim, s.reason) for s in statements if s.verdict == NOT_TESTABLE)
    if not reasons:
        return []
    lines = _heading("What could not be tested here, and what would do", "-")
    for _, claim, reason in reasons:
        lines.append(f"- **{escape(NOT_TESTABLE)}** – {escape(claim) or 'No sentence'}. {escape(reason) or '–'}.")
    return [*lines, ""]


def _heading(text: str, mark: str) -> list[str]:
    shown = escape(text) or escape("Findings")
    # Wide characters take two columns, and an underline that is too short is a warning.
    return [shown, mark * (2 * len(shown)), ""]


def _bullet(statement: Statement) -> list[str]:
    """One list item: verdict, sentence, number, place, source."""
    first = []
    if statement.verdict:
        first.append(f"**{escape(statement.verdict)}** –")
    first.append(f"{escape(statement.claim) or 'No sentence'}.")
    if statement.primary:
        first.append("*Primary finding.*")
    parts = [" ".join(first)]
    for label, text in _details(statement):
        parts.append(f"*{label}*: {escape(text)}.")
    return [f"- {parts[0]}", *(f"  {part}" for part in parts[1:]), ""]


def _details(statement: Statement) -> list[tuple[str, str]]:
    """Labels and texts of what follows a statement's sentence."""
    known = known_rows().get(statement.known)
    found = [("Value", estimate_text(statement)), ("Where", statement.where), ("Why", statement.reason)]
    if known is not None:
        whose = "quoted" if known.quoted else "ours"
        found.append(("Published", f"{known.claim} ({known.setting})"))
        found.append(("Source", source_text(known)))
        if statement.verdict != NOT_TESTABLE:
            found.append(("Margin", f"{known.quantity}: {margin_text(known)} ({whose})"))
    return [(label, text) for label, text in found if text.strip()]


def source_text(known: KnownRow) -> str:
    """A row's source, and whether it is from memory."""
    return known.source if known.found else f"{known.source}, from memory"


def margin_text(known: KnownRow) -> str:
    """A row's margin in words."""
    margin = known.margin
    if margin.direction == "above":
        return f"at least {number(margin.low)}"
    if margin.direction == "below":
        return f"at most {number(margin.high)}"
    return f"{number(margin.low)} to {number(margin.high)}"


def summary(statements: Sequence[Statement]) -> str:
    """How many statements there are with each verdict."""
    counts = {verdict: sum(s.verdict == verdict for s in statements) for verdict in VERDICTS}
    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items() if verdict and count)
    text = f"{len(statements):,} statements"
    return f"{text}; of those on published results: {verdicts}." if verdicts else f"{text}."


def verdicts_of(statements: Iterable[Statement]) -> dict[str, list[str]]:
    """Verdicts by published result, in the order of the list of known results, each verdict once.

    Args:
        statements: All statements.

    Returns:
        By the id of a result the verdicts on it; "not testable" only where there is no other.
    """
    found: dict[str, list[str]] = {row: [] for row in known_rows()}
    for statement in statements:
        if statement.known and statement.verdict not in found.setdefault(statement.known, []):
            found[statement.known].append(statement.verdict)
    told = {row: [v for v in verdicts if v != NOT_TESTABLE] or verdicts for row, verdicts in found.items()}
    return {row: verdicts for row, verdicts in told.items() if verdicts}


def _known_table(statements: Sequence[Statement]) -> list[str]:
    touched, rows = verdicts_of(statements), known_rows()
    if not touched:
        return []
    lines = [*_heading("Published results", "-"), ".. list-table::", "   :header-rows: 1", ""]
    table = [("claim", "source", "margin", "measure", "verdict")]
    for row, verdicts in touched.items():
        if row in rows:
            known = rows[row]
            measure = known.measure if known.present else f"{known.measure} (not there yet)"
            table.append((known.claim, source_text(known), margin_text(known), measure, ", ".join(verdicts)))
    for cells in table:
        lines += [f"   {'* -' if place == 0 else '  -'} {escape(cell) or '–'}" for place, cell in enumerate(cells)]
    return lines


def format_findings(statements: Iterable[Statement], width: int = 100) -> str:
    """Findings for a terminal.

    Args:
        statements: All statements.
        width: Columns.

    Returns:
        Text: sections, one statement a paragraph; of the not testable only why; what is not measured yet is counted.
    """
    ordered = in_order(list(statements))
    lines = [*textwrap.wrap(summary(ordered), max(width, 30)), ""]
    for section, name in CHAPTERS.items():
        own = [statement for statement in ordered if statement.section == section]
        if not own:
            continue
        lines += [f"{section} {name}"]
        for statement in own:
            if statement.verdict != NOT_TESTABLE:
                lines += _paragraph(statement, width)
        lines += [*_untestable_lines([s for s in own if s.verdict == NOT_TESTABLE], width), ""]
    return "\n".join(lines).rstrip() + "\n"


def _untestable_lines(statements: Sequence[Statement], width: int) -> list[str]:
    """Why published results are not testable, each once with all its runs; those without a measure are counted."""
    rows, reasons, unmeasured = known_rows(), dict[tuple[str, str], list[str]](), 0
    for statement in statements:
        if statement.known in rows and not rows[statement.known].present:
            unmeasured += 1
        else:
            reasons.setdefault((statement.known, statement.reason), []).append(statement.where)
    lines = []
    for (row, reason), places in reasons.items():
        where = "; ".join(filter(None, dict.fromkeys(places)))
        text = " ".join(f"not testable: {row}{f' ({where})' if where else ''}: {reason}".split())
        lines += textwrap.wrap(text, max(width, 30), initial_indent="  ◦ ", subsequent_indent="    ")
    if unmeasured:
        lines.append(f"  ◦ without a measure yet: {unmeasured:,} published results")
    return lines


def _paragraph(statement: Statement, width: int) -> list[str]:
    verdict = f"[{statement.verdict}] " if statement.verdict else ""
    parts = [f"{verdict}{statement.claim}.", estimate_text(statement), statement.where, statement.reason]
    known = known_rows().get(statement.known)
    if known is not None:
        parts.append(f"published: {source_text(known)}")
    text = " | ".join(" ".join(part.split()) for part in parts if part.strip())
    # Narrower than any sentence is legible would only cut words.
    return textwrap.wrap(text, max(width, 30), initial_indent="  • ", subsequent_indent="    ")


def to_json(statements: Iterable[Statement]) -> str:
    """All statements as strict JSON, in the order of the report."""
    entries = [statement.to_json() for statement in in_order(list(statements))]
    return json.dumps({"format": FORMAT, "statements": entries}, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> list[Statement]:
    """The statements that `to_json` wrote.

    Args:
        text: JSON.

    Returns:
        The statements.

    Raises:
        ValueError: It is of another format.
    """
    values = json.loads(text)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"these are no findings of format {FORMAT}")
    return [Statement.from_json(entry) for entry in values["statements"]]


def write_report(statements: Sequence[Statement], page: str | Path, data: str | Path, title: str = "Findings") -> None:
    """Writes the page and the JSON file.

    Args:
        statements: All statements.
        page: Path of the reStructuredText page.
        data: Path of the JSON file, usually `findings.json`.
        title: Title of the page.
    """
    for path, text in ((Path(page), to_rst(statements, title)), (Path(data), to_json(statements))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
