"""Compresses its standard input to its standard output: a program, run by path, in a process.

A process of its own keeps the compression out of the daemon's interpreter, which many monitors wait
for. It imports nothing of panicd. Exit status: 0 done, else the errno of what failed; 1, with a
traceback, for anything else.
"""

import os
import sys
from contextlib import suppress
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL: Final = 1
WORKERS: Final = 2  # threads, where that leaves as many processors to others
CHUNK: Final = 1 << 17  # bytes
NICENESS: Final = 10  # nice(1): guests and panicd go first where processors are short


def main() -> int:
    """Compress until the input ends; return the exit status."""
    with suppress(OSError):  # panicd.service's filter of system calls has none
        os.nice(NICENESS)
    compressor = zstd.ZstdCompressor(
        options={
            zstd.CompressionParameter.compression_level: LEVEL,
            zstd.CompressionParameter.nb_workers: _workers(),
            zstd.CompressionParameter.checksum_flag: 1,
        }
    )
    try:
        while chunk := os.read(0, CHUNK):
            _write(compressor.compress(chunk))
            os.sched_yield()  # where niceness can't be had, and where this thread compresses
        _write(compressor.flush())
    except OSError as error:
        return error.errno or 1
    return 0


def _workers() -> int:
    """Return how many threads compress; 0: this one does, so on few processors."""
    _, most = zstd.CompressionParameter.nb_workers.bounds()  # 0 where libzstd was built without
    return min(WORKERS, most) if len(os.sched_getaffinity(0)) >= 2 * WORKERS else 0


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    sys.exit(main())
