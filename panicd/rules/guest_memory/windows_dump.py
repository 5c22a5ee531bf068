"""What makes a dump for WinDbg of a Windows' memory: its header, and each processor's registers.

The driver's header is from before the panic: the bug check and the kernel's array of pages are put
in. Where the kernel keeps a processor's context, for WinDbg to show, it may have saved none: the
dump has there what the processor's registers hold. QEMU's own ``win-dmp`` does the same, and the
file is to be as QEMU would write it. It is not used, for it trusts a guest: one that tells of runs
of memory without end has it write without end, and it writes the contexts into the guest's memory
for the time of the dump, wherever the guest says that they lie.

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
"""The bug check that a dump of a Windows has that noted none: ``LIVE_SYSTEM_DUMP``."""

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
"""A processor's registers by their names: those of 64 bits begin with R."""


@dataclass(frozen=True, slots=True)
class WindowsDump:
    """What a dump has that does not lie in the guest's memory, or not so.

    Attributes:
        head: its header.
        runs: of pages, in the order in which they follow it.
        patches: what stands at places of memory instead of what lies there.
    """

    head: bytes
    runs: tuple[range, ...]
    patches: tuple[tuple[int, bytes], ...]

    def written(self) -> bytes:
        """Return it as ``panicd.dumps.filter.windows_filter`` reads it."""
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
        # A processor outside of 64-bit mode is printed with the names of 32 bits.
        found.append({re.sub(r"^E(?=..$)", "R", name): values[name] for name in values})
    return found


def read_dump(
    header: WindowsHeader, registers: list[Registers], size: int, limits: Limits
) -> Reading[WindowsDump]:
    """Return what makes a dump of a guest.

    Args:
        header: as the driver left it.
        registers: of each processor.
        size: bytes of memory that the guest has.
        limits: what it may cost.

    Raises:
        NotReadableError: no dump can be made of this; the text says why.
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
    vector = registers.get("MXCSR", 0)
    return _CONTEXT.pack(
        *(_EVERYTHING, vector),
        *(registers.get(name, 0) & 0xFFFF for name in ("CS", "DS", "ES", "FS", "GS", "SS")),
        registers.get("RFL", 0) & 0xFFFFFFFF,
        *(registers.get(f"DR{number}", 0) for number in (0, 1, 2, 3, 6, 7)),
        *(registers.get(f"R{name}", 0) for name in _GENERAL),
        *(registers.get(f"R{number}", 0) for number in range(8, 16)),
        registers.get("RIP", 0),
        vector & 0xFFFFFFFF,
    )
