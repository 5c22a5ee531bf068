"""Mends the headers of memory dumps, so that people's tools open them. Touches nothing else.

What QEMU writes, and which tool refuses it:

- ELF: from 7.2 on, the section headers stand before the program headers and the header gives its
  own size as 8. makedumpfile looks for the program headers right after the ELF header only. The two
  tables are of fixed places and sizes, so they can change places where they are.
- kdump: ``phys_base`` is VMCOREINFO's decimal text read as hexadecimal, so makedumpfile finds no
  memory. ``utsname`` holds the machine alone; libkdumpfile, and drgn with it, takes it for absent
  unless five of its parts are filled in. VMCOREINFO tells the release; the others read ``(none)``.
  From 10.0 on the machine reads ``Unknown``, which no tool knows; a kernel that tells of a
  ``phys_base`` is one of x86-64 (Linux ``arch/x86/kernel/vmcore_info_64.c``).

The guest writes VMCOREINFO, and the guest is hostile. panicd believes only the two values that it
copies into the header. It leaves a header that it does not understand as it is.

Sources: QEMU ``dump/dump.c``, ``include/sysemu/dump.h``; elf(5); makedumpfile ``IMPLEMENTATION``;
measured with QEMU 7.2 and 10.0, makedumpfile 1.7.2, crash 8.0.2, drgn 0.3.0.
"""

import re
import struct
from dataclasses import dataclass
from typing import Final, Self

MAX_HEAD: Final = 16 << 20  # bytes; QEMU's guest note has at most 1 MiB, its program headers 3.6

_CLASS: Final = 4  # index into e_ident
_BYTE_ORDER: Final = 5
_PN_XNUM: Final = 0xFFFF
_PT_LOAD: Final = 1
_SECTION: Final = struct.Struct("<24xQQ24x")  # sh_offset and sh_size of a little-endian Elf64_Shdr

_KDUMP_SIGNATURE: Final = b"KDUMP   "
_UTSNAME_AT: Final = 12
_UTSNAME_PART: Final = 65  # bytes: a name of at most 64 and its end
_SYSNAME, _NODENAME, _RELEASE, _VERSION, _MACHINE = range(5)
_UNKNOWN: Final = b"Unknown\0"
_X86_64: Final = b"x86_64\0"
_BLOCK_SIZES_AT: Final = 428  # block_size and sub_hdr_size in the 64-bit disk_dump_header
_BLOCK_SIZES: Final = struct.Struct("<II")
_PHYS_BASE: Final = struct.Struct("<q")
_VMCOREINFO_AT: Final = 32  # offset_vmcoreinfo and size_vmcoreinfo in kdump_sub_header
_VMCOREINFO: Final = struct.Struct("<QQ")
KDUMP_START: Final = _BLOCK_SIZES_AT + _BLOCK_SIZES.size
"""Bytes that ``kdump_head_size`` wants."""

