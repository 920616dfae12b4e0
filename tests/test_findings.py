import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from io import StringIO

import docutils.core
import docutils.nodes
import jinja2
import numpy as np
import pytest
from family_cases import compared_tables, descent_tables, escape_tables, layer_tables
from figure_cases import checkpoint_tables, pair_tables, run_tables
from findings_cases import (
    FULL,
    ORIGINAL,
    PLANTED,
    USUAL,
    curves,
    gradients,
    neighbours,
    outliers,
    plant,
    power,
    settled,
    spectrum,
    with_largest,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stationary_cases import stationary_tables

from quadscape.findings import estimates, numbers, report
from quadscape.findings import gradients as gradient_findings
from quadscape.findings import overlap as overlap_findings
from quadscape.findings import spectrum as spectrum_findings
from quadscape.findings.known import Margin, known_rows
from quadscape.findings.statement import (
    AGREES,
    DISAGREES,
    EXACT,
    NOT_TESTABLE,
    UNDECIDED,
    Estimate,
    Statement,
    compared,
    judge,
)
from quadscape.findings.statements import MEASURES, PRIMARY, all_statements
from quadscape.measures import MEASURES as DECLARED
from quadscape.measures import SCHEMAS
from quadscape.measures.declaration import CHAPTERS
from quadscape.tables import Table

RELAXED = settings(deadline=None)
"""The machine that tests is shared: how long an example takes says nothing."""

REALS = st.floats(allow_nan=False, allow_infinity=False, width=32)


def of_row(statements: list[Statement], row: str) -> list[Statement]:
    return [statement for statement in statements if statement.known == row]


def verdicts(tables: dict[str, list[Table]], row: str) -> set[str]:
    return {statement.verdict for statement in of_row(all_statements(tables), row)}


def measured(size: int, checkpoints: int = 3) -> dict[str, list[Table]]:
    found: dict[str, list[Table]] = {}
    pieces = [run_tables("r0", 300, (150,))]
    pieces += [checkpoint_tables(size, "r0", 100 * i, i / 12, directions=min(size, 12)) for i in range(checkpoints)]
    pieces += [pair_tables(size, "r0", 100 * a, 100 * b, 0.1) for a, b in itertools.combinations(range(checkpoints), 2)]
    pieces += [descent_tables(seeds=1), layer_tables(("tanh",), (8,)), escape_tables(seeds=6)]
    pieces += [compared_tables(), stationary_tables()]
    for name, table in (item for piece in pieces for item in piece.items()):
        found.setdefault(name, []).append(table)
    return found


@pytest.fixture(scope="module")
def usual() -> dict[str, list[Table]]:
    return measured(60)


def problems(text: str) -> str:
    """Everything that docutils has to say about a page, the least included."""
    stream = StringIO()
    options = {"warning_stream": stream, "report_level": 1, "halt_level": 5}
    docutils.core.publish_parts(text, writer="html", settings_overrides=options)
    return stream.getvalue()


# Published results.


@pytest.mark.parametrize("row", PLANTED)
def test_planted_tables_flip_the_verdict(row: str) -> None:
    assert verdicts(PLANTED[row](True), row) == {AGREES}
    assert verdicts(PLANTED[row](False), row) == {DISAGREES}


def test_every_row_of_a_present_measure_is_planted() -> None:
    assert set(PLANTED) == {row.id for row in known_rows().values() if row.present}


def test_rows_without_a_measure_say_what_would_do() -> None:
    statements = all_statements(measured(50, 2))
    for row in known_rows().values():
        assert of_row(statements, row.id), row.id
        if not row.present:
            (statement,) = of_row(statements, row.id)
            assert statement.verdict == NOT_TESTABLE
            assert statement.reason.startswith("not measured yet: ")
            assert row.would_do in statement.reason


def test_rows_are_complete() -> None:
    rows = known_rows()
    assert len(rows) == 71
    for row in rows.values():
        for text in (row.claim, row.source, row.section, row.setting, row.quantity, row.would_do):
            assert text
            assert text == " ".join(text.split())
        assert row.chapter in CHAPTERS
        assert not row.claim.endswith(".")
        assert row.margin.direction in {"inside", "above", "below"}
    assert {row.id for row in rows.values() if not row.found} == {
        "noise-scale-grows",
        "small-rate-generalises-worse",
        "chains-mix-in-function",
        "sharp-minima-generalise-worse",
        "rescaling-changes-curvature",
        "adaptive-gap",
    }


@pytest.mark.parametrize("row", [row for row in PLANTED if known_rows()[row].requires])
def test_another_setting_is_never_refuted_and_named(row: str) -> None:
    tables = PLANTED[row](False)
    # What tells whether a batch is the whole set is its size.
    name = next(iter(sorted(set(known_rows()[row].requires) - {"P", "full_batch"})), "batch_size")
    without = {
        kind: [Table(t.schema, t.columns, {k: v for k, v in t.attributes.items() if k != name}) for t in of]
        for kind, of in tables.items()
    }
    found = of_row(all_statements(without), row)
    assert found
    for statement in found:
        assert statement.verdict in {UNDECIDED, NOT_TESTABLE}
        assert name in statement.reason


def test_small_networks_are_not_tested() -> None:
    tables = {"spectrum": [spectrum(power(500, 2.5), 10, **USUAL | {"P": 500})]}
    (statement,) = of_row(all_statements(tables), "rank-exponent-trained")
    assert statement.verdict == NOT_TESTABLE
    assert "P = 500; 1,000 would do" in statement.reason


# The verdict.


@RELAXED
@given(st.lists(REALS, min_size=3, max_size=3), st.tuples(REALS, REALS), st.booleans())
def test_verdict_is_interval_against_margin(numbers_, ends, other) -> None:
    low, value, high = sorted(numbers_)
    if ends[0] == ends[1]:
        return
    margin = Margin(*sorted(ends))
    verdict, reason = judge(value, low, high, margin, "P is 3" if other else "")
    inside = margin.low <= low and high <= margin.high
    outside = high < margin.low or low > margin.high
    assert (verdict == AGREES) == inside
    assert (verdict == DISAGREES) == (outside and not other)
    assert (verdict == UNDECIDED) == (not inside and not (outside and not other))
    assert ("P is 3" in reason) == other
    assert verdict in {AGREES, DISAGREES} or reason


@RELAXED
@given(st.lists(REALS, min_size=3, max_size=3), st.tuples(REALS, REALS), st.floats(0, 1e6))
def test_a_wider_interval_only_loses_certainty(numbers_, ends, more) -> None:
    low, value, high = sorted(numbers_)
    if ends[0] == ends[1]:
        return
    margin = Margin(*sorted(ends))
    narrow, _ = judge(value, low, high, margin)
    wide, _ = judge(value, low - more, high + more, margin)
    assert wide in {narrow, UNDECIDED}


@RELAXED
@given(st.sampled_from([math.nan, 1.0]), st.sampled_from([math.nan, 1.0]), st.sampled_from([math.nan, 1.0]))
def test_what_is_missing_is_never_judged(value, low, high) -> None:
    verdict, reason = judge(value, low, high, Margin(0, 2))
    if math.isnan(value):
        assert verdict == NOT_TESTABLE
    elif math.isnan(low) or math.isnan(high):
        assert verdict == UNDECIDED
    else:
        assert verdict == AGREES
    assert bool(reason) == (verdict != AGREES)


def test_infinite_intervals_and_one_sided_margins() -> None:
    assert judge(1, 0, math.inf, Margin(-math.inf, 2))[0] == UNDECIDED
    assert judge(1, -math.inf, 1.5, Margin(-math.inf, 2))[0] == AGREES
    assert judge(5, 3, math.inf, Margin(-math.inf, 2))[0] == DISAGREES
    with pytest.raises(ValueError, match="empty"):
        Margin(2, 1)


def test_a_verdict_needs_a_published_result() -> None:
    with pytest.raises(ValueError, match="verdict"):
        Statement("x", 1, "curves", verdict=AGREES)
    with pytest.raises(ValueError, match="no verdict"):
        Statement("x", 1, "curves", known="edge-full-batch", verdict="refuted")


# Closed forms.


@RELAXED
@given(st.floats(0.3, 3), st.integers(200, 3000))
def test_a_power_law_gives_its_exponent(exponent, count) -> None:
    found = spectrum_findings.rank_exponent(spectrum(power(count, exponent), 1))
    assert found.low - 1e-9 <= exponent <= found.high + 1e-9
    assert found.value == pytest.approx(exponent, rel=1e-9)


def test_thinned_spectra_give_the_same() -> None:
    table = spectrum(power(5000, 0.8), 1)
    kept = np.unique(np.rint(np.geomspace(1, 5000, 400)).astype(int)) - 1
    thin = table.where(kept)
    assert spectrum_findings.rank_exponent(thin).value == pytest.approx(0.8, rel=1e-9)
    value, low, high = spectrum_findings.at_rank(*spectrum_findings.positive_spectrum(thin), 1000)
    assert value == pytest.approx(1000**-0.8)
    assert low <= value <= high


@pytest.mark.parametrize("count", [0, 1, 7, 10, 25])
def test_outliers_are_counted(count: int) -> None:
    eigenvalues = np.concatenate([np.linspace(9, 3, count), power(1000, 0.1)]) if count else power(1000, 0.1)
    assert spectrum_findings.outlier_count(eigenvalues[:60], 10) == count


@pytest.mark.parametrize("exponent", [0.5, 1, 2])
def test_a_power_law_has_no_outliers(exponent: float) -> None:
    assert spectrum_findings.outlier_count(power(60, exponent), 10) == 0


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
def test_noise_exponents(exponent: float) -> None:
    values, noise = gradient_findings.band_means(gradients(USUAL, exponent=exponent))
    found = estimates.power_law(values, noise, "λ")
    assert found.value == pytest.approx(exponent, abs=0.02)


def test_top_overlap_lies_within_its_bounds() -> None:
    generator = np.random.default_rng(0)
    q, _ = np.linalg.qr(generator.standard_normal((40, 40)))
    exact = np.array([np.square(q[:k, :k]).sum() / k for k in range(1, 41)])
    ks = np.array([1, 5, 9, 14, 25, 40])
    table = plant("overlap_subspace", {"end": np.array(["top"] * 6), "k": ks, "overlap": exact[ks - 1]})
    for k in range(1, 41):
        _, low, high = overlap_findings.top_overlap(table, k)
        assert low - 1e-12 <= exact[k - 1] <= high + 1e-12


def test_neighbours_captured() -> None:
    np.testing.assert_allclose(overlap_findings.captured(neighbours(True)["overlap_bands"][0]), 1)
    np.testing.assert_allclose(overlap_findings.captured(neighbours(False)["overlap_bands"][0]), 0, atol=1e-12)


def test_median_intervals_cover() -> None:
    generator = np.random.default_rng(0)
    found = [estimates.median_estimate(generator.exponential(size=15), "x") for _ in range(2000)]
    covered = np.mean([estimate.low <= math.log(2) <= estimate.high for estimate in found])
    assert 0.95 <= covered <= 0.98
    assert math.isnan(estimates.median_estimate(np.ones(5), "x").low)
    assert not math.isnan(estimates.median_estimate(np.ones(6), "x").low)
    # Of so many that 2ⁿ is no float: the normal approximation of ranks.
    many = estimates.median_estimate(np.arange(5001.0), "x")
    assert (many.low, many.high) == (2500 - 70, 2500 + 70)


def test_time_means_cover_for_correlated_series() -> None:
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        series, x = [], 0.0
        for step in generator.standard_normal(2000):
            x = 0.8 * x + step
            series.append(x)
        estimate = estimates.time_mean(np.array(series))
        covered.append(estimate.low <= 0 <= estimate.high)
    assert np.mean(covered) > 0.88
    assert math.isnan(estimates.time_mean(np.arange(100.0)).low)


@RELAXED
@given(st.lists(st.tuples(REALS, REALS), min_size=6, max_size=40))
def test_rank_correlation_is_a_correlation(pairs) -> None:
    x, y = np.array(pairs).T
    found = estimates.rank_correlation(x, y, "pairs")
    if not math.isnan(found.value):
        assert -1 <= found.low <= found.value + 1e-9
        assert found.value - 1e-9 <= found.high <= 1
        assert estimates.rank_correlation(x, -y, "pairs").value == pytest.approx(-found.value)


@RELAXED
@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0.01, 100))
def test_factors(a, b, c, theirs) -> None:
    low, value, high = sorted((a, b, c))
    ends = estimates.factor_interval(low, high, theirs)
    assert ends[0] <= estimates.factor(value, theirs) * (1 + 1e-12)
    assert estimates.factor(value, theirs) <= ends[1] * (1 + 1e-12)
    assert estimates.factor(-value, theirs) == math.inf


