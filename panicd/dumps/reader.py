"""Reads a finished dump: the guest kernel's note on itself, and physical memory.

::

    .elf        read where the memory lies
    .elf.zst    unpacked from its beginning as far as needed, and again to go back; the blocks near
                by stay in memory, nothing goes to a disk
    .kdump      page by page: panicd.dumps.kdump_reader

This is for a command, not for the daemon, because it takes its time. A guest wrote the memory, and
a file may be cut. Bytes that make no sense end in ``NotReadableError``.
"""

import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, TypeVar

from panicd.dumps.kdump_reader import SIGNATURE as KDUMP_SIGNATURE
from panicd.dumps.kdump_reader import KdumpReader
from panicd.rules.guest_memory.dump_file import DumpFile, find_vmcoreinfo
from panicd.rules.guest_memory.memory import Limits
from panicd.rules.guest_memory.reading import NotReadableError, Reading
from panicd.rules.guest_memory.vmcoreinfo import NO_LINUX, Vmcoreinfo
from panicd.rules.guest_memory.windows import SIGNATURE
from panicd.rules.kernel_log import KernelLog, read_log

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WHOLE_LOG: Final = Limits(lines=50_000, records=1 << 17, size=256 << 20, requests=1 << 14)
"""More than any kernel's log has that was not given megabytes for it."""

HEAD: Final = 1 << 16  # bytes; QEMU's ELF headers take some hundred
ELF_SIGNATURE: Final = b"\x7fELF"
ZSTD_SIGNATURE: Final = b"\x28\xb5\x2f\xfd"
BLOCK: Final = 4 << 20  # bytes unpacked at once
KEPT: Final = 32  # blocks
READ: Final = 1 << 20  # bytes read at once of a packed file
MAX_PASSES: Final = 32
"""Times to unpack a file from its beginning; a guest might have its log lie in many places."""


Found = TypeVar("Found")


class File(Protocol):
    """A file, or the content of a packed one."""

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes there; fewer at the file's end."""


class Dump(Protocol):
    """An open dump.

    Attributes:
        vmcoreinfo: the guest kernel's note on itself.
        size: bytes of guest memory that it may have at most.
    """

    vmcoreinfo: bytes
    size: int

    def memory(self, physical: int, length: int) -> bytes:
        """Return guest memory; whole pages.

        Raises:
            NotReadableError: the memory is not in the dump.
            OSError: the file can't be read.
        """


def read_dumped_log(path: Path, limits: Limits = WHOLE_LOG) -> KernelLog:
    """Read the kernel's log from a finished dump. Blocking, perhaps for minutes.

    Args:
        path: the dump, in any format of panicd's.
        limits: the most that reading may cost.

    Raises:
        NotReadableError: no log can be had; the text says why, and may be the guest's.
    """
    try:
        with open_dump(path) as dump:
            return feed(read_log(Vmcoreinfo.parse(dump.vmcoreinfo), limits), dump)
    except OSError as error:
        raise NotReadableError(str(error)) from error


def feed(reader: Reading[Found], dump: Dump) -> Found:
    """Give a reader the memory that it asks for; return what it found.

    Raises:
        NotReadableError: the reader can't do without memory that is not in the dump.
        OSError: the file can't be read.
    """
    try:
        request = next(reader)
        while True:
            try:
                data = dump.memory(request.physical, request.length)
            except NotReadableError as error:
                request = reader.throw(error)
            else:
                request = reader.send(data)
    except StopIteration as end:
        found: Found = end.value
        return found


@contextmanager
def open_dump(path: Path) -> Iterator[Dump]:
    """Open a dump.

    Raises:
        NotReadableError: the file is no dump, or of another kind of guest.
        OSError: the file can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        file: File = _PlainFile(descriptor)
        start = file.read(0, len(KDUMP_SIGNATURE))
        if start.startswith(ZSTD_SIGNATURE):
            file = _ZstdFile(file)
            start = file.read(0, len(KDUMP_SIGNATURE))
        if start.startswith(ELF_SIGNATURE):
            yield _ElfReader(file)
        elif start == KDUMP_SIGNATURE:
            yield KdumpReader(file.read)
        else:
            windows = start == SIGNATURE
            raise NotReadableError(NO_LINUX if windows else "neither an ELF core nor a kdump")
    finally:
        os.close(descriptor)


class _PlainFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)


class _ElfReader:
    def __init__(self, file: File) -> None:
        self._file = file
        self._layout = DumpFile.parse(file.read(0, HEAD))
        notes = self._layout.notes
        self.vmcoreinfo = find_vmcoreinfo(file.read(notes.offset, notes.length))
        self.size = sum(piece.length for piece in self._layout.memory)

    def memory(self, physical: int, length: int) -> bytes:
        pieces = self._layout.locate(physical, length)
        return b"".join(self._file.read(piece.offset, piece.length) for piece in pieces)


class _ZstdFile:
    """The content of a packed file, which can be unpacked forwards only."""

    def __init__(self, packed: File) -> None:
        self._packed = packed
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._passes = 0
        self._begin()

    def read(self, offset: int, length: int) -> bytes:
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        data = b"".join(self._block(number) for number in range(first, last + 1))
        start = offset - first * BLOCK
        return data[start : start + length]

    def _begin(self) -> None:
        if self._passes == MAX_PASSES:
            raise NotReadableError(
                "what is looked for lies in too many places; unpack it (zstd -d)"
            )
        self._passes += 1
        self._unpacker = zstd.ZstdDecompressor()
        self._packed_at = 0
        self._ended = False
        self._next = 0

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            if number < self._next:
                self._begin()
            while self._next <= number:
                if self._ended:
                    return b""
                self._keep(self._unpack())
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _keep(self, block: bytes) -> None:
        self._blocks[self._next] = block
        self._blocks.move_to_end(self._next)
        self._next += 1
        if len(self._blocks) > KEPT:
            self._blocks.popitem(last=False)

    def _unpack(self) -> bytes:
        """Return the next block; a shorter one at the end."""
        parts = []
        missing = BLOCK
        while missing:
            packed = b""
            if self._unpacker.eof:  # there may be another frame behind it
                packed = self._unpacker.unused_data or self._read_packed()
                if not packed:
                    self._ended = True
                    break
                self._unpacker = zstd.ZstdDecompressor()
            elif self._unpacker.needs_input:
                packed = self._read_packed()
                if not packed:
                    raise NotReadableError("the packed dump is cut off")
            try:
                part = self._unpacker.decompress(packed, missing)
            except zstd.ZstdError as error:
                raise NotReadableError(f"the packed dump is damaged: {error}") from error
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _read_packed(self) -> bytes:
        packed = self._packed.read(self._packed_at, READ)
        self._packed_at += len(packed)
        return packed
