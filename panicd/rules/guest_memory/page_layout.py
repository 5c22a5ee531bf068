"""Linux's structure for each page of memory (``struct page``), by the kernel's own account.

Sources: Linux, ``Documentation/admin-guide/kdump/vmcoreinfo.rst``, ``include/linux/page-flags.h``;
which pages each bit of a dump level stands for: makedumpfile(8), ``-d``.
"""

from dataclasses import dataclass
from enum import IntFlag
from typing import Final, Self

from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo

MAX_ORDER: Final = 18
"""A run of pages has at most 2 ** this many: 1 GiB, the largest page of x86-64."""

_FLAG_BITS: Final = range(64)
_TYPE_BITS: Final = range(-(1 << 31), 0)


class DumpLevel(IntFlag):
    """The pages that a dump leaves out, in makedumpfile's own numbers."""

    EVERYTHING = 0
    ZERO = 1
    CACHE = 2  # page cache that no file system keeps data of its own with
    CACHE_PRIVATE = 4  # the rest of the page cache; includes the pages of CACHE
    USER = 8
    FREE = 16
    ALL = 31


@dataclass(frozen=True, slots=True)
class PageLayout:
    """The layout of ``struct page``, and the kernel's marks for a page's use.

    Attributes:
        size: the structure's size in bytes.
        flags, mapping, private, compound: offsets of members of 8 bytes each. In a compound page's
            later pages, ``compound`` tells where the first page is.
        compound_masks: ``compound`` may be a mask for its own place; else it is the first's place.
        refcount, mapcount: offsets of members of 4 bytes each.
        lru, private_flag, swapcache: numbers of bits in ``flags``.
        swapbacked: the same; None: ``swapcache`` needs no second look.
        head_mask: the bits in ``flags`` of a compound page's first page.
        buddy, offline: ``mapcount`` of a free page, and of a page that is the host's.
        slab_flag: the number of a bit in ``flags``; None where ``slab_type`` tells.
        slab_type, hugetlb_type: ``mapcount`` of such a page; None where another mark tells.
        hugetlb_dtor: the offset of a member of 1 byte in the second structure, and its value.
        hugetlb_flag: the number of a bit in the second structure's ``flags``.
    """

    size: int
    flags: int
    mapping: int
    private: int
    compound: int
    compound_masks: bool
    refcount: int
    mapcount: int
    lru: int
    private_flag: int
    swapcache: int
    swapbacked: int | None
    head_mask: int
    buddy: int
    offline: int | None
    slab_flag: int | None
    slab_type: int | None
    hugetlb_type: int | None
    hugetlb_dtor: tuple[int, int] | None
    hugetlb_flag: int | None

    @classmethod
    def read(cls, info: Vmcoreinfo) -> Self:
        """Return the layout from a kernel's note.

        Raises:
            NotReadableError: the note tells too little, or impossible values.
        """
        # The member with the new meaning has a new name (seen in 7.2), so nobody misreads it.
        masks = info.has_offset("page", "compound_info")
        compound = "compound_info" if masks else "compound_head"
        page = info.structure(
            "page",
            {
                **dict.fromkeys(("flags", "mapping", "private", compound), 8),
                **dict.fromkeys(("_refcount", "_mapcount"), 4),
            },
        )
        if page.size % 8:
            raise NotReadableError(f"a struct page of {page.size} bytes")
        slab_type = _type(info, "PAGE_SLAB_MAPCOUNT_VALUE")
        slab_flag = _bit(info, "PG_slab")
        if slab_type is None and slab_flag is None:
            raise NotReadableError("VMCOREINFO does not tell what a page of slabs is")
        buddy = _type(info, "PAGE_BUDDY_MAPCOUNT_VALUE")
        if buddy is None:
            raise NotReadableError("VMCOREINFO does not tell what a free page is")
        return cls(
            size=page.size,
            flags=page.offset("flags"),
            mapping=page.offset("mapping"),
            private=page.offset("private"),
            compound=page.offset(compound),
            compound_masks=masks,
            refcount=page.offset("_refcount"),
            mapcount=page.offset("_mapcount"),
            lru=_needed(info, "PG_lru"),
            private_flag=_needed(info, "PG_private"),
            swapcache=_needed(info, "PG_swapcache"),
            swapbacked=_bit(info, "PG_swapbacked"),
            head_mask=_head_mask(info),
            buddy=buddy,
            offline=_type(info, "PAGE_OFFLINE_MAPCOUNT_VALUE"),
            slab_flag=slab_flag,
            slab_type=slab_type,
            hugetlb_type=_type(info, "PAGE_HUGETLB_MAPCOUNT_VALUE"),
            hugetlb_dtor=_hugetlb_dtor(info, page.size),
            hugetlb_flag=_bit(info, "PG_hugetlb"),
        )


def _needed(info: Vmcoreinfo, name: str) -> int:
    bit = _bit(info, name)
    if bit is None:
        raise NotReadableError(f"VMCOREINFO has no NUMBER({name})")
    return bit


def _bit(info: Vmcoreinfo, name: str) -> int | None:
    """Return the number of a bit in ``flags``."""
    if not info.has_number(name):
        return None
    number = info.number(name)
    if number not in _FLAG_BITS:
        raise NotReadableError(f"{name} is said to be bit {number}")
    return number


def _type(info: Vmcoreinfo, name: str) -> int | None:
    """Return the negative number that a page's ``_mapcount`` has instead of a count."""
    if not info.has_number(name):
        return None
    number = info.number(name)
    if number not in _TYPE_BITS:
        raise NotReadableError(f"{name} is said to be {number}")
    return number


def _head_mask(info: Vmcoreinfo) -> int:
    mask = info.number("PG_head_mask")
    if not 0 < mask < 1 << 64:
        raise NotReadableError(f"PG_head_mask is said to be {mask:#x}")
    return mask


def _hugetlb_dtor(info: Vmcoreinfo, size: int) -> tuple[int, int] | None:
    """Return where a compound page's second page tells its kind, and the value for huge pages."""
    if not info.has_number("HUGETLB_PAGE_DTOR") or not info.has_offset("page", "compound_dtor"):
        return None
    offset, value = info.offset("page", "compound_dtor"), info.number("HUGETLB_PAGE_DTOR")
    if not (0 <= offset < size and 0 <= value < 256):
        raise NotReadableError(f"page.compound_dtor at {offset}, {value} of huge pages")
    return offset, value
