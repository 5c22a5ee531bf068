"""Guest memory as a reader sees it: physical pages, each read once, and virtual addresses."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from panicd.rules.guest_memory.page_tables import PHYSICAL_BITS, PageTables, page_tables
from panicd.rules.guest_memory.reading import NotReadableError, Reading, ReadRequest
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo

PAGE: Final = 4096  # bytes that are read together: the smallest page of all guests
MAX_REQUEST: Final = 64 * PAGE  # in one go: while QEMU writes it, it does nothing else


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of reading.

    Attributes:
        lines: the number of lines to return at most, the newest.
        records: the number of records to look at at most, readable or not.
        size: bytes of guest memory to read at most.
        requests: the number of requests at most.
    """

    lines: int
    records: int = 1024
    size: int = 1 << 20
    requests: int = 32


class PhysicalMemory:
    """The pages that were read so far."""

    def __init__(self, limits: Limits) -> None:
        self._pages: dict[int, bytes] = {}
        self._requests_left = limits.requests
        self._pages_left = limits.size // PAGE

    @property
    def pages(self) -> Collection[int]:
        """The numbers of the pages that were read."""
        return self._pages.keys()

    def read(self, address: int, length: int) -> Reading[bytes]:
        """Return a range of guest-physical memory.

        Raises:
            NotReadableError: it is unavailable, or costs more than the limits allow.
        """
        first, end = address // PAGE, -(-(address + length) // PAGE)
        if address < 0 or end > (1 << PHYSICAL_BITS) // PAGE:
            raise NotReadableError(f"no physical address: {address:#x}")
        if end - first > self._pages_left + len(self._pages):
            raise NotReadableError("more memory to read than the limit allows")
        for run in self._missing(first, end):
            yield from self._fetch(run)
        start = address - first * PAGE
        return b"".join(self._pages[page] for page in range(first, end))[start : start + length]

    def _missing(self, first: int, end: int) -> Iterator[range]:
        """Yield the runs of pages that were not read yet, each at most ``MAX_REQUEST`` long."""
        run = range(first, first)
        for page in range(first, end):
            if page in self._pages:
                continue
            if page == run.stop and len(run) < MAX_REQUEST // PAGE:
                run = range(run.start, page + 1)
                continue
            if run:
                yield run
            run = range(page, page + 1)
        if run:
            yield run

    def _fetch(self, run: range) -> Reading[None]:
        if len(run) > self._pages_left or self._requests_left == 0:
            raise NotReadableError("more memory to read than the limit allows")
        self._pages_left -= len(run)
        self._requests_left -= 1
        data = yield ReadRequest(run.start * PAGE, len(run) * PAGE)
        if len(data) != len(run) * PAGE:
            raise NotReadableError(f"no guest memory at {run.start * PAGE:#x}")
        for index, page in enumerate(run):
            self._pages[page] = data[index * PAGE : (index + 1) * PAGE]


class VirtualMemory:
    """A kernel's virtual addresses, found by its page tables.

    Args:
        physical: the pages that were read so far.
        tables: the kernel's page tables.
    """

    def __init__(self, physical: PhysicalMemory, tables: PageTables) -> None:
        self._physical = physical
        self._tables = tables

    def read(self, address: int, length: int) -> Reading[bytes]:
        """Return a range of virtual memory.

        Raises:
            NotReadableError: it is unmapped, unavailable, or costs more than the limits allow.
        """
        data = b""
        for run in (yield from self.runs(address, length)):
            data += yield from self._physical.read(run.start, len(run))
        return data

    def runs(self, address: int, length: int) -> Reading[list[range]]:
        """Return the runs of physical memory that a range of virtual memory is mapped to.

        Raises:
            NotReadableError: as ``read``.
        """
        runs: list[range] = []
        while length > 0:
            mapped = yield from self.locate(address)
            size = min(len(mapped), length)
            start = mapped.start
            if runs and runs[-1].stop == start:
                start = runs.pop().start
            runs.append(range(start, mapped.start + size))
            address += size
            length -= size
        return runs

    def locate(self, address: int) -> Reading[range]:
        """Return the physical memory behind an address, up to the end of the address's mapping."""
        tables = self._tables
        if address in tables.image:
            return range(address + tables.moved, tables.image.stop + tables.moved)
        if not tables.lowest <= address < 1 << 64:
            raise NotReadableError(f"no kernel address: {address:#x}")
        table = tables.top
        for shift, mask in zip(tables.shifts, tables.masks, strict=True):
            place = table + 8 * (address >> shift & mask)
            entry = int.from_bytes((yield from self._physical.read(place, 8)), "little")
            mapped = tables.entry(entry, shift)
            if mapped is None:
                raise NotReadableError(f"not mapped: {address:#x}")
            table = mapped.address
            if mapped.memory:
                break
        size = 1 << shift
        page = table & -size
        return range(page + address % size, page + size)


def kernel_memory(physical: PhysicalMemory, info: Vmcoreinfo) -> VirtualMemory:
    """Return the virtual addresses of a Linux kernel, from its own note.

    Raises:
        NotReadableError: the kernel is laid out in another way, or its memory is encrypted.
    """
    return VirtualMemory(physical, page_tables(info))
