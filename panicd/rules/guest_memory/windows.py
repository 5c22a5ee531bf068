"""A Windows guest's own words on its panic: its bug check, and other data that the header lacks.

virtio-win's driver for fw_cfg has the kernel make the header of a full dump while it still runs,
and leaves the header in the place of Linux's VMCOREINFO. The header leads to the kernel's debugger
data block (KDBG), and KDBG leads to the rest. A kernel may keep KDBG encoded. Then the driver puts
the address of its own copy in the place of the first parameter.

Sources: QEMU ``dump/win_dump.c``, ``include/qemu/win_dump_defs.h``; virtio-win ``fwcfg64``;
the Windows SDK's ``wdbgexts.h`` (``KDDEBUGGER_DATA64``) and ``winnt.h`` (``IMAGE_FILE_MACHINE``).
"""

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from panicd.rules.bug_check import BugCheck
from panicd.rules.guest_memory.dump_file import find_vmcoreinfo, has_five_levels
from panicd.rules.guest_memory.memory import PAGE, Limits, PhysicalMemory, VirtualMemory
from panicd.rules.guest_memory.page_tables import x86_tables
from panicd.rules.guest_memory.reading import NotReadableError, Reading

SIGNATURE: Final = b"PAGEDU64"
_SIGNATURE_32: Final = b"PAGEDUMP"
HEADER_SIZE: Final = 2 * PAGE
BUG_CHECK_AT: Final = 0x38  # its offset in the header; BUG_CHECK is its layout
BUG_CHECK: Final = struct.Struct("<5Q")

_BUILD_AT: Final = 0x0C
_TOP_AT: Final = 0x10  # DirectoryTableBase
_MACHINE_AT: Final = 0x30  # MachineImageType
_MACHINE_AT_32: Final = 0x20  # the same, in the header of a 32-bit Windows
_PROCESSORS_AT: Final = 0x34
_COPY_AT: Final = 0x40  # the first parameter
_KDBG_AT: Final = 0x80
_RUNS_AT: Final = 0x88
_RUN_HEAD: Final = struct.Struct("<IIQ")  # how many runs, and of how many pages together
_RUN: Final = struct.Struct("<QQ")  # the first page, and how many
_MAX_RUNS: Final = (704 - _RUN_HEAD.size) // _RUN.size
_MAX_PAGES: Final = 1 << 40

_READABLE: Final = 0x8664
_OTHERS: Final = {
    0x014C: "32-bit x86",
    0x01C4: "32-bit Arm",
    0x0200: "Itanium",
    0xAA64: "64-bit Arm",
}
"""The machines whose Windows panicd does not read, by the PE format's numbers."""

_KDBG_SIZE: Final = 0x340
_TAG: Final = slice(0x10, 0x14)


class OtherWindowsError(NotReadableError):
    """The guest is a Windows on a machine that panicd does not read."""

    def __init__(self, machine: int) -> None:
        name = _OTHERS.get(machine, f"machine {machine:#x}")
        super().__init__(f"the guest is a Windows of {name}: not of 64-bit x86")


