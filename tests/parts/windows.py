"""A guest that poses as Windows: it leaves the header of a dump, and panics.

A firmware of a few bytes switches to 64-bit mode with the page tables of a made-up memory
(``tests.rules.windows_memory``), writes ``etc/vmcoreinfo`` as virtio-win's driver does (QEMU,
``docs/specs/fw_cfg``, ``docs/specs/vmcoreinfo``) and panics by pvpanic. QEMU's loader puts the
memory into the machine, so it can be anything. Interrupts stay off. Its stack, and a name that it
reads, are at 0x2000.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from panicd.demo.guests import ROM_SIZE
from tests.parts.qemu import RealQemu
from tests.rules.windows_memory import NOTE, WindowsMemory

VMCOREINFO: Final = ("-device", "vmcoreinfo")

_ROOM: Final = 0x1000  # what the firmware reads: tables and words of its own
_PAE_AND_SSE: Final = 0x620  # of CR4
_FIVE_LEVELS: Final = 0x1000
_MXCSR: Final = 0x1FC0
_RESET_VECTOR: Final = bytes.fromhex("ea000000f0")  #  jmp 0xf000:0x0000

_FIRMWARE: Final = bytes.fromhex(
    "fa"  #  cli
    "6631c0"  #  xor eax, eax
    "8ed8"  #  mov ds, ax
    "2e660f01160001"  #  o32 lgdt [cs:gdt_pointer]
    "66a13010"  #  mov eax, [0x1030]  ; CR4: PAE, SSE, five levels or not
    "0f22e0"  #  mov cr4, eax
    "66a10010"  #  mov eax, [0x1000]  ; CR3: the tables' top
    "0f22d8"  #  mov cr3, eax
    "66b9800000c0"  #  mov ecx, 0xc0000080  ; EFER
    "0f32"  #  rdmsr
    "0d0001"  #  or ax, 0x100  ; long mode
    "0f30"  #  wrmsr
    "66b801000080"  #  mov eax, 0x80000001  ; CR0: paging, protection
    "0f22c0"  #  mov cr0, eax
    "66ea39000f000800"  #  jmp dword 0x08:(0xf0000 + long_mode)
    "b810000000"  #  long_mode: mov eax, 0x10
    "8ed8"  #  mov ds, eax
    "8ec0"  #  mov es, eax
    "8ed0"  #  mov ss, eax
    "bc00300000"  #  mov esp, 0x3000
    "ba10050000"  #  mov edx, 0x510  ; selector
    "b819000000"  #  mov eax, 0x19  ; the directory of files
    "66ef"  #  out dx, ax
    "ffc2"  #  inc edx
    "e871000000"  #  call read_number
    "89c5"  #  mov ebp, eax  ; how many there are
    "ffcd"  #  next_file: dec ebp
    "7845"  #  js panic
    "e866000000"  #  call read_number
    "e861000000"  #  call read_number
    "89c3"  #  mov ebx, eax  ; its key, and two bytes
    "bf00200000"  #  mov edi, 0x2000
    "b938000000"  #  mov ecx, 56  ; its name
    "f36c"  #  rep insb
    "be00200000"  #  mov esi, 0x2000
    "488d3d53000000"  #  lea rdi, [rel name]
    "b90f000000"  #  mov ecx, name_end - name
    "f3a6"  #  repe cmpsb
    "75cf"  #  jne next_file
    "66bb1800"  #  mov bx, 0x18  ; select, write
    "0fcb"  #  bswap ebx
    "891c2510100000"  #  mov [0x1010], ebx  ; FWCfgDmaAccess.control
    "ba18050000"  #  mov edx, 0x518  ; lower half of the DMA address
    "b800001010"  #  mov eax, 0x10100000  ; 0x1010, big-endian
    "ef"  #  out dx, eax
    "0fae142528100000"  #  panic: ldmxcsr [0x1028]
    "48be8877665544332211"  #  mov rsi, 0x1122334455667788
    "0f23c6"  #  mov dr0, rsi
    "4989f7"  #  mov r15, rsi
    "4889f4"  #  mov rsp, rsi
    "ba05050000"  #  mov edx, 0x505
    "b001"  #  mov al, 1  ; PVPANIC_PANICKED
    "ee"  #  out dx, al
    "f4"  #  halt: hlt
    "ebfd"  #  jmp halt
    "b904000000"  #  read_number: mov ecx, 4
    "c1e008"  #  again: shl eax, 8
    "ec"  #  in al, dx
    "e2fa"  #  loop again
    "c3"  #  ret
    "6574632f766d636f7265696e666f00"  #  name: db "etc/vmcoreinfo", 0
    "0000000000000000"  #  gdt: dq 0
    "ffff0000009baf00"  #  dq 0x00af9b000000ffff
    "ffff00000093cf00"  #  dq 0x00cf93000000ffff
    "1700"  #  gdt_pointer: dw gdt_pointer - gdt - 1
    "e8000f00"  #  dd 0xf0000 + gdt
)


@asynccontextmanager
async def windows_guest(
    directory: Path,
    memory: WindowsMemory,
    *,
    processors: int = 1,
    paused: bool = False,
    proxied: bool = False,
    extra: Sequence[str] = VMCOREINFO,
) -> AsyncIterator[RealQemu]:
    """Run the guest on a real QEMU.

    Args:
        directory: For its sockets and files.
        memory: What it has.
        processors: How many QEMU gives it; only the first does anything.
        paused: Leave it waiting for a ``cont``.
        proxied: As of ``RealQemu.start``.
        extra: Further arguments.
    """
    rom, arguments = write_windows(directory, memory)
    arguments += ["-bios", str(rom), "-smp", str(processors)]
    async with RealQemu.start(
        directory,
        guest=None,
        accel="tcg",
        paused=paused,
        proxied=proxied,
        extra=(*arguments, "-action", "panic=pause", *extra),
    ) as vm:
        yield vm


def write_windows(directory: Path, memory: WindowsMemory) -> tuple[Path, list[str]]:
    """Write the guest's firmware and memory; return the firmware, and arguments for the rest.

    Args:
        directory: For the files.
        memory: What the guest has.
    """
    rom = directory / "windows.rom"
    rom.write_bytes(_FIRMWARE.ljust(ROM_SIZE - 16, b"\xf4") + _RESET_VECTOR.ljust(16, b"\xf4"))
    arguments = ["-cpu", "max,la57=on"] if memory.levels == 5 else []
    for number, (place, content) in enumerate(_pieces(memory)):
        piece = directory / f"windows-{number}.bin"
        piece.write_bytes(content)
        arguments += ["-device", f"loader,file={piece},addr={place:#x},force-raw=on"]
    return rom, arguments


def _pieces(memory: WindowsMemory) -> list[tuple[int, bytes]]:
    """Return the guest's memory, and what the firmware reads, in pieces: where, and what."""
    note = memory.note()
    cr4 = _PAE_AND_SSE | (_FIVE_LEVELS if memory.levels == 5 else 0)
    words = struct.pack("<Q8xI", memory.top, 0)
    words += struct.pack(">IQ", 16, _ROOM + 0x40)  # FWCfgDmaAccess: length, address
    words = words.ljust(0x28, b"\0") + struct.pack("<I4xI", _MXCSR, cr4)
    words = words.ljust(0x40, b"\0") + struct.pack("<HHIQ", 0, 1, len(note), NOTE)
    memory.write(_ROOM, words)
    memory.write(NOTE, note)
    pieces: list[tuple[int, bytearray]] = []
    for place, page in sorted(memory.pages.items()):
        if pieces and place == pieces[-1][0] + len(pieces[-1][1]):
            pieces[-1][1].extend(page)
        else:
            pieces.append((place, bytearray(page)))
    return [(place, bytes(content)) for place, content in pieces]
