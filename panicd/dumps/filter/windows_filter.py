"""Makes a dump for WinDbg of an ELF core: a program, run in a process of its own.

Standard input is what QEMU writes, standard output the dump. Its argument is the descriptor of a
file in memory: what the dump has that is not in the core, as ``WindowsDump.written``. Exit status:
0 done, else the errno of what failed; 1, with a traceback or a reason, for anything else.
"""

import json
import os
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from panicd.dumps.filter.core_stream import BLOCK, HEAD, CoreStream
from panicd.rules.guest_memory.dump_file import DumpFile, Piece
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError

NICENESS: Final = 10  # nice(1): guests and panicd go first where processors are short


def main(arguments: list[str]) -> int:
    """Filter until the core ends; return the exit status."""
    with suppress(OSError):  # a filter of system calls may refuse it
        os.nice(NICENESS)
    (parts,) = arguments
    try:
        filter_core(0, 1, json.loads(_content(int(parts))))
    except OSError as error:
        return error.errno or 1
    except NotReadableError as error:
        print(f"panicd: no dump can be made of this: {error}", file=sys.stderr)
        return 1
    return 0


def filter_core(source: int, target: int, parts: dict[str, Any]) -> None:
    """Write a dump of an ELF core of a guest of 64-bit x86.

    Memory that the dump is to have and QEMU does not reads as zeros.

    Args:
        source: what is read from its beginning to its end: a pipe or a file.
        target: a new file, or a pipe.
        parts: what is not in the core.

    Raises:
        NotReadableError: the core is none of such a guest, or its pieces lie in no order.
        OSError: the target can't be written; ENODATA: the source ends too early.
    """
    stream = CoreStream(source)
    pieces = sorted(DumpFile.parse(stream.peek(HEAD)).memory, key=lambda piece: piece.physical)
    patches = _Patches(parts["patches"])
    _write(target, bytes.fromhex(parts["head"]))
    buffer = memoryview(bytearray(BLOCK))
    for first, pages in parts["runs"]:
        for place, end, offset in _split(first * PAGE, (first + pages) * PAGE, pieces):
            if offset is not None:
                stream.skip_to(offset)
            for start in range(place, end, BLOCK):
                block = buffer[: min(BLOCK, end - start)]
                if offset is None:
                    block[:] = bytes(len(block))
                else:
                    stream.fill(block)
                    patches.apply(start, block)
                _write(target, block)
                os.sched_yield()  # where niceness can't be had
    stream.drain(buffer)


def _split(begin: int, end: int, pieces: Sequence[Piece]) -> Iterator[tuple[int, int, int | None]]:
    """Yield the parts of a range of memory, and where in the core each is; None: not there."""
    for piece in pieces:
        start, stop = max(begin, piece.physical), min(end, piece.physical + piece.length)
        if start >= stop:
            continue
        if begin < start:
            yield begin, start, None
        yield start, stop, piece.offset + start - piece.physical
        begin = stop
    if begin < end:
        yield begin, end, None


class _Patches:
    """What stands in a dump instead of what lies in memory, by its pages."""

    def __init__(self, patches: list[tuple[int, str]]) -> None:
        self._by_page: dict[int, list[tuple[int, bytes]]] = {}
        for place, text in patches:
            data = bytes.fromhex(text)
            while data:
                part = data[: PAGE - place % PAGE]
                self._by_page.setdefault(place // PAGE, []).append((place, part))
                place, data = place + len(part), data[len(part) :]  # noqa: PLW2901 - what is left
        self._pages = sorted(self._by_page)

    def apply(self, start: int, block: memoryview) -> None:
        """Put those that belong there into whole pages of memory."""
        first, end = start // PAGE, (start + len(block)) // PAGE
        for page in self._pages[bisect_left(self._pages, first) : bisect_left(self._pages, end)]:
            for place, data in self._by_page[page]:
                block[place - start : place - start + len(data)] = data


def _content(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _write(target: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
