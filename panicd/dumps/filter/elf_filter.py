"""Writes an ELF core from standard input to standard output: a program, run in its own process.

Its arguments are the kind of file (``zstd``: compressed; ``plain``), the dump's level, the dump's
text about itself, and ``KDUMP``, if the core is to be made of QEMU's kdump. With bit 1 of the level
set, empty memory never reaches compressor or disk; nor does that of a kdump. A compressed file has
precompressed frames in its place, a plain file a hole.

A compressed file ends in a frame that unpackers skip: the dump's text about itself, the text's
length, and ``MARK``. Source: RFC 8878, 3.1.2 'Skippable Frames'.

A separate process keeps the work out of the daemon's interpreter, for which many monitors wait. The
guest is down until it has begun, so it imports little. Exit status: 0 done, else the failed call's
errno; 1, with a reason or a traceback, for anything else.
"""

import os
import struct
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from io import BufferedIOBase, BufferedReader, FileIO

from panicd.dumps.filter.kdump_stream import LARGEST, NotUnderstoodError, parts_of_core

LEVEL = 1
WORKERS = 2  # threads, if that leaves as many processors to others
CHUNK = 1 << 17  # bytes
EMPTY = bytes(CHUNK)
RUN = 1 << 20
"""Bytes of the frame for empty memory; a shorter empty part is not worth a frame of its own."""
NICENESS = 10  # nice(1): guests and panicd go first where processors are short
LEAVE_OUT_EMPTY = 1  # of a dump level
KDUMP = "kdump"
MARK = b"panicd"
SKIPPABLE = struct.Struct("<II")  # magic number, length
SKIPPABLE_MAGIC = 0x184D2A50
LENGTH = struct.Struct("<I")


class Output(ABC):
    """Where the core goes to. Empty parts that follow on one another are left out together."""

    def __init__(self) -> None:
        self._empty = 0

    def write(self, data: bytes) -> None:
        """Write the next bytes."""
        self._skip_empty()
        self._append(data)

    def skip(self, size: int) -> None:
        """Write ``size`` empty bytes."""
        self._empty += size

    def end(self) -> None:
        """Write what still waits."""
        self._skip_empty()
        self._end()

    def _skip_empty(self) -> None:
        if self._empty:
            empty, self._empty = self._empty, 0
            self._leave_out(empty)

    @abstractmethod
    def _append(self, data: bytes) -> None: ...

    @abstractmethod
    def _leave_out(self, size: int) -> None: ...

    @abstractmethod
    def _end(self) -> None: ...


class Packed(Output):
    """A file of zstd frames."""

    def __init__(self, about: bytes) -> None:
        super().__init__()
        # Here, because it takes as long as all else that this program imports.
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - see above
        else:
            from backports import zstd  # noqa: PLC0415 - see above

        self._about = about
        of = zstd.CompressionParameter
        options: dict[int, int] = {of.compression_level: LEVEL, of.checksum_flag: 1}
        _, most = of.nb_workers.bounds()  # 0 if libzstd has no threads
        # 0: this thread compresses, so on few processors
        workers = min(WORKERS, most) if len(os.sched_getaffinity(0)) >= 2 * WORKERS else 0
        self._compressor = zstd.ZstdCompressor(options=options | {of.nb_workers: workers})
        self._run = zstd.compress(bytes(RUN), options=options)

    def _append(self, data: bytes) -> None:
        _write(self._compressor.compress(data))

    def _leave_out(self, size: int) -> None:
        runs, rest = divmod(size, RUN)
        if runs:
            _write(self._compressor.flush())
        while runs:
            count = min(runs, RUN // len(self._run))
            _write(self._run * count)
            runs -= count
        self._append(bytes(rest))

    def _end(self) -> None:
        _write(self._compressor.flush())
        said = self._about + LENGTH.pack(len(self._about)) + MARK
        _write(SKIPPABLE.pack(SKIPPABLE_MAGIC, len(said)) + said)


class Plain(Output):
    """A file with holes."""

    def __init__(self) -> None:
        super().__init__()
        self._at = 0

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(1, rest, self._at)
            self._at += written
            rest = rest[written:]

    def _leave_out(self, size: int) -> None:
        self._at += size

    def _end(self) -> None:
        os.ftruncate(1, self._at)  # what is empty at the end becomes a hole too


def main(arguments: list[str]) -> int:
    """Filter until the input ends; return the exit status."""
    with suppress(OSError):  # a filter of system calls may refuse it
        os.nice(NICENESS)
    kind, level, about, *kdump = arguments
    source = BufferedReader(FileIO(0), LARGEST) if kdump else None
    if source is not None:
        source.peek()  # takes what has come, so that QEMU need not wait for the rest of the imports
    output = Packed(about.encode()) if kind == "zstd" else Plain()
    try:
        if source is not None:
            copy_kdump(source, output)
        else:
            copy(output, bool(int(level) & LEAVE_OUT_EMPTY))
        output.end()
    except OSError as error:
        return error.errno or 1
    except NotUnderstoodError as error:
        print(f"panicd: QEMU's kdump is none that is understood: {error}", file=sys.stderr)
        return 1
    return 0


def copy(output: Output, skips: bool) -> None:
    """Write what comes, or skip what is empty of it."""
    while chunk := os.read(0, CHUNK):
        if skips and chunk == (EMPTY if len(chunk) == CHUNK else EMPTY[: len(chunk)]):
            output.skip(len(chunk))
        else:
            output.write(chunk)
            os.sched_yield()  # if niceness can't be had, and if this thread compresses


def copy_kdump(source: BufferedIOBase, output: Output) -> None:
    """Write the core that is made of a kdump.

    Raises:
        NotUnderstoodError: it is no kdump of that memory.
        OSError: ENODATA: it is cut off.
    """
    for part in parts_of_core(source):
        if isinstance(part, int):
            output.skip(part)
        else:
            output.write(part)


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]
