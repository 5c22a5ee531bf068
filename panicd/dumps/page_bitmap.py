"""Which pages of a stopped Linux guest a dump keeps: a bitmap, a bit for each page.

It is a reader, as those of ``panicd.rules.guest_memory`` are: it yields ``ReadRequest`` and is sent
the bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from panicd.dumps.page_classes import CHUNK, classify, left_out
from panicd.rules.guest_memory.memory import PAGE, KernelMemory, Limits, PhysicalMemory
from panicd.rules.guest_memory.page_layout import DumpLevel
from panicd.rules.guest_memory.page_map import PageMap, PageRun, find_page_map
from panicd.rules.guest_memory.reading import NotReadableError, Reading, ReadRequest
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo

MAX_PAGES: Final = 1 << 34  # of a guest of 64 TiB
MAX_READ: Final = 16 << 20  # bytes asked for at once: the page structures of 1 GiB
TABLES: Final = Limits(lines=0, size=256 << 20, requests=1 << 16)
"""What finding the page structures may cost: page tables, some pages for each TiB."""


@dataclass(frozen=True, slots=True)
class PageBitmap:
    """What is kept of a guest's memory, in numbers of pages.

    Attributes:
        bits: a bit for each page from 0 on, the lowest first; set: it is kept.
        pages: that the guest has.
        kept: of them.
        left_out: of them, by what they were used for.
    """

    bits: bytes
    pages: int
    kept: int
    left_out: dict[str, int]


def read_bitmap(
    vmcoreinfo: bytes, blocks: Sequence[range], level: DumpLevel
) -> Reading[PageBitmap]:
    """Find out which pages a dump of a level keeps, empty ones among them.

    Args:
        vmcoreinfo: the kernel's note.
        blocks: the guest's physical memory, in bytes; whole pages.
        level: what is to be left out.

    Raises:
        NotReadableError: it can't be told; the text says why, and may be the guest's.
    """
    end = max((block.stop for block in blocks), default=0) // PAGE
    if end > MAX_PAGES:
        raise NotReadableError(f"memory that ends at {end * PAGE:#x}")
    info = Vmcoreinfo.parse(vmcoreinfo)
    physical = PhysicalMemory(TABLES)
    found = yield from find_page_map(info, KernelMemory(physical, info), blocks)
    kept = np.zeros(-(-end // 8) * 8, np.bool_)
    for block in blocks:
        kept[block.start // PAGE : block.stop // PAGE] = True
    pages = int(np.count_nonzero(kept))
    counts = {DumpLevel.CACHE: 0, DumpLevel.CACHE_PRIVATE: 0, DumpLevel.USER: 0, DumpLevel.FREE: 0}
    for first in range(0, end, CHUNK):
        there = kept[first : first + CHUNK]
        if not there.any():
            continue
        data, known = yield from _chunk(found, first)
        classes = classify(found.layout, found.base, first, data, known)[: len(there)]
        out = left_out(classes, level) & there
        for kind in counts:
            counts[kind] += int(np.count_nonzero(classes[out] == kind))
        there[out] = False
    _check_own_pages(kept, found, physical)
    return PageBitmap(
        bits=np.packbits(kept, bitorder="little").tobytes(),
        pages=pages,
        kept=int(np.count_nonzero(kept)),
        left_out={
            "cache": counts[DumpLevel.CACHE],
            "cache_private": counts[DumpLevel.CACHE_PRIVATE],
            "user": counts[DumpLevel.USER],
            "free": counts[DumpLevel.FREE],
        },
    )


def _chunk(found: PageMap, first: int) -> Reading[tuple[bytearray, "np.ndarray[tuple[int], np.dtype[np.bool_]]"]]:
    """Read the page structures of a chunk; return them, and which of them could be read."""
    size = found.layout.size
    data = bytearray(CHUNK * size)
    known = np.zeros(CHUNK, np.bool_)
    for run in _within(found, first):
        try:
            structures = yield from _read(run, size)
        except NotReadableError:
            continue  # that of a device, or a lie: its pages are kept
        at = run.first - first
        data[at * size : (at + run.count) * size] = structures
        known[at : at + run.count] = True
    return data, known


def _within(found: PageMap, first: int) -> Iterator[PageRun]:
    """Yield the parts of the runs that belong to a chunk."""
    for run in found.runs:
        begin, end = max(run.first, first), min(run.first + run.count, first + CHUNK)
        if begin < end:
            yield run.part(begin, end - begin, found.layout.size)


def _read(run: PageRun, size: int) -> Reading[bytes]:
    start, length = run.physical, run.count * size
    begin, end = start // PAGE * PAGE, -(-(start + length) // PAGE) * PAGE
    parts = []
    for place in range(begin, end, MAX_READ):
        wanted = min(MAX_READ, end - place)
        part = yield ReadRequest(place, wanted)
        if len(part) != wanted:
            raise NotReadableError(f"no guest memory at {place:#x}")
        parts.append(part)
    return b"".join(parts)[start - begin :][:length]


def _check_own_pages(
    kept: "np.ndarray[tuple[int], np.dtype[np.bool_]]", found: PageMap, physical: PhysicalMemory
) -> None:
    """Check that what was read is not among what is left out: all of it is the kernel's.

    Raises:
        NotReadableError: the guest lies, or its memory is damaged.
    """
    lie = "its page structures say that they themselves are of no use"
    for run in found.runs:
        begin = run.physical // PAGE
        end = -(-(run.physical + run.count * found.layout.size) // PAGE)
        if not kept[begin:end].all():
            raise NotReadableError(lie)
    if not all(kept[page] for page in physical.pages if page < len(kept)):
        raise NotReadableError(lie)
