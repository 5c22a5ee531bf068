"""The kernel log of a guest on 64-bit Arm, found by page tables of every kind."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.rules.guest_memory.page_tables import Mapped, page_tables
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.kernel_log import read_log
from tests.rules.arm_memory import TOP_TABLE, ArmMemory
from tests.rules.kernel_logs import LIMITS, PANIC, read, texts
from tests.rules.linux_memory import TABLES, Served, messages, serve

LINES = ["Booting Linux on physical CPU 0x0", "sysrq: Trigger a crash", PANIC]


def guest(**properties: object) -> ArmMemory:
    memory = ArmMemory(**properties)  # type: ignore[arg-type]  # whichever the test is about
    for message in messages(*LINES):
        memory.log(message)
    memory.finish()
    return memory


@pytest.mark.parametrize("allocated", [False, True])
@pytest.mark.parametrize(
    ("page_bits", "built", "used", "larger"),
    [
        (12, 39, 39, [21, 30]),
        (12, 48, 48, [21, 30]),
        (12, 52, 52, [21, 30, 39]),
        (12, 52, 48, [21, 30]),
        (14, 47, 47, [25]),
        (14, 48, 48, [25]),
        (14, 52, 52, [25, 36]),
        (14, 52, 47, [25, 36]),
        (16, 42, 42, [29]),
        (16, 48, 48, [29]),
        (16, 52, 52, [29, 42]),
        (16, 52, 48, [29, 42]),
    ],
)
def test_reads_the_log(
    page_bits: int, built: int, used: int, larger: list[int], *, allocated: bool
) -> None:
    for large in (page_bits, *larger):
        memory = guest(
            page_bits=page_bits, built=built, used=used, large=large, allocated=allocated
        )
        served = Served()
        log = read(memory, LIMITS, served)
        assert texts(log) == LINES
        assert log.complete
        assert len(served.requests) <= 16


@pytest.mark.parametrize(
    ("page_bits", "used", "entry", "address"),
    [
        (12, 48, 0x0068_1234_5678_9F13, 0x1234_5678_9000),  # in bits 8 and 9 is something else
        (12, 52, 0x006B_2345_6789_A313, 0xF_2345_6789_A000),
        (14, 52, 0x006B_2345_6789_4213, 0xB_2345_6789_4000),
        (16, 52, 0x0068_2345_6789_5713, 0x5_2345_6789_0000),
    ],
)
def test_addresses_beyond_48_bits(page_bits: int, used: int, entry: int, address: int) -> None:
    memory = ArmMemory(page_bits=page_bits, built=52, used=used)
    assert page_tables(memory.info()).entry(entry, page_bits) == Mapped(address, memory=True)


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ({"PAGESIZE": "8192"}, "pages of 8192 bytes"),
        ({"NUMBER(VA_BITS)": "64"}, "virtual addresses of 48 bits, in a kernel for 64"),
        ({"NUMBER(VA_BITS)": "39"}, "virtual addresses of 48 bits, in a kernel for 39"),
        ({"NUMBER(TCR_EL1_T1SZ)": "0x40"}, "virtual addresses of 0 bits"),
        ({"NUMBER(TCR_EL1_T1SZ)": None}, r"VMCOREINFO has no NUMBER\(TCR_EL1_T1SZ\)"),
        ({"NUMBER(kimage_voffset)": "0"}, "no physical address"),
        ({"SYMBOL(prb)": "1234"}, "no kernel address: 0x1234"),
        ({"SYMBOL(prb)": "fffffffffffff000"}, "not mapped"),
    ],
)
def test_a_note_that_makes_no_sense_is_refused(edits: dict[str, str | None], reason: str) -> None:
    with pytest.raises(NotReadableError, match=reason):
        read(guest(edits=edits))


@pytest.mark.parametrize("entry", [0, 0b10, 0b01])
def test_what_is_not_in_use_maps_nothing(entry: int) -> None:
    assert page_tables(ArmMemory().info()).entry(0x4000_0000 | entry, 12) is None


@given(data=st.data())
def test_hostile_tables_end_in_a_log_or_a_refusal(data: st.DataObject) -> None:
    memory = guest(allocated=True)
    tables = sorted(page for page in memory.pages if page >= min(TOP_TABLE, TABLES))
    for page in data.draw(st.lists(st.sampled_from(tables), min_size=1, max_size=4)):
        entry = st.one_of(
            st.integers(0, (1 << 64) - 1),
            st.sampled_from([TOP_TABLE | 0b11, TABLES | 0b01, (1 << 48) - 1]),
        )
        for place in range(0, 4096, 8):
            if memory.number(page + place):
                memory.write_number(page + place, data.draw(entry))
    served = Served()
    with contextlib.suppress(NotReadableError):
        serve(read_log(memory.info(), LIMITS), memory, served)
    assert len(served.requests) <= LIMITS.requests
