"""The layout of the ELF file that ``dump-guest-memory`` writes of a range.

QEMU puts the program headers behind a section header, at no fixed place. It puts the notes of all
CPUs before the kernel's own note, which exists with ``-device vmcoreinfo``.

Source: elf(5), and elf.h for the machines; QEMU, ``docs/specs/vmcoreinfo``,
``target/i386/arch_dump.c`` (``QEMUCPUState``).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from panicd.rules.guest_memory.reading import NotReadableError

MAX_SEGMENTS: Final = 512  # one for each of the guest's memory blocks; QEMU has 256 slots for more
MAX_NOTES: Final = 4 << 20  # bytes: some 900 a CPU, of which QEMU has at most 4096
MAX_NOTE_COUNT: Final = 1 << 14  # two a CPU
VMCOREINFO: Final = b"VMCOREINFO"  # the note's name
NO_VMCOREINFO: Final = (
    "no VMCOREINFO: the VM has no vmcoreinfo device, or its guest has not loaded the driver "
    "(qemu_fw_cfg)"
)

_ELF: Final = b"\x7fELF"
_WIDE_LITTLE: Final = b"\x02\x01"  # 64 bits, little endian
READABLE: Final = {62: b"x86_64", 183: b"aarch64"}
"""The machines whose memory panicd reads, by ELF number, with their names in uname(1)."""
NOT_READ: Final = "neither 64-bit x86 nor 64-bit Arm"
_OTHERS: Final = {
    3: "32-bit x86",
    20: "32-bit POWER",
    21: "64-bit POWER",
    22: "s390",
    40: "32-bit Arm",
    243: "RISC-V",
    258: "LoongArch",
}
PC_LOW_END: Final = 1 << 32
PC_HOLE: Final = 1 << 20  # bytes: the hole for old devices, below 1 MiB, is smaller
_FILE_END: Final = 1 << 63  # bytes: off_t is signed
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_NOTE: Final = struct.Struct("<III")
_QEMU: Final = b"QEMU"  # the name of a processor's note
_CR4_AT: Final = 8 + 18 * 8 + 10 * 24 + 4 * 8  # behind its registers and segments
_LA57: Final = 1 << 12


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the file, in bytes; ``physical``: the guest address at which memory begins."""

    offset: int
    length: int
    physical: int = 0

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.physical + self.length


@dataclass(frozen=True, slots=True)
class DumpFile:
    """Where in a dump the notes and the memory lie, in the file's order.

    Attributes:
        machine: the guest's machine, as uname(1) calls it.
        notes: the pieces with notes.
        memory: the pieces with memory.
    """

    machine: bytes
    notes: Piece
    memory: tuple[Piece, ...]

    @classmethod
    def parse(cls, head: bytes) -> "DumpFile":
        """Return the pieces of a dump.

        Args:
            head: the file's beginning, with all of its program headers.

        Raises:
            NotReadableError: it is no dump, of another machine, or has unlikely headers.
        """
        try:
            _, _, _, _, _, at, _, _, _, size, count, *_ = _HEADER.unpack_from(head)
            machine = _machine(head)
            if size != _SEGMENT.size or count > MAX_SEGMENTS:
                raise NotReadableError("the dump has unlikely program headers")
            segments = [_SEGMENT.unpack_from(head, at + i * size) for i in range(count)]
        except (struct.error, OverflowError) as error:
            raise NotReadableError(f"the dump has no program headers: {error}") from error
        if any(segment[2] + segment[5] >= _FILE_END for segment in segments):
            raise NotReadableError("the dump ends beyond where any file does")
        notes = [Piece(s[2], s[5]) for s in segments if s[0] == _PT_NOTE]
        if len(notes) != 1 or notes[0].length > MAX_NOTES:
            raise NotReadableError("the dump has no notes of a likely size")
        memory = tuple(Piece(s[2], s[5], s[4]) for s in segments if s[0] == _PT_LOAD)
        return cls(machine, notes[0], memory)

    def kernels(self) -> list[Piece]:
        """Return the pieces up to the last that the guest's kernel knows of, by their addresses.

        A PC's memory below 4 GiB lies together. Separate pieces there belong to devices: a video
        adapter's memory, and the firmware.
        """
        memory = sorted(self.memory, key=lambda piece: piece.physical)
        if self.machine == READABLE[62]:
            while len(memory) > 1 and memory[-1].end <= PC_LOW_END:
                if memory[-1].physical - memory[-2].end <= PC_HOLE:
                    break
                del memory[-1]
        return memory

    def locate(self, physical: int, length: int) -> list[Piece]:
        """Return the pieces that hold a range of guest memory, in order and without a gap.

        Raises:
            NotReadableError: the dump lacks a part of the range.
        """
        pieces = []
        end = physical + length
        for piece in sorted(self.memory, key=lambda piece: piece.physical):
            skip = physical - piece.physical
            if 0 <= skip < piece.length and physical < end:
                size = min(piece.length - skip, end - physical)
                pieces.append(Piece(piece.offset + skip, size, physical))
                physical += size
        if physical < end:
            raise NotReadableError(f"no guest memory at {physical:#x}")
        return pieces


def _machine(head: bytes) -> bytes:
    """Return the machine of a core.

    Raises:
        NotReadableError: panicd does not read this machine's memory.
    """
    if not head.startswith(_ELF):
        raise NotReadableError("not an ELF core")
    number = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
    machine = READABLE.get(number)
    if machine is None or not head.startswith(_WIDE_LITTLE, len(_ELF)):
        other = _OTHERS.get(number, "another machine")
        raise NotReadableError(f"a guest of {other}: {NOT_READ}")
    return machine


def walk_notes(notes: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield the name, the type and the contents of each complete note."""
    at = 0
    for _ in range(MAX_NOTE_COUNT):
        name = at + _NOTE.size
        if name > len(notes):
            break
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        contents = name + _aligned(name_size)
        at = contents + _aligned(size)
        if at <= len(notes):
            yield (
                notes[name : name + name_size].rstrip(b"\0"),
                kind,
                notes[contents : contents + size],
            )


def find_vmcoreinfo(notes: bytes) -> bytes:
    """Return the contents of the guest kernel's own note.

    Raises:
        NotReadableError: there is none.
    """
    for name, _, contents in walk_notes(notes):
        if name == VMCOREINFO:
            return contents
    raise NotReadableError(NO_VMCOREINFO)


def has_five_levels(notes: bytes) -> bool:
    """Return whether page tables have five levels, from QEMU's note of the first processor."""
    states = (contents for name, _, contents in walk_notes(notes) if name == _QEMU)
    state = next(states, b"").ljust(_CR4_AT + 8, b"\0")
    return bool(int.from_bytes(state[_CR4_AT : _CR4_AT + 8], "little") & _LA57)


def _aligned(size: int) -> int:
    return -(-size // 4) * 4
