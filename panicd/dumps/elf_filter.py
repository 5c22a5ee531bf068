"""Writes an ELF core from standard input to standard output: a program, run by path, in a process.

Its arguments are the kind of file (``zstd``: compressed; ``plain``), the dump's level, the dump's
text about itself, and the length of the core's beginning, if the rest comes in runs
(``panicd.dumps.filter.kdump_runs``). With bit 1 of the level set, empty memory never reaches
compressor or disk; neither do empty runs. A compressed file has precompressed frames in their
place, a plain file a hole.

A compressed file ends in a frame that unpackers skip: the dump's text about itself, the text's
length, and ``MARK``. Source: RFC 8878, 3.1.2 'Skippable Frames'.

A separate process keeps the work out of the daemon's interpreter, for which many monitors wait. It
imports nothing of panicd. Exit status: 0 done, else the failed call's errno; 1, with a traceback,
for anything else.
"""

import errno
import os
import struct
import sys
from contextlib import suppress
from typing import BinaryIO, Final, Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL: Final = 1
WORKERS: Final = 2  # threads, if that leaves as many processors to others
CHUNK: Final = 1 << 17  # bytes
EMPTY: Final = bytes(CHUNK)
RUNS: Final = (1 << 24, 1 << 20)
"""Bytes of the frames for empty memory; a shorter empty part is not worth a frame of its own."""
NICENESS: Final = 10  # nice(1): guests and panicd go first where processors are short
LEAVE_OUT_EMPTY: Final = 1  # of a dump level
MARK: Final = b"panicd"
SKIPPABLE: Final = struct.Struct("<II")  # magic number, length
SKIPPABLE_MAGIC: Final = 0x184D2A50
LENGTH: Final = struct.Struct("<I")
RUN: Final = struct.Struct("<q")
"""What comes before each run: how many bytes follow, or, negative, how many are empty."""
CUT_OFF: Final = errno.ENODATA


class Output(Protocol):
    """Where the core goes to."""

    def write(self, data: bytes) -> None:
        """Write the next bytes."""

    def skip(self, size: int) -> None:
        """Write ``size`` empty bytes."""

    def end(self) -> None:
        """Write the bytes that still wait."""


class Packed:
    """A file of zstd frames."""

    def __init__(self, about: bytes) -> None:
        self._about = about
        self._compressor = zstd.ZstdCompressor(options=_options(_workers()))
        self._empty = {size: zstd.compress(bytes(size), options=_options(0)) for size in RUNS}

    def write(self, data: bytes) -> None:
        """Compress the bytes."""
        _write(self._compressor.compress(data))

    def skip(self, size: int) -> None:
        """Write frames that were compressed before."""
        if size >= min(RUNS):
            _write(self._compressor.flush())
        for run, frame in self._empty.items():
            count, size = divmod(size, run)
            _write(frame * count)
        if size:
            self.write(bytes(size))

    def end(self) -> None:
        """End the last frame, and write the dump's text about itself."""
        _write(self._compressor.flush())
        said = self._about + LENGTH.pack(len(self._about)) + MARK
        _write(SKIPPABLE.pack(SKIPPABLE_MAGIC, len(said)) + said)


class Plain:
    """A file with holes."""

    def __init__(self) -> None:
        self._at = 0

    def write(self, data: bytes) -> None:
        """Append the bytes."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(1, rest, self._at)
            self._at += written
            rest = rest[written:]

    def skip(self, size: int) -> None:
        """Leave a hole."""
        self._at += size

    def end(self) -> None:
        """Make a hole at the end part of the file."""
        os.ftruncate(1, self._at)


def main(arguments: list[str]) -> int:
    """Filter until the input ends; return the exit status."""
    with suppress(OSError):  # a filter of system calls may refuse it
        os.nice(NICENESS)
    kind, level, about, *beginning = arguments
    output: Output = Packed(about.encode()) if kind == "zstd" else Plain()
    try:
        if beginning:
            copy_runs(output, int(beginning[0]))
        else:
            copy(output, bool(int(level) & LEAVE_OUT_EMPTY))
        output.end()
    except OSError as error:
        return error.errno or 1
    return 0


def copy(output: Output, skips: bool) -> None:
    """Write what comes, or skip what is empty of it."""
    empty = 0
    while chunk := os.read(0, CHUNK):
        if skips and chunk == (EMPTY if len(chunk) == CHUNK else EMPTY[: len(chunk)]):
            empty += len(chunk)
            continue
        output.skip(empty)
        empty = 0
        output.write(chunk)
        os.sched_yield()  # if niceness can't be had, and if this thread compresses
    output.skip(empty)


def copy_runs(output: Output, beginning: int) -> None:
    """Write so many bytes, and then runs.

    Raises:
        OSError: ENODATA: a run is cut off.
    """
    with os.fdopen(0, "rb", CHUNK) as source:
        output.write(_read(source, beginning))
        while head := source.read(RUN.size):
            (size,) = RUN.unpack(head)
            output.skip(max(0, -size))
            while size > 0:
                part = _read(source, min(size, CHUNK))
                output.write(part)
                size -= len(part)


def _read(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise OSError(CUT_OFF, "the core is cut off")
    return data


def _options(workers: int) -> dict[int, int]:
    return {
        zstd.CompressionParameter.compression_level: LEVEL,
        zstd.CompressionParameter.nb_workers: workers,
        zstd.CompressionParameter.checksum_flag: 1,
    }


def _workers() -> int:
    """Return how many threads compress; 0: this one does, so on few processors."""
    _, most = zstd.CompressionParameter.nb_workers.bounds()  # 0 if libzstd has no threads
    return min(WORKERS, most) if len(os.sched_getaffinity(0)) >= 2 * WORKERS else 0


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
