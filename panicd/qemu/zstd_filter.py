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
MAX_WORKERS: Final = 2  # threads; where libzstd was built without them it compresses in this one
WORKERS: Final = max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // 2))  # not all processors
CHUNK: Final = 1 << 20  # bytes
NICENESS: Final = 10  # nice(1): guests and panicd go first where processors are short

_OPTIONS: Final[dict[int, int]] = {
    zstd.CompressionParameter.compression_level: LEVEL,
    zstd.CompressionParameter.nb_workers: min(
        WORKERS, zstd.CompressionParameter.nb_workers.bounds()[1]
    ),
    zstd.CompressionParameter.checksum_flag: 1,
}


def main() -> int:
    """Compress until the input ends; return the exit status."""
    with suppress(OSError):  # panicd.service's filter of system calls has none
        os.nice(NICENESS)
    compressor = zstd.ZstdCompressor(options=_OPTIONS)
    try:
        while chunk := os.read(0, CHUNK):
            _write(compressor.compress(chunk))
        _write(compressor.flush())
    except OSError as error:
        return error.errno or 1
    return 0


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    sys.exit(main())
