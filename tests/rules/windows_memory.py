"""The memory of a made-up Windows guest: page tables, KDBG, and the header that its driver leaves.

It is laid out as QEMU expects it of virtio-win's fwcfg driver (QEMU, ``dump/win_dump.c``), which
has the kernel fill in a dump's header while it still runs. Nothing of it was made by a Windows.
"""

import struct
from dataclasses import dataclass, field
from typing import Final

from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError

# Where the guest's own things lie in guest-physical memory.
NOTE: Final = 0x1_0000
TABLES: Final = 0x2_0000
KDBG: Final = 0x6_0000
BUG_CHECK: Final = 0x6_2000
BLOCK: Final = 0x6_4000  # KiProcessorBlock
PROCESSORS: Final = 0x20_0000  # two pages for each: its PRCB, and the rest of its context
DECODED: Final = 0x6_6000  # the driver's copy of KDBG
MEMORY: Final = 16 << 20  # bytes

# And where the guest sees them.
KERNEL: Final = 0xFFFFF802_1A200000
POOL: Final = 0xFFFFB70F_83C04000
PFN_DATABASE: Final = 0xFFFFFA80_00000000
KDBG_AT: Final = KERNEL + 0xC00B20
BUG_CHECK_AT: Final = KERNEL + 0xD15FF0  # across the end of a page
BLOCK_AT: Final = KERNEL + 0xE20380
PRCB_CONTEXT: Final = 0x63A0

RUNS: Final = ((0x1, 0x9E), (0x100, 0xE00), (0xF10, 0xF0))
"""First page and number of pages, as a Windows has them: without what is the firmware's."""

MARKS: Final = b"PAGE"  # what a kernel fills with whatever it does not know


