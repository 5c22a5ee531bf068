"""Guests of a few bytes each, for a demonstration or a test of panicd against a real QEMU.

A guest is a hand-assembled 16-bit x86 program. It is put together from the fragments below, each of
which runs wherever it lies (all jumps are relative) and needs no stack, no BIOS and no interrupts.
It starts in either of two ways:

- ``write_boot_sector``: 512 bytes for ``-drive file=…,if=floppy,format=raw -boot a``. The firmware
  runs first: 0.1 s under TCG, seconds under a nested KVM.
- ``write_rom``: 64 KiB for ``-bios``. The program is the firmware, and runs at once.

Physical memory that the guests use: above the BIOS data area, and below 0x7000, from where SeaBIOS
clears all of it at every boot:

- 0x500, ``COUNTER_ADDRESS``: 32 bits that a counting guest increments for as long as it really runs
  (HMP ``xp /1wx 0x500``).
- 0x600: 32 bits that say 'this QEMU has booted me before'. RAM survives a reset.

The panic device's port and its values: QEMU, docs/specs/pvpanic.txt.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Final

COUNTER_ADDRESS: Final = 0x500
PVPANIC_PORT: Final = 0x505

HYPERV_BUG_CHECK: Final = (0x7E, 0x11, 0x22, 0x33, 0x44)
"""What ``Guest.PANIC_BY_HYPERV`` says: a bug check's code, and its four parameters."""

SECTOR_SIZE: Final = 512
ROM_SIZE: Final = 64 * 1024  # QEMU's pc machine takes a firmware of a multiple of 64 KiB


class Guest(enum.StrEnum):
    """What a guest does. Each starts again from the top at every reset."""

    IDLE = "idle"
    """Halts. Whatever panics, was raised from outside (HMP ``o /b 0x505 1``)."""

    COUNT = "count"
    """Counts for ever: a healthy guest."""

    PANIC_ONCE = "panic-once"
    """Panics, then halts. It panics again at every boot: a crash loop, if something restarts it."""

    PANIC_AND_COUNT = "panic-and-count"
    """Panics, then counts: shows whether a ``cont`` after the panic really resumed it."""

    PANIC_ONCE_THEN_BOOT_HEALTHY = "panic-once-then-boot-healthy"
    """Panics on the first boot of its QEMU; boots to count on every later one."""

    PANIC_ON_KEY = "panic-on-key"
    """Counts, and panics at every key press (HMP ``sendkey a``): from inside, but when asked to."""

    FLOOD = "flood"
    """Panics in an endless loop, some ten thousand times a second where nothing stops it."""

    CRASHLOAD_THEN_RESET = "crashload-then-reset"
    """Says that its kdump kernel takes over and resets itself; boots to count after that."""

    CRASHLOAD_THEN_HANG = "crashload-then-hang"
    """Says that its kdump kernel takes over, and is never heard of again."""

    PANIC_BY_PCI = "panic-by-pci"
    """Panics through a ``pvpanic-pci`` in slot 4 (``addr=4``), then halts."""

    PANIC_BY_HYPERV = "panic-by-hyperv"
    """Writes a bug check to Hyper-V's crash registers (``-cpu …,hv-crash``, KVM), then halts."""

    KVM_ERROR_ON_KEY = "kvm-error-on-key"
    """Counts; at a key press it does what KVM gives up at (KVM_EXIT_INTERNAL_ERROR)."""


# Interrupts stay off: under a firmware, its handlers would otherwise eat the key presses.
_PROLOGUE: Final = bytes.fromhex(
    "fa"  #            cli
    "31c0"  #          xor ax, ax
    "8ed8"  #          mov ds, ax           ; data addresses are physical ones below 64 KiB
)

_HALT: Final = bytes.fromhex(
    "f4"  #      again: hlt
    "ebfd"  #           jmp again
)

