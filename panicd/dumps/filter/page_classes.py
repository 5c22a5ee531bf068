"""What each page of a guest is used for, for many pages at once.

The rules are makedumpfile's (its manual, ``-d``). They are stricter where only the guest's word
counts: a page that contradicts itself is kept.

- A page of a compound is what the compound's first page is, if that page is there.
- A free block's pages count as free only if nobody holds them (``_refcount`` of 0) and no list of
  used pages does (``PG_lru``).
- A page with a type (slab, page table, ...) is neither cache nor a user's, whatever else its
  structure says.

Source: Linux, ``include/linux/page-flags.h``, ``include/linux/mm_types.h``, ``mm/page_alloc.c``.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from panicd.rules.guest_memory.page_layout import MAX_ORDER, DumpLevel, PageLayout

CHUNK: Final = 1 << MAX_ORDER
"""Pages that are looked at together: no run of pages that belong together crosses such a border."""

_ANONYMOUS: Final = 1  # in page.mapping: Linux, PAGE_MAPPING_ANON
_TAIL: Final = 1  # in page.compound_head, later compound_info
_TYPED_BELOW: Final = -128  # of page._mapcount: Linux, PAGE_MAPCOUNT_RESERVE

Classes = npt.NDArray[np.uint8]
"""For each page the one bit of ``DumpLevel`` that it is left out for; 0: it is kept."""


def page_dtype(layout: PageLayout) -> np.dtype[Any]:
    """Return how numpy reads an array of page structures."""
    members = {
        "flags": ("<u8", layout.flags),
        "mapping": ("<u8", layout.mapping),
        "private": ("<u8", layout.private),
        "compound": ("<u8", layout.compound),
        "refcount": ("<i4", layout.refcount),
        "mapcount": ("<i4", layout.mapcount),
    }
    if layout.hugetlb_dtor is not None:
        members["dtor"] = ("<u1", layout.hugetlb_dtor[0])
    return np.dtype(
        {
            "names": list(members),
            "formats": [form for form, _ in members.values()],
            "offsets": [offset for _, offset in members.values()],
            "itemsize": layout.size,
        }
    )


def classify(
    layout: PageLayout, base: int, first: int, data: bytearray, known: npt.NDArray[np.bool_]
) -> Classes:
    """Return what each page of a chunk is left out for.

    Args:
        layout: of ``struct page``.
        base: the virtual address of the element of page 0.
        first: the number of the chunk's first page, a multiple of ``CHUNK``.
        data: the chunk's page structures; zeros where they are not known.
        known: which are.
    """
    pages = np.frombuffer(data, page_dtype(layout))
    flags, mapcount = pages["flags"], pages["mapcount"]
    tail = pages["compound"] & np.uint64(_TAIL) != 0
    slab = _slabs(layout, flags, mapcount)
    untyped = ~slab & (mapcount >= _TYPED_BELOW)
    anonymous = pages["mapping"] & np.uint64(_ANONYMOUS) != 0

    swapcache = _bit(flags, layout.swapcache)
    if layout.swapbacked is not None:
        swapcache &= _bit(flags, layout.swapbacked)
    cache = untyped & ~anonymous & (_bit(flags, layout.lru) | swapcache)
    private = _bit(flags, layout.private_flag)
    user = (untyped & anonymous) | (~slab & _hugetlb(layout, pages))
    of_host = mapcount == layout.offline if layout.offline is not None else np.zeros_like(slab)

    classes = np.zeros(len(pages), np.uint8)
    classes[user] = DumpLevel.USER
    classes[cache & private] = DumpLevel.CACHE_PRIVATE
    classes[cache & ~private] = DumpLevel.CACHE
    classes[of_host & ~slab] = DumpLevel.FREE
    classes[tail] = 0
    classes[_free(layout, pages, slab | tail)] = DumpLevel.FREE
    origin = (base + first * layout.size) % 2**64
    tails, heads = _heads(layout, origin, pages, known & (classes != DumpLevel.FREE))
    classes[tails] = classes[heads]
    classes[~known] = 0
    return classes


def left_out(classes: Classes, level: DumpLevel) -> npt.NDArray[np.bool_]:
    """Return which pages a dump of a level leaves out, empty ones apart."""
    bits = int(level)
    if level & DumpLevel.CACHE_PRIVATE:
        bits |= DumpLevel.CACHE
    return np.asarray(classes & np.uint8(bits & ~DumpLevel.ZERO) != 0)


def _bit(flags: npt.NDArray[np.uint64], number: int) -> npt.NDArray[np.bool_]:
    return np.asarray(flags & np.uint64(1 << number) != 0)


def _slabs(
    layout: PageLayout, flags: npt.NDArray[np.uint64], mapcount: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    slab = np.zeros(len(flags), np.bool_)
    if layout.slab_flag is not None:
        slab |= _bit(flags, layout.slab_flag)
    if layout.slab_type is not None:
        slab |= _is_type(mapcount, layout.slab_type)
    return slab


def _is_type(mapcount: npt.NDArray[np.int32], kind: int) -> npt.NDArray[np.bool_]:
    """Return which pages bear a type, which may have a number of its own in its lower bits.

    Before Linux 6.12 a type is one bit that is not set, among some that are; from then on it is
    the topmost byte.
    """
    if kind & 0xFFFFFF == 0:
        return np.asarray(mapcount >> 24 == kind >> 24)
    return np.asarray(mapcount == kind)


def _hugetlb(layout: PageLayout, pages: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which pages are the first of a huge one (hugetlbfs)."""
    huge = np.zeros(len(pages), np.bool_)
    if layout.hugetlb_type is not None:
        huge |= _is_type(pages["mapcount"], layout.hugetlb_type)
    head = pages["flags"] & np.uint64(layout.head_mask) == np.uint64(layout.head_mask)
    if layout.hugetlb_dtor is not None:
        huge[:-1] |= head[:-1] & (pages["dtor"][1:] == layout.hugetlb_dtor[1])
    if layout.hugetlb_flag is not None:
        huge[:-1] |= head[:-1] & _bit(pages["flags"][1:], layout.hugetlb_flag)
    return huge


