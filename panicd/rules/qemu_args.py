"""The arguments that a VM should be started with, so that panicd can act on its panics."""

from dataclasses import dataclass
from typing import Final

from panicd.rules.capability import SET_ACTION_SINCE, Version

VMCOREINFO_SINCE: Final[Version] = (2, 11, 0)
PVPANIC_PCI_SINCE: Final[Version] = (6, 0, 0)


@dataclass(frozen=True, slots=True)
class Argument:
    """One option with its value, and why it is there."""

    option: str
    value: str
    why: str


def qemu_arguments(version: Version, *, socket: str, dial_in: bool, pci: bool) -> list[Argument]:
    """Return the arguments for a VM.

    Args:
        version: of its QEMU.
        socket: path of its monitor's socket, or of panicd's listening one.
        dial_in: the VM connects to panicd, and not panicd to the VM.
        pci: the panic device is on the PCI bus, where there is no ISA bus.

    Raises:
        ValueError: this QEMU has no such device.
    """
    if pci and version < PVPANIC_PCI_SINCE:
        raise ValueError(
            "pvpanic-pci came with QEMU 6.0; earlier ones have pvpanic, on the ISA bus"
        )
    chardev = f"socket,id=panicd,path={socket}," + (
        ("reconnect-ms=1000" if version >= (9, 2, 0) else "reconnect=1")
        if dial_in
        else "server=on,wait=off"
        if version >= (2, 12, 0)
        else "server,nowait"
    )
    arguments = [
        Argument("-chardev", chardev, "a monitor of panicd's own: QEMU serves one client on each"),
        Argument("-mon", "chardev=panicd,mode=control", "speaks QMP"),
        Argument(
            "-device", "pvpanic-pci" if pci else "pvpanic", "lets the guest report that it panics"
        ),
    ]
    if version < SET_ACTION_SINCE:
        why = "without it this QEMU exits on a panic, and nothing is left to act on"
        arguments.append(Argument("-no-shutdown", "", why))
    else:
        why = "panics wait for panicd even while it is not connected"
        arguments.append(Argument("-action", "panic=pause", why))
    if version >= VMCOREINFO_SINCE:
        arguments.append(Argument("-device", "vmcoreinfo", "lets a dump's tools find their way"))
    return arguments