_COUNT: Final = bytes.fromhex(
    "66c706000500000000"  #  mov dword [0x500], 0
    "66ff060005"  #   again: inc dword [0x500]
    "ebf9"  #                jmp again
)

_PANIC: Final = bytes.fromhex(
    "ba0505"  #        mov dx, 0x505
    "b001"  #          mov al, 1            ; PVPANIC_PANICKED
    "ee"  #            out dx, al
)

_FLOOD: Final = bytes.fromhex(
    "ba0505"  #        mov dx, 0x505
    "b001"  #          mov al, 1
    "ee"  #     again: out dx, al
    "ebfd"  #          jmp again
)

_CRASHLOAD: Final = bytes.fromhex(
    "ba0505"  #        mov dx, 0x505
    "b002"  #          mov al, 2            ; PVPANIC_CRASHLOADED
    "ee"  #            out dx, al
)

# The keyboard controller's pulse of the reset line; QEMU resets the machine a moment later.
_RESET: Final = bytes.fromhex(
    "b0fe"  #          mov al, 0xfe
    "e664"  #          out 0x64, al
)

# Without a firmware the keyboard speaks scan code set 2, where a release begins with 0xf0 and then
# repeats the key; a firmware has set 1 made of it, where a release is the key with its top bit set.
# QEMU sends it 100 ms of the guest's time later: it may be another boot by then.
_COUNT_UNTIL_KEY: Final = bytes.fromhex(
    "66ff060005"  #   again: inc dword [0x500]
    "e464"  #                in al, 0x64    ; 8042: status
    "a801"  #                test al, 1     ; is there a byte to read?
    "74f5"  #                jz again
    "e460"  #                in al, 0x60
    "3cf0"  #                cmp al, 0xf0   ; set 2: a release follows
    "7406"  #                je release
    "a880"  #                test al, 0x80  ; set 1: a release
    "75eb"  #                jnz again
    "eb0a"  #                jmp pressed
    "e464"  # release:       in al, 0x64
    "a801"  #                test al, 1
    "74fa"  #                jz release
    "e460"  #                in al, 0x60
    "ebdf"  #                jmp again
)  #        pressed:


# PCI's configuration mechanism 1 (ports 0xcf8 and 0xcfc), bus 0, device 4. The BAR is put to where
# a VGA's memory would be: a PC hands that to the PCI bus, and a 16-bit guest can reach it.
_PANIC_BY_PCI: Final = bytes.fromhex(
    "baf80c"  #          mov dx, 0xcf8
    "66b810200080"  #    mov eax, 0x80002010  ; BAR 0
    "66ef"  #            out dx, eax
    "bafc0c"  #          mov dx, 0xcfc
    "66b800000a00"  #    mov eax, 0xa0000
    "66ef"  #            out dx, eax
    "baf80c"  #          mov dx, 0xcf8
    "66b804200080"  #    mov eax, 0x80002004  ; command
    "66ef"  #            out dx, eax
    "bafc0c"  #          mov dx, 0xcfc
    "b80200"  #          mov ax, 2            ; memory space on
    "ef"  #              out dx, ax
    "b800a0"  #          mov ax, 0xa000
    "8ed8"  #            mov ds, ax
    "c606000001"  #      mov byte [0], 1      ; PVPANIC_PANICKED
)

# An instruction that KVM would have to emulate, since it reads where no memory is, and can't: its
# emulator knows no arithmetic of MMX (Linux, arch/x86/kvm/emulate.c).
_KVM_ERROR: Final = bytes.fromhex(
    "b800a0"  #        mov ax, 0xa000
    "8ed8"  #          mov ds, ax
    "0ffc060000"  #    paddb mm0, [0]
)


def _write_msr(number: int, high: int, low: int) -> bytes:
    return (
        b"\x66\xb9" + number.to_bytes(4, "little")  #  mov ecx, number
        + b"\x66\xb8" + low.to_bytes(4, "little")  #   mov eax, low
        + b"\x66\xba" + high.to_bytes(4, "little")  #  mov edx, high
        + b"\x0f\x30"  #                               wrmsr
    )  # fmt: skip


