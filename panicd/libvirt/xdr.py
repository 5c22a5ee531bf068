"""XDR, as far as libvirt's RPC has it: values to bytes and back. Pure.

A decoder checks each length that the other end gives against the bytes that have come. It reads
nothing beyond them, and no list is longer than its bytes allow.

Source: RFC 4506 (4.1 to 4.14: big endian, every item filled up to a multiple of four bytes).
"""

import struct
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

UNIT: Final = 4  # bytes that every item is a multiple of
_INT: Final = struct.Struct(">i")
_UINT: Final = struct.Struct(">I")
_HYPER: Final = struct.Struct(">q")
_UHYPER: Final = struct.Struct(">Q")
_DOUBLE: Final = struct.Struct(">d")


class XdrError(ValueError):
    """The bytes make no sense; the text says what was expected."""


def pack_int(value: int) -> bytes:
    """Return a signed number of 32 bits."""
    return _INT.pack(value)


def pack_uint(value: int) -> bytes:
    """Return an unsigned number of 32 bits."""
    return _UINT.pack(value)


def pack_uhyper(value: int) -> bytes:
    """Return an unsigned number of 64 bits."""
    return _UHYPER.pack(value)


def pack_opaque(data: bytes) -> bytes:
    """Return bytes with their length before them."""
    return _UINT.pack(len(data)) + data + bytes(-len(data) % UNIT)


def pack_text(text: str) -> bytes:
    """Return a string."""
    return pack_opaque(text.encode(errors="backslashreplace"))


def pack_optional_text(text: str | None) -> bytes:
    """Return a string that may be missing."""
    return _UINT.pack(0) if text is None else _UINT.pack(1) + pack_text(text)


class Decoder:
    """Reads items from bytes, one after the other.

    Args:
        data: all that there is.
    """

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._data) - self._at

    def int32(self) -> int:
        """Read a signed number of 32 bits."""
        number: int = self._number(_INT)
        return number

    def uint32(self) -> int:
        """Read an unsigned number of 32 bits."""
        number: int = self._number(_UINT)
        return number

    def int64(self) -> int:
        """Read a signed number of 64 bits."""
        number: int = self._number(_HYPER)
        return number

    def uint64(self) -> int:
        """Read an unsigned number of 64 bits."""
        number: int = self._number(_UHYPER)
        return number

    def double(self) -> float:
        """Read a number with a fraction."""
        number: float = self._number(_DOUBLE)
        return number

    def fixed(self, length: int) -> bytes:
        """Read ``length`` bytes, and the padding after them.

        Raises:
            XdrError: there are fewer.
        """
        end = self._at + length
        filled = end + -length % UNIT
        if filled > len(self._data):
            raise XdrError(f"{length} bytes announced at {self._at}, {self.left} are there")
        data = self._data[self._at : end]
        self._at = filled
        return data

    def opaque(self, most: int) -> bytes:
        """Read bytes that have their length before them.

        Args:
            most: bytes that there may be.

        Raises:
            XdrError: there are more, or fewer than announced.
        """
        length = self.uint32()
        if length > most:
            raise XdrError(f"{length} bytes announced at {self._at}, {most} are allowed")
        return self.fixed(length)

    def text(self, most: int) -> str:
        r"""Read a string of ``most`` bytes at most; bytes that are no UTF-8 become ``\xNN``.

        Raises:
            XdrError: the string is longer, or not all there.
        """
        return self.opaque(most).decode(errors="backslashreplace")

    def optional(self, read: Callable[[], T]) -> T | None:
        """Read an item that may be missing.

        Raises:
            XdrError: the item is neither there nor missing.
        """
        there = self.uint32()
        if there > 1:
            raise XdrError(
                f"{there} at {self._at - UNIT} tells neither of something nor of nothing"
            )
        return read() if there else None

    def array(self, read: Callable[[], T], most: int) -> list[T]:
        """Read a list.

        Args:
            read: reads an item, of four bytes at least.
            most: items that there may be.

        Raises:
            XdrError: there are more, or fewer than announced.
        """
        count = self.uint32()
        if count > min(most, self.left // UNIT):
            raise XdrError(f"{count} items announced at {self._at}, {self.left} bytes are there")
        return [read() for _ in range(count)]

    def end(self) -> None:
        """Check that no bytes are left.

        Raises:
            XdrError: some are left.
        """
        if self.left:
            raise XdrError(f"{self.left} bytes too many at {self._at}")

    def _number(self, kind: struct.Struct) -> Any:
        try:
            (number,) = kind.unpack_from(self._data, self._at)
        except struct.error:
            missing = f"a number is missing at {self._at}, {self.left} bytes are there"
            raise XdrError(missing) from None
        self._at += kind.size
        return number
