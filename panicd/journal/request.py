"""What is asked of the journal's writer thread, and how the event loop lets it begin at once."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Final

import trio

from panicd.journal.batch import Batch
from panicd.journal.error import JournalDamagedError
from panicd.rules.incident import IllegalTransitionError

STANDS_ASIDE: Final = 0.0005
"""Seconds for which the event loop leaves the interpreter to a writer thread that was idle. The
thread would get it so late otherwise (``service.daemon.SWITCH_INTERVAL``), again for each
statement."""


def _held() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True, eq=False)
class Request:
    """``work`` is done in the writer's transaction; ``done`` gets the error, or None.

    ``is_prepared`` is released when only the disk is still to be waited for.
    """

    work: Callable[[Batch], None]
    token: trio.lowlevel.TrioToken
    done: Callable[[BaseException | None], None]
    error: BaseException | None = None
    is_prepared: threading.Lock = field(default_factory=_held)

    def carry_out(self, batch: Batch) -> None:
        """Do the work; its fault does not concern the others in the transaction."""
        try:
            self.work(batch)
        except (IllegalTransitionError, JournalDamagedError) as error:
            self.error = error


class Requests:
    """The requests that the writer thread has not taken yet."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Request | None] = SimpleQueue()
        self._is_awaited = False  # by the writer thread, which does nothing else
        self._woke: Request | None = None  # the thread

    def put(self, request: Request) -> None:
        """Add a request; it wakes an idle writer thread."""
        is_awaited, self._is_awaited = self._is_awaited, False
        self._queue.put(request)
        if is_awaited:
            self._woke = request

    def stand_aside(self) -> None:
        """Let the writer thread prepare the request that woke it."""
        request, self._woke = self._woke, None
        if request is not None:
            request.is_prepared.acquire(timeout=STANDS_ASIDE)

    def end(self) -> None:
        """Say that no request will follow."""
        self._queue.put(None)

    def take(self, timeout: float | None = None) -> tuple[list[Request], bool]:
        """Wait for requests; return all that there are, and whether more may follow.

        Raises:
            Empty: none came in so many seconds.
        """
        self._is_awaited = self._queue.empty()
        queued = [self._queue.get(timeout=timeout)]
        queued += [self._queue.get() for _ in range(self._queue.qsize())]
        requests = [request for request in queued if request is not None]
        return requests, len(requests) == len(queued)
