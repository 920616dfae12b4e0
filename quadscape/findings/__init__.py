"""Findings: statements in words computed from tables, with verdicts on published results.

`quadscape.findings.statements` makes them, `quadscape.findings.report` writes them, `known.yaml` holds what was
published. Nothing here loads torch or opens a basis: tables are enough.
"""
