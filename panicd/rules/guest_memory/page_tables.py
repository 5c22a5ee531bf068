"""The kernel's page tables, by its own account: they translate virtual addresses to physical ones.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3, 4.5 '4-level paging
and 5-level paging'; Arm Architecture Reference Manual for A-profile, D8 'The AArch64 Virtual Memory
System Architecture'; Linux, ``Documentation/arch/x86/x86_64/mm.rst``, ``arch/arm64/kernel``
(``vmcore_info.c``, ``head.S``, ``pi/map_kernel.c``).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo

PHYSICAL_BITS: Final = 52
KERNEL_MAP: Final = 0xFFFFFFFF80000000  # Linux on x86, __START_KERNEL_map
KERNEL_MAP_SIZE: Final = 1 << 30  # Linux on x86, KERNEL_IMAGE_SIZE with KASLR

_PHYSICAL: Final = (1 << PHYSICAL_BITS) - 1
_ENTRY_BITS: Final = 3  # log2 of an entry's bytes

_PRESENT: Final = 1 << 0
_LARGE: Final = 1 << 7
_LARGE_SHIFTS: Final = (30, 21)  # an entry of these levels may map 1 GiB or 2 MiB itself
_X86_SHIFTS: Final = (48, 39, 30, 21, 12)

_VALID: Final = 1 << 0
_TABLE_OR_PAGE: Final = 1 << 1
_ARM_PAGES: Final = {4096: 12, 16384: 14, 65536: 16}  # bytes, and log2 of them
_ARM_BITS: Final = range(36, 53)  # of virtual addresses
_BELOW_48: Final = (1 << 48) - 1


@dataclass(frozen=True, slots=True)
class Mapped:
    """The target of an entry: the next table, or memory; ``address`` is physical."""

    address: int
    memory: bool


@dataclass(frozen=True, slots=True)
class PageTables:
    """A kernel's page tables.

    Attributes:
        top: the physical address of the first table.
        shifts: for each level log2 of the bytes that an entry maps.
        masks: for each level which bits of a shifted address are the entry's number.
        lowest: the first address of the kernel's half.
        image: addresses that are mapped in one piece, without a look at the tables.
        moved: the number to add to an address of ``image``.
        entry: the function for an entry's target, by the level's shift; None: unused entry.
    """

    top: int
    shifts: tuple[int, ...]
    masks: tuple[int, ...]
    lowest: int
    image: range
    moved: int
    entry: Callable[[int, int], Mapped | None]


def page_tables(info: Vmcoreinfo) -> PageTables:
    """Return the page tables from a kernel's note.

    Raises:
        NotReadableError: the note tells too little, the layout is unknown, or memory is encrypted.
    """
    return _arm(info) if info.has_number("kimage_voffset") else _x86(info)


def _x86(info: Vmcoreinfo) -> PageTables:
    if info.page_size() != 1 << _X86_SHIFTS[-1]:
        raise NotReadableError(f"pages of {info.page_size()} bytes")
    if info.number("sme_mask"):
        raise NotReadableError("the guest's memory is encrypted")
    moved = info.number("phys_base") - KERNEL_MAP
    tables = x86_tables(
        info.symbol("swapper_pg_dir") + moved, five_levels=bool(info.number("pgtable_l5_enabled"))
    )
    return replace(tables, image=range(KERNEL_MAP, KERNEL_MAP + KERNEL_MAP_SIZE), moved=moved)


def x86_tables(top: int, *, five_levels: bool) -> PageTables:
    """Return the page tables of any system on 64-bit x86.

    Args:
        top: the physical address of the first table.
        five_levels: there are five levels, not four.
    """
    shifts = _X86_SHIFTS if five_levels else _X86_SHIFTS[1:]
    return PageTables(
        top=top,
        shifts=shifts,
        masks=(511,) * len(shifts),
        lowest=(1 << 64) - (1 << shifts[0] + 8),
        image=range(0),
        moved=0,
        entry=_x86_entry,
    )


def _x86_entry(entry: int, shift: int) -> Mapped | None:
    if not entry & _PRESENT:
        return None
    memory = shift == _X86_SHIFTS[-1] or (shift in _LARGE_SHIFTS and bool(entry & _LARGE))
    return Mapped(entry & _PHYSICAL & -(1 << _X86_SHIFTS[-1]), memory)


def _arm(info: Vmcoreinfo) -> PageTables:
    page = _ARM_PAGES.get(info.page_size())
    if page is None:
        raise NotReadableError(f"pages of {info.page_size()} bytes")
    # A kernel for 52 bits also runs on processors with 48, and then uses 48.
    built, used = info.number("VA_BITS"), 64 - info.number("TCR_EL1_T1SZ")
    if built not in _ARM_BITS or used not in _ARM_BITS or used > built:
        raise NotReadableError(f"virtual addresses of {used} bits, in a kernel for {built}")
    bits = page - _ENTRY_BITS
    shifts = tuple(range(page, used, bits))[::-1]
    # With pages of 64 KiB the first table is for 52 bits even then; its last part is in use.
    first = min(bits, built - shifts[0])
    return PageTables(
        top=info.symbol("swapper_pg_dir") - info.number("kimage_voffset"),
        shifts=shifts,
        masks=((1 << first) - 1, *((1 << bits) - 1,) * (len(shifts) - 1)),
        lowest=(1 << 64) - (1 << used),
        image=range(0),
        moved=0,
        entry=partial(_arm_entry, page=page, more=used > 48 and page < 16),
    )


def _arm_entry(entry: int, shift: int, *, page: int, more: bool) -> Mapped | None:
    """Return the target of an entry.

    Args:
        entry: the descriptor.
        shift: its level's shift.
        page: log2 of a page's bytes.
        more: its output addresses have 52 bits, of which two stand elsewhere (FEAT_LPA2).
    """
    lowest = shift == page
    table_or_page = bool(entry & _TABLE_OR_PAGE)
    if not entry & _VALID or (lowest and not table_or_page):
        return None
    if more:
        address = entry & (1 << 50) - 1 & -(1 << page) | (entry >> 8 & 0b11) << 50
    elif page == 16:  # FEAT_LPA has four bits where smaller pages have address bits
        address = entry & _BELOW_48 & -(1 << page) | (entry >> 12 & 0b1111) << 48
    else:
        address = entry & _BELOW_48 & -(1 << page)
    return Mapped(address, lowest or not table_or_page)
