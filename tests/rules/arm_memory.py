"""The memory of a made-up Linux guest on 64-bit Arm: its page tables, and its VMCOREINFO."""

from dataclasses import dataclass

from panicd.rules.guest_memory.memory import PAGE
from tests.rules.linux_memory import TEXT_BASE, LinuxMemory

TOP_TABLE = 0x4F00_0000

TABLE = 0b11
SMALLEST, BLOCK = 0b11, 0b01
ACCESSED = 1 << 10
NOT_EXECUTED = 0b11 << 53

FIRST_TABLE = {
    (12, 52, 52): 16,
    (14, 48, 48): 2,
    (14, 52, 52): 32,
    (16, 48, 48): 64,
    (16, 52, 48): 1024,
    (16, 52, 52): 1024,
}
"""Entries, by the guest's attributes, where they are fewer than fit into a page: Linux,
PTRS_PER_PGD."""


@dataclass
class ArmMemory(LinuxMemory):
    """A guest as ``LinuxMemory``; all that the kernel has is found by its page tables.

    Attributes:
        large: log2 of the pages that map everything.
        page_bits: log2 of a page's bytes.
        built: The bits of virtual addresses that the kernel was built for,
        used: and those that the processor has.
    """

    large: int = 12
    page_bits: int = 12
    built: int = 48
    used: int = 48

    def __post_init__(self) -> None:
        self._linear = (1 << 64) - (1 << self.used)
        self._moved = self._linear + (1 << self.used - 1)
        super().__post_init__()

    def image_address(self, physical: int) -> int:
        return physical + self._moved

    def buffer_address(self, physical: int) -> int:
        return self._linear + physical if self.allocated else self.image_address(physical)

    def map(self, address: int, physical: int) -> None:
        bits = self.page_bits - 3
        shifts = [shift for shift in range(self.page_bits, 64, bits) if shift < self.used][::-1]
        table = TOP_TABLE
        count = FIRST_TABLE.get((self.page_bits, self.built, self.used), 1 << bits)
        for shift in shifts:
            entry = table + 8 * (address >> shift & count - 1)
            count = 1 << bits
            if shift == self.large:
                kind = SMALLEST if shift == self.page_bits else BLOCK
                place = physical >> shift << shift
                self.write_number(entry, place | kind | ACCESSED | NOT_EXECUTED)
                return
            if not self.number(entry) & 1:
                self.write_number(entry, self._next_table | TABLE)
                self._next_table += 1 << self.page_bits
            table = self.number(entry) & 0xFFFFFFFF0000 | self.number(entry) & 0xF000

    def finish(self) -> None:
        super().finish()
        for page in list(self.pages):
            if page < TOP_TABLE:
                self.map(self.image_address(page), page)
        for page in list(self.pages):  # a table may be looked at where it has no entry
            first = page >> self.page_bits << self.page_bits
            for place in range(first, first + (1 << self.page_bits), PAGE):
                self.pages.setdefault(place, bytearray(PAGE))

    def note(self) -> bytes:
        own = {
            "PAGESIZE": f"{1 << self.page_bits}",
            "SYMBOL(swapper_pg_dir)": f"{self.image_address(TOP_TABLE):x}",
            "NUMBER(VA_BITS)": f"{self.built}",
            "NUMBER(TCR_EL1_T1SZ)": f"0x{64 - self.used:x}",
            "NUMBER(kimage_voffset)": f"0x{self._moved:x}",
            "NUMBER(PHYS_OFFSET)": f"0x{TEXT_BASE:x}",
            "NUMBER(phys_base)": None,
            "NUMBER(pgtable_l5_enabled)": None,
            "NUMBER(sme_mask)": None,
        }
        self.edits = own | self.edits
        return super().note()