@dataclass
class WindowsMemory:
    """A guest.

    Attributes:
        bug_check: Its code and four parameters.
        processors: How many it runs on.
        levels: Of the page tables.
        encoded: Its own KDBG can't be read, and only the driver's copy can.
        runs: Of pages, as its header has them.
        edits: Bytes of the header that differ, by their offset.
        pages: Guest-physical memory.
        top: Where its page tables begin.
    """

    bug_check: tuple[int, ...] = (0x7E, 0xFFFFFFFF_C0000005, KERNEL + 0x1234, 0x11, 0x22)
    processors: int = 1
    levels: int = 4
    encoded: bool = False
    runs: tuple[tuple[int, int], ...] = RUNS
    edits: dict[int, bytes] = field(default_factory=dict)
    pages: dict[int, bytearray] = field(default_factory=dict)
    top: int = TABLES

    def __post_init__(self) -> None:
        self._next_table = self.top + PAGE
        self.map(0, 0, shift=21)  # the code that panics lies there
        self.map(KDBG_AT, KDBG + KDBG_AT % PAGE)
        self.map(BUG_CHECK_AT, BUG_CHECK + BUG_CHECK_AT % PAGE)
        self.map(BUG_CHECK_AT + PAGE, BUG_CHECK + 3 * PAGE)
        self.map(BLOCK_AT, BLOCK + BLOCK_AT % PAGE)
        self.map(POOL, DECODED)
        self.write_virtual(BUG_CHECK_AT, struct.pack("<5Q", *self.bug_check))
        for number in range(self.processors):
            prcb, page = self.prcb(number), PROCESSORS + number * 4 * PAGE
            self.write_virtual(BLOCK_AT + 8 * number, struct.pack("<Q", prcb))
            self.map(prcb + PRCB_CONTEXT, page)
            # Two pages that don't follow each other in memory, for a context across their end.
            self.map(self.context(number), page + PAGE)
            self.map(self.context(number) + PAGE, page + 3 * PAGE)
            self.write_virtual(prcb + PRCB_CONTEXT, struct.pack("<Q", self.context(number)))
            self.write_virtual(self.context(number), b"old " * 308)
        self.write_virtual(POOL, self.kdbg())
        if not self.encoded:
            self.write_virtual(KDBG_AT, self.kdbg())

    @staticmethod
    def prcb(number: int) -> int:
        """Return the address of a processor's block."""
        return KERNEL - 0x1000_0000 + number * 0x10000

    def context(self, number: int) -> int:
        """Return the address of a processor's saved context."""
        return self.prcb(number) + 0x8F00

    def kdbg(self) -> bytes:
        """Return KDBG, the debugger's data block."""
        block = bytearray(0x340)
        struct.pack_into("<4sI", block, 0x10, b"KDBG", len(block))
        struct.pack_into("<Q", block, 0x88, BUG_CHECK_AT)
        struct.pack_into("<Q", block, 0xC0, PFN_DATABASE)
        struct.pack_into("<Q", block, 0x218, BLOCK_AT)
        struct.pack_into("<H", block, 0x338, PRCB_CONTEXT)
        return bytes(block)

    def header(self) -> bytes:
        """Return the header of a dump, as the driver has the kernel make it."""
        block = bytearray(MARKS * 2048)
        struct.pack_into("<4sII", block, 4, b"DU64", 15, 20348)
        struct.pack_into("<QQQQ", block, 0x10, self.top, 0, KERNEL + 0xC2A000, KERNEL + 0xC1F000)
        struct.pack_into("<II", block, 0x30, 0x8664, self.processors)
        struct.pack_into("<IIQ", block, 0x38, 0, 0, POOL)
        struct.pack_into("<Q", block, 0x80, KDBG_AT)
        struct.pack_into("<IIQ", block, 0x88, len(self.runs), 0, sum(n for _, n in self.runs))
        for number, run in enumerate(self.runs):
            struct.pack_into("<QQ", block, 0x98 + 16 * number, *run)
        struct.pack_into("<I", block, 0xF98, 1)  # a full dump
        for at, data in self.edits.items():
            block[at : at + len(data)] = data
        return bytes(block)

    def notes(self) -> bytes:
        """Return the notes of a dump: QEMU's on the first processor, and the driver's."""
        state = bytearray(440)
        struct.pack_into("<Q", state, 424, 0x1000 if self.levels == 5 else 0)  # CR4
        return struct.pack("<III", 5, len(state), 0) + b"QEMU\0\0\0\0" + state + self.note()

    def note(self) -> bytes:
        """Return the note that the driver leaves."""
        name = b"VMCOREINFO\0"
        return struct.pack("<III", len(name), len(self.header()), 0) + name + b"\0" + self.header()

    def map(self, virtual: int, physical: int, *, shift: int = 12) -> None:
        """Map a page of 2**shift bytes."""
        table = self.top
        for level in range(12 + 9 * (self.levels - 1), shift, -9):
            place = table + 8 * (virtual >> level & 511)
            entry = int.from_bytes(self.read_some(place, 8), "little")
            if not entry:
                entry, self._next_table = self._next_table | 3, self._next_table + PAGE
                self.write(place, struct.pack("<Q", entry))
            table = entry & -PAGE
        large = 0x80 if shift > 12 else 0
        place = table + 8 * (virtual >> shift & 511)
        self.write(place, struct.pack("<Q", physical >> shift << shift | 3 | large))

    def physical(self, virtual: int) -> int:
        """Return where an address that is mapped lies."""
        table = self.top
        for level in range(12 + 9 * (self.levels - 1), 11, -9):
            entry = int.from_bytes(
                self.read_some(table + 8 * (virtual >> level & 511), 8), "little"
            )
            assert entry & 1, f"{virtual:#x} is not mapped"
            table = entry & -PAGE
        return table + virtual % PAGE

    def write_virtual(self, virtual: int, data: bytes) -> None:
        """Write to where an address is mapped."""
        while data:
            part = data[: PAGE - virtual % PAGE]
            self.write(self.physical(virtual), part)
            virtual, data = virtual + len(part), data[len(part) :]

    def write(self, physical: int, data: bytes) -> None:
        """Write to memory; pages that are not there are made."""
        for at, byte in enumerate(data, physical):
            self.pages.setdefault(at // PAGE * PAGE, bytearray(PAGE))[at % PAGE] = byte

    def read_some(self, physical: int, length: int) -> bytes:
        """Return memory; what is not there reads as zeros."""
        page = self.pages.get(physical // PAGE * PAGE, bytearray(PAGE))
        return bytes(page[physical % PAGE : physical % PAGE + length])

    def read(self, physical: int, length: int) -> bytes:
        """Return whole pages."""
        assert physical % PAGE == length % PAGE == 0
        assert length > 0
        data = b""
        for page in range(physical, physical + length, PAGE):
            if page not in self.pages:
                raise NotReadableError(f"QEMU: nothing at {page:#x}")
            data += self.pages[page]
        return data
