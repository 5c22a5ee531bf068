"""What makes a dump of a Windows' memory, and of memory that lies."""

import json
import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panicd.rules.guest_memory.memory import PAGE, Limits
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.windows import HEADER_SIZE, OtherWindowsError, WindowsHeader
from panicd.rules.guest_memory.windows_dump import (
    MAX_PROCESSORS,
    WindowsDump,
    read_dump,
    read_registers,
)
from tests.rules.linux_memory import Served, serve
from tests.rules.test_windows import INTERESTING, point
from tests.rules.windows_memory import (
    BLOCK_AT,
    BUG_CHECK_AT,
    KDBG_AT,
    MEMORY,
    PFN_DATABASE,
    POOL,
    WindowsMemory,
)

# QEMU 7.2: a processor in 64-bit mode, and one that was not yet started.
PRINTED = """\r
CPU#0\r
RAX=0101010101010101 RBX=0202020202020202 RCX=0303030303030303 RDX=0000000000000505
RSI=0000000000001100 RDI=0505050505050505 RBP=0606060606060606 RSP=0707070707070707
R8 =0909090909090909 R9 =0a0a0a0a0a0a0a0a R10=0b0b0b0b0b0b0b0b R11=0c0c0c0c0c0c0c0c
R12=0d0d0d0d0d0d0d0d R13=0e0e0e0e0e0e0e0e R14=0f0f0f0f0f0f0f0f R15=1010101010101010
RIP=00000000000f00fd RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0010 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
CS =0008 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
DR0=0101010101010101 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000500
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001fc0
XMM00=0000000000000000 0000000000000000 XMM01=0000000000000000 0000000000000000

CPU#1
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00060fb1
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1
CS =f000 ffff0000 0000ffff 00009b00
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
"""
LIMITS = Limits(lines=0)


def dump(memory: WindowsMemory, printed: str = PRINTED) -> WindowsDump:
    header = WindowsHeader.find(memory.notes())
    assert header is not None
    return serve(read_dump(header, read_registers(printed), MEMORY, LIMITS), memory)


def test_registers_of_every_mode_have_one_name_each() -> None:
    first, second = read_registers(PRINTED)
    assert (first["RAX"], first["R8"], first["R15"]) == (
        0x0101010101010101,
        0x09 * (2**64 // 255),
        0x10 * (2**64 // 255),
    )
    assert (first["RIP"], first["RFL"], first["CS"], first["ES"]) == (0xF00FD, 0x46, 8, 0x10)
    assert (first["DR6"], first["DR7"], first["MXCSR"]) == (0xFFFF0FF0, 0x400, 0x1FC0)
    assert (second["RDX"], second["RIP"], second["RFL"], second["CS"]) == (
        0x60FB1,
        0xFFF0,
        2,
        0xF000,
    )


@given(printed=st.text(alphabet="CPU#0123456789abcdefRAXE= \r\n", max_size=300))
def test_whatever_is_printed_for_registers(printed: str) -> None:
    for registers in read_registers(printed):
        assert all(0 <= value < 1 << 64 for value in registers.values())


def test_as_many_processors_as_there_can_be() -> None:
    assert len(read_registers("CPU#0\nEAX=00000000\n" * (MAX_PROCESSORS + 1))) == MAX_PROCESSORS


def test_header_has_what_the_driver_could_not_know() -> None:
    memory = WindowsMemory(edits={0x8C: b"\xff" * 4})
    head = dump(memory).head
    assert len(head) == HEADER_SIZE
    assert struct.unpack_from("<5Q", head, 0x38) == memory.bug_check
    assert struct.unpack_from("<Q", head, 0x18) == (PFN_DATABASE,)
    assert struct.unpack_from("<Q", head, 0x80) == (KDBG_AT,)
    pages = sum(count for _, count in memory.runs)
    assert struct.unpack_from("<Q", head, 0xFA0) == (HEADER_SIZE + pages * PAGE,)
    assert (head[0x8C:0x90], head[0xF9C:0xFA0]) == (bytes(4), bytes(4))


def test_header_says_where_kdbg_can_be_read() -> None:
    head = dump(WindowsMemory(encoded=True)).head
    assert struct.unpack_from("<Q", head, 0x80) == (POOL,)


def test_header_keeps_what_can_t_be_read() -> None:
    memory = WindowsMemory()
    memory.write_virtual(KDBG_AT + 0x88, point(0x1000))
    assert struct.unpack_from("<IIQ", dump(memory).head, 0x38) == (0, 0, POOL)


def test_a_context_is_patched_where_it_lies_in_memory() -> None:
    memory = WindowsMemory(processors=2)
    made = dump(memory)
    patched = dict(made.patches)
    assert len(patched) == 4  # each of the two across the end of a page
    context = b"".join(patched.values())[:1232]
    assert memory.physical(memory.context(0)) in patched
    assert struct.unpack_from("<II", context, 0x30) == (0x10001F, 0x1FC0)
    assert struct.unpack_from("<Q", context, 0xF8) == (0xF00FD,)
    assert json.loads(made.written())["runs"] == [list(run) for run in memory.runs]


def test_registers_wider_than_the_place_for_them() -> None:
    """A QEMU that said so ended panicd."""
    wide = re.sub(r"=[0-9a-f]+\b", f"={(1 << 64) - 1:x}", PRINTED)
    context = b"".join(dict(dump(WindowsMemory(processors=2), wide).patches).values())
    assert struct.unpack_from("<II", context, 0x30) == (0x10001F, (1 << 32) - 1)


def test_no_more_processors_than_the_guest_knows_of() -> None:
    assert len(dump(WindowsMemory(processors=1)).patches) == 2
    assert dump(WindowsMemory(), "").patches == ()


@pytest.mark.parametrize("place", [BLOCK_AT, KDBG_AT + 0x218])
def test_contexts_that_lie_nowhere(place: int) -> None:
    memory = WindowsMemory()
    memory.write_virtual(place, point(0x10))
    with pytest.raises(NotReadableError, match="no kernel address"):
        dump(memory)


@settings(max_examples=200)
@given(data=st.data())
def test_hostile_memory_ends_in_a_dump_or_a_refusal(data: st.DataObject) -> None:
    numbers = st.one_of(INTERESTING, st.integers(0, (1 << 64) - 1))
    edits = data.draw(st.dictionaries(st.integers(8, 0xC8), numbers.map(point), max_size=3))
    memory = WindowsMemory(processors=2, edits=edits)
    places = (
        KDBG_AT + 0x88,
        KDBG_AT + 0x218,
        KDBG_AT + 0x338,
        BLOCK_AT,
        BLOCK_AT + 8,
        BUG_CHECK_AT,
    )
    for place in data.draw(st.lists(st.sampled_from(places), max_size=3)):
        memory.write_virtual(place, point(data.draw(numbers)))
    try:
        header = WindowsHeader.find(memory.notes())
    except OtherWindowsError:  # its machine was among what was edited
        return
    if header is None:
        return
    served = Served()
    limits = Limits(lines=0, size=64 * PAGE, requests=40)
    try:
        made = serve(read_dump(header, read_registers(PRINTED), MEMORY, limits), memory, served)
    except NotReadableError:
        made = None
    assert len(served.requests) <= limits.requests
    assert served.size <= limits.size
    if made:
        assert len(made.head) == HEADER_SIZE
        assert sum(map(len, made.runs)) * PAGE <= MEMORY
        assert sum(len(patch) for _, patch in made.patches) <= 2 * 1232
