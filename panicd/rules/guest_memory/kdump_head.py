"""The beginning of a dump in the kdump-compressed format, as makedumpfile writes it.

::

    block 0            header: the kernel's name, sizes, how pages are packed
    block 1 on         sub-header: the dump's level, where the notes lie; the notes
    two bitmaps        a bit for each page that the guest has, and for each that is in the file
    descriptors        for each page in the file, in the order of the pages: where, how long
    pages              each packed by itself

Sources: makedumpfile ``IMPLEMENTATION`` and ``diskdump_mod.h``; QEMU ``include/sysemu/dump.h``.
"""

import struct
from dataclasses import dataclass
from typing import Final

from panicd.rules.guest_memory.dump_file import find_vmcoreinfo, walk_notes
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo

SIGNATURE: Final = b"KDUMP   "
ZLIB: Final = 1  # of a header's status, and of a descriptor's flags
OWN_NOTE: Final = b"panicd"
"""The name of the note in which panicd tells what a dump lacks, and why; tools ignore the note."""

_VERSION: Final = 6
_HEADER: Final = struct.Struct("<8si65s65s65s65s65s65s6xQQIiiIIIIIIi")
_SUB_HEADER: Final = struct.Struct("<qiiQQQQQQQQQQQ")
_NOTE: Final = struct.Struct("<III")
_NT_PRSTATUS: Final = 1
_OWN_TYPE: Final = 0x70616E69
_NAME: Final = 64  # bytes of each part of the kernel's name
_MAX_32: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class KdumpHead:
    """The part before the descriptors, and where descriptors and pages begin.

    Attributes:
        data: header, sub-header and notes; whole blocks.
        bitmap_size: of each of the two bitmaps, in bytes; whole blocks.
    """

    data: bytes
    bitmap_size: int

    @property
    def descriptors(self) -> int:
        """Where the descriptors begin, in bytes."""
        return len(self.data) + 2 * self.bitmap_size


def kdump_head(
    notes: bytes, *, machine: bytes, pages: int, level: int, about: bytes, at: float
) -> KdumpHead:
    """Return the beginning of a dump.

    Args:
        notes: the notes of QEMU's ELF core, with VMCOREINFO where the guest has it.
        machine: the guest's machine, as uname(1) calls it.
        pages: the number of the guest's last page, plus one.
        level: which pages are left out: makedumpfile's dump level.
        about: the contents of panicd's own note.
        at: when the dump was made, in seconds since the epoch.
    """
    notes += _note(OWN_NOTE, about)
    notes_at = PAGE + _SUB_HEADER.size
    information_at = information_size = phys_base = 0
    release = b""
    try:
        information = find_vmcoreinfo(notes)
        information_at = notes_at + notes.index(information)
        information_size = len(information)
        info = Vmcoreinfo.parse(information)
        release = info.release.encode("ascii", "replace")[:_NAME]
        if info.has_number("phys_base"):  # of x86-64
            phys_base = info.number("phys_base")
    except NotReadableError:
        pass
    if not -(1 << 63) <= phys_base < 1 << 63:
        phys_base = 0
    blocks = -(-(_SUB_HEADER.size + len(notes)) // PAGE)
    bitmap_size = -(-pages // (8 * PAGE)) * PAGE
    header = _HEADER.pack(
        SIGNATURE,
        _VERSION,
        # libkdumpfile takes names for absent unless five are filled in.
        *(b"Linux", b"(none)", release or b"(none)", b"(none)", machine, b"(none)"),
        *(int(at), int(at % 1 * 1e6)),
        ZLIB,
        *(PAGE, blocks, 2 * bitmap_size // PAGE),
        *(min(pages, _MAX_32), 0, 0, 0, 0),
        _processors(notes),
    )
    sub_header = _SUB_HEADER.pack(
        *(phys_base, level, 0, 0, 0),
        *(information_at, information_size, notes_at, len(notes)),
        *(0, 0, 0, 0, pages),
    )
    data = header.ljust(PAGE, b"\0") + (sub_header + notes).ljust(blocks * PAGE, b"\0")
    return KdumpHead(data, bitmap_size)


def own_note(notes: bytes) -> bytes | None:
    """Return the contents of panicd's own note; None where there is none."""
    for name, _, contents in walk_notes(notes):
        if name == OWN_NOTE:
            return contents
    return None


def _note(name: bytes, contents: bytes) -> bytes:
    head = _NOTE.pack(len(name) + 1, len(contents), _OWN_TYPE)
    return head + _padded(name + b"\0") + _padded(contents)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _processors(notes: bytes) -> int:
    """Return the number of processors in the notes."""
    return sum((name, kind) == (b"CORE", _NT_PRSTATUS) for name, kind, _ in walk_notes(notes))
