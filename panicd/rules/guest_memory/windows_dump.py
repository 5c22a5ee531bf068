"""The parts of a WinDbg dump besides a Windows' memory: its header and the processors' registers.

The driver's header is from before the panic, so panicd adds the bug check and the kernel's array of
pages. WinDbg shows each processor's context from the kernel's memory, but the kernel may have saved
none. So the dump has the processor's registers in that place. QEMU's own ``win-dmp`` does the same,
and panicd's file equals QEMU's. panicd does not use ``win-dmp``, since that trusts the guest. If a
guest claims endless runs of memory, QEMU writes without end. During the dump QEMU also writes the
contexts into the guest's memory, at any address that the guest gives.

Sources: QEMU ``dump/win_dump.c``, ``include/qemu/win_dump_defs.h``; ``CONTEXT`` in the Windows
SDK's ``winnt.h``; for the registers ``x86_cpu_dump_state`` (``target/i386/cpu-dump.c``).
"""

import json
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from panicd.rules.guest_memory.memory import PAGE, Limits, VirtualMemory
from panicd.rules.guest_memory.reading import NotReadableError, Reading
from panicd.rules.guest_memory.windows import (
    BUG_CHECK,
    BUG_CHECK_AT,
    HEADER_SIZE,
    Kdbg,
    WindowsHeader,
)

LIVE: Final = 0x161
"""The bug check in the dump of a Windows that noted none: ``LIVE_SYSTEM_DUMP``."""

MAX_PROCESSORS: Final = 4096  # QEMU has no more

_PAGES_AT: Final = 0x18  # PfnDatabase
_KDBG_AT: Final = 0x80
_UNUSED: Final = (0x8C, 0xF9C)  # four bytes each
_SPACE_AT: Final = 0xFA0  # RequiredDumpSpace

_CONTEXT: Final = struct.Struct("<48x2I6HI6Q16Q Q24xI948x")
_EVERYTHING: Final = 0x10001F
"""CONTEXT_AMD64, with control, integer, segment, floating point and debug registers."""

_REGISTER: Final = re.compile(r"\b([A-Z][A-Z0-9]{1,4}) ?=([0-9a-f]{4,16})\b", re.ASCII)
_GENERAL: Final = ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")

Registers = dict[str, int]
"""A processor's registers by name: the 64-bit names begin with R."""


@dataclass(frozen=True, slots=True)
class WindowsDump:
    """The parts of a dump that differ from the guest's memory.

    Attributes:
        head: the dump's header.
        runs: the runs of pages that follow the header, in order.
        patches: the bytes that replace memory at certain places.
    """

    head: bytes
    runs: tuple[range, ...]
    patches: tuple[tuple[int, bytes], ...]

    def written(self) -> bytes:
        """Return these parts in the form that ``panicd.dumps.filter.windows_filter`` reads."""
        parts = {
            "head": self.head.hex(),
            "runs": [(run.start, len(run)) for run in self.runs],
            "patches": [(place, data.hex()) for place, data in self.patches],
        }
        return json.dumps(parts).encode()


def read_registers(printed: str) -> list[Registers]:
    """Return the registers of each processor, as ``info registers -a`` prints them."""
    found = []
    for part in printed.split("CPU#")[1 : 1 + MAX_PROCESSORS]:
        values = {name: int(value, 16) for name, value in _REGISTER.findall(part)}
        # QEMU prints a processor outside of 64-bit mode with 32-bit names.
        found.append({re.sub(r"^E(?=..$)", "R", name): values[name] for name in values})
    return found


def read_dump(
    header: WindowsHeader, registers: list[Registers], size: int, limits: Limits
) -> Reading[WindowsDump]:
    """Return the parts of a guest's dump besides its memory.

    Args:
        header: the driver's header.
        registers: each processor's registers.
        size: bytes of memory that the guest has.
        limits: how much the reading may cost.

    Raises:
        NotReadableError: panicd can't make a dump of this guest; the text says why.
    """
    runs = header.runs()
    if (pages := sum(map(len, runs))) * PAGE > size:
        raise NotReadableError(f"a Windows that tells of {pages} pages, more than it has")
    memory = header.memory(limits)
    kdbg = yield from header.kdbg(memory)
    head = bytearray(header.data)
    for place in _UNUSED:
        head[place : place + 4] = bytes(4)
    head[_PAGES_AT : _PAGES_AT + 8] = kdbg.pages
    struct.pack_into("<Q", head, _KDBG_AT, kdbg.address)
    struct.pack_into("<Q", head, _SPACE_AT, HEADER_SIZE + pages * PAGE)
    with suppress(NotReadableError):
        check = yield from memory.read(kdbg.bug_check, BUG_CHECK.size)
        head[BUG_CHECK_AT : BUG_CHECK_AT + len(check)] = check
        if not any(check[:4]):
            struct.pack_into("<I", head, BUG_CHECK_AT, LIVE)
    patches = yield from _contexts(memory, kdbg, registers[: header.processors])
    return WindowsDump(bytes(head), runs, tuple(patches))


def _contexts(
    memory: VirtualMemory, kdbg: Kdbg, registers: list[Registers]
) -> Reading[list[tuple[int, bytes]]]:
    patches = []
    for number, of_one in enumerate(registers):
        block = yield from _pointer(memory, kdbg.processors + 8 * number)
        place = yield from _pointer(memory, block + kdbg.context)
        context = _context(of_one)
        for run in (yield from memory.runs(place, len(context))):
            patches.append((run.start, context[: len(run)]))
            context = context[len(run) :]
    return patches


def _pointer(memory: VirtualMemory, address: int) -> Reading[int]:
    return int.from_bytes((yield from memory.read(address, 8)), "little")


def _context(registers: Registers) -> bytes:
    """Return a processor's context as WinDbg reads it."""
    vector = registers.get("MXCSR", 0) & 0xFFFFFFFF
    return _CONTEXT.pack(
        *(_EVERYTHING, vector),
        *(registers.get(name, 0) & 0xFFFF for name in ("CS", "DS", "ES", "FS", "GS", "SS")),
        registers.get("RFL", 0) & 0xFFFFFFFF,
        *(registers.get(f"DR{number}", 0) for number in (0, 1, 2, 3, 6, 7)),
        *(registers.get(f"R{name}", 0) for name in _GENERAL),
        *(registers.get(f"R{number}", 0) for number in range(8, 16)),
        registers.get("RIP", 0),
        vector,
    )
