"""Logs: one JSON object a line on stderr, or native fields when stderr is systemd's journal.

```
structlog ─┐                                                      ┌─ JSON ──────────► stderr
           ├─► level ─► backlog ─► escape and bound ─► traceback ┤
stdlib ────┘  (WARNING and up)                                   └─ native fields ─► journald
```

Logging never waits: journald's socket does not block, and a stream has a thread of its own
(`log_stream`). Entries that can't be written are dropped and counted.

A guest chooses some of the logged text. In either output a value has no control characters, line
breaks, terminal sequences or direction overrides left, and a bounded length. The escapes are for
reading, not for decoding: a backslash stays a single one.
"""

import contextlib
import json
import logging
import math
import os
import re
import reprlib
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Final, TextIO, TypeAlias, cast

import structlog
from structlog.typing import EventDict, ExcInfo, FilteringBoundLogger, WrappedLogger

from panicd.host.backlog import Backlog
from panicd.host.log_stream import StreamSink
from panicd.rules.printable import VALUE_LIMIT, escape

ITEM_LIMIT: Final = 256
"""Most bytes of an item of a list or mapping."""

ITEMS: Final = 32
"""Items kept of a list or mapping."""

TRACEBACK_LINE_LIMIT: Final = 512
"""Most bytes of a line of a traceback."""

TRACEBACK_LINES: Final = 100
"""Lines kept of a traceback: a quarter from its beginning, the rest from its end (the cause)."""

ENTRY_LIMIT: Final = 128 * 1024
"""Most bytes of one journal entry: below a datagram's default limit (net.core.wmem_default,
208 KiB), so that no entry needs the protocol's second form, a memfd."""

MESSAGE_LIMIT: Final = 8192
"""Most bytes of a journal entry's MESSAGE, which repeats the values."""

REPEATED_AFTER: Final = 5.0
"""Seconds until a library's message is written again."""

LAST_WORDS: Final = 2.0
"""Seconds for writing the waiting entries at the end."""

JOURNAL_SOCKET = "/run/systemd/journal/socket"
"""Where journald takes native entries (systemd's 'Native Journal Protocol')."""

PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog(3) priorities of structlog's level names."""

_PLAIN_WORD: Final = re.compile(r"[\w./:@%+,-]+", re.ASCII)
_NOT_IN_FIELD_NAMES: Final = re.compile(r"[^A-Z0-9_]")

_backlog: Backlog | None = None
_stream: StreamSink | None = None

_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxstring = _short.maxother = ITEM_LIMIT


def configure(*, level: str, stream: TextIO | None = None) -> None:
    """Set up structlog and stdlib logging for this process; a second call replaces the first.

    A logger that was already bound keeps the former set-up; one from `get_logger` does not.

    Args:
        level: Lowest level that is written: `debug`, `info`, `warning`, `error` or `critical`.
        stream: Where JSON goes. By default stderr, or the journal if stderr is the journal's.

    Raises:
        KeyError: `level` is not a level.
    """
    global _backlog, _stream  # noqa: PLW0603 - as structlog's own set-up, there is one a process
    write = _journal_writer() if stream is None and _is_journal(sys.stderr) else None
    sink: Sink | StreamSink
    if write is None:
        sink = _stream = StreamSink(stream or sys.stderr, _mark_json, _json_notice, dropped.add)
        render = _render_json
    else:
        sink, render, _stream = Sink(write, dropped.add), _render_journal, None
    add_traceback = structlog.processors.ExceptionRenderer(_traceback_lines)

    def write_entry(method: str, event: EventDict) -> None:
        event = structlog.processors.add_log_level(sink, method, event)
        event = add_traceback(sink, method, _clean_event(sink, method, event))
        sink.send(render(event))

    _backlog = Backlog(write_entry)
    structlog.configure(
        processors=[_backlog],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_args: sink,
        cache_logger_on_first_use=False,
    )
    _route_stdlib()


async def write_late() -> None:
    """Write this thread's entries when there is time, until cancelled."""
    if _backlog is not None:
        await _backlog.run()