# What is there, and what is not.


def test_all_measures_speak(usual) -> None:
    statements = all_statements(usual)
    told = {statement.measure for statement in statements if math.isfinite(statement.value)}
    assert told == set(MEASURES)
    assert [s.section for s in statements] == sorted(s.section for s in statements)
    for measure, row in PRIMARY.items():
        marked = [s for s in statements if s.measure == measure and s.primary]
        assert [s.known for s in marked] == [row]


def test_trace_by_random_vectors_beside_the_exact_one(usual) -> None:
    (first, *_) = [s for s in all_statements(usual) if s.measure == "density"]
    exact = usual["spectrum"][0].attributes["trace"]
    assert ("holds" in first.claim) == (first.low <= exact <= first.high)
    assert "holds" in first.claim or "misses" in first.claim


def test_the_test_split_is_never_read(usual) -> None:
    (table,) = usual["evaluations"]
    loss, accuracy = table["loss"].copy(), table["accuracy"].copy()
    loss[table["split"] == "test"] = 1e3
    accuracy[table["split"] == "test"] = np.nan
    changed = Table(table.schema, {**table.columns, "loss": loss, "accuracy": accuracy}, table.attributes)
    # As JSON: NaN differs from itself.
    assert report.to_json(all_statements(usual | {"evaluations": [changed]})) == report.to_json(all_statements(usual))
    without = table.where(table["split"] != "test")
    assert report.to_json(all_statements(usual | {"evaluations": [without]})) == report.to_json(all_statements(usual))