_RELEASE_LINE: Final = re.compile(rb"^OSRELEASE=([!-~]{1,64})$", re.MULTILINE)
_PHYS_BASE_LINE: Final = re.compile(rb"^NUMBER\(phys_base\)=(-?[0-9]{1,18})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ElfHead:
    """The header of an ELF core and where its tables are.

    Attributes:
        size: bytes up to the end of the last table: what ``repaired`` wants.
    """

    size: int
    _fields: tuple[int, ...]
    _layout: struct.Struct
    _entry: struct.Struct

    @classmethod
    def read(cls, start: bytes) -> Self | None:
        """Return what the first 64 bytes of a core tell; None where they make no sense."""
        if len(start) < 64 or not start.startswith(b"\x7fELF") or start[_BYTE_ORDER] not in {1, 2}:
            return None
        order = "<" if start[_BYTE_ORDER] == 1 else ">"
        if start[_CLASS] == 2:
            layout, entry = (
                struct.Struct(f"{order}HHIQQQIHHHHHH"),
                struct.Struct(f"{order}IIQQQQQQ"),
            )
        else:
            layout, entry = (
                struct.Struct(f"{order}HHIIIIIHHHHHH"),
                struct.Struct(f"{order}IIIIIIII"),
            )
        fields = layout.unpack_from(start, 16)
        head = cls(0, fields, layout, entry)
        programs, sections = head._programs, head._sections
        size = max(16 + layout.size, programs.stop, sections.stop)
        if fields[8] != entry.size or len(programs) // entry.size == _PN_XNUM or size > MAX_HEAD:
            return None
        return cls(size, fields, layout, entry)

    @property
    def _programs(self) -> range:
        """The bytes of the program headers."""
        at, size, count = self._fields[4], self._fields[8], self._fields[9]
        return range(at, at + size * count)

    @property
    def _sections(self) -> range:
        """The bytes of the section headers."""
        at, size, count = self._fields[5], self._fields[10], self._fields[11]
        return range(at, at + size * count)

    def sections(self, head: bytes) -> list[tuple[int, int]]:
        """Return offset and size of each section that the first ``size`` bytes of a core tell of.

        They are not looked for in cores of 32 bits.
        """
        sections = self._sections
        if self._fields[10] != _SECTION.size:
            return []
        table = head[sections.start : sections.stop]
        return [(offset, size) for offset, size in _SECTION.iter_unpack(table)]

    def repaired(self, head: bytes) -> bytes:
        """Return the first ``size`` bytes of a core with the program headers in front."""
        own_size = 16 + self._layout.size
        programs, sections = self._programs, self._sections
        fields = list(self._fields)
        fields[7] = own_size
        tables = head[own_size : self.size]
        if sections.start == own_size and sections.stop == programs.start and len(sections):
            tables = head[programs.start : programs.stop] + head[sections.start : sections.stop]
            fields[4] = own_size
            fields[5] = own_size + len(programs)
        return head[:16] + self._layout.pack(*fields) + tables

    def content_end(self, head: bytes) -> int:
        """Return where the last segment ends, in bytes of the file: a complete core's least size.

        Args:
            head: the first ``size`` bytes, not repaired.
        """
        ends = [self.size]
        programs = self._programs
        for kind, *rest in self._entry.iter_unpack(head[programs.start : programs.stop]):
            # 64-bit: flags, offset, virtual, physical, size; 32-bit: the same without the flags
            offset, _virtual, _physical, size = rest[1:5] if self._entry.size == 56 else rest[:4]
            if kind == _PT_LOAD and size:
                ends.append(offset + size)
        return max(ends)


def kdump_head_size(start: bytes) -> int:
    """Return how many bytes at a kdump's beginning are its headers and notes.

    Args:
        start: the first ``KDUMP_START`` bytes.

    Returns:
        What ``repaired_kdump`` wants; 0 where the header is not understood, or of another layout:
        that of a 32-bit guest, or of a big-endian one.
    """
    if len(start) < KDUMP_START or not start.startswith(_KDUMP_SIGNATURE):
        return 0
    block, sub_header_blocks = _BLOCK_SIZES.unpack_from(start, _BLOCK_SIZES_AT)
    size = block * (1 + sub_header_blocks)
    page_size = block in {4096, 16384, 65536}
    return size if page_size and sub_header_blocks and size <= MAX_HEAD else 0


def repaired_kdump(head: bytes) -> bytes:
    """Return the headers and notes of a kdump with a right ``phys_base`` and a ``utsname``.

    Args:
        head: as many bytes from the beginning as ``kdump_head_size`` says. Not flattened.
    """
    block, _ = _BLOCK_SIZES.unpack_from(head, _BLOCK_SIZES_AT)
    at, size = _VMCOREINFO.unpack_from(head, block + _VMCOREINFO_AT)
    information = head[at : at + size] if at >= block else b""
    release = _RELEASE_LINE.search(information)
    if release is None:  # no VMCOREINFO: perhaps not even Linux
        return head
    repaired = bytearray(head)
    for part, name in (
        (_SYSNAME, b"Linux"),
        (_NODENAME, b"(none)"),
        (_RELEASE, release[1]),
        (_VERSION, b"(none)"),
    ):
        field = slice(_utsname_at(part), _utsname_at(part + 1))
        if not any(repaired[field]):
            repaired[field] = name.ljust(_UTSNAME_PART, b"\0")
    phys_base = _PHYS_BASE_LINE.search(information)
    machine = slice(_utsname_at(_MACHINE), _utsname_at(_MACHINE + 1))
    if phys_base and repaired[machine].startswith(_UNKNOWN):
        repaired[machine] = _X86_64.ljust(_UTSNAME_PART, b"\0")
    if phys_base and repaired[machine].startswith(_X86_64):
        _PHYS_BASE.pack_into(repaired, block, int(phys_base[1]))
    return bytes(repaired)


def _utsname_at(part: int) -> int:
    return _UTSNAME_AT + part * _UTSNAME_PART
