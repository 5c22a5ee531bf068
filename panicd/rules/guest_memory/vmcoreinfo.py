"""VMCOREINFO: a Linux kernel's note on its own addresses and layouts, for readers of dumps.

Source: Linux, ``Documentation/admin-guide/kdump/vmcoreinfo.rst``.
"""

import re
import struct
from collections.abc import Mapping
from typing import Final

from panicd.rules.guest_memory.reading import NotReadableError

MAX_SIZE: Final = 1 << 16  # bytes; kernels give it a page
MAX_STRUCTURE: Final = 1 << 10  # bytes; the largest of those that panicd reads has 88
MAX_RELEASE: Final = 64  # characters: Linux, __NEW_UTS_LEN

NO_LINUX: Final = "the guest is a Windows"

_ADDRESS: Final = re.compile(r"[0-9a-fA-F]{1,16}", re.ASCII)
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}|0x[0-9a-f]{1,16}", re.ASCII)
_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}  # of the module struct, by bytes


class Vmcoreinfo:
    """The note's entries, ``SYMBOL(prb)=ffffffffb36622c0`` and the like.

    Every method raises ``NotReadableError`` where an entry is missing or malformed.
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        self._entries = entries

    @classmethod
    def parse(cls, contents: bytes) -> "Vmcoreinfo":
        """Return the entries of a note.

        Raises:
            NotReadableError: it is larger than any kernel's note, or the header of a Windows dump.
        """
        if contents.startswith(b"PAGE"):
            raise NotReadableError(NO_LINUX)
        if len(contents) > MAX_SIZE:
            raise NotReadableError(f"a VMCOREINFO of {len(contents)} bytes")
        lines = contents.decode("ascii", errors="replace").split("\n")
        return cls({key: value for key, _, value in (line.partition("=") for line in lines)})

    @property
    def release(self) -> str:
        """The kernel's release, as ``uname -r`` says it; printable and bounded."""
        release = self._entries.get("OSRELEASE", "")[:MAX_RELEASE]
        return release if release.isprintable() else ""

    def page_size(self) -> int:
        """Return the size of a page, in bytes."""
        return self._number("PAGESIZE")

    def symbol(self, name: str) -> int:
        """Return the virtual address of a symbol."""
        key = f"SYMBOL({name})"
        return int(self._matching(key, _ADDRESS), 16)

    def number(self, name: str) -> int:
        """Return the value of a variable or constant."""
        return self._number(f"NUMBER({name})")

    def has_number(self, name: str) -> bool:
        """Return whether the kernel tells of a variable or constant."""
        return f"NUMBER({name})" in self._entries

    def length(self, name: str) -> int:
        """Return how many elements an array has."""
        return self._number(f"LENGTH({name})")

    def has_offset(self, structure: str, member: str) -> bool:
        """Return whether the kernel tells where in a structure a member lies."""
        return f"OFFSET({structure}.{member})" in self._entries

    def offset(self, structure: str, member: str) -> int:
        """Return where in a structure a member lies, in bytes, as the kernel says."""
        return self._number(f"OFFSET({structure}.{member})")

    def structure(self, name: str, members: Mapping[str, int]) -> "Structure":
        """Return the layout of a structure.

        Args:
            name: as in ``SIZE(name)``.
            members: their sizes in bytes, by name.
        """
        size = self._number(f"SIZE({name})")
        if not 0 < size <= MAX_STRUCTURE:
            raise NotReadableError(f"a {name} of {size} bytes")
        places = {}
        for member, width in members.items():
            offset = self.offset(name, member)
            if not 0 <= offset <= size - width:
                raise NotReadableError(f"{name}.{member} lies outside of it, at {offset}")
            places[member] = slice(offset, offset + width)
        return Structure(size, places)

    def _number(self, key: str) -> int:
        value = self._matching(key, _NUMBER)
        return int(value, 16 if value.startswith("0x") else 10)

    def _matching(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self._entries.get(key)
        if value is None:
            raise NotReadableError(
                f"VMCOREINFO has no {key}: a kernel before 5.10, or newer than is known"
            )
        if not pattern.fullmatch(value):
            raise NotReadableError(f"VMCOREINFO has a malformed {key}")
        return value


class Structure:
    """The layout of a C structure.

    Attributes:
        size: in bytes.
    """

    def __init__(self, size: int, places: Mapping[str, slice]) -> None:
        self.size = size
        self._places = places

    def offset(self, member: str) -> int:
        """Return where a member lies, in bytes from the structure's beginning."""
        start: int = self._places[member].start
        return start

    def part(self, data: bytes, member: str) -> bytes:
        """Return a member's bytes; ``data`` holds the structure whole."""
        return data[self._places[member]]

    def inner(self, member: str, structure: "Structure") -> "Structure":
        """Return this layout with the members of an inner structure, which ``member`` is, only."""
        begin = self._places[member].start
        places = structure._places.items()  # noqa: SLF001 - of its own class
        moved = {name: slice(begin + at.start, begin + at.stop) for name, at in places}
        return Structure(self.size, moved)

    def column(self, data: bytes, member: str) -> list[int]:
        """Return a member of each of several structures, one behind the other, as ``unsigned``."""
        place = self._places[member]
        code = _CODES[place.stop - place.start]
        layout = struct.Struct(f"<{place.start}x{code}{self.size - place.stop}x")
        return [number for (number,) in layout.iter_unpack(data)]

    def unsigned(self, data: bytes, member: str) -> int:
        """Return a member as an unsigned number, little endian."""
        return int.from_bytes(self.part(data, member), "little")