def test_no_tables_at_all() -> None:
    statements = all_statements({})
    assert {s.known for s in statements} == set(known_rows())
    assert {s.verdict for s in statements} == {NOT_TESTABLE}
    assert all(s.reason for s in statements)


def test_empty_tables_and_one_checkpoint(usual) -> None:
    empty = {name: [table.where(np.zeros(len(table), dtype=bool)) for table in of] for name, of in usual.items()}
    assert report.to_json(all_statements(empty)) == report.to_json(all_statements({}))
    for place in (0, -1):
        one = {name: of[place : place + 1 or None] for name, of in usual.items()}
        assert {s.known for s in all_statements(one)} >= set(known_rows())


@pytest.mark.parametrize("size", [2, 5, 50])
def test_small_sizes(size: int) -> None:
    statements = all_statements(measured(size, 2))
    tested = [s for s in statements if s.verdict in {AGREES, DISAGREES}]
    assert not tested
    for row in ("rank-exponent-trained", "original-top-ratio-1000"):
        (statement,) = of_row(statements, row)
        assert "would do" in statement.reason


def test_nan_columns(usual) -> None:
    for of in usual.values():
        for table in of[-1:]:
            broken = {
                name: np.full(len(table), np.nan) if table[name].dtype.kind == "f" else table[name]
                for name in table.columns
            }
            tables = {**usual, table.schema.name: [Table(table.schema, broken, table.attributes)]}
            statements = all_statements(tables)
            assert problems(report.to_rst(statements)) == ""
            assert {s.known for s in statements} >= set(known_rows())


