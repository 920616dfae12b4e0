"""Errors that a user can act on.

Each carries one sentence that names what was found, where, and what would be valid. The workflow and
the command line print that sentence and nothing else; everything that is not a `QuadscapeError` is a
defect of this software and keeps its traceback.
"""


class QuadscapeError(Exception):
    """Base of every error whose message is meant for the user."""


class ConfigError(QuadscapeError):
    """A key of the experiment file is unknown, has the wrong type or an impossible value."""


class DataError(QuadscapeError):
    """A data set is missing, damaged or of a kind that the workflow does not take."""


class ModelError(QuadscapeError):
    """A model cannot be built, or its loss is not a plain sum over examples."""


class StoreError(QuadscapeError):
    """A store is missing, incomplete or damaged; the message names the directory to remove."""


class StageError(QuadscapeError):
    """A long stage cannot start or go on (too little memory or disk, no device, fenced by another owner)."""


class DeviceMemoryError(StageError):
    """The device's memory does not hold what a unit of a long stage needs at once."""


class RoundingError(StageError):
    """A process rounds differently from the one that began its stage, so that their units do not belong together."""


class FencedError(StageError):
    """Another process has taken over the stage; this one must stop without writing anything more."""


class ClusterError(QuadscapeError):
    """SLURM does not answer or refuses a job, or a controller cannot be submitted."""


class VerificationError(QuadscapeError):
    """A result failed one of its a-posteriori checks; the message gives the number and the threshold."""
