"""What QEMU writes, as it comes: a file or pipe that is read forwards, once."""

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from panicd.rules.guest_memory.dump_file import Piece
from panicd.rules.guest_memory.reading import NotReadableError

BLOCK: Final = 1 << 20  # bytes looked at together
HEAD: Final = 1 << 16  # bytes; QEMU's ELF headers take some hundred
CUT_OFF: Final = errno.ENODATA
FRAMED: Final = "framed"  # what a program is told, where not all of the memory comes
FRAME: Final = struct.Struct("<QQ")
"""What comes before each part of it then: physical address and length, in bytes."""


class CoreStream:
    """A file or pipe, read forwards."""

    def __init__(self, source: int) -> None:
        self._source = source
        self._ahead = b""
        self._at = 0

    def peek(self, size: int) -> bytes:
        """Return as many bytes from the beginning on, fewer at the end."""
        while len(self._ahead) < size:
            more = os.read(self._source, size - len(self._ahead))
            if not more:
                break
            self._ahead += more
        return self._ahead[:size]

    def skip_to(self, offset: int) -> None:
        """Pass over what lies before an offset."""
        if offset < self._at:
            raise NotReadableError("the core's pieces lie on one another")
        waste = memoryview(bytearray(BLOCK))
        while self._at < offset:
            self.fill(waste[: min(len(waste), offset - self._at)])

    def pieces(self, memory: Iterable[Piece]) -> Iterator[tuple[int, int]]:
        """Go to each of the pieces in turn; yield its physical address and length."""
        for piece in sorted(memory, key=lambda piece: piece.offset):
            self.skip_to(piece.offset)
            yield piece.physical, piece.length

    def frames(self, start: int) -> Iterator[tuple[int, int]]:
        """Go to each of the frames from an offset on in turn; yield the same."""
        self.skip_to(start)
        frame = memoryview(bytearray(FRAME.size))
        while self.peek(1):
            self.fill(frame)
            yield FRAME.unpack(frame)

    def fill(self, target: memoryview) -> None:
        """Read on until there is as much.

        Raises:
            OSError: ENODATA: it ends before.
        """
        taken = self._ahead[: len(target)]
        target[: len(taken)] = taken
        self._ahead = self._ahead[len(taken) :]
        filled = len(taken)
        while filled < len(target):
            size = os.readv(self._source, [target[filled:]])
            if not size:
                raise OSError(CUT_OFF, "the core is cut off")
            filled += size
        self._at += filled

    def copy(self, target: int) -> None:
        """Write all of it, what was looked at included."""
        part = self._ahead or os.read(self._source, BLOCK)
        while part:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(target, rest) :]
            part = os.read(self._source, BLOCK)

    def drain(self, waste: memoryview) -> None:
        """Read what is still there; whoever writes it must not find the pipe closed."""
        while os.readv(self._source, [waste]):
            pass