def flush(timeout: float) -> bool:
    """Write the waiting entries within ``timeout`` seconds; return whether all are written."""
    return _stream is None or _stream.flush(timeout)


@contextlib.contextmanager
def last_words() -> Iterator[None]:
    """Write all entries of the block before going on.

    If the block raises an exception and nobody reads the log, the process ends here: nobody would
    read the traceback either, and printing it would wait for ever.
    """
    try:
        yield
    except BaseException:
        if not flush(LAST_WORDS):
            os._exit(1)
        raise
    flush(LAST_WORDS)


def get_logger(**bound: object) -> FilteringBoundLogger:
    """Return a logger that adds `bound` to every event.

    It is set up at each event, so it may be made before `configure`.
    """
    return cast("FilteringBoundLogger", structlog.get_logger(**bound))


# Output

_Write: TypeAlias = Callable[[bytes, int], None]
"""Writes an entry, with the number of those lost before it."""


class Dropped:
    """How many entries were dropped since the process was started. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0

    def add(self) -> None:
        """Count one more."""
        with self._lock:
            self.total += 1


dropped: Final = Dropped()


class Sink:
    """Writes rendered entries without waiting, from any thread.

    An entry that can't be written (a journal that is behind) is dropped and counted. The next
    written entry says how many were dropped. The daemon must neither wait for its log nor die with
    it.

    Args:
        write: Writes one entry, and does not wait.
        tell: Called whenever an entry is dropped.
    """

    def __init__(self, write: _Write, tell: Callable[[], None]) -> None:
        self._write = write
        self._tell = tell
        self._lock = threading.Lock()
        self._dropped = 0

    def send(self, entry: bytes) -> None:
        """Write an entry, or drop it."""
        with self._lock:
            try:
                self._write(entry, self._dropped)
            except OSError:
                self._dropped += 1
                self._tell()
            else:
                self._dropped = 0

    debug = info = warning = error = critical = send  # structlog calls the level's name


# Values


def _clean_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape and bound every value but `exc_info`, which `_traceback_lines` turns into text."""
    return {key: value if key == "exc_info" else _clean(value) for key, value in event.items()}


def _clean(value: object) -> object:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, Mapping):
        return {
            escape(str(key), ITEM_LIMIT): _clean_scalar(item, ITEM_LIMIT)
            for key, item in islice(value.items(), ITEMS)
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean_scalar(item, ITEM_LIMIT) for item in islice(value, ITEMS)]
    return _clean_scalar(value, VALUE_LIMIT)


def _clean_scalar(value: object, limit: int) -> str | int | float | None:
    match value:
        case str():
            return escape(value, limit)
        case bool() | None:
            return value
        case int():  # hex: Python refuses to write a very long one in decimal
            return int(value) if value.bit_length() <= 64 else escape(hex(value), limit)
        case float():  # JSON has no NaN and no infinity (RFC 8259, section 6)
            return float(value) if math.isfinite(value) else str(value)
        case bytes() | bytearray():
            return escape(value[: limit + 1].decode(errors="backslashreplace"), limit)
        case Mapping() | list() | tuple() | set() | frozenset():
            return escape(_short.repr(value), limit)  # bounded however deep and long it is
        case _:
            return escape(str(value), limit)


def _traceback_lines(exc_info: ExcInfo) -> list[str]:
    """Write a traceback as lines: only those of our own frames are split, not a message's."""
    lines: list[str] = []
    for chunk in traceback.TracebackException(*exc_info, compact=True).format():
        is_frame = chunk.lstrip(" |+-").startswith('File "')
        lines += chunk.rstrip("\n").split("\n") if is_frame else [chunk.rstrip("\n")]
    if len(lines) > TRACEBACK_LINES:
        head = TRACEBACK_LINES // 4
        left_out = len(lines) - TRACEBACK_LINES
        lines[head : head + left_out] = [f"… ({left_out} lines left out)"]
    return [escape(line, TRACEBACK_LINE_LIMIT) for line in lines]


# JSON


