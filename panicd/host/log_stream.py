"""Writes log entries to a stream in a separate thread, so that no other thread waits.

A stream's reader may stop for a while, or for ever: a container's log driver that stands still, the
next program of a pipeline, a disk that hangs. Then the writer is blocked (pipe(7)). The thread that
reacts to panics must not be that writer.
"""

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

WAITING_LIMIT: Final = 1 << 20
"""Bytes that may wait to be written: some 4,000 entries."""

Mark = Callable[[bytes, int], bytes]
"""Adds to an entry how many were dropped before it."""


class StreamSink:
    """Writes entries to a stream, from any thread, without making the caller wait.

    An entry that finds no room, or that can't be written (a full disk), is dropped and counted. The
    next written entry says how many were dropped; if none follows, a notice of its own says so.

    Args:
        stream: receives the entries, through its file descriptor if it has one.
        mark: see ``Mark``.
        make_notice: makes the notice, an entry that only says that others were dropped.
        tell: called whenever an entry is dropped, in any thread.
    """

    def __init__(
        self,
        stream: TextIO,
        mark: Mark,
        make_notice: Callable[[], bytes],
        tell: Callable[[], None],
    ) -> None:
        self._stream = stream  # kept, or its descriptor would be closed
        self._write_out = _writer(stream)
        self._mark = mark
        self._make_notice = make_notice
        self._tell = tell
        self._waiting: deque[tuple[bytes, int]] = deque()  # entries, and how many are missing
        self._bytes = 0  # of those, and of the one that is being written
        self._dropped = 0  # since the last that found room
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def send(self, entry: bytes) -> None:
        """Have an entry written, or drop it."""
        with self._changed:
            if self._bytes + len(entry) > WAITING_LIMIT:
                self._dropped += 1
                self._tell()
                return
            self._waiting.append((entry, self._dropped))
            self._bytes += len(entry)
            self._dropped = 0
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="panicd-log")
                self._thread.start()
            self._changed.notify_all()

    debug = info = warning = error = critical = send  # structlog calls the level's name

    def flush(self, timeout: float) -> bool:
        """Wait until all is written, ``timeout`` seconds at most; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._bytes, timeout)

    def _run(self) -> None:
        lost = 0  # entries that could not be written since the last that could
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                entry, dropped = self._waiting.popleft()
            lost += dropped
            try:
                self._write_out((self._mark(entry, lost) if lost else entry) + b"\n")
            except OSError:
                lost += 1
                self._tell()
            else:
                lost = 0
            with self._changed:
                self._bytes -= len(entry)
                if not self._waiting and self._dropped and not lost:
                    notice = self._make_notice()
                    self._waiting.append((notice, self._dropped))
                    self._bytes += len(notice)
                    self._dropped = 0
                self._changed.notify_all()


def _writer(stream: TextIO) -> Callable[[bytes], None]:
    """Return a function that writes all given bytes to a stream; on failure it raises OSError."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # one in memory
        return lambda data: _write_text(stream, data)
    return lambda data: _write_bytes(descriptor, data)


def _write_text(stream: TextIO, data: bytes) -> None:
    stream.write(data.decode())
    stream.flush()


def _write_bytes(descriptor: int, data: bytes) -> None:
    """Write past Python's buffer: its lock would be held while nobody reads the stream."""
    while data:
        with contextlib.suppress(BlockingIOError):  # somebody who shares it made it non-blocking
            data = data[os.write(descriptor, data) :]
            continue
        select.select([], [descriptor], [])
