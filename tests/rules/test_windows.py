"""A Windows' bug check, read from memory that may lie."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panicd.rules.bug_check import BugCheck
from panicd.rules.guest_memory.dump_file import walk_notes
from panicd.rules.guest_memory.memory import PAGE, Limits
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.windows import WindowsCrash, WindowsHeader
from panicd.rules.guest_words import read_guest_words
from panicd.rules.last_words import words_of_bug_check
from panicd.rules.payload import payload_line
from panicd.rules.qapi import PanicInformation
from panicd.rules.signature import signature_of_payload
from tests.rules.linux_memory import Served, serve
from tests.rules.windows_memory import (
    BUG_CHECK,
    BUG_CHECK_AT,
    DECODED,
    KDBG,
    KDBG_AT,
    KERNEL,
    NOTE,
    POOL,
    TABLES,
    WindowsMemory,
)

LIMITS = Limits(lines=1)


def crash(memory: WindowsMemory, limits: Limits = LIMITS, served: Served | None = None) -> object:
    return serve(read_guest_words(memory.notes(), limits), memory, served)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("encoded", [False, True])
def test_bug_check_is_read(levels: int, *, encoded: bool) -> None:
    memory = WindowsMemory(levels=levels, encoded=encoded, processors=2)
    served = Served()
    check = BugCheck(0x7E, (0xFFFFFFFF_C0000005, KERNEL + 0x1234, 0x11, 0x22))
    assert crash(memory, served=served) == WindowsCrash(check, 20348, 2)
    assert len(served.requests) <= 15


def test_one_line_and_one_signature_whoever_tells() -> None:
    memory = WindowsMemory()
    found = crash(memory)
    assert isinstance(found, WindowsCrash)
    words = words_of_bug_check(found.bug_check)
    assert words.line == (
        "Windows bug check 0x0000007E SYSTEM_THREAD_EXCEPTION_NOT_HANDLED"
        " (0xFFFFFFFFC0000005, 0xFFFFF8021A201234, 0x0000000000000011, 0x0000000000000022)"
    )
    fields = tuple((f"arg{n}", number) for n, number in enumerate(memory.bug_check, 1))
    by_registers = PanicInformation("hyper-v", fields)
    assert payload_line(by_registers) == words.line
    assert signature_of_payload(by_registers) == words.signature


Break = Callable[[WindowsMemory], object]


def point(address: int) -> bytes:
    return struct.pack("<Q", address)


BROKEN: dict[str, tuple[Break, str]] = {
    "no bug check": (lambda m: m.write_virtual(BUG_CHECK_AT, bytes(40)), "noted no bug check"),
    "no page tables": (lambda m: m.pages.pop(TABLES), "no debugger data block"),
    "tables that loop": (
        lambda m: m.write(TABLES, (point(TABLES | 3)) * 512),
        "no debugger data block",
    ),
    "tables beyond memory": (
        lambda m: m.write(TABLES, point((1 << 52) - PAGE | 3) * 512),
        "no debugger data block",
    ),
    "tables that end in large pages beyond memory": (
        lambda m: m.write(TABLES + 3 * PAGE, point((1 << 52) - (1 << 30) | 0x83) * 512),
        "nothing at",
    ),
    "no KDBG": (lambda m: (m.pages.pop(KDBG), m.pages.pop(DECODED)), "no debugger data block"),
    "KDBG at the end of memory": (
        lambda m: m.edits.update({0x80: point((1 << 64) - 8), 0x40: point(8)}),
        "no debugger data block",
    ),
    "a bug check of a user": (
        lambda m: m.write_virtual(KDBG_AT + 0x88, point(0x7FFF_0000)),
        "no kernel address: 0x7fff0000",
    ),
    "a bug check across the last address": (
        lambda m: m.write_virtual(KDBG_AT + 0x88, point((1 << 64) - 8)),
        "not mapped|no kernel address",
    ),
    "a bug check that is gone": (lambda m: m.pages.pop(BUG_CHECK), "nothing at"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_lies_is_refused(broken: str) -> None:
    break_, reason = BROKEN[broken]
    memory = WindowsMemory()
    break_(memory)
    with pytest.raises(NotReadableError, match=reason):
        crash(memory)


@pytest.mark.parametrize(
    ("edits", "machine"),
    [
        ({0: b"PAGEDUMP", 0x20: struct.pack("<I", 0x14C)}, "32-bit x86"),
        ({0x30: struct.pack("<I", 0xAA64)}, "64-bit Arm"),
        ({0x30: struct.pack("<I", 0x14C)}, "32-bit x86"),
        ({0x30: b"PAGE"}, "machine 0x45474150"),
    ],
)
def test_a_windows_of_another_machine_is_refused_by_name(
    edits: dict[int, bytes], machine: str
) -> None:
    reason = f"^the guest is a Windows of {machine}: not of 64-bit x86$"
    with pytest.raises(NotReadableError, match=reason):
        crash(WindowsMemory(edits=edits))


def test_another_header_is_taken_for_a_linux_that_makes_no_sense() -> None:
    memory = WindowsMemory(edits={4: b"LINU"})
    assert WindowsHeader.find(memory.notes()) is None
    with pytest.raises(NotReadableError, match="the guest is a Windows"):
        crash(memory)


def test_runs_of_memory() -> None:
    header = WindowsHeader.find(WindowsMemory().notes())
    assert header is not None
    assert header.runs() == (range(1, 0x9F), range(0x100, 0xF00), range(0xF10, 0x1000))


RUN_AT = 0x98


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ({0x88: bytes(4)}, "0 runs"),
        ({0x88: struct.pack("<I", 44)}, "44 runs"),
        ({0x88: b"\xff" * 4}, "4294967295 runs"),
        ({0x90: point(0xF8F)}, "not those of its runs"),
        ({RUN_AT: point(0x101)}, "lie on one another"),
        ({RUN_AT + 8: point((1 << 64) - 1)}, "lie on one another"),
        ({RUN_AT + 32: point(1 << 63)}, "lie on one another"),
        ({RUN_AT + 40: point(1 << 40)}, "lie on one another"),
    ],
)
def test_runs_that_make_no_sense(edits: dict[int, bytes], reason: str) -> None:
    header = WindowsHeader.find(WindowsMemory(edits=edits).notes())
    assert header is not None
    with pytest.raises(NotReadableError, match=reason):
        header.runs()


INTERESTING = st.sampled_from(
    [
        *(0, 1, 3, 0x83, PAGE, 1 << 32, 1 << 51, (1 << 52) - PAGE | 3, 1 << 63, (1 << 64) - 8),
        *(TABLES, TABLES | 3, TABLES | 0x83, NOTE, KDBG_AT, BUG_CHECK_AT, POOL, KERNEL),
    ]
)


@settings(max_examples=300)
@given(data=st.data(), levels=st.sampled_from([4, 5]), encoded=st.booleans())
def test_hostile_memory_ends_in_a_bug_check_or_a_refusal(
    data: st.DataObject, *, levels: int, encoded: bool
) -> None:
    numbers = st.one_of(INTERESTING, st.integers(0, (1 << 64) - 1))
    edits = data.draw(st.dictionaries(st.integers(8, 0xA0), numbers.map(point), max_size=4))
    memory = WindowsMemory(levels=levels, encoded=encoded, edits=edits)
    for page in data.draw(st.lists(st.sampled_from(sorted(memory.pages)), max_size=6)):
        content = memory.pages[page]
        used = sorted({index // 8 for index, byte in enumerate(content) if byte}) or [0]
        memory.write(page + 8 * data.draw(st.sampled_from(used)), point(data.draw(numbers)))
    limits = Limits(lines=1, size=64 * PAGE, requests=20)
    served = Served()
    try:
        found = crash(memory, limits, served)
    except NotReadableError:
        found = None
    assert len(served.requests) <= limits.requests
    assert served.size <= limits.size
    assert all(request.physical + request.length <= 1 << 52 for request in served.requests)
    if found:
        assert isinstance(found, WindowsCrash)
        words = words_of_bug_check(found.bug_check)
        assert words.line.isprintable()
        assert len(words.line) < 200


@given(notes=st.binary(max_size=200), end=st.binary(max_size=40))
def test_hostile_notes(notes: bytes, end: bytes) -> None:
    for part in (notes, notes + WindowsMemory().note()[: -len(end)] + end):
        assert all(len(name) <= len(part) for name, _, _ in walk_notes(part))
        try:
            WindowsHeader.find(part)
        except NotReadableError:
            continue