def test_classes_missing_are_named() -> None:
    setting = {name: value for name, value in USUAL.items() if name != "classes"}
    statements = all_statements({"gradients": [gradients(setting)]})
    for row in ("few-examples-rule", "top-subspace-gradient"):
        (statement,) = of_row(statements, row)
        assert statement.verdict == NOT_TESTABLE
        assert "classes" in statement.reason


def test_sharpness_that_still_changes_is_not_judged() -> None:
    tables = settled(FULL, 1.0)
    tables["spectrum"][0] = with_largest(5.0, 1000, **FULL)
    (statement,) = of_row(all_statements(tables), "edge-full-batch")
    assert statement.verdict == NOT_TESTABLE
    assert "still changes" in statement.reason


def test_the_rate_is_that_of_the_step_before() -> None:
    table = curves(np.arange(0, 100), lambda i: 0.1 if i < 50 else 0.01, None, (50,), **USUAL)
    from quadscape.findings.reading import learning_rate_before

    assert learning_rate_before({"curves": [table]}, "r", 50) == 0.1
    assert learning_rate_before({"curves": [table]}, "r", 51) == 0.01
    assert math.isnan(learning_rate_before({"curves": [table]}, "r", 0))
    assert math.isnan(learning_rate_before({"curves": [table]}, "other", 50))


