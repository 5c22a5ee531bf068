"""Makes an ELF core's runs of QEMU's kdump of a nearly empty guest: a program, in its own process.

QEMU writes an ELF core page by page, and a kdump's empty pages as 24 bytes each. So a guest of
which the host holds next to nothing comes several times as fast as a kdump. Its tools read ELF
cores, though.

Standard input is QEMU's flattened kdump. The arguments are the descriptor of a file in memory, with
what the core has before and behind its memory, and the length of the former. Standard output: the
core's beginning, then ``RUN`` after ``RUN``: so many bytes that follow, or, if it is negative, so
many empty bytes. Exit status: 0 done, else the
errno of what failed; 1, with a traceback, for anything else.

Sources: makedumpfile ``IMPLEMENTATION``; QEMU ``dump/dump.c`` (``write_dump_pages``), which gives
all empty pages the place of the first page's content.
"""

import errno
import os
import struct
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, Final

from panicd.rules.guest_memory.dump_file import DumpFile
from panicd.rules.guest_memory.reading import NotReadableError

RUN: Final = struct.Struct("<q")
NICENESS: Final = 10  # nice(1): guests and panicd go first where processors are short
LONGEST: Final = 1 << 20  # bytes of a run that follow

_FLAT_HEADER: Final = 4096
_FLAT_SIGNATURE: Final = b"makedumpfile\0"
_PIECE: Final = struct.Struct(">qq")  # place and size; both -1 at the end
_MAX_PIECE: Final = 16 << 20  # bytes; the bitmap's are smaller
_MAX_WAITING: Final = 1 << 17  # pages; QEMU has 16 KiB to 256 KiB of contents waiting
_MANY: Final = 4096  # descriptors; QEMU writes some 700 or 2,700 at once
_SIGNATURE: Final = b"KDUMP   "
_BLOCKS_AT: Final = 428  # block_size, sub_hdr_size, bitmap_blocks
_BLOCKS: Final = struct.Struct("<III")
_DESCRIPTOR: Final = struct.Struct("<QIIQ")  # place, size, flags, page_flags
_PLAIN, _ZLIB = 0, 1  # flags


def main(arguments: list[str]) -> int:
    """Turn a kdump to its end; return the exit status."""
    with suppress(OSError):  # a filter of system calls may refuse it
        os.nice(NICENESS)
    file, beginning = map(int, arguments)
    around = os.pread(file, _MAX_PIECE, 0)
    try:
        with os.fdopen(0, "rb", _MAX_PIECE) as source, os.fdopen(1, "wb", LONGEST) as target:
            write_runs(source, target, around[:beginning], around[beginning:])
    except OSError as error:
        return error.errno or 1
    except NotReadableError as error:
        print(f"panicd: QEMU's kdump is none that is understood: {error}", file=sys.stderr)
        return 1
    return 0


def write_runs(source: BinaryIO, target: BinaryIO, beginning: bytes, end: bytes) -> None:
    """Write a core's beginning and its runs.

    Args:
        source: a flattened kdump.
        target: gets them.
        beginning: the core's, before its memory.
        end: the core's, behind its memory.

    Raises:
        NotReadableError: it is no kdump of that memory.
        OSError: the target can't be written; ENODATA: the kdump is cut off.
    """
    size = sum(piece.length for piece in DumpFile.parse(beginning).memory)
    target.write(beginning)
    runs = _Runs(target)
    pages: _Pages | None = None
    for place, content in _pieces(source):
        if place == 0:
            pages = _Pages(content, size, runs)
        elif pages is None:
            raise NotReadableError("it does not begin with its header")
        else:
            pages.take(place, content)
    if pages is None or not pages.all_there:
        raise OSError(errno.ENODATA, "the kdump is cut off")
    runs.add(end)
    runs.end()


