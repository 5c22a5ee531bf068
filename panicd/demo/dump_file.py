"""Looks into a guest memory dump without panicd's help: is it right, and complete?

Sources: elf(5); RFC 8878 for data compressed by zstd.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_ELF_HEADER_SIZE: Final = 64
_PT_LOAD: Final = 1
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")


class DamagedDumpError(Exception):
    """The file is not a complete dump."""


def read_elf_memory(path: Path, address: int, size: int) -> bytes:
    """Return guest memory from an ELF core, which may be compressed.

    Args:
        path: The dump.
        address: The guest's physical address.
        size: How many bytes.

    Raises:
        DamagedDumpError: It is no ELF core, or is cut short, or does not hold that memory.
        OSError: It can't be read.
    """
    content = _content(path)
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


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".zst":
        return content
    try:
        return zstd.decompress(content)
    except zstd.ZstdError as error:
        raise DamagedDumpError(f"can't be decompressed: {error}") from error