def test_group_normalisation_is_another_setting() -> None:
    statements = all_statements(outliers("group", 40))
    for row in ("outliers-classes", "outliers-batchnorm"):
        assert all("normalization is group" in s.reason for s in of_row(statements, row))


# Writing.

STATEMENTS = st.builds(
    Statement,
    claim=st.text(max_size=60),
    section=st.integers(1, 9),
    measure=st.text(max_size=10),
    run=st.text(max_size=10),
    iterations=st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
    value=st.floats(),
    low=st.floats(),
    high=st.floats(),
    interval=st.text(max_size=20),
    unit=st.sampled_from(["1", "loss / parameter²", "*|`_"]),
    reason=st.text(max_size=40),
    primary=st.booleans(),
)
JUDGED = st.builds(
    lambda statement, row, verdict: replace(statement, known=row, verdict=verdict),
    STATEMENTS,
    st.sampled_from(list(known_rows())),
    st.sampled_from([AGREES, DISAGREES, UNDECIDED, NOT_TESTABLE]),
)


@RELAXED
@given(st.lists(STATEMENTS | JUDGED, max_size=3))
def test_json_round_trip(statements) -> None:
    text = report.to_json(statements)
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert strict["format"] == report.FORMAT
    # repr: NaN differs from itself.
    expected = sorted(statements, key=lambda statement: statement.section)
    assert repr(report.from_json(text)) == repr(expected)


def test_json_of_another_format() -> None:
    for text in ("[]", '{"format": 99, "statements": []}'):
        with pytest.raises(ValueError, match="format"):
            report.from_json(text)


@RELAXED
@example("A)")
@example("1.")
@example("xiv. x")
@example("(i) x")
@example("/V  x")
@given(st.text(max_size=80) | st.text(alphabet="*`|_\\:.-+#{}%<>[]() \n\t1aA~=^'\"/&@", max_size=40))
def test_escaped_text_is_shown_as_it_is(text) -> None:
    wanted = " ".join("".join(c if c.isprintable() or c.isspace() else "" for c in text).split())
    assert not any(mark in report.escape(text) for mark in ("{{", "{%", "{#"))
    for place in ("{}", "- {}\n", "- {}.\n", "* **agrees** – {}.\n"):
        source = place.format(report.escape(text) or "empty")
        stream = StringIO()
        options = {"warning_stream": stream, "report_level": 1, "halt_level": 5}
        tree = docutils.core.publish_doctree(source, settings_overrides=options)
        assert stream.getvalue() == ""
        shown = " ".join(tree.astext().split())
        assert (" ".join(wanted.split()) or "empty") in shown


@RELAXED
@given(st.lists(STATEMENTS | JUDGED, max_size=3), st.text(max_size=20))
def test_any_page_parses_without_a_warning(statements, title) -> None:
    page = report.to_rst(statements, title)
    assert problems(page) == ""
    # Snakemake reads texts of its report as templates first.
    assert jinja2.Template(page, keep_trailing_newline=True).render() == page
    assert report.format_findings(statements)


def test_the_page_of_an_experiment(usual) -> None:
    statements = all_statements(usual)
    page = report.to_rst(statements, "What was found")
    assert problems(page) == ""
    tree = docutils.core.publish_doctree(page)
    titles = [node.astext() for node in tree.findall(docutils.nodes.title)]
    assert titles == [
        "What was found",
        *(f"{number} {name}" for number, name in CHAPTERS.items()),
        "What could not be tested here, and what would do",
        "Published results",
    ]
    strong = {node.astext() for node in tree.findall(docutils.nodes.strong)}
    assert strong == {s.verdict for s in statements if s.verdict}
    rows = list(tree.findall(docutils.nodes.row))
    assert len(rows) == 1 + len(known_rows())
    text = tree.astext()
    for statement in statements:
        assert " ".join(statement.claim.split()) in text


