"""Makes a bitmap of the pages of a stopped Linux guest that a dump keeps: a bit for each page.

This is a program that runs in a separate process. It asks on standard output for the memory that it
needs and gets it on standard input. It writes the bitmap into a file. The file's descriptor is its
argument.

::

    in     a line of JSON: level, size, vmcoreinfo, memory (where the guest has any)
    out    REQUEST: physical address and length, in bytes
    in     ANSWER: the length, or -1 where it can't be had; the bytes
    ...
    out    REQUEST of length 0, a line of JSON: left_out (pages by use), structures (bytes) and
           ranges, or reason
"""

import json
import os
import resource
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from panicd.dumps.filter.page_classes import CHUNK, classify, left_out
from panicd.rules.guest_memory.memory import PAGE, Limits, PhysicalMemory, kernel_memory
from panicd.rules.guest_memory.page_layout import DumpLevel
from panicd.rules.guest_memory.page_map import PageMap, PageRun, find_page_map
from panicd.rules.guest_memory.reading import NotReadableError, Reading, ReadRequest
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo

REQUEST: Final = struct.Struct("<QQ")
ANSWER: Final = struct.Struct("<q")
MAX_PAGES: Final = 1 << 31  # of 8 TiB: the bitmap of more would take too much memory
MAX_READ: Final = 16 << 20  # bytes asked for at once: the page structures of 1 GiB
TABLES: Final = Limits(lines=0, size=256 << 20, requests=1 << 16)
"""What finding the page structures may cost: page tables, some pages for each TiB."""
NICENESS: Final = 10  # nice(1)
MAX_MEMORY: Final = 3 << 30  # bytes of address space, of which numpy takes some hundred MiB

RANGE_PAGES: Final = 256
"""Pages of the smallest range, 1 MiB. One more range takes as long as 2 MiB more to read."""
MAX_RANGES: Final = 1024

_KEPT: Final = b"\xff"
_LIE: Final = "its page structures say of themselves that they are of no use"


@dataclass(frozen=True, slots=True)
class PageBitmap:
    """What is kept of a guest's memory.

    Attributes:
        bits: a bit for each page from 0 on, the lowest first; set: it is kept. So is what lies
            behind them.
        left_out: how many pages are not, by what they were used for.
        structures: how many bytes the page structures take.
    """

    bits: bytes
    left_out: dict[str, int]
    structures: int