def _pieces(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    if not _read(source, _FLAT_HEADER).startswith(_FLAT_SIGNATURE):
        raise NotReadableError("it is not flattened")
    while True:
        place, size = _PIECE.unpack(_read(source, _PIECE.size))
        if (place, size) == (-1, -1):
            while source.read(_MAX_PIECE):  # whoever writes must not find the pipe closed
                pass
            return
        if place < 0 or not 0 <= size <= _MAX_PIECE:
            raise NotReadableError("a piece of it belongs nowhere")
        yield place, _read(source, size)


def _read(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise OSError(errno.ENODATA, "the kdump is cut off")
    return data


class _Runs:
    """Writes runs, each as long as it can be."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._full = bytearray()
        self._empty = 0

    def add(self, content: bytes) -> None:
        """Add bytes."""
        self._write_empty()
        self._full += content
        if len(self._full) >= LONGEST:
            self._write_full()

    def skip(self, size: int) -> None:
        """Add empty bytes."""
        if size:
            self._write_full()
            self._empty += size

    def end(self) -> None:
        """Write what still waits."""
        self._write_full()
        self._write_empty()
        self._target.flush()

    def _write_full(self) -> None:
        if self._full:
            self._target.write(RUN.pack(len(self._full)) + self._full)
            self._full.clear()

    def _write_empty(self) -> None:
        if self._empty:
            self._target.write(RUN.pack(-self._empty))
            self._empty = 0


class _Pages:
    """Puts descriptors and contents together; QEMU writes both in order, each a part at a time."""

    def __init__(self, head: bytes, size: int, runs: _Runs) -> None:
        if not head.startswith(_SIGNATURE) or len(head) < _BLOCKS_AT + _BLOCKS.size:
            raise NotReadableError("its header is not understood")
        self._page, *blocks = _BLOCKS.unpack_from(head, _BLOCKS_AT)
        if self._page not in {4096, 16384, 65536} or size % self._page:
            raise NotReadableError("its pages are not those of the memory")
        self._runs = runs
        self._left = size // self._page
        self._descriptors_at = self._page * (1 + sum(blocks))
        self._empty_at = self._contents_at = self._descriptors_at + self._left * _DESCRIPTOR.size
        self._next = self._empty_at + self._page  # where the next page's content belongs
        self._knows_empty = False
        self._descriptors, self._contents = bytearray(), bytearray()
        self._waiting: deque[tuple[int, int]] = deque()  # size and flags; negative: empty bytes
        self._all_empty = _DESCRIPTOR.pack(self._empty_at, self._page, _PLAIN, 0) * _MANY

    @property
    def all_there(self) -> bool:
        """Whether all pages have come."""
        return self._left == 0 and not self._waiting and self._knows_empty

    def take(self, place: int, content: bytes) -> None:
        """Take a piece."""
        if place == self._descriptors_at < self._empty_at:
            self._descriptors += content
            self._descriptors_at += len(content)
            self._note_descriptors()
        elif place == self._contents_at:
            self._contents += content
            self._contents_at += len(content)
        elif place >= self._descriptors_at:
            raise NotReadableError("its pages are not those of the memory, or not in order")
        else:
            return  # headers, notes and bitmaps: the core's beginning has the same
        if len(self._waiting) > _MAX_WAITING or len(self._contents) > _MAX_PIECE:
            raise NotReadableError("its descriptors and its contents do not belong together")
        if not self._knows_empty and len(self._contents) >= self._page:
            if self._contents.count(0, 0, self._page) < self._page:
                raise NotReadableError("its first content is no empty page")
            del self._contents[: self._page]
            self._knows_empty = True
        self._pass_on()

    def _note_descriptors(self) -> None:
        """Note the size of each page's content, and how long the memory is empty."""
        count = len(self._descriptors) // _DESCRIPTOR.size
        self._left -= count
        if self._left < 0:
            raise NotReadableError("it has more pages than the memory")
        known = self._descriptors[: count * _DESCRIPTOR.size]
        del self._descriptors[: len(known)]
        if known == self._all_empty[: len(known)]:
            self._note_empty(count * self._page)
            return
        for place, size, flags, _ in _DESCRIPTOR.iter_unpack(known):
            if place == self._empty_at:
                self._note_empty(self._page)
            elif place == self._next and 0 < size <= self._page:
                self._waiting.append((size, flags))
                self._next += size
            else:
                raise NotReadableError("a page's content is not where it belongs")

    def _note_empty(self, size: int) -> None:
        before = self._waiting.pop()[0] if self._waiting and self._waiting[-1][0] < 0 else 0
        self._waiting.append((before - size, _PLAIN))

    def _pass_on(self) -> None:
        """Write the pages whose content is there."""
        used = 0
        while self._waiting:
            size, flags = self._waiting[0]
            if used + size > len(self._contents):
                break
            self._waiting.popleft()
            if size < 0:
                self._runs.skip(-size)
            else:
                self._runs.add(self._unpacked(bytes(self._contents[used : used + size]), flags))
                used += size
        del self._contents[:used]

    def _unpacked(self, content: bytes, flags: int) -> bytes:
        try:
            page = zlib.decompressobj().decompress(content, self._page) if flags else content
        except zlib.error as error:
            raise NotReadableError(f"a page can't be unpacked: {error}") from error
        if flags not in {_PLAIN, _ZLIB} or len(page) != self._page:
            raise NotReadableError("a page is not packed as it should be")
        return page


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
