"""Makes an ELF core of QEMU's kdump of a nearly empty guest, as it comes.

QEMU writes an ELF core page by page, and a kdump's empty pages as 24 bytes each. So a guest of
which the host holds next to nothing comes several times as fast as a kdump. Its tools read ELF
cores, though.

What comes begins with what the kdump does not have of the core: ``START``, what the core has before
its memory, and what it has behind it. QEMU's flattened kdump follows.

Sources: makedumpfile ``IMPLEMENTATION``; QEMU ``dump/dump.c`` (``write_dump_pages``), which gives
all empty pages the place of the first page's content.
"""

import errno
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from io import BufferedIOBase

START = struct.Struct("<QQQ")
"""How many bytes the core has before its memory, of its memory, and behind it."""
LARGEST = 16 << 20  # bytes of a piece of the kdump; the bitmap's are smaller

_FLAT_HEADER = 4096
_FLAT_SIGNATURE = b"makedumpfile\0"
_PIECE = struct.Struct(">qq")  # place and size; both -1 at the end
_MAX_WAITING = 1 << 17  # pages; QEMU has 16 KiB to 256 KiB of contents waiting
_MANY = 4096  # descriptors; QEMU writes some 700 or 2,700 at once
_SIGNATURE = b"KDUMP   "
_BLOCKS_AT = 428  # block_size, sub_hdr_size, bitmap_blocks
_BLOCKS = struct.Struct("<III")
_DESCRIPTOR = struct.Struct("<QIIQ")  # place, size, flags, page_flags
_PLAIN, _ZLIB = 0, 1  # flags


class NotUnderstoodError(Exception):
    """What comes is no kdump of that memory."""


def parts_of_core(source: BufferedIOBase) -> Iterator[bytes | int]:
    """Yield an ELF core's parts in order; for an empty one its size.

    Args:
        source: has ``START`` and all that follows on it.

    Raises:
        NotUnderstoodError: the kdump is none of that memory.
        OSError: ENODATA: the kdump is cut off.
    """
    before, size, behind = START.unpack(_read(source, START.size))
    yield _read(source, before)
    end = _read(source, behind)
    pages: _Pages | None = None
    for place, content in _pieces(source):
        if place == 0:
            pages = _Pages(content, size)
        elif pages is None:
            raise NotUnderstoodError("it does not begin with its header")
        else:
            yield from pages.take(place, content)
    if pages is None or not pages.all_there:
        raise OSError(errno.ENODATA, "the kdump is cut off")
    yield end


def _pieces(source: BufferedIOBase) -> Iterator[tuple[int, bytes]]:
    if not _read(source, _FLAT_HEADER).startswith(_FLAT_SIGNATURE):
        raise NotUnderstoodError("it is not flattened")
    while True:
        place, size = _PIECE.unpack(_read(source, _PIECE.size))
        if (place, size) == (-1, -1):
            return
        if place < 0 or not 0 <= size <= LARGEST:
            raise NotUnderstoodError("a piece of it belongs nowhere")
        yield place, _read(source, size)


def _read(source: BufferedIOBase, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise OSError(errno.ENODATA, "the kdump is cut off")
    return data


class _Pages:
    """Puts descriptors and contents together; QEMU writes both in order, each a part at a time."""

    def __init__(self, head: bytes, size: int) -> None:
        if not head.startswith(_SIGNATURE) or len(head) < _BLOCKS_AT + _BLOCKS.size:
            raise NotUnderstoodError("its header is not understood")
        self._page, *blocks = _BLOCKS.unpack_from(head, _BLOCKS_AT)
        if self._page not in {4096, 16384, 65536} or size % self._page:
            raise NotUnderstoodError("its pages are not those of the memory")
        self._left = size // self._page
        self._descriptors_at = self._page * (1 + sum(blocks))
        self._empty_at = self._contents_at = self._descriptors_at + self._left * _DESCRIPTOR.size
        self._next = self._empty_at + self._page  # where the next page's content belongs
        self._knows_empty = False
        self._descriptors, self._contents = bytearray(), bytearray()
        self._waiting: deque[tuple[int, int]] = deque()  # size and flags; negative: empty bytes
        self._all_empty = _DESCRIPTOR.pack(self._empty_at, self._page, _PLAIN, 0) * _MANY

    @property
    def all_there(self) -> bool:
        """Whether all pages have come."""
        return self._left == 0 and not self._waiting and self._knows_empty

    def take(self, place: int, content: bytes) -> Iterator[bytes | int]:
        """Take a piece; yield the pages that are whole with it."""
        if place == self._descriptors_at < self._empty_at:
            self._descriptors += content
            self._descriptors_at += len(content)
            self._note_descriptors()
        elif place == self._contents_at:
            self._contents += content
            self._contents_at += len(content)
        elif place >= self._descriptors_at:
            raise NotUnderstoodError("its pages are not those of the memory, or not in order")
        else:
            return  # headers, notes and bitmaps: the core's beginning has the same
        if len(self._waiting) > _MAX_WAITING or len(self._contents) > LARGEST:
            raise NotUnderstoodError("its descriptors and its contents do not belong together")
        if not self._knows_empty and len(self._contents) >= self._page:
            if self._contents.count(0, 0, self._page) < self._page:
                raise NotUnderstoodError("its first content is no empty page")
            del self._contents[: self._page]
            self._knows_empty = True
        yield from self._whole()

    def _note_descriptors(self) -> None:
        """Note the size of each page's content, and how long the memory is empty."""
        count = len(self._descriptors) // _DESCRIPTOR.size
        self._left -= count
        if self._left < 0:
            raise NotUnderstoodError("it has more pages than the memory")
        known = self._descriptors[: count * _DESCRIPTOR.size]
        del self._descriptors[: len(known)]
        if known == self._all_empty[: len(known)]:
            self._note_empty(count * self._page)
            return
        for place, size, flags, _ in _DESCRIPTOR.iter_unpack(known):
            if place == self._empty_at:
                self._note_empty(self._page)
            elif place == self._next and 0 < size <= self._page:
                self._waiting.append((size, flags))
                self._next += size
            else:
                raise NotUnderstoodError("a page's content is not where it belongs")

    def _note_empty(self, size: int) -> None:
        before = self._waiting.pop()[0] if self._waiting and self._waiting[-1][0] < 0 else 0
        self._waiting.append((before - size, _PLAIN))

    def _whole(self) -> Iterator[bytes | int]:
        """Yield the pages whose content is there."""
        used = 0
        while self._waiting:
            size, flags = self._waiting[0]
            if used + size > len(self._contents):
                break
            self._waiting.popleft()
            if size < 0:
                yield -size
            else:
                yield self._unpacked(bytes(self._contents[used : used + size]), flags)
                used += size
        del self._contents[:used]

    def _unpacked(self, content: bytes, flags: int) -> bytes:
        try:
            page = zlib.decompressobj().decompress(content, self._page) if flags else content
        except zlib.error as error:
            raise NotUnderstoodError(f"a page can't be unpacked: {error}") from error
        if flags not in {_PLAIN, _ZLIB} or len(page) != self._page:
            raise NotUnderstoodError("a page is not packed as it should be")
        return page
