"""Which pages are kept: of guests that tell the truth, of those that lie, and of nonsense."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panicd.dumps.filter import page_bitmap
from panicd.dumps.filter.page_bitmap import PageBitmap, ranges_to_read, read_bitmap
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.page_layout import DumpLevel
from panicd.rules.guest_memory.reading import NotReadableError
from tests.dumps.page_guests import (
    ARRAY,
    BUDDY,
    DIRECT,
    HEAD,
    HUGETLB,
    LRU,
    MEMORY,
    OFFLINE,
    PAGES,
    PGD,
    PRIVATE,
    ROOTS,
    SECTIONS,
    SIZE,
    SLAB,
    SWAPBACKED,
    SWAPCACHE,
    TABLE,
    VMEMMAP,
    Page,
    PageGuest,
    tail,
)

ROUNDS = 1000 if os.environ.get("PANICD_HOSTILE") == "whole" else 60
P = 2048  # a page that nothing lies in


def bitmap(guest: PageGuest, level: int = 31) -> PageBitmap:
    return guest.serve(read_bitmap(guest.vmcoreinfo, MEMORY, DumpLevel(level)))


def left_out(guest: PageGuest, level: int = 31) -> list[int]:
    bits = bitmap(guest, level).bits
    return [page for page in range(PAGES) if not bits[page // 8] >> page % 8 & 1]


CACHE = Page(flags=1 << LRU, mapping=0x1000)


@pytest.mark.parametrize(
    ("page", "levels"),
    [
        (Page(), set()),
        (CACHE, {2, 4}),
        (Page(flags=1 << LRU | 1 << PRIVATE, mapping=0x1000), {4}),
        (Page(flags=1 << SWAPCACHE | 1 << SWAPBACKED), {2, 4}),
        (Page(flags=1 << SWAPCACHE), set()),
        (Page(flags=1 << LRU, mapping=0x1001), {8}),
        (Page(mapping=0x1001), {8}),
        (Page(flags=1 << SLAB | 1 << LRU, mapping=0x1001), set()),
        (Page(flags=1 << LRU, mapping=0x1001, mapcount=TABLE), set()),
        (Page(mapcount=BUDDY, refcount=0), {16}),
        (Page(mapcount=BUDDY, refcount=1), set()),  # somebody holds it
        (Page(mapcount=BUDDY, refcount=0, flags=1 << LRU), set()),
        (Page(mapcount=BUDDY, refcount=0, flags=1 << SLAB), set()),
        (Page(mapcount=OFFLINE), {16}),
    ],
)
def test_what_a_page_is_left_out_for(page: Page, levels: set[int]) -> None:
    guest = PageGuest()
    guest.page(P, page)
    assert {level for level in (1, 2, 4, 8, 16) if left_out(guest, level) == [P]} == levels
    assert left_out(guest) == ([P] if levels else [])
    assert left_out(guest, 0) == []


def test_a_free_block_is_left_out_whole() -> None:
    guest = PageGuest()
    guest.page(P, Page(mapcount=BUDDY, refcount=0, private=3))
    for page in range(P + 1, P + 8):
        guest.page(page, Page(refcount=0))
    assert left_out(guest) == list(range(P, P + 8))
    guest.page(P + 5, Page(refcount=1))
    guest.page(P + 6, Page(refcount=0, flags=1 << LRU))
    assert left_out(guest, 16) == [P, P + 1, P + 2, P + 3, P + 4, P + 7]


@pytest.mark.parametrize("order", [1, 4, 19, 63, 1 << 63])
def test_a_free_block_of_an_unlikely_order_is_kept(order: int) -> None:
    guest = PageGuest()
    guest.page(P + 1, Page(mapcount=BUDDY, refcount=0, private=order))  # not where one may begin
    assert left_out(guest) == []


def test_further_pages_follow_the_first() -> None:
    guest = PageGuest()
    guest.page(P, Page(flags=HEAD | 1 << LRU, mapping=0x1001))
    for page in range(P + 1, P + 512):
        guest.page(page, tail(P))
    assert left_out(guest) == list(range(P, P + 512))
    assert left_out(guest, 16 | 4 | 2) == []


def test_huge_pages_are_a_user_s() -> None:
    guest = PageGuest()
    guest.page(P, Page(flags=HEAD))
    guest.page(P + 1, tail(P))
    guest.put(ARRAY + (P + 1) * SIZE + 16, bytes([HUGETLB]))
    guest.page(P + 2, tail(P))
    assert left_out(guest, 8) == [P, P + 1, P + 2]


@pytest.mark.parametrize(
    "head", [P + 1, P + 9, -1, 1 << 40, PAGES + 5, P - 1], ids=lambda head: f"{head:#x}"
)
def test_further_pages_of_no_first_are_kept(head: int) -> None:
    guest = PageGuest()
    guest.page(P + 1, Page(compound_head=(VMEMMAP + head * SIZE + 1) % 2**64, mapping=0x1001))
    guest.page(P - 1, CACHE)  # no first of several
    assert left_out(guest) == [P - 1]


def tail_by_mask(order: int) -> Page:
    """A further one of several pages, as Linux 7.2 has it: its own place leads to the first."""
    return Page(compound_head=(-(SIZE << order) + 1) % 2**64)


def newer_guest() -> PageGuest:
    guest = PageGuest()
    guest.note["OFFSET(page.compound_info)"] = guest.note.pop("OFFSET(page.compound_head)")
    return guest


def test_further_pages_follow_the_first_that_a_mask_leads_to() -> None:
    guest = newer_guest()
    guest.page(P, Page(flags=HEAD | 1 << LRU, mapping=0x1001))
    for page in range(P + 1, P + 512):
        guest.page(page, tail_by_mask(9))
    guest.page(P + 512, Page(flags=HEAD | 1 << LRU, mapping=0x1000))
    guest.page(P + 513, tail_by_mask(1))
    guest.page(P + 514, Page(flags=HEAD | 1 << LRU, mapping=0x1000))
    guest.page(P + 515, tail(P + 514))  # where struct page has no size that a mask needs
    assert left_out(guest) == list(range(P, P + 516))
    assert left_out(guest, 8) == list(range(P, P + 512))
    assert left_out(guest, 16) == []


@pytest.mark.parametrize("order", [0, 1, 19, 57])
def test_a_mask_that_leads_to_no_first_keeps_the_page(order: int) -> None:
    guest = newer_guest()
    guest.page(P, CACHE)  # no first of several
    guest.page(P + 1, tail_by_mask(order))
    assert left_out(guest) == [P]


def test_a_mask_is_none_to_a_kernel_that_writes_addresses() -> None:
    guest = PageGuest()
    guest.page(P, Page(flags=HEAD | 1 << LRU, mapping=0x1001))
    guest.page(P + 1, tail_by_mask(1))
    assert left_out(guest) == [P]


def test_of_an_unknown_layout_nothing_is_left_out() -> None:
    guest = PageGuest()
    del guest.note["OFFSET(page.compound_head)"]
    with pytest.raises(NotReadableError, match=r"no OFFSET\(page\.compound_head\)"):
        bitmap(guest)


def typed(value: int) -> int:
    """A page type as it is from Linux 6.12 on."""
    return (value << 24) - (1 << 32)


def test_types_of_newer_kernels() -> None:
    guest = PageGuest()
    del guest.note["NUMBER(PG_slab)"], guest.note["NUMBER(HUGETLB_PAGE_DTOR)"]
    guest.note["NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)"] = typed(0xF0)
    guest.note["NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)"] = typed(0xF1)
    guest.note["NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)"] = typed(0xF4)
    guest.note["NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)"] = typed(0xF5)
    guest.page(P, Page(mapcount=typed(0xF0), refcount=0))
    guest.page(P + 1, Page(mapcount=typed(0xF1)))
    guest.page(P + 2, Page(mapcount=typed(0xF4) + 7))
    guest.page(P + 3, Page(mapcount=typed(0xF5) + 7, flags=1 << LRU, mapping=0x1001))
    assert left_out(guest) == [P, P + 1, P + 2]
    assert left_out(guest, 8) == [P + 2]


def test_what_is_left_out_is_counted() -> None:
    guest = PageGuest()
    guest.page(P, CACHE)
    guest.page(P + 1, Page(mapcount=OFFLINE))
    guest.page(P + 2, Page(mapping=1))
    counts = {"cache": 1, "cache_private": 0, "user": 1, "free": 1}
    assert bitmap(guest).left_out == counts


# -- lies


def own_array_is_free(guest: PageGuest) -> None:
    guest.page(ARRAY // 4096 + 3, Page(mapcount=BUDDY, refcount=0))


def own_tables_are_cache(guest: PageGuest) -> None:
    guest.page(PGD // 4096, CACHE)


def sections_lie_apart(guest: PageGuest) -> None:
    guest.put(SECTIONS + 16, (VMEMMAP + 0x100000 | 0b1111).to_bytes(8, "little"))


def many_sections(guest: PageGuest) -> None:
    guest.put(SECTIONS, (VMEMMAP | 0b1111).to_bytes(8, "little") * 512)
    guest.put(ROOTS, (DIRECT + SECTIONS).to_bytes(8, "little") * 512)


def no_sections(guest: PageGuest) -> None:
    guest.put(SECTIONS, bytes(8))


def array_in_no_memory(guest: PageGuest) -> None:
    guest.note["SYMBOL(mem_section)"] = "ffff800000000000"


def says(key: str, value: object) -> Callable[[PageGuest], None]:
    def change(guest: PageGuest) -> None:
        guest.note[key] = value

    change.__name__ = f"{key}={value}"
    return change


@pytest.mark.parametrize(
    "lie",
    [
        own_array_is_free,
        own_tables_are_cache,
        sections_lie_apart,
        many_sections,
        no_sections,
        array_in_no_memory,
        says("SIZE(page)", 1 << 40),
        says("SIZE(page)", 0),
        says("SIZE(page)", 60),
        says("OFFSET(page.flags)", 60),
        says("OFFSET(page._refcount)", -1),
        says("NUMBER(PG_lru)", 64),
        says("NUMBER(PG_head_mask)", 0),
        says("NUMBER(PG_head_mask)", 1 << 64),
        says("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", 0),
        says("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", -(1 << 31) - 1),
        says("NUMBER(SECTION_SIZE_BITS)", 5),
        says("NUMBER(SECTION_SIZE_BITS)", 60),
        says("LENGTH(mem_section)", 1 << 40),
        says("SIZE(mem_section)", 5),
        says("OFFSET(page.compound_dtor)", 64),
        says("NUMBER(sme_mask)", 1 << 47),
    ],
    ids=lambda lie: lie.__name__,
)
def test_a_lie_ends_it(lie: Callable[[PageGuest], None]) -> None:
    guest = PageGuest()
    lie(guest)
    with pytest.raises(NotReadableError):
        bitmap(guest)


# -- nonsense


@settings(max_examples=ROUNDS, deadline=None)
@given(seed=st.integers(0, 1 << 32), where=st.sampled_from((0, PGD, ROOTS, SECTIONS, ARRAY)))
def test_whatever_stands_there_ends_well(seed: int, where: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    guest = PageGuest()
    for _ in range(chance.randrange(1, 64)):
        place = where + chance.randrange(1 << 16)
        guest.put(place, chance.randbytes(chance.choice((1, 8, 64))))
    for key in chance.sample(sorted(guest.note), chance.choice((0, 0, 1))):
        guest.note[key] = chance.choice((0, -1, 1 << 63, -(1 << 63), 4096, "", "x"))
    try:
        found = bitmap(guest)
    except NotReadableError:
        return
    assert len(found.bits) <= 1 << 20
    assert sum(found.left_out.values()) <= PAGES


@settings(max_examples=ROUNDS, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_page_structures_full_of_nonsense_end_well(seed: int) -> None:
    guest = PageGuest()
    free_of_it = ARRAY + 1024 * SIZE
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    guest.put(free_of_it, chance.randbytes((PAGES - 1024) * SIZE))
    assert all(page >= 1024 for page in left_out(guest))


BLOCK = 1 << 20


@pytest.mark.parametrize(
    ("kept", "memory", "ranges"),
    [
        ([], [(0, 8 * BLOCK)], []),
        ([0], [(0, 8 * BLOCK)], [(0, BLOCK)]),
        ([255, 256], [(0, 8 * BLOCK)], [(0, 2 * BLOCK)]),
        ([0, 512], [(0, 8 * BLOCK)], [(0, BLOCK), (2 * BLOCK, BLOCK)]),
        ([0, 512], [(4096, BLOCK), (3 * BLOCK, BLOCK)], [(4096, BLOCK - 4096)]),
        ([0, 512], [(2 * BLOCK, BLOCK), (0, BLOCK)], [(0, BLOCK), (2 * BLOCK, BLOCK)]),
        # Nothing is known of what lies behind the bitmap: it is kept.
        ([], [(0, 10 * BLOCK)], [(8 * BLOCK, 2 * BLOCK)]),
        ([2047], [(0, 10 * BLOCK)], [(7 * BLOCK, 3 * BLOCK)]),
        ([0], [(0, 8 * BLOCK), (1 << 62, BLOCK)], []),
        ([0], [], []),
    ],
)
def test_ranges_hold_all_that_is_kept(
    kept: list[int], memory: list[tuple[int, int]], ranges: list[tuple[int, int]]
) -> None:
    bits = np.zeros(8 * BLOCK // PAGE, np.uint8)
    bits[kept] = 1
    assert ranges_to_read(np.packbits(bits, bitorder="little").tobytes(), memory) == ranges


@given(st.lists(st.integers(0, 63), max_size=20), st.integers(1, 8))
def test_ranges_are_few(kept: list[int], most: int) -> None:
    bits = bytearray(64 * BLOCK // PAGE // 8)
    for block in kept:
        bits[block * BLOCK // PAGE // 8] = 1
    with patch.object(page_bitmap, "MAX_RANGES", most):
        ranges = ranges_to_read(bytes(bits), [(0, 64 * BLOCK)])
    assert len(ranges) <= most
    for block in kept:
        assert any(start <= block * BLOCK < start + length for start, length in ranges)
