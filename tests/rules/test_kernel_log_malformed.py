from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panicd.rules.guest_memory.memory import PAGE, Limits
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.vmcoreinfo import MAX_SIZE, Vmcoreinfo
from panicd.rules.kernel_log import panic_line
from tests.rules.kernel_logs import PANIC, guest, read
from tests.rules.linux_memory import (
    DESCRIPTORS,
    INFOS,
    RING,
    RING_POINTER,
    TABLES,
    TEXTS,
    TOP_TABLE,
    LinuxMemory,
    Served,
)

Break = Callable[[LinuxMemory], object]

BROKEN: dict[str, tuple[Break, str]] = {
    "wild pointer to the ring": (
        lambda m: m.write_number(RING_POINTER, 0x1234),
        "no kernel address: 0x1234",
    ),
    "ring beyond memory": (
        lambda m: m.write_number(RING_POINTER, m.image_address(0x2080_0000)),
        "nothing at",
    ),
    "descriptors beyond 64 bits": (
        lambda m: m.write_number(RING + 8, (1 << 64) - 8),
        "no kernel address|not mapped",
    ),
    "descriptors of a user": (lambda m: m.write_number(RING + 8, 0x7FFF_0000_0000), "no kernel"),
    "descriptors at a hole": (
        lambda m: m.write_number(RING + 8, 0xFFFF_8880_0000_0000 + (5 << 39)),
        "not mapped",
    ),
    "no records": (lambda m: m.write_number(RING, 0, 4), "a ring of 2\\^0 records"),
    "too many records": (lambda m: m.write_number(RING, 32, 4), "a ring of 2\\^32 records"),
    "no text": (lambda m: m.write_number(RING + 48, 0, 4), "2\\^0 bytes"),
    "too much text": (lambda m: m.write_number(RING + 48, 63, 4), "2\\^63 bytes"),
    "more records than fit": (
        lambda m: m.write_number(RING + 32, m.last_id() - 64),
        "a ring of 64 records holds 65",
    ),
    "zeroes": (lambda m: m.pages.update({p: bytearray(PAGE) for p in m.pages}), "no kernel"),
    "infos gone": (lambda m: m.pages.pop(INFOS // PAGE * PAGE), "nothing at"),
    "texts gone": (lambda m: m.pages.pop(TEXTS), "nothing at"),
    "page tables gone": (lambda m: m.pages.pop(TABLES + PAGE), "nothing at"),
    "page tables beyond physical memory": (
        lambda m: m.write_number(TABLES, 0xFFFFFFFFFF001),
        "not mapped|nothing at",
    ),
    "descriptors overwritten": (
        lambda m: m.write(DESCRIPTORS, b"\xff" * PAGE),
        "no record was written whole",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_memory_is_refused(broken: str) -> None:
    break_, reason = BROKEN[broken]
    memory = guest("before", PANIC, allocated=True, large=12)
    break_(memory)
    with pytest.raises(NotReadableError, match=reason):
        read(memory)


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ({"SYMBOL(prb)": None}, r"VMCOREINFO has no SYMBOL\(prb\): a kernel before 5.10, or newer"),
        ({"SYMBOL(prb)": "ffffffff8162c2c8ff"}, r"malformed SYMBOL\(prb\)"),
        ({"SYMBOL(swapper_pg_dir)": "0"}, "no physical address"),
        ({"NUMBER(phys_base)": "9" * 20}, "no physical address"),
        ({"NUMBER(phys_base)": "-" + "9" * 20}, "no physical address"),
        ({"NUMBER(phys_base)": "9" * 5000}, "malformed"),
        ({"NUMBER(phys_base)": "٣"}, "malformed"),
        ({"NUMBER(phys_base)": "0x"}, "malformed"),
        ({"PAGESIZE": "65536"}, "pages of 65536 bytes"),
        ({"NUMBER(sme_mask)": "140737488355328"}, "encrypted"),
        ({"NUMBER(pgtable_l5_enabled)": None}, "VMCOREINFO has no"),
        ({"SIZE(prb_desc)": "0"}, "a prb_desc of 0 bytes"),
        ({"SIZE(prb_desc)": "99999999999999999999"}, "a prb_desc of 9+ bytes"),
        ({"SIZE(printk_info)": "-88"}, "a printk_info of -88 bytes"),
        ({"OFFSET(printk_info.caller_id)": "85"}, "printk_info.caller_id lies outside"),
        ({"OFFSET(prb_desc.text_blk_lpos)": "-8"}, "prb_desc.text_blk_lpos lies outside"),
    ],
)
def test_a_note_that_makes_no_sense_is_refused(edits: dict[str, str | None], reason: str) -> None:
    memory = guest(PANIC, allocated=True, edits=edits)
    with pytest.raises(NotReadableError, match=reason):
        read(memory)


def test_a_note_that_is_no_note() -> None:
    assert Vmcoreinfo.parse(b"OSRELEASE=6.1\x1b[0m\n\xff\xff==\n=").release == ""
    with pytest.raises(NotReadableError, match="a VMCOREINFO of 65537 bytes"):
        Vmcoreinfo.parse(bytes(MAX_SIZE + 1))


INTERESTING = st.sampled_from(
    [
        *(0, 1, 8, 63, 0x7F, 0x1000, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1),
        *(0xFFFFFFFF80000000, 0xFFFF888000000000, 0xFFFF888040000000, TOP_TABLE | 1, TABLES | 0x81),
        *(DESCRIPTORS, INFOS, TEXTS, RING),
    ]
)
ENTRIES = [line.partition(b"=")[0].decode() for line in LinuxMemory().note().splitlines()]


@settings(max_examples=300)
@given(data=st.data(), allocated=st.booleans(), levels=st.sampled_from([4, 5]))
def test_hostile_memory_ends_in_a_log_or_a_refusal(
    data: st.DataObject, *, allocated: bool, levels: int
) -> None:
    memory = guest(
        *(f"message {n}" for n in range(40)), PANIC, allocated=allocated, large=12, levels=levels
    )
    for page in data.draw(st.lists(st.sampled_from(sorted(memory.pages)), max_size=6)):
        content = memory.pages[page]
        used = sorted({index // 8 for index, byte in enumerate(content) if byte}) or [0]
        place = data.draw(st.sampled_from(used))
        number = data.draw(st.one_of(INTERESTING, st.integers(0, (1 << 64) - 1)))
        memory.write_number(page + 8 * place, number)
    memory.edits |= data.draw(
        st.dictionaries(
            st.sampled_from(ENTRIES),
            st.one_of(
                st.none(),
                st.integers(-(1 << 64), 1 << 64).map(str),
                INTERESTING.map("{:x}".format),
                st.text("0123456789abcdef-x ", max_size=8),
            ),
            max_size=2,
        )
    )
    limits = Limits(lines=data.draw(st.integers(1, 60)), size=64 * PAGE, requests=20)
    served = Served()
    try:
        log = read(memory, limits, served)
    except NotReadableError:
        log = None
    assert len(served.requests) <= limits.requests
    assert served.size <= limits.size
    assert all(request.physical + request.length <= 1 << 52 for request in served.requests)
    if log:
        assert 0 < len(log.lines) <= limits.lines
        assert all(line.text.isprintable() for line in log.lines)
        assert panic_line(log.lines).isprintable()