# HV_X64_MSR_CRASH_P0 to P4 and HV_X64_MSR_CRASH_CTL with its top bit, CrashNotify: Hypervisor
# Top-Level Functional Specification, 'Guest crash enlightenment'.
_PANIC_BY_HYPERV: Final = b"".join(
    _write_msr(0x40000100 + index, 0, value) for index, value in enumerate(HYPERV_BUG_CHECK)
) + _write_msr(0x40000105, 0x80000000, 0)


def _jump_back(over: bytes) -> bytes:
    """A short jump (``jmp``) to the start of the fragment that stands just before it."""
    jump_size = 2  # the displacement counts from the end of the jump itself
    return b"\xeb" + (-(len(over) + jump_size)).to_bytes(1, signed=True)


def _on_first_boot(body: bytes) -> bytes:
    """``body``, skipped when the mark of an earlier boot is found in memory."""
    leave_mark = bytes.fromhex("66c7060006504e4344")  #  mov dword [0x600], 'PNCD'
    guarded = leave_mark + body
    return (
        bytes.fromhex("66813e0006504e4344")  #           cmp dword [0x600], 'PNCD'
        + b"\x74"  #                                     je past the guarded bytes
        + len(guarded).to_bytes(1)
        + guarded
    )


_KEY_THEN_PANIC: Final = _COUNT_UNTIL_KEY + _PANIC

_PROGRAMS: Final = {
    Guest.IDLE: _HALT,
    Guest.COUNT: _COUNT,
    Guest.PANIC_ONCE: _PANIC + _HALT,
    Guest.PANIC_AND_COUNT: _PANIC + _COUNT,
    Guest.PANIC_ONCE_THEN_BOOT_HEALTHY: _on_first_boot(_PANIC + _HALT) + _COUNT,
    Guest.PANIC_ON_KEY: _KEY_THEN_PANIC + _jump_back(_KEY_THEN_PANIC),
    Guest.FLOOD: _FLOOD,
    Guest.CRASHLOAD_THEN_RESET: _on_first_boot(_CRASHLOAD + _RESET + _HALT) + _COUNT,
    Guest.CRASHLOAD_THEN_HANG: _CRASHLOAD + _HALT,
    Guest.PANIC_BY_PCI: _PANIC_BY_PCI + _HALT,
    Guest.PANIC_BY_HYPERV: _PANIC_BY_HYPERV + _HALT,
    Guest.KVM_ERROR_ON_KEY: _COUNT_UNTIL_KEY + _KVM_ERROR + _HALT,
}


def write_boot_sector(guest: Guest, path: Path) -> None:
    """Write ``guest`` as a boot sector of 512 bytes.

    Args:
        guest: What the guest shall do.
        path: The file to write; an existing one is replaced.

    Raises:
        OSError: The file could not be written.
    """
    program = _PROLOGUE + _PROGRAMS[guest]
    signature = b"\x55\xaa"  # without it the firmware takes the floppy for empty
    path.write_bytes(program.ljust(SECTOR_SIZE - len(signature), b"\0") + signature)


def write_rom(guest: Guest, path: Path) -> None:
    """Write ``guest`` as a firmware of 64 KiB, mapped at 0xf0000 and below 4 GiB.

    Args:
        guest: What the guest shall do.
        path: The file to write; an existing one is replaced.

    Raises:
        OSError: The file could not be written.
    """
    reset_vector = bytes.fromhex("ea000000f0")  #        jmp 0xf000:0x0000
    reset_vector_offset = ROM_SIZE - 16  # where an x86 starts
    program = _PROLOGUE + _PROGRAMS[guest]
    path.write_bytes(program.ljust(reset_vector_offset, b"\xf4") + reset_vector.ljust(16, b"\xf4"))
