import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.rules.guest_memory.dump_file import DumpFile, Piece, find_vmcoreinfo
from panicd.rules.guest_memory.reading import NotReadableError

X86_64, AARCH64, S390, RISCV = 62, 183, 22, 243
LOAD, NOTE = 1, 4


def header(count: int, *, machine: int = X86_64, ident: bytes = b"\x7fELF\x02\x01\x01") -> bytes:
    fields = (4, machine, 1, 0, 64 + 64, 64, 0, 64, 56, count, 64, 2, 1)
    return struct.pack("<16sHHIQQQIHHHHHH", ident, *fields) + bytes(64)


S390_HEADER = struct.pack(">16sHHI", b"\x7fELF\x02\x02\x01", 4, S390, 1) + bytes(500)


def segment(kind: int, offset: int, size: int, physical: int = 0) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, 0, offset, 0, physical, size, size, 0)


def dump(*segments: bytes) -> bytes:
    return header(len(segments)) + b"".join(segments)


def note(name: bytes, contents: bytes) -> bytes:
    def padded(part: bytes) -> bytes:
        return part + bytes(-len(part) % 4)

    return struct.pack("<III", len(name), len(contents), 0) + padded(name) + padded(contents)


def test_finds_notes_and_memory() -> None:
    parsed = DumpFile.parse(
        dump(
            segment(NOTE, 0x130, 0x1008),
            segment(LOAD, 0x3138, 0x2000, 0x8000),
            segment(LOAD, 0x1138, 0x2000, 0x6000),
        )
    )
    assert parsed.machine == b"x86_64"
    assert parsed.notes == Piece(0x130, 0x1008)
    assert parsed.locate(0x7000, 0x2000) == [
        Piece(0x2138, 0x1000, 0x7000),
        Piece(0x3138, 0x1000, 0x8000),
    ]


def test_a_dump_of_arm() -> None:
    parsed = DumpFile.parse(header(1, machine=AARCH64) + segment(NOTE, 0x130, 0x1008))
    assert parsed.machine == b"aarch64"


@pytest.mark.parametrize("physical", [0x5000, 0x9000, 0x10000])
def test_what_is_not_all_there_is_refused(physical: int) -> None:
    parsed = DumpFile.parse(
        dump(segment(NOTE, 0, 0), segment(LOAD, 0, 0x4000, 0x6000), segment(LOAD, 0, 1, 0x11000))
    )
    with pytest.raises(NotReadableError, match="no guest memory at"):
        parsed.locate(physical, 0x2000)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "no program headers"),
        (b"makedumpfile" + bytes(500), "not an ELF core"),
        (header(0, machine=RISCV), "a guest of RISC-V: neither 64-bit x86 nor 64-bit Arm"),
        (header(0, machine=4711), "a guest of another machine: neither"),
        (header(0, ident=b"\x7fELF\x01\x01"), "neither 64-bit x86 nor"),
        (S390_HEADER, "a guest of s390: neither"),
        (header(65535), "unlikely program headers"),
        (header(2), "no program headers"),
        (dump(segment(LOAD, 0, 4096)), "no notes of a likely size"),
        (dump(segment(NOTE, 0, 1 << 30)), "no notes of a likely size"),
        (dump(segment(NOTE, 0, 8), segment(LOAD, (1 << 64) - 1, 4096)), "beyond where any file"),
    ],
)
def test_what_is_no_dump_of_such_a_guest_is_refused(head: bytes, reason: str) -> None:
    with pytest.raises(NotReadableError, match=reason):
        DumpFile.parse(head)


def test_finds_the_kernel_s_note_behind_those_of_the_cpus() -> None:
    notes = (
        note(b"CORE\0", bytes(336)) + note(b"QEMU\0", bytes(437)) + note(b"VMCOREINFO\0", b"A=1")
    )
    assert find_vmcoreinfo(notes) == b"A=1"


@pytest.mark.parametrize(
    "notes",
    [
        b"",
        note(b"CORE\0", bytes(336)),
        struct.pack("<III", 0xFFFFFFFF, 0xFFFFFFFF, 0) + b"VMCOREINFO",
        note(b"VMCOREINFO\0", bytes(64))[:-4],
        bytes(1 << 20),
    ],
)
def test_there_is_no_such_note(notes: bytes) -> None:
    with pytest.raises(NotReadableError, match="no VMCOREINFO"):
        find_vmcoreinfo(notes)


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_any_bytes_end_in_a_dump_or_a_refusal(tail: bytes, notes: bytes) -> None:
    head = header(len(tail) // 56) + tail
    try:
        parsed = DumpFile.parse(head)
        pieces = parsed.locate(0x1000, 0x1000)
        assert sum(piece.length for piece in pieces) == 0x1000
    except NotReadableError:
        pass
    with contextlib.suppress(NotReadableError):
        find_vmcoreinfo(notes)
