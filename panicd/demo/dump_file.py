"""Looks into a guest memory dump without panicd's help: is it what it should be, and whole?

Sources: elf(5) for ``elf``; for ``kdump-*`` makedumpfile's flattened format (makedumpfile(8),
``-F``; its ``makedumpfile_header``), in which QEMU writes to a pipe.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

_FLAT_HEADER_SIZE: Final = 4096
_PIECE: Final = struct.Struct(">qq")  # offset and size of the piece that follows
_THE_END: Final = _PIECE.pack(-1, -1)
_ELF_HEADER_SIZE: Final = 64
_PT_LOAD: Final = 1
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")


class DamagedDumpError(Exception):
    """The file is not a complete dump."""


def check_kdump(path: Path) -> str:
    """Return how a flattened kdump begins and ends, in words.

    Raises:
        DamagedDumpError: It does not begin and end as one.
        OSError: It can't be read.
    """
    content = path.read_bytes()
    if content[:12] != b"makedumpfile":
        raise DamagedDumpError(f"begins with {content[:12]!r}")
    first_piece = _FLAT_HEADER_SIZE + _PIECE.size
    if content[first_piece : first_piece + 8] != b"KDUMP   ":
        raise DamagedDumpError("holds no kdump header")
    if content[-_PIECE.size :] != _THE_END:
        raise DamagedDumpError("has no end mark")
    return "headers 'makedumpfile' and 'KDUMP', end mark"


def read_elf_memory(path: Path, address: int, size: int) -> bytes:
    """Return guest memory from an ELF core.

    Args:
        path: The dump.
        address: The guest's physical address.
        size: How many bytes.

    Raises:
        DamagedDumpError: It is no ELF core, or is cut short, or does not hold that memory.
        OSError: It can't be read.
    """
    content = path.read_bytes()
    if content[:4] != b"\x7fELF":
        raise DamagedDumpError(f"begins with {content[:4]!r}")
    if len(content) < _ELF_HEADER_SIZE:
        raise DamagedDumpError("is cut short in its header")
    (table,) = struct.unpack_from("<Q", content, 32)
    (entries,) = struct.unpack_from("<H", content, 56)
    if table + entries * _PROGRAM_HEADER.size > len(content):
        raise DamagedDumpError("is cut short in its program headers")
    wanted = b""
    for number in range(entries):
        kind, _flags, offset, _virtual, physical, held, _memory, _align = (
            _PROGRAM_HEADER.unpack_from(content, table + number * _PROGRAM_HEADER.size)
        )
        if offset + held > len(content):
            raise DamagedDumpError(f"is cut short: {len(content)} of {offset + held} bytes")
        if kind == _PT_LOAD and physical <= address and address + size <= physical + held:
            start = offset + address - physical
            wanted = content[start : start + size]
    if not wanted:
        raise DamagedDumpError(f"does not hold the memory at {address:#x}")
    return wanted
