"""The files that the fake QEMU writes: small, and correct as far as their headers go."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

DUMP_FORMATS = (
    *("elf", "kdump-zlib", "kdump-lzo", "kdump-snappy"),
    *("kdump-raw-zlib", "kdump-raw-lzo", "kdump-raw-snappy", "win-dmp"),
)
"""``DumpGuestMemoryFormat``, QAPI dump.json."""

PPM = b"P6\n1 1\n255\n\0\0\0"
"""A screendump of one black pixel."""


@dataclass
class Dump:
    """One guest memory dump, begun and not yet written.

    Attributes:
        fd: What it is written to; closed by whoever writes it.
        kind: The format.
        memory: How many bytes of guest memory it holds.
        detached: Whether ``dump-guest-memory`` returns before it is written.
        resumes: Whether the guest ran, and shall run again afterwards.
    """

    fd: int
    kind: str
    memory: int
    detached: bool
    resumes: bool

    def chunks(self) -> Iterator[bytes]:
        """The dump's bytes: a correct header, a note, and memory full of zeros."""
        if self.kind.startswith("kdump"):
            yield from _flattened_kdump(self.memory)
        elif self.kind == "elf":
            yield _elf_core_header(self.memory)
            yield bytes(self.memory)


def _elf_core_header(memory: int) -> bytes:
    """An ELF core file up to where ``memory`` bytes of guest memory follow, elf(5)."""
    core, x86_64, version = 4, 62, 1
    header_size, entry_size, entries = 64, 56, 2
    note = struct.pack("<III8s", 5, 0, 1, b"CORE")  # name and its size, no contents, NT_PRSTATUS
    note_offset = header_size + entries * entry_size
    memory_offset = note_offset + len(note)
    identity = b"\x7fELF" + bytes([2, 1, version])  # 64 bits, little-endian
    return b"".join(
        (
            struct.pack(
                "<16sHHIQQQIHHHHHH",
                *(identity, core, x86_64, version, 0, header_size, 0, 0),
                *(header_size, entry_size, entries, 0, 0, 0),
            ),
            struct.pack("<IIQQQQQQ", 4, 0, note_offset, 0, 0, len(note), 0, 0),  # PT_NOTE
            struct.pack("<IIQQQQQQ", 1, 0, memory_offset, 0, 0, memory, memory, 0),  # PT_LOAD
            note,
        )
    )


def _flattened_kdump(memory: int) -> Iterator[bytes]:
    """A kdump in makedumpfile's flattened format: a header, then pieces with their offsets."""
    header_size, block = 4096, 4096
    yield struct.pack(">16sQQ", b"makedumpfile", 1, 1).ljust(header_size, b"\0")
    disk_dump_header = struct.pack("<8sI", b"KDUMP   ", 6).ljust(block, b"\0")
    for offset, piece in ((0, disk_dump_header), (block, zlib.compress(bytes(memory)))):
        yield struct.pack(">qq", offset, len(piece)) + piece
    yield struct.pack(">qq", -1, -1)  # the end


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = b"".join(
    (
        b"\x89PNG\r\n\x1a\n",
        _png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        _png_chunk(b"IDAT", zlib.compress(b"\0\0")),
        _png_chunk(b"IEND", b""),
    )
)
"""A screendump of one black pixel."""