def test_the_page_of_nothing() -> None:
    page = report.to_rst([])
    assert problems(page) == ""
    assert page.count(report.NOTHING) == 9
    assert "Published results" not in page


def test_files_are_written(usual, tmp_path) -> None:
    statements = all_statements(usual)
    report.write_report(statements, tmp_path / "deep" / "findings.rst", tmp_path / "deep" / "findings.json")
    again = report.from_json((tmp_path / "deep" / "findings.json").read_text(encoding="utf-8"))
    assert repr(again) == repr(report.in_order(statements))
    assert (tmp_path / "deep" / "findings.rst").read_text(encoding="utf-8") == report.to_rst(statements)


def test_terminal_text(usual) -> None:
    text = report.format_findings(all_statements(usual), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "2 Curvature" in text
    assert "without a measure yet" in text
    planted = PLANTED["rank-exponent-trained"](True)
    assert "[agrees] The largest eigenvalues fall" in report.format_findings(all_statements(planted))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12, "12"),
        (-12345, "−12,345"),
        (1.2345, "1.23"),
        (0.032149, "0.0321"),
        (1234.5, "1,230"),
        (9.996, "10.0"),
        (-4.5678e-7, "−4.57×10⁻⁷"),
        (1e7, "1.00×10⁷"),
        (math.nan, "none"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert numbers.number(value) == text


@RELAXED
@given(st.floats(-1e300, 1e300))
def test_numbers_say_what_they_are(value) -> None:
    shown = numbers.number(value).replace("−", "-").replace(",", "")
    if "×10" in shown:
        mantissa, power = shown.split("×10")
        shown = mantissa + "e" + power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    assert float(shown) == pytest.approx(value, rel=6e-3, abs=1e-300)


def test_estimates_in_words() -> None:
    def words(*values, interval="95 %", unit="1") -> str:
        return numbers.estimate_text(Statement("c", 1, "m", "", (), *values, interval=interval, unit=unit))

    assert words(1.0, 0.9, 1.1) == "1 ± 0.10 (95 %)"
    assert words(1.0, 0.9, 1.3, unit="loss") == "1 loss (0.900 to 1.30; 95 %)"
    assert words(1234.5, 1234.5, 1234.5, interval=EXACT) == "1,230 (exact)"
    assert words(1.0, math.nan, math.nan, interval="no interval") == "1 (no interval)"
    assert words(1.0, 0.0, math.inf) == "1 (0 to ∞; 95 %)"
    assert words(math.nan, 1.0, 2.0) == ""


def test_small_and_missing_are_said_in_one_place() -> None:
    statement = compared(
        "original-exponent", "text", Estimate.exact(3.0), ORIGINAL | {"momentum": 0.9}, measure="spectrum"
    )
    assert statement.verdict == UNDECIDED
    assert "momentum is 0.9 (published: 0.97)" in statement.reason


def test_findings_load_neither_torch_nor_pydantic() -> None:
    program = (
        "import sys; import quadscape.findings.report, quadscape.findings.statements as s; s.all_statements({});"
        "print(sorted({'torch', 'pydantic', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_measure_has_findings() -> None:
    assert set(MEASURES) == set(DECLARED)


def test_test_data_are_told_once() -> None:
    columns = {name: np.array([value]) for name, value in (("iteration", 40), ("loss", 0.4), ("accuracy", 0.9))}
    columns |= {"accuracy_low": np.array([0.8]), "accuracy_high": np.array([0.95])}
    table = Table(SCHEMAS["final_test"], columns, {"run": "a", "count": 50})
    (found,) = MEASURES["final_test"]({"final_test": [table]})
    assert (found.value, found.low, found.high, found.section) == (0.9, 0.8, 0.95, 1)
    assert MEASURES["final_test"]({"final_test": []}) == []