def _free(
    layout: PageLayout, pages: npt.NDArray[Any], never: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return which pages lie in a free block of the buddy allocator."""
    unused = (pages["refcount"] == 0) & ~_bit(pages["flags"], layout.lru)
    starts = np.flatnonzero((pages["mapcount"] == layout.buddy) & unused & ~never)
    orders = pages["private"][starts]
    likely = orders <= MAX_ORDER
    starts, orders = starts[likely], orders[likely].astype(np.int64)
    aligned = starts & (1 << orders) - 1 == 0
    starts, orders = starts[aligned], orders[aligned]
    steps = np.zeros(len(pages) + 1, np.int32)
    np.add.at(steps, starts, 1)
    np.add.at(steps, np.minimum(starts + (1 << orders), len(pages)), -1)
    inside = np.cumsum(steps[:-1]) > 0
    return np.asarray(inside & unused & ~never)


def _heads(
    layout: PageLayout, origin: int, pages: npt.NDArray[Any], possible: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return which pages are further ones of several, and the first of each.

    Args:
        layout: of ``struct page``.
        origin: the virtual address of the chunk's first element.
        pages: the chunk's.
        possible: which of them may be a first.
    """
    compound, mask = pages["compound"], np.uint64(layout.head_mask)
    tails = np.flatnonzero(compound & np.uint64(_TAIL) != 0)
    places = compound[tails] - np.uint64(_TAIL)
    if layout.compound_masks:
        own = np.uint64(origin) + tails.astype(np.uint64) * np.uint64(layout.size)
        places = np.where(_is_mask(layout, places), places & own, places)
    # Of 64 bits, unsigned: what lies before the chunk comes out as far behind it.
    distance = places - np.uint64(origin)
    heads = distance // np.uint64(layout.size)
    sound = (distance % np.uint64(layout.size) == 0) & (heads < np.uint64(len(pages)))
    tails, heads = tails[sound], heads[sound].astype(np.int64)
    sound = (
        (heads < tails)
        & possible[heads]
        & (compound[heads] & np.uint64(_TAIL) == 0)
        & (pages["flags"][heads] & mask == mask)
    )
    return tails[sound], heads[sound]


def _is_mask(layout: PageLayout, places: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which are masks: they have their lower bits unset, as many as a run of pages has."""
    lowest = ~places + np.uint64(1)
    longest = layout.size << MAX_ORDER
    return np.asarray((lowest & (lowest - np.uint64(1)) == 0) & (lowest <= longest) & (lowest > 0))