def _render_json(event: EventDict) -> bytes:
    """Write one object in ASCII: time, level and event first."""
    said = datetime.fromtimestamp(event.pop("timestamp"), UTC)
    head = {"timestamp": said.isoformat(timespec="microseconds").replace("+00:00", "Z")}
    head |= {key: event.pop(key) for key in ("level", "event")}
    return json.dumps(head | dict(event)).encode()


def _mark_json(entry: bytes, missing: int) -> bytes:
    return b'%b, "entries_dropped": %d}' % (entry[:-1], missing)


def _json_notice() -> bytes:
    said: EventDict = {"timestamp": time.time(), "level": "warning", "event": "log is read again"}
    return _render_json(said)


# The journal


def _is_journal(stream: TextIO) -> bool:
    """Tell whether a stream goes to the journal: `$JOURNAL_STREAM` (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _journal_writer() -> _Write | None:
    """Return journald's writer, or None where its socket can't be reached (a container)."""
    address = JOURNAL_SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
    except OSError:
        return None
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def write(entry: bytes, dropped: int) -> None:
        if dropped:
            entry += _field("PANICD_ENTRIES_DROPPED", str(dropped))
        # Addressed with every entry, so that a restart of journald needs no reconnecting.
        sender.sendto(entry, socket.MSG_DONTWAIT, address)

    return write


def _render_journal(event: EventDict) -> bytes:
    """Encode an event as journal fields; what `journalctl` shows by default is MESSAGE."""
    del event["timestamp"]  # journald stamps what it receives
    level, message = event.pop("level"), event.pop("event")
    lines = event.pop("exception", None)
    values = {key: _as_text(value) for key, value in event.items()}
    pairs = (f"{key}={_quote(value)}" for key, value in values.items())
    message = escape(" ".join([str(message), *pairs]), MESSAGE_LIMIT)
    entry = bytearray(_field("MESSAGE", message))
    entry += _field("PRIORITY", str(PRIORITIES[level]))
    entry += _field("SYSLOG_IDENTIFIER", "panicd")
    if lines:
        values["exception"] = "\n".join(cast("Iterable[str]", lines))
    for key, value in values.items():
        field = _field(_field_name(key), value)
        if len(entry) + len(field) > ENTRY_LIMIT:
            return bytes(entry + _field("PANICD_ENTRY_CUT", "1"))
        entry += field
    return bytes(entry)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _quote(value: str) -> str:
    """Quote a value in MESSAGE, so that none can pass for two."""
    return value if _PLAIN_WORD.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def _field_name(key: str) -> str:
    """Name a field as journald accepts it: A-Z, 0-9 and _, at most 64 of them."""
    return _NOT_IN_FIELD_NAMES.sub("_", f"PANICD_{key.upper()}")[:64]


def _field(name: str, value: str) -> bytes:
    data = value.encode()
    if b"\n" not in data:
        return b"%b=%b\n" % (name.encode(), data)
    return b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(data)), data)


# stdlib logging


class _StdlibHandler(logging.Handler):
    """Hands records of libraries to structlog, the same one once in ``REPEATED_AFTER``.

    trio says ten times a second that a connection can't be accepted, each time with a traceback.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._last: tuple[str, str] | None = None
        self._said_at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        said, now = (record.name, str(record.msg)), time.monotonic()
        if said == self._last and now - self._said_at < REPEATED_AFTER:
            return
        self._last, self._said_at = said, now
        message = str(record.msg)
        with contextlib.suppress(TypeError, ValueError):  # arguments that don't fit the format
            message = record.getMessage()
        level = min(record.levelno // 10 * 10, logging.CRITICAL)  # structlog has no others
        get_logger().log(level, message, logger=record.name, exc_info=record.exc_info)


def _route_stdlib() -> None:
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _StdlibHandler)]:
        root.removeHandler(handler)
    root.addHandler(_StdlibHandler(logging.WARNING))
    root.setLevel(logging.WARNING)
    # Errors of the QMP library reach panicd as exceptions. Its log lines would repeat them, at a
    # rate that the other end of a monitor chooses.
    logging.getLogger("qemu").setLevel(logging.CRITICAL)