@dataclass(frozen=True, slots=True)
class WindowsHeader:
    """The header of a dump, as the driver left it.

    Attributes:
        data: the whole header.
        five_levels: the page tables have five levels, not four.
    """

    data: bytes
    five_levels: bool = False

    @classmethod
    def find(cls, notes: bytes) -> "WindowsHeader | None":
        """Return the header among a dump's notes; None: the guest is no Windows.

        Raises:
            OtherWindowsError: it is a Windows on another machine than 64-bit x86.
            NotReadableError: the guest left no note.
        """
        left = find_vmcoreinfo(notes)
        header = cls(left, has_five_levels(notes))
        if left.startswith(_SIGNATURE_32):
            raise OtherWindowsError(header._number(_MACHINE_AT_32, 4))
        if len(left) != HEADER_SIZE or not left.startswith(SIGNATURE):
            return None
        if (machine := header._number(_MACHINE_AT, 4)) != _READABLE:
            raise OtherWindowsError(machine)
        return header

    @property
    def build(self) -> int:
        """The kernel's build number."""
        return self._number(_BUILD_AT, 4)

    @property
    def processors(self) -> int:
        """The guest's number of processors."""
        return self._number(_PROCESSORS_AT, 4)

    def runs(self) -> tuple[range, ...]:
        """Return the runs of pages in a dump of this guest, in the dump's order.

        Raises:
            NotReadableError: the runs are implausible.
        """
        count, _, pages = _RUN_HEAD.unpack_from(self.data, _RUNS_AT)
        if not 0 < count <= _MAX_RUNS:
            raise NotReadableError(f"a Windows with {count} runs of memory")
        places = (_RUNS_AT + _RUN_HEAD.size + number * _RUN.size for number in range(count))
        found = [_RUN.unpack_from(self.data, place) for place in places]
        runs = tuple(range(first, first + length) for first, length in found)
        if runs[-1].stop > _MAX_PAGES or any(one.stop > two.start for one, two in pairwise(runs)):
            raise NotReadableError("a Windows whose runs of memory lie on one another")
        if sum(map(len, runs)) != pages:
            raise NotReadableError(f"a Windows with {pages} pages that are not those of its runs")
        return runs

    def memory(self, limits: Limits) -> VirtualMemory:
        """Return the guest kernel's memory."""
        top = self._number(_TOP_AT, 8) & -PAGE
        tables = x86_tables(top, five_levels=self.five_levels)
        return VirtualMemory(PhysicalMemory(limits), tables)

    def kdbg(self, memory: VirtualMemory) -> "Reading[Kdbg]":
        """Return the kernel's debugger data block.

        Raises:
            NotReadableError: it can't be found.
        """
        for place in (_KDBG_AT, _COPY_AT):
            address = self._number(place, 8)
            try:
                data = yield from memory.read(address, _KDBG_SIZE)
            except NotReadableError:
                continue
            if data[_TAG] == b"KDBG":
                return Kdbg(address, data)
        raise NotReadableError("a Windows, of which no debugger data block can be read")

    def _number(self, place: int, size: int) -> int:
        return int.from_bytes(self.data[place : place + size], "little")


@dataclass(frozen=True, slots=True)
class Kdbg:
    """The kernel's debugger data block.

    Attributes:
        address: its virtual address.
        data: its contents.
    """

    address: int
    data: bytes

    @property
    def bug_check(self) -> int:
        """The address of the bug check: ``KiBugcheckData``."""
        return self._number(0x88, 8)

    @property
    def pages(self) -> bytes:
        """The raw address of the kernel's array of pages: ``MmPfnDatabase``."""
        return self.data[0xC0:0xC8]

    @property
    def processors(self) -> int:
        """The address of the list of the processors' blocks: ``KiProcessorBlock``."""
        return self._number(0x218, 8)

    @property
    def context(self) -> int:
        """The offset of the context's address in a processor's block: ``OffsetPrcbContext``."""
        return self._number(0x338, 2)

    def _number(self, place: int, size: int) -> int:
        return int.from_bytes(self.data[place : place + size], "little")


@dataclass(frozen=True, slots=True)
class WindowsCrash:
    """A Windows guest's own account of its panic.

    Attributes:
        bug_check: the reason why it stopped.
        build: its kernel's build number.
        processors: its number of processors.
    """

    bug_check: BugCheck
    build: int
    processors: int


def read_crash(header: WindowsHeader, limits: Limits) -> Reading[WindowsCrash]:
    """Read a guest's bug check.

    Raises:
        NotReadableError: it can't be read, or the guest noted none; the text says why.
    """
    memory = header.memory(limits)
    kdbg = yield from header.kdbg(memory)
    data = yield from memory.read(kdbg.bug_check, BUG_CHECK.size)
    code, *parameters = BUG_CHECK.unpack(data)
    check = BugCheck(code % 2**32, tuple(parameters))
    if not check.code:
        raise NotReadableError("a Windows that has noted no bug check")
    return WindowsCrash(check, header.build, header.processors)