def read_bitmap(vmcoreinfo: bytes, size: int, level: DumpLevel) -> Reading[PageBitmap]:
    """Find out which pages a dump of a level keeps, empty ones among them.

    Args:
        vmcoreinfo: the kernel's note.
        size: bytes of memory that the guest has.
        level: what is to be left out.

    Raises:
        NotReadableError: it can't be told; the text says why, and may be the guest's.
    """
    info = Vmcoreinfo.parse(vmcoreinfo)
    physical = PhysicalMemory(TABLES)
    found = yield from find_page_map(info, kernel_memory(physical, info), size)
    bits = bytearray()
    counts = dict.fromkeys(
        (DumpLevel.CACHE, DumpLevel.CACHE_PRIVATE, DumpLevel.USER, DumpLevel.FREE), 0
    )
    for first in _chunks(found):
        data, known = yield from _chunk(found, first)
        classes = classify(found.layout, found.base, first, data, known)
        out = left_out(classes, level)
        for kind in counts:
            counts[kind] += int(np.count_nonzero(classes[out] == kind))
        bits += _KEPT * (first // 8 - len(bits)) + np.packbits(~out, bitorder="little").tobytes()
    if sum(counts.values()) > size // PAGE:
        raise NotReadableError("it tells of more memory than the guest has")
    _check_own_pages(np.frombuffer(bits, np.uint8), found, physical)
    return PageBitmap(
        bytes(bits),
        {
            "cache": counts[DumpLevel.CACHE],
            "cache_private": counts[DumpLevel.CACHE_PRIVATE],
            "user": counts[DumpLevel.USER],
            "free": counts[DumpLevel.FREE],
        },
        sum(run.count for run in found.runs) * found.layout.size,
    )


def ranges_to_read(bits: bytes, memory: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of the memory that hold all that is kept, few and in order.

    Args:
        bits: of the pages that are kept, as in ``PageBitmap``.
        memory: where the guest has any: physical address and length, in bytes.

    Returns:
        As ``memory``. None where the memory ends beyond what is looked at.
    """
    end = max((physical + length for physical, length in memory), default=0)
    if end > MAX_PAGES * PAGE:
        return []
    size = RANGE_PAGES * PAGE
    bits += _KEPT * (-len(bits) % (RANGE_PAGES // 8))
    wanted = _any_of(np.frombuffer(bits, np.uint64), RANGE_PAGES // 64)
    wanted = np.append(wanted, np.ones(max(0, -(-end // size) - len(wanted)), np.bool_))
    ranges = _ranges(wanted, size, memory)
    while len(ranges) > max(MAX_RANGES, len(memory)):
        wanted = _any_of(np.append(wanted, np.zeros(len(wanted) % 2, np.bool_)), 2)
        size *= 2
        ranges = _ranges(wanted, size, memory)
    return ranges


def _any_of(values: npt.NDArray[Any], count: int) -> npt.NDArray[np.bool_]:
    """Return of each so many values whether one is not 0."""
    found: npt.NDArray[np.bool_] = values.reshape(-1, count).max(axis=1) != 0
    return found


def _ranges(
    wanted: npt.NDArray[np.bool_], size: int, memory: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return what of the memory lies in the wanted ones of blocks of a size."""
    steps = np.diff(wanted.astype(np.int8), prepend=0, append=0)
    edges = np.flatnonzero(steps).reshape(-1, 2) * size
    ranges = []
    for physical, length in sorted(memory):
        after = edges[:, 1] > physical
        for start, end in edges[after & (edges[:, 0] < physical + length)].tolist():
            begin = max(start, physical)
            ranges.append((begin, min(end, physical + length) - begin))
    return ranges


def _chunks(found: PageMap) -> Iterator[int]:
    """Yield the first pages of the chunks that anything is known of, in order."""
    last = -1
    for run in found.runs:
        for chunk in range(max(run.first // CHUNK, last + 1), -(-(run.first + run.count) // CHUNK)):
            if chunk < MAX_PAGES // CHUNK:
                yield chunk * CHUNK
            last = chunk


def _chunk(found: PageMap, first: int) -> Reading[tuple[bytearray, npt.NDArray[np.bool_]]]:
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


def _check_own_pages(bits: npt.NDArray[np.uint8], found: PageMap, physical: PhysicalMemory) -> None:
    """Check that what was read is not among what is left out: all of it is the kernel's.

    Raises:
        NotReadableError: the guest lies, or its memory is damaged.
    """
    for run in found.runs:
        first = run.physical // PAGE
        end = -(-(run.physical + run.count * found.layout.size) // PAGE)
        part = np.unpackbits(bits[first // 8 : -(-end // 8)], bitorder="little")
        if not part[first % 8 : first % 8 + end - first].all():
            raise NotReadableError(_LIE)
    for page in physical.pages:
        if page // 8 < len(bits) and not bits[page // 8] >> page % 8 & 1:
            raise NotReadableError(_LIE)


def main(arguments: list[str]) -> int:
    """Serve one guest; return the exit status."""
    with suppress(OSError):  # a filter of system calls may refuse it
        os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    source, target = sys.stdin.buffer, sys.stdout.buffer
    asked = json.loads(source.readline())
    reader = read_bitmap(asked["vmcoreinfo"].encode("latin-1"), asked["size"], asked["level"])
    result: dict[str, object]
    try:
        request = next(reader)
        while True:
            target.write(REQUEST.pack(request.physical, request.length))
            target.flush()
            (length,) = ANSWER.unpack(source.read(ANSWER.size))
            if length < 0:
                request = reader.throw(NotReadableError(f"no memory at {request.physical:#x}"))
            else:
                request = reader.send(source.read(length))
    except NotReadableError as error:
        result = {"reason": str(error)}
    except StopIteration as end:
        found: PageBitmap = end.value
        with os.fdopen(int(arguments[0]), "wb") as file:
            file.write(found.bits)
        ranges = ranges_to_read(found.bits, asked["memory"])
        result = {"left_out": found.left_out, "structures": found.structures, "ranges": ranges}
    target.write(REQUEST.pack(0, 0) + json.dumps(result).encode() + b"\n")
    target.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
