"""Machines that are not PCs, each with a guest that panics once and then idles.

The guests are assembled by hand, like those of ``panicd.demo.guests``: at most 64 bytes, without
firmware. A word in memory, which a reset leaves as it is, says that they have panicked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

S390_WAITS_AT = 0xDEAD
PVPANIC_PCI = "pvpanic-pci,addr=1"


@dataclass(frozen=True)
class Machine:
    """A kind of machine.

    Attributes:
        qemu: The program.
        kind: Its machine type.
        cpu: Its processor.
        devices: A ``-device`` each: what reports panics, if it does not by itself.
        memory: As in ``-m``; empty: QEMU's default.
        boots: The option that takes the guest.
        guest: What is in its file; None: it has none of its own.
    """

    qemu: str
    kind: str
    cpu: str
    devices: tuple[str, ...]
    memory: str = ""
    boots: str = ""
    guest: Callable[[], bytes] | None = None

    def arguments(self, binary: str, path: Path) -> list[str]:
        """The command line of one, under TCG; its guest is written to a file."""
        arguments = [
            *(binary, "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", f"{self.kind},accel=tcg", "-cpu", self.cpu),
            *(("-m", self.memory) if self.memory else ()),
        ]
        if self.guest is not None:
            path.write_bytes(self.guest())
            arguments += [self.boots, str(path)]
        return arguments


def _arm() -> bytes:
    return struct.pack(
        "<15I",
        *(0xD2A88005, 0xB94000A4),  # mov x5, #0x44000000; ldr w4, [x5]
        *(0x35000164, 0x52800024, 0xB90000A4),  # cbnz w4, idle; mov w4, #1; str w4, [x5]
        # The configuration space of device 1, 0x4010008000: its memory at 0x10000000, enabled.
        *(0xD2900000, 0xF2A20000, 0xF2C00800),  # mov x0, #0x8000; movk #0x1000, #0x40
        *(0x52A20001, 0xB9001001),  # mov w1, #0x10000000; str w1, [x0, #16]
        *(0x52800042, 0x79000802),  # mov w2, #2; strh w2, [x0, #4]
        0x39000024,  # strb w4, [x1]
        *(0xD503207F, 0x17FFFFFF),  # idle: wfi; b idle
    )


def _riscv() -> bytes:
    return struct.pack(
        "<15I",
        *(0x000012B7, 0x8012829B, 0x01429293),  # li t0, 0x80100000
        *(0x0002A303, 0x02031263, 0x00100313, 0x0062A023),  # lw; bnez t1, idle; li t1, 1; sw
        # The configuration space of device 1, 0x30008000: its memory at 0x40000000, enabled.
        *(0x300083B7, 0x40000E37, 0x01C3A823),  # lui t2; lui t3; sw t3, 16(t2)
        *(0x00200E93, 0x01D39223),  # li t4, 2; sh t4, 4(t2)
        0x006E0023,  # sb t1, 0(t3)
        *(0x10500073, 0xFFDFF06F),  # idle: wfi; j idle
    )


def _s390() -> bytes:
    at = 0x10000
    start = struct.pack(">II", 0x00080000, 0x80000000 | at)
    code = bytes.fromhex(
        "a51e0010 c0300000000e"  # llilh %r1, 0x10; larl %r3, psws
        "58201000 1222 a7740006"  # l %r2, 0(%r1); ltr %r2, %r2; jnz idle
        "92011003 b2b23000"  # mvi 3(%r1), 1; lpswe 0(%r3)
        "b2b23010"  # idle: lpswe 16(%r3)
    )
    disabled_wait = struct.pack(">QQ", 0x0002000180000000, S390_WAITS_AT)
    idle = struct.pack(">QQ", 0x0302000180000000, 0)
    return start.ljust(at, b"\0") + code + disabled_wait + idle


ARM = Machine("qemu-system-aarch64", "virt", "cortex-a57", (PVPANIC_PCI,), "256M", "-kernel", _arm)
RISCV = Machine("qemu-system-riscv64", "virt", "rv64", (PVPANIC_PCI,), "16M", "-bios", _riscv)
S390 = Machine("qemu-system-s390x", "s390-ccw-virtio", "qemu", (), "16M", "-kernel", _s390)
