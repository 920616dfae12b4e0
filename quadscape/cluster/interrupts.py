"""Ctrl-C at a Snakemake head: once has it end its jobs, twice has it end at once, and either is recorded."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import psutil

from quadscape.cluster.heads import record_head


class Interrupts:
    """Counts them. Without this, the second one leaves a traceback, and a record of a head that was killed.

    Attributes:
        count: How many there were.
    """

    def __init__(self) -> None:
        self.count = 0

    def watch(self, *, on_slurm: bool, logs: Sequence[str], unlock: Callable[[], object]) -> None:
        """Begins to count, in a head that is about to run jobs.

        Args:
            on_slurm: Whether it sends jobs away.
            logs: Snakemake's logs of it.
            unlock: Unlocks the working directory.
        """

        def interrupted(number: int, frame: FrameType | None) -> None:
            self.count += 1
            if self.count == 1:
                raise KeyboardInterrupt
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            record_head("interrupted", on_slurm=on_slurm, logs=logs)
            if on_slurm:
                # Locked, so that the next head does not submit what may still run.
                end = "jobs may still be in SLURM: `quadscape status` shows them"
            else:
                end = "jobs below it are killed, and the same command goes on"
                for process in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                with contextlib.suppress(Exception):
                    unlock()
            # Whole, whatever is being printed just now.
            os.write(2, f"\nInterrupted twice: this snakemake ends at once; {end}.\n".encode())
            sys.stdout.flush()
            os._exit(128 + signal.SIGINT)

        # Ignored, as it is behind nohup, it stays so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, interrupted)

    def ending(self) -> str:
        """How a head has ended that did not finish: `interrupted` or `failed`."""
        return "interrupted" if self.count else "failed"
