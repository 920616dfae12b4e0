"""Versions of the data store, of checkpoints and of the long stages.

A version is a parameter of its rule: changing it recomputes the result and everything that follows from it. A test
compares a hash of the code of each with the locked one (`stage_code.json` beside this module), so that a change of
mathematics cannot be forgotten here.
"""

STAGE_VERSIONS = {"training": 1, "hessian": 2, "gauss_newton": 1, "eigenbasis": 2}
# Hashes of the code that made the first of them: what workflows recorded before these were versions.
DATA_VERSION = "aae9433bf1454b03d6dd"
CHECKPOINT_VERSION = "3a7d6412a04419290427"
