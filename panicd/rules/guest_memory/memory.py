"""Guest memory as a reader sees it: physical pages, each read once, and virtual addresses.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3, 4.5 '4-level paging
and 5-level paging'; Linux, ``Documentation/arch/x86/x86_64/mm.rst``.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from panicd.rules.guest_memory.reading import NotReadableError, Reading, ReadRequest
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo

PAGE: Final = 4096  # bytes
MAX_REQUEST: Final = 64 * PAGE  # in one go: while QEMU writes it, it does nothing else

PHYSICAL_BITS: Final = 52
KERNEL_MAP: Final = 0xFFFFFFFF80000000  # Linux, __START_KERNEL_map
KERNEL_MAP_SIZE: Final = 1 << 30  # Linux, KERNEL_IMAGE_SIZE with KASLR

_PRESENT: Final = 1 << 0
_LARGE: Final = 1 << 7
_LARGE_SHIFTS: Final = (30, 21)  # an entry of these levels may map 1 GiB or 2 MiB itself
_ADDRESS: Final = (1 << PHYSICAL_BITS) - PAGE
_SHIFTS: Final = (48, 39, 30, 21, 12)


@dataclass(frozen=True, slots=True)
class Limits:
    """What reading may cost.

    Attributes:
        lines: returned at most, the newest.
        records: looked at at most, the readable and the others.
        size: bytes of guest memory read at most.
        requests: made at most.
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
            NotReadableError: it can't be had, or costs more than the limits allow.
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
        top: where the tables begin.
        five_levels: they have five levels, and not four.
    """

    def __init__(self, physical: PhysicalMemory, top: int, *, five_levels: bool) -> None:
        self._physical = physical
        self._top = top
        self._shifts = _SHIFTS if five_levels else _SHIFTS[1:]
        self._lowest = (1 << 64) - (1 << self._shifts[0] + 8)

    def read(self, address: int, length: int) -> Reading[bytes]:
        """Return a range of virtual memory.

        Raises:
            NotReadableError: it is not mapped, can't be had, or costs more than the limits allow.
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
        """Return the physical memory that is mapped from an address on, to its mapping's end."""
        if not self._lowest <= address < 1 << 64:
            raise NotReadableError(f"no kernel address: {address:#x}")
        table = self._top
        for shift in self._shifts:
            place = table + 8 * (address >> shift & 511)
            entry = int.from_bytes((yield from self._physical.read(place, 8)), "little")
            if not entry & _PRESENT:
                raise NotReadableError(f"not mapped: {address:#x}")
            table = entry & _ADDRESS
            if shift in _LARGE_SHIFTS and entry & _LARGE:
                break
        size = 1 << shift
        page = table & -size
        return range(page + address % size, page + size)


class KernelMemory(VirtualMemory):
    """The kernel's half of a Linux's virtual addresses.

    The kernel's image lies in one piece. What it allocated since, a log buffer of another size
    among it, is found by the page tables, which begin at ``swapper_pg_dir``.

    Raises:
        NotReadableError: the kernel is laid out in another way, or its memory is encrypted.
    """

    def __init__(self, physical: PhysicalMemory, info: Vmcoreinfo) -> None:
        if info.page_size() != PAGE:
            raise NotReadableError(f"pages of {info.page_size()} bytes")
        if info.number("sme_mask"):
            raise NotReadableError("the guest's memory is encrypted")
        self._phys_base = info.number("phys_base")
        five_levels = bool(info.number("pgtable_l5_enabled"))
        top = self._in_image(info.symbol("swapper_pg_dir"))
        super().__init__(physical, top, five_levels=five_levels)

    def locate(self, address: int) -> Reading[range]:
        """Return the physical memory that is mapped from an address on, to its mapping's end."""
        if 0 <= address - KERNEL_MAP < KERNEL_MAP_SIZE:
            return range(self._in_image(address), self._in_image(KERNEL_MAP + KERNEL_MAP_SIZE))
        return (yield from super().locate(address))

    def _in_image(self, address: int) -> int:
        return address - KERNEL_MAP + self._phys_base
