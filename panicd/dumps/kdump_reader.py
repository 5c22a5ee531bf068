"""Reads the kdump-compressed format, as QEMU and panicd write it for 64-bit x86 or Arm guests.

The file is a row of blocks: a header, a sub-header with the notes, two bitmaps (a bit for each
existing page, and for each dumped page), a descriptor for each dumped page, the pages.

It reads plain pages and those packed by zlib. Python's own library has neither lzo nor snappy.

Sources: makedumpfile ``IMPLEMENTATION`` and ``diskdump_mod.h``; QEMU ``include/sysemu/dump.h``.
"""

import struct
import zlib
from collections.abc import Callable
from typing import Final

from panicd.rules.guest_memory.dump_file import NO_VMCOREINFO, NOT_READ, READABLE
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.vmcoreinfo import MAX_SIZE

SIGNATURE: Final = b"KDUMP   "
MACHINES: Final = {*READABLE.values(), b"Unknown"}
"""The last of QEMU 10.0 on; what has no VMCOREINFO is left so."""
MAX_BITMAP: Final = 1 << 28  # bytes; that of a guest of 8 TiB

_MACHINE_AT: Final = 12 + 4 * 65  # utsname, its fifth part
_SIZES_AT: Final = 428  # block_size, sub_hdr_size, bitmap_blocks in the 64-bit disk_dump_header
_SIZES: Final = struct.Struct("<iiI")
_HEADER_SIZE: Final = _SIZES_AT + _SIZES.size
_VMCOREINFO_AT: Final = 32  # offset_vmcoreinfo and size_vmcoreinfo in kdump_sub_header
_VMCOREINFO: Final = struct.Struct("<QQ")
_DESCRIPTOR: Final = struct.Struct("<QIIQ")  # offset, size, flags, page_flags
_ZLIB: Final = 1
_PACKERS: Final = {2: "lzo", 4: "snappy", 0x20: "zstd"}
_CHUNK: Final = 4096  # bytes of the bitmap whose set bits are counted together
_FILE_END: Final = 1 << 63  # bytes: off_t is signed


class KdumpReader:
    """An open kdump.

    Args:
        read: returns bytes of the file, from an offset on; fewer at its end.

    Attributes:
        vmcoreinfo: the guest kernel's note on itself.
        size: bytes of guest memory that it may have at most.

    Raises:
        NotReadableError: the file is no kdump, of another kind of guest, or has no VMCOREINFO.
        OSError: the file can't be read.
    """

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._file = read
        head = self._read(0, _HEADER_SIZE)
        block, sub_blocks, bitmap_blocks = _SIZES.unpack_from(head, _SIZES_AT)
        machine = head[_MACHINE_AT:].partition(b"\0")[0]
        if not head.startswith(SIGNATURE) or machine not in MACHINES:
            raise NotReadableError(f"a kdump of a guest of {NOT_READ}")
        bitmap = bitmap_blocks // 2 * block
        if block != PAGE or sub_blocks <= 0 or not 0 < bitmap <= MAX_BITMAP:
            raise NotReadableError("the kdump has unlikely sizes")
        at, size = _VMCOREINFO.unpack(self._read(block + _VMCOREINFO_AT, _VMCOREINFO.size))
        if not 0 < size <= MAX_SIZE or at >= _FILE_END:
            raise NotReadableError(NO_VMCOREINFO)
        self.vmcoreinfo = self._read(at, size)
        self.size = bitmap * 8 * PAGE
        bitmaps = block * (1 + sub_blocks)
        self._dumped = self._read(bitmaps + bitmap, bitmap)
        self._before = [0]  # descriptors of pages before each chunk of the bitmap
        for start in range(0, bitmap, _CHUNK):
            self._before.append(self._before[-1] + _ones(self._dumped[start : start + _CHUNK]))
        self._descriptors = bitmaps + block * bitmap_blocks

    def memory(self, physical: int, length: int) -> bytes:
        """Return guest memory; whole pages.

        Raises:
            NotReadableError: the memory is not in the dump.
            OSError: the file can't be read.
        """
        pages = range(physical // PAGE, (physical + length) // PAGE)
        return b"".join(self._page(number) for number in pages)

    def _page(self, number: int) -> bytes:
        byte, bit = divmod(number, 8)
        if byte >= len(self._dumped) or not self._dumped[byte] >> bit & 1:
            raise NotReadableError(f"no guest memory at {number * PAGE:#x}")
        chunk = byte // _CHUNK
        index = self._before[chunk] + _ones(self._dumped[chunk * _CHUNK : byte])
        index += (self._dumped[byte] & (1 << bit) - 1).bit_count()
        place = self._descriptors + index * _DESCRIPTOR.size
        at, size, flags, _ = _DESCRIPTOR.unpack(self._read(place, _DESCRIPTOR.size))
        if not 0 < size <= PAGE or at >= _FILE_END:
            raise NotReadableError(f"the kdump's page at {number * PAGE:#x} makes no sense")
        return _unpacked(self._read(at, size), flags)

    def _read(self, offset: int, length: int) -> bytes:
        data = self._file(offset, length)
        if len(data) < length:
            raise NotReadableError("the kdump is cut off")
        return data


def _unpacked(page: bytes, flags: int) -> bytes:
    for flag, name in _PACKERS.items():
        if flags & flag:
            raise NotReadableError(f"its pages are packed by {name}")
    if flags & _ZLIB:
        try:
            page = zlib.decompressobj().decompress(page, PAGE)
        except zlib.error as error:
            raise NotReadableError(f"a page of the kdump is damaged: {error}") from error
    if len(page) != PAGE:
        raise NotReadableError(f"a page of the kdump has {len(page)} bytes")
    return page


def _ones(data: bytes) -> int:
    return int.from_bytes(data, "little").bit_count()
