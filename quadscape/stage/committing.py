"""Storing beside computing: a thread that commits what one unit has computed while the next is being computed.

It has one piece of work at a time, and takes the next only when that is done: what waits in memory is never more than
one unit's arrays, and what it writes to the journal has the order in which units were computed.
"""

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType


class Committing:
    """The committing thread of one process's work on a stage, for a `with` statement.

    Whatever goes wrong in it is raised where the stage next hands over, waits, or ends; nothing is committed after it.
    Leaving the `with` statement waits for what is being stored, so that nobody else is given the stage meanwhile; an
    interrupt during that makes the thread give up at its next file.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "commit")
        self._work: Future[None] | None = None
        self._arrays = frozenset[str]()
        self._given_up = False

    def hand_over(self, work: Callable[[], None], arrays: Collection[str] = ()) -> None:
        """Has something done in the thread, once all that was handed over before is.

        Args:
            work: What.
            arrays: Names of the arrays that it writes to.
        """
        self.finish()
        self._arrays = frozenset(arrays)
        self._work = self._executor.submit(work)

    def finish(self) -> None:
        """Waits for what was handed over; raises what went wrong in it, every time."""
        if self._work is not None:
            self._work.result()

    def finish_array(self, name: str) -> None:
        """The same, if it writes to an array of that name."""
        if name in self._arrays:
            self.finish()

    def check(self) -> None:
        """Called by the work between two files.

        Raises:
            KeyboardInterrupt: What it stores is no longer waited for.
        """
        if self._given_up:
            raise KeyboardInterrupt

    def __enter__(self) -> "Committing":
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        interrupted = None
        while True:
            try:
                if self._work is not None:
                    # First: an interrupt makes Python take a thread that is being joined for ended.
                    wait([self._work])
                self._executor.shutdown()
                break
            except KeyboardInterrupt as interrupt:
                self._given_up, interrupted = True, interrupt
        if interrupted is not None:
            raise interrupted
        failed = None if self._work is None else self._work.exception()
        # It came before whatever went wrong in the unit after it, which may follow from it.
        if failed is not None and failed is not error and (error is None or isinstance(error, Exception)):
            raise failed
