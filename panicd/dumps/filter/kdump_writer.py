"""Writes the kept ones of a guest's pages in the kdump-compressed format.

Empty pages are in the file too, because a reader must not take them for missing. Their contents are
there only once, as makedumpfile does it.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from panicd.rules.guest_memory.kdump_head import ZLIB, KdumpHead
from panicd.rules.guest_memory.memory import PAGE

WORKERS: Final = 2  # threads that pack, where that leaves as many processors to others
HOLE: Final = 1 << 16  # bytes
SMALL: Final = 1
"""A level of ISA-L's zlib: three times as fast as zlib's own of the same number, and as small."""
FAST: Final = 0
"""Another, for whole memories: a sixth larger, in half of the time."""

_DESCRIPTOR: Final = np.dtype([("at", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page", "<u8")])


class KdumpWriter:
    """A dump as it is written.

    Args:
        file: a new file, which can be sought.
        head: its beginning.
        there: the pages that the guest has: a bit for each, the lowest first.
        kept: the pages that go into the file, in the same way.
        level: at which they are packed, ``SMALL`` or ``FAST``.

    Raises:
        OSError: the file can't be written.

    Attributes:
        missing: how many pages that are kept have not been added.
    """

    def __init__(self, file: int, head: KdumpHead, there: bytes, kept: bytes, level: int) -> None:
        self._file = file
        self._level = level
        self._descriptors = head.descriptors
        self._kept = np.frombuffer(kept, np.uint8)
        self.missing = int(np.bitwise_count(self._kept).sum(dtype=np.int64))
        self._end = head.descriptors + self.missing * _DESCRIPTOR.itemsize
        empty = isal_zlib.compress(bytes(PAGE), level)
        self._empty = (self._end, len(empty))
        _write(file, head.data, 0)
        for number, bitmap in enumerate((there, kept)):
            _write_sparse(file, bitmap, len(head.data) + number * head.bitmap_size)
        _write(file, empty, self._end)
        self._end += len(empty)
        # On few processors this thread packs, so that others have one.
        many = len(os.sched_getaffinity(0)) >= 2 * WORKERS
        self._workers = ThreadPoolExecutor(WORKERS) if many else None
        self._next = 0  # a page whose place among the kept ones is known; a multiple of 8
        self._rank = 0

    def add(self, first: int, data: memoryview) -> None:
        """Add pages, all of one piece; those of the guest that are not kept are passed over.

        Args:
            first: the number of the first.
            data: whole pages.

        Raises:
            OSError: the file can't be written.
        """
        count = len(data) // PAGE
        bits = self._kept[first // 8 : -(-(first + count) // 8)]
        kept = np.unpackbits(bits, bitorder="little")[first % 8 :][:count]  # none behind the end
        wanted = np.flatnonzero(kept)
        if not len(wanted):
            return
        words = np.frombuffer(data, "<u8").reshape(count, PAGE // 8)
        full = words.max(axis=1)[wanted] != 0
        descriptors = np.zeros(len(wanted), _DESCRIPTOR)
        descriptors["at"], descriptors["size"] = self._empty
        descriptors["flags"] = ZLIB
        self._pack(data, wanted[full], descriptors, np.flatnonzero(full))
        place = self._descriptors + self._rank_of(first) * _DESCRIPTOR.itemsize
        _write(self._file, descriptors.tobytes(), place)
        self.missing -= len(wanted)

    def _pack(
        self,
        data: memoryview,
        pages: npt.NDArray[np.int64],
        descriptors: npt.NDArray[np.void],
        places: npt.NDArray[np.int64],
    ) -> None:
        """Write pages that hold something, and fill in their descriptors."""
        if not len(pages):
            return
        parts = np.array_split(pages, WORKERS) if self._workers else [pages]
        run = self._workers.map if self._workers else map
        packed = [page for part in run(partial(_packed, data, self._level), parts) for page in part]
        sizes = np.fromiter(map(len, packed), np.int64, len(packed))
        ends = np.cumsum(sizes)
        descriptors["at"][places] = self._end + ends - sizes
        descriptors["size"][places] = sizes
        descriptors["flags"][places] = np.where(sizes < PAGE, ZLIB, 0)
        _write(self._file, b"".join(packed), self._end)
        self._end += int(ends[-1])

    def _rank_of(self, first: int) -> int:
        """Return how many pages before this one are kept."""
        if first < self._next:
            self._next = self._rank = 0
        between = self._kept[self._next // 8 : first // 8]
        self._rank += int(np.bitwise_count(between).sum(dtype=np.int64))
        self._next = first - first % 8
        begun = int(self._kept[first // 8]) & (1 << first % 8) - 1
        return self._rank + begun.bit_count()


def _packed(data: memoryview, level: int, pages: npt.NDArray[np.int64]) -> list[bytes | memoryview]:
    """Return pages as they are written: those that don't become smaller as they are."""
    packed: list[bytes | memoryview] = []
    for page in pages.tolist():
        plain = data[page * PAGE : (page + 1) * PAGE]
        small: bytes = isal_zlib.compress(plain, level)  # lets other threads run meanwhile
        packed.append(small if len(small) < PAGE else plain)
    return packed


def _write_sparse(file: int, data: bytes, place: int) -> None:
    """Write it, with holes for what is empty of it: memory may begin at a high address."""
    for start in range(0, len(data), HOLE):
        part = data[start : start + HOLE]
        if part.count(0) < len(part):
            _write(file, part, place + start)


def _write(file: int, data: bytes, place: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, place)
        rest, place = rest[written:], place + written
