"""The headers of dumps: what QEMU writes, and what tools want."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.dumps.repair import (
    KDUMP_START,
    ElfHead,
    kdump_head_size,
    repaired_kdump,
)

MEMORY = 1 << 20
NOTE = 0x100
VMCOREINFO = b"OSRELEASE=6.1.0-56-cloud-amd64\nNUMBER(phys_base)=-627048448\n"
BLOCK = 4096
UTSNAME = slice(12, 12 + 6 * 65)


def elf(order: str = "<", *, bits: int = 64, sections_first: bool = True) -> bytes:
    """The head of an ELF core: as QEMU writes it from 7.2 on, or as it did before."""
    word = "Q" if bits == 64 else "I"
    own, entry, section = (64, 56, 64) if bits == 64 else (52, 32, 40)
    sections = 2 if sections_first else 0
    programs_at = own + sections * section
    notes_at = programs_at + 2 * entry
    identity = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1 if order == "<" else 2, 1])
    header = struct.pack(
        f"{order}16sHHI3{word}IHHHHHH",
        *(identity, 4, 62, 1, 0, programs_at, own if sections else 0, 0),
        *(8 if sections_first else own, entry, 2, section if sections else 0, sections, 0),
    )
    programs = b""
    for kind, at, size in ((4, notes_at, NOTE), (1, notes_at + NOTE, MEMORY)):
        if bits == 64:
            programs += struct.pack(f"{order}IIQQQQQQ", kind, 0, at, 0, 0, size, size, 0)
        else:
            programs += struct.pack(f"{order}IIIIIIII", kind, at, 0, 0, size, size, 0, 0)
    return header + b"S" * section * sections + programs


def kdump(information: bytes = VMCOREINFO, machine: bytes = b"x86_64") -> bytes:
    """The head of a kdump as QEMU writes it, flattened no longer."""
    note_at = BLOCK + 104
    disk = struct.pack("<8sI", b"KDUMP   ", 6) + bytes(4 * 65) + machine.ljust(2 * 65, b"\0")
    disk = disk.ljust(424, b"\0") + struct.pack("<IIIII", 1, BLOCK, 1, 64, 1 << 20)
    sub = struct.pack(
        "<QIIQQQQQQ", 0xFFFFFFF9D8FB7BB8, 1, 0, 0, 0, note_at, len(information), note_at, 0
    )
    head = disk.ljust(BLOCK, b"\0") + sub.ljust(104, b"\0") + information
    return head.ljust(2 * BLOCK, b"\0")


def names(head: bytes) -> list[bytes]:
    """The parts of a kdump's utsname."""
    return [part.rstrip(b"\0") for part in struct.unpack("65s" * 6, head[UTSNAME])]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [32, 64])
def test_program_headers_come_first(order: str, bits: int) -> None:
    head = elf(order, bits=bits)
    read = ElfHead.read(head[:64])
    assert read is not None
    assert read.size == len(head)
    repaired = read.repaired(head)
    own, programs = (64, 2 * 56) if bits == 64 else (52, 2 * 32)
    assert repaired[own : own + programs] == head[-programs:]
    assert repaired[own + programs :] == head[own:-programs]
    again = ElfHead.read(repaired)
    assert again is not None
    assert (again._programs.start, again._sections.start) == (own, own + programs)
    assert again.content_end(repaired) == read.content_end(head) == len(head) + NOTE + MEMORY


def test_a_repair_is_not_undone_by_another() -> None:
    head = elf()
    read = ElfHead.read(head)
    assert read is not None
    repaired = read.repaired(head)
    again = ElfHead.read(repaired)
    assert again is not None
    assert again.repaired(repaired) == repaired


def test_elf_of_older_qemu_is_left_as_it_is() -> None:
    head = elf(sections_first=False)
    read = ElfHead.read(head)
    assert read is not None
    assert read.repaired(head) == head


@pytest.mark.parametrize("start", [b"", b"\x7fELF", bytes(64), b"KDUMP   ".ljust(64, b"\0")])
def test_what_is_no_elf_core_is_not_read(start: bytes) -> None:
    assert ElfHead.read(start) is None


@given(st.integers(5, 63), st.binary(min_size=1, max_size=8))
def test_nonsense_in_an_elf_header_is_refused_or_kept_in_bounds(at: int, nonsense: bytes) -> None:
    head = bytearray(elf())
    head[at : at + len(nonsense)] = nonsense
    read = ElfHead.read(bytes(head))
    if read is not None:
        whole = bytes(head).ljust(read.size, b"\0")[: read.size]
        assert len(read.repaired(whole)) == read.size
        assert read.content_end(whole) >= 0


def test_kdump_gets_its_phys_base_and_its_utsname() -> None:
    head = kdump()
    assert kdump_head_size(head[:KDUMP_START]) == len(head)
    repaired = repaired_kdump(head)
    assert struct.unpack_from("<q", repaired, BLOCK) == (-627048448,)
    release = b"6.1.0-56-cloud-amd64"
    assert names(repaired) == [b"Linux", b"(none)", release, b"(none)", b"x86_64", b""]
    assert repaired[UTSNAME.stop : BLOCK] == head[UTSNAME.stop : BLOCK]
    assert repaired[BLOCK + 8 :] == head[BLOCK + 8 :]
    assert repaired_kdump(repaired) == repaired


def test_machine_that_qemu_does_not_name_is_told_by_its_kernel() -> None:
    repaired = repaired_kdump(kdump(machine=b"Unknown"))  # as QEMU 10.0 writes it
    assert repaired == repaired_kdump(kdump())
    of_others = VMCOREINFO.replace(b"phys_base", b"PHYS_OFFSET")
    assert names(repaired_kdump(kdump(of_others, b"Unknown")))[4] == b"Unknown"


def test_phys_base_of_other_machines_is_theirs() -> None:
    head = kdump(machine=b"aarch64")
    repaired = repaired_kdump(head)
    assert repaired[BLOCK:] == head[BLOCK:]
    assert names(repaired)[0] == b"Linux"


@pytest.mark.parametrize(
    "information",
    [
        b"",
        b"NUMBER(phys_base)=1\n",
        b"OSRELEASE=" + b"x" * 65 + b"\n",
        b"OSRELEASE=6.1 \x1b[31m\n",
        b"OSRELEASE=\n",
    ],
)
def test_kdump_without_a_believable_vmcoreinfo_is_left_as_it_is(information: bytes) -> None:
    head = kdump(information)
    assert repaired_kdump(head) == head


@pytest.mark.parametrize("number", [b"9" * 19, b"0x12", b"--1", b"1e9", b""])
def test_phys_base_that_is_no_number_is_left_as_it_is(number: bytes) -> None:
    head = kdump(b"OSRELEASE=6.1\nNUMBER(phys_base)=" + number + b"\n")
    assert repaired_kdump(head)[BLOCK : BLOCK + 8] == head[BLOCK : BLOCK + 8]


@given(st.sampled_from([428, 432, BLOCK + 32, BLOCK + 40]), st.binary(min_size=4, max_size=8))
def test_nonsense_in_a_kdump_header_is_kept_in_bounds(at: int, nonsense: bytes) -> None:
    head = bytearray(kdump())
    head[at : at + len(nonsense)] = nonsense
    size = kdump_head_size(bytes(head[:KDUMP_START]))
    if size:
        whole = bytes(head).ljust(size, b"\0")[:size]
        assert len(repaired_kdump(whole)) == size
