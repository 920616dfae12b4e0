"""Versions of the long stages and of the figures' shared style.

A version is a parameter of its rule: raising it recomputes the stage and everything that follows from it. A test
compares a hash of each stage's code with the locked one (`quadscape/stage_code.json`), so that a change of mathematics
cannot be forgotten here.
"""

STAGE_VERSIONS = {"training": 1, "hessian": 2, "gauss_newton": 1, "eigenbasis": 2}
STYLE_VERSION = 2
