"""Keeps log entries until there is time to write them.

Rendering one entry takes as long as a command to a VM. While the daemon runs, the backlog keeps the
entries of the daemon's thread, and writes them when none came for a moment. So they are written
after the commands that an event caused, not before. The order stays, and each entry has the time of
its logging. Errors, tracebacks and entries of other threads are written at once, after all waiting
entries.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

import structlog
import trio
from structlog.typing import EventDict, WrappedLogger

QUIET: Final = 0.02  # seconds without a new entry; a commit to a busy disk takes some ms
LATEST: Final = 1.0  # seconds after which an entry is written in any case
AT_ONCE: Final = 4  # entries written before tasks have their turn; they take some 0.4 ms
LIMIT: Final = 16384  # entries that may wait

URGENT: Final = frozenset({"error", "critical", "exception"})

Write = Callable[[str, EventDict], None]
"""Renders and writes an entry of a level."""


class Backlog:
    """Keeps the waiting entries; as structlog's only processor, it takes every entry.

    Args:
        write: writes one entry.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._waiting: deque[tuple[str, EventDict]] = deque()
        self._writing = threading.Lock()  # so that two threads keep the order
        self._thread: int | None = None  # whose entries may wait
        self._said = trio.Event()
        self._said_at = 0.0  # by the clock that is never set

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> NoReturn:
        """Take an entry; structlog does nothing more with it.

        Raises:
            structlog.DropEvent: always.
        """
        event["timestamp"] = time.time()
        waits = self._thread == threading.get_ident()
        waits = waits and method not in URGENT and not event.get("exc_info")
        self._waiting.append((method, event))
        if not waits:
            self._write_some(None)
        else:
            if not self._said.is_set():
                self._said.set()
            self._said_at = time.monotonic()
            if len(self._waiting) > LIMIT:
                self._write_some(1)
        raise structlog.DropEvent

    async def run(self) -> None:
        """Keep this thread's entries waiting until cancelled; then write them all."""
        self._thread = threading.get_ident()
        try:
            while True:
                await self._said.wait()
                await self._quiet_or_late()
                self._write_some(AT_ONCE)
                if not self._waiting:
                    self._said = trio.Event()
        finally:
            self._thread = None
            self._write_some(None)

    async def _quiet_or_late(self) -> None:
        """Return when no entry came for a moment, or one has waited for too long."""
        await trio.lowlevel.checkpoint()
        until = time.monotonic() + LATEST
        quiet_at = self._said_at + QUIET
        while (now := time.monotonic()) < min(quiet_at, until) and not self._late():
            await trio.sleep(quiet_at - now)
            quiet_at = self._said_at + QUIET

    def _late(self) -> bool:
        if not self._waiting:
            return False
        _, oldest = self._waiting[0]
        said: float = oldest["timestamp"]
        return time.time() - said > LATEST

    def _write_some(self, number: int | None) -> None:
        """Write a number of the waiting entries; None: all."""
        with self._writing:
            left = len(self._waiting) if number is None else min(number, len(self._waiting))
            for _ in range(left):
                self._write(*self._waiting.popleft())
