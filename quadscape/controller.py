"""Where controllers that an earlier version submitted find themselves: SLURM's queue holds them under this name."""

from quadscape.cluster.controller import Controller

__all__ = ["Controller"]
